//! What metrics tell of requests that fail: which time limit passed, what was tried again, and when nothing could be.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use linkerd2_proxy_api::{
    http_route::{HeaderMatch, HttpRouteMatch, Timeouts, header_match},
    outbound::{
        http_route::{Retry, Rule, distribution, retry},
        proxy_protocol::Kind,
    },
};

use crate::{
    apps::{Http1, Reply, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::{Options, Pod},
    policies::{endpoint, http_rule, outbound_detect, path, seconds},
};

/// Shorter than what the application takes for `/slow`.
const LIMIT: Option<prost_types::Duration> = Some(prost_types::Duration {
    seconds: 0,
    nanos: 200_000_000,
});

/// A rule for requests with `x-rule: NAME`.
fn rule(name: &str) -> Rule {
    let value = header_match::Value::Exact(name.as_bytes().to_vec());
    let header = HeaderMatch {
        name: "x-rule".to_owned(),
        value: Some(value),
    };
    Rule {
        matches: vec![HttpRouteMatch {
            headers: vec![header],
            ..Default::default()
        }],
        ..http_rule("web")
    }
}

fn limited(name: &str, timeouts: Timeouts) -> Rule {
    Rule {
        timeouts: Some(timeouts),
        ..rule(name)
    }
}

fn post(client: &Pod, rule: &'static str, path: &'static str, body: &'static [u8]) -> Reply {
    client.namespace.block_on(move || async move {
        let request = Request::post(path)
            .header("host", "web.test")
            .header("x-rule", rule)
            .body(Full::new(Bytes::from_static(body)))
            .expect("valid");
        let mut connection = Http1::connect(service()).await.expect("connects");
        connection.send(request).await.expect("a reply")
    })
}

fn counts(pod: &Pod, name: &str, labels: &[(&str, &str)], expected: f64) {
    eventually(&format!("{name} with {labels:?} is {expected}"), || {
        (pod.metric(name, labels) == Some(expected)).then_some(())
    });
}

#[test]
fn each_time_limit_and_each_retry_is_told() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let request = limited(
        "request",
        Timeouts {
            request: LIMIT,
            ..Default::default()
        },
    );
    let response = limited(
        "response",
        Timeouts {
            response: LIMIT,
            ..Default::default()
        },
    );
    let idle = limited(
        "idle",
        Timeouts {
            idle: LIMIT,
            ..Default::default()
        },
    );
    let mut tries = rule("try");
    tries.retry = Some(Retry {
        max_retries: 1,
        max_request_bytes: 16,
        conditions: Some(retry::Conditions {
            status_ranges: vec![retry::conditions::StatusRange { start: 500, end: 599 }],
        }),
        timeout: LIMIT,
        backoff: None,
    });
    let mut policy = outbound_detect("web", request);
    let Some(Kind::Detect(detect)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut()) else {
        panic!("its protocol is detected");
    };
    let http1 = detect.http1.as_mut().expect("it has routes of HTTP/1");
    http1.routes[0].rules.extend([response, idle, tries]);
    script.set_outbound(service(), policy);
    eventually("the policy holds", || {
        (post(&client, "none", "/", b"").status == 404).then_some(())
    });

    let route = "outbound_http_route_request_statuses_total";
    let backend = "outbound_http_route_backend_response_statuses_total";
    for (rule, label) in [
        ("request", "REQUEST_TIMEOUT"),
        ("response", "RESPONSE_STREAM_TIMEOUT"),
        ("idle", "IDLE_TIMEOUT"),
    ] {
        let reply = post(&client, rule, "/slow", b"");
        assert_eq!(reply.status, 504);
        assert_eq!(
            reply.headers["l5d-proxy-error"],
            format!("{rule} timeout: 200ms").as_str()
        );
        for family in [route, backend] {
            counts(&client, family, &[("error", label), ("http_status", "")], 1.0);
        }
    }
    // The first try has a limit, the last has none.
    assert_eq!(post(&client, "try", "/slow", b"").status, 200);
    let late = [("error", "RESPONSE_HEADERS_TIMEOUT")];
    counts(&client, backend, &late, 1.0);
    counts(&client, backend, &[("http_status", "200")], 1.0);
    assert_eq!(client.metric(route, &late), None, "the request was answered");

    // Tries that end in time, and those that do not, are responses; those of HTTP have a status.
    let no_response = [
        ("direction", "outbound"),
        ("grpc_status", ""),
        ("classification", "failure"),
    ];
    for (error, count) in [("timeout", 3.0), ("unclassified", 1.0)] {
        let of = [no_response.as_slice(), &[("error", error)]].concat();
        counts(&client, "response_total", &of, count);
        let with_status = client.series("response_total");
        let mut with_status = with_status.keys().filter(|labels| labels["error"] == error);
        assert!(with_status.all(|labels| !labels.contains_key("status_code")));
    }
    counts(
        &client,
        "outbound_http_errors_total",
        &[("error", "response timeout")],
        3.0,
    );

    let retried = |what: &str| format!("outbound_http_route_retry_{what}_total");
    assert_eq!(post(&client, "try", "/fail", b"short").status, 503);
    assert_eq!(post(&client, "try", "/fail", b"longer than sixteen").status, 503);
    for (what, count) in [
        ("requests", 2.0),
        ("successes", 1.0),
        ("limit_exceeded", 1.0),
        ("overflow", 1.0),
    ] {
        counts(&client, &retried(what), &[("hostname", "")], count);
    }
}

