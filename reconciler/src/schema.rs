//! The part of JSON Schema that profiles use: checks values, merges layers of them, fills in what is absent.
//!
//! Pure. Understood are `type` (one or several), `properties`, `required`, `additionalProperties`, `items`, `enum`,
//! `pattern`, `minimum`, `maximum`, `maxProperties`, `default` and `description`. Unlike plain JSON Schema, an object
//! with `properties` refuses other keys unless `additionalProperties` says otherwise: a misspelt setting must not be
//! silently without effect. An object with `maxProperties: 1` is a choice: a later layer's choice replaces the earlier.

use serde_json::{Map, Value};

use crate::yaml::{Step, path_text};

/// One thing wrong with the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which field.
    pub path: Vec<Step>,
    /// Whether the key itself is at fault, not its value.
    pub at_key: bool,
    /// What is wrong and what was expected.
    pub message: String,
    /// What to do instead, when that is clear.
    pub hint: Option<String>,
}

impl Violation {
    /// The field as `spec.values.proxy`.
    pub fn field(&self) -> String {
        path_text(&self.path)
    }
}

/// A schema that is itself wrong.
#[derive(Debug, thiserror::Error)]
#[error("the schema's pattern `{pattern}` is no regular expression")]
pub struct PatternError {
    pattern: String,
    #[source]
    source: Box<regex::Error>,
}

/// Checks a value; all violations in the order of the value.
///
/// # Errors
/// Only a schema that is itself wrong.
pub fn check(schema: &Value, value: &Value, path: &mut Vec<Step>) -> Result<Vec<Violation>, PatternError> {
    let mut found = Vec::new();
    check_into(schema, value, path, &mut found)?;
    Ok(found)
}

fn check_into(
    schema: &Value,
    value: &Value,
    path: &mut Vec<Step>,
    found: &mut Vec<Violation>,
) -> Result<(), PatternError> {
    let mut wrong = |path: &[Step], message: String| {
        found.push(Violation {
            path: path.to_vec(),
            at_key: false,
            message,
            hint: None,
        });
    };
    let types = types_of(schema);
    if !types.is_empty() && !types.iter().any(|name| is_type(name, value)) {
        wrong(
            path,
            format!("expected {}, found {}", types.join(" or "), describe(value)),
        );
        return Ok(());
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<_> = allowed.iter().map(short).collect();
        wrong(
            path,
            format!("expected one of {}, found {}", names.join(", "), describe(value)),
        );
    }
    match value {
        Value::String(text) => {
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
                let regex = regex::Regex::new(pattern).map_err(|source| PatternError {
                    pattern: pattern.to_owned(),
                    source: Box::new(source),
                })?;
                if !regex.is_match(text) {
                    wrong(path, format!("`{text}` does not match the pattern `{pattern}`"));
                }
            }
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            if let Some(least) = schema
                .get("minimum")
                .and_then(Value::as_f64)
                .filter(|least| number < *least)
            {
                wrong(path, format!("{number} is less than the least value, {least}"));
            }
            if let Some(most) = schema
                .get("maximum")
                .and_then(Value::as_f64)
                .filter(|most| number > *most)
            {
                wrong(path, format!("{number} is more than the greatest value, {most}"));
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                for (index, item) in items.iter().enumerate() {
                    path.push(Step::Index(index));
                    check_into(schema, item, path, found)?;
                    path.pop();
                }
            }
        }
        Value::Object(map) => check_object(schema, map, path, found)?,
        Value::Null | Value::Bool(_) => {}
    }
    Ok(())
}

