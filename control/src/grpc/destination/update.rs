//! Endpoints and profiles as messages.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use heddle_control_core::{
    endpoints::{Addresses, ClientLocation, Diff, Endpoint, Endpoints, PeerIdentity, Protocol},
    profile::{Profile, ProfileRoute, RequestMatch, ResponseClass, ResponseMatch},
};
use linkerd2_proxy_api::{
    destination::{self as proto, update::Update as Kind},
    net::TcpAddress,
};

use crate::grpc::encode;

/// Clients take messages of 4 MiB; this many endpoints stay far below.
const ADDRESSES_MAX: usize = 1000;

/// How a meshed endpoint's connection is kept alive: it carries many requests, so a dead one must be noticed soon.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);

/// What distinguishes clients that see a change of endpoints differently: their zone, and their node where it decides
/// what they may use.
pub(super) fn class(
    before: Option<&Endpoints>,
    after: &Endpoints,
    client: &ClientLocation,
) -> ClientLocation {
    let by_node =
        |node: &Arc<str>| after.differs_on(node) || before.is_some_and(|before| before.differs_on(node));
    ClientLocation {
        node: client.node.clone().filter(by_node),
        zone: client.zone.clone(),
    }
}

/// The messages that bring a client up to date that has been told `before`; none when nothing changed for it.
pub(super) fn between(
    before: Option<&Endpoints>,
    after: &Endpoints,
    client: &ClientLocation,
) -> Vec<proto::Update> {
    let seen = after.seen_from(client);
    let seen_before = before.map(|before| before.seen_from(client));
    match (seen_before, seen.is_empty()) {
        (Some(seen_before), false) => steps(after, &Diff::between(&seen_before, &seen), client),
        (None, false) => steps(after, &Diff::between(&Addresses::new(), &seen), client),
        (Some(seen_before), true)
            if seen_before.is_empty() && before.is_some_and(|before| before.exists == after.exists) =>
        {
            Vec::new()
        }
        // A service without endpoints has to be said, or the client waits for the first message in vain.
        (_, true) => vec![update(Kind::NoEndpoints(proto::NoEndpoints {
            exists: after.exists,
        }))],
    }
}

/// Additions first, so that a complete exchange of endpoints leaves the client none without any.
fn steps(endpoints: &Endpoints, diff: &Diff, client: &ClientLocation) -> Vec<proto::Update> {
    let adds = diff.add.chunks(ADDRESSES_MAX).map(|chunk| {
        update(Kind::Add(proto::WeightedAddrSet {
            addrs: chunk
                .iter()
                .map(|(addr, endpoint)| proto::WeightedAddr {
                    weight: endpoints.weight_for(endpoint, client),
                    ..weighted_addr(*addr, endpoint, client)
                })
                .collect(),
            metric_labels: endpoints.labels.clone().into_iter().collect(),
        }))
    });
    let removes = diff.remove.chunks(ADDRESSES_MAX).map(|chunk| {
        update(Kind::Remove(proto::AddrSet {
            addrs: chunk.iter().map(|addr| TcpAddress::from(*addr)).collect(),
        }))
    });
    adds.chain(removes).collect()
}

fn update(kind: Kind) -> proto::Update {
    proto::Update { update: Some(kind) }
}

fn weighted_addr(addr: SocketAddr, endpoint: &Endpoint, client: &ClientLocation) -> proto::WeightedAddr {
    let identity = endpoint.identity.as_ref().map(tls_identity);
    let meshed = identity.is_some();
    let protocol = match endpoint.hint.protocol {
        Protocol::Unknown => None,
        Protocol::H2 => Some(proto::protocol_hint::Protocol::H2(proto::protocol_hint::H2 {})),
        Protocol::Opaque => Some(proto::protocol_hint::Protocol::Opaque(
            proto::protocol_hint::Opaque {},
        )),
    };
    let opaque_transport = endpoint
        .hint
        .opaque_transport
        .map(|port| proto::protocol_hint::OpaqueTransport {
            inbound_port: port.into(),
        });
    let hint = (protocol.is_some() || opaque_transport.is_some()).then_some(proto::ProtocolHint {
        opaque_transport,
        protocol,
    });
    proto::WeightedAddr {
        addr: Some(addr.into()),
        weight: endpoint.weight,
        metric_labels: endpoint.labels_for(client).into_iter().collect(),
        tls_identity: identity,
        protocol_hint: hint,
        authority_override: None,
        http2: meshed.then(keep_alive),
        resource_ref: None,
    }
}

