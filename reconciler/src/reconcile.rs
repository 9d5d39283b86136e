//! The loop: a mesh follows its source, and the cluster is brought back when it drifts.
//!
//! [`follow`] watches the source, [`drift`] the objects that were applied, [`fleet`] workloads and pods; [`worker`] puts
//! them together for one mesh, and [`controller`] runs a worker for each `Mesh` object. Everything flows by watch
//! channels: the latest counts, nothing queues up. [`once`] is the same pass without the loop.

pub mod controller;
pub mod drift;
pub mod fleet;
pub mod follow;
pub mod worker;

use std::{collections::BTreeSet, time::Duration};

use heddle_k8s::mesh::{MeshStatus, Outcome, Source};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    cluster::{Cluster, ClusterError},
    execute::{self, ExecuteError, Options, Report},
    object::ObjectId,
    observe, pipeline,
    plan::{self, Action, Plan, Skip},
    render::Rendered,
    rollout::{self, Fleet, Progress, Verdict, Workload},
    status::{self, State},
};

/// How often `once` looks how far the rollout is.
const ROLLOUT_POLL: Duration = Duration::from_millis(500);

/// What `heddle apply` is told.
pub struct Once {
    pub revision: String,
    pub source: Source,
    pub path: String,
    pub wait: bool,
    pub prune: bool,
    pub timeout: Duration,
}

/// Applies a render once. Gives lines about what was done.
///
/// # Errors
/// The first failure; the Mesh's status says it too.
pub async fn once(cluster: &Cluster, rendered: &Rendered, once: Once) -> Result<Vec<String>, ExecuteError> {
    let started = Timestamp::now();
    let mesh = status::read(cluster, &rendered.profile).await?;
    let old = mesh
        .as_ref()
        .and_then(|mesh| mesh.status.clone())
        .unwrap_or_default();
    let inventory = status::inventory(Some(&old));
    let wish = pipeline::Wish {
        rendered,
        inventory: &inventory,
        prune: once.prune,
        rollout: false,
    };
    let (_, plan) = pipeline::plan(cluster, &wish, |_| true).await?;
    let mut report = Report::default();
    let mut book = Book {
        old,
        ..Book::open(cluster, &rendered.profile, None).await?
    };
    let outcome = apply(
        cluster,
        rendered,
        &plan,
        Options {
            wait: once.wait,
            wait_for_all: true,
            timeout: once.timeout,
        },
        &mut report,
        &mut book,
        &once,
    )
    .await;
    let mut lines: Vec<_> = report
        .done
        .iter()
        .map(|(verb, id)| format!("{verb} {id}"))
        .collect();
    let outcome = match outcome {
        Ok(()) if once.wait => roll_out(cluster, rendered, once.timeout, &mut lines).await,
        other => other,
    };
    let now = Timestamp::now();
    let mut new = book.old.clone();
    new.last_attempted_revision = Some(once.revision.clone());
    let state = match &outcome {
        Ok(()) => {
            new.last_applied_revision = Some(once.revision.clone());
            new.inventory = Some(inventory_after(rendered, &plan));
            status::note(&mut new, &once.revision, Outcome::Applied, None, started, now);
            match status::conflicts(&plan) {
                Some(message) => State::Failed {
                    reason: "Conflict",
                    message,
                },
                None => State::Ready,
            }
        }
        Err(error) => {
            let message = crate::cli::chain(error);
            status::note(
                &mut new,
                &once.revision,
                Outcome::Failed,
                Some(message.clone()),
                started,
                now,
            );
            State::Failed {
                reason: error.reason(),
                message,
            }
        }
    };
    status::set_state(&mut new, book.generation, &state, Some(&once.revision), now);
    status::write(cluster, &rendered.profile, &book.old, &new).await?;
    outcome?;
    for (step, conflicts) in plan.conflicts() {
        lines.push(format!(
            "skip {}: {}",
            step.id,
            Skip::Conflict(conflicts.to_vec())
        ));
    }
    lines.push(format!("applied {}: {}", once.revision, plan_summary(&report)));
    Ok(lines)
}

fn plan_summary(report: &Report) -> String {
    if report.done.is_empty() {
        "nothing had to change".to_owned()
    } else {
        format!("{} changes", report.done.len())
    }
}

async fn apply(
    cluster: &Cluster,
    rendered: &Rendered,
    plan: &Plan,
    options: Options,
    report: &mut Report,
    book: &mut Book,
    once: &Once,
) -> Result<(), ExecuteError> {
    book.ensure(cluster, &once.spec(rendered)).await?;
    book.promise(cluster, rendered, plan).await?;
    let result = execute::execute(cluster, rendered, plan, options, report).await;
    // The first apply brings the Mesh's own CRD.
    book.ensure(cluster, &once.spec(rendered)).await?;
    result
}

