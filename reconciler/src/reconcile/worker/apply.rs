//! The part of a pass that makes objects so: which have to be looked at, and what is remembered of them.

use std::collections::{BTreeMap, BTreeSet};

use tokio::time::Instant;
use tracing::{error, info};

use super::{Desired, Worker};
use crate::{
    cluster::ClusterError,
    execute::{self, ExecuteError, Options, Report},
    object::{self, ObjectId},
    observe::Observed,
    pipeline,
    plan::{Action, Plan, Skip},
    reconcile::drift::{self, Mark},
    status::{self, State},
};

impl Worker {
    /// Brings the cluster to the newest revision that it takes.
    pub(super) async fn apply(&mut self) -> Result<State, ClusterError> {
        if let Some(desired) = self.candidate.clone() {
            // Nothing of the candidate counts as checked until its own pass has looked.
            self.settled = false;
            let state = self.apply_desired(&desired, true).await?;
            if !matches!(state, State::Failed { reason, .. } if reason != "Conflict") {
                self.current = Some(desired);
                self.candidate = None;
            }
            return Ok(state);
        }
        match self.current.clone() {
            Some(desired) => self.apply_desired(&desired, false).await,
            None => Ok(State::Ready),
        }
    }

    async fn apply_desired(&mut self, desired: &Desired, new: bool) -> Result<State, ClusterError> {
        let cluster = self.shared.cluster.clone();
        let begun = Instant::now();
        let dirty: BTreeSet<&ObjectId> = desired
            .digests
            .iter()
            .filter(|(id, digest)| self.is_dirty(id, digest))
            .map(|(id, _)| id)
            .collect();
        let inventory = match self.inventory_checked && !new {
            true => BTreeSet::new(),
            false => status::inventory(self.book.as_ref().map(|book| &book.old)),
        };
        if dirty.is_empty() && self.settled && !new {
            return Ok(self.state_of_conflicts());
        }
        let wish = pipeline::Wish {
            rendered: &desired.rendered,
            inventory: &inventory,
            prune: self.told.spec.prune,
            rollout: false,
        };
        let (observed, plan) = pipeline::plan(&cluster, &wish, |object| dirty.contains(&object.id)).await?;
        cluster.metrics.stage("plan", begun.elapsed());
        let changes = plan.changes().count();
        let mut report = Report::default();
        let options = Options {
            wait: self.shared.wait,
            wait_for_all: !self.settled && self.shared.wait,
            timeout: self.told.spec.timeout,
        };
        let spec = serde_json::to_value(&self.told.spec).unwrap_or_default();
        let by_flags = self.told.by_flags;
        if let Some(book) = &mut self.book {
            if by_flags {
                book.ensure(&cluster, &spec).await?;
            }
            book.promise(&cluster, &desired.rendered, &plan).await?;
        }
        let executing = Instant::now();
        let result = execute::execute(&cluster, &desired.rendered, &plan, options, &mut report).await;
        cluster.metrics.stage("execute", executing.elapsed());
        if let (Some(book), true) = (&mut self.book, by_flags) {
            book.ensure(&cluster, &spec).await?;
        }
        self.remember(desired, &observed, &plan, &report);
        self.drift
            .watch(
                &cluster,
                desired
                    .rendered
                    .objects
                    .iter()
                    .filter(|object| !object.partial)
                    .map(|object| &object.id),
            )
            .await;
        if !report.done.is_empty() {
            self.announce(desired, new, &plan, &report).await;
        }
        match result {
            Ok(()) => {
                self.said = None;
                self.inventory_checked = true;
                self.settled = true;
                if new && self.applied_at_once.insert(desired.revision.clone()) {
                    self.applied_at_once
                        .retain(|revision| *revision == desired.revision);
                    cluster.metrics.applied(desired.seen.elapsed());
                    info!(
                        revision = desired.revision,
                        changes,
                        took_ms = begun.elapsed().as_millis(),
                        since_seen_ms = desired.seen.elapsed().as_millis(),
                        "Applied"
                    );
                }
                Ok(self.state_of_conflicts())
            }
            Err(ExecuteError::Cluster(error)) => Err(error),
            Err(error) => {
                self.settled = false;
                let message = crate::cli::chain(&error);
                if self.said.as_ref() != Some(&message) {
                    error!(
                        revision = desired.revision,
                        reason = error.reason(),
                        error = message,
                        "The revision could not be applied; trying again"
                    );
                    self.said = Some(message.clone());
                }
                Ok(State::Failed {
                    reason: error.reason(),
                    message,
                })
            }
        }
    }

