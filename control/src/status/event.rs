//! Warning Events about what is wrong with objects, one for each problem.
//!
//! An Event is named after what it says. So the API server itself refuses a second one while the first is there (an hour,
//! unless it is configured otherwise), whichever replica told it, and however often the problem comes and goes.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use heddle_control_index::status::{CONTROLLER_NAME, Notice};
use k8s_openapi::{
    api::core::v1::{Event, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use prometheus_client::metrics::{counter::Counter, family::Family};
use tokio::time::Instant;
use tracing::warn;

use super::{EventLabel, Written, resource};
use crate::lease::{Leadership, WriteError};

/// Who writes statuses and Events, for the API server's records.
pub(super) const MANAGER: &str = "linkerd-policy-controller";
const TOLD_MAX: usize = 4096;
/// In one round: what is left is told in the next.
const TELL_MAX: usize = 64;
/// Longer than Events last, so that it is told again only when nobody can see it any more.
const TELL_AGAIN: Duration = Duration::from_secs(61 * 60);
const RETRY: Duration = Duration::from_secs(60);
/// The API server refuses longer notes.
const NOTE_BYTES_MAX: usize = 1024;
const NAME_MAX: usize = 200;

/// Records Events, and remembers which.
pub(super) struct Teller {
    client: Client,
    /// When to tell a notice again.
    told: HashMap<Notice, Instant>,
    results: Family<EventLabel, Counter>,
}

impl Teller {
    pub(super) fn new(client: Client, results: Family<EventLabel, Counter>) -> Self {
        Self {
            client,
            told: HashMap::new(),
            results,
        }
    }

    /// Tells of what has not been told yet.
    pub(super) async fn tell(&mut self, notices: Vec<Notice>, leadership: &Leadership) {
        let now = Instant::now();
        let current: HashSet<&Notice> = notices.iter().collect();
        self.told
            .retain(|notice, again_at| current.contains(notice) && now < *again_at);
        let new: Vec<Notice> = notices
            .iter()
            .filter(|notice| !self.told.contains_key(*notice))
            .take(TELL_MAX)
            .cloned()
            .collect();
        for notice in new {
            let result = match self.record(&notice, leadership).await {
                Ok(()) => Written::Done,
                Err(WriteError::NotLeading) => return,
                Err(error) if error.code() == Some(409) => Written::Needless,
                Err(error) => {
                    let Notice { key, reason, .. } = &notice;
                    warn!(namespace = %key.namespace, name = %key.name, reason, %error, "Failed to record an Event");
                    Written::Failed
                }
            };
            self.results.get_or_create(&EventLabel { result }).inc();
            let again = if result == Written::Failed {
                RETRY
            } else {
                TELL_AGAIN
            };
            if self.told.len() < TOLD_MAX {
                self.told.insert(notice, now + again);
            }
        }
    }

    async fn record(&self, notice: &Notice, leadership: &Leadership) -> Result<(), WriteError> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &notice.key.namespace);
        let event = event(notice, Timestamp::now());
        let permit = leadership.permit().await?;
        permit.write(api.create(&PostParams::default(), &event)).await?;
        Ok(())
    }
}

fn event(notice: &Notice, now: Timestamp) -> Event {
    let Notice {
        subject,
        key,
        uid,
        reason,
        note,
    } = notice;
    let mut hash = DefaultHasher::new();
    notice.hash(&mut hash);
    let name: String = key.name.chars().take(NAME_MAX).collect();
    let mut note = note.clone();
    while note.len() > NOTE_BYTES_MAX {
        note.pop();
    }
    let kind = resource::regarding(*subject);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:016x}", hash.finish())),
            namespace: Some(key.namespace.to_string()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(kind.api_version),
            kind: Some(kind.kind),
            name: Some(key.name.to_string()),
            namespace: Some(key.namespace.to_string()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        },
        reason: Some((*reason).to_owned()),
        message: Some(note),
        type_: Some("Warning".to_owned()),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        source: Some(EventSource {
            component: Some(MANAGER.to_owned()),
            host: None,
        }),
        reporting_component: Some(CONTROLLER_NAME.to_owned()),
        ..Event::default()
    }
}
