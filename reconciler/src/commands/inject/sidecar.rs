//! Taking a sidecar out of a pod template, and what it left on its metadata.

use heddle_mesh::{annotation, port};
use serde_json::{Map, Value};

use crate::object;

/// How much is taken away.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Depth {
    /// What injection wrote: containers, volumes, labels, marks.
    Injection,
    /// That, and what asks for injection and configures it.
    Everything,
}

/// The pod template of a workload, by kind; `None` for what runs no pods.
pub(crate) fn template_path(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&[]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some(&["spec", "template"])
        }
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

/// Takes the sidecar out of a pod or pod template; whether there was anything to take.
pub(crate) fn remove(template: &mut Value, depth: Depth) -> bool {
    let before = template.clone();
    const CONTAINERS: [&str; 4] = [
        port::PROXY_CONTAINER,
        port::INIT_CONTAINER,
        port::NETWORK_VALIDATOR_CONTAINER,
        port::DEBUG_CONTAINER,
    ];
    const VOLUMES: [&str; 4] = [
        "linkerd-identity-end-entity",
        "linkerd-identity-token",
        "linkerd-podinfo",
        "linkerd-proxy-init-xtables-lock",
    ];
    for (list, names) in [
        ("containers", &CONTAINERS),
        ("initContainers", &CONTAINERS),
        ("volumes", &VOLUMES),
    ] {
        let Some(spec) = template.get_mut("spec").and_then(Value::as_object_mut) else {
            break;
        };
        drop_named(spec, list, names);
    }
    remove_marks(template, depth);
    *template != before
}

/// Takes away what injection wrote, or asks for it, on an object's own metadata.
pub(crate) fn remove_marks(object: &mut Value, depth: Depth) {
    let manual = object::text_at(object, &["metadata", "annotations", annotation::CREATED_BY]).is_some();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    // An injected pod was told to ask for no further injection; one that opts out on its own keeps saying so.
    retain(metadata, "annotations", |key, value| match key {
        annotation::INJECT => {
            let disabled = value == "disabled";
            match disabled {
                true => !manual,
                false => depth == Depth::Injection,
            }
        }
        annotation::PROXY_STAMP => false,
        annotation::DEFAULT_CONTAINER => !manual,
        key if key.starts_with("linkerd.io/") => false,
        key => depth == Depth::Injection || !is_setting(key),
    });
    let components = metadata
        .get("labels")
        .is_some_and(|labels| labels.get(heddle_mesh::label::CONTROL_PLANE_COMPONENT).is_some());
    if !components {
        const OURS: [&str; 2] = [
            heddle_mesh::label::CONTROL_PLANE_NS,
            heddle_mesh::label::WORKLOAD_NS,
        ];
        retain(metadata, "labels", |key, _| {
            !OURS.contains(&key) && !key.starts_with(heddle_mesh::label::PROXY_OWNER_PREFIX)
        });
    }
}

fn is_setting(key: &str) -> bool {
    let prefixes = [
        annotation::CONFIG_PREFIX,
        annotation::CONFIG_ALPHA_PREFIX,
        annotation::CONFIG_BETA_PREFIX,
    ];
    prefixes.iter().any(|prefix| key.starts_with(prefix))
}

fn drop_named(spec: &mut Map<String, Value>, list: &str, names: &[&str]) {
    let Some(items) = spec.get_mut(list).and_then(Value::as_array_mut) else {
        return;
    };
    let before = items.len();
    items.retain(|item| item["name"].as_str().is_none_or(|name| !names.contains(&name)));
    if items.is_empty() && before > 0 {
        spec.remove(list);
    }
}

fn retain(metadata: &mut Map<String, Value>, map: &str, keep: impl Fn(&str, &Value) -> bool) {
    let Some(entries) = metadata.get_mut(map).and_then(Value::as_object_mut) else {
        return;
    };
    let before = entries.len();
    entries.retain(|key, value| keep(key, value));
    if entries.is_empty() && before > 0 {
        metadata.remove(map);
    }
}
