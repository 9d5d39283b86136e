//! The `Mesh` object: what was applied, how it went, and the Events that say so.
//!
//! A status is built in pure code from what happened, and written only when it differs from the one that is there: in
//! the steady state nothing is written. The conditions follow kstatus, so that Flux and `kubectl wait` understand them.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use heddle_k8s::mesh::{
    CONDITION_READY, CONDITION_RECONCILING, CONDITION_STALLED, HISTORY_MAX, HistoryEntry, Inventory,
    InventoryEntry, Mesh, MeshStatus, Outcome, PENDING_MAX, RolloutStatus,
};
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::Timestamp,
};
use serde_json::json;
use tokio::time::Instant;
use tracing::warn;

use crate::{
    cluster::{Cluster, ClusterError},
    object::{Object, ObjectId},
    plan::Plan,
    rollout::{Fleet, Verdict},
};

/// A condition's or an Event's message longer than this is cut; the API server takes 32 KiB and 1 KiB.
const MESSAGE_BYTES_MAX: usize = 1000;

/// How a pass ended.
#[derive(Clone, Debug, PartialEq)]
pub enum State {
    /// Everything is as the revision wants it.
    Ready,
    /// Applied, but workloads are still being restarted, or the mesh is not healthy yet.
    Progressing {
        reason: &'static str,
        message: String,
    },
    /// Failed; it is tried again.
    Failed {
        reason: &'static str,
        message: String,
    },
    /// Failed, and only a change of the source or the object can help.
    Stalled {
        reason: &'static str,
        message: String,
    },
    Suspended,
}

/// The identity of a Mesh object.
pub fn mesh_id(name: &str) -> ObjectId {
    ObjectId::new("heddle.dev", "Mesh", "", name)
}

/// Reads a Mesh; `None` when there is none, or no such kind yet.
///
/// # Errors
/// The API server does not answer.
pub async fn read(cluster: &Cluster, name: &str) -> Result<Option<Mesh>, ClusterError> {
    let Some(kind) = cluster.kind("heddle.dev/v1alpha1", "Mesh").await else {
        return Ok(None);
    };
    let Some(live) = cluster.get(&kind, &mesh_id(name)).await? else {
        return Ok(None);
    };
    match serde_json::from_value(live) {
        Ok(mesh) => Ok(Some(mesh)),
        Err(error) => {
            warn!(mesh = name, %error, "The Mesh object is not understood");
            Ok(None)
        }
    }
}

/// The objects that a status says were applied.
pub fn inventory(status: Option<&MeshStatus>) -> BTreeSet<ObjectId> {
    let entries = status
        .and_then(|status| status.inventory.as_ref())
        .map(|inventory| inventory.entries.as_slice());
    entries
        .unwrap_or_default()
        .iter()
        .filter_map(|entry| ObjectId::from_inventory_key(&entry.id))
        .collect()
}

/// The inventory of what is applied now: everything desired that was not skipped, and what could not be pruned.
pub fn inventory_of(objects: &[Object], kept: impl Iterator<Item = (ObjectId, String)>) -> Inventory {
    let mut entries: Vec<_> = objects
        .iter()
        .map(|object| InventoryEntry {
            id: object.id.inventory_key(),
            v: object.version().to_owned(),
        })
        .chain(kept.map(|(id, v)| InventoryEntry {
            id: id.inventory_key(),
            v,
        }))
        .collect();
    entries.sort();
    entries.dedup_by(|a, b| a.id == b.id);
    entries.truncate(heddle_k8s::mesh::INVENTORY_MAX);
    Inventory { entries }
}

/// Sets the conditions of a status. A condition whose status stays keeps its transition time.
pub fn set_state(
    status: &mut MeshStatus,
    generation: i64,
    state: &State,
    revision: Option<&str>,
    now: Timestamp,
) {
    status.observed_generation = generation;
    let applied = revision.map_or_else(
        || "Applied".to_owned(),
        |revision| format!("Applied revision: {revision}"),
    );
    let mut set: Vec<(&str, &str, &str, String)> = Vec::new();
    match state {
        State::Ready => set.push((CONDITION_READY, "True", "ReconciliationSucceeded", applied)),
        State::Progressing { reason, message } => {
            set.push((CONDITION_READY, "Unknown", reason, message.clone()));
            set.push((CONDITION_RECONCILING, "True", "Progressing", message.clone()));
        }
        State::Failed { reason, message } => {
            set.push((CONDITION_READY, "False", reason, message.clone()));
            set.push((
                CONDITION_RECONCILING,
                "True",
                "ProgressingWithRetry",
                message.clone(),
            ));
        }
        State::Stalled { reason, message } => {
            set.push((CONDITION_READY, "False", reason, message.clone()));
            set.push((CONDITION_STALLED, "True", reason, message.clone()));
        }
        // Flux leaves the conditions of a suspended object as they were.
        State::Suspended => return,
    }
    let old = std::mem::take(&mut status.conditions);
    for (name, value, reason, message) in set {
        let same = old
            .iter()
            .find(|condition| condition.type_ == name && condition.status == value);
        let last_transition_time = same.map_or(Time(now), |condition| condition.last_transition_time.clone());
        status.conditions.push(Condition {
            type_: name.to_owned(),
            status: value.to_owned(),
            reason: reason.to_owned(),
            message: cut(&message),
            observed_generation: Some(generation),
            last_transition_time,
        });
    }
}

