//! A scripted control plane for one proxy: signs its certificate, knows one service with one endpoint, allows all.
//!
//! It serves the real API (linkerd2-proxy-api) on loopback, so any proxy that speaks it can be measured; what it
//! answers never changes, so that nothing but the data path is measured.

use std::{collections::HashMap, net::SocketAddr, path::PathBuf, pin::Pin, time::Duration};

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _, stream};
use linkerd2_proxy_api::{
    destination::{
        self, AddrSet, DestinationProfile, GetDestination, ProtocolHint, TlsIdentity, Update, WeightedAddr,
        WeightedAddrSet,
        destination_server::{Destination, DestinationServer},
        protocol_hint, tls_identity, update,
    },
    http_route::HttpRouteMatch,
    identity::{
        CertifyRequest, CertifyResponse,
        identity_server::{Identity, IdentityServer},
    },
    inbound::{
        self, PortSpec, Server,
        inbound_server_policies_server::{InboundServerPolicies, InboundServerPoliciesServer},
    },
    meta,
    net::{IpAddress, IpNetwork, TcpAddress},
    outbound::{
        self, OutboundPolicy, TrafficSpec,
        outbound_policies_server::{OutboundPolicies, OutboundPoliciesServer},
    },
};
use rcgen::{CertificateParams, CertificateSigningRequestParams, Issuer, KeyPair};
use tonic::{Request, Response, Status};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Loopback address to serve on.
    #[arg(long)]
    listen: SocketAddr,
    /// The issuer's certificate, PEM.
    #[arg(long)]
    ca_cert: PathBuf,
    /// The issuer's key, PEM.
    #[arg(long)]
    ca_key: PathBuf,
    /// The one service's address.
    #[arg(long)]
    target: SocketAddr,
    /// Identity of the proxy in front of the service.
    #[arg(long)]
    target_identity: String,
    /// A port of the service that is not meshed.
    #[arg(long)]
    plain_port: Option<u16>,
    /// How often a second endpoint comes or goes, per second.
    #[arg(long, default_value_t = 0)]
    flaps: u32,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// One answer, then silence until the client leaves.
fn forever<T: Send + 'static>(answer: T) -> Response<Answers<T>> {
    Response::new(Box::pin(stream::iter([Ok(answer)]).chain(stream::pending())))
}

const SERVICE: &str = "web.bench.svc.cluster.local";
/// The second endpoint, which answers like the first.
const SECOND_PORT: u16 = 8081;

pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let Options {
        listen,
        ca_cert,
        ca_key,
        target,
        target_identity,
        plain_port,
        flaps,
    } = options;
    let cert =
        std::fs::read_to_string(&ca_cert).with_context(|| format!("cannot read {}", ca_cert.display()))?;
    let key =
        std::fs::read_to_string(&ca_key).with_context(|| format!("cannot read {}", ca_key.display()))?;
    let issuer = std::sync::Arc::new(Issuer::from_ca_cert_pem(&cert, KeyPair::from_pem(&key)?)?);
    let script = Script {
        target,
        target_identity,
        plain_port,
        flaps,
    };
    tonic::transport::Server::builder()
        .add_service(IdentityServer::new(Signer { issuer }))
        .add_service(DestinationServer::new(script.clone()))
        .add_service(InboundServerPoliciesServer::new(script.clone()))
        .add_service(OutboundPoliciesServer::new(script))
        .serve(listen)
        .await
        .with_context(|| format!("cannot serve on {listen}"))
}

struct Signer {
    issuer: std::sync::Arc<Issuer<'static, KeyPair>>,
}

#[tonic::async_trait]
impl Identity for Signer {
    async fn certify(&self, request: Request<CertifyRequest>) -> Result<Response<CertifyResponse>, Status> {
        let der = request.into_inner().certificate_signing_request;
        let bad = |error: rcgen::Error| Status::invalid_argument(error.to_string());
        let mut csr = CertificateSigningRequestParams::from_der(&der.as_slice().into()).map_err(bad)?;
        let expiry = time::OffsetDateTime::now_utc() + time::Duration::hours(24);
        let names = std::mem::take(&mut csr.params.subject_alt_names);
        csr.params = CertificateParams::default();
        csr.params.not_before = time::OffsetDateTime::now_utc() - time::Duration::minutes(1);
        csr.params.not_after = expiry;
        csr.params.subject_alt_names = names;
        csr.params.use_authority_key_identifier_extension = true;
        let leaf = csr.signed_by(&self.issuer).map_err(bad)?;
        Ok(Response::new(CertifyResponse {
            leaf_certificate: leaf.der().to_vec(),
            intermediate_certificates: Vec::new(),
            valid_until: Some(prost_types::Timestamp {
                seconds: expiry.unix_timestamp(),
                nanos: 0,
            }),
        }))
    }
}

