//! ServiceProfiles: routes, retries within a budget, timeouts, classes, traffic split, and their place before policies.

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use linkerd2_proxy_api::destination::{
    DestinationProfile, HttpStatusRange, PathMatch, RequestMatch, ResponseClass, ResponseMatch, RetryBudget,
    Route, WeightedDst, request_match, response_match,
};

use crate::{
    apps::{Http1, Reply, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::Pod,
    policies::{endpoint, http_rule, outbound_detect, path, seconds},
};

const SERVICE: &str = "web.test.svc.cluster.local";

fn route(name: &str, regex: &str) -> Route {
    let path = request_match::Match::Path(PathMatch {
        regex: regex.to_owned(),
    });
    Route {
        condition: Some(RequestMatch { r#match: Some(path) }),
        metrics_labels: [("route".to_owned(), name.to_owned())].into(),
        ..Default::default()
    }
}

fn profile(routes: Vec<Route>) -> DestinationProfile {
    DestinationProfile {
        fully_qualified_name: SERVICE.to_owned(),
        routes,
        // Two retries for each request, and none besides.
        retry_budget: Some(RetryBudget {
            retry_ratio: 2.0,
            min_retries_per_second: 0,
            ttl: seconds(60),
        }),
        ..Default::default()
    }
}

fn post(client: &Pod, path: &'static str) -> Reply {
    client.namespace.block_on(move || async move {
        let request = Request::post(path)
            .header("host", "web.test")
            .body(Full::new(Bytes::from_static(b"again")));
        let mut connection = Http1::connect(service()).await.expect("connects");
        connection.send(request.expect("valid")).await.expect("a reply")
    })
}

/// A policy that redirects everything: what holds when no profile does.
fn redirecting() -> linkerd2_proxy_api::outbound::OutboundPolicy {
    use linkerd2_proxy_api::{
        http_route::RequestRedirect, outbound::http_route::Filter, outbound::http_route::filter::Kind,
    };
    let mut rule = http_rule("web");
    rule.filters = vec![Filter {
        kind: Some(Kind::Redirect(RequestRedirect::default())),
    }];
    outbound_detect("web", rule)
}

#[test]
fn routes_of_a_profile_come_before_the_policys() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let mut fails = route("fails", "/fail");
    fails.is_retryable = true;
    let mut slow = route("slow", "/slow");
    slow.timeout = Some(prost_types::Duration {
        seconds: 0,
        nanos: 100_000_000,
    });
    let mut strict = route("strict", "/echo.*");
    strict.response_classes = vec![ResponseClass {
        condition: Some(ResponseMatch {
            r#match: Some(response_match::Match::Status(HttpStatusRange {
                min: 200,
                max: 299,
            })),
        }),
        is_failure: true,
    }];
    let all = vec![fails, slow, strict];
    script.set_profile(&service().to_string(), profile(all.clone()));
    let (client, server) = pair(&network, &script);
    script.set_outbound(service(), redirecting());

    assert_eq!(post(&client, "/fail").status, 503);
    let dst = format!("{SERVICE}:80");
    let of = |route: &'static str| {
        [
            ("direction", "outbound"),
            ("dst", dst.as_str()),
            ("rt_route", route),
        ]
    };
    let tried = [("direction", "inbound"), ("status_code", "503")];
    eventually("three tries", || {
        (server.metric("response_total", &tried) == Some(3.0)).then_some(())
    });
    assert_eq!(client.metric("route_request_total", &of("fails")), Some(1.0));
    assert_eq!(
        client.metric("route_actual_request_total", &of("fails")),
        Some(3.0)
    );
    for (family, count) in [
        ("route_response_total", 1.0),
        ("route_actual_response_total", 3.0),
    ] {
        let failed = [
            of("fails").as_slice(),
            &[("classification", "failure"), ("status_code", "503")],
        ]
        .concat();
        eventually("responses are counted", || {
            (client.metric(family, &failed) == Some(count)).then_some(())
        });
    }
    assert_eq!(
        client.metric(
            "route_retryable_total",
            &[("rt_route", "fails"), ("skipped", "no_budget")]
        ),
        Some(1.0),
        "the budget ends it"
    );

    assert_eq!(post(&client, "/slow").status, 504);
    let late = [
        of("slow").as_slice(),
        &[
            ("classification", "failure"),
            ("grpc_status", ""),
            ("error", "timeout"),
        ],
    ]
    .concat();
    let late = crate::pod::labels(late);
    for family in ["route_response_total", "route_actual_response_total"] {
        assert_eq!(client.series(family).get(&late), Some(&1.0), "{family}");
    }
    assert_eq!(
        client.metric("route_response_latency_ms_count", &of("fails")),
        Some(1.0)
    );
    let echoed = post(&client, "/echo/");
    assert_eq!(
        echoed.status, 200,
        "the profile holds, and not the policy's redirect"
    );
    assert_eq!(
        echoed.headers["seen-l5d"], "1",
        "what proxies tell each other stays between them"
    );
    assert_eq!(post(&client, "/echo").status, 200);
    let failed = [
        of("strict").as_slice(),
        &[("classification", "failure"), ("status_code", "200")],
    ]
    .concat();
    eventually("its class makes a success a failure", || {
        (client.metric("route_response_total", &failed) == Some(2.0)).then_some(())
    });
    assert_eq!(post(&client, "/other").status, 200);
    eventually("requests that no route takes are counted, too", || {
        let (_, text) = client.admin("/metrics");
        let line = format!("route_request_total{{direction=\"outbound\",dst=\"{dst}\"}} 1");
        text.contains(&line).then_some(())
    });

    // The server's proxy counts by the routes that the client's chose by.
    script.set_profile(&dst, profile(all.clone()));
    let inbound = [
        ("direction", "inbound"),
        ("dst", dst.as_str()),
        ("rt_route", "strict"),
    ];
    eventually("the server counts the route, too", || {
        post(&client, "/echo");
        let failed = [inbound.as_slice(), &[("classification", "failure")]].concat();
        server.metric("route_response_total", &failed)
    });

    // Without routes the policy holds; and a profile that cannot be read changes nothing.
    script.set_profile(&service().to_string(), profile(Vec::new()));
    eventually("the policy redirects", || {
        (post(&client, "/").status == 301).then_some(())
    });
    script.set_profile(&service().to_string(), profile(vec![route("broken", "(")]));
    script.set_profile(&service().to_string(), profile(all));
    eventually("the profile holds again", || {
        (post(&client, "/").status == 200).then_some(())
    });
}