fn tls_identity(identity: &PeerIdentity) -> proto::TlsIdentity {
    use proto::tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};
    let dns = |name: &str| DnsLikeIdentity {
        name: name.to_owned(),
    };
    let (strategy, server_name) = match identity {
        PeerIdentity::ServiceAccount(identity) => {
            let name = dns(identity.as_str());
            (Strategy::DnsLikeIdentity(name.clone()), name)
        }
        PeerIdentity::External(external) => {
            let uri = || UriLikeIdentity {
                uri: external.identity.clone(),
            };
            let strategy = match external.is_uri() {
                true => Strategy::UriLikeIdentity(uri()),
                false => Strategy::DnsLikeIdentity(dns(&external.identity)),
            };
            (strategy, dns(&external.server_name))
        }
    };
    proto::TlsIdentity {
        strategy: Some(strategy),
        server_name: Some(server_name),
    }
}

fn keep_alive() -> proto::Http2ClientParams {
    proto::Http2ClientParams {
        flow_control: None,
        keep_alive: Some(proto::http2_client_params::KeepAlive {
            interval: encode::duration(KEEP_ALIVE_INTERVAL),
            timeout: encode::duration(KEEP_ALIVE_TIMEOUT),
            while_idle: true,
        }),
        internals: None,
    }
}

/// What distinguishes clients that see a profile differently: their zone, where there is an endpoint to be near to.
pub(super) fn profile_class(profile: &Profile, client: &ClientLocation) -> ClientLocation {
    ClientLocation {
        node: None,
        zone: client.zone.clone().filter(|_| profile.endpoint.is_some()),
    }
}

/// A profile as a message.
pub(super) fn profile(profile: &Profile, client: &ClientLocation) -> proto::DestinationProfile {
    let Profile {
        fully_qualified_name,
        opaque,
        endpoint,
        parent,
        profile,
        routes,
        retry_budget,
        overrides,
    } = profile;
    proto::DestinationProfile {
        fully_qualified_name: fully_qualified_name.clone().unwrap_or_default(),
        opaque_protocol: *opaque,
        routes: routes.iter().map(route).collect(),
        retry_budget: Some(proto::RetryBudget {
            retry_ratio: retry_budget.ratio,
            min_retries_per_second: retry_budget.min_per_second,
            ttl: encode::duration(retry_budget.ttl),
        }),
        dst_overrides: overrides
            .iter()
            .map(|(authority, weight)| proto::WeightedDst {
                authority: authority.clone(),
                weight: *weight,
                backend_ref: None,
            })
            .collect(),
        endpoint: endpoint
            .as_ref()
            .map(|(addr, endpoint)| weighted_addr(*addr, endpoint, client)),
        parent_ref: parent.as_ref().map(encode::resource),
        profile_ref: profile.as_ref().map(encode::resource),
    }
}

fn route(route: &ProfileRoute) -> proto::Route {
    let ProfileRoute {
        name,
        condition,
        retryable,
        timeout,
        responses,
    } = route;
    proto::Route {
        condition: Some(request_match(condition)),
        response_classes: responses
            .iter()
            .map(
                |ResponseClass {
                     condition,
                     is_failure,
                 }| proto::ResponseClass {
                    condition: Some(response_match(condition)),
                    is_failure: *is_failure,
                },
            )
            .collect(),
        metrics_labels: [("route".to_owned(), name.clone())].into(),
        is_retryable: *retryable,
        timeout: timeout.and_then(encode::duration),
    }
}

