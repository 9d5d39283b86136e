//! What is asked: AdmissionReviews as an API server writes them.

use bytes::Bytes;
use serde_json::{Value, json};

use super::world::{NAMESPACES, World};

/// A review's bytes, and what the answer must be.
pub(super) struct Question {
    pub(super) body: Bytes,
    pub(super) expected: Expected,
    pub(super) size: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Expected {
    Injected,
    LeftAlone,
    Refused,
}

/// A hundred questions, in an order that mixes them: 44 of 1 KiB, 40 of 8 KiB, 10 of 40 KiB, and among them 6 opt-outs, 2
/// with an annotation that cannot be read, and 2 that are cut short. Owners are ReplicaSets of Deployments, Jobs of
/// CronJobs, StatefulSets and nobody.
pub(super) fn questions(world: &World) -> Vec<Question> {
    // 37 and 100 have no common factor: each number comes once.
    (0..100)
        .map(|index| question(world, index * 37 % 100, index))
        .collect()
}

fn question(world: &World, kind: usize, index: usize) -> Question {
    let (size, bytes) = match kind {
        0..50 => ("1KiB", 1 << 10),
        50..90 => ("8KiB", 8 << 10),
        _ => ("40KiB", 40 << 10),
    };
    let mut pod = pod(world, index);
    let mut expected = Expected::Injected;
    match kind {
        0..6 => {
            pod["metadata"]["annotations"]["linkerd.io/inject"] = json!("disabled");
            expected = Expected::LeftAlone;
        }
        6..8 => {
            pod["metadata"]["annotations"]["config.linkerd.io/proxy-cpu-limit"] = json!("lots");
            expected = Expected::LeftAlone;
        }
        _ => {}
    }
    fill(&mut pod, bytes);
    let review = json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("705ab4f5-6393-11e8-b7cc-{index:012}"),
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "requestKind": {"group": "", "version": "v1", "kind": "Pod"},
            "requestResource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": NAMESPACES[index % NAMESPACES.len()], "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller", "uid": "u",
                "groups": ["system:serviceaccounts", "system:authenticated"]},
            "object": pod, "oldObject": null, "dryRun": false,
            "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    });
    let mut text = review.to_string();
    if (8..10).contains(&kind) {
        text.truncate(text.len() / 2);
        expected = Expected::Refused;
    }
    Question {
        body: Bytes::from(text),
        expected,
        size,
    }
}

/// A pod as the admission plugins before the webhooks leave it.
fn pod(world: &World, index: usize) -> Value {
    let namespace = NAMESPACES[index % NAMESPACES.len()];
    let mut metadata = json!({
        "generateName": format!("web-{index}-5d4f8c7b9-"), "namespace": namespace,
        "labels": {"app": "web", "pod-template-hash": "5d4f8c7b9"},
        "annotations": {"prometheus.io/scrape": "true"},
    });
    let owner = |kind: &str, version: &str, name: &str, uid: &str| json!([{"apiVersion": version, "kind": kind, "name": name, "uid": uid, "controller": true, "blockOwnerDeletion": true}]);
    match index % 8 {
        0..5 => metadata["ownerReferences"] = owner("ReplicaSet", "apps/v1", "web-5d4f8c7b9", "u"),
        5 => metadata["ownerReferences"] = owner("StatefulSet", "apps/v1", "db", "u"),
        6 => metadata["ownerReferences"] = owner("Job", "batch/v1", "nightly-1", world.job_uid(namespace)),
        _ => {}
    }
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": metadata,
        "spec": {
            "volumes": [{"name": "kube-api-access-x", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}],
            "containers": [{
                "name": "app", "image": "registry.example.com/team/app:1.2.3",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
                "resources": {"requests": {"cpu": "100m"}}, "imagePullPolicy": "IfNotPresent",
            }],
            "restartPolicy": "Always", "serviceAccountName": "default", "schedulerName": "default-scheduler",
        },
        "status": {},
    })
}

/// Makes the pod about as large as `bytes`, with what makes real pods large: more containers, environment, mounts.
fn fill(pod: &mut Value, bytes: usize) {
    let mut number = 0;
    while pod.to_string().len() + 200 < bytes {
        if number % 24 == 0 && number > 0 {
            let container = json!({
                "name": format!("app-{number}"), "image": "registry.example.com/team/sidecar:4.5.6", "env": [],
                "ports": [{"containerPort": 9000 + number, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"path": "/ready", "port": 9000 + number, "scheme": "HTTP"}, "periodSeconds": 10},
                "volumeMounts": [{"name": "kube-api-access-x", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
            });
            push(&mut pod["spec"]["containers"], container);
        }
        let last = pod["spec"]["containers"]
            .as_array()
            .map_or(0, |all| all.len() - 1);
        let variable = json!({"name": format!("SETTING_{number}"), "value": format!("the value of setting number {number}, of a usual length")});
        push(&mut pod["spec"]["containers"][last]["env"], variable);
        number += 1;
    }
}

fn push(list: &mut Value, item: Value) {
    match list.as_array_mut() {
        Some(items) => items.push(item),
        None => *list = Value::Array(vec![item]),
    }
}
