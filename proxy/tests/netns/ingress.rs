//! Requests that say themselves what is to be done with them: ingress mode and `l5d-*` headers.

use std::net::SocketAddr;

use crate::{
    apps::{self, Reply, serve_http},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::{Options, Pod},
    policies::{http_rule, identity, outbound_detect, path},
};

fn ask(pod: &Pod, addr: SocketAddr, path: &'static str, headers: &[(&'static str, String)]) -> Reply {
    apps::ask(&pod.namespace, addr, "web.test", path, headers)
}

#[test]
fn an_ingress_names_the_service_of_each_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let outside = network.namespace();
    serve_http(&outside, 9000, "outside");
    let outside = SocketAddr::from((outside.ip, 9000));
    script.set_named(&path("web"), outbound_detect("web", http_rule("web")));
    let options = Options {
        env: vec![("INGRESS_MODE", "true".to_owned())],
    };
    let ingress = Pod::start_with(&network, &script, "ingress", options);
    let dst = |name: &str| vec![("l5d-dst-override", name.to_owned())];

    let named = ask(&ingress, outside, "/", &dst(&path("web")));
    assert_eq!((named.status, named.body.as_str()), (200, "server"));
    assert_eq!(named.headers["seen-client-id"], identity("ingress").as_str());
    assert_eq!(named.headers["seen-l5d"], "1", "the header does not go on");
    assert_eq!(ask(&ingress, outside, "/", &[]).body, "outside", "as it was sent");
    for (name, status) in [
        ("nobody.test.svc.cluster.local:80", 502),
        ("outside.test:80", 502),
        ("10.96.0.1:80", 400),
        ("not a name", 400),
    ] {
        let reply = ask(&ingress, outside, "/", &dst(name));
        assert_eq!(reply.status, status, "{name}: {reply:?}");
        // Its clients are strangers.
        assert!(!reply.headers.contains_key("l5d-proxy-error"), "{name}");
    }
    let options = Options {
        env: vec![
            ("INGRESS_MODE", "true".to_owned()),
            ("OUTBOUND_DISABLE_INFORMATIONAL_HEADERS", "false".to_owned()),
        ],
    };
    let telling = Pod::start_with(&network, &script, "telling", options);
    let reply = ask(&telling, outside, "/", &dst("nobody.test.svc.cluster.local:80"));
    assert_eq!(reply.status, 502);
    assert!(reply.headers.contains_key("l5d-proxy-error"));
    // What the server's proxy says is no stranger's business either.
    let forbidden = crate::policies::server(vec![crate::policies::authz(Some(&["nobody"]))]);
    script.set_inbound("server", 8080, forbidden);
    let refused = eventually("the server's proxy refuses", || {
        let reply = ask(&ingress, outside, "/", &dst(&path("web")));
        (reply.status == 403).then_some(reply)
    });
    assert!(!refused.headers.contains_key("l5d-proxy-error"));
    let refused = ask(&telling, outside, "/", &dst(&path("web")));
    assert_eq!(refused.headers["l5d-proxy-error"], "unauthorized");
    // Only an ingress may.
    let sidecar = ask(&client, outside, "/", &dst(&path("web")));
    assert_eq!(sidecar.body, "outside");
    assert_eq!(sidecar.headers["seen-l5d"], "0");
}

#[test]
fn a_request_may_require_an_identity_and_set_what_its_policy_allows() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let require = |id: &str| vec![("l5d-require-id", id.to_owned())];
    assert_eq!(
        ask(&client, service(), "/", &require(&identity("server"))).status,
        200
    );
    let refused = ask(&client, service(), "/", &require(&identity("other")));
    assert_eq!(refused.status, 502, "{refused:?}");
    assert_eq!(ask(&client, service(), "/", &require("no identity")).status, 400);

    let own = [
        ("l5d-retry-http", "5xx".to_owned()),
        ("l5d-retry-limit", "2".to_owned()),
        ("l5d-timeout", "100ms".to_owned()),
    ];
    let tries = || {
        server
            .metric(
                "response_total",
                &[("direction", "inbound"), ("status_code", "503")],
            )
            .unwrap_or(0.0)
    };
    let reply = ask(&client, service(), "/fail", &own[..2]);
    assert_eq!(reply.status, 503);
    eventually("not allowed: one try", || (tries() == 1.0).then_some(()));
    assert_eq!(ask(&client, service(), "/slow", &own).status, 200);
    let mut rule = http_rule("web");
    rule.allow_l5d_request_headers = true;
    script.set_outbound(service(), outbound_detect("web", rule));
    eventually("allowed: a timeout of its own", || {
        (ask(&client, service(), "/slow", &own).status == 504).then_some(())
    });
    let before = tries();
    let reply = ask(&client, service(), "/fail", &own[..2]);
    assert_eq!(
        (reply.status, reply.headers["seen-l5d"].as_bytes()),
        (503, b"1".as_slice())
    );
    eventually("three tries", || (tries() == before + 3.0).then_some(()));
}

