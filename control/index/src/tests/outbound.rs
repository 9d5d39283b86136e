//! How clients reach services and the world outside.

use std::time::Duration;

use gateway_api::apis::experimental::{grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute};
use heddle_control_core::{
    Meta, NotFound, ResourceRef,
    discover::{DiscoverOutbound as _, Target},
    outbound::{
        Backend, BackendTarget, Distribution, FailureAccrual, HttpRoutes, OpaqueRoute, OutboundPolicy,
        OutboundProtocol, OutboundRoute, OutboundRule, RetryOn, Timeouts,
    },
    route::{Filter, HttpMatch},
};
use heddle_k8s::policy::{EgressNetwork, HttpRoute};
use serde_json::Value;

use super::fixtures::*;
use crate::Cluster;

fn backend(name: &str, port: u16) -> Backend {
    Backend::service(ResourceRef::service("ns", name, port), "cluster.local")
}

fn http(cluster: &Cluster, client: &str) -> HttpRoutes {
    match &cluster.outbound_of(client, addr("10.96.0.1:80")).protocol {
        OutboundProtocol::Detect { http, .. } => http.clone(),
        other => panic!("detected: {other:?}"),
    }
}

fn route_names(cluster: &Cluster, client: &str) -> Vec<String> {
    let name = |route: &OutboundRoute<HttpMatch>| match &route.meta {
        Meta::Default(name) => (*name).to_owned(),
        Meta::Resource(resource) => resource.name.clone(),
    };
    http(cluster, client).routes.iter().map(name).collect()
}

fn route(namespace: &str, name: &str, more: Value) -> HttpRoute {
    let mut rest = j!({"spec": {
        "parentRefs": [{"group": "core", "kind": "Service", "namespace": "ns", "name": "web", "port": 80}],
        "rules": [{}],
    }});
    merge(&mut rest, more);
    mk(namespace, name, rest)
}

#[test]
fn a_service_without_routes_has_one_for_everything() {
    let rule = OutboundRule {
        matches: vec![HttpMatch::all()],
        filters: vec![],
        backends: Distribution::first(backend("web", 80)),
        timeouts: Timeouts::default(),
        retry: None,
        mirrors: vec![],
        session: None,
        allow_l5d_request_headers: false,
    };
    let expected = OutboundPolicy {
        meta: Meta::Resource(ResourceRef::service("ns", "web", 80)),
        protocol: OutboundProtocol::Detect {
            timeout: Duration::from_secs(10),
            http: HttpRoutes {
                routes: vec![OutboundRoute {
                    meta: Meta::Default("http"),
                    hosts: vec![],
                    rules: vec![rule],
                }],
                failure_accrual: None,
            },
            opaque: OpaqueRoute {
                meta: Meta::Default("opaq"),
                backends: Distribution::first(backend("web", 80)),
                forbidden: false,
            },
        },
    };
    let cluster = web();
    assert_eq!(*cluster.outbound_of("client", addr("10.96.0.1:80")), expected);
    assert_eq!(
        *cluster.outbound_of("client", Target::Service(target("ns", "web", 80))),
        expected,
        "by name"
    );
}

#[test]
fn addresses_in_the_cluster_that_are_no_services_are_not_found() {
    let cluster = web();
    let error = cluster
        .outbound("client", &addr("10.1.0.1:8080"))
        .expect_err("a pod's");
    assert_eq!(error, NotFound::Address("10.1.0.1".parse().expect("an address")));
    let missing = cluster
        .outbound("client", &Target::Service(target("ns", "nope", 80)))
        .expect_err("no such service");
    assert_eq!(
        missing,
        NotFound::Service {
            namespace: "ns".into(),
            name: "nope".into()
        }
    );
}

#[test]
fn addresses_outside_the_cluster_are_forwarded_to() {
    let policy = web().outbound_of("client", addr("192.0.2.1:443"));
    assert_eq!(policy.meta, Meta::Default("egress-fallback"));
    let OutboundProtocol::Detect { http, opaque, .. } = &policy.protocol else {
        panic!("detected: {policy:?}")
    };
    let forward = BackendTarget::Forward(socket("192.0.2.1:443"));
    for distribution in [&http.routes[0].rules[0].backends, &opaque.backends] {
        assert_eq!(
            distribution
                .backends()
                .map(|backend| backend.target.clone())
                .collect::<Vec<_>>(),
            std::slice::from_ref(&forward)
        );
    }
}