#[test]
fn a_profile_splits_traffic_and_makes_ports_opaque() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let canary = Pod::start(&network, &script, "canary");
    serve_http(&canary.namespace, 8080, "canary");
    let one = endpoint(canary.namespace.ip, 8080, Some("canary"), false);
    script.set_endpoints(&path("canary"), vec![one]);
    let ask = || {
        client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply").body })
    };
    assert_eq!(ask(), "server");
    let target = |name: &str, weight| WeightedDst {
        authority: path(name),
        weight,
        backend_ref: None,
    };
    let split = |web, canary| DestinationProfile {
        dst_overrides: vec![target("web", web), target("canary", canary)],
        ..profile(Vec::new())
    };
    script.set_profile(&service().to_string(), split(0, 1));
    eventually("all goes to the canary", || (ask() == "canary").then_some(()));
    assert!((0..5).all(|_| ask() == "canary"));
    script.set_profile(&service().to_string(), split(1, 1));
    eventually("both get a share", || {
        let answers: Vec<_> = (0..10).map(|_| ask()).collect();
        (answers.iter().any(|name| name == "canary") && answers.iter().any(|name| name == "server"))
            .then_some(())
    });

    let opaque = DestinationProfile {
        opaque_protocol: true,
        ..profile(Vec::new())
    };
    script.set_profile(&service().to_string(), opaque);
    let requests = |pod: &Pod| {
        let server = crate::policies::identity("server");
        let labels = [("direction", "outbound"), ("server_id", server.as_str())];
        pod.metric("request_total", &labels).unwrap_or(0.0)
    };
    eventually("requests are bytes to the client's proxy", || {
        let before = requests(&client);
        (ask() == "server" && requests(&client) == before).then_some(())
    });
    drop(server);
}
