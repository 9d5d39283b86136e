//! The shape of a `MeshProfile`, as people write it in `mesh.yaml`.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use crate::{
    fault::Fault,
    schema,
    yaml::{self, Document, Step, Target},
};

/// `spec` of a MeshProfile.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshSpec {
    pub extends: Vec<String>,
    pub values: Value,
    pub policies: Vec<String>,
    pub injection: Vec<Injection>,
    pub rollout: Rollout,
}

/// Annotations that Git owns on a namespace, or on the pod template of one workload in it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Injection {
    pub namespace: String,
    #[serde(default)]
    pub workload: Option<WorkloadName>,
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct WorkloadName {
    pub kind: String,
    pub name: String,
}

/// How workloads are restarted.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rollout {
    /// How many workloads have been restarted at the end of each wave.
    pub waves: Vec<Wave>,
    /// At most so many workloads restart at a time, whatever the wave says.
    pub max_concurrent: Option<usize>,
    pub max_unavailable: Option<Value>,
    pub gate: Option<Value>,
    /// How long one workload's rollout may take before everything halts.
    #[serde(with = "heddle_mesh::duration::text")]
    pub timeout: std::time::Duration,
}

/// The size of a wave: so many workloads, or so many per cent of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Wave {
    Count(usize),
    Percent(u8),
}

impl TryFrom<Value> for Wave {
    type Error = String;

    fn try_from(value: Value) -> Result<Self, String> {
        let wrong = || {
            format!("`{value}` is no wave: expected a number of workloads from 1, or per cent such as 10%")
        };
        match &value {
            Value::Number(number) => {
                let count = number.as_u64().filter(|count| *count > 0).ok_or_else(wrong)?;
                Ok(Self::Count(usize::try_from(count).map_err(|_| wrong())?))
            }
            Value::String(text) => {
                let percent: u8 = text
                    .strip_suffix('%')
                    .and_then(|text| text.parse().ok())
                    .ok_or_else(wrong)?;
                if (1..=100).contains(&percent) {
                    Ok(Self::Percent(percent))
                } else {
                    Err(wrong())
                }
            }
            _ => Err(wrong()),
        }
    }
}

impl Wave {
    /// How many of `total` workloads are restarted when this wave is over; at least one.
    pub fn reach(self, total: usize) -> usize {
        match self {
            Self::Count(count) => count.min(total),
            Self::Percent(percent) => (total * usize::from(percent))
                .div_ceil(100)
                .clamp(1, total.max(1)),
        }
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            // One canary, then ever larger shares: DESIGN's default.
            waves: vec![
                Wave::Count(1),
                Wave::Percent(10),
                Wave::Percent(50),
                Wave::Percent(100),
            ],
            max_concurrent: None,
            max_unavailable: None,
            gate: None,
            timeout: std::time::Duration::from_secs(600),
        }
    }
}

impl MeshSpec {
    /// Settings that are understood but not acted upon.
    pub(super) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.rollout.gate.is_some() {
            notes.push(
                "spec.rollout.gate is not evaluated by this version: waves wait for readiness alone"
                    .to_owned(),
            );
        }
        if self.rollout.max_unavailable.is_some() {
            notes.push("spec.rollout.maxUnavailable is not acted upon by this version: each workload's own update strategy and spec.rollout.maxConcurrent bound a wave".to_owned());
        }
        notes
    }
}

/// The JSON schema of the whole document.
pub fn schema() -> Value {
    serde_json::json!({
        "type": "object", "required": ["apiVersion", "kind", "metadata", "spec"],
        "properties": {
            "apiVersion": {"enum": ["heddle.dev/v1alpha1"]},
            "kind": {"enum": ["MeshProfile"]},
            "metadata": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            }},
            "spec": {"type": "object", "required": ["extends"], "properties": {
                "extends": {"type": "array", "items": {"type": "string", "pattern": "."}},
                "values": {"type": "object"},
                "policies": {"type": "array", "items": {"type": "string", "pattern": "."}},
                "injection": {"type": "array", "items": {
                    "type": "object", "required": ["namespace", "annotations"], "properties": {
                        "namespace": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
                        "workload": {"type": "object", "required": ["kind", "name"], "properties": {
                            "kind": {"enum": ["Deployment", "StatefulSet", "DaemonSet"]},
                            "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"},
                        }},
                        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
                    },
                }},
                "rollout": {"type": "object", "properties": {
                    "waves": {"type": "array", "items": {"type": ["integer", "string"]}},
                    "maxConcurrent": {"type": "integer", "minimum": 1},
                    "maxUnavailable": {"type": ["integer", "string"]},
                    "timeout": {"type": "string"},
                    "gate": {"type": "object", "properties": {
                        "successRate": {"type": "string"}, "window": {"type": "string"},
                    }},
                }},
            }},
        },
    })
}

