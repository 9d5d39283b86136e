//! The kinds of workload that Heddle injects, restarts and names in metrics.

use k8s_openapi::{
    Resource,
    api::{
        apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet},
        batch::v1::{CronJob, Job},
        core::v1::ReplicationController,
    },
};
use kube::core::GroupVersionKind;

/// A kind of object that makes pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkloadKind {
    /// apps/v1 Deployment.
    Deployment,
    /// apps/v1 StatefulSet.
    StatefulSet,
    /// apps/v1 DaemonSet.
    DaemonSet,
    /// apps/v1 ReplicaSet.
    ReplicaSet,
    /// v1 ReplicationController.
    ReplicationController,
    /// batch/v1 Job.
    Job,
    /// batch/v1 CronJob.
    CronJob,
}

impl WorkloadKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Deployment,
        Self::StatefulSet,
        Self::DaemonSet,
        Self::ReplicaSet,
        Self::ReplicationController,
        Self::Job,
        Self::CronJob,
    ];

    /// Those that replace their pods one by one when their pod template changes.
    pub const ROLLING: [Self; 3] = [Self::Deployment, Self::StatefulSet, Self::DaemonSet];

    /// The kind with this API group and name, as an owner reference writes them.
    pub fn from_group_kind(group: &str, kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|workload| {
            let gvk = workload.gvk();
            gvk.group == group && gvk.kind == kind
        })
    }

    /// The kind that an owner reference's `apiVersion` and `kind` name, whatever the version.
    pub fn from_api_version(api_version: &str, kind: &str) -> Option<Self> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        Self::from_group_kind(group, kind)
    }

    /// Group, version and kind.
    pub fn gvk(self) -> GroupVersionKind {
        fn of<K: Resource>() -> GroupVersionKind {
            GroupVersionKind::gvk(K::GROUP, K::VERSION, K::KIND)
        }
        match self {
            Self::Deployment => of::<Deployment>(),
            Self::StatefulSet => of::<StatefulSet>(),
            Self::DaemonSet => of::<DaemonSet>(),
            Self::ReplicaSet => of::<ReplicaSet>(),
            Self::ReplicationController => of::<ReplicationController>(),
            Self::Job => of::<Job>(),
            Self::CronJob => of::<CronJob>(),
        }
    }

    /// In lower case, as in the label `linkerd.io/proxy-deployment` and in `deployment/web`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::StatefulSet => "statefulset",
            Self::DaemonSet => "daemonset",
            Self::ReplicaSet => "replicaset",
            Self::ReplicationController => "replicationcontroller",
            Self::Job => "job",
            Self::CronJob => "cronjob",
        }
    }
}

impl std::fmt::Display for WorkloadKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owner_references_name_kinds_with_their_group() {
        assert_eq!(
            WorkloadKind::from_api_version("apps/v1", "Deployment"),
            Some(WorkloadKind::Deployment)
        );
        assert_eq!(
            WorkloadKind::from_api_version("v1", "ReplicationController"),
            Some(WorkloadKind::ReplicationController)
        );
        assert_eq!(
            WorkloadKind::from_api_version("batch/v1beta1", "CronJob"),
            Some(WorkloadKind::CronJob)
        );
        assert_eq!(
            WorkloadKind::from_api_version("example.com/v1", "Deployment"),
            None
        );
        assert_eq!(WorkloadKind::from_api_version("v1", "Node"), None);
    }
}
