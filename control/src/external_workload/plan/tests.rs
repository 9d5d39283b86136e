//! Services and workloads in, changes out; and after the changes nothing more to change.

use serde_json::{Value, json};

use super::*;

fn mk_service(spec: Value) -> ServiceFacts {
    let mut whole = json!({
        "selector": {"app": "web"}, "clusterIP": "10.96.0.1", "ipFamilies": ["IPv4"],
        "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
    });
    for (key, value) in spec.as_object().expect("an object") {
        whole[key] = value.clone();
    }
    let service = json!({"metadata": {"name": "web", "uid": "u1", "labels": {"team": "a"}}, "spec": whole});
    ServiceFacts::of(&serde_json::from_value(service).expect("a Service")).expect("it selects something")
}

fn mk_workload(name: &str, ips: &[&str], ready: bool) -> WorkloadFacts {
    let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
    let workload = json!({
        "apiVersion": "workload.linkerd.io/v1beta1",
        "kind": "ExternalWorkload",
        "metadata": {"name": name, "uid": format!("uid-{name}"), "labels": {"app": "web", "topology.kubernetes.io/zone": "a"}},
        "spec": {
            "meshTLS": {"identity": "spiffe://root/web", "serverName": "web"},
            "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 53, "protocol": "UDP"}],
            "workloadIPs": ips,
        },
        "status": {"conditions": [{
            "type": "Ready", "status": if ready { "True" } else { "False" },
            "reason": "r", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    });
    WorkloadFacts::of(&serde_json::from_value(workload).expect("an ExternalWorkload"))
}

/// Does what a plan says, as an API server would.
fn apply(slices: &mut Vec<EndpointSlice>, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Create(slice) => {
                let mut slice = *slice;
                slice.metadata.name = Some(format!("slice-{}", slices.len()));
                slices.push(slice);
            }
            Change::Update(slice) => {
                slices.retain(|one| one.metadata.name != slice.metadata.name);
                slices.push(*slice);
            }
            Change::Delete(name) => slices.retain(|one| one.name_any() != name),
        }
    }
}

fn settle(
    service: Option<&ServiceFacts>,
    workloads: &[WorkloadFacts],
    slices: &mut Vec<EndpointSlice>,
) -> usize {
    let workloads: Vec<&WorkloadFacts> = workloads.iter().collect();
    let changes = plan("ns", service, &workloads, &slices.iter().collect::<Vec<_>>());
    let count = changes.len();
    apply(slices, changes);
    let again = plan("ns", service, &workloads, &slices.iter().collect::<Vec<_>>());
    assert_eq!(again, [], "a plan that has been carried out leaves nothing to do");
    count
}

#[test]
fn a_slice_is_linkerds_to_the_letter() {
    let mut slices = Vec::new();
    assert_eq!(
        settle(
            Some(&mk_service(json!({}))),
            &[mk_workload("vm", &["192.0.2.1", "2001:db8::1"], true)],
            &mut slices
        ),
        1
    );
    let mut value = serde_json::to_value(&slices[0]).expect("JSON");
    value["metadata"]
        .as_object_mut()
        .expect("metadata")
        .remove("name");
    assert_eq!(
        value,
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "generateName": "linkerd-external-web-",
                "namespace": "ns",
                "labels": {
                    "team": "a",
                    "kubernetes.io/service-name": "web",
                    "endpointslice.kubernetes.io/managed-by": "linkerd-external-workloads-controller",
                },
                "ownerReferences": [{"apiVersion": "v1", "kind": "Service", "name": "web", "uid": "u1", "controller": true, "blockOwnerDeletion": true}],
            },
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": [{
                "addresses": ["192.0.2.1"],
                "conditions": {"ready": true, "serving": true, "terminating": false},
                "targetRef": {"kind": "ExternalWorkload", "namespace": "ns", "name": "vm", "uid": "uid-vm"},
                "zone": "a",
            }],
        })
    );
}

