//! Whether an object has become what its spec says, by the rules of kstatus. Pure.

use heddle_mesh::annotation;
use serde_json::Value;

use crate::object::{self, ObjectId};

/// How far an object has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Not yet, and what is missing.
    Waiting(String),
}

/// Judges a live object. Kinds that have nothing to wait for are ready.
pub fn of(id: &ObjectId, live: &Value) -> Readiness {
    let wait = |text: String| Readiness::Waiting(text);
    let number = |path: &[&str]| object::at(live, path).and_then(Value::as_i64);
    let observed = number(&["status", "observedGeneration"]).unwrap_or(0)
        >= number(&["metadata", "generation"]).unwrap_or(0);
    match (id.group.as_str(), id.kind.as_str()) {
        ("apiextensions.k8s.io", "CustomResourceDefinition")
            if condition(live, "Established") != Some("True") =>
        {
            wait("it is not established".into())
        }
        ("", "Namespace") if object::text_at(live, &["status", "phase"]) == Some("Terminating") => {
            wait("it is being deleted".into())
        }
        ("apps", "Deployment") => {
            let wanted = number(&["spec", "replicas"]).unwrap_or(1);
            let updated = number(&["status", "updatedReplicas"]).unwrap_or(0);
            let available = number(&["status", "availableReplicas"]).unwrap_or(0);
            match () {
                () if !observed => wait("its controller has not seen it yet".into()),
                () if updated < wanted => wait(format!("{updated} of {wanted} replicas are up to date")),
                () if available < wanted => wait(format!("{available} of {wanted} replicas are available")),
                () if number(&["status", "replicas"]).unwrap_or(0) > wanted => {
                    wait("old replicas are still ending".into())
                }
                () => Readiness::Ready,
            }
        }
        ("apps", "StatefulSet") => {
            let wanted = number(&["spec", "replicas"]).unwrap_or(1);
            let ready = number(&["status", "readyReplicas"]).unwrap_or(0);
            if observed && ready >= wanted {
                Readiness::Ready
            } else {
                wait(format!("{ready} of {wanted} replicas are ready"))
            }
        }
        ("apps", "DaemonSet") => {
            let wanted = number(&["status", "desiredNumberScheduled"]).unwrap_or(0);
            let ready = number(&["status", "numberAvailable"]).unwrap_or(0);
            if observed && ready >= wanted {
                Readiness::Ready
            } else {
                wait(format!("{ready} of {wanted} pods are available"))
            }
        }
        ("cert-manager.io", "Certificate" | "Issuer" | "ClusterIssuer")
            if condition(live, "Ready") != Some("True") =>
        {
            wait("cert-manager has not made it ready".into())
        }
        ("admissionregistration.k8s.io", _) if waits_for_bundle(live) => {
            wait("its webhook has no caBundle yet".into())
        }
        _ => Readiness::Ready,
    }
}

/// Our webhooks get their caBundle from the program that serves them, once it does.
fn waits_for_bundle(live: &Value) -> bool {
    let hooks = live.get("webhooks").and_then(Value::as_array);
    let by_service = |hook: &&Value| object::at(hook, &["clientConfig", "service"]).is_some();
    hooks
        .into_iter()
        .flatten()
        .filter(by_service)
        .any(|hook| object::text_at(hook, &["clientConfig", "caBundle"]).is_none_or(str::is_empty))
}

/// The status of a condition.
pub fn condition<'a>(live: &'a Value, name: &str) -> Option<&'a str> {
    let conditions = object::at(live, &["status", "conditions"])?.as_array()?;
    let found = conditions
        .iter()
        .find(|condition| condition.get("type").and_then(Value::as_str) == Some(name))?;
    found.get("status").and_then(Value::as_str)
}

/// Whether an object's readiness is waited for at all.
pub fn is_awaited(id: &ObjectId, body: &Value) -> bool {
    let kind = matches!(
        (id.group.as_str(), id.kind.as_str()),
        ("apiextensions.k8s.io", "CustomResourceDefinition")
            | ("apps", "Deployment" | "StatefulSet" | "DaemonSet")
            | ("cert-manager.io", "Certificate" | "Issuer" | "ClusterIssuer")
            | ("admissionregistration.k8s.io", _)
    );
    kind && object::text_at(body, &["metadata", "annotations", annotation::RECONCILE]) != Some("disabled")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployment_is_ready_when_all_replicas_are_new_and_available() {
        let id = ObjectId::new("apps", "Deployment", "a", "b");
        let live = |status| json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status});
        let at = |status| of(&id, &live(status));
        assert_eq!(
            at(json!({})),
            Readiness::Waiting("its controller has not seen it yet".into())
        );
        let seen =
            json!({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 1, "replicas": 2});
        assert_eq!(
            at(seen),
            Readiness::Waiting("1 of 2 replicas are available".into())
        );
        assert_eq!(
            at(json!({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 2})),
            Readiness::Ready
        );
        let old =
            json!({"observedGeneration": 2, "updatedReplicas": 2, "availableReplicas": 2, "replicas": 3});
        assert_eq!(
            at(old),
            Readiness::Waiting("old replicas are still ending".into())
        );
    }

    #[test]
    fn a_webhook_is_ready_when_it_can_be_called() {
        let id = ObjectId::new(
            "admissionregistration.k8s.io",
            "MutatingWebhookConfiguration",
            "",
            "x",
        );
        let hook =
            |bundle| json!({"webhooks": [{"clientConfig": {"service": {"name": "x"}, "caBundle": bundle}}]});
        assert_eq!(
            of(&id, &hook("")),
            Readiness::Waiting("its webhook has no caBundle yet".into())
        );
        assert_eq!(of(&id, &hook("abc")), Readiness::Ready);
    }
}
