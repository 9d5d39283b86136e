//! The loop: watches one node's pods, and deletes those that failed when their time comes.

use std::time::Duration;

use futures_util::StreamExt as _;
use heddle_mesh::label;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::{
    Api, Client, Resource as _, ResourceExt as _,
    api::{DeleteParams, Preconditions},
    runtime::{
        WatchStreamExt as _,
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use crate::{
    Metrics,
    judge::{Verdict, judge},
    queue::{Due, Queue},
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
const REASON: &str = "LinkerdCNINotConfigured";

/// What a repair controller works on.
pub struct Repair {
    /// The API server.
    pub client: Client,
    /// The one node whose pods are looked at.
    pub node: String,
    /// This pod's name, for Events.
    pub instance: Option<String>,
    /// Where it counts.
    pub metrics: Metrics,
}

/// Runs until dropped.
pub async fn run(repair: Repair) {
    let config = watcher::Config::default()
        .labels(label::CONTROL_PLANE_NS)
        .fields(&format!("spec.nodeName={}", repair.node));
    let pods = watcher(Api::<Pod>::all(repair.client.clone()), config).default_backoff();
    let mut pods = std::pin::pin!(pods);
    let recorder = Recorder::new(
        repair.client.clone(),
        Reporter {
            controller: "linkerd-cni-repair-controller".into(),
            instance: repair.instance.clone(),
        },
    );
    let mut queue = Queue::default();
    // Told once each; bounded like the queue.
    let mut told = std::collections::HashSet::new();
    loop {
        let next = queue.next();
        let due = async {
            match next {
                Some(time) => sleep_until(time).await,
                None => std::future::pending().await,
            }
        };
        // Both arms are cancel-safe: a stream's next item and a timer.
        tokio::select! {
            event = pods.next() => match event {
                Some(Ok(event)) => repair.take(event, &mut queue, &mut told, &recorder).await,
                Some(Err(error)) => warn!(%error, "The watch of pods was interrupted"),
                // The stream begins anew by itself and never ends.
                None => return,
            },
            () = due => {
                if let Some(pod) = queue.take(Instant::now()) {
                    repair.delete(pod, &mut queue, &recorder).await;
                }
            }
        }
    }
}

impl Repair {
    async fn take(
        &self,
        event: watcher::Event<Pod>,
        queue: &mut Queue,
        told: &mut std::collections::HashSet<String>,
        recorder: &Recorder,
    ) {
        let pod = match event {
            watcher::Event::Init => {
                queue.clear();
                told.clear();
                return;
            }
            watcher::Event::InitDone => return,
            watcher::Event::Delete(pod) => {
                let uid = pod.uid().unwrap_or_default();
                queue.remove(&uid);
                told.remove(&uid);
                return;
            }
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => pod,
        };
        let uid = pod.uid().unwrap_or_default();
        match judge(&pod, &self.node) {
            Verdict::Keep => queue.remove(&uid),
            Verdict::Delete { controller } => {
                let due = Due {
                    uid,
                    namespace: pod.namespace().unwrap_or_default(),
                    name: pod.name_any(),
                    controller,
                };
                if !queue.add(due) {
                    self.metrics.queue_overflow.inc();
                }
            }
            Verdict::Tell => {
                if told.insert(uid) {
                    self.metrics.pods_kept.inc();
                    let note = "The CNI plugin was not configured when this pod's network was made, so its traffic would \
                                bypass its proxy. No controller would make another pod: delete it and create it again";
                    self.publish(
                        recorder,
                        EventType::Warning,
                        "Keeping",
                        note,
                        &pod.object_ref(&()),
                    )
                    .await;
                }
            }
        }
    }

    async fn delete(&self, pod: Due, queue: &mut Queue, recorder: &Recorder) {
        let Due {
            uid, namespace, name, ..
        } = &pod;
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        let params = DeleteParams {
            // No container of it has run but the validator.
            grace_period_seconds: Some(0),
            // A StatefulSet's next pod has the same name.
            preconditions: Some(Preconditions {
                uid: Some(uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let start = Instant::now();
        match timeout(REQUEST_TIMEOUT, pods.delete(name, &params)).await {
            Ok(Ok(_)) => {
                info!(%namespace, %name, "Deleted a pod whose network the CNI plugin had not set up");
                self.metrics.pods_deleted.inc();
                self.metrics
                    .pods_delete_latency_seconds
                    .observe(start.elapsed().as_secs_f64());
                let reference = ObjectReference {
                    api_version: Some(Pod::api_version(&()).into_owned()),
                    kind: Some(Pod::kind(&()).into_owned()),
                    name: Some(name.clone()),
                    namespace: Some(namespace.clone()),
                    uid: Some(uid.clone()),
                    ..ObjectReference::default()
                };
                let note = "Deleting pod to create a new one with proper CNI config";
                self.publish(recorder, EventType::Normal, "Deleting", note, &reference)
                    .await;
            }
            // Gone, or another pod by now.
            Ok(Err(kube::Error::Api(status))) if status.is_not_found() || status.is_conflict() => {
                debug!(%namespace, %name, "The pod is gone already");
            }
            Ok(Err(error)) => {
                warn!(%namespace, %name, %error, "Failed to delete a pod");
                self.metrics.pods_delete_errors.inc();
                queue.add(pod);
            }
            Err(_) => {
                warn!(%namespace, %name, "Deleting a pod took too long");
                self.metrics.pods_delete_timeout.inc();
                queue.add(pod);
            }
        }
    }

    async fn publish(
        &self,
        recorder: &Recorder,
        type_: EventType,
        action: &str,
        note: &str,
        about: &ObjectReference,
    ) {
        let event = Event {
            type_,
            reason: REASON.into(),
            note: Some(note.into()),
            action: action.into(),
            secondary: None,
        };
        match timeout(REQUEST_TIMEOUT, recorder.publish(&event, about)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                warn!(%error, "Failed to publish an Event");
                self.metrics.events_publish_errors.inc();
            }
            Err(_) => {
                self.metrics.events_publish_timeout.inc();
            }
        }
    }
}
