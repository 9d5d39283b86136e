//! External workloads: policies of their ports, and how clients meet them.

use std::sync::Arc;

use heddle_control_core::{
    DefaultPolicy, NotFound,
    discover::{DiscoverInbound as _, DiscoverProfiles as _, Watched, WorkloadName},
    endpoints::{ExternalIdentity, PeerIdentity, Protocol, ProtocolHint},
    inbound::{InboundServer, ProxyProtocol, ServerRef},
    profile::Profile,
};
use heddle_k8s::{
    external_workload::ExternalWorkload,
    policy::{HttpLocalRateLimitPolicy, HttpRoute, Server},
};
use serde_json::Value;

use super::fixtures::*;
use crate::Cluster;

const VM: &str = "192.0.2.7";

fn mk_workload(name: &str, ip: &str, more: Value) -> ExternalWorkload {
    let mut rest = j!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "meshTLS": {"identity": "spiffe://root.linkerd.cluster.local/vm", "serverName": "vm.mesh.local"},
            "ports": [{"name": "http", "port": 8080}],
            "workloadIPs": [{"ip": ip}],
        },
    });
    merge(&mut rest, more);
    mk("ns", name, rest)
}

fn server(more: Value) -> Server {
    let mut rest = j!({"spec": {"externalWorkloadSelector": {"matchLabels": {"app": "vm"}}, "port": "http"}});
    merge(&mut rest, more);
    mk("ns", "vm", rest)
}

/// A service `web` whose only endpoint is the external workload `vm`, which is there.
fn with_vm() -> Cluster {
    let cluster = without_vm();
    cluster.apply(&mk_workload("vm", VM, j!({})));
    cluster
}

fn without_vm() -> Cluster {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    let mut slice = mk_slice("ns", "web", &[("vm", VM)]);
    let target = slice.endpoints.as_mut().expect("endpoints")[0]
        .target_ref
        .as_mut();
    target.expect("a target").kind = Some("ExternalWorkload".into());
    cluster.apply(&slice);
    cluster
}

fn watch(cluster: &Cluster, port: u16) -> Watched<InboundServer> {
    cluster
        .inbound(&WorkloadName::external("ns", "vm"), port)
        .expect("the workload is there")
}

fn policy(cluster: &Cluster, port: u16) -> Arc<InboundServer> {
    watch(cluster, port).borrow().clone()
}

#[test]
fn a_port_has_the_default_policy_of_annotation_namespace_or_mesh() {
    let cluster = with_vm();
    let reference = || policy(&cluster, 8080).reference.clone();
    let default = cluster.config().default_policy;
    assert_eq!(reference(), ServerRef::Default(default));
    // Its clients' address may be translated on the way to it.
    assert!(policy(&cluster, 8080).ips.is_empty());
    assert_eq!(policy(&cluster, 3306).protocol, ProxyProtocol::Opaque);
    cluster.apply(&mk_namespace(
        "ns",
        j!({"config.linkerd.io/default-inbound-policy": "deny"}),
    ));
    assert_eq!(reference(), ServerRef::Default(DefaultPolicy::Deny));
    let annotated = j!({"metadata": {"annotations": {
        "config.linkerd.io/default-inbound-policy": "audit",
        "config.linkerd.io/opaque-ports": "8080",
    }}});
    cluster.apply(&mk_workload("vm", VM, annotated));
    assert_eq!(reference(), ServerRef::Default(DefaultPolicy::Audit));
    assert_eq!(policy(&cluster, 8080).protocol, ProxyProtocol::Opaque);
}

#[test]
fn a_server_selects_external_workloads_or_pods_never_both() {
    let cluster = with_vm();
    cluster.apply(&mk_meshed_pod("ns", "vm", "10.1.0.1"));
    cluster.apply(&server(j!({"spec": {"proxyProtocol": "HTTP/1"}})));
    let of_server = ServerRef::Server("vm".into());
    assert_eq!(policy(&cluster, 8080).reference, of_server);
    assert_eq!(policy(&cluster, 8080).protocol, ProxyProtocol::Http1);
    assert_ne!(policy(&cluster, 9090).reference, of_server, "another port");
    assert_ne!(
        cluster.inbound_of("ns", "vm", 8080).reference,
        of_server,
        "a pod of the same name and labels"
    );
    let of_pods = j!({"spec": {"podSelector": {}, "port": "http"}});
    cluster.apply(&mk::<Server>("ns", "vm", of_pods));
    assert_ne!(policy(&cluster, 8080).reference, of_server);
    assert_eq!(cluster.inbound_of("ns", "vm", 8080).reference, of_server);
}

