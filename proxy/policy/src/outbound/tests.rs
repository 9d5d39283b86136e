use linkerd2_proxy_api::{destination, http_route as routes, meta, outbound as proto};

use super::{message::http_retry, *};

fn second() -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds: 1, nanos: 0 })
}

fn service(name: &str) -> Option<meta::Metadata> {
    let resource = meta::Resource {
        group: "core".into(),
        kind: "Service".into(),
        name: name.into(),
        namespace: "ns".into(),
        section: String::new(),
        port: 8080,
    };
    Some(meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(resource)),
    })
}

fn backend(name: &str) -> proto::Backend {
    use proto::backend::{BalanceP2c, EndpointDiscovery, Kind, balance_p2c, endpoint_discovery};
    let dst = endpoint_discovery::DestinationGet {
        path: format!("{name}.ns.svc.cluster.local:8080"),
    };
    let balancer = BalanceP2c {
        discovery: Some(EndpointDiscovery {
            kind: Some(endpoint_discovery::Kind::Dst(dst)),
        }),
        load: Some(balance_p2c::Load::PeakEwma(balance_p2c::PeakEwma {
            default_rtt: second(),
            decay: second(),
        })),
    };
    proto::Backend {
        metadata: service(name),
        queue: Some(proto::Queue {
            capacity: 10,
            failfast_timeout: second(),
        }),
        kind: Some(Kind::Balancer(balancer)),
    }
}

