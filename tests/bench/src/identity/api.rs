//! A scripted Kubernetes API for the identity service: reviews tokens after a fixed time, and takes Events.
//!
//! The real API server's own cost must not be measured, nor can it be told to hang. This one speaks HTTP/2 and HTTP/1.1
//! over TLS to the real client, as an API server does. A token is `bench.ACCOUNT.POD`; one that begins with `hang` is never
//! answered.

use std::{
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result};
use heddle_tls::rustls::{ServerConfig, pki_types::PrivateKeyDer};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, Response, body::Bytes, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

/// What a review takes: a quick API server's answer.
const SERVICE_TIME: Duration = Duration::from_millis(1);
const BODY_BYTES_MAX: usize = 256 * 1024;

/// Ends when dropped.
pub(super) struct Api {
    serving: JoinHandle<()>,
    hung: Arc<AtomicUsize>,
}

impl Drop for Api {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

/// A review that hangs, for as long as the service waits for it.
struct Hung(Arc<AtomicUsize>);

impl Hung {
    fn count(hung: &Arc<AtomicUsize>) -> Self {
        hung.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(hung))
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Api {
    /// Serves, and writes a kubeconfig that leads here.
    pub(super) async fn start(kubeconfig: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new(vec!["127.0.0.1".to_owned()])?.signed_by(&key, &ca)?;
        let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
        let mut tls = ServerConfig::builder_with_provider(heddle_tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], der)?;
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        write_kubeconfig(kubeconfig, listener.local_addr()?, &ca.pem())?;
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let hung = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&hung);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, hung) = (acceptor.clone(), Arc::clone(&counter));
                tokio::spawn(async move {
                    // The client tries again; nothing is measured here.
                    let _ = stream.set_nodelay(true);
                    if let Ok(stream) = acceptor.accept(stream).await {
                        let service = service_fn(|request| answer(request, Arc::clone(&hung)));
                        let _ = auto::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    }
                });
            }
        });
        Ok(Self { serving, hung })
    }

    /// Reviews that hang now.
    pub(super) fn hung(&self) -> usize {
        self.hung.load(Ordering::Relaxed)
    }
}

async fn answer(request: Request<Incoming>, hung: Arc<AtomicUsize>) -> Result<Response<Full<Bytes>>> {
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    let mut object: Value = serde_json::from_slice(&body)?;
    if path.ends_with("/tokenreviews") {
        let token = object["spec"]["token"].as_str().unwrap_or_default().to_owned();
        if token.starts_with("hang") {
            let _hung = Hung::count(&hung);
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(SERVICE_TIME).await;
        object["status"] = review(&token);
    }
    let mut response = Response::new(Full::from(serde_json::to_vec(&object)?));
    *response.status_mut() = hyper::StatusCode::CREATED;
    let json = hyper::header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, json);
    Ok(response)
}

fn review(token: &str) -> Value {
    let parts: Vec<&str> = token.split('.').collect();
    let [namespace, account, pod] = parts.as_slice() else {
        return json!({"authenticated": false, "error": "not a token of the benchmark"});
    };
    // What a real review of a pod's token holds.
    json!({
        "authenticated": true,
        "audiences": ["identity.l5d.io"],
        "user": {
            "username": format!("system:serviceaccount:{namespace}:{account}"),
            "uid": format!("00000000-0000-4000-8000-{account:0>12}"),
            "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/credential-id": [format!("JTI={pod}")],
                "authentication.kubernetes.io/node-name": ["node-1"],
                "authentication.kubernetes.io/node-uid": ["00000000-0000-4000-8000-000000000001"],
                "authentication.kubernetes.io/pod-name": [pod],
                "authentication.kubernetes.io/pod-uid": [format!("uid-{pod}")],
            },
        },
    })
}

fn write_kubeconfig(path: &Path, addr: SocketAddr, ca_pem: &str) -> Result<()> {
    let ca = path.with_extension("ca.crt");
    std::fs::write(&ca, ca_pem)?;
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": format!("https://{addr}"), "certificate-authority": ca}}],
        "users": [{"name": "bench", "user": {"token": "of-the-identity-service"}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    });
    std::fs::write(path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))
}