#[test]
fn routes_and_rate_limits_of_its_server_are_in_force() {
    let cluster = with_vm();
    cluster.apply(&server(j!({})));
    let to_server = j!({"group": "policy.linkerd.io", "kind": "Server", "name": "vm"});
    cluster.apply(&mk::<HttpRoute>(
        "ns",
        "r",
        j!({"spec": {"parentRefs": [to_server]}}),
    ));
    cluster.apply(&mk::<HttpLocalRateLimitPolicy>(
        "ns",
        "l",
        j!({"spec": {"targetRef": to_server, "total": {"requestsPerSecond": 5}}}),
    ));
    let policy = policy(&cluster, 8080);
    assert_eq!(policy.http_routes.len(), 1);
    assert_eq!(policy.rate_limit.as_ref().and_then(|limit| limit.total), Some(5));
}

#[test]
fn an_unknown_workload_is_not_found_and_a_deleted_one_ends_its_watch() {
    let cluster = with_vm();
    cluster.apply(&mk_pod("ns", "pod", "10.1.0.1"));
    let pod = WorkloadName::external("ns", "pod");
    let error = cluster
        .inbound(&pod, 80)
        .expect_err("a pod is no external workload");
    assert_eq!(error, NotFound::Workload(pod));
    let watch = watch(&cluster, 80);
    cluster.remove::<ExternalWorkload>("ns", "vm");
    assert!(watch.has_changed().is_err(), "closed");
}

#[test]
fn clients_meet_it_with_what_its_mesh_tls_says() {
    let cluster = with_vm();
    let endpoints = cluster.watch_endpoints("ns", "web", 80);
    let endpoint = endpoints.borrow().addresses[&socket("192.0.2.7:8080")].clone();
    let expected = ExternalIdentity {
        identity: "spiffe://root.linkerd.cluster.local/vm".into(),
        server_name: "vm.mesh.local".into(),
    };
    assert!(expected.is_uri());
    assert_eq!(endpoint.identity, Some(PeerIdentity::External(expected.into())));
    assert_eq!(endpoint.workload, Some(WorkloadName::external("ns", "vm").into()));
    let hint = |protocol, port| ProtocolHint {
        protocol,
        opaque_transport: Some(port),
    };
    assert_eq!(endpoint.hint, hint(Protocol::H2, 4143));
    // The proxy's own port is the one of that name.
    let ports =
        j!({"spec": {"ports": [{"name": "linkerd-proxy", "port": 9143}, {"name": "http", "port": 8080}]}});
    cluster.apply(&mk_workload("vm", VM, ports));
    cluster.apply(&server(j!({"spec": {"proxyProtocol": "opaque"}})));
    let endpoint = endpoints.borrow().addresses[&socket("192.0.2.7:8080")].clone();
    assert_eq!(endpoint.hint, hint(Protocol::Opaque, 9143));
}

/// Linkerd once read a workload that was not there (its issue 15551).
#[test]
fn what_is_not_known_of_it_is_waited_for_and_never_met_in_the_clear() {
    let cluster = without_vm();
    let mut endpoints = cluster.watch_endpoints("ns", "web", 3306);
    let mut profile = cluster.profile("client", &addr("192.0.2.7:3306"));
    assert!(endpoints.borrow_and_update().addresses.is_empty());
    assert_eq!(**profile.borrow_and_update(), Profile::unknown(true));
    cluster.apply(&mk_workload("vm", VM, j!({})));
    assert_eq!(endpoints.borrow_and_update().addresses.len(), 1);
    assert!(profile.borrow_and_update().endpoint.is_some());
    cluster.apply(&mk_workload("vm", VM, j!({"spec": {"meshTLS": null}})));
    assert!(
        endpoints.borrow_and_update().addresses.is_empty(),
        "it no longer says what it proves"
    );
    cluster.apply(&mk_workload("vm", VM, j!({})));
    cluster.remove::<ExternalWorkload>("ns", "vm");
    assert!(endpoints.borrow_and_update().addresses.is_empty());
    assert_eq!(**profile.borrow_and_update(), Profile::unknown(true));
}

#[test]
fn its_address_has_its_profile() {
    let cluster = with_vm();
    let profile = cluster.profile_of(addr("192.0.2.7:8080"));
    let (at, endpoint) = profile.endpoint.as_ref().expect("an endpoint");
    assert_eq!(*at, socket("192.0.2.7:8080"));
    assert!(endpoint.identity.is_some());
    assert_eq!(endpoint.labels.get("namespace").map(String::as_str), Some("ns"));
    assert!(!profile.opaque && cluster.profile_of(addr("192.0.2.7:3306")).opaque);
}

#[test]
fn a_dns_name_is_an_identity_too() {
    let dns = j!({"spec": {"meshTLS": {"identity": "vm.mesh.local"}}});
    let cluster = without_vm();
    cluster.apply(&mk_workload("vm", VM, dns));
    let endpoints = cluster.watch_endpoints("ns", "web", 80);
    match &endpoints.borrow().addresses[&socket("192.0.2.7:8080")].identity {
        Some(PeerIdentity::External(identity)) => assert!(!identity.is_uri(), "{identity:?}"),
        other => panic!("{other:?}"),
    };
}
