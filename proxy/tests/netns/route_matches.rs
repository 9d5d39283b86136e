//! Each kind of match and of failure that routes of the proxy API can have, as a client meets it: every rule answers with a
//! status of its own.

use http::Request;
use http_body_util::Full;
use linkerd2_proxy_api::{
    grpc_route::{GrpcFailureInjector, GrpcRouteMatch, GrpcRpcMatch},
    http_route::{
        HeaderMatch, HostMatch, HttpFailureInjector, HttpRouteMatch, PathMatch, QueryParamMatch, Ratio,
        header_match, host_match, path_match, query_param_match,
    },
    http_types::{HttpMethod, http_method},
    outbound::{self, grpc_route, http_route, proxy_protocol::Kind},
};

use crate::{
    apps::{Http1, send_http2},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    policies::{default_meta, http_rule, outbound_detect},
};

/// A rule that answers what it takes with this status.
fn rule(one: HttpRouteMatch, status: u32, ratio: Option<Ratio>) -> http_route::Rule {
    let fail = HttpFailureInjector {
        status,
        message: String::new(),
        ratio,
    };
    http_route::Rule {
        matches: vec![one],
        filters: vec![http_route::Filter {
            kind: Some(http_route::filter::Kind::FailureInjector(fail)),
        }],
        ..http_rule("web")
    }
}

fn route(name: &str, hosts: Vec<HostMatch>, rules: Vec<http_route::Rule>) -> outbound::HttpRoute {
    outbound::HttpRoute {
        metadata: default_meta(name),
        hosts,
        rules,
    }
}

fn path(kind: path_match::Kind) -> HttpRouteMatch {
    HttpRouteMatch {
        path: Some(PathMatch { kind: Some(kind) }),
        ..Default::default()
    }
}

fn header(name: &str, value: header_match::Value) -> HttpRouteMatch {
    HttpRouteMatch {
        headers: vec![HeaderMatch {
            name: name.to_owned(),
            value: Some(value),
        }],
        ..Default::default()
    }
}

fn query(name: &str, value: query_param_match::Value) -> HttpRouteMatch {
    HttpRouteMatch {
        query_params: vec![QueryParamMatch {
            name: name.to_owned(),
            value: Some(value),
        }],
        ..Default::default()
    }
}

/// The policy with these routes for both versions of HTTP.
fn policy(routes: Vec<outbound::HttpRoute>) -> outbound::OutboundPolicy {
    let mut policy = outbound_detect("web", http_rule("web"));
    if let Some(Kind::Detect(detect)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
        detect.http1.as_mut().expect("it has HTTP/1").routes = routes.clone();
        detect.http2.as_mut().expect("it has HTTP/2").routes = routes;
    }
    policy
}

#[test]
fn every_match_of_http_routes_takes_its_requests_and_no_others() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let get = |method: &str, uri: &str, more: &[(&str, &str)]| {
        let mut request = Request::builder().method(method).uri(uri);
        if !more.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "web.test");
        }
        for (name, value) in more {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::default()).expect("valid");
        client.namespace.block_on(move || async move {
            let mut connection = Http1::connect(service()).await.expect("connects");
            connection.send(request).await.expect("a reply").status
        })
    };
    let method = HttpMethod {
        r#type: Some(http_method::Type::Registered(
            http_method::Registered::Delete.into(),
        )),
    };
    let by_method = HttpRouteMatch {
        method: Some(method),
        ..Default::default()
    };
    let host = |one| HostMatch { r#match: Some(one) };
    let suffix = host_match::Suffix {
        reverse_labels: vec!["test".to_owned(), "below".to_owned()],
    };
    let any = || vec![rule(HttpRouteMatch::default(), 416, None)];
    script.set_outbound(
        service(),
        policy(vec![
            route(
                "all",
                Vec::new(),
                vec![
                    rule(path(path_match::Kind::Exact("/exact".into())), 409, None),
                    rule(path(path_match::Kind::Prefix("/a%20b".into())), 408, None),
                    rule(path(path_match::Kind::Regex("/v[0-9]+/.*".into())), 410, None),
                    rule(
                        header("x-a", header_match::Value::Exact(b"1".to_vec())),
                        411,
                        None,
                    ),
                    rule(
                        header("x-b", header_match::Value::Regex("b[0-9]+".into())),
                        412,
                        None,
                    ),
                    rule(
                        query("q", query_param_match::Value::Exact("1 2".into())),
                        413,
                        None,
                    ),
                    rule(
                        query("r", query_param_match::Value::Regex("[a-z]+".into())),
                        414,
                        None,
                    ),
                    rule(by_method, 415, None),
                    http_rule("web"),
                ],
            ),
            route(
                "exact",
                vec![host(host_match::Match::Exact("One.test".into()))],
                any(),
            ),
            route("suffix", vec![host(host_match::Match::Suffix(suffix))], any()),
        ]),
    );
    eventually("the routes hold", || {
        (get("GET", "/exact", &[]) == 409).then_some(())
    });
    for (status, method, uri, headers) in [
        (200, "GET", "/", &[][..]),
        (200, "GET", "/exact/more", &[]),
        (408, "GET", "/a%20b/c", &[]),
        (408, "GET", "/%61%20b", &[]),
        (410, "GET", "/v12/x", &[]),
        (200, "GET", "/x/v12/x", &[]),
        (411, "GET", "/", &[("x-a", "1")]),
        (411, "GET", "/", &[("x-a", "0"), ("x-a", "1")]),
        (200, "GET", "/", &[("x-a", "11")]),
        (412, "GET", "/", &[("x-b", "b42")]),
        (200, "GET", "/", &[("x-b", "ab42")]),
        (413, "GET", "/?p=0&q=1%202", &[]),
        (200, "GET", "/?q=1&q=1%202", &[]),
        (414, "GET", "/?r=abc", &[]),
        (200, "GET", "/?r=abc1", &[]),
        (415, "DELETE", "/", &[]),
        (416, "GET", "/exact", &[("host", "one.TEST:80")]),
        (416, "GET", "/", &[("host", "a.b.below.test")]),
        (200, "GET", "/", &[("host", "below.test")]),
        (200, "GET", "/", &[("host", "notbelow.test")]),
    ] {
        assert_eq!(get(method, uri, headers), status, "{method} {uri} {headers:?}");
    }

    let half = Ratio {
        numerator: 1,
        denominator: 2,
    };
    let some = rule(HttpRouteMatch::default(), 418, Some(half));
    script.set_outbound(service(), policy(vec![route("half", Vec::new(), vec![some])]));
    eventually("some fail", || (get("GET", "/", &[]) == 418).then_some(()));
    let failed = (0..200).filter(|_| get("GET", "/", &[]) == 418).count();
    // That chance leaves this range has a probability of less than one in a thousand million.
    assert!((50..=150).contains(&failed), "{failed} of 200");
}

