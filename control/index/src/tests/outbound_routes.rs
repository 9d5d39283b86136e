//! Routes of every kind at Services and EgressNetworks, and what the extension carries.

use std::time::Duration;

use gateway_api::apis::experimental::{
    grpcroutes::GrpcRoute, httproutes::HttpRoute, tcproutes::TcpRoute, tlsroutes::TlsRoute,
};
use heddle_control_core::{
    Meta,
    balance::{Affinity, Carrier, HashKey, Persistence},
    outbound::{
        Backend, BackendTarget, Distribution, Mirror, OpaqueRoute, OutboundPolicy, OutboundProtocol,
        OutboundRoute, OutboundRule, Timeouts,
    },
    route::{Filter, GrpcMatch, HostMatch, HttpMatch, PathModifier, Redirect, Rewrite},
};
use heddle_k8s::policy::EgressNetwork;
use serde_json::Value;

use super::fixtures::*;
use crate::{Cluster, Config, TlsRouteV1Alpha2};

fn attached(to: &str, rest: Value) -> Value {
    let group = if to == "Service" {
        "core"
    } else {
        "policy.linkerd.io"
    };
    let name = if to == "Service" { "web" } else { "all" };
    let mut route = j!({"spec": {"parentRefs": [{"group": group, "kind": to, "namespace": "ns", "name": name, "port": 80}], "rules": [{"backendRefs": []}]}});
    merge(&mut route, rest);
    route
}

fn to_service(rest: Value) -> Value {
    attached("Service", rest)
}

fn policy(cluster: &Cluster) -> OutboundPolicy {
    (*cluster.outbound_of("client", addr("10.96.0.1:80"))).clone()
}

fn name(meta: &Meta) -> &str {
    match meta {
        Meta::Default(name) => name,
        Meta::Resource(resource) => &resource.name,
    }
}

fn http_rule(cluster: &Cluster) -> OutboundRule<HttpMatch> {
    match policy(cluster).protocol {
        OutboundProtocol::Detect { http, .. } => http.routes[0].rules[0].clone(),
        other => panic!("detected: {other:?}"),
    }
}

fn grpc_routes(policy: OutboundPolicy) -> Vec<OutboundRoute<GrpcMatch>> {
    match policy.protocol {
        OutboundProtocol::Grpc(routes) => routes.routes,
        other => panic!("gRPC: {other:?}"),
    }
}

fn opaque_routes(policy: &OutboundPolicy) -> &[OpaqueRoute] {
    match &policy.protocol {
        OutboundProtocol::Opaque(routes) => routes,
        other => panic!("opaque: {other:?}"),
    }
}

fn first(distribution: &Distribution) -> Backend {
    distribution.backends().next().expect("never empty").clone()
}

fn kind(policy: &OutboundPolicy) -> &'static str {
    match policy.protocol {
        OutboundProtocol::Detect { .. } => "detect",
        OutboundProtocol::Http1(_) => "http1",
        OutboundProtocol::Http2(_) => "http2",
        OutboundProtocol::Grpc(_) => "grpc",
        OutboundProtocol::Tls(_) => "tls",
        OutboundProtocol::Opaque(_) => "opaque",
    }
}

// The kinds of routes.

#[test]
fn the_most_specific_kind_of_route_decides_what_is_spoken() {
    let cluster = web();
    assert_eq!(kind(&policy(&cluster)), "detect");
    cluster.apply(&mk::<TcpRoute>("ns", "tcp", to_service(j!({}))));
    assert_eq!(kind(&policy(&cluster)), "opaque");
    cluster.apply(&mk::<TlsRoute>(
        "ns",
        "tls",
        to_service(j!({"spec": {"hostnames": ["web"]}})),
    ));
    assert_eq!(kind(&policy(&cluster)), "tls");
    cluster.apply(&mk::<HttpRoute>("ns", "http", to_service(j!({}))));
    assert_eq!(kind(&policy(&cluster)), "detect");
    cluster.apply(&mk::<GrpcRoute>("ns", "grpc", to_service(j!({}))));
    assert_eq!(kind(&policy(&cluster)), "grpc");
    cluster.remove::<GrpcRoute>("ns", "grpc");
    assert_eq!(kind(&policy(&cluster)), "detect");
}