fn http_rule(backends: &[(&str, u32)]) -> proto::http_route::Rule {
    use proto::http_route::{Distribution, RouteBackend, WeightedRouteBackend, distribution};
    let backends = backends.iter().map(|&(name, weight)| WeightedRouteBackend {
        backend: Some(RouteBackend {
            backend: Some(backend(name)),
            ..Default::default()
        }),
        weight,
    });
    let random = distribution::RandomAvailable {
        backends: backends.collect(),
    };
    proto::http_route::Rule {
        backends: Some(Distribution {
            kind: Some(distribution::Kind::RandomAvailable(random)),
        }),
        timeouts: Some(routes::Timeouts {
            request: second(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn http1(rules: Vec<proto::http_route::Rule>) -> proto::proxy_protocol::Http1 {
    let route = proto::HttpRoute {
        metadata: service("route"),
        hosts: vec![],
        rules,
    };
    proto::proxy_protocol::Http1 {
        routes: vec![route],
        failure_accrual: None,
    }
}

fn policy(http1: proto::proxy_protocol::Http1) -> proto::OutboundPolicy {
    proto::OutboundPolicy {
        protocol: Some(proto::ProxyProtocol {
            kind: Some(proto::proxy_protocol::Kind::Http1(http1)),
        }),
        metadata: service("web"),
    }
}

#[test]
fn reads_a_weighted_http_policy() {
    let policy =
        ClientPolicy::try_from(policy(http1(vec![http_rule(&[("a", 1), ("b", 3)])]))).expect("valid");
    assert_eq!((policy.parent.kind(), policy.parent.port()), ("Service", 8080));
    let Protocol::Http1(http) = &policy.protocol else {
        panic!("{:?}", policy.protocol)
    };
    let rule = &http.routes[0].rules[0].policy;
    assert_eq!(rule.timeouts.request, Some(Duration::from_secs(1)));
    let Distribution::RandomAvailable(backends, weights) = &rule.distribution else {
        panic!("{rule:?}")
    };
    assert_eq!(weights.total(), 4);
    assert!(
        matches!(&backends[1].backend.kind, BackendKind::Balance { path, .. } if path == "b.ns.svc.cluster.local:8080")
    );
}

#[test]
fn a_backend_of_no_kind_leads_nowhere() {
    let backend = proto::Backend {
        kind: None,
        ..backend("a")
    };
    let backend = Backend::try_from(backend).expect("as Linkerd's controller sends it");
    assert_eq!(backend.kind, BackendKind::Nowhere);
}

#[test]
fn every_required_field_is_required() {
    type Break = fn(&mut proto::http_route::Rule);
    let with_backend = |change: fn(&mut proto::Backend)| {
        let mut rule = http_rule(&[("a", 1)]);
        let Some(proto::http_route::distribution::Kind::RandomAvailable(random)) =
            rule.backends.as_mut().and_then(|one| one.kind.as_mut())
        else {
            panic!("built above")
        };
        change(
            random.backends[0]
                .backend
                .as_mut()
                .and_then(|one| one.backend.as_mut())
                .expect("built above"),
        );
        rule
    };
    let broken = [
        with_backend(|backend| backend.metadata = None),
        with_backend(|backend| backend.queue = None),
        http_rule(&[]),
    ];
    for (index, rule) in broken.into_iter().enumerate() {
        assert!(
            ClientPolicy::try_from(policy(http1(vec![rule]))).is_err(),
            "case {index} was taken"
        );
    }
    let changes: [Break; 3] = [
        |rule| rule.backends = None,
        |rule| {
            rule.retry = Some(proto::http_route::Retry {
                max_retries: 1,
                conditions: None,
                ..Default::default()
            })
        },
        |rule| {
            rule.timeouts = Some(routes::Timeouts {
                request: Some(prost_types::Duration {
                    seconds: -1,
                    nanos: 0,
                }),
                ..Default::default()
            })
        },
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut rule = http_rule(&[("a", 1)]);
        change(&mut rule);
        assert!(
            ClientPolicy::try_from(policy(http1(vec![rule]))).is_err(),
            "change {index} was taken"
        );
    }
    assert!(ClientPolicy::try_from(policy(http1(vec![]))).is_err(), "no rules");
    let no_parent = proto::OutboundPolicy {
        metadata: None,
        ..policy(http1(vec![http_rule(&[("a", 1)])]))
    };
    assert!(ClientPolicy::try_from(no_parent).is_err());
    let detect = proto::proxy_protocol::Kind::Detect(proto::proxy_protocol::Detect {
        timeout: second(),
        ..Default::default()
    });
    let no_http = proto::OutboundPolicy {
        protocol: Some(proto::ProxyProtocol { kind: Some(detect) }),
        metadata: service("web"),
    };
    let error = ClientPolicy::try_from(no_http).expect_err("no http1");
    assert_eq!(
        error.to_string(),
        "field `protocol.detect.http1` is invalid: must be set"
    );
}

#[test]
fn a_bad_accrual_backoff_is_refused() {
    let mut http = http1(vec![http_rule(&[("a", 1)])]);
    let backoff = |min, max| proto::ExponentialBackoff {
        min_backoff: min,
        max_backoff: max,
        jitter_ratio: 0.5,
        respect_retry_after_hint: false,
    };
    let mut with = |backoff| {
        let one = proto::failure_accrual::ConsecutiveFailures {
            max_failures: 7,
            backoff,
        };
        http.failure_accrual = Some(proto::FailureAccrual {
            ejection: None,
            kind: Some(proto::failure_accrual::Kind::ConsecutiveFailures(one)),
        });
        ClientPolicy::try_from(policy(http.clone()))
    };
    assert!(with(None).is_err());
    assert!(with(Some(backoff(None, second()))).is_err());
    let two = Some(prost_types::Duration { seconds: 2, nanos: 0 });
    assert!(with(Some(backoff(two, second()))).is_err());
    assert!(with(Some(backoff(second(), two))).is_ok());
}

#[test]
fn forbidden_routes_go_nowhere() {
    let forbidden = proto::opaque_route::filter::Kind::Forbidden(Default::default());
    let rule = proto::opaque_route::Rule {
        backends: None,
        filters: vec![proto::opaque_route::Filter {
            kind: Some(forbidden),
        }],
    };
    let route = proto::OpaqueRoute {
        metadata: service("r"),
        rules: vec![rule],
    };
    let kind = proto::proxy_protocol::Kind::Opaque(proto::proxy_protocol::Opaque { routes: vec![route] });
    let policy = proto::OutboundPolicy {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        metadata: service("web"),
    };
    let policy = ClientPolicy::try_from(policy).expect("valid");
    assert!(matches!(
        policy.protocol,
        Protocol::Opaque(Opaque {
            verdict: OpaqueVerdict::Forbidden,
            ..
        })
    ));
}

#[test]
fn an_address_without_policy_goes_where_its_profile_says() {
    let addr = SocketAddr::from(([10, 0, 0, 1], 8080));
    let first = |policy: &ClientPolicy| match &policy.protocol {
        Protocol::Opaque(Opaque {
            verdict: OpaqueVerdict::To(to),
            ..
        })
        | Protocol::Detect {
            opaque: Opaque {
                verdict: OpaqueVerdict::To(to),
                ..
            },
            ..
        } => to.backends()[0].backend.kind.clone(),
        other => panic!("{other:?}"),
    };
    let timeout = Duration::from_secs(10);
    let plain = ClientPolicy::synthesize(Some(addr), 8080, &Profile::default(), timeout);
    assert!(
        matches!(first(&plain), BackendKind::Forward(endpoint) if endpoint.addr == addr && endpoint.identity.is_none())
    );
    let service = Profile {
        fully_qualified_name: Some("web.ns.svc.cluster.local".into()),
        opaque: true,
        ..Profile::default()
    };
    let service = ClientPolicy::synthesize(Some(addr), 8080, &service, timeout);
    assert!(
        matches!(first(&service), BackendKind::Balance { path, .. } if path == "web.ns.svc.cluster.local:8080")
    );
    assert!(matches!(service.protocol, Protocol::Opaque(_)));
    let one = destination::WeightedAddr {
        addr: Some(crate::net::to_proto(addr)),
        ..Default::default()
    };
    let endpoint = Profile::try_from(destination::DestinationProfile {
        endpoint: Some(one),
        ..Default::default()
    });
    let pod = ClientPolicy::synthesize(Some(addr), 8080, &endpoint.expect("valid"), timeout);
    assert!(matches!(first(&pod), BackendKind::Forward(_)));
    assert_eq!(pod.parent.name(), "endpoint");
}

#[test]
fn retries_are_bounded_whatever_the_policy_says() {
    let retry = proto::http_route::Retry {
        max_retries: 1000,
        max_request_bytes: u32::MAX,
        conditions: Some(proto::http_route::retry::Conditions {
            status_ranges: vec![proto::http_route::retry::conditions::StatusRange { start: 500, end: 503 }],
        }),
        timeout: None,
        backoff: None,
    };
    let retry = http_retry(retry).expect("valid");
    assert_eq!(
        (retry.max_retries, retry.max_request_bytes),
        (RETRIES_MAX, RETRY_BODY_BYTES_MAX)
    );
    assert!(retry.conditions.hold(StatusCode::BAD_GATEWAY, None));
    assert!(!retry.conditions.hold(StatusCode::GATEWAY_TIMEOUT, None));
}

#[test]
fn an_answer_asks_for_the_least_pause_before_the_next_try() {
    let retry = |respect_retry_after_hint| {
        let backoff = proto::ExponentialBackoff {
            min_backoff: second(),
            max_backoff: Some(prost_types::Duration { seconds: 8, nanos: 0 }),
            jitter_ratio: 0.0,
            respect_retry_after_hint,
        };
        http_retry(proto::http_route::Retry {
            max_retries: 3,
            conditions: Some(proto::http_route::retry::Conditions::default()),
            backoff: Some(backoff),
            ..Default::default()
        })
        .expect("valid")
    };
    let seconds = |seconds| Some(Duration::from_secs(seconds));
    let respects = retry(true);
    for (tries, asked, pause) in [
        (1, None, 1),
        (1, seconds(5), 5),
        (3, seconds(2), 4),
        (1, seconds(60), 8),
    ] {
        assert_eq!(
            respects.pause(tries, asked, 0.0),
            seconds(pause),
            "{tries} {asked:?}"
        );
    }
    assert_eq!(retry(false).pause(1, seconds(5), 0.0), seconds(1));
}

#[test]
fn the_old_timeout_is_for_the_responses_head() {
    let timeouts = super::message::read_timeouts(None, second()).expect("valid");
    assert_eq!(
        timeouts,
        super::Timeouts {
            head: Some(Duration::from_secs(1)),
            ..Default::default()
        }
    );
    let endless = prost_types::Duration {
        seconds: i64::MAX,
        nanos: 0,
    };
    let timeouts = super::message::read_timeouts(None, Some(endless)).expect("valid");
    assert!(
        std::time::Instant::now()
            .checked_add(timeouts.head.expect("set"))
            .is_some(),
        "a clock's time can be added"
    );
}
