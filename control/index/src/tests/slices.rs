//! Which addresses of a service's slices its clients are told.

use serde_json::Value;

use super::fixtures::*;
use crate::{Cluster, Config};

fn six(name: &str, pods: &[(&str, &str)]) -> Slice {
    let mut slice = mk_slice("ns", "web", pods);
    slice.metadata.name = Some(name.into());
    slice.address_type = "IPv6".into();
    slice
}

fn with_conditions(slice: &mut Slice, conditions: Value) {
    for endpoint in slice.endpoints.iter_mut().flatten() {
        endpoint.conditions = serde_json::from_value(conditions.clone()).expect("conditions");
    }
}

/// As [`web`], with proxies that carry IPv6.
fn web_with_ipv6() -> Cluster {
    let cluster = Cluster::new(Config {
        ipv6: true,
        ..Config::default()
    });
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    cluster.apply(&mk_meshed_pod("ns", "web-0", "10.1.0.1"));
    cluster.apply(&mk_slice("ns", "web", &[("web-0", "10.1.0.1")]));
    cluster
}

#[test]
fn a_dual_stack_pod_is_one_endpoint_its_ipv6_one() {
    let cluster = web_with_ipv6();
    cluster.apply(&mk_meshed_pod("ns", "web-1", "10.1.0.2"));
    cluster.apply(&mk_slice(
        "ns",
        "web",
        &[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")],
    ));
    cluster.apply(&six("web-six", &[("web-0", "fd00::1")]));
    assert_eq!(
        cluster.addresses("ns", "web", 80),
        ["10.1.0.2:8080", "[fd00::1]:8080"],
        "web-1 has an IPv4 address alone"
    );
    cluster.remove::<Slice>("ns", "web-six");
    assert_eq!(
        cluster.addresses("ns", "web", 80),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
}

#[test]
fn without_ipv6_in_proxies_its_addresses_are_nobodys() {
    let cluster = web();
    cluster.apply(&six("web-six", &[("web-0", "fd00::1")]));
    assert_eq!(cluster.addresses("ns", "web", 80), ["10.1.0.1:8080"]);
    cluster.remove::<Slice>("ns", "web-1");
    assert_eq!(cluster.addresses("ns", "web", 80), [""; 0]);
}

#[test]
fn an_address_in_two_slices_counts_once_and_with_its_identity() {
    let cluster = web();
    for name in ["web-0-before", "web-2-after"] {
        let mut bare = mk_slice("ns", "web", &[("web-0", "10.1.0.1")]);
        bare.metadata.name = Some(name.into());
        bare.endpoints.as_mut().expect("endpoints")[0].target_ref = None;
        cluster.apply(&bare);
        let endpoints = cluster.watch_endpoints("ns", "web", 80).borrow().clone();
        assert_eq!(endpoints.addresses.len(), 1);
        assert!(
            endpoints
                .addresses
                .values()
                .all(|endpoint| endpoint.identity.is_some()),
            "{name}"
        );
    }
}

#[test]
fn several_slices_make_one_service() {
    let cluster = web();
    cluster.apply(&mk_meshed_pod("ns", "web-1", "10.1.0.2"));
    let mut second = mk_slice("ns", "web", &[("web-1", "10.1.0.2")]);
    second.metadata.name = Some("web-2".into());
    cluster.apply(&second);
    assert_eq!(
        cluster.addresses("ns", "web", 80),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
    // The second pod moves to the first slice; its old place goes a moment later.
    cluster.apply(&mk_slice(
        "ns",
        "web",
        &[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")],
    ));
    assert_eq!(
        cluster.addresses("ns", "web", 80),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
    cluster.remove::<Slice>("ns", "web-2");
    assert_eq!(
        cluster.addresses("ns", "web", 80),
        ["10.1.0.1:8080", "10.1.0.2:8080"]
    );
}

#[test]
fn what_serves_while_it_ends_is_a_last_resort() {
    let cluster = web();
    let draining = j!({"ready": false, "serving": true, "terminating": true});
    let mut slice = mk_slice("ns", "web", &[("web-0", "10.1.0.1")]);
    with_conditions(&mut slice, draining);
    cluster.apply(&slice);
    assert_eq!(cluster.addresses("ns", "web", 80), ["10.1.0.1:8080"]);
    cluster.apply(&mk_meshed_pod("ns", "web-1", "10.1.0.2"));
    let mut ready = mk_slice("ns", "web", &[("web-1", "10.1.0.2")]);
    ready.metadata.name = Some("web-2".into());
    cluster.apply(&ready);
    assert_eq!(cluster.addresses("ns", "web", 80), ["10.1.0.2:8080"]);
    cluster.remove::<Slice>("ns", "web-2");
    for (conditions, told) in [
        (j!({"ready": false, "serving": false, "terminating": true}), 0),
        (j!({"ready": false, "serving": true, "terminating": false}), 0),
        // So the addresses that a service publishes before they are ready, or while they end, are marked.
        (j!({"ready": true, "serving": true, "terminating": true}), 1),
        (Value::Null, 1),
    ] {
        with_conditions(&mut slice, conditions.clone());
        cluster.apply(&slice);
        assert_eq!(cluster.addresses("ns", "web", 80).len(), told, "{conditions}");
    }
}

#[test]
fn a_named_target_port_may_be_another_on_each_pod() {
    let cluster = web();
    let named = j!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": "web"}]}});
    cluster.apply(&mk_service_with("ns", "web", "10.96.0.1", named));
    cluster.apply(&mk_meshed_pod("ns", "web-1", "10.1.0.2"));
    let mut other = mk_slice("ns", "web", &[("web-1", "10.1.0.2")]);
    other.metadata.name = Some("web-2".into());
    other.ports.as_mut().expect("ports")[0].port = Some(9090);
    cluster.apply(&other);
    assert_eq!(
        cluster.addresses("ns", "web", 80),
        ["10.1.0.1:8080", "10.1.0.2:9090"]
    );
}

#[test]
fn a_native_sidecar_is_a_proxy_and_an_unnamed_inbound_port_is_not_guessed() {
    let cluster = web();
    let endpoint = |cluster: &Cluster| {
        let endpoints = cluster.watch_endpoints("ns", "web", 80).borrow().clone();
        endpoints.addresses.values().next().expect("an endpoint").clone()
    };
    assert_eq!(endpoint(&cluster).hint.opaque_transport, Some(4143));
    let classic = j!({
        "metadata": {"labels": {"linkerd.io/control-plane-ns": "linkerd"}},
        "spec": {"containers": [{"name": "linkerd-proxy", "env": [
            {"name": "LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "value": "[::]:9143"},
        ]}]},
    });
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", classic));
    assert_eq!(endpoint(&cluster).hint.opaque_transport, Some(9143));
    let silent = j!({
        "metadata": {"labels": {"linkerd.io/control-plane-ns": "linkerd"}},
        "spec": {"containers": [{"name": "linkerd-proxy"}]},
    });
    cluster.apply(&mk_pod_with("ns", "web-0", "10.1.0.1", silent));
    assert!(endpoint(&cluster).identity.is_some());
    assert_eq!(endpoint(&cluster).hint.opaque_transport, None);
}
