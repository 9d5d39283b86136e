//! Endpoints follow services, slices and pods.

use std::sync::Arc;

use heddle_control_core::{
    NotFound,
    discover::{DiscoverEndpoints as _, ServiceTarget, WorkloadName},
    endpoints::{DEFAULT_WEIGHT, Endpoint, Labels, PeerIdentity, Place, Protocol, ProtocolHint},
};
use heddle_k8s::policy::Server;
use heddle_mesh::Identity;

use super::fixtures::*;
use crate::{Change, Cluster, Config, ObjectKey};

fn only(cluster: &Cluster, port: u16) -> Arc<Endpoint> {
    let watch = cluster.watch_endpoints("ns", "web", port);
    let endpoints = watch.borrow().clone();
    assert_eq!(endpoints.addresses.len(), 1, "{endpoints:?}");
    endpoints.addresses.values().next().expect("one endpoint").clone()
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

#[test]
fn a_meshed_pod_is_told_with_identity_hint_and_labels() {
    let cluster = web();
    let expected = Endpoint {
        weight: DEFAULT_WEIGHT,
        identity: Some(PeerIdentity::ServiceAccount(
            "web-0.ns.serviceaccount.identity.linkerd.cluster.local"
                .parse::<Identity>()
                .expect("an identity")
                .into(),
        )),
        hint: ProtocolHint {
            protocol: Protocol::H2,
            opaque_transport: Some(4143),
        },
        labels: Arc::new(labels(&[
            ("serviceaccount", "web-0"),
            ("control_plane_ns", "linkerd"),
        ])),
        workload: Some(WorkloadName::pod("ns", "web-0").into()),
        place: Arc::new(Place {
            node: Some("node-a".into()),
            zone: Some("zone-a".into()),
            for_zones: vec![],
            for_nodes: vec![],
        }),
    };
    assert_eq!(*only(&cluster, 80), expected);
    let watch = cluster.watch_endpoints("ns", "web", 80);
    assert_eq!(
        watch.borrow().labels,
        labels(&[("namespace", "ns"), ("service", "web")])
    );
}

#[test]
fn a_pod_without_proxy_or_of_another_mesh_has_no_identity() {
    let cluster = web();
    cluster.apply(&mk_pod("ns", "web-0", "10.1.0.1"));
    assert_eq!(only(&cluster, 80).identity, None);
    assert_eq!(only(&cluster, 80).hint, ProtocolHint::default());
    let mut other = meshed();
    merge(
        &mut other,
        j!({"metadata": {"labels": {"linkerd.io/control-plane-ns": "other"}}}),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", other));
    assert_eq!(only(&cluster, 80).identity, None);
}

#[test]
fn a_control_plane_pod_has_the_label_but_no_proxy_and_so_no_identity() {
    let cluster = web();
    let labelled = j!({"metadata": {"labels": {"linkerd.io/control-plane-ns": "linkerd"}}});
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", labelled));
    assert_eq!(only(&cluster, 80).identity, None);
}

#[test]
fn skipped_ports_and_the_proxys_own_have_no_identity() {
    let cluster = web();
    // 4567 by linkerd-init's arguments, 9000 by annotation, 4191 because it is the proxy's.
    let mut pod = meshed();
    merge(
        &mut pod,
        j!({"metadata": {"annotations": {"config.linkerd.io/skip-inbound-ports": "9000"}}}),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
    for port in [4567, 9000, 4191] {
        assert_eq!(only(&cluster, port).identity, None, "port {port}");
    }
    assert!(
        only(&cluster, 9001).identity.is_some(),
        "another undeclared port is met with the proxy"
    );
}

#[test]
fn opaque_ports_come_from_pod_namespace_default_or_server() {
    let cluster = web();
    let opaque = |port| only(&cluster, port).hint.protocol == Protocol::Opaque;
    assert!(!opaque(80));
    assert!(opaque(3306), "a default");
    cluster.apply(&mk_namespace(
        "ns",
        j!({"config.linkerd.io/opaque-ports": "8080"}),
    ));
    assert!(opaque(80), "the namespace's annotation");
    assert!(!opaque(3306), "which replaces the defaults");
    let mut pod = meshed();
    merge(
        &mut pod,
        j!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": "9000"}}}),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
    assert!(!opaque(80), "the pod's annotation comes first");
    let server = j!({"spec": {"podSelector": {}, "port": "http", "proxyProtocol": "opaque"}});
    cluster.apply(&mk::<Server>("ns", "web", server));
    assert!(opaque(80), "a Server's protocol");
    cluster.remove::<Server>("ns", "web");
    assert!(!opaque(80));
}

#[test]
fn without_transport_headers_only_opaque_endpoints_name_the_proxys_port() {
    let cluster = Cluster::new(Config {
        transport_header: false,
        ..Config::default()
    });
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    cluster.apply(&mk_meshed_pod("ns", "web-0", "10.1.0.1"));
    cluster.apply(&mk_slice("ns", "web", &[("web-0", "10.1.0.1")]));
    assert_eq!(only(&cluster, 80).hint.opaque_transport, None);
    assert_eq!(only(&cluster, 3306).hint.opaque_transport, Some(4143));
}

#[test]
fn an_open_watch_follows_slices_and_wakes_only_for_real_changes() {
    let cluster = web();
    let mut watch = cluster.watch_endpoints("ns", "web", 80);
    watch.mark_unchanged();
    cluster.apply(&mk_meshed_pod("ns", "web-1", "10.1.0.2"));
    assert!(!watch.has_changed().expect("open"), "a pod that no slice names");
    cluster.apply(&mk_slice(
        "ns",
        "web",
        &[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")],
    ));
    assert!(watch.has_changed().expect("open"));
    assert_eq!(watch.borrow_and_update().addresses.len(), 2);
    cluster.apply(&mk_slice(
        "ns",
        "web",
        &[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")],
    ));
    cluster.apply(&mk_service("other", "web", "10.96.0.9"));
    assert!(!watch.has_changed().expect("open"));
    cluster.remove::<Slice>("ns", "web-1");
    assert!(watch.borrow_and_update().addresses.is_empty());
    assert!(watch.borrow().exists);
    cluster.remove::<Service>("ns", "web");
    assert!(!watch.borrow_and_update().exists);
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    assert!(
        watch.borrow_and_update().exists,
        "a service that comes back is met by the same watch"
    );
}

#[test]
fn an_endpoint_is_told_only_when_its_pod_is_known() {
    let cluster = web();
    let mut watch = cluster.watch_endpoints("ns", "web", 80);
    cluster.apply(&mk_slice(
        "ns",
        "web",
        &[("web-0", "10.1.0.1"), ("late", "10.1.0.2")],
    ));
    assert_eq!(
        watch.borrow_and_update().addresses.len(),
        1,
        "in the clear to a pod that may be meshed: never"
    );
    cluster.apply(&mk_meshed_pod("ns", "late", "10.1.0.2"));
    assert_eq!(watch.borrow_and_update().addresses.len(), 2);
    cluster.remove::<Pod>("ns", "late");
    assert_eq!(watch.borrow_and_update().addresses.len(), 1);
}

#[test]
fn endpoints_that_are_not_ready_are_left_out() {
    let cluster = web();
    let mut slice = mk_slice("ns", "web", &[("web-0", "10.1.0.1")]);
    for (ready, told) in [(None, 1), (Some(false), 0), (Some(true), 1)] {
        let endpoint = &mut slice.endpoints.as_mut().expect("endpoints")[0];
        endpoint.conditions.as_mut().expect("conditions").ready = ready;
        cluster.apply(&slice);
        assert_eq!(cluster.addresses("ns", "web", 80).len(), told, "ready: {ready:?}");
    }
}

#[test]
fn unchanged_endpoints_keep_their_memory_when_others_change() {
    let cluster = web();
    let before = only(&cluster, 80);
    let mut watch = cluster.watch_endpoints("ns", "web", 80);
    cluster.apply(&mk_meshed_pod("ns", "web-1", "10.1.0.2"));
    cluster.apply(&mk_slice(
        "ns",
        "web",
        &[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")],
    ));
    let after = watch.borrow_and_update().addresses[&socket("10.1.0.1:8080")].clone();
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn addresses_without_pods_are_endpoints_without_identity() {
    let cluster = web();
    let mut slice = mk_slice("ns", "web", &[("x", "192.0.2.7")]);
    slice.endpoints.as_mut().expect("endpoints")[0].target_ref = None;
    cluster.apply(&slice);
    assert_eq!(cluster.addresses("ns", "web", 80), ["192.0.2.7:8080"]);
    assert_eq!(only(&cluster, 80).identity, None);
}

#[test]
fn one_pod_behind_a_headless_service_is_told_by_its_host_name() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "db", "None"));
    cluster.apply(&mk_meshed_pod("ns", "db-0", "10.1.0.1"));
    cluster.apply(&mk_meshed_pod("ns", "db-1", "10.1.0.2"));
    cluster.apply(&mk_slice(
        "ns",
        "db",
        &[("db-0", "10.1.0.1"), ("db-1", "10.1.0.2")],
    ));
    let one = ServiceTarget {
        instance: Some("db-1".into()),
        ..target("ns", "db", 80)
    };
    let watch = cluster.endpoints(&one).expect("the service is there");
    assert_eq!(
        watch
            .borrow()
            .addresses
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.1.0.2:8080"]
    );
    assert_eq!(cluster.addresses("ns", "db", 80).len(), 2);
}

#[test]
fn services_that_are_missing_or_elsewhere_are_not_found() {
    let cluster = web();
    let missing = cluster
        .endpoints(&target("ns", "nope", 80))
        .expect_err("no such service");
    assert_eq!(
        missing,
        NotFound::Service {
            namespace: "ns".into(),
            name: "nope".into()
        }
    );
    let external = j!({"spec": {"type": "ExternalName", "externalName": "example.com"}});
    cluster.apply(&mk_service_with("ns", "web", "", external));
    let external = cluster
        .endpoints(&target("ns", "web", 80))
        .expect_err("no endpoints by nature");
    assert_eq!(
        external,
        NotFound::ExternalName {
            namespace: "ns".into(),
            name: "web".into()
        }
    );
}

#[test]
fn named_target_ports_lead_where_the_slice_says() {
    let cluster = web();
    let named = j!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "http"}, {"name": "admin", "port": 81, "targetPort": "admin"}]}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", named));
    assert_eq!(cluster.addresses("ns", "web", 80), ["10.1.0.1:8080"]);
    assert_eq!(
        cluster.addresses("ns", "web", 81),
        [""; 0],
        "the pods have no such port"
    );
}

#[test]
fn the_owner_of_a_pod_labels_its_metrics() {
    let cluster = web();
    let mut pod = meshed();
    merge(
        &mut pod,
        j!({"metadata": {
            "labels": {"pod-template-hash": "5c9f"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5c9f", "uid": "u", "controller": true}],
        }}),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
    let labels = only(&cluster, 80).labels.clone();
    assert_eq!(labels.get("deployment").map(String::as_str), Some("web"));
    assert_eq!(labels.get("pod_template_hash").map(String::as_str), Some("5c9f"));
}

#[test]
fn replicas_in_several_zones_differ_in_that_label_alone() {
    let cluster = cluster();
    for (name, zone) in [("web-0", "a"), ("web-1", "b")] {
        let probe = j!({"httpGet": {"path": "/live", "port": 8080}});
        let mut pod = meshed();
        merge(
            &mut pod,
            j!({
                "metadata": {"labels": {"app": "web", "topology.kubernetes.io/zone": zone}},
                "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "livenessProbe": probe}]},
            }),
        );
        cluster.apply(&mk_pod_with("ns", name, "10.1.0.1", pod));
    }
    cluster.read(|store| {
        let pod = |name| store.pods.find("ns", name).expect("a pod").template.clone();
        let (one, other) = (pod("web-0"), pod("web-1"));
        assert_ne!(one, other);
        assert!(Arc::ptr_eq(
            &one.workload.metric_labels,
            &other.workload.metric_labels
        ));
        assert!(!one.probes.is_empty() && Arc::ptr_eq(&one.probes, &other.probes));
    });
}

#[test]
fn replicas_share_what_they_have_in_common() {
    let cluster = cluster();
    let slice: Slice = mk_slice("ns", "web", &[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")]);
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    cluster.apply(&slice);
    for (name, ip) in [("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")] {
        let mut pod = meshed();
        merge(
            &mut pod,
            j!({"metadata": {"labels": {"app": "web"}}, "spec": {"serviceAccountName": "web"}}),
        );
        cluster.apply(&mk_pod_with("ns", name, ip, pod));
    }
    cluster.read(|store| {
        let pod = |name| store.pods.find("ns", name).expect("a pod").template.clone();
        assert!(Arc::ptr_eq(&pod("web-0"), &pod("web-1")));
    });
    let watch = cluster.watch_endpoints("ns", "web", 80);
    let endpoints = watch.borrow().clone();
    let all: Vec<&Endpoint> = endpoints.addresses.values().map(Arc::as_ref).collect();
    let [one, other] = all.as_slice() else {
        panic!("{all:?}");
    };
    assert_ne!(one, other, "they differ in their names");
    assert!(Arc::ptr_eq(&one.labels, &other.labels) && Arc::ptr_eq(&one.place, &other.place));
    match (&one.identity, &other.identity) {
        (Some(PeerIdentity::ServiceAccount(one)), Some(PeerIdentity::ServiceAccount(other))) => {
            assert!(Arc::ptr_eq(one, other));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_relist_is_one_change_and_forgets_what_is_gone() {
    let cluster = web();
    let mut watch = cluster.watch_endpoints("ns", "web", 80);
    cluster.reset(&[mk_meshed_pod("ns", "web-1", "10.1.0.2")]);
    assert!(watch.borrow_and_update().addresses.is_empty(), "web-0 is gone");
    cluster.reset::<Slice>(&[mk_slice("ns", "web", &[("web-1", "10.1.0.2")])]);
    assert_eq!(watch.borrow_and_update().addresses.len(), 1);
    cluster.reset::<Slice>(&[mk_slice("ns", "web", &[("web-1", "10.1.0.2")])]);
    assert!(!watch.has_changed().expect("open"));
}

#[test]
fn topology_hints_of_slices_name_zones_and_nodes() {
    let cluster = web();
    let mut slice = mk_slice("ns", "web", &[("web-0", "10.1.0.1")]);
    let hints = j!({"forZones": [{"name": "zone-a"}, {"name": "zone-b"}], "forNodes": [{"name": "node-a"}]});
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.hints = serde_json::from_value(hints.clone()).expect("hints");
    }
    cluster.apply(&slice);
    let place = only(&cluster, 80).place.clone();
    let names = |list: &[Arc<str>]| -> Vec<String> { list.iter().map(ToString::to_string).collect() };
    assert_eq!(names(&place.for_zones), ["zone-a", "zone-b"]);
    assert_eq!(names(&place.for_nodes), ["node-a"]);
}

#[test]
fn a_clients_zone_is_its_nodes() {
    let cluster = web();
    let node = serde_json::from_value::<Node>(
        j!({"metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "z"}}}),
    );
    cluster.apply(&node.expect("a node"));
    assert_eq!(cluster.locate("n").zone.as_deref(), Some("z"));
    assert_eq!(cluster.locate("other").zone, None);
}

#[test]
fn a_burst_of_events_is_one_change_in_order() {
    let cluster = web();
    let mut watch = cluster.watch_endpoints("ns", "web", 80);
    watch.mark_unchanged();
    let gone = ObjectKey {
        namespace: "ns".into(),
        name: "web-0".into(),
    };
    cluster.apply_all(vec![
        Change::Deleted(gone.clone()),
        Change::Applied(cluster.reduce(&mk_meshed_pod("ns", "web-0", "10.1.0.1"))),
    ]);
    assert!(!watch.has_changed().expect("open"), "back where it was");
    cluster.apply_all(vec![
        Change::Applied(cluster.reduce(&mk_pod("ns", "web-0", "10.1.0.1"))),
        Change::<Pod>::Deleted(gone),
    ]);
    assert!(watch.borrow_and_update().addresses.is_empty());
}
