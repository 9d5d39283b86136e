//! What annotations mean, and what is said of those that mean nothing.

use std::{collections::BTreeMap, time::Duration};

use heddle_control_core::{
    balance::{Affinity, Carrier, HashKey, Limits, Persistence},
    outbound::{Backoff, FailureAccrual, LoadBias, Retry, RetryOn, SuccessRate, Timeouts},
};

use super::{Annotated, Balancing, Reader, RouteTraffic, problems};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    pairs.iter().map(own).collect()
}

fn traffic(pairs: &[(&str, &str)]) -> RouteTraffic {
    Reader::new(&map(pairs)).route_traffic()
}

fn balancing(pairs: &[(&str, &str)]) -> Balancing {
    Reader::new(&map(pairs)).balancing()
}

/// The keys that a Service's annotations are warned about.
fn warned(pairs: &[(&str, &str)]) -> Vec<String> {
    let problems = problems(Annotated::Service, &map(pairs));
    problems.into_iter().map(|problem| problem.key).collect()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_seeds_retry_annotations_are_understood() {
    let retry = traffic(&[("retry.linkerd.io/http", "5xx"), ("retry.linkerd.io/limit", "2")]);
    let expected = Retry {
        limit: 2,
        timeout: None,
        on: RetryOn::Http(vec![(500, 599)]),
    };
    assert_eq!(retry.retry_http, Some(expected));
}

#[test]
fn statuses_are_single_ranged_or_named() {
    let statuses = |text| match traffic(&[("retry.linkerd.io/http", text)]).retry_http?.on {
        RetryOn::Http(ranges) => Some(ranges),
        RetryOn::Grpc(_) => None,
    };
    let expected = vec![(429, 429), (500, 504), (502, 504)];
    assert_eq!(statuses("429, 500-504,gateway-error"), Some(expected));
    for bad in ["", "99", "600", "504-500", "4xx", "a-b"] {
        assert_eq!(statuses(bad), None, "{bad:?} was taken");
        assert_eq!(
            warned(&[("retry.linkerd.io/http", bad)]),
            ["retry.linkerd.io/http"]
        );
    }
}

#[test]
fn a_limit_or_timeout_alone_retries_what_takes_too_long() {
    for pairs in [
        ("retry.linkerd.io/limit", "3"),
        ("retry.linkerd.io/timeout", "1s"),
    ] {
        let RouteTraffic {
            retry_http,
            retry_grpc,
            ..
        } = traffic(&[pairs]);
        assert_eq!(retry_http.expect("a retry").on, RetryOn::Http(vec![]));
        assert!(retry_grpc.is_some());
    }
    let none = traffic(&[
        ("retry.linkerd.io/limit", "0"),
        ("retry.linkerd.io/grpc", "internal"),
    ]);
    assert_eq!(
        none.retry_grpc.expect("a retry").limit,
        1,
        "Linkerd: 0 is the default"
    );
}

#[test]
fn one_wrong_annotation_leaves_the_others_in_force() {
    let pairs = [
        ("timeout.linkerd.io/request", "1.5s"),
        ("timeout.linkerd.io/idle", "1m30s"),
        ("timeout.linkerd.io/response", "2s"),
    ];
    let expected = Timeouts {
        response: Some(2 * SECOND),
        ..Timeouts::default()
    };
    assert_eq!(traffic(&pairs).timeouts, expected);
    let problems = problems(Annotated::HttpRoute, &map(&pairs));
    assert_eq!(
        problems.iter().map(ToString::to_string).collect::<Vec<_>>(),
        [
            "annotation timeout.linkerd.io/idle: `1m30s` is ignored: expected a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h",
            "annotation timeout.linkerd.io/request: `1.5s` is ignored: expected a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h",
        ]
    );
}

const BACKOFF: Backoff = Backoff {
    min: SECOND,
    max: Duration::from_secs(60),
    jitter: 0.5,
    honor_retry_after: false,
};

#[test]
fn failure_accrual_has_linkerds_defaults() {
    let accrual = |mode| balancing(&[("balancer.linkerd.io/failure-accrual", mode)]).failure_accrual;
    let consecutive = FailureAccrual {
        max_failures: 7,
        success_rate: None,
        backoff: BACKOFF,
        min_ready_endpoints: 0,
    };
    assert_eq!(accrual("consecutive"), Some(consecutive));
    let success_rate = SuccessRate {
        threshold: 0.8,
        window: 10 * SECOND,
        min_requests: 5,
    };
    let unified = FailureAccrual {
        success_rate: Some(success_rate),
        ..consecutive
    };
    assert_eq!(accrual("unified"), Some(unified));
    assert_eq!(accrual("sometimes"), None);
}

#[test]
fn every_setting_of_failure_accrual_is_read() {
    let accrual = balancing(&[
        ("balancer.linkerd.io/failure-accrual", "unified"),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-max-failures",
            "0",
        ),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-min-penalty",
            "2s",
        ),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-max-penalty",
            "3s",
        ),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio",
            "2",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold",
            "0.5",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-success-rate-window",
            "10ms",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-success-rate-min-requests",
            "1000000",
        ),
        ("balancer.alpha.linkerd.io/failure-accrual-honor-retry-after", "T"),
        ("balancer.heddle.dev/min-ready-endpoints", "2"),
    ]);
    let expected = FailureAccrual {
        max_failures: 0,
        success_rate: Some(SuccessRate {
            threshold: 0.5,
            window: Duration::from_millis(10),
            min_requests: 1_000_000,
        }),
        backoff: Backoff {
            min: 2 * SECOND,
            max: 3 * SECOND,
            jitter: 2.0,
            honor_retry_after: true,
        },
        min_ready_endpoints: 2,
    };
    assert_eq!(accrual.failure_accrual, Some(expected));
}

