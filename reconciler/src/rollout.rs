//! Which workloads carry another proxy than Git asks for, and which of them are restarted next.
//!
//! Pure. In goes the [`Fleet`] (workloads, namespaces, pods) and the injection settings that the commit renders; out
//! comes a [`Verdict`] for each workload, and the next wave. The decision is the injector's own function, so that what
//! the planner expects is what a restarted pod gets.

use std::collections::BTreeMap;

use heddle_inject::{Decision, Owner, ProxyDefaults, STAMP_ANNOTATION, SkipReason};
use k8s_openapi::api::core::v1::PodTemplateSpec;

use crate::{
    object::ObjectId,
    profile::{Rollout, Wave},
};

/// On a pod template: the stamp that a restart was made for. The same restart asked for twice is one restart, so that a
/// reconciler killed in the middle loses nothing.
pub const RESTARTED_FOR: &str = "heddle.dev/restarted-for";
/// The value of [`RESTARTED_FOR`] when pods are to lose their proxy.
pub const NO_PROXY: &str = "none";
/// How often a workload is restarted for one stamp when its pods come back without it.
pub const ATTEMPTS_MAX: u32 = 3;

/// Workloads, namespaces and pods of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Fleet {
    pub namespaces: BTreeMap<String, NamespaceSeen>,
    pub workloads: Vec<Workload>,
}

#[derive(Clone, Debug, Default)]
pub struct NamespaceSeen {
    pub annotations: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// A Deployment, StatefulSet or DaemonSet.
#[derive(Clone, Debug)]
pub struct Workload {
    pub id: ObjectId,
    pub template: PodTemplateSpec,
    /// Whether its last change has reached all of its pods, and they are available.
    pub complete: bool,
    pub paused: bool,
    /// It replaces pods only when somebody deletes them.
    pub on_delete: bool,
    /// Stamps of its pods that are neither ended nor ending; `None` for a pod without proxy.
    pub pods: Vec<Option<String>>,
}

impl Workload {
    /// What the last restart was for: stamp and attempt.
    pub fn restarted_for(&self) -> Option<(&str, u32)> {
        let annotations = self.template.metadata.as_ref()?.annotations.as_ref()?;
        let text = annotations.get(RESTARTED_FOR)?;
        Some(match text.rsplit_once('/') {
            Some((stamp, attempt)) => (stamp, attempt.parse().unwrap_or(1)),
            None => (text, 1),
        })
    }

    /// `payments/Deployment/web`.
    pub fn name(&self) -> String {
        format!("{}/{}/{}", self.id.namespace, self.id.kind, self.id.name)
    }
}

/// How a workload stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All pods carry what they should.
    Current { meshed: bool },
    /// Pods carry something else; a restart brings `to`.
    Outdated { to: String, attempt: u32 },
    /// A restart for `to` is on its way.
    Restarting { to: String },
    /// It should be restarted, but that would not help or is not ours to do.
    Held(Hold),
    /// Injection is not asked for, or not possible.
    Outside(SkipReason),
}

/// Why an outdated workload is not restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hold {
    Paused,
    OnDelete,
    /// Restarted this often, and its pods still come without the proxy.
    Attempts(u32),
}

impl std::fmt::Display for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Paused => f.write_str("the rollout is paused; resume it to bring its pods up to date"),
            Self::OnDelete => {
                f.write_str("its update strategy is OnDelete; delete its pods to bring them up to date")
            }
            Self::Attempts(times) => write!(
                f,
                "restarted {times} times, but its pods come without the expected proxy; see the injector's log and `heddle check`"
            ),
        }
    }
}