fn check_object(
    schema: &Value,
    map: &Map<String, Value>,
    path: &mut Vec<Step>,
    found: &mut Vec<Violation>,
) -> Result<(), PatternError> {
    let none = Map::new();
    let properties = schema.get("properties").and_then(Value::as_object);
    let known = properties.unwrap_or(&none);
    for name in schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
    {
        if map.get(name).is_none_or(Value::is_null) {
            let message = format!("the field `{name}` is missing");
            found.push(Violation {
                path: path.clone(),
                at_key: false,
                message,
                hint: None,
            });
        }
    }
    if is_choice(schema) {
        let chosen: Vec<_> = map
            .iter()
            .filter(|(_, value)| !value.is_null())
            .map(|(key, _)| key.as_str())
            .collect();
        if chosen.len() > 1 {
            let message = format!("expected only one of {}", chosen.join(", "));
            found.push(Violation {
                path: path.clone(),
                at_key: false,
                message,
                hint: None,
            });
        }
    }
    for (key, value) in map {
        path.push(Step::Key(key.clone()));
        match (known.get(key), schema.get("additionalProperties")) {
            // Null stands for "not set": every property may be left open that way.
            (Some(_), _) if value.is_null() => {}
            (Some(schema), _) => check_into(schema, value, path, found)?,
            (None, Some(Value::Bool(true))) => {}
            (None, Some(extra @ Value::Object(_))) => check_into(extra, value, path, found)?,
            (None, Some(Value::Bool(false))) => found.push(unknown_key(key, known, path)),
            (None, _) if properties.is_some() => found.push(unknown_key(key, known, path)),
            (None, _) => {}
        }
        path.pop();
    }
    Ok(())
}

fn unknown_key(key: &str, known: &Map<String, Value>, path: &[Step]) -> Violation {
    let hint = match nearest(key, known.keys().map(String::as_str)) {
        Some(near) => Some(format!("did you mean `{near}`?")),
        None if known.is_empty() => None,
        None => Some(format!(
            "known here: {}",
            known.keys().cloned().collect::<Vec<_>>().join(", ")
        )),
    };
    Violation {
        path: path.to_vec(),
        at_key: true,
        message: format!("unknown key `{key}`"),
        hint,
    }
}

/// The candidate that a misspelling most likely meant.
pub fn nearest<'a>(wrong: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let limit = (wrong.chars().count() / 3).max(1) + 1;
    candidates
        .map(|candidate| {
            (
                distance(&wrong.to_lowercase(), &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance, with a swap of neighbours counted as one.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1)
                .min(row[j - 1] + 1)
                .min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Merges a layer of values over a lower one: maps merge, everything else replaces; a choice replaces as a whole.
pub fn merge(schema: &Value, lower: Value, upper: &Value) -> Value {
    match (lower, upper) {
        (Value::Object(mut lower), Value::Object(upper)) => {
            if is_choice(schema) && upper.values().any(|value| !value.is_null()) {
                lower.retain(|key, _| upper.get(key).is_some_and(|value| !value.is_null()));
            }
            for (key, value) in upper {
                let below = lower.remove(key).unwrap_or(Value::Null);
                lower.insert(key.clone(), merge(property(schema, key), below, value));
            }
            Value::Object(lower)
        }
        (_, upper) => upper.clone(),
    }
}

/// Merges two schemas: the upper adds properties and replaces what it repeats.
pub fn merge_schemas(lower: Value, upper: &Value) -> Value {
    match (lower, upper) {
        (Value::Object(mut lower), Value::Object(upper)) => {
            for (key, value) in upper {
                let below = lower.remove(key).unwrap_or(Value::Null);
                lower.insert(key.clone(), merge_schemas(below, value));
            }
            Value::Object(lower)
        }
        (lower, Value::Null) => lower,
        (_, upper) => upper.clone(),
    }
}

/// Gives every property that is absent its default, or null, so that a strict template can ask for it. An absent
/// object is filled too, unless it may be null.
pub fn complete(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, schema) in schema
                .get("properties")
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                let entry = map.entry(key.clone()).or_insert(Value::Null);
                if entry.is_null() {
                    *entry = absent(schema);
                }
                complete(schema, entry);
            }
            if let Some(extra @ Value::Object(_)) = schema.get("additionalProperties") {
                let known = schema.get("properties").and_then(Value::as_object);
                for (_, value) in map
                    .iter_mut()
                    .filter(|(key, _)| known.is_none_or(|known| !known.contains_key(*key)))
                {
                    complete(extra, value);
                }
            }
        }
        Value::Array(items) => {
            if let Some(schema) = schema.get("items") {
                items.iter_mut().for_each(|item| complete(schema, item));
            }
        }
        _ => {}
    }
}

fn absent(schema: &Value) -> Value {
    match schema.get("default") {
        Some(default) => default.clone(),
        None if types_of(schema) == ["object"] && schema.get("properties").is_some() => {
            Value::Object(Map::new())
        }
        None => Value::Null,
    }
}