/// Annotation prefixes that the injection section may set.
const INJECTION_PREFIXES: [&str; 6] = [
    "linkerd.io/",
    "config.linkerd.io/",
    "config.alpha.linkerd.io/",
    "config.beta.linkerd.io/",
    "viz.linkerd.io/",
    "resource.opentelemetry.io/",
];

/// All mistakes in the document that do not need the base profiles.
pub(super) fn check(file: &str, text: &str, document: &Document) -> Vec<Fault> {
    let violations = match schema::check(&schema(), &document.value, &mut Vec::new()) {
        Ok(violations) => violations,
        Err(error) => return vec![Fault::new(file, error.to_string())],
    };
    let mut faults: Vec<_> = violations
        .iter()
        .map(|violation| super::violation_fault(violation, file, Some(text)))
        .collect();
    if !faults.is_empty() {
        return faults;
    }
    let wrong = |path: Vec<Step>, target, message: String| {
        Fault::new(file, message)
            .at(yaml::locate(text, &path, target))
            .field(yaml::path_text(&path))
    };
    let key = |name: &str| Step::Key(name.to_owned());
    let spec = &document.value["spec"];
    for (index, wave) in spec["rollout"]["waves"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if let Err(message) = Wave::try_from(wave.clone()) {
            faults.push(wrong(
                vec![key("spec"), key("rollout"), key("waves"), Step::Index(index)],
                Target::Value,
                message,
            ));
        }
    }
    if let Some(Err(error)) = spec["rollout"]["timeout"]
        .as_str()
        .map(heddle_mesh::duration::parse)
    {
        faults.push(wrong(
            vec![key("spec"), key("rollout"), key("timeout")],
            Target::Value,
            error.to_string(),
        ));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (index, entry) in spec["injection"].as_array().into_iter().flatten().enumerate() {
        let at = |rest: &[&str]| -> Vec<Step> {
            [key("spec"), key("injection"), Step::Index(index)]
                .into_iter()
                .chain(rest.iter().map(|k| key(k)))
                .collect()
        };
        let namespace = entry["namespace"].as_str().unwrap_or_default();
        if !seen.insert((
            namespace,
            entry["workload"]["kind"].as_str(),
            entry["workload"]["name"].as_str(),
        )) {
            faults.push(wrong(
                at(&["namespace"]),
                Target::Value,
                format!("`{namespace}` is already listed above"),
            ));
        }
        if heddle_mesh::NEVER_INJECTED_NAMESPACES.contains(&namespace)
            || namespace == heddle_mesh::RECONCILER_NAMESPACE
        {
            faults.push(wrong(
                at(&["namespace"]),
                Target::Value,
                format!("pods of `{namespace}` are never injected"),
            ));
        }
        for name in entry["annotations"]
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys())
        {
            if !INJECTION_PREFIXES.iter().any(|prefix| name.starts_with(prefix)) {
                let message = format!(
                    "`{name}` is not an injection annotation: expected linkerd.io/… or config.linkerd.io/…"
                );
                faults.push(wrong(at(&["annotations", name]), Target::Key, message));
            }
        }
        if let Some(mode) = entry["annotations"][heddle_mesh::annotation::INJECT].as_str()
            && !["enabled", "disabled", "ingress"].contains(&mode)
        {
            let message = format!("expected enabled, disabled or ingress, found `{mode}`");
            faults.push(wrong(
                at(&["annotations", heddle_mesh::annotation::INJECT]),
                Target::Value,
                message,
            ));
        }
    }
    faults
}

/// The name and the typed spec of a checked document.
pub(super) fn read(file: &str, value: &Value) -> Result<(String, MeshSpec), Fault> {
    let name = crate::object::text_at(value, &["metadata", "name"])
        .unwrap_or_default()
        .to_owned();
    let mut spec = value.get("spec").cloned().unwrap_or_default();
    // An empty `policies:` line is null; it means the same as no line.
    if let Some(map) = spec.as_object_mut() {
        map.retain(|_, value| !value.is_null());
        if let Some(rollout) = map.get_mut("rollout").and_then(Value::as_object_mut) {
            rollout.retain(|_, value| !value.is_null());
        }
    }
    let spec = serde_json::from_value(spec)
        .map_err(|error| Fault::new(file, format!("the profile is not understood: {error}")).field("spec"))?;
    Ok((name, spec))
}