impl Once {
    fn spec(&self, _rendered: &Rendered) -> Value {
        // Suspended, so that a reconciler in the cluster does not take it for its own.
        json!({"source": self.source, "path": self.path, "suspend": true, "prune": self.prune})
    }
}

/// Restarts wave after wave until every workload is as the render wants it.
async fn roll_out(
    cluster: &Cluster,
    rendered: &Rendered,
    timeout: Duration,
    lines: &mut Vec<String>,
) -> Result<(), ExecuteError> {
    let Some(defaults) = plan::defaults(rendered) else {
        return Ok(());
    };
    let deadline = Instant::now() + timeout;
    let mut progress = Progress::default();
    loop {
        let fleet = observe::fleet::list(&cluster.client).await?;
        let standing = Standing::of(&fleet, |workload| rollout::judge(&defaults, &fleet, workload));
        if standing.outdated.is_empty() && standing.restarting.is_empty() {
            return Ok(());
        }
        let mut waits_for = standing
            .restarting
            .first()
            .map(|workload| workload.name())
            .unwrap_or_default();
        let mut missing = "its pods are not all replaced yet".to_owned();
        for workload in standing.next(rendered, &mut progress) {
            let Verdict::Outdated { to, attempt } = rollout::judge(&defaults, &fleet, workload) else {
                continue;
            };
            match execute::restart(cluster, workload, &to, attempt).await {
                Ok(()) => lines.push(format!("restart {}", workload.id)),
                Err(execute::RestartError::Cluster(error)) => return Err(error.into()),
                Err(error) => (waits_for, missing) = (workload.name(), error.to_string()),
            }
        }
        if Instant::now() >= deadline {
            return Err(ExecuteError::NotReady {
                object: waits_for,
                missing,
                seconds: timeout.as_secs(),
            });
        }
        tokio::time::sleep(ROLLOUT_POLL).await;
    }
}

/// The workloads of a fleet, sorted by how they stand.
#[derive(Default)]
pub struct Standing<'a> {
    pub outdated: Vec<&'a Workload>,
    pub restarting: Vec<&'a Workload>,
    pub held: Vec<(&'a Workload, rollout::Hold)>,
}

impl<'a> Standing<'a> {
    pub fn of(fleet: &'a Fleet, verdict: impl Fn(&Workload) -> Verdict) -> Self {
        let mut standing = Self::default();
        for workload in &fleet.workloads {
            match verdict(workload) {
                Verdict::Outdated { .. } => standing.outdated.push(workload),
                Verdict::Restarting { .. } => standing.restarting.push(workload),
                Verdict::Held(hold) => standing.held.push((workload, hold)),
                Verdict::Current { .. } | Verdict::Outside(_) => {}
            }
        }
        standing
    }

    pub fn next(&self, rendered: &Rendered, progress: &mut Progress) -> Vec<&'a Workload> {
        rollout::next_wave(&rendered.rollout, progress, &self.outdated, self.restarting.len())
    }
}

/// The inventory when a plan is done: what is desired and was not left out, and what was to be pruned but must stay.
pub fn inventory_after(rendered: &Rendered, plan: &Plan) -> heddle_k8s::mesh::Inventory {
    let left_out: BTreeSet<&ObjectId> = plan
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::Skip(Skip::CrdMissing(_) | Skip::Absent)))
        .map(|step| &step.id)
        .collect();
    let objects: Vec<_> = rendered
        .objects
        .iter()
        .filter(|object| !left_out.contains(&object.id))
        .cloned()
        .collect();
    let wanted: BTreeSet<&ObjectId> = rendered.objects.iter().map(|object| &object.id).collect();
    let kept = plan
        .steps
        .iter()
        .filter(|step| matches!(step.action, Action::Skip(_)) && !wanted.contains(&step.id))
        .filter(|step| step.stage != crate::object::Stage::Rollout)
        .map(|step| (step.id.clone(), "v1".to_owned()));
    status::inventory_of(&objects, kept)
}

/// The Mesh object as it is kept: its last written status and its generation.
pub struct Book {
    pub name: String,
    pub old: MeshStatus,
    pub generation: i64,
    pub uid: Option<String>,
    /// Whether the object exists.
    pub exists: bool,
    /// Whether its spec is known to say what the flags say.
    told: bool,
}

