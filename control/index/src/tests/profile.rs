//! Profiles of service addresses, pod addresses and strangers.

use std::time::Duration;

use heddle_control_core::{
    ResourceRef,
    discover::{DiscoverProfiles as _, ServiceTarget, Target, WorkloadName},
    profile::{Profile, RequestMatch, RetryBudget},
};
use heddle_k8s::service_profile::ServiceProfile;

use super::fixtures::*;

#[test]
fn a_cluster_ip_is_its_services() {
    let cluster = web();
    let expected = Profile {
        fully_qualified_name: Some("web.ns.svc.cluster.local".into()),
        parent: Some(ResourceRef::service("ns", "web", 80)),
        ..Profile::unknown(false)
    };
    assert_eq!(*cluster.profile_of(addr("10.96.0.1:80")), expected);
    assert_eq!(
        *cluster.profile_of(Target::Service(target("ns", "web", 80))),
        expected
    );
}

#[test]
fn a_port_that_the_service_does_not_declare_has_an_empty_profile() {
    let cluster = web();
    assert_eq!(*cluster.profile_of(addr("10.96.0.1:81")), Profile::unknown(false));
}

#[test]
fn a_pods_address_is_the_pods_own_endpoint() {
    let cluster = web();
    let profile = cluster.profile_of(addr("10.1.0.1:8080"));
    let (at, endpoint) = profile.endpoint.clone().expect("an endpoint");
    assert_eq!(at, socket("10.1.0.1:8080"));
    assert!(endpoint.identity.is_some());
    assert_eq!(endpoint.labels.get("namespace").map(String::as_str), Some("ns"));
    assert_eq!(profile.fully_qualified_name, None);
}

#[test]
fn strangers_are_opaque_by_port_alone() {
    let cluster = web();
    assert_eq!(
        *cluster.profile_of(addr("192.0.2.1:443")),
        Profile::unknown(false)
    );
    assert_eq!(
        *cluster.profile_of(addr("192.0.2.1:3306")),
        Profile::unknown(true)
    );
    assert_eq!(
        *cluster.profile_of(Target::Service(target("ns", "nope", 80))),
        Profile::unknown(false)
    );
}

#[test]
fn an_open_watch_follows_an_address_from_one_owner_to_the_next() {
    let cluster = web();
    let mut watch = cluster.profile("client", &addr("10.96.0.2:80"));
    assert_eq!(**watch.borrow_and_update(), Profile::unknown(false));
    cluster.apply(&mk_service("ns", "late", "10.96.0.2"));
    assert_eq!(
        watch.borrow_and_update().fully_qualified_name.as_deref(),
        Some("late.ns.svc.cluster.local")
    );
    cluster.remove::<Service>("ns", "late");
    assert_eq!(**watch.borrow_and_update(), Profile::unknown(false));
    cluster.apply(&mk_pod("ns", "p", "10.96.0.2"));
    assert!(watch.borrow_and_update().endpoint.is_some());
}

#[test]
fn a_reused_address_is_the_running_pods() {
    let cluster = web();
    cluster.apply(&mk_pod_with(
        "ns",
        "web-0",
        "10.1.0.1",
        j!({"status": {"phase": "Succeeded"}}),
    ));
    assert_eq!(cluster.profile_of(addr("10.1.0.1:80")).endpoint, None);
    cluster.apply(&mk_pod("other", "new", "10.1.0.1"));
    let profile = cluster.profile_of(addr("10.1.0.1:80"));
    let (_, endpoint) = profile.endpoint.as_ref().expect("an endpoint");
    assert_eq!(endpoint.workload, Some(WorkloadName::pod("other", "new").into()));
}

#[test]
fn pods_on_the_hosts_network_do_not_own_its_address() {
    let cluster = cluster();
    cluster.apply(&mk_pod_with(
        "ns",
        "a",
        "10.0.0.5",
        j!({"spec": {"hostNetwork": true}}),
    ));
    assert_eq!(cluster.profile_of(addr("10.0.0.5:80")).endpoint, None);
}

#[test]
fn opaque_ports_of_services_come_from_service_namespace_or_default() {
    let cluster = web();
    let mut watch = cluster.profile("client", &addr("10.96.0.1:80"));
    cluster.apply(&mk_namespace("ns", j!({"config.linkerd.io/opaque-ports": "80"})));
    assert!(watch.borrow_and_update().opaque, "the namespace's");
    let own = j!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": "81"}}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", own));
    assert!(!watch.borrow_and_update().opaque, "the service's own comes first");
}

#[test]
fn the_name_of_a_headless_pod_is_that_pods_profile() {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "db", "None"));
    cluster.apply(&mk_meshed_pod("ns", "db-0", "10.1.0.1"));
    let named = Target::Service(ServiceTarget {
        instance: Some("db-0".into()),
        ..target("ns", "db", 80)
    });
    let mut watch = cluster.profile("client", &named);
    assert!(watch.borrow_and_update().endpoint.is_none(), "not in a slice yet");
    cluster.apply(&mk_slice("ns", "db", &[("db-0", "10.1.0.1")]));
    assert_eq!(
        watch
            .borrow_and_update()
            .endpoint
            .as_ref()
            .expect("an endpoint")
            .0,
        socket("10.1.0.1:8080")
    );
}

#[test]
fn a_wrong_annotation_counts_as_absent() {
    let cluster = web();
    let wrong = j!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": "eighty"}}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", wrong));
    assert!(!cluster.profile_of(addr("10.96.0.1:80")).opaque);
}