#[derive(Clone)]
struct Script {
    target: SocketAddr,
    target_identity: String,
    plain_port: Option<u16>,
    flaps: u32,
}

impl Script {
    fn endpoint(&self, pod: &str, port: u16) -> WeightedAddr {
        let name = tls_identity::DnsLikeIdentity {
            name: self.target_identity.clone(),
        };
        let meshed = self.plain_port != Some(port) && port != SECOND_PORT;
        WeightedAddr {
            addr: Some(TcpAddress {
                ip: Some(IpAddress::from(self.target.ip())),
                port: port.into(),
            }),
            weight: 10_000,
            metric_labels: labels(&[("pod", pod), ("deployment", "web"), ("serviceaccount", "web")]),
            tls_identity: meshed.then(|| TlsIdentity {
                strategy: Some(tls_identity::Strategy::DnsLikeIdentity(name.clone())),
                server_name: Some(name),
            }),
            protocol_hint: meshed.then_some(ProtocolHint {
                protocol: Some(protocol_hint::Protocol::H2(protocol_hint::H2 {})),
                opaque_transport: None,
            }),
            ..WeightedAddr::default()
        }
    }
}

fn labels(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn add(endpoint: WeightedAddr) -> Update {
    Update {
        update: Some(update::Update::Add(WeightedAddrSet {
            addrs: vec![endpoint],
            metric_labels: labels(&[("namespace", "bench"), ("service", "web")]),
        })),
    }
}

fn metadata(kind: &str, name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "core".into(),
            kind: kind.into(),
            name: name.into(),
            namespace: "bench".into(),
            section: String::new(),
            port: 8080,
        })),
    })
}

fn default_metadata(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.into())),
    })
}

fn seconds(seconds: u64) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(Duration::from_secs(seconds)).ok()
}

#[tonic::async_trait]
impl Destination for Script {
    type GetStream = Answers<Update>;
    type GetProfileStream = Answers<DestinationProfile>;

    async fn get(&self, request: Request<GetDestination>) -> Result<Response<Self::GetStream>, Status> {
        let path = request.into_inner().path;
        let port = path.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
        let Some(port) = port else {
            return Err(Status::invalid_argument(format!("{path} has no port")));
        };
        let first = add(self.endpoint("web-0", port));
        let Some(period) = Duration::from_secs(1).checked_div(self.flaps) else {
            return Ok(forever(first));
        };
        let second = self.endpoint("web-1", SECOND_PORT);
        let remove = Update {
            update: Some(update::Update::Remove(AddrSet {
                addrs: second.addr.into_iter().collect(),
            })),
        };
        let flaps = stream::iter([add(second), remove]).cycle();
        let ticks = tokio_stream::wrappers::IntervalStream::new(tokio::time::interval(period));
        let flapping = ticks.zip(flaps).map(|(_, update)| Ok(update));
        Ok(Response::new(Box::pin(stream::iter([Ok(first)]).chain(flapping))))
    }

    async fn get_profile(
        &self,
        _: Request<GetDestination>,
    ) -> Result<Response<Self::GetProfileStream>, Status> {
        Ok(forever(DestinationProfile {
            fully_qualified_name: "web.bench.svc.cluster.local".into(),
            retry_budget: Some(destination::RetryBudget {
                retry_ratio: 0.2,
                min_retries_per_second: 10,
                ttl: seconds(10),
            }),
            parent_ref: metadata("Service", "web"),
            ..DestinationProfile::default()
        }))
    }
}

#[tonic::async_trait]
impl InboundServerPolicies for Script {
    type WatchPortStream = Answers<Server>;

    async fn get_port(&self, _: Request<PortSpec>) -> Result<Response<Server>, Status> {
        Ok(Response::new(allow_all()))
    }

    async fn watch_port(&self, _: Request<PortSpec>) -> Result<Response<Self::WatchPortStream>, Status> {
        Ok(forever(allow_all()))
    }
}