impl Book {
    /// Reads the object, or remembers that there is none.
    ///
    /// # Errors
    /// The API server does not answer.
    pub async fn open(
        cluster: &Cluster,
        name: &str,
        fallback: Option<MeshStatus>,
    ) -> Result<Self, ClusterError> {
        let mesh = status::read(cluster, name).await?;
        Ok(Self {
            name: name.to_owned(),
            exists: mesh.is_some(),
            told: false,
            generation: mesh
                .as_ref()
                .and_then(|mesh| mesh.metadata.generation)
                .unwrap_or(0),
            uid: mesh.as_ref().and_then(|mesh| mesh.metadata.uid.clone()),
            old: mesh.and_then(|mesh| mesh.status).or(fallback).unwrap_or_default(),
        })
    }

    /// Makes the object for a mesh that is told by flags, once its CRD is there.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn ensure(&mut self, cluster: &Cluster, spec: &Value) -> Result<(), ClusterError> {
        if self.told {
            return Ok(());
        }
        let Some(kind) = cluster.kind("heddle.dev/v1alpha1", "Mesh").await else {
            return Ok(());
        };
        if self.exists {
            self.told = true;
            return self.tell(cluster, &kind, spec).await;
        }
        let body = json!({
            "apiVersion": "heddle.dev/v1alpha1", "kind": "Mesh",
            "metadata": {"name": self.name, "annotations": {heddle_mesh::annotation::RECONCILE: "disabled"}},
            "spec": spec,
        });
        let made = match cluster
            .create(&kind, &status::mesh_id(&self.name), &body, false)
            .await
        {
            Err(error)
                if error
                    .status()
                    .is_some_and(|status| status.reason == "AlreadyExists") =>
            {
                cluster
                    .get(&kind, &status::mesh_id(&self.name))
                    .await?
                    .unwrap_or_default()
            }
            other => other?,
        };
        (self.exists, self.told) = (true, true);
        self.generation = made["metadata"]["generation"].as_i64().unwrap_or(1);
        self.uid = made["metadata"]["uid"].as_str().map(str::to_owned);
        // What the server gave it by default is what there is to compare with.
        self.old = serde_json::from_value(made["status"].clone()).unwrap_or_default();
        Ok(())
    }

    /// Brings the spec of an object that flags made earlier up to date; a person's own is left alone.
    async fn tell(
        &mut self,
        cluster: &Cluster,
        kind: &crate::cluster::Kind,
        spec: &Value,
    ) -> Result<(), ClusterError> {
        let id = status::mesh_id(&self.name);
        let Some(live) = cluster.get(kind, &id).await? else {
            return Ok(());
        };
        let by_flags = crate::object::text_at(
            &live,
            &["metadata", "annotations", heddle_mesh::annotation::RECONCILE],
        ) == Some("disabled");
        let same = spec.as_object().is_some_and(|spec| {
            spec.iter()
                .all(|(key, value)| live["spec"].get(key) == Some(value))
        });
        if !by_flags || same {
            return Ok(());
        }
        // A merge would leave the former kind of source beside the new one.
        let mut spec = spec.clone();
        for other in ["git", "directory", "inline"] {
            if spec["source"].get(other).is_none() {
                spec["source"][other] = Value::Null;
            }
        }
        let live = cluster.merge(kind, &id, &json!({ "spec": spec })).await?;
        self.generation = live["metadata"]["generation"].as_i64().unwrap_or(self.generation);
        Ok(())
    }

    /// Writes down what is about to be created, before it is: a reconciler killed in the middle must still know it.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn promise(
        &mut self,
        cluster: &Cluster,
        rendered: &Rendered,
        plan: &Plan,
    ) -> Result<(), ClusterError> {
        let known = status::inventory(Some(&self.old));
        let new = plan
            .steps
            .iter()
            .any(|step| step.action == Action::Create && !known.contains(&step.id));
        if !new || !self.exists || !plan.refusals.is_empty() {
            return Ok(());
        }
        let wanted = inventory_after(rendered, plan);
        let ids: BTreeSet<_> = wanted.entries.iter().map(|entry| entry.id.clone()).collect();
        let old = self.old.inventory.clone().unwrap_or_default();
        let mut entries = wanted.entries;
        entries.extend(old.entries.into_iter().filter(|entry| !ids.contains(&entry.id)));
        entries.sort();
        let mut promised = self.old.clone();
        promised.inventory = Some(heddle_k8s::mesh::Inventory { entries });
        self.write(cluster, promised).await
    }

    /// Writes the status when it changed.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn write(&mut self, cluster: &Cluster, new: MeshStatus) -> Result<(), ClusterError> {
        if self.exists {
            status::write(cluster, &self.name, &self.old, &new).await?;
        }
        self.old = new;
        Ok(())
    }
}