#[test]
fn a_port_that_the_service_does_not_declare_is_forbidden() {
    let policy = web().outbound_of("client", addr("10.96.0.1:81"));
    assert!(
        matches!(&policy.protocol, OutboundProtocol::Opaque(routes) if routes[0].forbidden),
        "{policy:?}"
    );
}

#[test]
fn application_protocols_decide_what_is_spoken() {
    let cluster = web();
    for (app_protocol, expected) in [
        (j!("http"), "Http1"),
        (j!("kubernetes.io/h2c"), "Http2"),
        (j!("linkerd.io/opaque"), "Opaque"),
        (j!("linkerd.io/tcp"), "Opaque"),
        (j!("https"), "Opaque"),
        (Value::Null, "Detect"),
    ] {
        let port = j!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080, "appProtocol": app_protocol}]}});
        cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", port));
        let policy = cluster.outbound_of("client", addr("10.96.0.1:80"));
        let spoken = format!("{:?}", policy.protocol);
        assert!(spoken.starts_with(expected), "{app_protocol}: {spoken}");
    }
    let opaque = j!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": "80"}}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", opaque));
    let policy = cluster.outbound_of("client", addr("10.96.0.1:80"));
    assert!(
        matches!(&policy.protocol, OutboundProtocol::Opaque(routes) if !routes[0].forbidden),
        "{policy:?}"
    );
}

#[test]
fn the_seeds_canary_splits_by_weight() {
    let cluster = web();
    cluster.apply(&mk_service("ns", "web-stable", "10.96.0.2"));
    cluster.apply(&mk_service("ns", "web-canary", "10.96.0.3"));
    cluster.apply(&mk::<GatewayHttpRoute>(
        "ns",
        "canary",
        j!({"spec": {
            "parentRefs": [{"name": "web", "kind": "Service", "group": "core", "port": 80}],
            "rules": [{"backendRefs": [
                {"name": "web-stable", "port": 80, "weight": 90},
                {"name": "web-canary", "port": 80, "weight": 10},
                {"name": "web", "port": 80, "weight": 0},
            ]}],
        }}),
    ));
    let expected = Distribution::Weighted(vec![
        (backend("web-stable", 80), 90),
        (backend("web-canary", 80), 10),
    ]);
    assert_eq!(http(&cluster, "client").routes[0].rules[0].backends, expected);
}

#[test]
fn backends_that_cannot_be_reached_answer_with_an_error() {
    let cluster = web();
    let failure = |reference: Value| {
        cluster.apply(&route(
            "ns",
            "r",
            j!({"spec": {"rules": [{"backendRefs": [reference]}]}}),
        ));
        let routes = http(&cluster, "client");
        let backend = routes.routes[0].rules[0]
            .backends
            .backends()
            .next()
            .expect("one backend")
            .clone();
        matches!(backend.filters.as_slice(), [Filter::Fail { status: 500, .. }])
    };
    assert!(failure(j!({"name": "nope", "port": 80})), "no such service");
    assert!(failure(j!({"name": "web", "port": 81})), "no such port");
    assert!(
        failure(j!({"name": "web", "port": 80, "weight": 0})),
        "no weight at all"
    );
    assert!(
        failure(j!({"name": "web", "port": 80, "kind": "EgressNetwork", "group": "policy.linkerd.io"})),
        "no service"
    );
    assert!(!failure(j!({"name": "web", "port": 80})));
}

#[test]
fn an_open_watch_follows_a_backends_service() {
    let cluster = web();
    cluster.apply(&route(
        "ns",
        "r",
        j!({"spec": {"rules": [{"backendRefs": [{"name": "late", "port": 80}]}]}}),
    ));
    let mut watch = cluster
        .outbound("client", &addr("10.96.0.1:80"))
        .expect("the service is there");
    watch.mark_unchanged();
    cluster.apply(&mk_service("ns", "late", "10.96.0.7"));
    assert!(watch.has_changed().expect("open"));
    watch.mark_unchanged();
    cluster.remove::<Service>("ns", "web");
    assert!(
        watch.has_changed().is_err(),
        "closed: the proxy asks anew and is told that the service is gone"
    );
}

