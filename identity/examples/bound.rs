//! The least that a certificate costs: verify a signing request, sign a leaf, encode the answer; one thread, nothing
//! else. `cargo xtask bench identity` compares the program with it.
//!
//! `bound ISSUER-DIR SECONDS` prints the certificates per CPU second.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use heddle_identity::{
    csr,
    issuer::{Issuer, Validity},
};
use heddle_mesh::Identity;
use linkerd2_proxy_api::identity::CertifyResponse;
use prost::Message as _;

fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().context("expected the issuer's folder")?;
    let seconds: f64 = args.next().context("expected a number of seconds")?.parse()?;
    let issuer = Issuer::load(dir.as_ref())?;
    let name: Identity = "bench.bench.serviceaccount.identity.linkerd.cluster.local".parse()?;
    let requests = (0..64)
        .map(|_| heddle_tls::CertifyKey::generate(&name))
        .collect::<Result<Vec<_>, _>>()?;
    let validity = Validity {
        lifetime: Duration::from_secs(24 * 3600),
        clock_skew: Duration::from_secs(20),
    };
    let (began, cpu, mut certificates) = (Instant::now(), cpu_seconds()?, 0_u64);
    while began.elapsed().as_secs_f64() < seconds {
        for request in &requests {
            let valid = csr::parse(request.csr_der())?.for_identity(&name, None)?;
            let issued = issuer.sign(&valid, validity, SystemTime::now())?;
            let response = CertifyResponse {
                leaf_certificate: issued.leaf,
                intermediate_certificates: issued.chain.iter().map(|cert| cert.to_vec()).collect(),
                valid_until: Some(issued.expires.into()),
            };
            std::hint::black_box(response.encode_to_vec());
            certificates += 1;
        }
    }
    println!("{}", certificates as f64 / (cpu_seconds()? - cpu));
    Ok(())
}

/// Of this program's only thread, in nanoseconds on a processor.
fn cpu_seconds() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanos: f64 = text.split(' ').next().context("an empty schedstat")?.parse()?;
    Ok(nanos / 1e9)
}