    fn state_of_conflicts(&self) -> State {
        if self.conflicts.is_empty() {
            return State::Ready;
        }
        let texts: Vec<_> = self
            .conflicts
            .iter()
            .map(|(id, text)| format!("{id}: {text}"))
            .collect();
        State::Failed {
            reason: "Conflict",
            message: texts.join("; "),
        }
    }

    fn is_dirty(&self, id: &ObjectId, digest: &str) -> bool {
        let Some((clean, mark)) = self.clean.get(id) else {
            return true;
        };
        if clean != digest {
            return true;
        }
        if let Some(seen) = self.partial_mark(id) {
            return seen != *mark;
        }
        match self.drift.mark(id) {
            // Not watched yet: what was seen last must do.
            None => false,
            Some(live) => live != Some(*mark),
        }
    }

    /// The mark of an object of which only annotations are ours: those annotations.
    fn partial_mark(&self, id: &ObjectId) -> Option<Mark> {
        let desired = self.candidate.as_ref().or(self.current.as_ref());
        let partial = desired
            .and_then(|desired| desired.rendered.get(id))
            .is_some_and(|object| object.partial);
        if !partial {
            return None;
        }
        let fleet = self.shared.fleet.annotations_of(id);
        Some(drift::of_annotations(fleet.as_ref()))
    }

    /// Notes which objects are as desired now.
    fn remember(&mut self, desired: &Desired, observed: &Observed, plan: &Plan, report: &Report) {
        let applied: BTreeMap<_, _> = report.applied.iter().map(|(id, object)| (id, object)).collect();
        for step in plan
            .steps
            .iter()
            .filter(|step| desired.digests.contains_key(&step.id))
        {
            let live = match &step.action {
                Action::Keep | Action::Skip(_) => {
                    observed.desired.get(&step.id).and_then(|seen| seen.live.as_ref())
                }
                _ => applied.get(&step.id).copied(),
            };
            match &step.action {
                Action::Skip(skip @ Skip::Conflict(_)) => {
                    self.conflicts.insert(step.id.clone(), skip.to_string());
                }
                _ => {
                    self.conflicts.remove(&step.id);
                }
            }
            let partial = desired
                .rendered
                .get(&step.id)
                .is_some_and(|object| object.partial);
            let mark = match (live, partial) {
                (Some(live), false) => drift::of_object(live),
                (live, true) => {
                    drift::of_annotations(live.map(|live| annotations_of_object(&step.id, live)).as_ref())
                }
                // Left out, as long as its CRD is missing.
                (None, false) => continue,
            };
            self.clean
                .insert(step.id.clone(), (desired.digests[&step.id].clone(), mark));
        }
        self.clean.retain(|id, _| desired.digests.contains_key(id));
        self.conflicts.retain(|id, _| desired.digests.contains_key(id));
    }

    async fn announce(&self, desired: &Desired, new: bool, plan: &Plan, report: &Report) {
        let Some(events) = &self.events else { return };
        let what = status::describe(&report.done);
        if new {
            events
                .say(
                    false,
                    "Applied",
                    "Apply",
                    &format!("{}: {what}", desired.revision),
                )
                .await;
            return;
        }
        for step in plan
            .steps
            .iter()
            .filter(|step| matches!(step.action, Action::Revert { .. }))
        {
            info!(object = %step.id, "Repaired a change by hand");
        }
        events
            .say(
                false,
                "DriftRepaired",
                "Apply",
                &format!("the cluster differed from {}: {what}", desired.revision),
            )
            .await;
    }
}

fn annotations_of_object(id: &ObjectId, live: &serde_json::Value) -> BTreeMap<String, String> {
    let path: &[&str] = if id.is("", "Namespace") {
        &["metadata", "annotations"]
    } else {
        &["spec", "template", "metadata", "annotations"]
    };
    object::string_map(object::at(live, path))
}
