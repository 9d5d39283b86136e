//! What is to be done, decided from what Git asks for and what the cluster has.
//!
//! Pure: no clock, no cluster. The plan that a pull request shows and the plan that the reconciler executes are this one
//! function's value. Every step says why; what is left alone says why too.

use std::collections::{BTreeMap, BTreeSet};

use heddle_inject::ProxyDefaults;
use heddle_mesh::{annotation, label};
use serde_json::Value;

use crate::{
    fault::Fault,
    object::{self, Object, ObjectId, Stage},
    observe::{self, Conflict, Former, Observed, Rejection, Seen, Trial},
    render::Rendered,
    rollout::{self, Fleet, Hold, Verdict},
};

/// Everything that would happen.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order of execution.
    pub steps: Vec<Step>,
    /// What the API server refuses: nothing is done while there is any.
    pub refusals: Vec<Fault>,
}

/// One step, about one object.
#[derive(Clone, Debug)]
pub struct Step {
    pub id: ObjectId,
    pub stage: Stage,
    pub action: Action,
    /// The object as it is, without what the server keeps for itself.
    pub before: Option<Value>,
    /// As it will be.
    pub after: Option<Value>,
    /// Where in Git the object is written.
    pub origin: Option<object::Origin>,
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Create,
    Patch,
    /// Take back what people changed by hand, as of this resource version.
    Revert {
        by: Vec<Conflict>,
        resource_version: String,
    },
    /// Delete and create: a field that cannot change has to.
    Recreate(Rejection),
    Prune {
        uid: String,
    },
    /// Take our fields away and leave the object.
    Release,
    Restart {
        to: String,
        attempt: u32,
    },
    /// Make what the mesh's root of trust lacks, once.
    MakeIdentity,
    Keep,
    Skip(Skip),
}

/// Why an object is left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Skip {
    CrdMissing(String),
    Conflict(Vec<Conflict>),
    /// The live object carries `heddle.dev/reconcile: disabled`.
    OptedOut,
    /// Only annotations of it are ours, and it does not exist.
    Absent,
    PruneDisabled,
    Hold(Hold),
    NotInjected(heddle_inject::SkipReason),
}

impl std::fmt::Display for Skip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::CrdMissing(crd) => write!(f, "the CRD {crd} is not installed"),
            Self::Conflict(conflicts) => {
                f.write_str("other managers own ")?;
                for (index, conflict) in conflicts.iter().enumerate() {
                    let comma = if index > 0 { ", " } else { "" };
                    write!(f, "{comma}{} ({})", conflict.field, conflict.manager)?;
                }
                Ok(())
            }
            Self::OptedOut => write!(f, "it carries {}: disabled", annotation::RECONCILE),
            Self::Absent => f.write_str("it does not exist yet"),
            Self::PruneDisabled => f.write_str("pruning is disabled for it"),
            Self::Hold(hold) => hold.fmt(f),
            Self::NotInjected(reason) => reason.fmt(f),
        }
    }
}

impl Action {
    /// One word for output and Events.
    pub fn verb(&self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Patch => "patch",
            Self::Revert { .. } => "revert",
            Self::Recreate(_) => "recreate",
            Self::Prune { .. } => "prune",
            Self::Release => "release",
            Self::Restart { .. } => "restart",
            Self::MakeIdentity => "create runtime identity (once)",
            Self::Keep => "keep",
            Self::Skip(_) => "skip",
        }
    }

    /// Whether it changes the cluster.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Keep | Self::Skip(_))
    }
}

impl Plan {
    /// The steps that change something.
    pub fn changes(&self) -> impl Iterator<Item = &Step> {
        self.steps.iter().filter(|step| step.action.is_change())
    }

    /// The objects that others hold fields of.
    pub fn conflicts(&self) -> impl Iterator<Item = (&Step, &[Conflict])> {
        self.steps.iter().filter_map(|step| match &step.action {
            Action::Skip(Skip::Conflict(conflicts)) => Some((step, conflicts.as_slice())),
            _ => None,
        })
    }

    /// How many steps of each verb there are.
    pub fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for step in &self.steps {
            *counts.entry(step.action.verb()).or_insert(0) += 1;
        }
        counts
    }
}

