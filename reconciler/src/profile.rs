//! From files to a checked profile: parses the `MeshProfile`, resolves what it extends, merges and validates values.
//!
//! In goes a [`Tree`] and a path; out comes a [`Mesh`], or every mistake with file, line, column and field. Pure but for
//! reading the tree. This module knows nothing of templates' insides, nor of clusters.

pub mod bundled;
pub mod layer;
pub mod spec;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{
    fault::{Fault, Faults},
    schema::{self, Violation},
    source::{SourceError, Tree, clean_path},
    yaml::{self, Document, Step, Target},
};
pub use bundled::Bundled;
pub use layer::Layer;
pub use spec::{Injection, MeshSpec, Rollout, Wave};

/// A profile whose values are complete and checked.
#[derive(Clone, Debug)]
pub struct Mesh {
    /// The MeshProfile's name.
    pub name: String,
    /// The file it was read from.
    pub file: String,
    /// Base profiles first.
    pub layers: Vec<Layer>,
    /// Merged values, complete by the merged schema.
    pub values: Value,
    /// The policy files, by path.
    pub policies: BTreeMap<String, String>,
    pub injection: Vec<Injection>,
    pub rollout: Rollout,
    /// Settings that are understood but that this version does not act upon.
    pub notes: Vec<String>,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the profile's files cannot be read")]
    Source(#[from] SourceError),
    #[error("{0}")]
    Invalid(Faults),
}

impl From<Fault> for ProfileError {
    fn from(fault: Fault) -> Self {
        Self::Invalid(fault.into())
    }
}

/// Loads the profile at a path: a folder with a `mesh.yaml` (or one other file that holds a `MeshProfile`), or a file.
///
/// `overrides` are merged over the profile's own values, as `--set` gives them.
///
/// # Errors
/// All mistakes that could be found, or why the tree could not be read.
pub fn load(
    tree: &dyn Tree,
    path: &str,
    bundled: &Bundled,
    overrides: &[Value],
) -> Result<Mesh, ProfileError> {
    let path = clean_path(path)?;
    let (file, text) = find_profile(tree, &path)?;
    let document = parse_file(&file, &text)?;
    let faults = spec::check(&file, &text, &document);
    Faults::check(faults).map_err(ProfileError::Invalid)?;
    let (name, spec) = spec::read(&file, &document.value)?;
    let folder = file.rsplit_once('/').map_or("", |(folder, _)| folder).to_owned();

    let layers = layer::resolve(
        &spec.extends,
        &layer::Asker {
            file: &file,
            text: &text,
            folder: &folder,
        },
        tree,
        bundled,
    )?;
    let (schema, mut values) = layer::merged(&layers)?;
    let mut faults = Vec::new();
    check_values(
        &schema,
        &spec.values,
        &["spec", "values"],
        &file,
        &text,
        &mut faults,
    )?;
    if !spec.values.is_null() {
        values = schema::merge(&schema, values, &spec.values);
    }
    for layer in overrides {
        let found = schema::check(&schema, layer, &mut Vec::new())
            .map_err(|error| Fault::new("the schema", error.to_string()))?;
        faults.extend(
            found
                .into_iter()
                .map(|violation| violation_fault(&violation, "--set", None)),
        );
        values = schema::merge(&schema, values, layer);
    }
    Faults::check(faults).map_err(ProfileError::Invalid)?;
    schema::complete(&schema, &mut values);
    // What only the merged whole shows: required fields that no layer gave.
    let whole = schema::check(&schema, &values, &mut vec![Step::Key("values".into())])
        .map_err(|error| Fault::new(&file, error.to_string()))?;
    Faults::check(
        whole
            .iter()
            .map(|violation| violation_fault(violation, &file, None))
            .collect(),
    )
    .map_err(ProfileError::Invalid)?;

    let policies = read_policies(tree, &file, &text, &folder, &spec.policies)?;
    let notes = spec.notes();
    Ok(Mesh {
        name,
        file,
        layers,
        values,
        policies,
        injection: spec.injection,
        rollout: spec.rollout,
        notes,
    })
}

/// The file of the profile and its text.
fn find_profile(tree: &dyn Tree, path: &str) -> Result<(String, String), ProfileError> {
    let files = tree.files(path)?;
    let prefix = if path.is_empty() {
        String::new()
    } else {
        format!("{path}/")
    };
    let direct: Vec<_> = files
        .iter()
        .filter(|(file, _)| {
            *file == path
                || file
                    .strip_prefix(&prefix)
                    .is_some_and(|name| !name.contains('/') && is_yaml(name))
        })
        .collect();
    let exact = direct
        .iter()
        .find(|(file, _)| *file == path || file.strip_prefix(&prefix) == Some("mesh.yaml"));
    if let Some((file, bytes)) = exact {
        return Ok(((*file).clone(), utf8(file, bytes)?));
    }
    let mut found = Vec::new();
    for (file, bytes) in direct {
        let text = utf8(file, bytes)?;
        if text.lines().any(|line| line.trim_end() == "kind: MeshProfile") {
            found.push((file.clone(), text));
        }
    }
    let place = if path.is_empty() {
        "the repository's root"
    } else {
        path
    };
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Fault::new(place, "there is no MeshProfile here")
            .hint("expected a file mesh.yaml with `kind: MeshProfile`; see --path or spec.path")
            .into()),
        _ => {
            let names: Vec<_> = found.iter().map(|(file, _)| file.as_str()).collect();
            Err(Fault::new(
                place,
                format!("several files hold a MeshProfile: {}", names.join(", ")),
            )
            .hint("name one of them by --path or spec.path, or call it mesh.yaml")
            .into())
        }
    }
}