/// What a proxy would refuse the whole policy for never gets there.
#[test]
fn settings_out_of_bounds_fall_back_to_the_defaults() {
    for (key, value) in [
        (
            "balancer.linkerd.io/failure-accrual-consecutive-max-failures",
            "-1",
        ),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-min-penalty",
            "61s",
        ),
        ("balancer.linkerd.io/failure-accrual-consecutive-min-penalty", "0"),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-max-penalty",
            "0s",
        ),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio",
            "NaN",
        ),
        (
            "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio",
            "101",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-success-rate-threshold",
            "1.1",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-success-rate-window",
            "9ms",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-success-rate-min-requests",
            "1000001",
        ),
        (
            "balancer.alpha.linkerd.io/failure-accrual-honor-retry-after",
            "yes",
        ),
        ("balancer.heddle.dev/min-ready-endpoints", "half"),
    ] {
        let unified = ("balancer.linkerd.io/failure-accrual", "unified");
        assert_eq!(
            balancing(&[unified, (key, value)]),
            balancing(&[unified]),
            "{key}: {value}"
        );
        assert_eq!(warned(&[unified, (key, value)]), [key], "{value}");
    }
}

#[test]
fn failures_weigh_when_asked_for() {
    let on = ("balancer.alpha.linkerd.io/penalize-failures", "true");
    let bias = LoadBias {
        penalty: 5 * SECOND,
        max_retry_after: 300 * SECOND,
    };
    assert_eq!(balancing(&[on]).load_bias, Some(bias));
    let penalty = ("balancer.alpha.linkerd.io/load-biaser-penalty", "1s");
    assert_eq!(balancing(&[penalty]).load_bias, None);
    assert_eq!(warned(&[penalty]), [penalty.0], "it is not turned on");
    assert_eq!(balancing(&[on, penalty]).load_bias.expect("bias").penalty, SECOND);
    assert_eq!(
        warned(&[on, ("balancer.alpha.linkerd.io/load-biaser-penalty", "50d")]),
        [penalty.0]
    );
}

#[test]
fn limits_are_positive_numbers() {
    let limits = balancing(&[
        ("balancer.heddle.dev/max-connections", "10"),
        ("balancer.heddle.dev/max-requests-per-endpoint", "3"),
        ("balancer.heddle.dev/max-pending-requests", "0"),
    ]);
    let expected = Limits {
        connections: Some(10),
        endpoint_requests: Some(3),
        ..Limits::default()
    };
    assert_eq!(limits.limits, expected);
}

