//! Who may use a pod's port.

use heddle_control_core::{
    DefaultPolicy, NotFound,
    discover::{DiscoverInbound as _, WorkloadName},
    inbound::{
        Authorization, AuthorizationRef, Clients, IdentityMatch, InboundRoute, InboundServer, NetworkMatch,
        ProxyProtocol, RateLimit, RateLimitOverride, ServerRef,
    },
    route::HttpMatch,
};
use heddle_k8s::policy::{AuthorizationPolicy, HttpLocalRateLimitPolicy, MeshTLSAuthentication, Server};
use serde_json::Value;

use super::fixtures::*;
use crate::{Cluster, Config};

pub(super) const ALL: DefaultPolicy = DefaultPolicy::Allow {
    authenticated_only: false,
    cluster_only: false,
};

pub(super) fn default(policy: DefaultPolicy, networks: Vec<NetworkMatch>, clients: Clients) -> Authorization {
    Authorization {
        reference: AuthorizationRef::Default(policy),
        networks,
        clients,
    }
}

pub(super) fn by_policy(name: &str, networks: Vec<NetworkMatch>, clients: Clients) -> Authorization {
    Authorization {
        reference: AuthorizationRef::AuthorizationPolicy(name.into()),
        networks,
        clients,
    }
}

pub(super) fn exactly(name: &str) -> Clients {
    Clients::Tls(vec![IdentityMatch::Exact(name.into())])
}

pub(super) fn server(name: &str, more: Value) -> Server {
    let mut rest = j!({"spec": {"podSelector": {"matchLabels": {"app": "web-0"}}, "port": "http"}});
    merge(&mut rest, more);
    mk("ns", name, rest)
}

pub(super) fn policy(name: &str, target: Value, required: Value) -> AuthorizationPolicy {
    mk(
        "ns",
        name,
        j!({"spec": {"targetRef": target, "requiredAuthenticationRefs": required}}),
    )
}

pub(super) fn to_server(name: &str) -> Value {
    j!({"group": "policy.linkerd.io", "kind": "Server", "name": name})
}

pub(super) fn mesh_tls(name: &str) -> Value {
    j!([{"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": name}])
}

/// The seed's three objects, for the pod of `web()`.
pub(super) fn guarded() -> Cluster {
    let cluster = web();
    cluster.apply(&server("web", j!({})));
    cluster.apply(&policy("allow-checkout", to_server("web"), mesh_tls("checkout")));
    cluster.apply(&mk::<MeshTLSAuthentication>(
        "ns",
        "checkout",
        j!({"spec": {"identities": ["checkout.ns.serviceaccount.identity.linkerd.cluster.local"]}}),
    ));
    cluster
}

#[test]
fn without_a_server_the_default_policy_holds() {
    let cluster = web();
    let expected = InboundServer {
        reference: ServerRef::Default(ALL),
        protocol: ProxyProtocol::Detect {
            timeout: std::time::Duration::from_secs(10),
        },
        authorizations: vec![default(ALL, NetworkMatch::all(), Clients::Unauthenticated)],
        http_routes: vec![InboundRoute::default_for(HttpMatch::all())],
        grpc_routes: vec![],
        rate_limit: None,
        ips: vec!["10.1.0.1".parse().expect("an address")],
    };
    assert_eq!(*cluster.inbound_of("ns", "web-0", 8080), expected);
}