#[test]
fn a_clients_own_routes_come_before_the_services() {
    let cluster = web();
    assert_eq!(route_names(&cluster, "client"), ["http"]);
    cluster.apply(&route("ns", "producer", j!({})));
    cluster.apply(&route("client", "consumer", j!({})));
    assert_eq!(route_names(&cluster, "client"), ["consumer", "producer"]);
    assert_eq!(route_names(&cluster, "other"), ["producer"]);
    assert_eq!(route_names(&cluster, "ns"), ["producer"]);
}

#[test]
fn routes_are_for_their_port_and_in_order_of_age_and_name() {
    let cluster = web();
    cluster.apply(&route("ns", "b", j!({})));
    cluster.apply(&route("ns", "a", j!({})));
    cluster.apply(&route(
        "ns",
        "old",
        j!({"metadata": {"creationTimestamp": "2020-01-01T00:00:00Z"}}),
    ));
    cluster.apply(&route(
        "ns",
        "other-port",
        j!({"spec": {"parentRefs": [{"group": "core", "kind": "Service", "name": "web", "port": 81}]}}),
    ));
    cluster.apply(&route(
        "ns",
        "any-port",
        j!({"spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "web"}]}}),
    ));
    assert_eq!(route_names(&cluster, "client"), ["old", "a", "any-port", "b"]);
}

#[test]
fn a_grpc_route_makes_the_service_grpc() {
    let cluster = web();
    cluster.apply(&mk::<GrpcRoute>(
        "ns",
        "g",
        j!({
            "metadata": {"annotations": {"retry.linkerd.io/grpc": "unavailable"}},
            "spec": {"parentRefs": [{"group": "core", "kind": "Service", "name": "web"}]},
        }),
    ));
    let policy = cluster.outbound_of("client", addr("10.96.0.1:80"));
    let OutboundProtocol::Grpc(routes) = &policy.protocol else {
        panic!("gRPC: {policy:?}")
    };
    assert!(
        matches!(routes.routes[0].rules[0].retry.as_ref().expect("a retry").on, RetryOn::Grpc(on) if on.unavailable)
    );
}

#[test]
fn timeouts_and_retries_come_from_route_annotations_or_else_the_services() {
    let cluster = web();
    let annotated = j!({"metadata": {"annotations": {
        "retry.linkerd.io/http": "5xx",
        "retry.linkerd.io/limit": "2",
        "timeout.linkerd.io/response": "3s",
        "balancer.linkerd.io/failure-accrual": "consecutive",
    }}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", annotated));
    cluster.apply(&route(
        "ns",
        "r",
        j!({"spec": {"rules": [{"timeouts": {"request": "10s", "backendRequest": "5s"}}]}}),
    ));
    let routes = http(&cluster, "client");
    assert!(matches!(
        routes.failure_accrual,
        Some(FailureAccrual {
            max_failures: 7,
            success_rate: None,
            ..
        })
    ));
    let rule = &routes.routes[0].rules[0];
    let timeouts = Timeouts {
        request: Some(Duration::from_secs(10)),
        ..Timeouts::default()
    };
    assert_eq!(rule.timeouts, timeouts);
    assert_eq!(rule.retry.as_ref().expect("a retry").limit, 2);
    cluster.apply(&route(
        "ns",
        "r",
        j!({
            "metadata": {"annotations": {"timeout.linkerd.io/request": "1s"}},
            "spec": {"rules": [{"timeouts": {"request": "10s"}}]},
        }),
    ));
    let rule = http(&cluster, "client").routes[0].rules[0].clone();
    assert_eq!(
        rule.timeouts,
        Timeouts {
            request: Some(Duration::from_secs(1)),
            ..Timeouts::default()
        },
        "the route's annotation replaces all of the service's"
    );
    assert_eq!(rule.retry, None);
}

#[test]
fn a_headless_service_is_reached_on_any_port_by_name() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "db", "None"));
    let policy = cluster.outbound_of("client", Target::Service(target("ns", "db", 5000)));
    assert!(
        matches!(policy.protocol, OutboundProtocol::Detect { .. }),
        "{policy:?}"
    );
}

fn egress(namespace: &str, name: &str, policy: &str, networks: Value) -> EgressNetwork {
    mk(
        namespace,
        name,
        j!({"spec": {"trafficPolicy": policy, "networks": networks}}),
    )
}

/// The EgressNetwork's name, and whether opaque connections and plain requests get through.
fn outside(cluster: &Cluster, client: &str, to: &str) -> (String, bool, bool) {
    let policy = cluster.outbound_of(client, addr(to));
    let name = match &policy.meta {
        Meta::Default(name) => (*name).to_owned(),
        Meta::Resource(resource) => format!("{}/{}", resource.namespace, resource.name),
    };
    let OutboundProtocol::Detect { http, opaque, .. } = &policy.protocol else {
        panic!("detected: {policy:?}")
    };
    let last = &http.routes.last().expect("a route").rules[0];
    (
        name,
        !opaque.forbidden,
        !last
            .filters
            .iter()
            .any(|filter| matches!(filter, Filter::Fail { status: 403, .. })),
    )
}

#[test]
fn egress_networks_decide_by_namespace_and_then_by_the_smallest_network() {
    let cluster = web();
    cluster.apply(&egress("linkerd-egress", "all", "Deny", Value::Null));
    assert_eq!(
        outside(&cluster, "client", "192.0.2.1:443"),
        ("linkerd-egress/all".into(), false, false)
    );
    cluster.apply(&egress("client", "wide", "Deny", j!([{"cidr": "192.0.0.0/16"}])));
    cluster.apply(&egress(
        "client",
        "narrow",
        "Allow",
        j!([{"cidr": "192.0.2.0/24", "except": ["192.0.2.9/32"]}]),
    ));
    assert_eq!(
        outside(&cluster, "client", "192.0.2.1:443"),
        ("client/narrow".into(), true, true)
    );
    assert_eq!(
        outside(&cluster, "client", "192.0.2.9:443"),
        ("client/wide".into(), false, false)
    );
    assert_eq!(
        outside(&cluster, "client", "198.51.100.1:443").0,
        "linkerd-egress/all"
    );
    assert_eq!(
        outside(&cluster, "other", "192.0.2.1:443").0,
        "linkerd-egress/all"
    );
    cluster.apply(&egress("client", "narrow", "Allow", j!([{"cidr": "nonsense"}])));
    assert_eq!(
        outside(&cluster, "client", "192.0.2.1:443").0,
        "client/wide",
        "networks that cannot be read are none"
    );
}

#[test]
fn routes_of_a_denying_egress_network_are_its_exceptions() {
    let cluster = web();
    cluster.apply(&egress("client", "all", "Deny", Value::Null));
    cluster.apply(&mk::<HttpRoute>("client", "allow-api", j!({"spec": {
        "parentRefs": [{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "all", "port": 80}],
        "hostnames": ["api.example.com"],
        "rules": [{"backendRefs": [{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "all"}]}],
    }})));
    let policy = cluster.outbound_of("client", addr("192.0.2.1:80"));
    let OutboundProtocol::Detect { http, .. } = &policy.protocol else {
        panic!("detected: {policy:?}")
    };
    assert_eq!(http.routes.len(), 2);
    let backend = http.routes[0].rules[0]
        .backends
        .backends()
        .next()
        .expect("a backend");
    assert_eq!(
        (backend.target.clone(), backend.filters.len()),
        (BackendTarget::Forward(socket("192.0.2.1:80")), 0)
    );
    assert_eq!(
        outside(&cluster, "client", "192.0.2.1:80"),
        ("client/all".into(), false, false),
        "all else is denied"
    );
    assert_eq!(
        outside(&cluster, "client", "192.0.2.1:81"),
        ("client/all".into(), false, false),
        "another port"
    );
}
