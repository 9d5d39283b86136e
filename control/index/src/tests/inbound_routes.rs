//! Routes of a Server, and the kubelet's probes.

use gateway_api::apis::experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute};
use heddle_control_core::{
    Meta, ResourceRef,
    inbound::{AuthorizationRef, Clients, InboundServer, NetworkMatch, ProxyProtocol},
    route::{Filter, GrpcMatch, HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch},
};
use heddle_k8s::policy::{AuthorizationPolicy, HttpRoute, Server};
use serde_json::Value;

use super::fixtures::*;
use crate::Cluster;

fn names(server: &InboundServer) -> Vec<String> {
    let name = |meta: &Meta| match meta {
        Meta::Default(name) => (*name).to_owned(),
        Meta::Resource(resource) => resource.name.clone(),
    };
    let http = server.http_routes.iter().map(|route| name(&route.meta));
    http.chain(server.grpc_routes.iter().map(|route| name(&route.meta)))
        .collect()
}

fn with_server(more: Value) -> Cluster {
    let cluster = web();
    let mut rest = j!({"spec": {"podSelector": {}, "port": "http"}});
    merge(&mut rest, more);
    cluster.apply(&mk::<Server>("ns", "web", rest));
    cluster
}

fn route(namespace: &str, name: &str, more: Value) -> HttpRoute {
    let mut rest = j!({"spec": {
        "parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}],
        "rules": [{"matches": [{"path": {"type": "Exact", "value": "/a"}}]}],
    }});
    merge(&mut rest, more);
    mk(namespace, name, rest)
}

#[test]
fn a_servers_routes_replace_the_default_one_in_order_of_age_and_name() {
    let cluster = with_server(j!({}));
    assert_eq!(names(&cluster.inbound_of("ns", "web-0", 8080)), ["default"]);
    cluster.apply(&route("ns", "b", j!({})));
    cluster.apply(&route("ns", "a", j!({})));
    cluster.apply(&route(
        "ns",
        "z",
        j!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}}),
    ));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    assert_eq!(names(&server), ["z", "a", "b"]);
    let expected = HttpMatch {
        path: Some(PathMatch::Exact("/a".into())),
        ..HttpMatch::default()
    };
    assert_eq!(server.http_routes[0].rules[0].matches, [expected]);
    assert_eq!(
        server.http_routes[0].meta,
        Meta::Resource(ResourceRef {
            group: "policy.linkerd.io",
            kind: "HTTPRoute",
            namespace: "ns".into(),
            name: "z".into(),
            section: String::new(),
            port: None,
        })
    );
}

#[test]
fn a_route_of_another_namespace_does_not_reach_a_server() {
    let cluster = with_server(j!({}));
    cluster.apply(&route("other", "r", j!({"spec": {"parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web", "namespace": "ns"}]}})));
    assert_eq!(names(&cluster.inbound_of("ns", "web-0", 8080)), ["default"]);
}

#[test]
fn gateway_routes_attach_to_servers_too() {
    let cluster = with_server(j!({}));
    cluster.apply(&mk::<GatewayHttpRoute>("ns", "gw", j!({"spec": {
        "parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}, {"name": "some-gateway"}],
    }})));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    assert_eq!(names(&server), ["gw"]);
    assert_eq!(server.http_routes[0].rules[0].matches, [HttpMatch::all()]);
}

#[test]
fn grpc_servers_have_grpc_routes() {
    let cluster = with_server(j!({"spec": {"proxyProtocol": "gRPC"}}));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    assert_eq!(
        (server.protocol, names(&server)),
        (ProxyProtocol::Grpc, vec!["default".to_owned()])
    );
    cluster.apply(&mk::<GrpcRoute>(
        "ns",
        "g",
        j!({"spec": {
            "parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}],
            "rules": [{"matches": [{"method": {"service": "a.B", "method": "C"}}]}],
        }}),
    ));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    let expected = GrpcMatch {
        service: Some("a.B".into()),
        method: Some("C".into()),
        regex: false,
        headers: vec![],
    };
    assert_eq!(server.grpc_routes[0].rules[0].matches, [expected]);
}