/// Notes how a revision ended, newest first; the same end of the same revision is noted once.
pub fn note(
    status: &mut MeshStatus,
    revision: &str,
    outcome: Outcome,
    message: Option<String>,
    started: Timestamp,
    now: Timestamp,
) {
    let message = message.map(|message| cut(&message));
    match status
        .history
        .first_mut()
        .filter(|entry| entry.revision == revision)
    {
        Some(entry) if entry.outcome == outcome && entry.message == message => {}
        Some(entry) => {
            entry.outcome = outcome;
            entry.message = message;
            entry.finished_at = Some(Time(now));
        }
        None => {
            let entry = HistoryEntry {
                revision: revision.to_owned(),
                outcome,
                message,
                started_at: Time(started),
                finished_at: Some(Time(now)),
            };
            status.history.insert(0, entry);
            status.history.truncate(HISTORY_MAX);
        }
    }
}

/// Counts how far workloads are.
pub fn rollout_status(
    fleet: &Fleet,
    verdict: impl Fn(&crate::rollout::Workload) -> Verdict,
) -> RolloutStatus {
    let mut status = RolloutStatus::default();
    for workload in &fleet.workloads {
        match verdict(workload) {
            Verdict::Current { meshed: true } => {
                status.desired += 1;
                status.updated += 1;
            }
            Verdict::Current { meshed: false } | Verdict::Outside(_) => {}
            Verdict::Outdated { .. } | Verdict::Restarting { .. } | Verdict::Held(_) => {
                status.desired += 1;
                if status.pending.len() < PENDING_MAX {
                    status.pending.push(workload.name());
                }
            }
        }
    }
    status
}

/// Writes a status when it differs from the one that is there; `true` when it was written.
///
/// # Errors
/// The API server does not take it.
pub async fn write(
    cluster: &Cluster,
    name: &str,
    old: &MeshStatus,
    new: &MeshStatus,
) -> Result<bool, ClusterError> {
    if old == new {
        return Ok(false);
    }
    let Some(kind) = cluster.kind("heddle.dev/v1alpha1", "Mesh").await else {
        return Ok(false);
    };
    // A merge patch leaves what is absent: fields that went away must be null.
    let mut value = serde_json::to_value(new).unwrap_or_default();
    for key in ["conditions", "history"] {
        if value.get(key).is_none() {
            value[key] = json!([]);
        }
    }
    for key in [
        "lastAttemptedRevision",
        "lastAppliedRevision",
        "lastHandledReconcileAt",
        "inventory",
        "rollout",
    ] {
        if value.get(key).is_none() {
            value[key] = serde_json::Value::Null;
        }
    }
    if let Some(rollout) = value
        .get_mut("rollout")
        .and_then(serde_json::Value::as_object_mut)
    {
        rollout.entry("pending").or_insert_with(|| json!([]));
    }
    cluster
        .merge_status(&kind, &mesh_id(name), &json!({ "status": value }))
        .await?;
    Ok(true)
}

/// Events about one Mesh.
pub struct Events {
    cluster: Cluster,
    mesh: serde_json::Value,
    name: String,
    /// What was said lately, which is not said again.
    recent: tokio::sync::Mutex<BTreeMap<(String, String), Instant>>,
}

/// The same words are one Event in this time, as Flux has it.
const EVENT_DEDUPE: Duration = Duration::from_secs(300);
/// So many Events in that time: a loop that fails in ever new words must not fill the cluster's store.
const EVENTS_MAX: usize = 100;

