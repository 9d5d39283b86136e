//! Writes what the index judges into the statuses of objects, and tells people by Events what has no status.
//!
//! In go the index's judgements (`heddle_control_index::status`); out go patches of statuses. Only the replica that
//! holds the Lease writes, and only where a status does not say what it should: nothing is written at rest. It never
//! judges anything itself.

mod document;
mod event;
mod resource;

use std::{collections::HashMap, time::Duration};

use futures_util::StreamExt as _;
use heddle_control_index::{
    Cluster, ObjectKey,
    status::{Judgement, Subject},
};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::DynamicObject,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use self::event::Teller;
use crate::lease::{Leadership, WriteError};

/// The Lease; Linkerd's.
pub(crate) const LEASE: &str = "policy-controller-write";

/// What comes in together (a commit's objects) is judged together.
const SETTLE: Duration = Duration::from_millis(200);
/// Statuses that are compared and written at a time; the Lease permits no more writes either.
const CONCURRENT: usize = 4;
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// A status that changes under our hands this often is left for the next round.
const CONFLICTS_MAX: usize = 3;
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// A definition without a status (Linkerd's Servers have none) may be replaced by one that has it.
const STATUSLESS_FOR: Duration = Duration::from_secs(5 * 60);
/// Events end after an hour, so problems that stay are looked for now and then.
const LOOK_AGAIN: Duration = Duration::from_secs(10 * 60);

/// Writes statuses.
pub(crate) struct Writer {
    client: Client,
    cluster: Cluster,
    leadership: Leadership,
    metrics: Metrics,
    teller: Teller,
    /// Objects whose status could not be written, and when to try again.
    failed: HashMap<(Subject, ObjectKey), Failure>,
    /// Kinds whose definition has no status, and until when to believe that.
    statusless: HashMap<Subject, Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Failure {
    again_at: Instant,
    delay: Duration,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    writes: Family<Label, Counter>,
    conflicts: Counter,
    events: Family<EventLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    kind: &'static str,
    result: Written,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    result: Written,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum Written {
    Done,
    /// The object said so already, or is gone.
    Needless,
    /// The kind has no status in this cluster.
    Statusless,
    Failed,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self {
            writes,
            conflicts,
            events,
        } = &metrics;
        registry.register(
            "status_writes",
            "Statuses that were to be written, by result",
            writes.clone(),
        );
        registry.register(
            "status_conflicts",
            "Statuses that another program wrote at the same time",
            conflicts.clone(),
        );
        registry.register(
            "status_events",
            "Events that were to be recorded, by result",
            events.clone(),
        );
        metrics
    }
}

impl Writer {
    pub(crate) fn new(client: Client, cluster: Cluster, leadership: Leadership, metrics: Metrics) -> Self {
        Self {
            teller: Teller::new(client.clone(), metrics.events.clone()),
            client,
            cluster,
            leadership,
            metrics,
            failed: HashMap::new(),
            statusless: HashMap::new(),
        }
    }

    /// Runs until dropped. The index must be complete: before that, what exists would be called missing.
    pub(crate) async fn run(mut self) {
        let mut judged = self.cluster.judged();
        let mut leadership = self.leadership.clone();
        loop {
            leadership.leading().await;
            sleep(SETTLE).await;
            judged.mark_unchanged();
            let again_in = self.round().await;
            tokio::select! {
                changed = judged.changed() => if changed.is_err() {
                    return;
                },
                () = leadership.lost() => {
                    // The next leader may have met with other things since.
                    self.failed.clear();
                }
                () = sleep(again_in) => {}
            }
        }
    }

    /// Writes what is to be written; returns when to look again without a change.
    async fn round(&mut self) -> Duration {
        let now = Instant::now();
        self.statusless.retain(|_, until| now < *until);
        let mut wrong = self.cluster.judgements();
        let is_wrong: std::collections::HashSet<_> =
            wrong.iter().map(|one| (one.subject, one.key.clone())).collect();
        self.failed.retain(|id, _| is_wrong.contains(id));
        wrong.retain(|one| {
            let failure = self.failed.get(&(one.subject, one.key.clone()));
            !self.statusless.contains_key(&one.subject)
                && failure.is_none_or(|failure| failure.again_at <= now)
        });
        let results: Vec<(Judgement, Written)> = futures_util::stream::iter(wrong)
            .map(|judgement| async {
                let written = self.write(&judgement).await;
                (judgement, written)
            })
            .buffer_unordered(CONCURRENT)
            .collect()
            .await;
        for (judgement, written) in results {
            self.settle(judgement, written);
        }
        self.teller.tell(self.cluster.notices(), &self.leadership).await;
        let next = self.failed.values().map(|failure| failure.again_at).min();
        next.map_or(LOOK_AGAIN, |at| at.saturating_duration_since(Instant::now()))
    }