/// Plans.
pub fn plan(rendered: &Rendered, observed: &Observed, prune: bool) -> Plan {
    let mut plan = Plan::default();
    for object in &rendered.objects {
        if let Some(seen) = observed.desired.get(&object.id) {
            plan_object(object, seen, &mut plan);
        }
    }
    for missing in &observed.identity {
        let id = identity_id(rendered, missing);
        plan.steps.push(Step {
            id,
            stage: Stage::Issuer,
            action: Action::MakeIdentity,
            before: None,
            after: None,
            origin: None,
        });
    }
    for (id, former) in &observed.former {
        plan_former(rendered, id, former, prune, &mut plan);
    }
    if let (Some(fleet), Some(defaults)) = (&observed.fleet, defaults(rendered)) {
        plan_rollout(&defaults, &after(fleet, &plan), &mut plan);
    }
    plan.steps.sort_by_key(|step| {
        (
            step.stage,
            matches!(step.action, Action::Prune { .. } | Action::Release),
        )
    });
    plan
}

fn identity_id(rendered: &Rendered, name: &str) -> ObjectId {
    let kind = if name == crate::identity::TRUST_ROOTS {
        "ConfigMap"
    } else {
        "Secret"
    };
    ObjectId::new("", kind, rendered.control_namespace(), name)
}

fn plan_object(object: &Object, seen: &Seen, plan: &mut Plan) {
    let before = seen.live.as_ref().map(observe::normal);
    let opted_out = seen.live.as_ref().is_some_and(observe::opted_out);
    let (action, after) = match &seen.trial {
        _ if opted_out => (Action::Skip(Skip::OptedOut), before.clone()),
        Trial::Would(would) => {
            let after = observe::normal(would);
            let action = match &before {
                None => Action::Create,
                Some(before) if *before == after => Action::Keep,
                Some(_) => Action::Patch,
            };
            (action, Some(after))
        }
        Trial::Edited {
            would,
            by,
            resource_version,
        } => {
            let action = Action::Revert {
                by: by.clone(),
                resource_version: resource_version.clone(),
            };
            (action, Some(observe::normal(would)))
        }
        Trial::NoKind { promised: true } | Trial::NoNamespace { promised: true } => {
            (Action::Create, Some(object.body.clone()))
        }
        Trial::NoCrd(crd) => (Action::Skip(Skip::CrdMissing(crd.clone())), None),
        Trial::Absent => (Action::Skip(Skip::Absent), None),
        Trial::Conflict(conflicts) => (Action::Skip(Skip::Conflict(conflicts.clone())), before.clone()),
        // Only what is wholly ours may be deleted on the way to its new form.
        Trial::Immutable(rejection) if is_ours(seen.live.as_ref(), object) => {
            (Action::Recreate(rejection.clone()), Some(object.body.clone()))
        }
        Trial::Immutable(rejection) | Trial::Rejected(rejection) => {
            let mut fault = refusal(object, &rejection.message);
            fault.field = rejection.field.clone();
            plan.refusals.push(fault);
            return;
        }
        Trial::NoKind { promised: false } => {
            let message = format!(
                "the cluster has no kind {} in {}",
                object.id.kind, object.api_version
            );
            plan.refusals.push(
                refusal(object, &message)
                    .field("kind")
                    .hint("install its CRD, or check apiVersion and kind"),
            );
            return;
        }
        Trial::NoNamespace { promised: false } => {
            let message = format!("the namespace `{}` does not exist", object.id.namespace);
            plan.refusals.push(
                refusal(object, &message)
                    .field("metadata.namespace")
                    .hint("create it, or write it into the profile's injection section"),
            );
            return;
        }
    };
    plan.steps.push(Step {
        id: object.id.clone(),
        stage: object.stage,
        action,
        before,
        after,
        origin: Some(object.origin.clone()),
    });
}

fn is_ours(live: Option<&Value>, object: &Object) -> bool {
    let ours = object::text_at(&object.body, &["metadata", "labels", label::PROFILE]);
    live.is_some_and(|live| {
        object::text_at(live, &["metadata", "labels", label::PROFILE]) == ours && ours.is_some()
    })
}

/// A refusal by the API server, at the object's place in Git.
pub fn refusal(object: &Object, message: &str) -> Fault {
    let fault = Fault::new(
        &object.origin.file,
        format!("the API server refuses it: {message}"),
    )
    .object(&object.id);
    if object.origin.rendered {
        fault
    } else {
        fault.line(object.origin.line)
    }
}