#[test]
fn tls_routes_are_chosen_by_server_name() {
    let cluster = web();
    cluster.apply(&mk_service("ns", "canary", "10.96.0.9"));
    let spec = j!({"spec": {"hostnames": ["a.example.com", "*.b.example.com"], "rules": [{"backendRefs": [
        {"name": "canary", "port": 80, "weight": 1}, {"name": "gone", "port": 80, "weight": 2},
    ]}]}});
    cluster.apply(&mk::<TlsRoute>("ns", "tls", to_service(spec)));
    let OutboundProtocol::Tls(routes) = policy(&cluster).protocol else {
        panic!("TLS")
    };
    assert_eq!(routes.len(), 1, "nothing is for other names");
    let suffix = ["com", "example", "b"].map(str::to_owned).to_vec();
    assert_eq!(
        routes[0].snis,
        [
            HostMatch::Exact("a.example.com".into()),
            HostMatch::Suffix(suffix)
        ]
    );
    let Distribution::Weighted(backends) = &routes[0].route.backends else {
        panic!("weighted")
    };
    assert_eq!(
        backends.iter().map(|(_, weight)| *weight).collect::<Vec<_>>(),
        [1, 2]
    );
    assert_eq!(backends[0].0.filters, []);
    assert!(
        matches!(backends[1].0.filters.as_slice(), [Filter::Fail { .. }]),
        "it does not exist"
    );
}

#[test]
fn tls_routes_of_older_clusters_are_the_same() {
    let cluster = web();
    let route = to_service(j!({"spec": {"hostnames": ["web"]}}));
    cluster.apply(&mk::<TlsRouteV1Alpha2>("ns", "tls", route.clone()));
    assert_eq!(kind(&policy(&cluster)), "tls");
    cluster.apply(&mk::<TlsRoute>("ns", "tls", route));
    let OutboundProtocol::Tls(routes) = policy(&cluster).protocol else {
        panic!("TLS")
    };
    assert_eq!(routes.len(), 1, "both versions are one object");
    cluster.remove::<TlsRoute>("ns", "tls");
    cluster.remove::<TlsRouteV1Alpha2>("ns", "tls");
    assert_eq!(kind(&policy(&cluster)), "detect");
}

#[test]
fn tcp_routes_hold_on_opaque_ports_too() {
    let cluster = web();
    cluster.apply(&mk_service("ns", "canary", "10.96.0.9"));
    let route = to_service(j!({"spec": {"rules": [{"backendRefs": [{"name": "canary", "port": 80}]}]}}));
    cluster.apply(&mk::<TcpRoute>("ns", "tcp", route));
    for more in [
        j!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": "80"}}}),
        j!({"spec": {"ports": [{"name": "http", "port": 80, "appProtocol": "linkerd.io/tcp"}]}}),
        j!({}),
    ] {
        cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", more));
        let policy = policy(&cluster);
        let routes = opaque_routes(&policy);
        assert_eq!(routes.len(), 1);
        assert_eq!(name(&routes[0].meta), "tcp");
        assert_eq!(
            first(&routes[0].backends).target,
            BackendTarget::Balance("canary.ns.svc.cluster.local:80".into())
        );
    }
}

#[test]
fn an_application_protocol_comes_before_opaque_ports() {
    let cluster = web();
    let more = j!({
        "metadata": {"annotations": {"config.linkerd.io/opaque-ports": "80"}},
        "spec": {"ports": [{"name": "http", "port": 80, "appProtocol": "http"}]},
    });
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", more));
    assert_eq!(kind(&policy(&cluster)), "http1");
}