#[test]
fn an_application_that_is_gone_ends_its_clients_connections() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let gone = server.addr(8099);
    let one = crate::policies::endpoint(gone.ip(), gone.port(), Some("server"), false);
    script.set_endpoints(&path("web"), vec![one]);
    let reply = ask(&client, service(), "/", &[]);
    assert_eq!(reply.status, 502, "{reply:?}");
    assert!(reply.headers.contains_key("l5d-proxy-error"));
    // The proxies' word for it stays between them; the client understands the usual one.
    assert_eq!(reply.headers["connection"], "close");
    assert!(!reply.headers.contains_key("l5d-proxy-connection"));
    let outside = network.namespace();
    let stranger =
        outside.block_on(move || async move { crate::apps::try_get(gone, "/").await.expect("a reply") });
    assert_eq!(
        (stranger.status, stranger.headers["connection"].as_bytes()),
        (502, b"close".as_slice())
    );
    let own = stranger
        .headers
        .keys()
        .filter(|name| name.as_str().starts_with("l5d-"));
    assert_eq!(own.count(), 0, "{stranger:?}");
}

#[test]
fn a_stream_that_stands_still_ends() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let mut rule = http_rule("web");
    rule.timeouts = Some(linkerd2_proxy_api::http_route::Timeouts {
        idle: Some(prost_types::Duration {
            seconds: 0,
            nanos: 200_000_000,
        }),
        ..Default::default()
    });
    script.set_outbound(service(), outbound_detect("web", rule));
    assert_eq!(ask(&client, service(), "/slow", &[]).status, 504);
    assert_eq!(ask(&client, service(), "/", &[]).status, 200);
}

#[test]
fn a_backend_that_cannot_be_found_answers_for_its_share() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::{
        http_route::HttpFailureInjector,
        outbound::http_route::{
            Distribution, Filter, RouteBackend, WeightedRouteBackend, distribution, filter::Kind,
        },
    };
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let found = RouteBackend {
        backend: Some(crate::policies::backend("web")),
        ..Default::default()
    };
    // As Linkerd's controller puts it.
    let missing = RouteBackend {
        backend: Some(linkerd2_proxy_api::outbound::Backend {
            kind: None,
            ..crate::policies::backend("gone")
        }),
        filters: vec![Filter {
            kind: Some(Kind::FailureInjector(HttpFailureInjector {
                status: 500,
                message: "Service not found gone".to_owned(),
                ratio: None,
            })),
        }],
        ..Default::default()
    };
    let weighted = [found, missing].map(|backend| WeightedRouteBackend {
        backend: Some(backend),
        weight: 1,
    });
    let mut rule = http_rule("web");
    rule.backends = Some(Distribution {
        kind: Some(distribution::Kind::RandomAvailable(
            distribution::RandomAvailable {
                backends: weighted.into(),
            },
        )),
    });
    script.set_outbound(service(), outbound_detect("web", rule));
    let mut seen = std::collections::BTreeSet::new();
    eventually("each backend has its share", || {
        let reply = ask(&client, service(), "/", &[]);
        if reply.status == 500 {
            assert_eq!(reply.headers["l5d-proxy-error"], "Service not found gone");
        }
        seen.insert(reply.status);
        (seen.len() >= 2).then_some(())
    });
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), [200, 500]);
}

#[test]
fn a_policy_that_cannot_be_carried_out_fails_requests() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::{
        http_route::{HttpRouteMatch, PathMatch, path_match::Kind},
        outbound::http_route::Filter,
    };
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    assert_eq!(ask(&client, service(), "/", &[]).status, 200);
    // Of a newer controller, say: a filter of an unknown kind, a path that is no expression.
    let mut unknown_filter = http_rule("web");
    unknown_filter.filters = vec![Filter { kind: None }];
    let mut unknown_match = http_rule("web");
    unknown_match.matches = vec![HttpRouteMatch {
        path: Some(PathMatch {
            kind: Some(Kind::Regex("(".to_owned())),
        }),
        ..Default::default()
    }];
    for broken in [unknown_filter, unknown_match] {
        // A good rule after it must not take what was meant for it.
        let mut policy = outbound_detect("web", broken);
        use linkerd2_proxy_api::outbound::proxy_protocol::Kind as Protocol;
        if let Some(Protocol::Detect(detect)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut())
            && let Some(http1) = &mut detect.http1
        {
            http1.routes[0].rules.push(http_rule("web"));
        }
        script.set_outbound(service(), policy);
        let reply = eventually("requests fail", || {
            let reply = ask(&client, service(), "/", &[]);
            (reply.status != 200).then_some(reply)
        });
        assert_eq!(reply.status, 500, "{reply:?}");
        let why = reply.headers["l5d-proxy-error"].to_str().expect("text");
        assert!(why.starts_with("invalid client policy configuration"), "{why}");
        script.set_outbound(service(), outbound_detect("web", http_rule("web")));
        eventually("a good policy holds again", || {
            (ask(&client, service(), "/", &[]).status == 200).then_some(())
        });
    }
}
