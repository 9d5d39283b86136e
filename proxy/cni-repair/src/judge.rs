//! Whether a pod is to be repaired. Pure.

use heddle_mesh::port;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};
use kube::ResourceExt as _;

/// The validator's exit code when it found no redirection; Linkerd's number.
const NOT_REDIRECTED: i32 = 95;

/// What is to become of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It is deleted; whoever controls it makes another.
    Delete {
        /// The controller's uid: deletions for one controller are spaced out.
        controller: String,
    },
    /// It failed, but nobody would make another: its owner is told.
    Tell,
}

/// Judges a pod of `node`.
pub fn judge(pod: &Pod, node: &str) -> Verdict {
    let Some(spec) = &pod.spec else {
        return Verdict::Keep;
    };
    if spec.node_name.as_deref() != Some(node) || pod.metadata.deletion_timestamp.is_some() || !failed(pod) {
        return Verdict::Keep;
    }
    match pod
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true))
    {
        Some(owner) => Verdict::Delete {
            controller: owner.uid.clone(),
        },
        None => Verdict::Tell,
    }
}

/// Whether the validator's last run found no redirection.
fn failed(pod: &Pod) -> bool {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.init_container_statuses.as_deref())
        .unwrap_or_default();
    let validator = statuses
        .iter()
        .find(|status| status.name == port::NETWORK_VALIDATOR_CONTAINER);
    let Some(ContainerStatus {
        state, last_state, ..
    }) = validator
    else {
        return false;
    };
    let code = |state: &Option<ContainerState>| Some(state.as_ref()?.terminated.as_ref()?.exit_code);
    // Between two runs the last one's end is in last_state; right after it, in state.
    code(state).or_else(|| code(last_state)) == Some(NOT_REDIRECTED)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mk_pod(changes: &[(&str, Value)]) -> Pod {
        let mut pod = json!({
            "metadata": {"name": "web-1", "namespace": "payments", "uid": "u", "deletionTimestamp": null,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true}]},
            "spec": {"nodeName": "a", "containers": []},
            "status": {"initContainerStatuses": [{
                "name": "linkerd-network-validator", "image": "i", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                "lastState": {"terminated": {"exitCode": 95}},
            }]},
        });
        for (pointer, value) in changes {
            *pod.pointer_mut(pointer).expect("the pointer points somewhere") = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    const STATUS: &str = "/status/initContainerStatuses/0";

    #[test]
    fn a_pod_whose_validator_failed_is_deleted() {
        let delete = Verdict::Delete {
            controller: "rs".into(),
        };
        assert_eq!(judge(&mk_pod(&[]), "a"), delete);
        let at_once = [
            (
                &*format!("{STATUS}/state"),
                json!({"terminated": {"exitCode": 95}}),
            ),
            (&*format!("{STATUS}/lastState"), json!({})),
        ];
        assert_eq!(judge(&mk_pod(&at_once), "a"), delete);
    }

    #[test]
    fn all_others_are_kept() {
        let kept = |changes: &[(&str, Value)], node| assert_eq!(judge(&mk_pod(changes), node), Verdict::Keep);
        kept(&[], "b");
        kept(
            &[("/metadata/deletionTimestamp", json!("2026-01-01T00:00:00Z"))],
            "a",
        );
        kept(&[(&format!("{STATUS}/name"), json!("linkerd-init"))], "a");
        kept(
            &[(&format!("{STATUS}/lastState/terminated/exitCode"), json!(1))],
            "a",
        );
        // It failed once, and then it did not.
        kept(
            &[(&format!("{STATUS}/state"), json!({"terminated": {"exitCode": 0}}))],
            "a",
        );
        kept(&[("/status", json!({}))], "a");
    }

    #[test]
    fn a_pod_that_nobody_would_make_again_is_not_deleted() {
        assert_eq!(
            judge(&mk_pod(&[("/metadata/ownerReferences", json!([]))]), "a"),
            Verdict::Tell
        );
    }
}