#[test]
fn a_services_timeouts_yield_to_a_rules_own() {
    let cluster = web();
    let more = j!({"metadata": {"annotations": {"timeout.linkerd.io/response": "3s", "retry.linkerd.io/http": "5xx"}}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", more));
    cluster.apply(&mk::<HttpRoute>("ns", "r", to_service(j!({}))));
    assert_eq!(
        http_rule(&cluster).timeouts.response,
        Some(Duration::from_secs(3))
    );
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        to_service(j!({"spec": {"rules": [{"timeouts": {"request": "10s"}}]}})),
    ));
    let rule = http_rule(&cluster);
    let own = Timeouts {
        request: Some(Duration::from_secs(10)),
        ..Timeouts::default()
    };
    assert_eq!(rule.timeouts, own);
    assert!(rule.retry.is_some(), "of retries the rule says nothing");
}

// Filters.

#[test]
fn redirects_change_paths_and_rewrites_change_urls() {
    let cluster = web();
    let filters = j!([
        {"type": "RequestRedirect", "requestRedirect": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/new"}}},
        {"type": "URLRewrite", "urlRewrite": {"hostname": "example.com", "path": {"type": "ReplaceFullPath", "replaceFullPath": "/all"}}},
    ]);
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        to_service(j!({"spec": {"rules": [{"filters": filters}]}})),
    ));
    let expected = [
        Filter::Redirect(Redirect {
            path: Some(PathModifier::Prefix("/new".into())),
            ..Redirect::default()
        }),
        Filter::Rewrite(Rewrite {
            host: Some("example.com".into()),
            path: Some(PathModifier::Full("/all".into())),
        }),
    ];
    assert_eq!(http_rule(&cluster).filters, expected);
}

#[test]
fn requests_are_mirrored_to_services_that_exist() {
    let cluster = web();
    cluster.apply(&mk_service("ns", "shadow", "10.96.0.9"));
    let mirror = |name: &str, more: Value| {
        let mut spec = j!({"backendRef": {"name": name, "port": 80}});
        merge(&mut spec, more);
        j!({"type": "RequestMirror", "requestMirror": spec})
    };
    let filters = j!([
        mirror("shadow", j!({})),
        mirror("shadow", j!({"percent": 10})),
        mirror("shadow", j!({"fraction": {"numerator": 1, "denominator": 3}})),
        mirror("shadow", j!({"percent": 0})),
        mirror("gone", j!({})),
    ]);
    let backend = j!({"name": "web", "port": 80, "filters": [mirror("shadow", j!({}))]});
    let rule = j!({"filters": filters, "backendRefs": [backend]});
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        to_service(j!({"spec": {"rules": [rule]}})),
    ));
    let rule = http_rule(&cluster);
    let shares: Vec<_> = rule.mirrors.iter().map(|mirror: &Mirror| mirror.share).collect();
    assert_eq!(
        shares,
        [(1, 1), (10, 100), (1, 3)],
        "to nowhere nothing is mirrored"
    );
    let shadow = BackendTarget::Balance("shadow.ns.svc.cluster.local:80".into());
    assert!(rule.mirrors.iter().all(|mirror| mirror.backend.target == shadow));
    assert_eq!(first(&rule.backends).mirrors.len(), 1);
}

#[test]
fn grpc_methods_match_by_expression_when_all_of_it_is_one() {
    let cluster = web();
    let matches = |method: Value| to_service(j!({"spec": {"rules": [{"matches": [{"method": method}]}]}}));
    let regex = j!({"type": "RegularExpression", "service": "a\\..*", "method": "Get.*"});
    cluster.apply(&mk::<GrpcRoute>("ns", "g", matches(regex)));
    let expected = GrpcMatch {
        service: Some("a\\..*".into()),
        method: Some("Get.*".into()),
        regex: true,
        headers: vec![],
    };
    assert_eq!(grpc_routes(policy(&cluster))[0].rules[0].matches, [expected]);
    cluster.apply(&mk::<GrpcRoute>(
        "ns",
        "g",
        matches(j!({"type": "RegularExpression", "method": "("})),
    ));
    assert_eq!(
        kind(&policy(&cluster)),
        "detect",
        "a route with a wrong expression is none"
    );
}

