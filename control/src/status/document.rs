//! A status as it is becomes a status as it should be: pure.

use heddle_control_index::status::{CONTROLLER_NAME, Condition, ParentStatus, Status};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What the API takes.
const PARENTS_MAX: usize = 32;

/// The parts of a status that are to be written; `None` when it says all that already.
pub(super) fn merge(old: &Value, status: &Status, now: &Timestamp) -> Option<Value> {
    let new = match status {
        Status::Parents(parents) => json!({"parents": merge_parents(list(old, "parents"), parents, now)}),
        Status::Conditions(conditions) => {
            json!({"conditions": merge_conditions(list(old, "conditions"), conditions, now)})
        }
        Status::OfTarget(conditions, server) => {
            let target = server
                .as_ref()
                .map(|name| json!({"group": "policy.linkerd.io", "kind": "Server", "name": name}));
            // A null in a merge patch removes what is there.
            json!({"conditions": merge_conditions(list(old, "conditions"), conditions, now), "targetRef": target})
        }
    };
    let changes = |(key, value): (&String, &Value)| old.get(key).unwrap_or(&Value::Null) != value;
    let Value::Object(parts) = &new else { return None };
    parts.iter().any(changes).then_some(new)
}

fn list<'a>(old: &'a Value, key: &str) -> &'a [Value] {
    old.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Other controllers' entries stay as they are, before ours.
fn merge_parents(old: &[Value], ours: &[ParentStatus], now: &Timestamp) -> Vec<Value> {
    let is_ours = |entry: &&Value| entry["controllerName"] == CONTROLLER_NAME;
    let others = old.iter().filter(|entry| !is_ours(entry)).cloned();
    let ours = ours.iter().map(|parent| {
        let ParentStatus {
            parent_ref,
            conditions,
        } = parent;
        let parent_ref = serde_json::to_value(parent_ref).unwrap_or_default();
        let before = old
            .iter()
            .filter(is_ours)
            .find(|entry| entry["parentRef"] == parent_ref)
            .map_or(&[][..], |entry| list(entry, "conditions"));
        let conditions: Vec<Value> = conditions.iter().map(|one| condition(before, one, now)).collect();
        json!({"parentRef": parent_ref, "controllerName": CONTROLLER_NAME, "conditions": conditions})
    });
    others.chain(ours).take(PARENTS_MAX).collect()
}

/// Conditions of other types stay as they are.
fn merge_conditions(old: &[Value], ours: &[Condition], now: &Timestamp) -> Vec<Value> {
    let others = old
        .iter()
        .filter(|entry| ours.iter().all(|one| entry["type"] != *one.type_));
    let ours = ours.iter().map(|one| condition(old, one, now));
    others.cloned().chain(ours).collect()
}

/// The time of a condition is when it last changed between true and false.
fn condition(old: &[Value], new: &Condition, now: &Timestamp) -> Value {
    let Condition {
        type_,
        status,
        reason,
        message,
        observed_generation,
    } = new;
    let status = if *status { "True" } else { "False" };
    let before = old
        .iter()
        .find(|entry| entry["type"] == **type_ && entry["status"] == status);
    let since = before
        .and_then(|entry| entry.get("lastTransitionTime"))
        .cloned()
        .unwrap_or_else(|| Value::String(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()));
    let mut entry = Map::new();
    entry.insert("type".to_owned(), json!(type_));
    entry.insert("status".to_owned(), json!(status));
    entry.insert("reason".to_owned(), json!(reason));
    entry.insert("message".to_owned(), json!(message));
    entry.insert("observedGeneration".to_owned(), json!(observed_generation));
    entry.insert("lastTransitionTime".to_owned(), since);
    Value::Object(entry)
}

#[cfg(test)]
mod tests {
    use heddle_control_index::ParentRef;

    use super::*;

    const OLD: &str = "2026-01-01T00:00:00Z";
    const NOW: &str = "2026-02-01T00:00:00Z";

    fn now() -> Timestamp {
        NOW.parse().expect("a time")
    }

    fn accepted(status: bool, generation: i64) -> Condition {
        Condition {
            type_: "Accepted".into(),
            status,
            reason: if status { "Accepted" } else { "NoMatchingParent" }.into(),
            message: String::new(),
            observed_generation: generation,
        }
    }

    fn written(status: &str, reason: &str, generation: i64, since: &str) -> Value {
        json!({
            "type": "Accepted", "status": status, "reason": reason, "message": "",
            "observedGeneration": generation, "lastTransitionTime": since,
        })
    }

    fn entry(controller: &str, condition: Value) -> Value {
        json!({"parentRef": {"name": "web"}, "controllerName": controller, "conditions": [condition]})
    }

    fn parents(condition: Condition) -> Status {
        let parent_ref = ParentRef {
            name: "web".to_owned(),
            ..ParentRef::default()
        };
        Status::Parents(vec![ParentStatus {
            parent_ref,
            conditions: vec![condition],
        }])
    }

    #[test]
    fn other_controllers_entries_stay_and_times_change_only_with_the_status() {
        let theirs = entry("example.com/gateway", json!({"type": "Accepted"}));
        let ours = entry(CONTROLLER_NAME, written("True", "Accepted", 1, OLD));
        let old = json!({"parents": [ours, theirs]});
        assert_eq!(
            merge(&old, &parents(accepted(true, 2)), &now()),
            Some(json!({"parents": [theirs, entry(CONTROLLER_NAME, written("True", "Accepted", 2, OLD))]}))
        );
        assert_eq!(
            merge(&old, &parents(accepted(false, 2)), &now()),
            Some(
                json!({"parents": [theirs, entry(CONTROLLER_NAME, written("False", "NoMatchingParent", 2, NOW))]})
            )
        );
        assert_eq!(
            merge(&old, &Status::Parents(Vec::new()), &now()),
            Some(json!({"parents": [theirs]}))
        );
    }

    #[test]
    fn what_is_there_already_is_not_written() {
        let old = json!({"parents": [entry(CONTROLLER_NAME, written("True", "Accepted", 1, OLD))]});
        assert_eq!(merge(&old, &parents(accepted(true, 1)), &now()), None);
        let old = json!({"conditions": [written("True", "Accepted", 1, OLD)]});
        assert_eq!(
            merge(&old, &Status::Conditions(vec![accepted(true, 1)]), &now()),
            None
        );
        assert_eq!(
            merge(&old, &Status::OfTarget(vec![accepted(true, 1)], None), &now()),
            None
        );
        let target = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "web"});
        let named = merge(
            &old,
            &Status::OfTarget(vec![accepted(true, 1)], Some("web".to_owned())),
            &now(),
        );
        assert_eq!(named.map(|new| new["targetRef"].clone()), Some(target));
    }

    #[test]
    fn conditions_of_other_types_stay() {
        let theirs = json!({"type": "Audited", "status": "True"});
        let old = json!({"conditions": [theirs]});
        let new = merge(&old, &Status::Conditions(vec![accepted(true, 1)]), &now());
        assert_eq!(
            new,
            Some(json!({"conditions": [theirs, written("True", "Accepted", 1, NOW)]}))
        );
    }
}