#[test]
fn the_queues_gate_shuts_when_there_is_no_endpoint_and_opens_with_the_next() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    // Each worker has a gate of its own.
    let options = Options {
        env: vec![("CORES", "1".to_owned())],
    };
    let (_other, server) = pair(&network, &script);
    let client = Pod::start_with(&network, &script, "client", options);
    let addr: SocketAddr = ([10, 96, 0, 3], 80).into();
    script.set_endpoints(&path("later"), Vec::new());
    let mut rule = http_rule("later");
    let backends = rule.backends.as_mut().and_then(|backends| backends.kind.as_mut());
    if let Some(distribution::Kind::FirstAvailable(first)) = backends {
        for backend in first.backends.iter_mut().filter_map(|one| one.backend.as_mut()) {
            let queue = backend.queue.as_mut().expect("it has a queue");
            queue.failfast_timeout = seconds(1);
        }
    }
    script.set_outbound(addr, outbound_detect("later", rule));
    let ask = || {
        client
            .namespace
            .block_on(move || async move { try_get(addr, "/").await.expect("a reply").status })
    };
    let gate = |what: &str| {
        let name = format!("outbound_http_balancer_queue_gate_{what}");
        client.metric(&name, &[("backend_name", "later")])
    };
    assert_eq!(ask(), 503);
    assert_eq!((gate("open_total"), gate("shut_total")), (Some(1.0), Some(1.0)));
    assert_eq!(gate("timeout_seconds"), Some(1.0));
    assert_eq!(gate("open_time_seconds"), Some(0.0));
    let since_1970 = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("the past");
    let shut = Duration::from_secs_f64(gate("shut_time_seconds").expect("it is shut"));
    assert!(since_1970.saturating_sub(shut) < crate::DEADLINE && shut < since_1970);
    counts(
        &client,
        "outbound_http_route_request_statuses_total",
        &[("error", "FAIL_FAST")],
        1.0,
    );
    let waited = [("backend_name", "later"), ("le", "0.5")];
    let bucket = "outbound_http_balancer_queue_latency_seconds_bucket";
    assert_eq!(client.metric(bucket, &waited), Some(0.0));

    let endpoints = vec![endpoint(server.namespace.ip, 8080, Some("server"), false)];
    script.set_endpoints(&path("later"), endpoints);
    // While the gate is shut, requests fail at once.
    let mut refused = 1.0;
    eventually("the endpoint answers", || match ask() {
        200 => Some(()),
        _ => {
            refused += 1.0;
            None
        }
    });
    assert_eq!((gate("open_total"), gate("shut_total")), (Some(2.0), Some(1.0)));
    assert_eq!(gate("shut_time_seconds"), Some(0.0));
    assert!(gate("open_time_seconds") > Some(shut.as_secs_f64()));
    counts(
        &client,
        "outbound_http_errors_total",
        &[("error", "failfast")],
        refused,
    );
}