#[test]
fn both_families_get_a_slice_and_headless_services_hostnames() {
    let service = mk_service(json!({"clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"]}));
    let mut slices = Vec::new();
    settle(
        Some(&service),
        &[mk_workload("vm", &["192.0.2.1", "2001:db8::1"], false)],
        &mut slices,
    );
    let mut seen: Vec<_> = slices
        .iter()
        .map(|slice| {
            let endpoint = &slice.endpoints.as_ref().expect("endpoints")[0];
            let ready = endpoint
                .conditions
                .as_ref()
                .and_then(|conditions| conditions.ready);
            (
                slice.address_type.as_str(),
                endpoint.addresses[0].as_str(),
                endpoint.hostname.as_deref(),
                ready,
            )
        })
        .collect();
    seen.sort_unstable();
    assert_eq!(
        seen,
        [
            ("IPv4", "192.0.2.1", Some("vm"), Some(false)),
            ("IPv6", "2001:db8::1", Some("vm"), Some(false))
        ]
    );
    assert!(slices[0].labels().contains_key(LABEL_HEADLESS));
}

#[test]
fn ports_are_found_by_name_or_number_and_protocol() {
    let workload = [mk_workload("vm", &["192.0.2.1"], true)];
    let ports = |ports: Value| {
        let mut slices = Vec::new();
        settle(Some(&mk_service(json!({"ports": ports}))), &workload, &mut slices);
        slices.first().map(ports_of)
    };
    let tcp = |number| Some(vec![(None, "TCP".to_owned(), number)]);
    assert_eq!(ports(json!([{"port": 80, "targetPort": 8080}])), tcp(8080));
    assert_eq!(ports(json!([{"port": 8080}])), tcp(8080));
    assert_eq!(
        ports(json!([{"port": 80, "targetPort": 53}])),
        None,
        "that one is served over UDP"
    );
    assert_eq!(ports(json!([{"port": 80, "targetPort": "grpc"}])), None);
}

#[test]
fn a_change_touches_only_its_slice_and_slices_are_filled() {
    let service = mk_service(json!({}));
    let names: Vec<String> = (0..250).map(|i| format!("vm-{i:03}")).collect();
    let ip = |i: usize| format!("10.1.{}.{}", i / 250, i % 250 + 1);
    let mut workloads: Vec<WorkloadFacts> = names
        .iter()
        .enumerate()
        .map(|(i, name)| mk_workload(name, &[&ip(i)], true))
        .collect();
    let mut slices = Vec::new();
    assert_eq!(settle(Some(&service), &workloads, &mut slices), 3);
    let sizes = |slices: &[EndpointSlice]| {
        let mut sizes: Vec<usize> = slices
            .iter()
            .map(|slice| slice.endpoints.iter().flatten().count())
            .collect();
        sizes.sort_unstable();
        sizes
    };
    assert_eq!(sizes(&slices), [50, 100, 100]);
    workloads[7] = mk_workload("vm-007", &[&ip(7)], false);
    assert_eq!(
        settle(Some(&service), &workloads, &mut slices),
        1,
        "one workload, one write"
    );
    workloads.remove(7);
    workloads.push(mk_workload("vm-new", &["10.9.9.9"], true));
    assert_eq!(
        settle(Some(&service), &workloads, &mut slices),
        1,
        "the new one takes the place of the old"
    );
    assert_eq!(sizes(&slices), [50, 100, 100]);
    workloads.truncate(10);
    settle(Some(&service), &workloads, &mut slices);
    assert_eq!(sizes(&slices), [10]);
}

#[test]
fn slices_go_with_the_last_workload_the_service_or_its_selector() {
    let service = mk_service(json!({}));
    let workloads = [mk_workload("vm", &["192.0.2.1"], true)];
    let made = || {
        let mut slices = Vec::new();
        settle(Some(&service), &workloads, &mut slices);
        slices
    };
    let mut slices = made();
    settle(Some(&service), &[], &mut slices);
    assert_eq!(slices, []);
    let mut slices = made();
    settle(None, &workloads, &mut slices);
    assert_eq!(slices, []);
    // A Service of the same name that came later is another one.
    let mut slices = made();
    let later = ServiceFacts {
        uid: "u2".to_owned(),
        ..service.clone()
    };
    assert_eq!(settle(Some(&later), &workloads, &mut slices), 2);
    assert_eq!(slices[0].owner_references()[0].uid, "u2");
    // Labels follow the Service's.
    let relabelled = ServiceFacts {
        labels: BTreeMap::from([("team".to_owned(), "b".to_owned())]),
        ..later
    };
    assert_eq!(settle(Some(&relabelled), &workloads, &mut slices), 1);
    assert_eq!(slices[0].labels()["team"], "b");
}
