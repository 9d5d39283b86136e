//! Makes a plan real: stage after stage, each waiting until the earlier is ready.
//!
//! In goes a [`Plan`]; out comes a [`Report`] or the first failure, with what was done so far. It chooses nothing: every
//! step was decided by the planner. Every write is safe to repeat, so that being killed between any two of them loses
//! nothing: the next pass plans from what is there.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::{
    cluster::{CONCURRENCY_MAX, Cluster, ClusterError, How},
    fault::{Fault, Faults},
    identity::{self, IdentityWish},
    object::{APPLY_STAGES, Object, ObjectId, Stage},
    observe,
    plan::{Action, Plan, Skip, Step, refusal},
    readiness::{self, Readiness},
    render::Rendered,
    rollout,
};

/// How often the readiness of a stage is asked for; a watch would be quicker but needs one per kind.
const READY_POLL: Duration = Duration::from_millis(250);
/// CRDs are established within moments, or not at all.
const ESTABLISH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an object that is recreated may take to go away.
const DELETE_TIMEOUT: Duration = Duration::from_secs(60);

/// How to execute.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether a stage waits until the one before is ready.
    pub wait: bool,
    /// Whether everything is waited for, and not only what this plan changes.
    pub wait_for_all: bool,
    /// How long that may take in all.
    pub timeout: Duration,
}

/// What was done.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Each step that changed something: verb and object.
    pub done: Vec<(&'static str, ObjectId)>,
    /// The applied objects as the API server returned them.
    pub applied: Vec<(ObjectId, Value)>,
}

/// Why a plan was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    #[error("{0}")]
    Refused(Faults),
    #[error("the cluster does not answer")]
    Cluster(#[from] ClusterError),
    #[error("the mesh's root of trust cannot be made")]
    Identity(#[from] identity::cluster::EnsureError),
    #[error("not ready after {seconds} s: {object}: {missing}")]
    NotReady {
        object: String,
        missing: String,
        seconds: u64,
    },
}

impl ExecuteError {
    /// One word for conditions and Events.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Refused(_) => "ObjectRejected",
            Self::Cluster(_) => "ClusterUnreachable",
            Self::Identity(identity::cluster::EnsureError::Waiting { .. }) => "IssuerNotReady",
            Self::Identity(_) => "IdentityFailed",
            Self::NotReady { .. } => "HealthCheckFailed",
        }
    }
}

/// Carries out everything but the rollout.
///
/// # Errors
/// The first failure; the report says what was done before.
pub async fn execute(
    cluster: &Cluster,
    rendered: &Rendered,
    plan: &Plan,
    options: Options,
    report: &mut Report,
) -> Result<(), ExecuteError> {
    if !plan.refusals.is_empty() {
        return Err(ExecuteError::Refused(Faults(plan.refusals.clone())));
    }
    let deadline = Instant::now() + options.timeout;
    for stage in APPLY_STAGES {
        let steps: Vec<_> = plan.steps.iter().filter(|step| step.stage == stage).collect();
        execute_stage(cluster, rendered, stage, &steps, report).await?;
        let changed = |id: &ObjectId| steps.iter().any(|step| step.id == *id && step.action.is_change());
        let left_out = |id: &ObjectId| {
            steps
                .iter()
                .any(|step| step.id == *id && matches!(step.action, Action::Skip(_)))
        };
        let wait_for = |object: &Object| options.wait_for_all && !left_out(&object.id);
        let awaited: Vec<_> = rendered
            .objects
            .iter()
            .filter(|object| {
                object.stage == stage
                    && (changed(&object.id) || wait_for(object))
                    && readiness::is_awaited(&object.id, &object.body)
            })
            .collect();
        if stage == Stage::Definitions {
            let established = Instant::now() + ESTABLISH_TIMEOUT.min(options.timeout);
            wait(cluster, &awaited, established, options.timeout).await?;
            if steps.iter().any(|step| {
                step.action.is_change() && step.id.is("apiextensions.k8s.io", "CustomResourceDefinition")
            }) {
                cluster.refresh().await?;
            }
        } else if options.wait {
            wait(cluster, &awaited, deadline, options.timeout).await?;
        }
        if stage == Stage::Issuer {
            ensure_identity(cluster, rendered, plan, deadline, options.wait).await?;
        }
    }
    Ok(())
}

async fn ensure_identity(
    cluster: &Cluster,
    rendered: &Rendered,
    plan: &Plan,
    deadline: Instant,
    patient: bool,
) -> Result<(), ExecuteError> {
    let wanted = plan.steps.iter().any(|step| step.action == Action::MakeIdentity);
    let Some(wish) =
        IdentityWish::from_values(&rendered.values, rendered.control_namespace()).filter(|_| wanted)
    else {
        return Ok(());
    };
    loop {
        match identity::cluster::ensure(cluster, &wish).await {
            Err(identity::cluster::EnsureError::Waiting { .. }) if patient && Instant::now() < deadline => {
                tokio::time::sleep(READY_POLL).await;
            }
            // Without patience the control plane is applied all the same: its pods wait for the Secret.
            Err(identity::cluster::EnsureError::Waiting { .. }) if !patient => return Ok(()),
            other => return Ok(other?),
        }
    }
}

