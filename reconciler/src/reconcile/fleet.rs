//! Watch caches of namespaces, workloads and pods, shared by all meshes.

use std::{collections::BTreeMap, sync::Arc};

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher,
    },
};
use tokio::{sync::watch, task::JoinSet};
use tracing::debug;

use crate::{
    object::ObjectId,
    observe::fleet::{Builder, LIVE_PODS},
    rollout::Fleet,
};

/// The caches; they live as long as this.
pub struct FleetCache {
    namespaces: Store<Namespace>,
    deployments: Store<Deployment>,
    stateful_sets: Store<StatefulSet>,
    daemon_sets: Store<DaemonSet>,
    pods: Store<PartialObjectMeta<Pod>>,
    /// Counts changes.
    pub changes: watch::Receiver<u64>,
    _tasks: JoinSet<()>,
}

impl FleetCache {
    /// Begins to watch.
    pub fn start(client: &Client) -> Arc<Self> {
        let (sender, changes) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let (namespaces, writer) = reflector::store();
        tasks.spawn(keep(writer, full::<Namespace>(client), sender.clone()));
        let (deployments, writer) = reflector::store();
        tasks.spawn(keep(writer, full::<Deployment>(client), sender.clone()));
        let (stateful_sets, writer) = reflector::store();
        tasks.spawn(keep(writer, full::<StatefulSet>(client), sender.clone()));
        let (daemon_sets, writer) = reflector::store();
        tasks.spawn(keep(writer, full::<DaemonSet>(client), sender.clone()));
        let (pods, writer) = reflector::store();
        let config = watcher::Config::default().fields(LIVE_PODS);
        let stream = watcher(Api::<PartialObjectMeta<Pod>>::all(client.clone()), config)
            .default_backoff()
            .modify(|pod| {
                pod.metadata.managed_fields = None;
                // Of a pod's annotations only the stamp counts, and a large cluster has many pods.
                if let Some(annotations) = &mut pod.metadata.annotations {
                    annotations.retain(|key, _| key == heddle_inject::STAMP_ANNOTATION);
                }
            });
        tasks.spawn(keep(writer, stream, sender));
        Arc::new(Self {
            namespaces,
            deployments,
            stateful_sets,
            daemon_sets,
            pods,
            changes,
            _tasks: tasks,
        })
    }

    /// The fleet, once all first lists have come in.
    pub async fn ready(&self) {
        // An error means that the writer is gone, which only happens when all of this is dropped.
        let _ = self.namespaces.wait_until_ready().await;
        let _ = self.deployments.wait_until_ready().await;
        let _ = self.stateful_sets.wait_until_ready().await;
        let _ = self.daemon_sets.wait_until_ready().await;
        let _ = self.pods.wait_until_ready().await;
    }

    /// The annotations of a namespace, or of a workload's pod template; `None` when it does not exist.
    pub fn annotations_of(&self, id: &ObjectId) -> Option<BTreeMap<String, String>> {
        let template = |template: Option<&k8s_openapi::api::core::v1::PodTemplateSpec>| {
            template
                .and_then(|template| template.metadata.as_ref())
                .and_then(|meta| meta.annotations.clone())
                .unwrap_or_default()
        };
        let reference_name = id.name.as_str();
        match id.kind.as_str() {
            "Namespace" => {
                let found = self.namespaces.get(&ObjectRef::new(reference_name))?;
                Some(found.annotations().clone())
            }
            "Deployment" => {
                let found = self
                    .deployments
                    .get(&ObjectRef::new(reference_name).within(&id.namespace))?;
                Some(template(found.spec.as_ref().map(|spec| &spec.template)))
            }
            "StatefulSet" => {
                let found = self
                    .stateful_sets
                    .get(&ObjectRef::new(reference_name).within(&id.namespace))?;
                Some(template(found.spec.as_ref().map(|spec| &spec.template)))
            }
            "DaemonSet" => {
                let found = self
                    .daemon_sets
                    .get(&ObjectRef::new(reference_name).within(&id.namespace))?;
                Some(template(found.spec.as_ref().map(|spec| &spec.template)))
            }
            _ => None,
        }
    }

    /// The fleet as it is now.
    pub fn fleet(&self) -> Fleet {
        let mut builder = Builder::default();
        self.namespaces
            .state()
            .iter()
            .for_each(|namespace| builder.namespace(namespace));
        self.deployments
            .state()
            .iter()
            .for_each(|deployment| builder.deployment(deployment));
        self.stateful_sets
            .state()
            .iter()
            .for_each(|set| builder.stateful_set(set));
        self.daemon_sets
            .state()
            .iter()
            .for_each(|set| builder.daemon_set(set));
        self.pods
            .state()
            .iter()
            .for_each(|pod| builder.pod(&pod.metadata));
        builder.build()
    }
}

fn full<K>(client: &Client) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug
        + Send
        + 'static,
    Api<K>: Send,
{
    watcher(Api::<K>::all(client.clone()), watcher::Config::default())
        .default_backoff()
        .modify(|object| object.meta_mut().managed_fields = None)
}

async fn keep<K>(
    writer: Writer<K>,
    stream: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    changes: watch::Sender<u64>,
) where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let stream = reflector::reflector(writer, stream);
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_) | watcher::Event::InitDone) => {
                changes.send_modify(|count| *count += 1);
            }
            Ok(watcher::Event::Init | watcher::Event::InitApply(_)) => {}
            Err(error) => debug!(error = %crate::cli::chain(&error), "A watch broke off"),
        }
    }
}