#[test]
fn every_match_of_grpc_routes_takes_its_calls_and_no_others() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let rule = |rpc: Option<(&str, &str)>, headers: Vec<HeaderMatch>, code: u32| grpc_route::Rule {
        matches: vec![GrpcRouteMatch {
            rpc: rpc.map(|(service, method)| GrpcRpcMatch {
                service: service.to_owned(),
                method: method.to_owned(),
            }),
            headers,
        }],
        filters: vec![grpc_route::Filter {
            kind: Some(grpc_route::filter::Kind::FailureInjector(GrpcFailureInjector {
                code,
                message: "no".to_owned(),
                ratio: None,
            })),
        }],
        backends: Some(grpc_route::Distribution {
            kind: Some(grpc_route::distribution::Kind::Empty(Default::default())),
        }),
        ..Default::default()
    };
    let tenant = HeaderMatch {
        name: "tenant".to_owned(),
        value: Some(header_match::Value::Regex("t[0-9]".to_owned())),
    };
    let route = outbound::GrpcRoute {
        metadata: default_meta("grpc"),
        hosts: Vec::new(),
        rules: vec![
            rule(Some(("grpc.Test", "Call")), Vec::new(), 7),
            rule(Some(("grpc.Test", "")), Vec::new(), 8),
            rule(Some(("", "Call")), Vec::new(), 9),
            rule(None, vec![tenant], 10),
            rule(None, Vec::new(), 12),
        ],
    };
    let grpc = outbound::proxy_protocol::Grpc {
        routes: vec![route],
        failure_accrual: None,
    };
    script.set_outbound(
        service(),
        outbound::OutboundPolicy {
            protocol: Some(outbound::ProxyProtocol {
                kind: Some(Kind::Grpc(grpc)),
            }),
            metadata: default_meta("web"),
        },
    );
    let call = |path: &str, tenant: &str| {
        let request = Request::post(format!("http://web.test{path}"))
            .header("content-type", "application/grpc")
            .header("tenant", tenant)
            .body(Full::default())
            .expect("valid");
        let reply = client
            .namespace
            .block_on(move || async move { send_http2(service(), request).await.expect("a reply") });
        let code = reply
            .headers
            .get("grpc-status")
            .and_then(|code| code.to_str().ok());
        code.map(str::to_owned).unwrap_or_default()
    };
    eventually("the routes hold", || {
        (call("/grpc.Test/Call", "") == "7").then_some(())
    });
    for (code, path, tenant) in [
        ("7", "/grpc.Test/Call", "t1"),
        ("8", "/grpc.Test/Other", ""),
        ("9", "/grpc.Other/Call", ""),
        ("10", "/grpc.Other/Other", "t1"),
        ("12", "/grpc.Other/Other", "t10"),
        ("12", "/grpc.Other", ""),
    ] {
        assert_eq!(call(path, tenant), code, "{path} {tenant}");
    }
}