fn request_match(condition: &RequestMatch) -> proto::RequestMatch {
    use proto::request_match::{Match, Seq};
    let seq = |list: &[RequestMatch]| Seq {
        matches: list.iter().map(request_match).collect(),
    };
    let kind = match condition {
        RequestMatch::All(list) => Match::All(seq(list)),
        RequestMatch::Any(list) => Match::Any(seq(list)),
        RequestMatch::Not(inner) => Match::Not(Box::new(request_match(inner))),
        RequestMatch::PathRegex(regex) => Match::Path(proto::PathMatch { regex: regex.clone() }),
        RequestMatch::Method(method) => Match::Method(method.clone().into()),
    };
    proto::RequestMatch { r#match: Some(kind) }
}

fn response_match(condition: &ResponseMatch) -> proto::ResponseMatch {
    use proto::response_match::{Match, Seq};
    let seq = |list: &[ResponseMatch]| Seq {
        matches: list.iter().map(response_match).collect(),
    };
    let kind = match condition {
        ResponseMatch::All(list) => Match::All(seq(list)),
        ResponseMatch::Any(list) => Match::Any(seq(list)),
        ResponseMatch::Not(inner) => Match::Not(Box::new(response_match(inner))),
        ResponseMatch::Status { min, max } => Match::Status(proto::HttpStatusRange { min: *min, max: *max }),
    };
    proto::ResponseMatch { r#match: Some(kind) }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, fmt::Write as _};

    use expect_test::{Expect, expect};
    use heddle_control_core::endpoints::{DEFAULT_WEIGHT, Labels, Place, ProtocolHint};
    use heddle_mesh::Identity;

    use super::*;

    fn endpoint(node: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            weight: DEFAULT_WEIGHT,
            identity: Some(PeerIdentity::ServiceAccount(
                "web.ns.serviceaccount.identity.linkerd.cluster.local"
                    .parse::<Identity>()
                    .expect("an identity")
                    .into(),
            )),
            hint: ProtocolHint {
                protocol: Protocol::H2,
                opaque_transport: Some(4143),
            },
            labels: Arc::new(Labels::new()),
            workload: None,
            place: Arc::new(Place {
                node: Some(node.into()),
                ..Place::default()
            }),
        })
    }

    fn endpoints(exists: bool, local_only: bool, list: &[(&str, &str)]) -> Endpoints {
        let addresses: BTreeMap<_, _> = list
            .iter()
            .map(|(addr, node)| (addr.parse().expect("an address"), endpoint(node)))
            .collect();
        Endpoints {
            exists,
            labels: Labels::new(),
            local_only,
            zone_weights: false,
            addresses,
        }
    }

    /// Each step's messages on a line.
    fn check(location: &ClientLocation, steps: &[Endpoints], expected: &Expect) {
        let mut told = None;
        let mut text = String::new();
        let show = |addr: Option<TcpAddress>| {
            let addr = addr.expect("an address");
            let ip: std::net::IpAddr = addr.ip.expect("an IP").try_into().expect("an IP");
            format!("{ip}:{}", addr.port)
        };
        for step in steps {
            let messages =
                between(told.replace(step), step, location)
                    .into_iter()
                    .map(|message| match message.update.expect("an update") {
                        Kind::Add(set) => format!(
                            "+{:?}",
                            set.addrs.into_iter().map(|a| show(a.addr)).collect::<Vec<_>>()
                        ),
                        Kind::Remove(set) => format!(
                            "-{:?}",
                            set.addrs.into_iter().map(|a| show(Some(a))).collect::<Vec<_>>()
                        ),
                        Kind::NoEndpoints(none) => format!("none, exists: {}", none.exists),
                    });
            let messages: Vec<_> = messages.collect();
            writeln!(text, "{}", messages.join(" ")).expect("a string takes everything");
        }
        expected.assert_eq(&text);
    }

    #[test]
    fn a_client_is_told_differences_only_and_never_nothing_at_first() {
        let (a, b) = (("10.0.0.1:80", "n"), ("10.0.0.2:80", "n"));
        let steps = [
            endpoints(true, false, &[]),
            endpoints(true, false, &[]),
            endpoints(true, false, &[a]),
            endpoints(true, false, &[b]),
            endpoints(true, false, &[b]),
            endpoints(true, false, &[]),
            endpoints(false, false, &[]),
            endpoints(true, false, &[a, b]),
        ];
        check(
            &ClientLocation::default(),
            &steps,
            &expect![[r#"
            none, exists: true

            +["10.0.0.1:80"]
            +["10.0.0.2:80"] -["10.0.0.1:80"]

            none, exists: true
            none, exists: false
            +["10.0.0.1:80", "10.0.0.2:80"]
        "#]],
        );
    }

    #[test]
    fn a_client_of_a_local_service_hears_of_its_own_node_alone() {
        let here = ClientLocation {
            node: Some("here".into()),
            zone: None,
        };
        let steps = [
            endpoints(true, true, &[("10.0.0.1:80", "there")]),
            endpoints(true, true, &[("10.0.0.2:80", "there")]),
            endpoints(true, true, &[("10.0.0.2:80", "there"), ("10.0.0.3:80", "here")]),
        ];
        check(
            &here,
            &steps,
            &expect![[r#"
            none, exists: true

            +["10.0.0.3:80"]
        "#]],
        );
    }

    #[test]
    fn clients_share_messages_unless_their_node_decides_what_they_may_use() {
        let client = ClientLocation {
            node: Some("here".into()),
            zone: Some("z".into()),
        };
        let mut all = endpoints(true, false, &[("10.0.0.1:80", "here")]);
        assert_eq!(class(None, &all, &client).node, None);
        for endpoint in all.addresses.values_mut() {
            let mut hinted = endpoint.as_ref().clone();
            hinted.place = Arc::new(Place {
                for_nodes: vec!["here".into()],
                ..Place::default()
            });
            *endpoint = Arc::new(hinted);
        }
        assert_eq!(class(None, &all, &client), client);
        let other = ClientLocation {
            node: Some("there".into()),
            ..client
        };
        assert_eq!(class(None, &all, &other).node, None);
    }

    #[test]
    fn large_sets_come_in_several_messages() {
        let many: Vec<_> = (0..2500)
            .map(|n| (format!("10.0.{}.{}:80", n / 250, n % 250), "n"))
            .collect();
        let many: Vec<_> = many.iter().map(|(addr, node)| (addr.as_str(), *node)).collect();
        let messages = between(None, &endpoints(true, false, &many), &ClientLocation::default());
        assert_eq!(messages.len(), 3);
    }
}