#[test]
fn a_policy_for_a_route_opens_that_route_alone() {
    let cluster = with_server(j!({}));
    cluster.apply(&route("ns", "a", j!({})));
    cluster.apply(&route("ns", "b", j!({})));
    let mut watch = cluster.watch_inbound("ns", "web-0", 8080);
    cluster.apply(&mk::<AuthorizationPolicy>(
        "ns",
        "open-a",
        j!({"spec": {
            "targetRef": {"group": "policy.linkerd.io", "kind": "HTTPRoute", "name": "a"},
            "requiredAuthenticationRefs": [],
        }}),
    ));
    let server = watch.borrow_and_update().clone();
    assert_eq!(server.authorizations, []);
    assert_eq!(server.http_routes[0].authorizations.len(), 1);
    assert_eq!(server.http_routes[1].authorizations, []);
}

#[test]
fn probes_pass_while_no_route_is_attached() {
    let cluster = with_server(j!({}));
    let mut pod = meshed();
    merge(
        &mut pod,
        j!({"spec": {"containers": [{
            "name": "app",
            "ports": [{"name": "http", "containerPort": 8080}],
            "livenessProbe": {"httpGet": {"path": "/live", "port": 8080}},
            "readinessProbe": {"httpGet": {"path": "/ready?full", "port": "http"}},
            "startupProbe": {"tcpSocket": {"port": 8080}},
        }]}}),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    assert_eq!(server.authorizations, [], "nobody else may connect");
    assert_eq!(names(&server), ["probe", "default"]);
    let probe = &server.http_routes[0];
    assert_eq!(probe.authorizations[0].reference, AuthorizationRef::Probe);
    assert_eq!(probe.authorizations[0].clients, Clients::Unauthenticated);
    assert_eq!(probe.authorizations[0].networks, NetworkMatch::all());
    let paths: Vec<_> = probe.rules[0]
        .matches
        .iter()
        .map(|m| m.path.clone().expect("a path"))
        .collect();
    assert_eq!(
        paths,
        [
            PathMatch::Exact("/live".into()),
            PathMatch::Exact("/ready".into())
        ]
    );
    assert!(
        probe.rules[0]
            .matches
            .iter()
            .all(|m| m.method == Some(http::Method::GET))
    );
    cluster.apply(&route("ns", "a", j!({})));
    assert_eq!(names(&cluster.inbound_of("ns", "web-0", 8080)), ["a"]);
}

/// Left out, it would open all paths to those who may use the Server.
#[test]
fn a_route_that_cannot_be_carried_out_fails_what_no_other_takes() {
    let cluster = with_server(j!({}));
    let bad = j!({"spec": {
        "parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}],
        "rules": [{}, {"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}],
    }});
    cluster.apply(&mk::<GatewayHttpRoute>("ns", "bad", bad));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    assert_eq!(names(&server), ["bad"]);
    let rule = &server.http_routes[0].rules[0];
    assert_eq!(rule.matches, [HttpMatch::all()]);
    assert!(
        matches!(rule.filters.as_slice(), [Filter::Fail { status: 500, .. }]),
        "{rule:?}"
    );
    cluster.remove::<GatewayHttpRoute>("ns", "bad");
    assert_eq!(names(&cluster.inbound_of("ns", "web-0", 8080)), ["default"]);
}

#[test]
fn probes_pass_beside_routes_only_where_the_server_asks_for_it() {
    let probed = || {
        let mut pod = meshed();
        merge(
            &mut pod,
            j!({"spec": {"containers": [{"name": "app", "livenessProbe": {"httpGet": {"path": "/live", "port": 8080}}}]}}),
        );
        mk_pod_with("ns", "web-0", "10.1.0.1", pod)
    };
    let by_number = |annotations: Value| {
        let more = j!({"metadata": {"annotations": annotations}, "spec": {"port": 8080}});
        let cluster = with_server(more);
        cluster.apply(&probed());
        cluster.apply(&route("ns", "a", j!({})));
        names(&cluster.inbound_of("ns", "web-0", 8080))
    };
    assert_eq!(by_number(j!({})), ["a"]);
    assert_eq!(
        by_number(j!({"heddle.dev/authorize-probes": "enabled"})),
        ["a", "probe"]
    );
}

#[test]
fn a_grpc_route_does_not_stand_in_the_way_of_a_servers_http_routes() {
    let cluster = with_server(j!({}));
    cluster.apply(&mk::<GrpcRoute>(
        "ns",
        "g",
        j!({"spec": {"parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}]}}),
    ));
    cluster.apply(&route("ns", "a", j!({})));
    assert_eq!(names(&cluster.inbound_of("ns", "web-0", 8080)), ["a", "g"]);
}

#[test]
fn routes_match_by_all_that_the_api_has() {
    let cluster = with_server(j!({}));
    let rules = j!({"spec": {
        "hostnames": ["a.example", "*.b.example"],
        "rules": [{"matches": [
            {"path": {"type": "PathPrefix", "value": "/p"}, "method": "POST"},
            {"path": {"type": "RegularExpression", "value": "/r.*"}},
            {"headers": [{"name": "X-A", "value": "1"}, {"type": "RegularExpression", "name": "x-b", "value": "b+"}]},
            {"queryParams": [{"name": "q", "value": "1"}, {"type": "RegularExpression", "name": "r", "value": "b+"}]},
        ], "filters": [
            {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "c.example", "port": 8443, "statusCode": 301}},
        ]}],
    }});
    cluster.apply(&route("ns", "a", rules));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    let (route, rule) = (&server.http_routes[0], &server.http_routes[0].rules[0]);
    assert_eq!(
        route.hosts,
        [
            HostMatch::Exact("a.example".into()),
            HostMatch::Suffix(vec!["example".into(), "b".into()])
        ]
    );
    let header = |name: &'static str| http::HeaderName::from_static(name);
    let expected = [
        HttpMatch {
            path: Some(PathMatch::Prefix("/p".into())),
            method: Some(http::Method::POST),
            ..HttpMatch::default()
        },
        HttpMatch {
            path: Some(PathMatch::Regex("/r.*".into())),
            ..HttpMatch::default()
        },
        HttpMatch {
            headers: vec![
                HeaderMatch::Exact(header("x-a"), http::HeaderValue::from_static("1")),
                HeaderMatch::Regex(header("x-b"), "b+".into()),
            ],
            ..HttpMatch::default()
        },
        HttpMatch {
            query: vec![
                QueryMatch::Exact("q".into(), "1".into()),
                QueryMatch::Regex("r".into(), "b+".into()),
            ],
            ..HttpMatch::default()
        },
    ];
    assert_eq!(rule.matches, expected);
    assert!(
        matches!(rule.filters.as_slice(), [Filter::Redirect(_)]),
        "{rule:?}"
    );
}

#[test]
fn policies_for_routes_of_each_kind_reach_the_one_they_name() {
    let to_server = j!([{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}]);
    let opened = |protocol: &str, group: &str, kind: &str| {
        let cluster = with_server(j!({"spec": {"proxyProtocol": protocol}}));
        let spec = || j!({"spec": {"parentRefs": to_server}});
        cluster.apply(&mk::<HttpRoute>("ns", "r", spec()));
        cluster.apply(&mk::<GatewayHttpRoute>("ns", "r", spec()));
        cluster.apply(&mk::<GrpcRoute>("ns", "r", spec()));
        cluster.apply(&mk::<AuthorizationPolicy>(
            "ns",
            "p",
            j!({"spec": {"targetRef": {"group": group, "kind": kind, "name": "r"}, "requiredAuthenticationRefs": []}}),
        ));
        let server = cluster.inbound_of("ns", "web-0", 8080);
        let open = |meta: &Meta, count: usize| match meta {
            Meta::Resource(route) if count == 1 => Some((route.group, route.kind)),
            _ => None,
        };
        let http = server
            .http_routes
            .iter()
            .filter_map(|r| open(&r.meta, r.authorizations.len()));
        let grpc = server
            .grpc_routes
            .iter()
            .filter_map(|r| open(&r.meta, r.authorizations.len()));
        http.chain(grpc).collect::<Vec<_>>()
    };
    let gateway = "gateway.networking.k8s.io";
    assert_eq!(
        opened("HTTP/1", "policy.linkerd.io", "HTTPRoute"),
        [("policy.linkerd.io", "HTTPRoute")]
    );
    assert_eq!(opened("HTTP/2", gateway, "HTTPRoute"), [(gateway, "HTTPRoute")]);
    assert_eq!(opened("gRPC", gateway, "GRPCRoute"), [(gateway, "GRPCRoute")]);
}

#[test]
fn inbound_routes_change_request_headers_but_not_responses() {
    let cluster = with_server(j!({}));
    let filters = j!({"spec": {"rules": [{"filters": [
        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "1"}]}},
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["y"]}},
    ]}]}});
    cluster.apply(&route("ns", "a", filters));
    let server = cluster.inbound_of("ns", "web-0", 8080);
    let filters = &server.http_routes[0].rules[0].filters;
    assert!(
        matches!(filters.as_slice(), [Filter::RequestHeaders(_)]),
        "{filters:?}"
    );
}
