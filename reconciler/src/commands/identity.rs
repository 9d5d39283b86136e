//! `heddle identity [POD…]`: the certificates that proxies show, as their admin port shows them in a TLS handshake.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
};

use heddle_tls::{Identity, TrustBundle};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _};
use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio_rustls::TlsConnector;
use x509_parser::prelude::*;

use super::connect;
use crate::{
    cli::{Failure, Global, Outcome},
    cluster::Answer,
    forward::{self, ControlPlane, ForwardError},
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Pods; or give a label selector
    #[arg(value_name = "POD")]
    pods: Vec<String>,
    /// The pods' namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Pods with these labels
    #[arg(
        short = 'l',
        long,
        value_name = "LABELS",
        conflicts_with = "pods",
        required_unless_present = "pods"
    )]
    selector: Option<String>,
}

/// Exits 1 when a pod showed no certificate, or one that its peers would refuse.
pub fn run(global: &Global, args: Args) -> Outcome {
    super::block_on(async {
        let cluster = connect(global).await?;
        let control = ControlPlane::find(cluster.client.clone(), &global.linkerd_namespace).await?;
        let pods = match &args.selector {
            Some(selector) => forward::pods(&cluster.client, Some(&args.namespace), selector).await?,
            None => named(&cluster.client, &args.namespace, &args.pods).await?,
        };
        if pods.is_empty() {
            return Err(
                Failure::message(format!("no such pods in namespace {}", args.namespace))
                    .hint("see -n and -l"),
            );
        }
        let count = pods.len();
        let mut failed = false;
        for (index, pod) in pods.iter().enumerate() {
            let mut text = format!("\nPOD {} ({} of {count})\n\n", pod.name_any(), index + 1);
            match shown(&cluster.client, &control, pod).await {
                Ok(shown) => {
                    let _ = writeln!(text, "{}", describe(&shown.leaf));
                    if let Some(problem) = shown.problem {
                        failed = true;
                        let _ = writeln!(text, "  Its peers would refuse it: {problem}");
                    }
                }
                Err(error) => {
                    failed = true;
                    let _ = writeln!(text, "  {}", crate::cli::chain(error.error.as_ref()));
                }
            }
            crate::cli::print(&text)?;
        }
        Ok(u8::from(failed))
    })
}

async fn named(client: &Client, namespace: &str, names: &[String]) -> Result<Vec<Pod>, Failure> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let mut pods = Vec::new();
    for name in names {
        let name = name
            .strip_prefix("pod/")
            .or(name.strip_prefix("po/"))
            .unwrap_or(name);
        pods.push(api.get(name).await.map_err(|source| ForwardError::Request {
            action: format!("get pod {namespace}/{name}"),
            source: Answer::from(source),
        })?);
    }
    Ok(pods)
}

/// What a proxy shows, and why its peers would refuse that.
struct Shown {
    leaf: CertificateDer<'static>,
    problem: Option<String>,
}

async fn shown(client: &Client, control: &ControlPlane, pod: &Pod) -> Result<Shown, Failure> {
    let port = forward::containers(pod)
        .find(|container| container.name == heddle_mesh::port::PROXY_CONTAINER)
        .and_then(|proxy| forward::port_of(proxy, |name| name == heddle_mesh::port::PROXY_ADMIN_NAME))
        .ok_or_else(|| {
            Failure::message("it is not meshed: it has no container linkerd-proxy with a port linkerd-admin")
        })?;
    let account = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.service_account_name.clone())
        .unwrap_or_else(|| "default".to_owned());
    let name = control
        .identity(&pod.namespace().unwrap_or_default(), &account)
        .map_err(Failure::message)?;
    let seen = Arc::new(Seen::new(control.roots())?);
    let config = ClientConfig::builder_with_provider(heddle_tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::message(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(seen.clone())
        .with_no_client_auth();
    let failed = |source| ForwardError::Stream {
        pod: forward::display(pod),
        port,
        source,
    };
    let server = server_name(&name)?;
    let stream = forward::open(client, pod, port).await?;
    let handshake = TlsConnector::from(Arc::new(config)).connect(server, stream);
    match tokio::time::timeout(forward::TIMEOUT, handshake).await {
        Ok(tls) => drop(tls.map_err(failed)?),
        Err(_) => return Err(failed(std::io::ErrorKind::TimedOut.into()).into()),
    }
    let shown = seen
        .shown
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .take();
    shown.ok_or_else(|| Failure::message("it showed no certificate"))
}

fn server_name(name: &Identity) -> Result<ServerName<'static>, Failure> {
    ServerName::try_from(name.to_string())
        .map_err(|error| Failure::message(format!("{name} cannot be a server name in TLS: {error}")))
}