#[test]
fn a_service_profile_gives_routes_budget_and_split() {
    let cluster = web();
    let mut watch = cluster.profile("client", &addr("10.96.0.1:80"));
    watch.mark_unchanged();
    let spec = j!({"spec": {
        "routes": [
            {"name": "GET /a", "condition": {"method": "GET", "pathRegex": "/a"}, "isRetryable": true, "timeout": "300ms"},
            {"name": "broken", "condition": {"pathRegex": "("}},
            {"name": "empty", "condition": {}},
        ],
        "retryBudget": {"retryRatio": 0.5, "minRetriesPerSecond": 3, "ttl": "1m"},
        "dstOverrides": [{"authority": "web-v2.ns.svc.cluster.local", "weight": "500m"}, {"authority": "web.ns.svc.cluster.local:81", "weight": 1}],
        "opaquePorts": ["80"],
    }});
    cluster.apply(&mk::<ServiceProfile>("ns", "web.ns.svc.cluster.local", spec));
    let profile = watch.borrow_and_update().clone();
    assert!(profile.opaque);
    assert_eq!(
        profile.retry_budget,
        RetryBudget {
            ratio: 0.5,
            min_per_second: 3,
            ttl: Duration::from_secs(60)
        }
    );
    let split = [
        ("web-v2.ns.svc.cluster.local:80".to_owned(), 500),
        ("web.ns.svc.cluster.local:81".to_owned(), 1000),
    ];
    assert_eq!(profile.overrides, split);
    assert_eq!(profile.routes.len(), 1, "broken routes are left out");
    let expected = RequestMatch::All(vec![
        RequestMatch::PathRegex("/a".into()),
        RequestMatch::Method(http::Method::GET),
    ]);
    assert_eq!(profile.routes[0].condition, expected);
    assert_eq!(
        (profile.routes[0].retryable, profile.routes[0].timeout),
        (true, Some(Duration::from_millis(300)))
    );
    cluster.remove::<ServiceProfile>("ns", "web.ns.svc.cluster.local");
    assert_eq!(watch.borrow_and_update().routes, []);
}

#[test]
fn a_clients_own_service_profile_comes_first() {
    let cluster = web();
    let named = |route: &str| j!({"spec": {"routes": [{"name": route, "condition": {"pathRegex": "/"}}]}});
    cluster.apply(&mk::<ServiceProfile>(
        "ns",
        "web.ns.svc.cluster.local",
        named("server"),
    ));
    cluster.apply(&mk::<ServiceProfile>(
        "client",
        "web.ns.svc.cluster.local",
        named("client"),
    ));
    let route = |namespace: &str| {
        cluster.profile(namespace, &addr("10.96.0.1:80")).borrow().routes[0]
            .name
            .clone()
    };
    assert_eq!(
        (route("client"), route("other")),
        ("client".to_owned(), "server".to_owned())
    );
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_that_has_it() {
    let cluster = cluster();
    let mut pod = meshed();
    merge(
        &mut pod,
        j!({
            "spec": {"containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080, "hostPort": 80}]}]},
            "status": {"hostIP": "192.0.2.10", "hostIPs": [{"ip": "192.0.2.10"}, {"ip": "2001:db8::10"}]},
        }),
    );
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", pod));
    let mut watch = cluster.profile("client", &addr("192.0.2.10:80"));
    let profile = watch.borrow_and_update().clone();
    let (at, endpoint) = profile.endpoint.as_ref().expect("an endpoint");
    assert_eq!(*at, socket("10.1.0.1:8080"));
    assert!(endpoint.identity.is_some());
    assert_eq!(cluster.profile_of(addr("192.0.2.10:8080")).endpoint, None);
    assert_eq!(
        cluster.profile_of(addr("[2001:db8::10]:80")).endpoint,
        None,
        "the pod has no address of that family"
    );
    cluster.remove::<Pod>("ns", "web-0");
    assert_eq!(**watch.borrow_and_update(), Profile::unknown(false));
}

#[test]
fn a_pod_on_its_nodes_network_is_met_at_its_own_port_alone() {
    let cluster = cluster();
    let pod = j!({
        "spec": {
            "hostNetwork": true,
            "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 9100, "hostPort": 9100}]}],
        },
        "status": {"hostIP": "192.0.2.10"},
    });
    cluster.apply(&mk_pod_with("ns", "exporter", "192.0.2.10", pod));
    let profile = cluster.profile_of(addr("192.0.2.10:9100"));
    let (at, endpoint) = profile.endpoint.as_ref().expect("an endpoint");
    assert_eq!((*at, &endpoint.identity), (socket("192.0.2.10:9100"), &None));
    assert_eq!(cluster.profile_of(addr("192.0.2.10:22")).endpoint, None);
}

#[test]
fn a_pods_profile_names_the_zone_of_its_node_once_that_is_known() {
    let cluster = web();
    let mut watch = cluster.profile("client", &addr("10.1.0.1:8080"));
    let zone = |profile: &Profile| {
        profile
            .endpoint
            .as_ref()
            .expect("an endpoint")
            .1
            .place
            .zone
            .clone()
    };
    assert_eq!(zone(&watch.borrow_and_update()), None);
    let node = j!({"metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "z"}}});
    cluster.apply(&serde_json::from_value::<Node>(node).expect("a node"));
    assert_eq!(zone(&watch.borrow_and_update()).as_deref(), Some("z"));
}
