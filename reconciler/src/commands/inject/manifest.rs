//! One manifest: annotated, or with the sidecar written into it; pure, and reported in Linkerd's words.

use std::fmt;

use heddle_inject::{Decision, Namespace, Owner, SkipReason};
use heddle_mesh::annotation;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use super::{
    Manual,
    sidecar::{self, Depth, template_path},
};
use crate::object;

/// What the flags ask for.
pub(super) struct Asked {
    pub(super) annotations: Vec<(String, String)>,
    pub(super) opaque_ports: Option<String>,
}

/// How proxies get in.
pub(super) enum Mode<'a> {
    /// The injector puts them in; the manifest asks for it.
    Annotate,
    /// The manifest has them.
    Write(&'a Manual),
}

/// What became of one object.
pub(super) struct Report {
    object: String,
    outcome: Result<&'static str, String>,
    warnings: Vec<String>,
}

impl Report {
    /// Whether anything was asked for or written.
    pub(super) fn done(&self) -> bool {
        self.outcome.is_ok()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for warning in &self.warnings {
            writeln!(f, "warning: {}: {warning}", self.object)?;
        }
        match &self.outcome {
            Ok(done) => write!(f, "{} {done}", self.object),
            Err(reason) => write!(f, "{} skipped: {reason}", self.object),
        }
    }
}

/// Injects an object, or all of a list's.
pub(super) fn inject(value: &mut Value, asked: &Asked, mode: &Mode<'_>, reports: &mut Vec<Report>) {
    let kind = object::text_at(value, &["kind"]).unwrap_or_default().to_owned();
    if kind == "List" {
        let items = value.get_mut("items").and_then(Value::as_array_mut);
        for item in items.into_iter().flatten() {
            inject(item, asked, mode, reports);
        }
        return;
    }
    let name = object::text_at(value, &["metadata", "name"]).unwrap_or_default();
    let object = match kind.is_empty() {
        true => "document missing \"kind\" field".to_owned(),
        false => format!("{} \"{name}\"", kind.to_lowercase()),
    };
    let mut warnings = Vec::new();
    let outcome = inject_one(value, &kind, asked, mode, &mut warnings);
    reports.push(Report {
        object,
        outcome,
        warnings,
    });
}

fn inject_one(
    value: &mut Value,
    kind: &str,
    asked: &Asked,
    mode: &Mode<'_>,
    warnings: &mut Vec<String>,
) -> Result<&'static str, String> {
    let Some(path) = template_path(kind) else {
        // What is no workload may still say something to those that are.
        return match (kind, mode, &asked.opaque_ports) {
            ("Namespace", Mode::Annotate, _) => {
                annotate(value, &[], &asked.annotations).map(|()| "annotated")
            }
            ("Service", _, Some(ports)) => {
                let opaque = (annotation::OPAQUE_PORTS.to_owned(), ports.clone());
                annotate(value, &[], &[opaque]).map(|()| "annotated")
            }
            _ => Err("it runs no pods".to_owned()),
        };
    };
    let template = path
        .iter()
        .try_fold(&mut *value, |value, key| value.get_mut(*key))
        .ok_or("it has no pod template")?;
    // Another time over: what an earlier injection wrote makes room.
    let original = template.clone();
    sidecar::remove(template, Depth::Injection);
    let typed: PodTemplateSpec = serde_json::from_value(template.clone())
        .map_err(|error| format!("its pod template is not understood: {error}"))?;
    if let Some(reason) = heddle_inject::obstacle(&heddle_inject::pod_of_template(&typed)) {
        *template = original;
        return Err(reason.to_string());
    }
    if heddle_inject::uses_udp(&typed) {
        warnings.push("it uses \"protocol: UDP\", which the proxy does not carry".to_owned());
    }
    annotate(value, path, &asked.annotations)?;
    match mode {
        Mode::Annotate => Ok("annotated"),
        Mode::Write(manual) => write(value, path, kind, manual, warnings).map(|()| "injected"),
    }
}

fn annotate(value: &mut Value, path: &[&str], annotations: &[(String, String)]) -> Result<(), String> {
    let meta: Vec<&str> = path.iter().copied().chain(["metadata", "annotations"]).collect();
    let map = object::map_mut(value, &meta).ok_or_else(|| format!("{} is no map", meta.join(".")))?;
    let entries = annotations.iter();
    map.extend(entries.map(|(key, value)| (key.clone(), value.as_str().into())));
    Ok(())
}

fn write(
    value: &mut Value,
    path: &[&str],
    kind: &str,
    manual: &Manual,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let namespace = object::text_at(value, &["metadata", "namespace"])
        .unwrap_or("default")
        .to_owned();
    let owner = Owner {
        api_version: object::text_at(value, &["apiVersion"])
            .unwrap_or_default()
            .to_owned(),
        kind: kind.to_owned(),
        name: object::text_at(value, &["metadata", "name"])
            .unwrap_or_default()
            .to_owned(),
    };
    let template = path
        .iter()
        .try_fold(value, |value, key| value.get_mut(*key))
        .ok_or("it has no pod template")?;
    let typed: PodTemplateSpec = serde_json::from_value(template.clone())
        .map_err(|error| format!("its pod template is not understood: {error}"))?;
    let pod = heddle_inject::pod_of_template(&typed);
    let (none, labels) = (Default::default(), Default::default());
    let namespace = Namespace {
        name: &namespace,
        annotations: &none,
        labels: &labels,
    };
    let injection = match heddle_inject::decide(&manual.defaults, &namespace, &pod, Some(&owner)) {
        Decision::Inject(injection) => injection,
        Decision::Skip(SkipReason::Invalid(errors)) => return Err(SkipReason::Invalid(errors).to_string()),
        Decision::Skip(reason) => return Err(reason.to_string()),
    };
    warnings.extend(injection.warnings().iter().cloned());
    let mut injected = serde_json::to_value(&pod).map_err(|error| error.to_string())?;
    json_patch::patch(&mut injected, &injection.patch(&manual.trust_anchors_pem))
        .map_err(|error| error.to_string())?;
    for key in ["metadata", "spec"] {
        template[key] = injected[key].take();
    }
    // An injected pod asks for no further injection.
    if let Some(map) = object::map_mut(template, &["metadata", "annotations"]) {
        map.insert(annotation::INJECT.to_owned(), "disabled".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests;