// Balancing.

#[test]
fn sessions_come_from_rules_and_from_services() {
    let cluster = web();
    let annotated = j!({"metadata": {"annotations": {
        "balancer.heddle.dev/session-affinity": "hash-source",
        "balancer.heddle.dev/max-connections": "7",
    }}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", annotated));
    let session = j!({"sessionName": "sid", "type": "Cookie", "idleTimeout": "10m", "absoluteTimeout": "1h", "cookieConfig": {"lifetimeType": "Permanent"}});
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        to_service(j!({"spec": {"rules": [{"sessionPersistence": session}]}})),
    ));
    let rule = http_rule(&cluster);
    let expected = Persistence {
        carrier: Carrier::Cookie,
        name: "sid".into(),
        idle_timeout: Some(Duration::from_secs(600)),
        absolute_timeout: Some(Duration::from_secs(3600)),
        permanent: true,
    };
    assert_eq!(rule.session, Some(expected));
    let backend = first(&rule.backends);
    assert_eq!(backend.affinity, Some(Affinity::Hash(HashKey::Source)));
    assert_eq!(backend.limits.connections, Some(7));
}

#[test]
fn limits_are_the_backends_and_load_bias_is_the_parents() {
    let cluster = web();
    let annotated = |key: &str, value: &str| j!({"metadata": {"annotations": {key: value}}});
    let parent = annotated("balancer.alpha.linkerd.io/penalize-failures", "true");
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", parent));
    let backend = annotated("balancer.heddle.dev/max-requests", "5");
    cluster.apply(&mk_service_with("ns", "canary", "10.96.0.9", backend));
    let split = j!({"spec": {"rules": [{"backendRefs": [{"name": "web", "port": 80}, {"name": "canary", "port": 80}]}]}});
    cluster.apply(&mk::<HttpRoute>("ns", "r", to_service(split)));
    let backends: Vec<_> = http_rule(&cluster).backends.backends().cloned().collect();
    assert!(backends.iter().all(|backend| backend.load_bias.is_some()));
    let requests: Vec<_> = backends.iter().map(|backend| backend.limits.requests).collect();
    assert_eq!(requests, [None, Some(5)]);
}

#[test]
fn request_headers_are_obeyed_when_the_mesh_allows_it() {
    for allowed in [false, true] {
        let cluster = Cluster::new(Config {
            allow_l5d_request_headers: allowed,
            ..Config::default()
        });
        cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
        assert_eq!(http_rule(&cluster).allow_l5d_request_headers, allowed);
    }
}

// EgressNetworks.

fn egress(namespace: &str, policy: &str, more: Value) -> EgressNetwork {
    let mut object = j!({"spec": {"trafficPolicy": policy}});
    merge(&mut object, more);
    mk(namespace, "all", object)
}

fn outside(cluster: &Cluster) -> OutboundPolicy {
    (*cluster.outbound_of("ns", addr("192.0.2.1:80"))).clone()
}