impl Events {
    pub fn new(cluster: &Cluster, name: &str, uid: Option<String>) -> Self {
        let mesh = json!({"apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh", "name": name, "uid": uid});
        Self {
            cluster: cluster.clone(),
            mesh,
            name: name.to_owned(),
            recent: tokio::sync::Mutex::default(),
        }
    }

    /// Says something, unless it was said lately.
    pub async fn say(&self, warning: bool, reason: &str, action: &str, message: &str) {
        let note = cut(message);
        {
            let mut recent = self.recent.lock().await;
            recent.retain(|_, said| said.elapsed() < EVENT_DEDUPE);
            let this = (reason.to_owned(), note.clone());
            if recent.contains_key(&this) || recent.len() >= EVENTS_MAX {
                return;
            }
            recent.insert(this, Instant::now());
        }
        let Some(kind) = self.cluster.kind("events.k8s.io/v1", "Event").await else {
            return;
        };
        let now = Timestamp::now();
        let id = ObjectId::new(
            "events.k8s.io",
            "Event",
            "default",
            &format!("{}.{:x}", self.name, now.as_nanosecond()),
        );
        let body = json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"name": id.name, "namespace": id.namespace},
            "eventTime": MicroTime(now),
            "type": if warning { "Warning" } else { "Normal" },
            "reason": reason, "action": action, "note": note, "regarding": self.mesh,
            "reportingController": "heddle.dev/reconciler", "reportingInstance": self.name,
        });
        // An Event is a courtesy; its loss stops nothing.
        if let Err(error) = self.cluster.create(&kind, &id, &body, false).await {
            warn!(error = %crate::cli::chain(&error), reason, "Failed to publish an Event");
        }
    }
}

/// What a plan's steps mean for an Event: `created 3, patched 1`.
pub fn describe(done: &[(&'static str, ObjectId)]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for (verb, _) in done {
        *counts.entry(*verb).or_insert(0_usize) += 1;
    }
    let mut text: Vec<_> = counts
        .iter()
        .map(|(verb, count)| format!("{verb} {count}"))
        .collect();
    if let [(_, only)] = done {
        text = vec![format!("{} {only}", done[0].0)];
    }
    text.join(", ")
}

/// What conflicts keep a plan from being wholly applied; `None` when nothing does.
pub fn conflicts(plan: &Plan) -> Option<String> {
    let texts: Vec<_> = plan
        .conflicts()
        .map(|(step, conflicts)| {
            let fields: Vec<_> = conflicts
                .iter()
                .map(|conflict| format!("{} is {}'s", conflict.field, conflict.manager))
                .collect();
            format!("{}: {}", step.id, fields.join(", "))
        })
        .collect();
    if texts.is_empty() {
        None
    } else {
        Some(format!(
            "fields belong to other managers and are left alone: {}",
            texts.join("; ")
        ))
    }
}

fn cut(text: &str) -> String {
    if text.len() <= MESSAGE_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=MESSAGE_BYTES_MAX - 4)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap()
    }

    #[test]
    fn a_state_that_stays_keeps_its_time_and_changes_nothing() {
        let mut status = MeshStatus::default();
        set_state(&mut status, 3, &State::Ready, Some("main@sha1:a"), now(0));
        let first = status.clone();
        set_state(&mut status, 3, &State::Ready, Some("main@sha1:a"), now(60));
        assert_eq!(status, first);
        assert_eq!(status.conditions[0].message, "Applied revision: main@sha1:a");
        set_state(
            &mut status,
            3,
            &State::Failed {
                reason: "X",
                message: "m".into(),
            },
            None,
            now(61),
        );
        let names: Vec<_> = status
            .conditions
            .iter()
            .map(|c| (c.type_.as_str(), c.status.as_str(), c.reason.as_str()))
            .collect();
        assert_eq!(
            names,
            [
                ("Ready", "False", "X"),
                ("Reconciling", "True", "ProgressingWithRetry")
            ]
        );
    }

    #[test]
    fn history_is_bounded_and_newest_first() {
        let mut status = MeshStatus::default();
        for i in 0..30 {
            note(
                &mut status,
                &format!("r{i}"),
                Outcome::Applied,
                None,
                now(i),
                now(i),
            );
        }
        note(&mut status, "r29", Outcome::Applied, None, now(99), now(99));
        assert_eq!(status.history.len(), HISTORY_MAX);
        assert_eq!(status.history[0].revision, "r29");
        assert_eq!(status.history[0].finished_at, Some(Time(now(29))));
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        assert!(cut(&"ß".repeat(2000)).len() <= MESSAGE_BYTES_MAX);
    }
}
