//! The identity service: certificates per CPU second beside an in-process bound, a restart of a whole cluster's
//! proxies, and what a hung TokenReview costs others.
//!
//! The real `heddle-identity` with its real Kubernetes client; the API behind it is scripted ([`api`]), because it must
//! answer in a known time and hang on demand. Keys and signing requests are made before anything is timed. Callers use
//! the channel that Heddle's proxies and control plane use: mesh TLS 1.3, HTTP/2, gRPC.

mod api;
mod callers;

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::wait;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::{
    proxy::{cpu_seconds, resident_bytes},
    record::{Record, quantile},
};
use api::Api;
use callers::{Callers, Connections};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How often each arm is measured, the arms in turn.
    #[arg(long, default_value_t = 6)]
    blocks: usize,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Proxies that start at once.
    #[arg(long, default_value_t = 5_000)]
    proxies: usize,
    /// How often they do.
    #[arg(long, default_value_t = 3)]
    restarts: usize,
    /// The identity service under test.
    #[arg(long, default_value = "target/image/heddle-identity")]
    identity: PathBuf,
    /// The bound: verify, sign and encode, built like the identity service.
    #[arg(long, default_value = "target/image/examples/bound")]
    bound: PathBuf,
}

const BENCH: &str = "identity";
/// Requests at a time of the throughput arms.
const IN_FLIGHT: usize = 32;
/// Requests a second while others hang; far below what the service can do.
const RATE: f64 = 200.0;
/// Addresses whose reviews hang, and how many of each do: 200 together.
const HUNG_ADDRESSES: u8 = 4;
const HUNG_OF_EACH: usize = 50;
const STARTED: Duration = Duration::from_secs(30);
/// What 5,000 pods may ask within a minute is far less than what is measured: the rates are counted, and not reached.
const UNLIMITED: [&str; 4] = [
    "--pod-requests-per-minute",
    "1000000",
    "--identity-requests-per-minute",
    "1000000000",
];

/// The identity service with its files, ended when dropped.
struct Program {
    child: Child,
    addr: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        // Already ended is as good as killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) async fn run(options: Options) -> Result<Vec<Record>> {
    let Options {
        blocks,
        seconds,
        proxies,
        restarts,
        identity,
        bound,
    } = options;
    heddle_daemon::process::raise_file_limit();
    let dir = tempfile::tempdir()?;
    let issuer = dir.path().join("issuer");
    std::fs::create_dir(&issuer)?;
    let root_pem = write_issuer(&issuer)?;
    std::fs::write(dir.path().join("ca-bundle.crt"), &root_pem)?;
    let kubeconfig = dir.path().join("kubeconfig");
    let api = Api::start(&kubeconfig).await?;
    let program = Program::start(&identity, dir.path(), &kubeconfig, &UNLIMITED).await?;
    eprintln!("making {proxies} keys and signing requests");
    let mut callers = Callers::new(program.addr, &root_pem, proxies)?;
    let mut records = Vec::new();

