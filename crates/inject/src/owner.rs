//! The workload that a pod belongs to.

use k8s_openapi::api::core::v1::Pod;

/// A pod's workload: the object that a user wrote.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// API version, such as `apps/v1`.
    pub api_version: String,
    /// Kind, such as `Deployment`.
    pub kind: String,
    /// Name, in the pod's namespace.
    pub name: String,
}

impl Owner {
    /// The workload as far as the pod alone tells: its controller, or the Deployment behind its ReplicaSet.
    ///
    /// A Deployment's ReplicaSet is called `NAME-HASH`, and the pod's label `pod-template-hash` holds HASH. Without
    /// that label a ReplicaSet may stand for itself or belong to something else; [`Owner::is_certain`] says so.
    pub fn of_pod(pod: &Pod) -> Option<Self> {
        let references = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let reference = references
            .iter()
            .find(|r| r.controller == Some(true))
            .or(references.first())?;
        let own = Self {
            api_version: reference.api_version.clone(),
            kind: reference.kind.clone(),
            name: reference.name.clone(),
        };
        if own.kind != "ReplicaSet" {
            return Some(own);
        }
        let hash = pod
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("pod-template-hash"));
        let deployment = hash.and_then(|hash| own.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
        let Some(name) = deployment.filter(|name| !name.is_empty()) else {
            return Some(own);
        };
        Some(Self {
            api_version: own.api_version,
            kind: "Deployment".to_owned(),
            name: name.to_owned(),
        })
    }

    /// Whether the pod alone was enough: a bare ReplicaSet may have an owner of its own, and so may a Job.
    pub fn is_certain(&self) -> bool {
        !matches!(self.kind.as_str(), "ReplicaSet" | "Job")
    }

    /// Whether Linkerd has a label `linkerd.io/proxy-KIND` for it.
    pub(crate) fn is_labelled(&self) -> bool {
        const KINDS: [&str; 7] = [
            "Deployment",
            "ReplicaSet",
            "ReplicationController",
            "Job",
            "CronJob",
            "DaemonSet",
            "StatefulSet",
        ];
        KINDS.contains(&self.kind.as_str())
    }
}
