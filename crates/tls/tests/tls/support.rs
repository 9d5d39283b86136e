//! A certificate authority, certified stores, and a gRPC service that tells its callers who they are.

use std::{net::SocketAddr, time::Duration};

use heddle_tls::{
    CertifyKey, Identity, LocalCredentials, Peer, Store, TrustBundle,
    serve::{Limits, Server},
};
use linkerd2_proxy_api::identity::{
    CertifyRequest, CertifyResponse,
    identity_server::{Identity as Certify, IdentityServer},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, SanType,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::{Request, Response, Status, service::Routes};

pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

pub(crate) type Ca = CertifiedIssuer<'static, KeyPair>;

pub(crate) fn mk_ca(name: &str) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ca::self_signed(params, KeyPair::generate().expect("a key")).expect("a root")
}

pub(crate) fn bundle(cas: &[&Ca]) -> TrustBundle {
    let text: String = cas.iter().map(|ca| ca.pem()).collect();
    TrustBundle::from_pem(&text).expect("a bundle")
}

pub(crate) fn identity(name: &str) -> Identity {
    format!("{name}.test.serviceaccount.identity.linkerd.cluster.local")
        .parse()
        .expect("a name")
}

/// What an identity service would sign for a key; `change` makes it wrong.
pub(crate) fn sign(ca: &Ca, csr: &[u8], change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut csr = CertificateSigningRequestParams::from_der(&csr.into()).expect("a request");
    csr.params.not_before = (std::time::SystemTime::now() - Duration::from_secs(20)).into();
    csr.params.not_after = (std::time::SystemTime::now() + DAY).into();
    csr.params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    change(&mut csr.params);
    csr.signed_by(ca).expect("a leaf").der().to_vec()
}

pub(crate) fn credentials(ca: &Ca, key: &CertifyKey) -> LocalCredentials {
    LocalCredentials::new(key, vec![sign(ca, key.csr_der(), |_| {}).into()]).expect("a leaf")
}

/// A store of `name` that trusts `roots`, without a leaf.
pub(crate) fn mk_store(name: &str, roots: &[&Ca]) -> (Store, CertifyKey) {
    Store::new(identity(name), bundle(roots)).expect("a store")
}

/// A store with a leaf of `ca`, which it trusts.
pub(crate) fn mk_certified(name: &str, ca: &Ca) -> Store {
    let (store, key) = mk_store(name, &[ca]);
    store.set_leaf(credentials(ca, &key)).expect("trusted");
    store
}

pub(crate) fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

/// Answers with the caller's identity; a request with a token waits until the gate opens.
pub(crate) struct WhoAmI {
    gate: watch::Receiver<bool>,
    waiting: watch::Sender<usize>,
}

#[tonic::async_trait]
impl Certify for WhoAmI {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let peer = request
            .extensions()
            .get::<Peer>()
            .cloned()
            .ok_or_else(|| Status::internal("no peer"))?;
        if !request.get_ref().token.is_empty() {
            self.waiting.send_modify(|waiting| *waiting += 1);
            let mut gate = self.gate.clone();
            gate.wait_for(|open| *open)
                .await
                .map_err(|_| Status::aborted("the gate is gone"))?;
        }
        let name = peer
            .identity
            .map_or_else(|| "nobody".to_owned(), |identity| identity.to_string());
        let text = format!("{name} tls={}", peer.tls);
        Ok(Response::new(CertifyResponse {
            leaf_certificate: text.into_bytes(),
            ..CertifyResponse::default()
        }))
    }
}

/// A running server.
pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) gate: watch::Sender<bool>,
    pub(crate) waiting: watch::Receiver<usize>,
    drain: Option<drain::Signal>,
    task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn start(store: Option<Store>, limits: Limits) -> Self {
        Self::start_on(SocketAddr::from(([127, 0, 0, 1], 0)), store, limits).await
    }

    pub(crate) async fn start_on(addr: SocketAddr, store: Option<Store>, limits: Limits) -> Self {
        let listener = TcpListener::bind(addr).await.expect("binds");
        let addr = listener.local_addr().expect("has an address");
        let (drain, watch) = drain::channel();
        let (gate, opened) = watch::channel(false);
        let (wait, waiting) = watch::channel(0);
        let service = IdentityServer::new(WhoAmI {
            gate: opened,
            waiting: wait,
        });
        let server = Server::new(Routes::new(service)).limits(limits);
        let task = tokio::spawn(async move {
            match store {
                Some(store) => server.serve_tls(listener, store, watch).await,
                None => server.serve_plaintext(listener, watch).await.expect("loopback"),
            }
        });
        Self {
            addr,
            gate,
            waiting,
            drain: Some(drain),
            task,
        }
    }

    /// Drains and waits for the server's end.
    pub(crate) async fn stop(mut self) {
        let drain = self.drain.take().expect("stopped once");
        tokio::time::timeout(DEADLINE, drain.drain())
            .await
            .expect("drains in time");
        (&mut self.task).await.expect("the server ends");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