    fn settle(&mut self, judgement: Judgement, result: Written) {
        let Judgement { subject, key, .. } = judgement;
        let label = Label {
            kind: resource::name(subject),
            result,
        };
        self.metrics.writes.get_or_create(&label).inc();
        let id = (subject, key);
        match result {
            Written::Done | Written::Needless => {
                self.failed.remove(&id);
            }
            Written::Statusless => {
                info!(
                    kind = label.kind,
                    "The kind's definition has no status: going on without"
                );
                self.statusless.insert(subject, Instant::now() + STATUSLESS_FOR);
            }
            Written::Failed => {
                let last = self.failed.get(&id).map(|failure| failure.delay * 2);
                let delay = last.unwrap_or(RETRY_MIN).min(RETRY_MAX);
                let again_at = Instant::now() + delay;
                self.failed.insert(id, Failure { again_at, delay });
            }
        }
    }

    async fn write(&self, judgement: &Judgement) -> Written {
        let Judgement { subject, key, .. } = judgement;
        match self.try_write(judgement).await {
            Ok(written) => {
                debug!(
                    kind = resource::name(*subject),
                    namespace = %key.namespace,
                    name = %key.name,
                    ?written,
                    "Status"
                );
                written
            }
            Err(WriteError::NotLeading) => Written::Needless,
            Err(error) => {
                warn!(
                    kind = resource::name(*subject), namespace = %key.namespace, name = %key.name, %error,
                    "Failed to write a status"
                );
                Written::Failed
            }
        }
    }

    /// Reads the object anew each time: entries of other controllers are kept as they are now, not as they were.
    async fn try_write(&self, judgement: &Judgement) -> Result<Written, WriteError> {
        let Judgement {
            subject,
            key,
            uid,
            status,
        } = judgement;
        for _ in 0..CONFLICTS_MAX {
            let found = self.find(*subject, key).await?;
            let Some((api, live)) = found.filter(|(_, live)| live.metadata.uid.as_ref() == Some(uid)) else {
                return Ok(Written::Needless);
            };
            let version = live.metadata.resource_version.clone().unwrap_or_default();
            let old = live.data.get("status").cloned().unwrap_or(Value::Null);
            let Some(new) = document::merge(&old, status, &Timestamp::now()) else {
                return Ok(Written::Needless);
            };
            let patch = serde_json::json!({"metadata": {"resourceVersion": version}, "status": new});
            let permit = self.leadership.permit().await?;
            let params = PatchParams {
                field_manager: Some(event::MANAGER.to_owned()),
                ..PatchParams::default()
            };
            match permit
                .write(api.patch_status(&key.name, &params, &Patch::Merge(&patch)))
                .await
            {
                Ok(_) => return Ok(Written::Done),
                Err(error) => match error.code() {
                    Some(409) => self.metrics.conflicts.inc(),
                    // It was there a moment ago: what is missing is its status.
                    Some(404) => {
                        let is_there = self.find(*subject, key).await?.is_some();
                        return Ok(if is_there {
                            Written::Statusless
                        } else {
                            Written::Needless
                        });
                    }
                    _ => return Err(error),
                },
            };
        }
        Ok(Written::Failed)
    }

    /// Reads an object, in the first version of its kind that the cluster has.
    async fn find(
        &self,
        subject: Subject,
        key: &ObjectKey,
    ) -> Result<Option<(Api<DynamicObject>, DynamicObject)>, WriteError> {
        for resource in resource::of(subject) {
            let api: Api<DynamicObject> =
                Api::namespaced_with(self.client.clone(), &key.namespace, &resource);
            match timeout(READ_TIMEOUT, api.get(&key.name)).await {
                Ok(Ok(live)) => return Ok(Some((api, live))),
                // The object or the version: both are answered alike.
                Ok(Err(kube::Error::Api(status))) if status.code == 404 => {}
                Ok(Err(error)) => return Err(WriteError::Api(Box::new(error))),
                Err(_) => return Err(WriteError::Timeout),
            }
        }
        Ok(None)
    }
}
