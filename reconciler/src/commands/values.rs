//! `--set key=value`: one value merged over a profile's.

use serde_json::Value;

use crate::{cli::Failure, yaml};

/// Reads `a.b.c=value`; the value is YAML, so `3`, `true`, `null`, `[a, b]` are what they look like.
///
/// # Errors
/// A text without `=`, an empty key, or a value that is no YAML.
pub fn parse_set(text: &str) -> Result<Value, Failure> {
    let wrong = |why: String| {
        Failure::message(format!("--set {text}: {why}")).hint("write --set proxy.logLevel=debug")
    };
    let (path, value) = text
        .split_once('=')
        .ok_or_else(|| wrong("expected key=value".into()))?;
    let mut value = match value.trim() {
        "" => Value::String(String::new()),
        value => yaml::parse_single(value)
            .map(|document| document.value)
            .or_else(|error| match value {
                "null" | "~" => Ok(Value::Null),
                _ => Err(wrong(error.message)),
            })?,
    };
    for key in path.split('.').rev() {
        if key.is_empty() {
            return Err(wrong("a part of the key is empty".into()));
        }
        value = serde_json::json!({ key: value });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_nest_and_values_are_yaml() {
        assert_eq!(parse_set("a.b=3").unwrap(), json!({"a": {"b": 3}}));
        assert_eq!(parse_set("a=x=y").unwrap(), json!({"a": "x=y"}));
        assert_eq!(parse_set("a=[1, b]").unwrap(), json!({"a": [1, "b"]}));
        assert_eq!(parse_set("a=null").unwrap(), json!({"a": null}));
        assert_eq!(parse_set("a=").unwrap(), json!({"a": ""}));
        assert!(parse_set("a").is_err());
        assert!(parse_set("a..b=1").is_err());
    }
}
