//! Stories about decisions. Builders first; the stories are in the modules below.

mod annotation;
mod beside;
mod golden;
mod noise;
mod stamp;
mod truth;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

use crate::{Decision, Injection, Namespace, Owner, ProxyDefaults, SeenPod, SkipReason, decide};

type Map = BTreeMap<String, String>;

const ANCHORS: &str = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";

fn map(entries: &[(&str, &str)]) -> Map {
    entries
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

/// A pod with one container that declares port 8080.
fn mk_pod(annotations: &[(&str, &str)]) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "web-0"},
        "spec": {"containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080, "name": "http"}]}]},
    });
    if !annotations.is_empty() {
        pod["metadata"]["annotations"] = json!(map(annotations));
    }
    read(pod)
}

fn read(pod: Value) -> Pod {
    serde_json::from_value(pod).expect("a pod")
}

/// Decides in namespace `payments` with the given annotations.
fn decide_in(namespace: &[(&str, &str)], pod: &Pod) -> Decision {
    decide_with(&ProxyDefaults::default(), namespace, pod)
}

fn decide_with(defaults: &ProxyDefaults, namespace: &[(&str, &str)], pod: &Pod) -> Decision {
    let (annotations, labels) = (map(namespace), Map::new());
    let namespace = Namespace {
        name: "payments",
        annotations: &annotations,
        labels: &labels,
    };
    let decision = decide(defaults, &namespace, pod, None);
    let seen: SeenPod = serde_json::to_value(pod)
        .and_then(serde_json::from_value)
        .expect("a pod");
    assert_eq!(
        decide(defaults, &namespace, &seen.0, None),
        decision,
        "what admission reads of a pod is enough for every story"
    );
    decision
}

fn injected(decision: Decision) -> Injection {
    match decision {
        Decision::Inject(injection) => *injection,
        Decision::Skip(reason) => panic!("not injected: {reason}"),
    }
}

fn skipped(decision: Decision) -> SkipReason {
    match decision {
        Decision::Inject(_) => panic!("injected"),
        Decision::Skip(reason) => reason,
    }
}

/// The pod after its patch, as the API server would make it.
fn patched(pod: &Pod, injection: &Injection) -> Value {
    let mut value = serde_json::to_value(pod).expect("a pod is JSON");
    json_patch::patch(&mut value, &injection.patch(ANCHORS)).expect("the patch applies");
    value
}

fn owner(kind: &str, name: &str) -> Owner {
    Owner {
        api_version: "apps/v1".into(),
        kind: kind.into(),
        name: name.into(),
    }
}
