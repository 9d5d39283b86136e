//! What the control plane says may be anything: it is taken whole or refused, never half, and never with a panic.
//!
//! The seeds under `__fuzz__` are whole messages; `UPDATE_EXPECT=1` writes them anew.

use std::{net::IpAddr, path::Path};

use heddle_wire::{Extension, decode_policy, encode_policy};
use http::Request;
use linkerd2_proxy_api::{destination, http_route, inbound, meta, net as proto_net, outbound};
use prost::Message;

use crate::{
    Client, ClientTls, EndpointSet, Profile, ServerPolicy, outbound::ClientPolicy, path::canonical_path,
};

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn named(name: &str) -> Option<meta::Metadata> {
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Default(name.into())),
    })
}

fn path(prefix: &str) -> http_route::HttpRouteMatch {
    http_route::HttpRouteMatch {
        path: Some(http_route::PathMatch {
            kind: Some(http_route::path_match::Kind::Prefix(prefix.into())),
        }),
        ..Default::default()
    }
}

/// A server whose `/admin` is for one identity and the rest for a network.
fn server() -> inbound::Server {
    use inbound::authn::{Permit, PermitMeshTls, PermitUnauthenticated, permit_mesh_tls};
    let identity = inbound::Identity {
        name: "admin.ns.serviceaccount.identity.linkerd.cluster.local".into(),
    };
    let identities = permit_mesh_tls::PermitClientIdentities {
        identities: vec![identity],
        suffixes: Vec::new(),
    };
    let authz = |permit| inbound::Authz {
        networks: vec![inbound::Network {
            net: Some(ipnet::IpNet::V4("10.0.0.0/8".parse().expect("a network")).into()),
            except: Vec::new(),
        }],
        authentication: Some(inbound::Authn { permit: Some(permit) }),
        labels: Default::default(),
        metadata: named("authz"),
    };
    let route = |name: &str, prefix: &str, permit| inbound::HttpRoute {
        metadata: named(name),
        hosts: Vec::new(),
        authorizations: vec![authz(permit)],
        rules: vec![inbound::http_route::Rule {
            matches: vec![path(prefix)],
            filters: Vec::new(),
        }],
    };
    let admin = Permit::MeshTls(PermitMeshTls {
        clients: Some(permit_mesh_tls::Clients::Identities(identities)),
    });
    let detect = inbound::proxy_protocol::Detect {
        timeout: seconds(10),
        http_routes: vec![
            route("admin", "/admin", admin),
            route("rest", "/", Permit::Unauthenticated(PermitUnauthenticated {})),
        ],
        ..Default::default()
    };
    inbound::Server {
        protocol: Some(inbound::ProxyProtocol {
            kind: Some(inbound::proxy_protocol::Kind::Detect(detect)),
        }),
        labels: [("kind", "server"), ("name", "web")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        ..Default::default()
    }
}

fn client_policy() -> outbound::OutboundPolicy {
    use outbound::{
        backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery},
        http_route::{Distribution, RouteBackend, Rule, distribution},
    };
    let dst = endpoint_discovery::DestinationGet {
        path: "web.ns.svc.cluster.local:80".into(),
    };
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery {
            kind: Some(endpoint_discovery::Kind::Dst(dst)),
        }),
        load: Some(balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
            default_rtt: seconds(1),
            decay: seconds(10),
        })),
    };
    let backend = outbound::Backend {
        metadata: named("web"),
        queue: Some(outbound::Queue {
            capacity: 100,
            failfast_timeout: seconds(3),
        }),
        kind: Some(Kind::Balancer(balancer)),
    };
    let first = RouteBackend {
        backend: Some(backend),
        ..Default::default()
    };
    let rule = Rule {
        matches: vec![path("/a")],
        backends: Some(Distribution {
            kind: Some(distribution::Kind::FirstAvailable(distribution::FirstAvailable {
                backends: vec![first],
            })),
        }),
        ..Default::default()
    };
    let http1 = outbound::proxy_protocol::Http1 {
        routes: vec![outbound::HttpRoute {
            metadata: named("http"),
            hosts: Vec::new(),
            rules: vec![rule],
        }],
        failure_accrual: None,
    };
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(outbound::proxy_protocol::Kind::Http1(http1)),
        }),
        metadata: named("web"),
    }
}