/// Takes any certificate to look at it, and remembers what a peer would say of it. Nothing is sent over such a connection.
#[derive(Debug)]
struct Seen {
    strict: Arc<WebPkiServerVerifier>,
    shown: Mutex<Option<Shown>>,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown")
            .field("problem", &self.problem)
            .finish_non_exhaustive()
    }
}

impl Seen {
    fn new(roots: TrustBundle) -> Result<Self, Failure> {
        let strict =
            WebPkiServerVerifier::builder_with_provider(roots.anchors().clone(), heddle_tls::provider())
                .build()
                .map_err(|error| Failure::message(format!("the trust anchors cannot be used: {error}")))?;
        Ok(Self {
            strict,
            shown: Mutex::new(None),
        })
    }
}

impl ServerCertVerifier for Seen {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged = self
            .strict
            .verify_server_cert(leaf, intermediates, name, ocsp, now);
        let shown = Shown {
            leaf: leaf.clone().into_owned(),
            problem: judged.err().map(|error| error.to_string()),
        };
        *self
            .shown
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(shown);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls12_signature(message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.strict.verify_tls13_signature(message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.strict.supported_verify_schemes()
    }
}

/// A certificate in words, in the order of `openssl x509 -text`.
fn describe(der: &CertificateDer<'_>) -> String {
    let certificate = match X509Certificate::from_der(der) {
        Ok((_, certificate)) => certificate,
        Err(error) => return format!("  not a certificate: {error}"),
    };
    let mut text = String::from("Certificate:\n    Data:\n");
    let bits = certificate.public_key().parsed().map_or(0, |key| key.key_size());
    let _ = writeln!(text, "        Version: {}", certificate.version().0 + 1);
    let _ = writeln!(
        text,
        "        Serial Number: {}",
        certificate.raw_serial_as_string()
    );
    let _ = writeln!(text, "        Issuer: {}", certificate.issuer());
    let _ = writeln!(text, "        Validity");
    let _ = writeln!(
        text,
        "            Not Before: {}",
        certificate.validity().not_before
    );
    let _ = writeln!(
        text,
        "            Not After : {}",
        certificate.validity().not_after
    );
    let _ = writeln!(text, "        Subject: {}", certificate.subject());
    let _ = writeln!(text, "        Public Key: {bits} bit");
    if let Ok(Some(names)) = certificate.subject_alternative_name() {
        let _ = writeln!(text, "        X509v3 Subject Alternative Name:");
        for name in &names.value.general_names {
            let _ = match name {
                GeneralName::DNSName(name) => writeln!(text, "            DNS:{name}"),
                GeneralName::URI(uri) => writeln!(text, "            URI:{uri}"),
                other => writeln!(text, "            {other}"),
            };
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_in_words() {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec!["web.a.example".to_owned()]).unwrap();
        let text = describe(params.self_signed(&key).unwrap().der());
        assert!(
            text.contains("DNS:web.a.example") && text.contains("Public Key: 256 bit"),
            "{text}"
        );
        assert!(describe(&CertificateDer::from(vec![1, 2])).contains("not a certificate"));
    }
}
