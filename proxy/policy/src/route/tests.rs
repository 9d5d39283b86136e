use super::*;

fn rule(name: &'static str, one: RequestMatch) -> Rule<&'static str> {
    Rule {
        matches: vec![one],
        policy: name,
    }
}

fn path(kind: http_route::path_match::Kind) -> RequestMatch {
    let path = Some(http_route::PathMatch { kind: Some(kind) });
    http_route::HttpRouteMatch {
        path,
        ..Default::default()
    }
    .try_into()
    .expect("valid")
}

fn route(hosts: Vec<HostMatch>, rules: Vec<Rule<&'static str>>) -> Route<&'static str> {
    Route {
        meta: Meta::default_named("test"),
        hosts,
        rules,
    }
}

fn chosen(routes: &[Route<&'static str>], uri: &str, headers: &[(&str, &str)]) -> Option<&'static str> {
    let mut req = Request::builder().uri(uri);
    for (name, value) in headers {
        req = req.header(*name, *value);
    }
    find(routes, &req.body(()).expect("valid")).map(|(_, rule)| rule.policy)
}

#[test]
fn the_most_specific_path_wins_whatever_the_order() {
    use http_route::path_match::Kind::*;
    let routes = [route(
        Vec::new(),
        vec![
            rule("regex", path(Regex("/a.*".into()))),
            rule("short", path(Prefix("/a".into()))),
            rule("long", path(Prefix("/a/b/".into()))),
            rule("exact", path(Exact("/a/b/c".into()))),
        ],
    )];
    for (uri, want) in [
        ("/a/b/c", Some("exact")),
        ("/a/b/d", Some("long")),
        ("/a/b", Some("long")),
        ("/a/bc", Some("short")),
        ("/abc", Some("regex")),
        ("/x/abc", None),
    ] {
        assert_eq!(chosen(&routes, uri, &[]), want, "{uri}");
    }
}

#[test]
fn hosts_come_before_paths_and_exact_before_suffix() {
    let any = || {
        vec![Rule {
            matches: Vec::new(),
            policy: "any",
        }]
    };
    let named = |name| vec![rule(name, RequestMatch::default())];
    let routes = [
        route(Vec::new(), any()),
        route(vec![HostMatch::Suffix(".example.com".into())], named("suffix")),
        route(vec![HostMatch::Suffix(".a.example.com".into())], named("longer")),
        route(vec![HostMatch::Exact("b.a.example.com".into())], named("exact")),
    ];
    for (host, want) in [
        ("B.a.Example.com:8080", "exact"),
        ("c.a.example.com", "longer"),
        ("c.example.com.", "suffix"),
        ("example.com", "any"),
        ("notexample.com", "any"),
    ] {
        assert_eq!(chosen(&routes, "/", &[("host", host)]), Some(want), "{host}");
    }
}

#[test]
fn more_headers_and_a_method_are_more_specific() {
    let header =
        |name: &'static str| HeaderMatch::Exact(HeaderName::from_static(name), HeaderValue::from_static("1"));
    let routes = [route(
        Vec::new(),
        vec![
            rule("any", RequestMatch::default()),
            rule(
                "one",
                RequestMatch {
                    headers: vec![header("a")],
                    ..Default::default()
                },
            ),
            rule(
                "two",
                RequestMatch {
                    headers: vec![header("a"), header("b")],
                    ..Default::default()
                },
            ),
            rule(
                "method",
                RequestMatch {
                    method: Some(Method::PUT),
                    ..Default::default()
                },
            ),
            rule(
                "query",
                RequestMatch {
                    query_params: vec![QueryMatch::Exact("q".into(), "a b".into())],
                    ..Default::default()
                },
            ),
        ],
    )];
    assert_eq!(chosen(&routes, "/", &[]), Some("any"));
    assert_eq!(chosen(&routes, "/", &[("a", "1")]), Some("one"));
    assert_eq!(chosen(&routes, "/", &[("a", "1"), ("b", "1")]), Some("two"));
    assert_eq!(chosen(&routes, "/?x=1&q=a%20b", &[]), Some("query"));
    assert_eq!(chosen(&routes, "/?q=a+b", &[]), Some("query"));
}

#[test]
fn grpc_calls_match_by_service_and_method() {
    let rpc = |service: &str, method: &str| {
        let rpc = Some(grpc_route::GrpcRpcMatch {
            service: service.into(),
            method: method.into(),
        });
        RequestMatch::try_from(grpc_route::GrpcRouteMatch {
            rpc,
            headers: Vec::new(),
        })
        .expect("valid")
    };
    let routes = [route(
        Vec::new(),
        vec![
            rule("service", rpc("a.B", "")),
            rule("call", rpc("a.B", "C")),
            rule("method", rpc("", "C")),
        ],
    )];
    assert_eq!(chosen(&routes, "/a.B/C", &[]), Some("call"));
    assert_eq!(chosen(&routes, "/a.B/D", &[]), Some("service"));
    assert_eq!(chosen(&routes, "/a.X/C", &[]), Some("method"));
    assert_eq!(chosen(&routes, "/a.X/D", &[]), None);
}

#[test]
fn refuses_bad_matches() {
    use http_route::path_match::Kind::*;
    for kind in [Exact("a".into()), Prefix("".into()), Regex("(".into())] {
        assert!(PathMatch::try_from(http_route::PathMatch { kind: Some(kind) }).is_err());
    }
    assert!(PathMatch::try_from(http_route::PathMatch { kind: None }).is_err());
    assert!(HostMatch::try_from(http_route::HostMatch { r#match: None }).is_err());
}

#[test]
fn a_rule_knows_the_prefix_that_matched() {
    use http_route::path_match::Kind::*;
    let rule = Rule {
        matches: vec![
            path(Prefix("/a".into())),
            path(Prefix("/a/b".into())),
            path(Exact("/a/b/c".into())),
        ],
        policy: (),
    };
    let prefix = |uri: &str| {
        rule.matched_prefix(&Request::builder().uri(uri).body(()).expect("valid"))
            .map(str::to_owned)
    };
    assert_eq!(prefix("/a/b/c").as_deref(), Some("/a/b"));
    assert_eq!(prefix("/a/x").as_deref(), Some("/a"));
    assert_eq!(prefix("/x"), None);
}

/// What rules see of a path has no dot segments and no empty ones but the last.
#[test]
fn fuzz_canonical_path() {
    bolero::check!().with_type::<String>().for_each(|text| {
        let path = format!("/{text}");
        let canonical = canonical_path(&path);
        if canonical != path {
            assert!(canonical.starts_with('/'), "{canonical}");
            let mut segments: Vec<_> = canonical.split('/').skip(1).collect();
            segments.pop();
            assert!(
                !segments.iter().any(|one| matches!(*one, "" | "." | "..")),
                "{canonical}"
            );
        }
    });
}