fn is_choice(schema: &Value) -> bool {
    schema.get("maxProperties").and_then(Value::as_u64) == Some(1)
}

fn property<'a>(schema: &'a Value, key: &str) -> &'a Value {
    let named = schema
        .get("properties")
        .and_then(|properties| properties.get(key));
    named
        .or_else(|| schema.get("additionalProperties"))
        .unwrap_or(&Value::Null)
}

fn types_of(schema: &Value) -> Vec<&str> {
    match schema.get("type") {
        Some(Value::String(name)) => vec![name.as_str()],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

fn is_type(name: &str, value: &Value) -> bool {
    match name {
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(bool) => format!("the boolean {bool}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(_) => format!("the text {}", short(value)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a map".to_owned(),
    }
}

fn short(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "trustDomain": {"type": "string", "pattern": "^[a-z.]+$", "default": "cluster.local"},
                "replicas": {"type": "integer", "minimum": 1, "maximum": 9},
                "level": {"enum": ["debug", "info"]},
                "issuer": {"type": "object", "maxProperties": 1, "properties": {
                    "selfSigned": {"type": ["object", "null"], "properties": {}},
                    "certManager": {"type": ["object", "null"], "properties": {"duration": {"type": "string"}}, "required": ["duration"]},
                }},
                "resources": {"type": "object", "properties": {"cpu": {"type": "object", "properties": {"limit": {"type": ["string", "null"]}}}}},
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "ports": {"type": "array", "items": {"type": "integer"}},
            },
        })
    }

    fn check_text(value: Value, expected: Expect) {
        let found = check(&schema(), &value, &mut Vec::new()).unwrap();
        let lines: Vec<_> = found
            .iter()
            .map(|v| {
                format!(
                    "{}: {}{}",
                    v.field(),
                    v.message,
                    v.hint.as_ref().map(|h| format!(" ({h})")).unwrap_or_default()
                )
            })
            .collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn misspelt_keys_are_refused_with_the_near_name() {
        check_text(
            json!({"trustDomian": "x"}),
            expect!["trustDomian: unknown key `trustDomian` (did you mean `trustDomain`?)"],
        );
        check_text(
            json!({"zzz": 1}),
            expect![
                "zzz: unknown key `zzz` (known here: issuer, labels, level, ports, replicas, resources, trustDomain)"
            ],
        );
    }

    #[test]
    fn wrong_types_and_ranges_are_named() {
        check_text(
            json!({"replicas": "3", "level": "loud", "ports": [1, "x"], "labels": {"a": 1}}),
            expect![[r#"
                labels.a: expected string, found the number 1
                level: expected one of `debug`, `info`, found the text `loud`
                ports[1]: expected integer, found the text `x`
                replicas: expected integer, found the text `3`"#]],
        );
        check_text(
            json!({"replicas": 0}),
            expect!["replicas: 0 is less than the least value, 1"],
        );
        check_text(
            json!({"trustDomain": "A B"}),
            expect!["trustDomain: `A B` does not match the pattern `^[a-z.]+$`"],
        );
        check_text(
            json!({"issuer": {"certManager": {}}}),
            expect!["issuer.certManager: the field `duration` is missing"],
        );
    }

    #[test]
    fn a_choice_replaces_the_choice_below() {
        let lower = json!({"issuer": {"selfSigned": {}}, "replicas": 1});
        let merged = merge(
            &schema(),
            lower,
            &json!({"issuer": {"certManager": {"duration": "48h"}}}),
        );
        assert_eq!(
            merged,
            json!({"issuer": {"certManager": {"duration": "48h"}}, "replicas": 1})
        );
        check_text(merged, expect![""]);
        check_text(
            json!({"issuer": {"certManager": {"duration": "48h"}, "selfSigned": {}}}),
            expect!["issuer: expected only one of certManager, selfSigned"],
        );
    }

    #[test]
    fn absent_properties_become_defaults_or_null() {
        let mut value = json!({});
        complete(&schema(), &mut value);
        assert_eq!(
            value,
            json!({
                "trustDomain": "cluster.local", "replicas": null, "level": null, "labels": null, "ports": null,
                "issuer": {"selfSigned": null, "certManager": null},
                "resources": {"cpu": {"limit": null}},
            })
        );
    }
}
