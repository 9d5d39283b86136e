//! Routes of a Server, and the kubelet's probes.

use gateway_api::apis::standard::{grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute};
use heddle_control_core::{
    Meta, ResourceRef,
    inbound::{AuthorizationRef, Clients, InboundServer, NetworkMatch, ProxyProtocol},
    route::{Filter, GrpcMatch, HttpMatch, PathMatch},
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

#[test]
fn a_route_that_cannot_be_carried_out_is_left_out_whole() {
    let cluster = with_server(j!({}));
    let bad = j!({"spec": {
        "parentRefs": [{"group": "policy.linkerd.io", "kind": "Server", "name": "web"}],
        "rules": [{}, {"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}],
    }});
    cluster.apply(&mk::<GatewayHttpRoute>("ns", "bad", bad));
    assert_eq!(names(&cluster.inbound_of("ns", "web-0", 8080)), ["default"]);
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