fn profile() -> destination::DestinationProfile {
    destination::DestinationProfile {
        fully_qualified_name: "web.ns.svc.cluster.local".into(),
        opaque_protocol: false,
        dst_overrides: vec![destination::WeightedDst {
            authority: "web.ns.svc.cluster.local:80".into(),
            weight: 1,
            ..Default::default()
        }],
        retry_budget: Some(destination::RetryBudget {
            retry_ratio: 0.2,
            min_retries_per_second: 10,
            ttl: seconds(10),
        }),
        ..Default::default()
    }
}

fn update() -> destination::Update {
    let ip = proto_net::IpAddress {
        ip: Some(proto_net::ip_address::Ip::Ipv4(0x0a00_0001)),
    };
    let endpoint = destination::WeightedAddr {
        addr: Some(proto_net::TcpAddress {
            ip: Some(ip),
            port: 8080,
        }),
        weight: 10_000,
        metric_labels: [("pod".to_owned(), "web-1".to_owned())].into(),
        tls_identity: Some(destination::TlsIdentity {
            strategy: Some(destination::tls_identity::Strategy::DnsLikeIdentity(
                destination::tls_identity::DnsLikeIdentity {
                    name: "web.ns.serviceaccount.identity.linkerd.cluster.local".into(),
                },
            )),
            server_name: None,
        }),
        ..Default::default()
    };
    destination::Update {
        update: Some(destination::update::Update::Add(destination::WeightedAddrSet {
            addrs: vec![endpoint],
            metric_labels: Default::default(),
        })),
    }
}

/// Maps have no order on the wire, so messages are compared and not their bytes.
#[test]
fn the_seeds_are_whole_messages() {
    let wire = encode_policy(&client_policy(), &Extension::default()).to_vec();
    seed("server", server().encode_to_vec(), |seed| {
        inbound::Server::decode(seed).ok() == Some(server())
    });
    seed("client_policy", wire, |seed| {
        decode_policy(seed).ok().map(|(policy, _)| policy) == Some(client_policy())
    });
    seed("profile", profile().encode_to_vec(), |seed| {
        destination::DestinationProfile::decode(seed).ok() == Some(profile())
    });
    seed("endpoints", update().encode_to_vec(), |seed| {
        destination::Update::decode(seed).ok() == Some(update())
    });
}

fn seed(target: &str, message: Vec<u8>, is_current: impl Fn(&[u8]) -> bool) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/__fuzz__/fuzz__{target}/corpus"));
    let file = dir.join("whole");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::create_dir_all(&dir).expect("the source is there");
        std::fs::write(&file, &message).expect("the source is there");
    }
    let seed = std::fs::read(&file).unwrap_or_default();
    assert!(
        is_current(&seed),
        "UPDATE_EXPECT=1 writes {} anew",
        file.display()
    );
}

/// Nobody gets to `/admin` but with the identity that a message names, however it is broken.
#[test]
fn fuzz_server() {
    let stranger = Client {
        addr: IpAddr::from([10, 0, 0, 1]),
        tls: ClientTls::None,
    };
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(message) = inbound::Server::decode(bytes) else {
            return;
        };
        let nobody = {
            let mut message = message.clone();
            message.authorizations.clear();
            strip_authorizations(&mut message);
            message
        };
        let uri = ["/admin", "//admin", "/%61dmin", "/x"];
        let requests = uri.map(|uri| Request::builder().uri(uri).body(()).expect("valid"));
        if let Ok(policy) = ServerPolicy::try_from(message) {
            let _ = policy.authorize(&stranger);
            for request in &requests {
                let _ = policy.authorize_request(&stranger, request);
            }
        }
        // Who names nobody lets in nobody.
        if let Ok(policy) = ServerPolicy::try_from(nobody) {
            assert!(policy.authorize(&stranger).is_err());
            for request in &requests {
                assert!(policy.authorize_request(&stranger, request).is_err());
            }
        }
    });
}

