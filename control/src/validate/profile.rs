//! ServiceProfiles. They are judged as JSON: their conditions nest, and a field that nobody knows must not pass unseen,
//! for a condition without it matches more than was meant.

use heddle_control_index::check::service_profile as read;
use heddle_mesh::duration::{self, GoDurationError};
use serde_json::{Map, Value};

use super::verdict::Verdict;

/// Statuses that a range can name.
const STATUSES: std::ops::RangeInclusive<u64> = 100..=599;

pub(super) fn service_profile(object: &Value) -> Verdict {
    let mut verdict = Verdict::default();
    let spec = match object.get("spec") {
        // Linkerd takes a profile without a spec for one without routes.
        None | Some(Value::Null) => return verdict,
        Some(spec) => spec,
    };
    let known = ["routes", "retryBudget", "dstOverrides", "opaquePorts"];
    let Some(spec) = fields(spec, "spec", &known, &mut verdict) else {
        return verdict;
    };
    for (field, one) in list(spec, "routes", "spec", &mut verdict) {
        route(one, &field, &mut verdict);
    }
    if let Some(budget) = present(spec, "retryBudget") {
        retry_budget(budget, "spec.retryBudget", &mut verdict);
    }
    if verdict.problems.is_empty() {
        match read(object) {
            Ok(ignored) => ignored
                .into_iter()
                .for_each(|what| verdict.warn(format!("ignored: spec: {what}"))),
            Err(problem) => verdict.problem(problem),
        }
    }
    verdict
}

fn route(route: &Value, field: &str, verdict: &mut Verdict) {
    let known = ["name", "condition", "isRetryable", "timeout", "responseClasses"];
    let Some(route) = fields(route, field, &known, verdict) else {
        return;
    };
    if text(route, "name").is_none_or(str::is_empty) {
        verdict.problem(format!("{field}.name must be given"));
    }
    if let Some(timeout) = text(route, "timeout").filter(|timeout| !timeout.is_empty()) {
        go_duration(timeout, &format!("{field}.timeout"), verdict);
    }
    match present(route, "condition") {
        None => verdict.problem(format!("{field}.condition must be given")),
        Some(condition) => request(condition, &format!("{field}.condition"), verdict),
    }
    for (field, class) in list(route, "responseClasses", field, verdict) {
        let Some(class) = fields(class, &field, &["condition", "isFailure"], verdict) else {
            continue;
        };
        match present(class, "condition") {
            None => verdict.problem(format!("{field}.condition must be given")),
            Some(condition) => response(condition, &format!("{field}.condition"), verdict),
        }
    }
}

fn retry_budget(budget: &Value, field: &str, verdict: &mut Verdict) {
    let known = ["retryRatio", "minRetriesPerSecond", "ttl"];
    let Some(budget) = fields(budget, field, &known, verdict) else {
        return;
    };
    if budget
        .get("retryRatio")
        .and_then(Value::as_f64)
        .is_some_and(|ratio| ratio < 0.0)
    {
        verdict.problem(format!("{field}.retryRatio must not be negative"));
    }
    match text(budget, "ttl") {
        None | Some("") => verdict.problem(format!("{field}.ttl must be given")),
        Some(ttl) => go_duration(ttl, &format!("{field}.ttl"), verdict),
    }
}

/// Profiles' durations are Go's, unlike all others.
fn go_duration(text: &str, field: &str, verdict: &mut Verdict) {
    match duration::parse_go(text) {
        Ok(_) => {}
        // As Linkerd, which admits it.
        Err(GoDurationError::Negative(_)) => {
            verdict.warn(format!("{field}: `{text}` is ignored: it is negative"))
        }
        Err(error) => verdict.problem(format!("{field}: {error}")),
    }
}

fn request(condition: &Value, field: &str, verdict: &mut Verdict) {
    let known = ["pathRegex", "method", "all", "any", "not"];
    let Some(condition) = fields(condition, field, &known, verdict) else {
        return;
    };
    let said = ["pathRegex", "method"]
        .into_iter()
        .any(|key| text(condition, key).is_some_and(|it| !it.is_empty()));
    nested(condition, said, field, verdict, request);
}

fn response(condition: &Value, field: &str, verdict: &mut Verdict) {
    let Some(condition) = fields(condition, field, &["status", "all", "any", "not"], verdict) else {
        return;
    };
    let status = present(condition, "status");
    if let Some(range) = status {
        statuses(range, &format!("{field}.status"), verdict);
    }
    nested(condition, status.is_some(), field, verdict, response);
}

/// The parts of a condition that are conditions; one that says nothing (`said`, and no parts) is a mistake.
fn nested(
    condition: &Map<String, Value>,
    said: bool,
    field: &str,
    verdict: &mut Verdict,
    judge: fn(&Value, &str, &mut Verdict),
) {
    let mut said = said;
    for key in ["all", "any"] {
        said |= present(condition, key).is_some();
        for (field, one) in list(condition, key, field, verdict) {
            judge(one, &field, verdict);
        }
    }
    if let Some(inner) = present(condition, "not") {
        said = true;
        judge(inner, &format!("{field}.not"), verdict);
    }
    if !said {
        verdict.problem(format!("{field}: a condition must say something"));
    }
}

fn statuses(range: &Value, field: &str, verdict: &mut Verdict) {
    let Some(range) = fields(range, field, &["min", "max"], verdict) else {
        return;
    };
    let mut bound = |key: &str| {
        let value = present(range, key)?;
        // As in Go, where an absent number and 0 are one.
        match value.as_u64() {
            Some(0) => None,
            Some(status) if STATUSES.contains(&status) => Some(status),
            _ => {
                verdict.problem(format!(
                    "{field}.{key}: {value} is no status: expected {} to {}",
                    STATUSES.start(),
                    STATUSES.end()
                ));
                None
            }
        }
    };
    if let (Some(min), Some(max)) = (bound("min"), bound("max"))
        && max < min
    {
        verdict.problem(format!("{field}: max ({max}) must not be below min ({min})"));
    }
}

/// An object with no fields but these; anything else is a problem.
fn fields<'a>(
    value: &'a Value,
    field: &str,
    known: &[&str],
    verdict: &mut Verdict,
) -> Option<&'a Map<String, Value>> {
    let Value::Object(object) = value else {
        verdict.problem(format!("{field}: expected an object"));
        return None;
    };
    for key in object.keys().filter(|key| !known.contains(&key.as_str())) {
        verdict.problem(format!(
            "{field}: unknown field `{key}`: expected one of {}",
            known.join(", ")
        ));
    }
    Some(object)
}

/// A field that is there; null is not.
fn present<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str)
}

/// The members of a list with their own fields' names.
fn list<'a>(
    object: &'a Map<String, Value>,
    key: &str,
    field: &str,
    verdict: &mut Verdict,
) -> Vec<(String, &'a Value)> {
    match present(object, key) {
        None => Vec::new(),
        Some(Value::Array(list)) => {
            let named = list.iter().enumerate();
            named
                .map(|(index, one)| (format!("{field}.{key}[{index}]"), one))
                .collect()
        }
        Some(_) => {
            verdict.problem(format!("{field}.{key}: expected a list"));
            Vec::new()
        }
    }
}