fn plan_former(rendered: &Rendered, id: &ObjectId, former: &Former, prune: bool, plan: &mut Plan) {
    let Some(live) = &former.live else { return };
    let before = Some(observe::normal(live));
    let owner = object::text_at(live, &["metadata", "labels", label::PROFILE]);
    let kept = object::text_at(live, &["metadata", "annotations", annotation::PRUNE]) == Some("disabled");
    let deleting = object::at(live, &["metadata", "deletionTimestamp"]).is_some();
    let (action, after) = match &former.released {
        // Another profile has taken it over, or it is on its way out already.
        _ if deleting || owner.is_some_and(|owner| owner != rendered.profile) => return,
        _ if !prune || kept => (Action::Skip(Skip::PruneDisabled), before.clone()),
        _ if observe::opted_out(live) => (Action::Skip(Skip::OptedOut), before.clone()),
        Some(released) => {
            let after = observe::normal(released);
            if before.as_ref() == Some(&after) {
                return;
            }
            (Action::Release, Some(after))
        }
        None => {
            let uid = object::text_at(live, &["metadata", "uid"])
                .unwrap_or_default()
                .to_owned();
            (Action::Prune { uid }, None)
        }
    };
    plan.steps.push(Step {
        id: id.clone(),
        stage: Stage::Policy,
        action,
        before,
        after,
        origin: None,
    });
}

/// The injection settings that the commit renders; `None` for a profile without a control plane.
pub fn defaults(rendered: &Rendered) -> Option<ProxyDefaults> {
    let id = ObjectId::new(
        "",
        "ConfigMap",
        rendered.control_namespace(),
        heddle_inject::CONFIG_MAP,
    );
    let text = object::text_at(&rendered.get(&id)?.body, &["data", heddle_inject::CONFIG_KEY])?;
    match ProxyDefaults::from_yaml(text) {
        Ok(defaults) => Some(defaults),
        Err(error) => {
            tracing::error!(error = %crate::cli::chain(&error), "The rendered linkerd-config is not understood; nothing is rolled out");
            None
        }
    }
}

/// The fleet as it will be when the plan's steps are done: namespaces and pod templates with their new annotations.
fn after(fleet: &Fleet, plan: &Plan) -> Fleet {
    let mut fleet = fleet.clone();
    for step in &plan.steps {
        let Some(after) = step.after.as_ref().filter(|_| step.action.is_change()) else {
            continue;
        };
        if step.id.is("", "Namespace") {
            let seen = fleet.namespaces.entry(step.id.name.clone()).or_default();
            seen.annotations = object::string_map(object::at(after, &["metadata", "annotations"]));
            seen.labels = object::string_map(object::at(after, &["metadata", "labels"]));
        } else if let Some(workload) = fleet.workloads.iter_mut().find(|workload| workload.id == step.id) {
            let template = object::at(after, &["spec", "template"])
                .cloned()
                .unwrap_or_default();
            if let Ok(template) = serde_json::from_value(template) {
                workload.template = template;
            }
        }
    }
    fleet
}

fn plan_rollout(defaults: &ProxyDefaults, fleet: &Fleet, plan: &mut Plan) {
    // A workload whose template the plan changes restarts by that change alone.
    let changed: BTreeSet<ObjectId> = plan
        .changes()
        .filter(|step| {
            object::at(step.after.as_ref().unwrap_or(&Value::Null), &["spec", "template"]).is_some()
        })
        .map(|step| step.id.clone())
        .collect();
    for workload in fleet
        .workloads
        .iter()
        .filter(|workload| !changed.contains(&workload.id))
    {
        let action = match rollout::judge(defaults, fleet, workload) {
            Verdict::Outdated { to, attempt } => Action::Restart { to, attempt },
            Verdict::Held(hold) => Action::Skip(Skip::Hold(hold)),
            Verdict::Outside(reason) if reason.is_surprising() => Action::Skip(Skip::NotInjected(reason)),
            Verdict::Current { .. } | Verdict::Restarting { .. } | Verdict::Outside(_) => continue,
        };
        plan.steps.push(Step {
            id: workload.id.clone(),
            stage: Stage::Rollout,
            action,
            before: None,
            after: None,
            origin: None,
        });
    }
}

#[cfg(test)]
mod tests;
