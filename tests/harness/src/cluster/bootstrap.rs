//! The few objects that a cluster needs beyond what its programs make themselves: its DNS Service and the DNS
//! server's permissions.

use anyhow::{Context, Result};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::address::Slot;

/// The user that the DNS server's certificate names.
pub(super) const COREDNS_USER: &str = "system:coredns";

const FIELD_MANAGER: &str = "heddle-test-cluster";

/// Applies them all. They stay as they are when nothing changed.
pub(super) async fn apply(client: &kube::Client, slot: Slot) -> Result<()> {
    for object in objects(slot) {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (group, version) = match text("/apiVersion").split_once('/') {
            Some((group, version)) => (group.to_owned(), version.to_owned()),
            None => (String::new(), text("/apiVersion")),
        };
        let (kind, name, namespace) = (text("/kind"), text("/metadata/name"), text("/metadata/namespace"));
        let resource = ApiResource::from_gvk(&GroupVersionKind {
            group,
            version,
            kind: kind.clone(),
        });
        let api: Api<DynamicObject> = match namespace.is_empty() {
            true => Api::all_with(client.clone(), &resource),
            false => Api::namespaced_with(client.clone(), &namespace, &resource),
        };
        api.patch(
            &name,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(&object),
        )
        .await
        .with_context(|| format!("failed to apply {kind} {name}"))?;
    }
    Ok(())
}

fn objects(slot: Slot) -> Vec<Value> {
    let ports = json!([
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    ]);
    let rule = |group: &str, resources: Value| json!({"apiGroups": [group], "resources": resources, "verbs": ["list", "watch"]});
    vec![
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": {"name": COREDNS_USER},
            "rules": [
                rule("", json!(["endpoints", "services", "pods", "namespaces"])),
                rule("discovery.k8s.io", json!(["endpointslices"])),
            ],
        }),
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": COREDNS_USER},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": COREDNS_USER},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": COREDNS_USER}],
        }),
        // No selector: the server is a process on the node, not a pod.
        json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "kube-dns", "namespace": "kube-system", "labels": {"k8s-app": "kube-dns"}},
            "spec": {"clusterIP": slot.dns_service().to_string(), "ports": ports},
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": "kube-dns",
                "namespace": "kube-system",
                "labels": {"kubernetes.io/service-name": "kube-dns", "endpointslice.kubernetes.io/managed-by": FIELD_MANAGER},
            },
            "addressType": "IPv4",
            "endpoints": [{"addresses": [slot.node().to_string()], "conditions": {"ready": true}}],
            "ports": ports,
        }),
    ]
}