#[test]
fn each_default_policy_lets_in_whom_it_names() {
    let any = Clients::Tls(vec![IdentityMatch::Suffix(vec![])]);
    let inside: Vec<_> = Config::default()
        .cluster_networks
        .into_iter()
        .map(NetworkMatch::whole)
        .collect();
    for (name, expected) in [
        (
            "all-unauthenticated",
            Some((NetworkMatch::all(), Clients::Unauthenticated)),
        ),
        ("all-authenticated", Some((NetworkMatch::all(), any.clone()))),
        (
            "cluster-unauthenticated",
            Some((inside.clone(), Clients::Unauthenticated)),
        ),
        ("cluster-authenticated", Some((inside, any))),
        ("audit", Some((NetworkMatch::all(), Clients::Unauthenticated))),
        ("deny", None),
    ] {
        let policy: DefaultPolicy = name.parse().expect("a policy");
        let cluster = Cluster::new(Config {
            default_policy: policy,
            ..Config::default()
        });
        cluster.apply(&mk_pod("ns", "web-0", "10.1.0.1"));
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(networks, clients)| default(policy, networks, clients))
            .collect();
        assert_eq!(cluster.authorizations("ns", "web-0", 8080), expected, "{name}");
    }
}

#[test]
fn a_pods_annotation_comes_before_its_namespaces_and_that_before_the_default() {
    let cluster = web();
    let reference = || cluster.inbound_of("ns", "web-0", 8080).reference.clone();
    cluster.apply(&mk_namespace(
        "ns",
        j!({"config.linkerd.io/default-inbound-policy": "deny"}),
    ));
    assert_eq!(reference(), ServerRef::Default(DefaultPolicy::Deny));
    let mut pod = meshed();
    merge(
        &mut pod,
        j!({"metadata": {"annotations": {"config.linkerd.io/default-inbound-policy": "audit"}}}),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
    assert_eq!(reference(), ServerRef::Default(DefaultPolicy::Audit));
    cluster.apply(&mk_meshed_pod("ns", "web-0", "10.1.0.1"));
    cluster.apply(&mk_namespace(
        "ns",
        j!({"config.linkerd.io/default-inbound-policy": "anything"}),
    ));
    assert_eq!(
        reference(),
        ServerRef::Default(ALL),
        "a wrong annotation counts as absent"
    );
}

#[test]
fn opaque_ports_are_not_looked_into() {
    let cluster = web();
    assert_eq!(
        cluster.inbound_of("ns", "web-0", 3306).protocol,
        ProxyProtocol::Opaque
    );
    assert_eq!(cluster.inbound_of("ns", "web-0", 3306).http_routes, []);
}

#[test]
fn unknown_pods_are_not_found_and_deleted_ones_end_their_watch() {
    let cluster = web();
    let error = cluster
        .inbound(&WorkloadName::pod("ns", "nope"), 80)
        .expect_err("no such pod");
    assert_eq!(error, NotFound::Workload(WorkloadName::pod("ns", "nope")));
    let watch = cluster.watch_inbound("ns", "web-0", 8080);
    cluster.remove::<Pod>("ns", "web-0");
    assert!(watch.has_changed().is_err(), "closed");
}

#[test]
fn a_server_lets_in_nobody_but_whom_policies_name() {
    let cluster = web();
    cluster.apply(&server("web", j!({"spec": {"proxyProtocol": "HTTP/2"}})));
    let bare = cluster.inbound_of("ns", "web-0", 8080);
    assert_eq!(bare.reference, ServerRef::Server("web".into()));
    assert_eq!(bare.protocol, ProxyProtocol::Http2);
    assert_eq!(bare.authorizations, []);
    assert_eq!(
        guarded().authorizations("ns", "web-0", 8080),
        [by_policy(
            "allow-checkout",
            NetworkMatch::all(),
            exactly("checkout.ns.serviceaccount.identity.linkerd.cluster.local")
        )]
    );
}

#[test]
fn a_server_selects_by_label_and_by_port_number_or_name() {
    let cluster = web();
    let is_server = |port| {
        matches!(
            cluster.inbound_of("ns", "web-0", port).reference,
            ServerRef::Server(_)
        )
    };
    cluster.apply(&server("web", j!({"spec": {"port": 9090}})));
    assert!(is_server(9090) && !is_server(8080));
    cluster.apply(&server("web", j!({"spec": {"port": "http"}})));
    assert!(!is_server(9090) && is_server(8080));
    cluster.apply(&mk::<Server>(
        "ns",
        "web",
        j!({"spec": {"podSelector": {"matchLabels": {"app": "other"}}, "port": "http"}}),
    ));
    assert!(!is_server(8080));
    cluster.apply(&mk::<Server>(
        "ns",
        "web",
        j!({"spec": {"externalWorkloadSelector": {}, "port": "http"}}),
    ));
    assert!(!is_server(8080), "a Server for external workloads selects no pod");
}

#[test]
fn access_policy_is_added_to_what_policies_permit() {
    let cluster = guarded();
    let audit = DefaultPolicy::Audit;
    cluster.apply(&server("web", j!({"spec": {"accessPolicy": "audit"}})));
    let all = cluster.authorizations("ns", "web-0", 8080);
    assert_eq!(all.len(), 2);
    assert_eq!(
        all[1],
        default(audit, NetworkMatch::all(), Clients::Unauthenticated)
    );
}

#[test]
fn of_overlapping_servers_the_oldest_then_the_first_by_name_holds() {
    let cluster = web();
    let name = || cluster.inbound_of("ns", "web-0", 8080).reference.clone();
    cluster.apply(&server("b", j!({})));
    cluster.apply(&server("c", j!({})));
    assert_eq!(name(), ServerRef::Server("b".into()));
    cluster.apply(&server(
        "d",
        j!({"metadata": {"creationTimestamp": "2025-01-01T00:00:00Z"}}),
    ));
    assert_eq!(name(), ServerRef::Server("d".into()));
}

/// Linkerd's bug 15243.
#[test]
fn a_server_does_not_leak_into_other_namespaces() {
    let cluster = web();
    cluster.apply(&mk_pod_with("other", "web-0", "10.1.0.9", j!({})));
    let mut watch = cluster.watch_inbound("other", "web-0", 8080);
    cluster.apply(&server("web", j!({})));
    cluster.apply(&policy("open", j!({"kind": "Namespace", "name": "ns"}), j!([])));
    assert!(!watch.has_changed().expect("open"));
    assert_eq!(watch.borrow_and_update().reference, ServerRef::Default(ALL));
}

/// Linkerd's bug 15548.
#[test]
fn deleting_a_mesh_tls_authentication_revokes_on_an_open_watch() {
    let cluster = guarded();
    let mut watch = cluster.watch_inbound("ns", "web-0", 8080);
    assert_eq!(watch.borrow_and_update().authorizations.len(), 1);
    cluster.remove::<MeshTLSAuthentication>("ns", "checkout");
    assert!(watch.has_changed().expect("open"));
    assert_eq!(watch.borrow_and_update().authorizations, []);
}

#[test]
fn an_open_watch_follows_policies_as_they_come_change_and_go() {
    let cluster = web();
    let mut watch = cluster.watch_inbound("ns", "web-0", 8080);
    cluster.apply(&server("web", j!({})));
    assert_eq!(watch.borrow_and_update().authorizations, []);
    cluster.apply(&policy("p", to_server("web"), mesh_tls("m")));
    assert!(
        !watch.has_changed().expect("open"),
        "what it requires does not exist yet"
    );
    cluster.apply(&mk::<MeshTLSAuthentication>(
        "ns",
        "m",
        j!({"spec": {"identities": ["*"]}}),
    ));
    assert_eq!(
        watch.borrow_and_update().authorizations,
        [by_policy(
            "p",
            NetworkMatch::all(),
            Clients::Tls(vec![IdentityMatch::Suffix(vec![])])
        )]
    );
    cluster.remove::<AuthorizationPolicy>("ns", "p");
    assert_eq!(watch.borrow_and_update().authorizations, []);
    cluster.remove::<Server>("ns", "web");
    assert_eq!(watch.borrow_and_update().reference, ServerRef::Default(ALL));
}

#[test]
fn the_oldest_rate_limit_of_a_server_holds() {
    let cluster = guarded();
    let limit = |name: &str, created: &str, total: u32| {
        mk::<HttpLocalRateLimitPolicy>(
            "ns",
            name,
            j!({
                "metadata": {"creationTimestamp": created},
                "spec": {
                    "targetRef": to_server("web"),
                    "total": {"requestsPerSecond": total},
                    "overrides": [{"requestsPerSecond": 5, "clientRefs": [{"kind": "ServiceAccount", "name": "a"}]}],
                },
            }),
        )
    };
    cluster.apply(&limit("young", "2026-02-01T00:00:00Z", 10));
    cluster.apply(&limit("old", "2026-01-01T00:00:00Z", 20));
    let expected = RateLimit {
        namespace: "ns".into(),
        name: "old".into(),
        total: Some(20),
        identity: None,
        overrides: vec![RateLimitOverride {
            requests_per_second: 5,
            clients: vec!["a.ns.serviceaccount.identity.linkerd.cluster.local".into()],
        }],
    };
    assert_eq!(cluster.inbound_of("ns", "web-0", 8080).rate_limit, Some(expected));
    // The seed's: it limits nothing, and says nothing of a Server.
    cluster.apply(&mk::<HttpLocalRateLimitPolicy>(
        "ns",
        "payments-retry",
        j!({"spec": {}}),
    ));
}

#[test]
fn ports_that_require_identity_let_nobody_else_in_whatever_the_default() {
    let cluster = web();
    let reference = |policy: &str, port| {
        let annotations = j!({
            "config.linkerd.io/default-inbound-policy": policy,
            "config.linkerd.io/proxy-require-identity-inbound-ports": "8080,9000-9001",
        });
        let mut pod = meshed();
        merge(&mut pod, j!({"metadata": {"annotations": annotations}}));
        cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
        match cluster.inbound_of("ns", "web-0", port).reference {
            ServerRef::Default(policy) => policy.name(),
            ServerRef::Server(_) => panic!("there is no Server"),
        }
    };
    for (policy, expected) in [
        ("all-unauthenticated", "all-authenticated"),
        ("all-authenticated", "all-authenticated"),
        ("cluster-unauthenticated", "cluster-authenticated"),
        ("cluster-authenticated", "cluster-authenticated"),
        // Else to audit a mesh would open what its workloads close.
        ("audit", "all-authenticated"),
        ("deny", "deny"),
    ] {
        assert_eq!(reference(policy, 8080), expected);
        assert_eq!(reference(policy, 9001), expected);
        assert_eq!(reference(policy, 9002), policy, "another port");
    }
    cluster.apply(&mk_meshed_pod("ns", "web-0", "10.1.0.1"));
    cluster.apply(&mk_namespace(
        "ns",
        j!({"config.linkerd.io/proxy-require-identity-inbound-ports": "8080"}),
    ));
    let inherited = cluster.inbound_of("ns", "web-0", 8080).reference.clone();
    assert_eq!(
        inherited,
        ServerRef::Default("all-authenticated".parse().expect("a policy"))
    );
}

#[test]
fn each_protocol_of_a_server_is_told() {
    let cluster = web();
    let detect = ProxyProtocol::Detect {
        timeout: std::time::Duration::from_secs(10),
    };
    for (written, told, routes) in [
        ("unknown", detect, 1),
        ("HTTP/1", ProxyProtocol::Http1, 1),
        ("HTTP/2", ProxyProtocol::Http2, 1),
        ("gRPC", ProxyProtocol::Grpc, 0),
        ("opaque", ProxyProtocol::Opaque, 0),
        ("TLS", ProxyProtocol::Tls, 0),
    ] {
        cluster.apply(&server("web", j!({"spec": {"proxyProtocol": written}})));
        let policy = cluster.inbound_of("ns", "web-0", 8080);
        assert_eq!(policy.protocol, told, "{written}");
        assert_eq!(policy.http_routes.len(), routes, "{written}");
        assert_eq!(
            policy.grpc_routes.len(),
            usize::from(written == "gRPC"),
            "{written}"
        );
    }
}