#[test]
fn what_no_route_of_an_egress_network_is_for_follows_its_policy() {
    let to_egress = |rest| attached("EgressNetwork", rest);
    for (traffic, denied) in [("Allow", false), ("Deny", true)] {
        let suffix = traffic.to_lowercase();
        let cluster = web();
        cluster.apply(&egress("ns", traffic, j!({})));
        let OutboundProtocol::Detect { http, opaque, .. } = outside(&cluster).protocol else {
            panic!("detected")
        };
        assert_eq!(name(&http.routes[0].meta), format!("http-egress-{suffix}"));
        assert_eq!(name(&opaque.meta), format!("tcp-egress-{suffix}"));
        assert_eq!(opaque.forbidden, denied);

        cluster.apply(&mk::<TcpRoute>("ns", "tcp", to_egress(j!({}))));
        let policy = outside(&cluster);
        let [route, rest] = opaque_routes(&policy) else {
            panic!("two routes")
        };
        assert_eq!((name(&route.meta), route.forbidden), ("tcp", false));
        assert_eq!(
            (name(&rest.meta).to_owned(), rest.forbidden),
            (format!("tcp-egress-{suffix}"), denied)
        );

        cluster.apply(&mk::<TlsRoute>(
            "ns",
            "tls",
            to_egress(j!({"spec": {"hostnames": ["a.example.com"]}})),
        ));
        let OutboundProtocol::Tls(routes) = outside(&cluster).protocol else {
            panic!("TLS")
        };
        let rest = routes.last().expect("two routes");
        assert_eq!((routes.len(), rest.snis.len()), (2, 0));
        assert_eq!(
            (name(&rest.route.meta).to_owned(), rest.route.forbidden),
            (format!("tls-egress-{suffix}"), denied)
        );

        cluster.apply(&mk::<GrpcRoute>("ns", "grpc", to_egress(j!({}))));
        let routes = grpc_routes(outside(&cluster));
        assert_eq!(name(&routes[1].meta), format!("grpc-egress-{suffix}"));
        assert_eq!(routes[1].rules[0].filters.len(), usize::from(denied));
    }
}

#[test]
fn an_egress_network_has_settings_of_its_own() {
    let cluster = web();
    let annotations = j!({"metadata": {"annotations": {
        "timeout.linkerd.io/request": "7s",
        "config.linkerd.io/opaque-ports": "443",
        "balancer.linkerd.io/failure-accrual": "consecutive",
    }}});
    cluster.apply(&egress("ns", "Allow", annotations));
    let OutboundProtocol::Detect { http, .. } = outside(&cluster).protocol else {
        panic!("detected")
    };
    assert_eq!(
        http.routes[0].rules[0].timeouts.request,
        Some(Duration::from_secs(7))
    );
    assert!(http.failure_accrual.is_some());
    assert_eq!(kind(&cluster.outbound_of("ns", addr("192.0.2.1:443"))), "opaque");
    assert_eq!(
        kind(&cluster.outbound_of("ns", addr("192.0.2.1:3306"))),
        "detect",
        "its own list replaces the default"
    );
}

#[test]
fn the_namespace_that_speaks_for_all_is_a_setting() {
    let cluster = Cluster::new(Config {
        global_egress_namespace: "egress".into(),
        ..Config::default()
    });
    cluster.apply(&egress("linkerd-egress", "Deny", j!({})));
    assert_eq!(name(&outside(&cluster).meta), "egress-fallback");
    cluster.apply(&egress("egress", "Deny", j!({})));
    assert_eq!(name(&outside(&cluster).meta), "all");
}

#[test]
fn an_egress_network_is_a_backend_of_its_own_routes_alone() {
    let cluster = web();
    cluster.apply(&egress("ns", "Allow", j!({})));
    let reference = |name: &str| j!({"spec": {"rules": [{"backendRefs": [{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": name}]}]}});
    let fails = |policy: OutboundPolicy| {
        let OutboundProtocol::Detect { http, .. } = policy.protocol else {
            panic!("detected")
        };
        !first(&http.routes[0].rules[0].backends).filters.is_empty()
    };
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        attached("EgressNetwork", reference("all")),
    ));
    assert!(!fails(outside(&cluster)));
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        attached("EgressNetwork", reference("other")),
    ));
    assert!(fails(outside(&cluster)), "there is no such network");
    cluster.apply(&mk::<HttpRoute>("ns", "r", to_service(reference("all"))));
    assert!(
        fails(policy(&cluster)),
        "a Service's requests do not leave the cluster"
    );
}