fn allow_all() -> Server {
    let labels: HashMap<String, String> = [
        ("group", ""),
        ("kind", "default"),
        ("name", "all-unauthenticated"),
    ]
    .map(|(k, v)| (k.into(), v.into()))
    .into();
    let authz = inbound::Authz {
        networks: ["0.0.0.0/0", "::/0"]
            .iter()
            .filter_map(|net| net.parse::<ipnet::IpNet>().ok())
            .map(|net| inbound::Network {
                net: Some(IpNetwork::from(net)),
                except: Vec::new(),
            })
            .collect(),
        authentication: Some(inbound::Authn {
            permit: Some(inbound::authn::Permit::Unauthenticated(
                inbound::authn::PermitUnauthenticated {},
            )),
        }),
        labels: labels.clone(),
        metadata: default_metadata("all-unauthenticated"),
    };
    let route = inbound::HttpRoute {
        metadata: default_metadata("default"),
        hosts: Vec::new(),
        authorizations: vec![authz.clone()],
        rules: vec![inbound::http_route::Rule {
            matches: vec![HttpRouteMatch::default()],
            filters: Vec::new(),
        }],
    };
    Server {
        protocol: Some(inbound::ProxyProtocol {
            kind: Some(inbound::proxy_protocol::Kind::Detect(
                inbound::proxy_protocol::Detect {
                    timeout: seconds(10),
                    http_routes: vec![route],
                    http_local_rate_limit: None,
                },
            )),
        }),
        server_ips: Vec::new(),
        authorizations: vec![authz],
        labels,
    }
}

#[tonic::async_trait]
impl OutboundPolicies for Script {
    type WatchStream = Answers<OutboundPolicy>;

    async fn get(&self, request: Request<TrafficSpec>) -> Result<Response<OutboundPolicy>, Status> {
        Ok(Response::new(service(port(&request.into_inner())?)))
    }

    async fn watch(&self, request: Request<TrafficSpec>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(forever(service(port(&request.into_inner())?)))
    }
}

/// The port that a proxy asks for.
fn port(spec: &TrafficSpec) -> Result<u32, Status> {
    match &spec.target {
        Some(outbound::traffic_spec::Target::Addr(addr)) => Ok(addr.port),
        Some(outbound::traffic_spec::Target::Authority(authority)) => authority
            .rsplit_once(':')
            .and_then(|(_, port)| port.parse().ok())
            .ok_or_else(|| Status::invalid_argument(format!("{authority} has no port"))),
        None => Err(Status::invalid_argument("there is no target")),
    }
}

fn service(port: u32) -> OutboundPolicy {
    use outbound::{backend, http_route, opaque_route, proxy_protocol};

    let backend = outbound::Backend {
        metadata: metadata("Service", "web"),
        kind: Some(backend::Kind::Balancer(backend::BalanceP2c {
            discovery: Some(backend::EndpointDiscovery {
                kind: Some(backend::endpoint_discovery::Kind::Dst(
                    backend::endpoint_discovery::DestinationGet {
                        path: format!("{SERVICE}:{port}"),
                    },
                )),
            }),
            load: Some(backend::balance_p2c::Load::PeakEwma(
                backend::balance_p2c::PeakEwma {
                    default_rtt: prost_types::Duration::try_from(Duration::from_millis(30)).ok(),
                    decay: seconds(10),
                },
            )),
        })),
        queue: Some(outbound::Queue {
            capacity: 100,
            failfast_timeout: seconds(3),
        }),
    };
    let http = outbound::HttpRoute {
        metadata: default_metadata("http"),
        hosts: Vec::new(),
        rules: vec![http_route::Rule {
            matches: vec![HttpRouteMatch::default()],
            backends: Some(http_route::Distribution {
                kind: Some(http_route::distribution::Kind::FirstAvailable(
                    http_route::distribution::FirstAvailable {
                        backends: vec![http_route::RouteBackend {
                            backend: Some(backend.clone()),
                            ..Default::default()
                        }],
                    },
                )),
            }),
            ..Default::default()
        }],
    };
    let opaque = outbound::OpaqueRoute {
        metadata: default_metadata("opaque"),
        rules: vec![opaque_route::Rule {
            backends: Some(opaque_route::Distribution {
                kind: Some(opaque_route::distribution::Kind::FirstAvailable(
                    opaque_route::distribution::FirstAvailable {
                        backends: vec![opaque_route::RouteBackend {
                            backend: Some(backend),
                            filters: Vec::new(),
                        }],
                    },
                )),
            }),
            filters: Vec::new(),
        }],
    };
    OutboundPolicy {
        metadata: metadata("Service", "web"),
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(proxy_protocol::Kind::Detect(proxy_protocol::Detect {
                timeout: seconds(10),
                opaque: Some(proxy_protocol::Opaque { routes: vec![opaque] }),
                http1: Some(proxy_protocol::Http1 {
                    routes: vec![http.clone()],
                    failure_accrual: None,
                }),
                http2: Some(proxy_protocol::Http2 {
                    routes: vec![http],
                    failure_accrual: None,
                }),
            })),
        }),
    }
}
