//! Reads the [`Fleet`]: workloads, namespaces and pods, as lists now or from watch caches.

use std::collections::BTreeMap;

use heddle_inject::Owner;
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, ObjectMeta, PartialObjectMeta},
};

use crate::{
    cluster::ClusterError,
    object::ObjectId,
    rollout::{Fleet, NamespaceSeen, Workload, stamp_of},
};

/// Pods that have ended keep the stamp they had; they do not count.
pub const LIVE_PODS: &str = "status.phase!=Succeeded,status.phase!=Failed";
/// How many objects one page of a list holds.
const PAGE: u32 = 500;

/// Lists everything once.
///
/// # Errors
/// The API server does not answer.
pub async fn list(client: &Client) -> Result<Fleet, ClusterError> {
    let failed = |object: &str| {
        let object = object.to_owned();
        move |source: kube::Error| ClusterError::Request {
            verb: "list",
            object,
            source: source.into(),
        }
    };
    let all = ListParams::default().limit(PAGE);
    let pods = ListParams::default().limit(PAGE).fields(LIVE_PODS);
    let namespaces: Vec<Namespace> = pages(&Api::all(client.clone()), all.clone())
        .await
        .map_err(failed("namespaces"))?;
    let deployments: Vec<Deployment> = pages(&Api::all(client.clone()), all.clone())
        .await
        .map_err(failed("deployments"))?;
    let stateful: Vec<StatefulSet> = pages(&Api::all(client.clone()), all.clone())
        .await
        .map_err(failed("statefulsets"))?;
    let daemons: Vec<DaemonSet> = pages(&Api::all(client.clone()), all)
        .await
        .map_err(failed("daemonsets"))?;
    let pods = pages_of_metadata(&Api::all(client.clone()), pods)
        .await
        .map_err(failed("pods"))?;
    let mut builder = Builder::default();
    namespaces
        .iter()
        .for_each(|namespace| builder.namespace(namespace));
    deployments
        .iter()
        .for_each(|deployment| builder.deployment(deployment));
    stateful
        .iter()
        .for_each(|stateful| builder.stateful_set(stateful));
    daemons.iter().for_each(|daemon| builder.daemon_set(daemon));
    pods.iter().for_each(|pod| builder.pod(&pod.metadata));
    Ok(builder.build())
}

async fn pages<K>(api: &Api<K>, mut params: ListParams) -> Result<Vec<K>, kube::Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let mut items = Vec::new();
    loop {
        let page = api.list(&params).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

async fn pages_of_metadata(
    api: &Api<Pod>,
    mut params: ListParams,
) -> Result<Vec<PartialObjectMeta<Pod>>, kube::Error> {
    let mut items = Vec::new();
    loop {
        let page = api.list_metadata(&params).await?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(items),
        }
    }
}

/// Puts a fleet together, whatever the objects come from.
#[derive(Default)]
pub struct Builder {
    fleet: Fleet,
    pods: BTreeMap<(String, String, String), Vec<Option<String>>>,
}

impl Builder {
    pub fn namespace(&mut self, namespace: &Namespace) {
        let seen = NamespaceSeen {
            annotations: namespace.annotations().clone(),
            labels: namespace.labels().clone(),
        };
        self.fleet.namespaces.insert(namespace.name_any(), seen);
    }

    pub fn deployment(&mut self, deployment: &Deployment) {
        let (Some(spec), status) = (&deployment.spec, deployment.status.clone().unwrap_or_default()) else {
            return;
        };
        let wanted = spec.replicas.unwrap_or(1);
        let complete = status.observed_generation >= deployment.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.replicas.unwrap_or(0) <= wanted
            && status.available_replicas.unwrap_or(0) >= wanted;
        let on_delete = false;
        let paused = spec.paused.unwrap_or(false);
        self.workload(
            "Deployment",
            &deployment.metadata,
            spec.template.clone(),
            (complete, paused, on_delete),
        );
    }

    pub fn stateful_set(&mut self, set: &StatefulSet) {
        let (Some(spec), status) = (&set.spec, set.status.clone().unwrap_or_default()) else {
            return;
        };
        let wanted = spec.replicas.unwrap_or(1);
        let strategy = spec.update_strategy.clone().unwrap_or_default();
        // A partition holds back pods on purpose, as OnDelete does.
        let partition = strategy
            .rolling_update
            .and_then(|rolling| rolling.partition)
            .unwrap_or(0);
        let on_delete = strategy.type_.as_deref() == Some("OnDelete") || partition > 0;
        let complete = status.observed_generation >= set.metadata.generation
            && status.updated_replicas.unwrap_or(0) >= wanted
            && status.ready_replicas.unwrap_or(0) >= wanted
            && status.current_revision == status.update_revision;
        self.workload(
            "StatefulSet",
            &set.metadata,
            spec.template.clone(),
            (complete, false, on_delete),
        );
    }

    pub fn daemon_set(&mut self, set: &DaemonSet) {
        let (Some(spec), Some(status)) = (&set.spec, &set.status) else {
            return;
        };
        let on_delete = spec
            .update_strategy
            .as_ref()
            .and_then(|strategy| strategy.type_.as_deref())
            == Some("OnDelete");
        let wanted = status.desired_number_scheduled;
        let complete = status.observed_generation >= set.metadata.generation
            && status.updated_number_scheduled.unwrap_or(0) >= wanted
            && status.number_available.unwrap_or(0) >= wanted;
        self.workload(
            "DaemonSet",
            &set.metadata,
            spec.template.clone(),
            (complete, false, on_delete),
        );
    }

    fn workload(
        &mut self,
        kind: &str,
        meta: &ObjectMeta,
        template: k8s_openapi::api::core::v1::PodTemplateSpec,
        (complete, paused, on_delete): (bool, bool, bool),
    ) {
        let (Some(namespace), Some(name)) = (&meta.namespace, &meta.name) else {
            return;
        };
        if meta.deletion_timestamp.is_some() {
            return;
        }
        let id = ObjectId::new("apps", kind, namespace, name);
        self.fleet.workloads.push(Workload {
            id,
            template,
            complete,
            paused,
            on_delete,
            pods: Vec::new(),
        });
    }

    /// A pod that has not ended, by its metadata alone.
    pub fn pod(&mut self, meta: &ObjectMeta) {
        if meta.deletion_timestamp.is_some() {
            return;
        }
        let pod = Pod {
            metadata: ObjectMeta {
                owner_references: meta.owner_references.clone(),
                labels: meta.labels.clone(),
                ..ObjectMeta::default()
            },
            ..Pod::default()
        };
        let (Some(owner), Some(namespace)) = (Owner::of_pod(&pod), &meta.namespace) else {
            return;
        };
        let stamp = stamp_of(meta.annotations.as_ref());
        self.pods
            .entry((namespace.clone(), owner.kind, owner.name))
            .or_default()
            .push(stamp);
    }

    pub fn build(mut self) -> Fleet {
        for workload in &mut self.fleet.workloads {
            let key = (
                workload.id.namespace.clone(),
                workload.id.kind.clone(),
                workload.id.name.clone(),
            );
            workload.pods = self.pods.remove(&key).unwrap_or_default();
        }
        self.fleet.workloads.sort_by(|a, b| a.id.cmp(&b.id));
        self.fleet
    }
}
