//! Routes of both groups. All kinds have the same shape, so one function judges them.

use std::collections::BTreeMap;

use heddle_control_index::{
    annotation::{self, Annotated},
    check::{RouteKind, RouteProblem, gateway_duration},
};
use serde::Deserialize;
use serde_json::Value;

use super::verdict::Verdict;

/// What is judged here, and not by the index's own reader.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    parent_refs: Vec<Reference>,
    rules: Vec<Rule>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reference {
    group: Option<String>,
    kind: Option<String>,
    port: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Rule {
    matches: Vec<Match>,
    filters: Vec<Filter>,
    backend_refs: Vec<Reference>,
    timeouts: Option<Timeouts>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Match {
    path: Option<PathMatch>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct PathMatch {
    r#type: Option<String>,
    value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Filter {
    request_redirect: Option<Redirect>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Redirect {
    path: Option<PathModifier>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PathModifier {
    replace_full_path: Option<String>,
    replace_prefix_match: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Timeouts {
    request: Option<String>,
    backend_request: Option<String>,
}

/// Judges a route; `object` is all of it.
pub(super) fn route(kind: RouteKind, object: &Value) -> Verdict {
    let mut verdict = Verdict::default();
    let Some(json) = object.get("spec") else {
        return Verdict::deny("spec must be given");
    };
    let spec = match Spec::deserialize(json) {
        Ok(spec) => spec,
        Err(error) => return Verdict::deny(format!("spec: {error}")),
    };
    if parents(kind, &spec.parent_refs, &mut verdict) {
        annotations(kind, object, &mut verdict);
    }
    match kind {
        RouteKind::Tls | RouteKind::Tcp => {
            if spec.rules.len() != 1 {
                verdict.problem(format!(
                    "spec.rules: a {} must have exactly one rule",
                    kind.name()
                ));
            }
        }
        RouteKind::PolicyHttp | RouteKind::GatewayHttp | RouteKind::Grpc => {
            for (index, one) in spec.rules.iter().enumerate() {
                rule(kind, one, &format!("spec.rules[{index}]"), &mut verdict);
            }
            // Only when nothing was found that can be said more precisely.
            if verdict.problems.is_empty() {
                match kind.read(json) {
                    Ok(()) => {}
                    Err(RouteProblem::Invalid(problem)) => verdict.problem(format!("spec.rules: {problem}")),
                    // As Linkerd: other implementations may carry it out, and the status says that the mesh does not.
                    Err(RouteProblem::Unsupported(problem)) => {
                        verdict.warn(format!("the mesh ignores this route: spec.rules: {problem}"));
                    }
                }
            }
        }
    }
    verdict
}

/// Judges the parents; returns whether one of them is something that traffic goes out to.
fn parents(kind: RouteKind, parents: &[Reference], verdict: &mut Verdict) -> bool {
    let default_group = kind.group();
    let mut outbound = false;
    for (index, parent) in parents.iter().enumerate() {
        let group = parent.group.as_deref().unwrap_or(default_group);
        let is_egress = group.eq_ignore_ascii_case("policy.linkerd.io")
            && parent
                .kind
                .as_deref()
                .is_some_and(|kind| kind.eq_ignore_ascii_case("EgressNetwork"));
        let is_service = matches!(group, "" | "core") && parent.kind.as_deref() == Some("Service");
        outbound |= is_egress || is_service;
        if is_egress && parent.port.is_none() {
            verdict.problem(format!(
                "spec.parentRefs[{index}].port must be given: a route to an EgressNetwork is for one of its ports"
            ));
        }
    }
    outbound
}

/// As Linkerd, which refuses a route for a value that it cannot read of an annotation that it knows on this kind. The rest
/// is worth a warning.
fn annotations(kind: RouteKind, object: &Value, verdict: &mut Verdict) {
    let written = object.pointer("/metadata/annotations").and_then(Value::as_object);
    let written: BTreeMap<String, String> = written
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect();
    let (annotated, retry) = match kind {
        RouteKind::PolicyHttp | RouteKind::GatewayHttp => (Annotated::HttpRoute, "retry.linkerd.io/http"),
        RouteKind::Grpc => (Annotated::GrpcRoute, "retry.linkerd.io/grpc"),
        RouteKind::Tls => (Annotated::TlsRoute, ""),
        RouteKind::Tcp => (Annotated::TcpRoute, ""),
    };
    let is_read = |key: &str| {
        let read = [
            "retry.linkerd.io/limit",
            "retry.linkerd.io/timeout",
            "timeout.linkerd.io/request",
        ]
        .into_iter()
        .chain(["timeout.linkerd.io/response", "timeout.linkerd.io/idle"]);
        !retry.is_empty() && (key == retry || read.into_iter().any(|known| known == key))
    };
    for problem in annotation::problems(annotated, &written) {
        match is_read(&problem.key) {
            true => verdict.problem(problem.to_string()),
            false => verdict.warn(problem.to_string()),
        }
    }
    if retry.is_empty() {
        return;
    }
    // Linkerd reads these on routes, too, if only to refuse what it cannot read.
    let mut accrual = written;
    accrual.retain(|key, _| key.starts_with("balancer.linkerd.io/failure-accrual"));
    for problem in annotation::problems(Annotated::Service, &accrual) {
        verdict.problem(problem.to_string());
    }
}

fn rule(kind: RouteKind, rule: &Rule, field: &str, verdict: &mut Verdict) {
    for (index, one) in rule.matches.iter().enumerate() {
        let Some(PathMatch { r#type, value }) = &one.path else {
            continue;
        };
        let is_regex = r#type.as_deref() == Some("RegularExpression");
        if !is_regex && let Some(value) = value.as_ref().filter(|value| !value.starts_with('/')) {
            verdict.problem(format!(
                "{field}.matches[{index}].path.value: `{value}` must begin with /"
            ));
        }
    }
    for (index, one) in rule.filters.iter().enumerate() {
        let path = one
            .request_redirect
            .as_ref()
            .and_then(|redirect| redirect.path.as_ref());
        let Some(path) = path else { continue };
        for new in [&path.replace_full_path, &path.replace_prefix_match]
            .into_iter()
            .flatten()
        {
            if !new.starts_with('/') {
                verdict.problem(format!(
                    "{field}.filters[{index}].requestRedirect.path: `{new}` must begin with /"
                ));
            }
        }
    }
    for (index, backend) in rule.backend_refs.iter().enumerate() {
        let is_service = matches!(backend.group.as_deref(), None | Some("" | "core"))
            && matches!(backend.kind.as_deref(), None | Some("Service"));
        if is_service && matches!(backend.port, None | Some(0)) {
            let text = format!("{field}.backendRefs[{index}].port must be given for a Service");
            match kind {
                // As Linkerd, whose own HTTPRoute is admitted; nothing is sent there.
                RouteKind::PolicyHttp => verdict.warn(text),
                _ => verdict.problem(text),
            }
        }
    }
    if let (RouteKind::PolicyHttp, Some(timeouts)) = (kind, &rule.timeouts)
        && let (Some(request), Some(backend)) = (&timeouts.request, &timeouts.backend_request)
        && let (Ok(request_time), Ok(backend_time)) = (gateway_duration(request), gateway_duration(backend))
        && backend_time > request_time
    {
        verdict.problem(format!(
            "{field}.timeouts: backendRequest ({backend}) must not be longer than request ({request})"
        ));
    }
}