pub(crate) fn is_yaml(name: &str) -> bool {
    name.ends_with(".yaml") || name.ends_with(".yml")
}

pub(crate) fn utf8(file: &str, bytes: &[u8]) -> Result<String, Fault> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Fault::new(file, "the file is not UTF-8 text"))
}

/// Parses a file of one document.
pub(crate) fn parse_file(file: &str, text: &str) -> Result<Document, Fault> {
    yaml::parse_single(text)
        .map_err(|error| Fault::new(file, format!("invalid YAML: {}", error.message)).at(error.place))
}

/// Checks one file's values and reports their place in the file.
pub(crate) fn check_values(
    schema: &Value,
    values: &Value,
    at: &[&str],
    file: &str,
    text: &str,
    faults: &mut Vec<Fault>,
) -> Result<(), Fault> {
    if values.is_null() {
        return Ok(());
    }
    let mut path = at.iter().map(|key| Step::Key((*key).to_owned())).collect();
    let partial = without_required(schema);
    let found =
        schema::check(&partial, values, &mut path).map_err(|error| Fault::new(file, error.to_string()))?;
    faults.extend(
        found
            .iter()
            .map(|violation| violation_fault(violation, file, Some(text))),
    );
    Ok(())
}

/// One layer need not give every required field; the merged whole must. Inside a choice a layer is complete.
fn without_required(schema: &Value) -> Value {
    match schema {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(key, value)| !(*key == "required" && value.is_array()))
                .map(|(k, v)| (k.clone(), without_required(v)))
                .collect(),
        ),
        Value::Array(items) => Value::Array(items.iter().map(without_required).collect()),
        other => other.clone(),
    }
}

pub(crate) fn violation_fault(violation: &Violation, file: &str, text: Option<&str>) -> Fault {
    let target = if violation.at_key {
        Target::Key
    } else {
        Target::Value
    };
    let place = text.and_then(|text| yaml::locate(text, &violation.path, target));
    let mut fault = Fault::new(file, violation.message.clone())
        .at(place)
        .field(violation.field());
    fault.hint = violation.hint.clone();
    fault
}

fn read_policies(
    tree: &dyn Tree,
    file: &str,
    text: &str,
    folder: &str,
    folders: &[String],
) -> Result<BTreeMap<String, String>, ProfileError> {
    let mut policies = BTreeMap::new();
    for (index, wanted) in folders.iter().enumerate() {
        let steps = [
            Step::Key("spec".into()),
            Step::Key("policies".into()),
            Step::Index(index),
        ];
        let wrong = |message: String| {
            Fault::new(file, message)
                .at(yaml::locate(text, &steps, Target::Value))
                .field(yaml::path_text(&steps))
        };
        let path = resolve_path(folder, wanted).map_err(|error| wrong(error.to_string()))?;
        let files = match tree.files(&path) {
            Ok(files) => files,
            Err(SourceError::NotFound { .. }) => {
                return Err(wrong(format!("there is no folder `{path}`")).into());
            }
            Err(error) => return Err(error.into()),
        };
        for (name, bytes) in files
            .into_iter()
            .filter(|(name, _)| is_yaml(name) && name != file)
        {
            let text = utf8(&name, &bytes)?;
            policies.insert(name, text);
        }
    }
    Ok(policies)
}

/// A path written in a profile: relative to the profile's folder, or from the root when it begins with `/`.
pub(crate) fn resolve_path(folder: &str, wanted: &str) -> Result<String, SourceError> {
    if wanted.starts_with('/') {
        clean_path(wanted)
    } else {
        clean_path(&format!("{folder}/{wanted}"))
    }
}

#[cfg(test)]
pub(crate) mod tests;
