//! What the status of an object says now, as far as it is our affair.

use kube::{Resource, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{CONTROLLER_NAME, Condition, Status};
use crate::{
    annotation::{self, Annotated},
    route::ParentRef,
};

/// What we say about a route's attachment to one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentStatus {
    /// The parent, as the route's spec writes it.
    pub parent_ref: ParentRef,
    /// `Accepted`, and where it applies `ResolvedRefs`.
    pub conditions: Vec<Condition>,
}

/// An object that is judged: which one it is, and what its status says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Told {
    pub(super) uid: String,
    pub(super) generation: i64,
    /// Our entries in a route's status.
    parents: Vec<ParentStatus>,
    /// All conditions of another object's status.
    conditions: Vec<Condition>,
    /// What is wrong with the object by itself, for people.
    pub(super) problems: Vec<String>,
}

impl Told {
    /// Reads an object's status, whatever its type.
    pub(crate) fn of<K: Resource, S: Serialize>(object: &K, status: Option<&S>) -> Self {
        let status = status.map(serde_json::to_value).transpose().ok().flatten();
        let read = status.map(serde_json::from_value::<StatusSpec>);
        let StatusSpec { parents, conditions } = read.transpose().ok().flatten().unwrap_or_default();
        let ours = parents
            .into_iter()
            .filter(|parent| parent.controller_name == CONTROLLER_NAME);
        Self {
            uid: object.uid().unwrap_or_default(),
            generation: object.meta().generation.unwrap_or_default(),
            parents: ours.filter_map(ParentSpec::read).collect(),
            conditions: read_conditions(conditions),
            problems: Vec::new(),
        }
    }

    /// Takes what is wrong with an object's annotations.
    pub(crate) fn annotated<K: Resource>(mut self, kind: Annotated, object: &K) -> Self {
        let problems = annotation::problems(kind, object.annotations());
        self.problems = problems.iter().map(ToString::to_string).collect();
        self
    }

    /// Whether there is anything wrong with the object by itself.
    pub(crate) fn has_problems(&self) -> bool {
        !self.problems.is_empty()
    }

    /// Whether the status says this; conditions of other types may be there beside ours.
    pub(super) fn says(&self, status: &Status) -> bool {
        match status {
            Status::Parents(parents) => self.parents == *parents,
            Status::Conditions(conditions) | Status::OfTarget(conditions, _) => {
                conditions.iter().all(|ours| self.conditions.contains(ours))
            }
        }
    }
}

#[derive(Default, Deserialize)]
struct StatusSpec {
    #[serde(default)]
    parents: Vec<ParentSpec>,
    #[serde(default)]
    conditions: Option<Vec<ConditionSpec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ParentSpec {
    #[serde(default)]
    parent_ref: Value,
    #[serde(default)]
    controller_name: String,
    #[serde(default)]
    conditions: Option<Vec<ConditionSpec>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ConditionSpec {
    #[serde(rename = "type", default)]
    type_: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
    #[serde(default)]
    observed_generation: i64,
}

impl ParentSpec {
    fn read(self) -> Option<ParentStatus> {
        Some(ParentStatus {
            parent_ref: serde_json::from_value(self.parent_ref).ok()?,
            conditions: read_conditions(self.conditions),
        })
    }
}

/// A condition that is neither true nor false is none of ours, and is left out.
fn read_conditions(specs: Option<Vec<ConditionSpec>>) -> Vec<Condition> {
    let read = |spec: ConditionSpec| {
        let status = match spec.status.as_str() {
            "True" => true,
            "False" => false,
            _ => return None,
        };
        Some(Condition {
            type_: spec.type_.into(),
            status,
            reason: spec.reason.into(),
            message: spec.message,
            observed_generation: spec.observed_generation,
        })
    };
    specs.into_iter().flatten().filter_map(read).collect()
}
