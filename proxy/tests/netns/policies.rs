//! Messages of the control plane, as tests need them.

use std::net::{IpAddr, SocketAddr};

use linkerd2_proxy_api::{destination, http_route, inbound, meta, outbound};

pub(crate) fn default_meta(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.into())),
    })
}

pub(crate) fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(crate) fn identity(account: &str) -> String {
    format!("{account}.test.serviceaccount.identity.linkerd.cluster.local")
}

/// Who may: these accounts, or everyone.
pub(crate) fn authz(who: Option<&[&str]>) -> inbound::Authz {
    match who {
        None => authz_from(&["0.0.0.0/0", "::/0"], &[], "everyone", anyone()),
        Some(accounts) => {
            let names: Vec<_> = accounts.iter().map(|one| identity(one)).collect();
            authz_from(
                &["0.0.0.0/0", "::/0"],
                &[],
                "by-identity",
                identities(&names, &[]),
            )
        }
    }
}

/// Who may, where from.
pub(crate) fn authz_from(
    networks: &[&str],
    except: &[&str],
    name: &str,
    permit: inbound::authn::Permit,
) -> inbound::Authz {
    let net = |net: &&str| net.parse::<ipnet::IpNet>().expect("a network").into();
    let network = |one| inbound::Network {
        net: Some(net(one)),
        except: except.iter().map(net).collect(),
    };
    inbound::Authz {
        networks: networks.iter().map(network).collect(),
        authentication: Some(inbound::Authn { permit: Some(permit) }),
        labels: Default::default(),
        metadata: default_meta(name),
    }
}

pub(crate) fn anyone() -> inbound::authn::Permit {
    inbound::authn::Permit::Unauthenticated(inbound::authn::PermitUnauthenticated {})
}

fn mesh_tls(clients: inbound::authn::permit_mesh_tls::Clients) -> inbound::authn::Permit {
    inbound::authn::Permit::MeshTls(inbound::authn::PermitMeshTls {
        clients: Some(clients),
    })
}

/// Whoever speaks the mesh's TLS, with an identity or without.
pub(crate) fn any_tls() -> inbound::authn::Permit {
    let unauthenticated = inbound::authn::PermitUnauthenticated {};
    mesh_tls(inbound::authn::permit_mesh_tls::Clients::Unauthenticated(
        unauthenticated,
    ))
}

/// These names, and those below these.
pub(crate) fn identities(names: &[String], suffixes: &[&[&str]]) -> inbound::authn::Permit {
    use inbound::authn::permit_mesh_tls::{Clients, PermitClientIdentities};
    let name = |name: &String| inbound::Identity { name: name.clone() };
    let suffix = |parts: &&[&str]| inbound::IdentitySuffix {
        parts: parts.iter().map(|part| (*part).to_owned()).collect(),
    };
    mesh_tls(Clients::Identities(PermitClientIdentities {
        identities: names.iter().map(name).collect(),
        suffixes: suffixes.iter().map(suffix).collect(),
    }))
}

/// A server that is known to speak this.
pub(crate) fn told_server(
    kind: inbound::proxy_protocol::Kind,
    authorizations: Vec<inbound::Authz>,
) -> inbound::Server {
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(kind) }),
        ..server(authorizations)
    }
}

/// A server whose protocol is detected.
pub(crate) fn server(authorizations: Vec<inbound::Authz>) -> inbound::Server {
    let detect = inbound::proxy_protocol::Detect {
        timeout: seconds(10),
        ..Default::default()
    };
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol {
            kind: Some(inbound::proxy_protocol::Kind::Detect(detect)),
        }),
        authorizations,
        labels: [
            ("group", "policy.linkerd.io"),
            ("kind", "server"),
            ("name", "web"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        server_ips: Vec::new(),
    }
}

pub(crate) fn server_for_everyone() -> inbound::Server {
    server(vec![authz(None)])
}

/// A server that is known to speak HTTP/2, open to everyone.
pub(crate) fn http2_server() -> inbound::Server {
    let http2 = inbound::proxy_protocol::Kind::Http2(inbound::proxy_protocol::Http2::default());
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(http2) }),
        ..server_for_everyone()
    }
}

pub(crate) fn opaque_server(authorizations: Vec<inbound::Authz>) -> inbound::Server {
    let opaque = inbound::proxy_protocol::Kind::Opaque(inbound::proxy_protocol::Opaque {});
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(opaque) }),
        ..server(authorizations)
    }
}

/// An endpoint; meshed when it has an account.
pub(crate) fn endpoint(
    ip: impl Into<IpAddr>,
    port: u16,
    account: Option<&str>,
    opaque: bool,
) -> destination::WeightedAddr {
    use destination::{protocol_hint, tls_identity};
    let ip = ip.into();
    let addr = SocketAddr::from((ip, port));
    let tls_identity = account.map(|account| destination::TlsIdentity {
        strategy: Some(tls_identity::Strategy::DnsLikeIdentity(
            tls_identity::DnsLikeIdentity {
                name: identity(account),
            },
        )),
        server_name: None,
    });
    let protocol = match opaque {
        true => protocol_hint::Protocol::Opaque(protocol_hint::Opaque {}),
        false => protocol_hint::Protocol::H2(protocol_hint::H2 {}),
    };
    destination::WeightedAddr {
        addr: Some(heddle_proxy_policy::net::to_proto(addr)),
        weight: 10_000,
        metric_labels: [("pod".to_owned(), format!("pod-{ip}"))].into(),
        tls_identity,
        protocol_hint: account.map(|_| destination::ProtocolHint {
            protocol: Some(protocol),
            opaque_transport: Some(protocol_hint::OpaqueTransport { inbound_port: 4143 }),
        }),
        ..Default::default()
    }
}

