//! The part of a pass that brings workloads up to date, and says how everything is.

use std::collections::BTreeSet;

use heddle_k8s::mesh::{MeshStatus, Outcome};
use k8s_openapi::jiff::Timestamp;
use tokio::time::Instant;
use tracing::{error, warn};

use super::{PROBE_RETRY, Worker};
use crate::{
    cluster::ClusterError,
    execute::{self, RestartError},
    object::ObjectId,
    plan::Plan,
    reconcile::{Standing, follow::Sighting, inventory_after},
    rollout::{self, Verdict},
    status::{self, State},
};

impl Worker {
    /// Restarts the next wave, when there is one.
    pub(super) async fn roll_out(&mut self) -> Result<State, ClusterError> {
        let Some((rendered, defaults)) = self
            .current
            .as_ref()
            .and_then(|current| Some((current.rendered.clone(), current.defaults.clone()?)))
        else {
            return Ok(State::Ready);
        };
        let fleet = self.shared.fleet.fleet();
        let standing = Standing::of(&fleet, |workload| rollout::judge(&defaults, &fleet, workload));
        let now = Instant::now();
        let under_way: BTreeSet<ObjectId> = standing
            .restarting
            .iter()
            .map(|workload| workload.id.clone())
            .collect();
        self.restarting.retain(|id, _| under_way.contains(id));
        for id in &under_way {
            self.restarting.entry(id.clone()).or_insert(now);
        }
        let late = self
            .restarting
            .iter()
            .find(|(_, since)| now.duration_since(**since) >= rendered.rollout.timeout);
        if let Some((id, _)) = late {
            let message = format!(
                "the rollout halts: {id} is not available {} s after its restart",
                rendered.rollout.timeout.as_secs()
            );
            if self.halted.as_ref() != Some(&message) {
                error!(workload = %id, "The rollout halts: a restarted workload does not become available");
                self.halted = Some(message.clone());
            }
            return Ok(State::Failed {
                reason: "RolloutHalted",
                message,
            });
        }
        self.halted = None;
        let mut waiting_for_injector = None;
        for workload in standing.next(&rendered, &mut self.progress) {
            let Verdict::Outdated { to, attempt } = rollout::judge(&defaults, &fleet, workload) else {
                continue;
            };
            match execute::restart(&self.shared.cluster, workload, &to, attempt).await {
                Ok(()) => {
                    if let Some(events) = &self.events {
                        let left = standing.outdated.len() - 1;
                        events
                            .say(
                                false,
                                "Restarted",
                                "Rollout",
                                &format!(
                                    "{}: its pods carry another proxy than Git asks for ({left} more to go)",
                                    workload.id
                                ),
                            )
                            .await;
                    }
                }
                Err(RestartError::Cluster(error)) => return Err(error),
                Err(error) => {
                    self.retry_at = Some(now + PROBE_RETRY);
                    waiting_for_injector = Some(error.to_string());
                    break;
                }
            }
        }
        if let Some(earliest) = self.restarting.values().min() {
            // Wake up to notice that one is late, should nothing else happen.
            let due = *earliest + rendered.rollout.timeout;
            self.retry_at = Some(self.retry_at.map_or(due, |at| at.min(due)));
        }
        let open = standing.outdated.len() + standing.restarting.len();
        if let Some(message) = waiting_for_injector {
            return Ok(State::Progressing {
                reason: "WaitingForInjector",
                message,
            });
        }
        if open > 0 {
            let message = format!("{open} workloads do not carry the proxy that Git asks for yet");
            return Ok(State::Progressing {
                reason: "RollingOut",
                message,
            });
        }
        if let Some((workload, hold)) = standing.held.first() {
            return Ok(State::Progressing {
                reason: "RolloutHeld",
                message: format!("{}: {hold}", workload.id),
            });
        }
        Ok(State::Ready)
    }

    /// Writes the status and says what people should know.
    pub(super) async fn report(&mut self, sighting: &Sighting, state: &State) -> Result<(), ClusterError> {
        let now = Timestamp::now();
        let rollout = self
            .current
            .as_ref()
            .and_then(|current| current.defaults.as_ref())
            .map(|defaults| {
                let fleet = self.shared.fleet.fleet();
                status::rollout_status(&fleet, |workload| rollout::judge(defaults, &fleet, workload))
            });
        let Some(book) = &mut self.book else { return Ok(()) };
        let mut new: MeshStatus = book.old.clone();
        if let Some(snapshot) = &sighting.snapshot {
            new.last_attempted_revision = Some(snapshot.revision.to_string());
        }
        if self.last_handled.is_some() {
            new.last_handled_reconcile_at.clone_from(&self.last_handled);
        }
        let applied = self
            .current
            .as_ref()
            .filter(|_| self.settled && self.candidate.is_none());
        if let Some(current) = applied {
            new.last_applied_revision = Some(current.revision.clone());
            let plan = Plan {
                steps: Vec::new(),
                refusals: Vec::new(),
            };
            let inventory = inventory_after(&current.rendered, &plan);
            let skipped = inventory
                .entries
                .iter()
                .filter(|entry| {
                    ObjectId::from_inventory_key(&entry.id).is_some_and(|id| self.clean.contains_key(&id))
                })
                .cloned()
                .collect();
            new.inventory = Some(heddle_k8s::mesh::Inventory { entries: skipped });
            if new.rollout != rollout && rollout.is_some() {
                new.rollout = rollout;
            }
            if self.invalid.is_none() {
                status::note(
                    &mut new,
                    &current.revision,
                    Outcome::Applied,
                    None,
                    current.started,
                    now,
                );
            }
        }
        let failed = match (state, &self.candidate, &self.invalid) {
            (_, _, Some((revision, _, message))) => Some((revision.clone(), message.clone(), now)),
            (State::Failed { message, .. }, Some(candidate), None) => {
                Some((candidate.revision.clone(), message.clone(), candidate.started))
            }
            _ => None,
        };
        if let Some((revision, message, started)) = failed {
            status::note(&mut new, &revision, Outcome::Failed, Some(message), started, now);
        }
        let generation = if self.told.by_flags {
            book.generation
        } else {
            self.told.generation
        };
        let revision = new.last_applied_revision.clone();
        status::set_state(&mut new, generation, state, revision.as_deref(), now);
        let known = book.old.conditions.clone();
        book.write(&self.shared.cluster, new).await?;
        let changed = known.iter().map(|condition| &condition.message).ne(book
            .old
            .conditions
            .iter()
            .map(|condition| &condition.message));
        let Some(events) = self.events.as_ref().filter(|_| changed) else {
            return Ok(());
        };
        if let Some(old) = &sighting.rewritten_from {
            events.say(true, "HistoryRewritten", "Fetch", &format!("the branch was pushed by force: {old} is not among its ancestors; following the new history")).await;
            warn!(
                replaced = old,
                "The branch was pushed by force; following the new history"
            );
        }
        match state {
            State::Failed { reason, message } | State::Stalled { reason, message } => {
                events.say(true, reason, "Reconcile", message).await
            }
            State::Progressing {
                reason: reason @ ("RolloutHeld" | "RolloutHalted"),
                message,
            } => events.say(true, reason, "Rollout", message).await,
            State::Ready => {
                if let Some(revision) = &book.old.last_applied_revision {
                    events
                        .say(
                            false,
                            "ReconciliationSucceeded",
                            "Reconcile",
                            &format!("Applied revision: {revision}"),
                        )
                        .await;
                }
            }
            State::Progressing { .. } | State::Suspended => {}
        }
        Ok(())
    }
}