/// What a workload's pods should carry.
pub fn wanted(
    defaults: &ProxyDefaults,
    namespace: &str,
    seen: &NamespaceSeen,
    workload: &Workload,
) -> Result<String, SkipReason> {
    let namespace = heddle_inject::Namespace {
        name: namespace,
        annotations: &seen.annotations,
        labels: &seen.labels,
    };
    let pod = heddle_inject::pod_of_template(&workload.template);
    let owner = Owner {
        api_version: "apps/v1".into(),
        kind: workload.id.kind.clone(),
        name: workload.id.name.clone(),
    };
    match heddle_inject::decide(defaults, &namespace, &pod, Some(&owner)) {
        Decision::Inject(injection) => Ok(injection.stamp().as_str().to_owned()),
        Decision::Skip(reason) => Err(reason),
    }
}

/// Judges one workload.
pub fn judge(defaults: &ProxyDefaults, fleet: &Fleet, workload: &Workload) -> Verdict {
    let nothing = NamespaceSeen::default();
    let seen = fleet.namespaces.get(&workload.id.namespace).unwrap_or(&nothing);
    let wanted = wanted(defaults, &workload.id.namespace, seen, workload);
    let to = match &wanted {
        Ok(stamp) => Some(stamp.as_str()),
        // Nobody asks for a proxy any more: pods that carry ours lose it. Anything else is left alone.
        Err(SkipReason::NotEnabled | SkipReason::DisabledByPod | SkipReason::DisabledByNamespace) => None,
        Err(reason) => return Verdict::Outside(reason.clone()),
    };
    let current = workload.pods.iter().all(|stamp| stamp.as_deref() == to);
    if current {
        return match wanted {
            Ok(_) => Verdict::Current { meshed: true },
            Err(reason) => Verdict::Outside(reason),
        };
    }
    let target = to.unwrap_or(NO_PROXY).to_owned();
    if workload.paused {
        return Verdict::Held(Hold::Paused);
    }
    if workload.on_delete {
        return Verdict::Held(Hold::OnDelete);
    }
    match workload.restarted_for() {
        Some((stamp, _)) if stamp == target && !workload.complete => Verdict::Restarting { to: target },
        Some((stamp, attempt)) if stamp == target && attempt >= ATTEMPTS_MAX => {
            Verdict::Held(Hold::Attempts(attempt))
        }
        Some((stamp, attempt)) if stamp == target => Verdict::Outdated {
            to: target,
            attempt: attempt + 1,
        },
        _ => Verdict::Outdated {
            to: target,
            attempt: 1,
        },
    }
}

/// The value of [`RESTARTED_FOR`] for a restart.
pub fn restart_value(to: &str, attempt: u32) -> String {
    if attempt <= 1 {
        to.to_owned()
    } else {
        format!("{to}/{attempt}")
    }
}

/// How far a rollout has come. Kept in memory only: after a crash it begins with its smallest wave again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Workloads that had to change when the rollout began.
    pub total: usize,
}

/// Chooses the workloads that may be restarted now: those of the wave that is not yet over, less what is on its way.
pub fn next_wave<'a>(
    rollout: &Rollout,
    progress: &mut Progress,
    outdated: &[&'a Workload],
    restarting: usize,
) -> Vec<&'a Workload> {
    let open = outdated.len() + restarting;
    if open == 0 {
        *progress = Progress::default();
        return Vec::new();
    }
    progress.total = progress.total.max(open);
    let done = progress.total - open;
    let everything = [Wave::Percent(100)];
    let waves = if rollout.waves.is_empty() {
        &everything[..]
    } else {
        &rollout.waves
    };
    // The first wave whose reach goes beyond what is done; a list that stops short of all is followed by all.
    let reach = waves
        .iter()
        .map(|wave| wave.reach(progress.total))
        .find(|reach| *reach > done)
        .unwrap_or(progress.total);
    let room = (reach - done).saturating_sub(restarting);
    let room = rollout
        .max_concurrent
        .map_or(room, |most| room.min(most.saturating_sub(restarting)));
    outdated.iter().take(room).copied().collect()
}

/// The stamp annotation of a pod.
pub fn stamp_of(annotations: Option<&BTreeMap<String, String>>) -> Option<String> {
    annotations?.get(STAMP_ANNOTATION).cloned()
}

#[cfg(test)]
mod tests;