pub(crate) fn path(service: &str) -> String {
    format!("{service}.test.svc.cluster.local:80")
}

pub(crate) fn backend(service: &str) -> outbound::Backend {
    use outbound::backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let dst = endpoint_discovery::DestinationGet { path: path(service) };
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery {
            kind: Some(endpoint_discovery::Kind::Dst(dst)),
        }),
        load: Some(balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
            default_rtt: seconds(1),
            decay: seconds(10),
        })),
    };
    outbound::Backend {
        metadata: default_meta(service),
        queue: Some(outbound::Queue {
            capacity: 100,
            failfast_timeout: seconds(3),
        }),
        kind: Some(Kind::Balancer(balancer)),
    }
}

/// One rule that sends everything to a service.
pub(crate) fn http_rule(service: &str) -> outbound::http_route::Rule {
    use outbound::http_route::{Distribution, RouteBackend, distribution};
    let first = RouteBackend {
        backend: Some(backend(service)),
        ..Default::default()
    };
    let first = distribution::FirstAvailable {
        backends: vec![first],
    };
    outbound::http_route::Rule {
        matches: vec![http_route::HttpRouteMatch::default()],
        backends: Some(Distribution {
            kind: Some(distribution::Kind::FirstAvailable(first)),
        }),
        ..Default::default()
    }
}

/// The policy of a service whose protocol is detected.
pub(crate) fn outbound_detect(service: &str, rule: outbound::http_route::Rule) -> outbound::OutboundPolicy {
    use outbound::proxy_protocol::{Detect, Http1, Http2, Kind};
    let route = outbound::HttpRoute {
        metadata: default_meta("http"),
        hosts: Vec::new(),
        rules: vec![rule],
    };
    let detect = Detect {
        timeout: seconds(10),
        opaque: Some(opaque(service)),
        http1: Some(Http1 {
            routes: vec![route.clone()],
            failure_accrual: None,
        }),
        http2: Some(Http2 {
            routes: vec![route],
            failure_accrual: None,
        }),
    };
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(Kind::Detect(detect)),
        }),
        metadata: default_meta(service),
    }
}

/// The policy of a service that is known to speak HTTP/2.
pub(crate) fn outbound_http2(service: &str, rule: outbound::http_route::Rule) -> outbound::OutboundPolicy {
    let route = outbound::HttpRoute {
        metadata: default_meta("http"),
        hosts: Vec::new(),
        rules: vec![rule],
    };
    let http2 = outbound::proxy_protocol::Http2 {
        routes: vec![route],
        failure_accrual: None,
    };
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(outbound::proxy_protocol::Kind::Http2(http2)),
        }),
        metadata: default_meta(service),
    }
}

pub(crate) fn opaque(service: &str) -> outbound::proxy_protocol::Opaque {
    use outbound::opaque_route::{Distribution, RouteBackend, Rule, distribution};
    let first = RouteBackend {
        backend: Some(backend(service)),
        ..Default::default()
    };
    let first = distribution::FirstAvailable {
        backends: vec![first],
    };
    let backends = Some(Distribution {
        kind: Some(distribution::Kind::FirstAvailable(first)),
    });
    let rules = vec![Rule {
        backends,
        filters: Vec::new(),
    }];
    outbound::proxy_protocol::Opaque {
        routes: vec![outbound::OpaqueRoute {
            metadata: default_meta("opaque"),
            rules,
        }],
    }
}

/// The policy of an address whose TLS connections go to a service by their server name.
pub(crate) fn outbound_tls(services: &[(&str, &str)]) -> outbound::OutboundPolicy {
    use linkerd2_proxy_api::tls_route::{SniMatch, sni_match::Match};
    use outbound::tls_route::{Distribution, RouteBackend, Rule, distribution};
    let routes = services.iter().map(|(name, service)| {
        let first = RouteBackend {
            backend: Some(backend(service)),
            ..Default::default()
        };
        let first = distribution::FirstAvailable {
            backends: vec![first],
        };
        outbound::TlsRoute {
            metadata: default_meta(service),
            snis: vec![SniMatch {
                r#match: Some(Match::Exact((*name).to_owned())),
            }],
            rules: vec![Rule {
                backends: Some(Distribution {
                    kind: Some(distribution::Kind::FirstAvailable(first)),
                }),
                filters: Vec::new(),
            }],
        }
    });
    let tls = outbound::proxy_protocol::Tls {
        routes: routes.collect(),
    };
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(outbound::proxy_protocol::Kind::Tls(tls)),
        }),
        metadata: default_meta("tls"),
    }
}

/// Judges endpoints by their share of successes, but leaves one in use.
pub(crate) fn unified_accrual() -> outbound::FailureAccrual {
    outbound::FailureAccrual {
        kind: Some(outbound::failure_accrual::Kind::Unified(
            outbound::failure_accrual::Unified {
                success_rate_threshold: 0.8,
                decay: seconds(10),
                min_requests: 5,
                max_consecutive_failures: 0,
                backoff: Some(outbound::ExponentialBackoff {
                    min_backoff: seconds(60),
                    max_backoff: seconds(60),
                    ..Default::default()
                }),
            },
        )),
        ejection: Some(outbound::EjectionConfig {
            min_ready_endpoints: 1,
        }),
    }
}

/// The policy of a service on an opaque port.
pub(crate) fn outbound_opaque(service: &str) -> outbound::OutboundPolicy {
    let kind = outbound::proxy_protocol::Kind::Opaque(opaque(service));
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol { kind: Some(kind) }),
        metadata: default_meta(service),
    }
}