async fn execute_stage(
    cluster: &Cluster,
    rendered: &Rendered,
    stage: Stage,
    steps: &[&Step],
    report: &mut Report,
) -> Result<(), ExecuteError> {
    let rank = |step: &Step| {
        if matches!(step.action, Action::Prune { .. } | Action::Release) {
            u8::MAX
        } else {
            Stage::rank(&step.id)
        }
    };
    let mut ranks: Vec<_> = steps.iter().map(|step| rank(step)).collect();
    ranks.sort_unstable();
    ranks.dedup();
    for wanted in ranks {
        let group = steps
            .iter()
            .copied()
            .filter(|step| rank(step) == wanted && step.action.is_change());
        let work: Vec<_> = group
            .map(|step| async move { (step, execute_step(cluster, rendered, step).await) }.boxed())
            .collect();
        let results: Vec<_> = stream::iter(work).buffered(CONCURRENCY_MAX).collect().await;
        let mut faults = Vec::new();
        for (step, result) in results {
            match result {
                Ok(None) => {}
                Ok(Some(applied)) => {
                    info!(object = %step.id, action = step.action.verb(), ?stage, "Changed");
                    report.done.push((step.action.verb(), step.id.clone()));
                    report.applied.push((step.id.clone(), applied));
                }
                Err(ExecuteError::Refused(refused)) => faults.extend(refused.0),
                Err(other) => return Err(other),
            }
        }
        Faults::check(faults).map_err(ExecuteError::Refused)?;
    }
    Ok(())
}

/// Carries out one step; `None` when it is not for this function.
async fn execute_step(
    cluster: &Cluster,
    rendered: &Rendered,
    step: &Step,
) -> Result<Option<Value>, ExecuteError> {
    match &step.action {
        Action::Keep | Action::Skip(_) | Action::Restart { .. } | Action::MakeIdentity => Ok(None),
        Action::Create | Action::Patch => {
            let Some(object) = rendered.get(&step.id) else {
                return Ok(None);
            };
            apply(cluster, object, &object.body, How::Write).await.map(Some)
        }
        Action::Revert { resource_version, .. } => {
            let Some(object) = rendered.get(&step.id) else {
                return Ok(None);
            };
            apply(
                cluster,
                object,
                &observe::at_version(&object.body, resource_version),
                How::OverHands,
            )
            .await
            .map(Some)
        }
        Action::Recreate(_) => {
            let Some(object) = rendered.get(&step.id) else {
                return Ok(None);
            };
            recreate(cluster, object).await.map(Some)
        }
        Action::Prune { uid } => {
            let Some(kind) = cluster.kind_of(&step.id).await else {
                return Ok(None);
            };
            cluster.delete(&kind, &step.id, uid).await?;
            Ok(Some(Value::Null))
        }
        Action::Release => {
            let Some(kind) = cluster.kind_of(&step.id).await else {
                return Ok(None);
            };
            let body = observe::empty(&kind.resource.api_version, &step.id);
            Ok(Some(cluster.apply(&kind, &step.id, &body, How::Write).await?))
        }
    }
}

async fn apply(cluster: &Cluster, object: &Object, body: &Value, how: How) -> Result<Value, ExecuteError> {
    let Some(kind) = cluster.kind_for(object).await else {
        let message = format!(
            "the cluster has no kind {} in {}",
            object.id.kind, object.api_version
        );
        return Err(ExecuteError::Refused(refusal(object, &message).into()));
    };
    let applied = observe::apply(cluster, &kind, &object.id, body, how).await;
    applied.map_err(|error| match observe::judge(&error) {
        Some(verdict) => ExecuteError::Refused(verdict_fault(object, verdict).into()),
        None => error.into(),
    })
}

fn verdict_fault(object: &Object, verdict: observe::Verdict) -> Fault {
    match verdict {
        observe::Verdict::Conflict(conflicts) => {
            let text = Skip::Conflict(conflicts.clone()).to_string();
            refusal(object, &text).field(
                conflicts
                    .first()
                    .map(|conflict| conflict.field.clone())
                    .unwrap_or_default(),
            )
        }
        observe::Verdict::NoNamespace => refusal(
            object,
            &format!("the namespace `{}` does not exist", object.id.namespace),
        )
        .field("metadata.namespace"),
        observe::Verdict::Immutable(rejection) | observe::Verdict::Rejected(rejection) => {
            refusal(object, &rejection.message).field(rejection.field.unwrap_or_default())
        }
    }
}

async fn recreate(cluster: &Cluster, object: &Object) -> Result<Value, ExecuteError> {
    let Some(kind) = cluster.kind_for(object).await else {
        return apply(cluster, object, &object.body, How::Write).await;
    };
    if let Some(live) = cluster.get(&kind, &object.id).await? {
        let uid = crate::object::text_at(&live, &["metadata", "uid"])
            .unwrap_or_default()
            .to_owned();
        cluster.delete(&kind, &object.id, &uid).await?;
        let deadline = Instant::now() + DELETE_TIMEOUT;
        while cluster.get(&kind, &object.id).await?.is_some() {
            if Instant::now() >= deadline {
                let missing = "it does not go away; something holds a finalizer".to_owned();
                return Err(ExecuteError::NotReady {
                    object: object.id.to_string(),
                    missing,
                    seconds: DELETE_TIMEOUT.as_secs(),
                });
            }
            tokio::time::sleep(READY_POLL).await;
        }
    }
    apply(cluster, object, &object.body, How::Write).await
}

