//! From a checked profile to Kubernetes objects.
//!
//! Pure: a function of the profile and the binary. Templates see no clock, no randomness, no environment and no
//! cluster, so that one commit renders to the same bytes always and everywhere. Out come objects in the order in which
//! they are applied, each knowing the file it came from; or every mistake, with template and line.

pub mod helpers;
pub mod validate;

use std::collections::BTreeMap;

use handlebars::Handlebars;
use heddle_mesh::{annotation, label};
use serde_json::{Value, json};

use crate::{
    fault::{Fault, Faults},
    object::{self, Object, ObjectId, Origin, Stage},
    profile::{Injection, Layer, Mesh},
    yaml,
};

/// Everything that one commit asks for.
#[derive(Clone, Debug)]
pub struct Rendered {
    /// The MeshProfile's name; the value of the `heddle.dev/profile` label.
    pub profile: String,
    /// In the order of application; no two with one identity.
    pub objects: Vec<Object>,
    pub injection: Vec<Injection>,
    pub rollout: crate::profile::Rollout,
    /// The merged values, for what is not rendered (the issuer's kind, the trust domain).
    pub values: Value,
    pub notes: Vec<String>,
}

/// Renders a profile.
///
/// # Errors
/// Everything wrong with the templates, the policies or the objects they make.
pub fn render(mesh: &Mesh) -> Result<Rendered, Faults> {
    let mut faults = Vec::new();
    let mut objects = Vec::new();
    let context = context(mesh);
    for (file, owner, text) in sources(&mesh.layers) {
        if file.contains("templates/") {
            match render_template(owner, &file, text, &context) {
                Ok(rendered) => parse(&file, &rendered, true, &mut objects, &mut faults),
                Err(fault) => faults.push(fault),
            }
        } else {
            parse(&file, text, false, &mut objects, &mut faults);
        }
    }
    for (file, text) in &mesh.policies {
        parse(file, text, false, &mut objects, &mut faults);
    }
    validate::scopes(&mut objects, &mut faults);
    inject(mesh, &mut objects);
    for object in objects.iter_mut().filter(|object| !object.partial) {
        adopt(object, &mesh.name);
    }
    objects.sort_by(|a, b| order(a).cmp(&order(b)));
    for pair in objects.windows(2).filter(|pair| pair[0].id == pair[1].id) {
        let (second, first) = (&pair[1], &pair[0].origin);
        let fault = Fault::new(
            &second.origin.file,
            format!("the same object is also written in {first}"),
        )
        .object(&second.id);
        faults.push(if second.origin.rendered {
            fault
        } else {
            fault.line(second.origin.line)
        });
    }
    Faults::check(faults)?;
    Ok(Rendered {
        profile: mesh.name.clone(),
        objects,
        injection: mesh.injection.clone(),
        rollout: mesh.rollout.clone(),
        values: mesh.values.clone(),
        notes: mesh.notes.clone(),
    })
}

fn order(object: &Object) -> (Stage, u8, &ObjectId, &Origin) {
    (object.stage, Stage::rank(&object.id), &object.id, &object.origin)
}

/// What templates see.
fn context(mesh: &Mesh) -> Value {
    let text = |key: &str, default: &str| {
        mesh.values
            .get(key)
            .and_then(Value::as_str)
            .unwrap_or(default)
            .to_owned()
    };
    json!({
        "values": mesh.values,
        "profile": {"name": mesh.name, "namespace": text("linkerdNamespace", heddle_mesh::CONTROL_NAMESPACE)},
        "cluster": {"domain": text("clusterDomain", "cluster.local")},
        "version": heddle_mesh::VERSION,
    })
}

/// The files of all layers that make objects, CRDs first. A later layer's file replaces an earlier one's of the same
/// path, so that a profile can exchange one template of its base.
fn sources(layers: &[Layer]) -> Vec<(String, &Layer, &str)> {
    let mut by_path: BTreeMap<&str, (&Layer, &str)> = BTreeMap::new();
    for layer in layers {
        for (path, text) in &layer.files {
            let crd = path.starts_with("crds/") && crate::profile::is_yaml(path);
            let template = path.starts_with("templates/") && path.ends_with(".yaml.hbs");
            if crd || template {
                by_path.insert(path, (layer, text));
            }
        }
    }
    by_path
        .into_iter()
        .map(|(path, (layer, text))| (format!("{}{path}", layer.prefix), layer, text))
        .collect()
}

fn render_template(owner: &Layer, file: &str, text: &str, context: &Value) -> Result<String, Fault> {
    let mut handlebars = Handlebars::new();
    handlebars.set_strict_mode(true);
    handlebars.register_escape_fn(handlebars::no_escape);
    // Logging from a template is a side effect.
    handlebars.unregister_helper("log");
    helpers::register(&mut handlebars);
    // Partials: a profile's `templates/_name.hbs` is `{{> name}}`.
    for (path, partial) in &owner.files {
        let name = path
            .strip_prefix("templates/_")
            .and_then(|name| name.strip_suffix(".hbs"));
        if let Some(name) = name {
            handlebars
                .register_partial(name, partial)
                .map_err(|error| template_fault(&format!("{}{path}", owner.prefix), &error))?;
        }
    }
    handlebars
        .register_template_string(file, text)
        .map_err(|error| template_fault(file, &error))?;
    handlebars.render(file, context).map_err(|error| {
        let at = match (error.line_no, error.column_no) {
            (Some(line), Some(column)) => Some(yaml::Place { line, column }),
            _ => None,
        };
        // An error inside a partial names the partial.
        let name = error.template_name.as_deref().filter(|name| *name != file);
        let file = name.map_or_else(
            || file.to_owned(),
            |name| format!("{}templates/_{name}.hbs", owner.prefix),
        );
        let fault = Fault::new(&file, format!("the template fails: {}", error.reason())).at(at);
        match error.reason() {
            handlebars::RenderErrorReason::MissingVariable(_) => {
                fault.hint("the value is neither given nor in the profile's schema")
            }
            _ => fault,
        }
    })
}

