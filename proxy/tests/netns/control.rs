//! A scripted control plane: what tests say, it streams. One script serves all pods of a test.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use heddle_wire::{Extension, PolicyMessage};
use linkerd2_proxy_api::{
    destination::{self, destination_server as dst},
    identity::{self, identity_server as id},
    inbound::{self, inbound_server_policies_server as inb},
    net,
    outbound::{self, TrafficSpec, traffic_spec},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    DnType, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
};
use tokio::sync::watch;
use tokio_stream::{
    Stream,
    wrappers::{TcpListenerStream, WatchStream},
};
use tonic::{
    Request, Response, Status,
    server::{Grpc, NamedService},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::{net::Namespace, policies};

pub(crate) const PORT: u16 = 8086;

/// Everything the control plane says.
#[derive(Clone)]
pub(crate) struct Script(Arc<Inner>);

struct Inner {
    issuer: Issuer<'static, KeyPair>,
    anchors: String,
    endpoints: Mutex<HashMap<String, watch::Sender<Vec<destination::WeightedAddr>>>>,
    outbound: Mutex<HashMap<SocketAddr, watch::Sender<PolicyMessage>>>,
    inbound: Mutex<HashMap<(String, u16), watch::Sender<inbound::Server>>>,
    named: Mutex<HashMap<String, outbound::OutboundPolicy>>,
    profiles: Mutex<HashMap<String, watch::Sender<destination::DestinationProfile>>>,
    /// The serial numbers of each identity's leaves, and those that are revoked.
    serials: Mutex<HashMap<String, Vec<u64>>>,
    revoked: Mutex<Vec<u64>>,
    leaf_life: Mutex<Duration>,
}

/// One pod's running control plane.
pub(crate) struct Running {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Script {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(DnType::CommonName, "root.linkerd.cluster.local");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let anchors = params.self_signed(&key).expect("a certificate").pem();
        Self(Arc::new(Inner {
            issuer: Issuer::new(params, key),
            anchors,
            endpoints: Mutex::default(),
            outbound: Mutex::default(),
            inbound: Mutex::default(),
            named: Mutex::default(),
            profiles: Mutex::default(),
            serials: Mutex::default(),
            revoked: Mutex::default(),
            leaf_life: Mutex::new(Duration::from_secs(3600)),
        }))
    }

    pub(crate) fn anchors(&self) -> &str {
        &self.0.anchors
    }

    /// How long certificates hold that are signed from now on.
    pub(crate) fn set_leaf_life(&self, life: Duration) {
        *self
            .0
            .leaf_life
            .lock()
            .expect("no test panics while it holds this") = life;
    }

    pub(crate) fn set_endpoints(&self, path: &str, endpoints: Vec<destination::WeightedAddr>) {
        let mut all = self
            .0
            .endpoints
            .lock()
            .expect("no test panics while it holds this");
        all.entry(path.to_owned())
            .or_insert_with(|| watch::Sender::new(Vec::new()))
            .send_replace(endpoints);
    }

    pub(crate) fn set_outbound(&self, addr: SocketAddr, policy: outbound::OutboundPolicy) {
        self.set_extended(addr, policy, &Extension::default());
    }

    pub(crate) fn set_extended(
        &self,
        addr: SocketAddr,
        policy: outbound::OutboundPolicy,
        extension: &Extension,
    ) {
        let policy = PolicyMessage::new(policy, extension);
        let mut all = self
            .0
            .outbound
            .lock()
            .expect("no test panics while it holds this");
        all.entry(addr)
            .or_insert_with(|| watch::Sender::new(policy.clone()))
            .send_replace(policy);
    }

    pub(crate) fn set_inbound(&self, workload: &str, port: u16, server: inbound::Server) {
        let mut all = self.0.inbound.lock().expect("no test panics while it holds this");
        all.entry((workload.to_owned(), port))
            .or_insert_with(|| watch::Sender::new(server.clone()))
            .send_replace(server);
    }

    /// The policy of a name.
    pub(crate) fn set_named(&self, name: &str, policy: outbound::OutboundPolicy) {
        let mut all = self.0.named.lock().expect("no test panics while it holds this");
        all.insert(name.to_owned(), policy);
    }

    /// The profile of an address or a name; the empty one until then.
    pub(crate) fn set_profile(&self, path: &str, profile: destination::DestinationProfile) {
        self.profile(path).send_replace(profile);
    }

    fn profile(&self, path: &str) -> watch::Sender<destination::DestinationProfile> {
        let mut all = self
            .0
            .profiles
            .lock()
            .expect("no test panics while it holds this");
        all.entry(path.to_owned()).or_default().clone()
    }

    /// How often an account has been certified.
    pub(crate) fn certified(&self, account: &str) -> usize {
        let serials = self.0.serials.lock().expect("no test panics while it holds this");
        serials.get(&policies::identity(account)).map_or(0, Vec::len)
    }

    /// Revokes an account's newest certificate.
    pub(crate) fn revoke(&self, account: &str) {
        let serials = self.0.serials.lock().expect("no test panics while it holds this");
        let serial = *serials[&policies::identity(account)]
            .last()
            .expect("it has a leaf");
        let mut revoked = self.0.revoked.lock().expect("no test panics while it holds this");
        revoked.push(serial);
    }

    /// The revocation list.
    fn revocations(&self) -> String {
        let now = SystemTime::now();
        let revoked = self.0.revoked.lock().expect("no test panics while it holds this");
        let one = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now.into(),
            next_update: (now + Duration::from_secs(3600)).into(),
            crl_number: SerialNumber::from(revoked.len() as u64 + 1),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(one).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.0.issuer).expect("a list");
        list.pem().expect("PEM")
    }

    /// TLS for a server whose certificate has only this SPIFFE ID.
    pub(crate) fn workload(&self, id: &str) -> Arc<heddle_tls::rustls::ServerConfig> {
        use heddle_tls::rustls::{
            ServerConfig,
            pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
        };
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.subject_alt_names = vec![rcgen::SanType::URI(id.try_into().expect("ASCII"))];
        let cert = params.signed_by(&key, &self.0.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = ServerConfig::builder_with_provider(heddle_tls::provider())
            .with_safe_default_protocol_versions()
            .expect("TLS 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key);
        Arc::new(config.expect("they belong together"))
    }

    /// TLS as a proxy of this name has it; with the transport header's ALPN where it goes straight to the peer's proxy.
    pub(crate) fn client(&self, name: &str, direct: bool) -> Arc<heddle_tls::rustls::ClientConfig> {
        use heddle_tls::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let cert = params.signed_by(&key, &self.0.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = self
            .trusting()
            .with_client_auth_cert(vec![cert.der().clone()], key);
        let mut config = config.expect("they belong together");
        if direct {
            config.alpn_protocols = vec![b"transport.l5d.io/v1".to_vec()];
        }
        Arc::new(config)
    }

    /// TLS of a client that trusts the mesh and proves nothing.
    pub(crate) fn anonymous(&self, direct: bool) -> Arc<heddle_tls::rustls::ClientConfig> {
        let mut config = self.trusting().with_no_client_auth();
        if direct {
            config.alpn_protocols = vec![b"transport.l5d.io/v1".to_vec()];
        }
        Arc::new(config)
    }

    fn trusting(
        &self,
    ) -> heddle_tls::rustls::ConfigBuilder<
        heddle_tls::rustls::ClientConfig,
        heddle_tls::rustls::client::WantsClientCert,
    > {
        use heddle_tls::rustls::{ClientConfig, RootCertStore, pki_types::pem::PemObject};
        let mut roots = RootCertStore::empty();
        for cert in PemObject::pem_slice_iter(self.anchors().as_bytes()) {
            let cert: heddle_tls::rustls::pki_types::CertificateDer<'static> = cert.expect("our own root");
            roots.add(cert).expect("our own root");
        }
        ClientConfig::builder_with_provider(heddle_tls::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.3")
            .with_root_certificates(roots)
    }

    /// Serves the script on a pod's loopback.
    pub(crate) fn serve(&self, namespace: &Namespace) -> Running {
        let script = self.clone();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let thread = namespace.listen((Ipv4Addr::LOCALHOST, PORT), |listener| async move {
            let server = tonic::transport::Server::builder()
                .add_service(dst::DestinationServer::new(script.clone()))
                .add_service(id::IdentityServer::new(script.clone()))
                .add_service(inb::InboundServerPoliciesServer::new(script.clone()))
                .add_service(RevocationLists(script.clone()))
                .add_service(OutboundPolicies(script))
                .serve_with_incoming(TcpListenerStream::new(listener));
            tokio::select! {
                result = server => result.expect("the control plane serves"),
                _ = stopped => {}
            }
        });
        Running {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Running {
    pub(crate) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic in it has been printed, and fails the test by what is missing.
            let _ = thread.join();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

type Streaming<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl dst::Destination for Script {
    type GetStream = Streaming<destination::Update>;
    type GetProfileStream = Streaming<destination::DestinationProfile>;

    async fn get(
        &self,
        request: Request<destination::GetDestination>,
    ) -> Result<Response<Self::GetStream>, Status> {
        let path = request.into_inner().path;
        let watch = {
            let all = self
                .0
                .endpoints
                .lock()
                .expect("no test panics while it holds this");
            all.get(&path)
                .ok_or_else(|| Status::not_found(format!("no service {path}")))?
                .subscribe()
        };
        let mut known: Vec<net::TcpAddress> = Vec::new();
        let updates = WatchStream::new(watch).flat_map(move |now| {
            let addrs: Vec<_> = now.iter().filter_map(|one| one.addr).collect();
            let gone: Vec<_> = known
                .iter()
                .filter(|addr| !addrs.contains(addr))
                .copied()
                .collect();
            known = addrs;
            let add = destination::WeightedAddrSet {
                addrs: now.clone(),
                metric_labels: HashMap::new(),
            };
            let add = match now.is_empty() {
                true => destination::update::Update::NoEndpoints(destination::NoEndpoints { exists: true }),
                false => destination::update::Update::Add(add),
            };
            let remove = destination::update::Update::Remove(destination::AddrSet { addrs: gone.clone() });
            let remove = (!gone.is_empty()).then_some(remove);
            let updates = remove.into_iter().chain([add]);
            tokio_stream::iter(
                updates
                    .map(|update| Ok(destination::Update { update: Some(update) }))
                    .collect::<Vec<_>>(),
            )
        });
        Ok(Response::new(Box::pin(updates)))
    }

    async fn get_profile(
        &self,
        request: Request<destination::GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        let watch = self.profile(&request.into_inner().path).subscribe();
        Ok(Response::new(Box::pin(WatchStream::new(watch).map(Ok))))
    }
}

/// The revocation lists, beside the gRPC services.
#[derive(Clone)]
struct RevocationLists(Script);

impl NamedService for RevocationLists {
    const NAME: &'static str = heddle_tls::revocation::LISTS_SERVICE;
}

impl Service<http::Request<tonic::body::Body>> for RevocationLists {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: http::Request<tonic::body::Body>) -> Self::Future {
        let lists = http_body_util::Full::new(bytes::Bytes::from(self.0.revocations()));
        std::future::ready(Ok(http::Response::new(tonic::body::Body::new(lists))))
    }
}

/// `OutboundPolicies.Watch`, with messages that hold Heddle's extension.
#[derive(Clone)]
struct OutboundPolicies(Script);

impl NamedService for OutboundPolicies {
    const NAME: &'static str = "io.linkerd.proxy.outbound.OutboundPolicies";
}

impl Service<http::Request<tonic::body::Body>> for OutboundPolicies {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let Self(script) = self.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/Watch") {
                return Ok(Status::unimplemented("proxies watch").into_http());
            }
            let watch = service_fn(move |request| std::future::ready(script.watch_outbound(request)));
            let codec = ProstCodec::<PolicyMessage, TrafficSpec>::default();
            Ok(Grpc::new(codec).server_streaming(watch, request).await)
        })
    }
}

impl Script {
    fn watch_outbound(
        &self,
        request: Request<TrafficSpec>,
    ) -> Result<Response<Streaming<PolicyMessage>>, Status> {
        let addr = match request.into_inner().target {
            Some(traffic_spec::Target::Addr(addr)) => addr,
            Some(traffic_spec::Target::Authority(name)) => {
                let all = self.0.named.lock().expect("no test panics while it holds this");
                let policy = all.get(&name).ok_or_else(|| Status::not_found("no service"))?;
                let policy = PolicyMessage::new(policy.clone(), &Extension::default());
                let stream = tokio_stream::once(Ok(policy)).chain(tokio_stream::pending());
                return Ok(Response::new(Box::pin(stream)));
            }
            None => return Err(Status::invalid_argument("no target")),
        };
        let addr = heddle_proxy_policy::net::socket_addr(addr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let all = self
            .0
            .outbound
            .lock()
            .expect("no test panics while it holds this");
        let watch = all
            .get(&addr)
            .ok_or_else(|| Status::not_found("no service"))?
            .subscribe();
        Ok(Response::new(Box::pin(WatchStream::new(watch).map(Ok))))
    }
}

#[tonic::async_trait]
impl inb::InboundServerPolicies for Script {
    type WatchPortStream = Streaming<inbound::Server>;

    async fn get_port(&self, _: Request<inbound::PortSpec>) -> Result<Response<inbound::Server>, Status> {
        Err(Status::unimplemented("proxies watch"))
    }

    async fn watch_port(
        &self,
        request: Request<inbound::PortSpec>,
    ) -> Result<Response<Self::WatchPortStream>, Status> {
        let inbound::PortSpec { workload, port } = request.into_inner();
        let port = u16::try_from(port).map_err(|_| Status::invalid_argument("no port"))?;
        let mut all = self.0.inbound.lock().expect("no test panics while it holds this");
        let everyone = || watch::Sender::new(policies::server_for_everyone());
        let watch = all.entry((workload, port)).or_insert_with(everyone).subscribe();
        Ok(Response::new(Box::pin(WatchStream::new(watch).map(Ok))))
    }
}

#[tonic::async_trait]
impl id::Identity for Script {
    async fn certify(
        &self,
        request: Request<identity::CertifyRequest>,
    ) -> Result<Response<identity::CertifyResponse>, Status> {
        let identity::CertifyRequest {
            identity,
            token: _,
            certificate_signing_request,
        } = request.into_inner();
        let mut csr =
            CertificateSigningRequestParams::from_der(&certificate_signing_request.as_slice().into())
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let names: Vec<_> = csr
            .params
            .subject_alt_names
            .iter()
            .map(|name| format!("{name:?}"))
            .collect();
        if names.len() != 1 || !names[0].contains(&identity) {
            return Err(Status::invalid_argument(format!("{names:?} is not {identity}")));
        }
        let serial = {
            let mut serials = self.0.serials.lock().expect("no test panics while it holds this");
            let serial = serials.values().map(Vec::len).sum::<usize>() as u64 + 1;
            serials.entry(identity).or_default().push(serial);
            serial
        };
        csr.params.serial_number = Some(SerialNumber::from(serial));
        csr.params.use_authority_key_identifier_extension = true;
        let life = *self
            .0
            .leaf_life
            .lock()
            .expect("no test panics while it holds this");
        csr.params.not_after = (SystemTime::now() + life).into();
        let leaf = csr
            .signed_by(&self.0.issuer)
            .map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::new(identity::CertifyResponse {
            leaf_certificate: leaf.der().to_vec(),
            intermediate_certificates: Vec::new(),
            valid_until: Some((SystemTime::now() + life).into()),
        }))
    }
}
