//! One base profile: `profile.yaml` with its values and their schema, `crds/` and `templates/`. Resolves what extends
//! what, bases first, and merges.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Bundled, ProfileError, check_values, parse_file, resolve_path, utf8};
use crate::{
    fault::{Fault, Faults},
    schema,
    source::{SourceError, Tree},
    yaml::{self, Step, Target},
};

/// A base profile as it is written.
#[derive(Clone, Debug)]
pub struct Layer {
    pub name: String,
    /// What its files are called in messages: `core/` or `profiles/own/`.
    pub prefix: String,
    pub values: Value,
    pub schema: Value,
    /// `crds/….yaml` and `templates/….yaml.hbs`, by path inside the profile.
    pub files: BTreeMap<String, String>,
    /// The text of `profile.yaml`, to find places in.
    text: String,
}

/// The file that asks for base profiles, so that a missing one is reported where it is named.
#[derive(Clone, Copy)]
pub(super) struct Asker<'a> {
    pub(super) file: &'a str,
    pub(super) text: &'a str,
    pub(super) folder: &'a str,
}

/// How deep profiles may extend one another.
const DEPTH_MAX: usize = 16;

/// All base profiles in the order in which they are merged; each once.
pub(super) fn resolve(
    extends: &[String],
    asker: &Asker<'_>,
    tree: &dyn Tree,
    bundled: &Bundled,
) -> Result<Vec<Layer>, ProfileError> {
    let mut done = Vec::new();
    add(extends, asker, tree, bundled, &mut Vec::new(), &mut done)?;
    Ok(done)
}

fn add(
    extends: &[String],
    asker: &Asker<'_>,
    tree: &dyn Tree,
    bundled: &Bundled,
    open: &mut Vec<String>,
    done: &mut Vec<Layer>,
) -> Result<(), ProfileError> {
    for (index, wanted) in extends.iter().enumerate() {
        let steps = [
            Step::Key("spec".into()),
            Step::Key("extends".into()),
            Step::Index(index),
        ];
        let wrong = |message: String| {
            Fault::new(asker.file, message)
                .at(yaml::locate(asker.text, &steps, Target::Value))
                .field(yaml::path_text(&steps))
        };
        let found = read(wanted, asker, tree, bundled, &wrong)?;
        if open.contains(&found.prefix) || open.len() >= DEPTH_MAX {
            let way: Vec<_> = open
                .iter()
                .chain([&found.prefix])
                .map(|prefix| prefix.trim_end_matches('/'))
                .collect();
            return Err(wrong(format!(
                "the profiles extend each other in a circle: {}",
                way.join(" -> ")
            ))
            .into());
        }
        if done.iter().any(|layer: &Layer| layer.prefix == found.prefix) {
            continue;
        }
        let file = format!("{}profile.yaml", found.prefix);
        let (layer, extends) = parse(found, &file)?;
        open.push(layer.prefix.clone());
        let text = layer.text.clone();
        let folder = layer.prefix.trim_end_matches('/').to_owned();
        add(
            &extends,
            &Asker {
                file: &file,
                text: &text,
                folder: &folder,
            },
            tree,
            bundled,
            open,
            done,
        )?;
        open.pop();
        done.push(layer);
    }
    Ok(())
}

struct Found {
    prefix: String,
    files: BTreeMap<String, String>,
}

fn read(
    wanted: &str,
    asker: &Asker<'_>,
    tree: &dyn Tree,
    bundled: &Bundled,
    wrong: &dyn Fn(String) -> Fault,
) -> Result<Found, ProfileError> {
    if !wanted.contains('/') {
        let Some(files) = bundled.get(wanted) else {
            let names: Vec<_> = bundled.names().collect();
            let mut fault = wrong(format!("there is no bundled profile `{wanted}`"));
            fault.hint = Some(match schema::nearest(wanted, names.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!(
                    "bundled: {}; a profile of your own is named by a path with a `/`",
                    names.join(", ")
                ),
            });
            return Err(fault.into());
        };
        return Ok(Found {
            prefix: format!("{wanted}/"),
            files: files.clone(),
        });
    }
    let path = resolve_path(asker.folder, wanted).map_err(|error| wrong(error.to_string()))?;
    let found = match tree.files(&path) {
        Ok(found) => found,
        Err(SourceError::NotFound { .. }) => {
            return Err(wrong(format!("there is no profile folder `{path}`")).into());
        }
        Err(error) => return Err(error.into()),
    };
    let prefix = format!("{path}/");
    let mut files = BTreeMap::new();
    for (file, bytes) in found {
        if let Some(inner) = file.strip_prefix(&prefix) {
            files.insert(inner.to_owned(), utf8(&file, &bytes)?);
        }
    }
    Ok(Found { prefix, files })
}

/// The shape of `profile.yaml`.
fn own_schema() -> Value {
    serde_json::json!({
        "type": "object", "required": ["apiVersion", "kind", "metadata"],
        "properties": {
            "apiVersion": {"enum": ["heddle.dev/v1alpha1"]},
            "kind": {"enum": ["Profile"]},
            "metadata": {"type": "object", "required": ["name"], "properties": {
                "name": {"type": "string"}, "labels": {"type": "object"}, "annotations": {"type": "object"},
            }},
            "spec": {"type": "object", "properties": {
                "description": {"type": "string"},
                "extends": {"type": "array", "items": {"type": "string"}},
                "values": {"type": "object"},
                "schema": {"type": "object"},
            }},
        },
    })
}

fn parse(mut found: Found, file: &str) -> Result<(Layer, Vec<String>), ProfileError> {
    let Some(text) = found.files.remove("profile.yaml") else {
        return Err(Fault::new(file, "the profile has no profile.yaml").into());
    };
    let document = parse_file(file, &text)?;
    let violations = schema::check(&own_schema(), &document.value, &mut Vec::new())
        .map_err(|error| Fault::new(file, error.to_string()))?;
    let faults = violations
        .iter()
        .map(|violation| super::violation_fault(violation, file, Some(&text)))
        .collect();
    Faults::check(faults).map_err(ProfileError::Invalid)?;
    let spec = |key: &str| {
        document
            .value
            .get("spec")
            .and_then(|spec| spec.get(key))
            .cloned()
            .unwrap_or(Value::Null)
    };
    let extends = spec("extends")
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    let name = crate::object::text_at(&document.value, &["metadata", "name"])
        .unwrap_or_default()
        .to_owned();
    let layer = Layer {
        name,
        prefix: found.prefix,
        values: spec("values"),
        schema: spec("schema"),
        files: found.files,
        text,
    };
    Ok((layer, extends))
}

/// The merged schema and the merged default values.
pub(super) fn merged(layers: &[Layer]) -> Result<(Value, Value), ProfileError> {
    let mut schema = serde_json::json!({"type": "object", "properties": {}});
    for layer in layers {
        schema = schema::merge_schemas(schema, &layer.schema);
    }
    let mut values = Value::Object(serde_json::Map::new());
    let mut faults = Vec::new();
    for layer in layers {
        let file = format!("{}profile.yaml", layer.prefix);
        check_values(
            &schema,
            &layer.values,
            &["spec", "values"],
            &file,
            &layer.text,
            &mut faults,
        )?;
        if !layer.values.is_null() {
            values = schema::merge(&schema, values, &layer.values);
        }
    }
    Faults::check(faults).map_err(ProfileError::Invalid)?;
    Ok((schema, values))
}