fn template_fault(file: &str, error: &handlebars::TemplateError) -> Fault {
    let place = error.pos().map(|(line, column)| yaml::Place { line, column });
    Fault::new(
        file,
        format!("the template is not understood: {}", error.reason()),
    )
    .at(place)
}

/// Turns text into objects.
fn parse(file: &str, text: &str, rendered: bool, objects: &mut Vec<Object>, faults: &mut Vec<Fault>) {
    let documents = match yaml::parse_documents(text) {
        Ok(documents) => documents,
        Err(error) => {
            let fault = match (rendered, error.place) {
                (true, Some(place)) => {
                    let line = text
                        .lines()
                        .nth(place.line.saturating_sub(1))
                        .unwrap_or_default()
                        .trim();
                    let message = format!(
                        "renders to invalid YAML at rendered line {} (`{line}`): {}",
                        place.line, error.message
                    );
                    Fault::new(file, message)
                }
                (true, None) => Fault::new(file, format!("renders to invalid YAML: {}", error.message)),
                (false, place) => Fault::new(file, format!("invalid YAML: {}", error.message)).at(place),
            };
            faults.push(fault);
            return;
        }
    };
    for document in documents {
        let origin = Origin {
            file: file.to_owned(),
            line: document.line,
            rendered,
        };
        match validate::object(document.value, origin) {
            Ok(object) => objects.push(object),
            Err(fault) => faults.push(fault),
        }
    }
}

/// Marks an object as ours, so that the loop can watch all of them at once and prune knows them again.
fn adopt(object: &mut Object, profile: &str) {
    let Some(labels) = object::map_mut(&mut object.body, &["metadata", "labels"]) else {
        return;
    };
    labels.insert(label::PROFILE.to_owned(), profile.into());
    labels
        .entry(label::MANAGED_BY.to_owned())
        .or_insert_with(|| heddle_mesh::FIELD_MANAGER.into());
}

/// Writes the annotations of the injection section: on a namespace that is rendered anyway, or as a partial object.
fn inject(mesh: &Mesh, objects: &mut Vec<Object>) {
    for entry in &mesh.injection {
        let origin = Origin {
            file: mesh.file.clone(),
            line: 1,
            rendered: false,
        };
        let (id, api_version, path): (_, _, &[&str]) = match &entry.workload {
            None => (
                ObjectId::new("", "Namespace", "", &entry.namespace),
                "v1",
                &["metadata", "annotations"],
            ),
            Some(workload) => (
                ObjectId::new("apps", &workload.kind, &entry.namespace, &workload.name),
                "apps/v1",
                &["spec", "template", "metadata", "annotations"],
            ),
        };
        if !objects.iter().any(|object| object.id == id) {
            let mut body = json!({"apiVersion": api_version, "kind": id.kind, "metadata": {"name": id.name}});
            if !id.namespace.is_empty() {
                body["metadata"]["namespace"] = id.namespace.as_str().into();
            }
            objects.push(Object {
                id: id.clone(),
                api_version: api_version.to_owned(),
                body,
                origin,
                stage: Stage::Policy,
                partial: true,
                requires_crd: None,
            });
        }
        let target = objects.iter_mut().find(|object| object.id == id);
        if let Some(map) = target.and_then(|object| object::map_mut(&mut object.body, path)) {
            map.extend(
                entry
                    .annotations
                    .iter()
                    .map(|(key, value)| (key.clone(), value.as_str().into())),
            );
        }
    }
}

impl Rendered {
    /// The objects as one YAML stream.
    pub fn to_yaml(&self, wanted: impl Fn(&Object) -> bool) -> String {
        let mut out = String::new();
        for object in self.objects.iter().filter(|object| wanted(object)) {
            out.push_str("---\n");
            out.push_str(&yaml::print(&object.body));
        }
        out
    }

    /// The object of an identity.
    pub fn get(&self, id: &ObjectId) -> Option<&Object> {
        self.objects.iter().find(|object| object.id == *id)
    }

    /// SHA-256 over all objects: equal renders have equal digests.
    pub fn digest(&self) -> String {
        object::digest(self.to_yaml(|_| true).as_bytes())
    }

    /// The control plane's namespace.
    pub fn control_namespace(&self) -> &str {
        object::text_at(&self.values, &["linkerdNamespace"]).unwrap_or(heddle_mesh::CONTROL_NAMESPACE)
    }
}

/// Whether an annotation is meant for Heddle alone and never reaches the API server.
pub(crate) fn is_private_annotation(key: &str) -> bool {
    key == annotation::REQUIRES_CRD
}

#[cfg(test)]
mod tests;