fn strip_authorizations(server: &mut inbound::Server) {
    use inbound::proxy_protocol::Kind;
    let Some(kind) = server
        .protocol
        .as_mut()
        .and_then(|protocol| protocol.kind.as_mut())
    else {
        return;
    };
    let routes = match kind {
        Kind::Detect(detect) => &mut detect.http_routes,
        Kind::Http1(http) => &mut http.routes,
        Kind::Http2(http) => &mut http.routes,
        Kind::Grpc(grpc) => {
            return grpc
                .routes
                .iter_mut()
                .for_each(|route| route.authorizations.clear());
        }
        Kind::Opaque(_) | Kind::Tls(_) => return,
    };
    routes.iter_mut().for_each(|route| route.authorizations.clear());
}

#[test]
fn fuzz_client_policy() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok((policy, _)) = decode_policy(bytes) else {
            return;
        };
        let Ok(policy) = ClientPolicy::try_from(policy) else {
            return;
        };
        let _ = format!("{policy:?}");
    });
}

#[test]
fn fuzz_profile() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(profile) = destination::DestinationProfile::decode(bytes) else {
            return;
        };
        if let Ok(profile) = Profile::try_from(profile) {
            let addr = Some(([10, 0, 0, 1], 80).into());
            let policy = ClientPolicy::synthesize(addr, 80, &profile, std::time::Duration::from_secs(1));
            let _ = format!("{policy:?}");
        }
    });
}

/// What an update adds, its removal removes.
#[test]
fn fuzz_endpoints() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let Ok(update) = destination::Update::decode(bytes) else {
            return;
        };
        let mut endpoints = EndpointSet::Unknown;
        if endpoints.apply(update, true).is_err() {
            return;
        }
        let addrs = endpoints
            .iter()
            .map(|endpoint| crate::net::to_proto(endpoint.addr));
        let remove = destination::AddrSet {
            addrs: addrs.collect(),
        };
        let remove = destination::Update {
            update: Some(destination::update::Update::Remove(remove)),
        };
        assert!(endpoints.apply(remove, false).expect("our own").is_empty());
        assert_eq!(endpoints.iter().count(), 0);
    });
}

/// No spelling of `/admin` has another canonical form, and none of its forms is anything else's.
#[test]
fn fuzz_spellings() {
    bolero::check!().for_each(|bytes: &[u8]| {
        // Each byte says how the next letter is written, or what comes between.
        let mut spelled = String::new();
        let mut spelling = bytes.iter().copied().chain(std::iter::repeat(0));
        for letter in "/admin/x".chars() {
            let how = spelling.next().unwrap_or_default();
            if letter == '/' {
                spelled.push_str(
                    ["/", "//", "/./", "/y/../", "/%2e/", "/z/%2E%2e/", "/%2f", "/.//"][usize::from(how % 8)],
                );
            } else if how % 3 == 0 {
                spelled.push(letter);
            } else {
                spelled.push_str(&format!("%{:02x}", u32::from(letter)));
            }
        }
        assert_eq!(canonical_path(&spelled), "/admin/x", "{spelled}");
    });
}

/// What an application may take for `/admin` is not for strangers, wherever the path leads in the end.
#[test]
fn fuzz_readings() {
    let policy = ServerPolicy::try_from(server()).expect("valid");
    let stranger = Client {
        addr: IpAddr::from([10, 0, 0, 1]),
        tls: ClientTls::None,
    };
    bolero::check!().for_each(|bytes: &[u8]| {
        let pieces = [
            "/..", "/", "/x", "%2f..", "/%2e%2E", ";y", "/..;z", "%5c..", "%252e", "/.", "%20",
        ];
        let rest: String = bytes
            .iter()
            .take(64)
            .map(|&byte| pieces[usize::from(byte) % pieces.len()])
            .collect();
        let request = Request::builder()
            .uri(format!("/admin/{rest}"))
            .body(())
            .expect("a path");
        assert!(
            policy.authorize_request(&stranger, &request).is_err(),
            "/admin/{rest}"
        );
    });
}