/// Waits until objects are ready.
///
/// # Errors
/// The first that is not ready at the deadline.
pub async fn wait(
    cluster: &Cluster,
    objects: &[&Object],
    deadline: Instant,
    timeout: Duration,
) -> Result<(), ExecuteError> {
    let mut pending: Vec<_> = objects.to_vec();
    let mut quick = true;
    while !pending.is_empty() {
        let mut still = Vec::new();
        let mut missing = String::new();
        for object in pending {
            let live = match cluster.kind_for(object).await {
                Some(kind) => cluster.get(&kind, &object.id).await?,
                None => None,
            };
            let state = live.map_or(Readiness::Waiting("it is gone".into()), |live| {
                readiness::of(&object.id, &live)
            });
            if let Readiness::Waiting(text) = state {
                if still.is_empty() {
                    missing = text;
                }
                still.push(object);
            }
        }
        if let Some(object) = still.first().filter(|_| Instant::now() >= deadline) {
            return Err(ExecuteError::NotReady {
                object: object.id.to_string(),
                missing,
                seconds: timeout.as_secs(),
            });
        }
        pending = still;
        if !pending.is_empty() {
            // CRDs are mostly established at the second look.
            tokio::time::sleep(if quick { READY_POLL / 10 } else { READY_POLL }).await;
            quick = false;
        }
    }
    Ok(())
}

/// What stands in the way of a restart.
#[derive(Debug, thiserror::Error)]
pub enum RestartError {
    #[error("the cluster does not answer")]
    Cluster(#[from] ClusterError),
    #[error("the injector does not give {workload} the expected proxy yet: a trial pod would carry {found}")]
    Injector { workload: String, found: String },
}

/// Asks the API server what a new pod of a workload would carry: a dry run goes through the injector, so this proves
/// that it serves, and with the settings that Git asks for. Without it a restart would bring the old proxy, or none.
///
/// # Errors
/// The pod would carry something else, or there is no answer.
pub async fn probe(cluster: &Cluster, workload: &rollout::Workload, to: &str) -> Result<(), RestartError> {
    let expected = Some(to).filter(|to| *to != rollout::NO_PROXY);
    let Some(kind) = cluster.kind("v1", "Pod").await else {
        return Ok(());
    };
    let name: String = workload.id.name.chars().take(50).collect();
    let id = ObjectId::new(
        "",
        "Pod",
        &workload.id.namespace,
        &format!("{}-heddle-trial", name.trim_end_matches(['-', '.'])),
    );
    let pod = heddle_inject::pod_of_template(&workload.template);
    let mut body = json!({"apiVersion": "v1", "kind": "Pod", "metadata": pod.metadata, "spec": pod.spec});
    body["metadata"]["name"] = id.name.as_str().into();
    body["metadata"]["namespace"] = id.namespace.as_str().into();
    let found = match cluster.create(&kind, &id, &body, true).await {
        Ok(pod) => crate::object::text_at(
            &pod,
            &["metadata", "annotations", heddle_inject::STAMP_ANNOTATION],
        )
        .map(str::to_owned),
        // A quota or an admission rule speaks against a pod of this name: the workload's own pods may still pass.
        Err(error)
            if error
                .status()
                .is_some_and(|status| matches!(status.code, 403 | 422)) =>
        {
            warn!(workload = workload.name(), error = %crate::cli::chain(&error), "A trial pod is refused; restarting without proof");
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    };
    if found.as_deref() == expected {
        return Ok(());
    }
    let found = found.map_or("no proxy".to_owned(), |stamp| {
        format!("stamp {}", stamp.get(..12).unwrap_or(&stamp))
    });
    Err(RestartError::Injector {
        workload: workload.name(),
        found,
    })
}

/// Restarts a workload by an annotation on its pod template, as `kubectl rollout restart` does.
///
/// # Errors
/// The injector is not ready for it, or there is no answer.
pub async fn restart(
    cluster: &Cluster,
    workload: &rollout::Workload,
    to: &str,
    attempt: u32,
) -> Result<(), RestartError> {
    probe(cluster, workload, to).await?;
    let Some(kind) = cluster.kind("apps/v1", &workload.id.kind).await else {
        return Ok(());
    };
    let value = rollout::restart_value(to, attempt);
    let patch = json!({"spec": {"template": {"metadata": {"annotations": {rollout::RESTARTED_FOR: value}}}}});
    cluster.merge(&kind, &workload.id, &patch).await?;
    info!(
        workload = workload.name(),
        stamp = to,
        attempt,
        "Restarting: its pods carry another proxy than Git asks for"
    );
    Ok(())
}