#[test]
fn sessions_stick_by_cookie_header_or_hash() {
    let persist = |carrier, name: &str, idle_timeout| {
        Some(Affinity::Persist(Persistence {
            carrier,
            name: name.into(),
            idle_timeout,
            absolute_timeout: None,
            permanent: false,
        }))
    };
    let affinity = |pairs: &[(&str, &str)]| balancing(pairs).affinity;
    let mode = |mode| ("balancer.heddle.dev/session-affinity", mode);
    let name = ("balancer.heddle.dev/session-affinity-name", "X-User");
    let idle = ("balancer.heddle.dev/session-affinity-idle-timeout", "1s");
    assert_eq!(
        affinity(&[mode("cookie"), idle]),
        persist(Carrier::Cookie, "heddle-session", Some(SECOND))
    );
    assert_eq!(
        affinity(&[mode("header"), name]),
        persist(Carrier::Header, "X-User", None)
    );
    let hash = |carrier| Some(Affinity::Hash(HashKey::Named(carrier, "X-User".into())));
    assert_eq!(affinity(&[mode("hash-header"), name]), hash(Carrier::Header));
    assert_eq!(affinity(&[mode("hash-cookie"), name]), hash(Carrier::Cookie));
    assert_eq!(
        affinity(&[mode("hash-source")]),
        Some(Affinity::Hash(HashKey::Source))
    );
    assert_eq!(affinity(&[mode("hash-header")]), None, "hash what?");
    assert_eq!(warned(&[mode("hash-header")]), [mode("").0]);
    assert_eq!(warned(&[mode("hash-source"), name, idle]), [idle.0, name.0]);
    assert_eq!(warned(&[name]), [name.0]);
    assert_eq!(warned(&[mode("sticky")]), [mode("").0]);
    let bad_name = ("balancer.heddle.dev/session-affinity-name", "a b");
    assert_eq!(warned(&[mode("hash-header"), bad_name]), [mode("").0, bad_name.0]);
}

#[test]
fn unknown_and_misplaced_annotations_are_named() {
    assert_eq!(
        warned(&[("retry.linkerd.io/htpp", "5xx")]),
        ["retry.linkerd.io/htpp"]
    );
    assert_eq!(
        warned(&[("config.linkerd.io/opaque-ports", "3306,x")]),
        ["config.linkerd.io/opaque-ports"]
    );
    assert_eq!(
        warned(&[
            ("balancer.linkerd.io/failure-accrual", "consecutive"),
            (
                "balancer.alpha.linkerd.io/failure-accrual-success-rate-window",
                "5s"
            ),
        ]),
        ["balancer.alpha.linkerd.io/failure-accrual-success-rate-window"],
        "it is for the unified mode"
    );
    let accrual = map(&[("balancer.linkerd.io/failure-accrual", "consecutive")]);
    for kind in [
        Annotated::HttpRoute,
        Annotated::GrpcRoute,
        Annotated::TlsRoute,
        Annotated::TcpRoute,
    ] {
        let problems = problems(kind, &accrual);
        assert_eq!(
            problems[0].expected,
            format!(
                "this annotation on a Service, because a {} does not take it",
                kind.name()
            )
        );
    }
    assert_eq!(problems(Annotated::EgressNetwork, &accrual), []);
    let others = [("example.com/whatever", "x"), ("linkerd.io/inject", "enabled")];
    assert_eq!(
        warned(&others),
        Vec::<String>::new(),
        "other people's annotations"
    );
}

/// Whatever an annotation says, it is read or named as a problem.
#[test]
fn fuzz_annotations() {
    const KEYS: [&str; 8] = [
        "retry.linkerd.io/http",
        "retry.linkerd.io/grpc",
        "retry.linkerd.io/limit",
        "retry.linkerd.io/timeout",
        "timeout.linkerd.io/request",
        "balancer.linkerd.io/failure-accrual",
        "balancer.linkerd.io/failure-accrual-consecutive-jitter-ratio",
        "config.linkerd.io/opaque-ports",
    ];
    let input = bolero::check!().with_type::<(Vec<(u8, String)>, String)>();
    input.for_each(|(known, other)| {
        let known = known
            .iter()
            .map(|(key, value)| (KEYS[usize::from(*key) % KEYS.len()].to_owned(), value.clone()));
        let all: BTreeMap<String, String> = known
            .chain([(format!("retry.linkerd.io/{other}"), other.clone())])
            .collect();
        for kind in [Annotated::Service, Annotated::HttpRoute, Annotated::GrpcRoute] {
            for problem in problems(kind, &all) {
                assert!(
                    all.contains_key(&problem.key) && !problem.expected.is_empty(),
                    "{problem:?}"
                );
            }
        }
    });
}