    let (mut kept, mut new, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
    for block in 0..blocks {
        let (certificates, cpu) = program.throughput(&callers, Connections::Kept, seconds).await?;
        kept.push(certificates as f64 / cpu);
        bounds.push(in_process(&bound, &issuer, seconds)?);
        let (certificates, cpu) = program.throughput(&callers, Connections::New, seconds).await?;
        new.push(certificates as f64 / cpu);
        eprintln!(
            "block {}: {:.0} certificates per CPU second, bound {:.0}, each on a connection of its own {:.0}",
            block + 1,
            kept[block],
            bounds[block],
            new[block]
        );
    }
    let peer = ("bound", bounds.as_slice());
    records.push(Record::beside(
        BENCH,
        "certificates_per_cpu_second",
        "1/s",
        &kept,
        peer,
    ));
    records.push(Record::beside(
        BENCH,
        "certificates_per_cpu_second_new_connection",
        "1/s",
        &new,
        peer,
    ));

    let (mut alone, mut beside_hung) = (Vec::new(), Vec::new());
    for block in 0..blocks.min(3) {
        alone.push(quantile(&callers.open_loop(RATE, seconds).await?, 0.99));
        let hung = callers.hang(HUNG_ADDRESSES, HUNG_OF_EACH, block).await?;
        wait::until_ok("200 reviews to hang", STARTED, || async {
            let (now, all) = (api.hung(), usize::from(HUNG_ADDRESSES) * HUNG_OF_EACH);
            ensure!(now >= all, "{now} of {all} hang");
            Ok(())
        })
        .await?;
        beside_hung.push(quantile(&callers.open_loop(RATE, seconds).await?, 0.99));
        drop(hung);
    }
    let peer = ("no hung review", alone.as_slice());
    records.push(Record::beside(
        BENCH,
        "certify_p99_beside_200_hung_reviews",
        "s",
        &beside_hung,
        peer,
    ));

    // A restart is what the rates must let through, so here they are the default ones.
    drop(program);
    let program = Program::start(&identity, dir.path(), &kubeconfig, &[]).await?;
    callers.addr = program.addr;
    let (mut took, mut refused) = (Vec::new(), 0);
    for restart in 0..restarts {
        let outcome = callers.restart().await?;
        eprintln!(
            "restart {}: {proxies} proxies certified in {:.2} s, {} refusals, {} attempts",
            restart + 1,
            outcome.seconds,
            outcome.refused,
            outcome.attempts
        );
        took.push(outcome.seconds);
        refused += outcome.refused;
    }
    records.push(Record::alone(
        BENCH,
        format!("restart_{proxies}_seconds"),
        "s",
        &took,
    ));
    records.push(Record::alone(
        BENCH,
        format!("restart_{proxies}_refused"),
        "",
        &[refused as f64],
    ));
    records.push(Record::alone(
        BENCH,
        "resident_bytes_after_load",
        "B",
        &[resident_bytes(program.child.id())?],
    ));
    Ok(records)
}

impl Program {
    async fn start(binary: &Path, dir: &Path, kubeconfig: &Path, rates: &[&str]) -> Result<Self> {
        let free =
            || -> Result<SocketAddr> { Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?) };
        let (addr, admin) = (free()?, free()?);
        let child = Command::new(binary)
            .args([
                "--listen-addr",
                &addr.to_string(),
                "--admin-addr",
                &admin.to_string(),
            ])
            .arg("--issuer-dir")
            .arg(dir.join("issuer"))
            .arg("--trust-roots")
            .arg(dir.join("ca-bundle.crt"))
            .args(rates)
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let program = Self { child, addr };
        wait::until_ok("the identity service to be ready", STARTED, || async {
            let reply = get(admin, "/ready").await?;
            ensure!(reply.starts_with("HTTP/1.1 200"), reply);
            Ok(())
        })
        .await?;
        Ok(program)
    }

    /// Certificates and the CPU seconds of the service that they took.
    async fn throughput(
        &self,
        callers: &Callers,
        connections: Connections,
        seconds: f64,
    ) -> Result<(u64, f64)> {
        let before = cpu_seconds(self.child.id())?;
        let certificates = callers.closed_loop(connections, IN_FLIGHT, seconds).await?;
        Ok((certificates, cpu_seconds(self.child.id())? - before))
    }
}

fn write_issuer(dir: &Path) -> Result<String> {
    let params = |name: &str| {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
    };
    let root = CertifiedIssuer::self_signed(params("root.linkerd.cluster.local"), KeyPair::generate()?)?;
    let issuer = CertifiedIssuer::signed_by(
        params("identity.linkerd.cluster.local"),
        KeyPair::generate()?,
        &root,
    )?;
    std::fs::write(dir.join("tls.crt"), issuer.pem())?;
    std::fs::write(dir.join("tls.key"), issuer.key().serialize_pem())?;
    Ok(root.pem())
}

fn in_process(bound: &Path, issuer: &Path, seconds: f64) -> Result<f64> {
    let output = Command::new(bound)
        .arg(issuer)
        .arg(seconds.to_string())
        .output()
        .with_context(|| format!("cannot start {}", bound.display()))?;
    ensure!(output.status.success(), "{}: {}", bound.display(), output.status);
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

async fn get(addr: SocketAddr, path: &str) -> Result<String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await?;
    Ok(reply)
}
