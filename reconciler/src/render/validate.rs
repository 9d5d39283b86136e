//! Checks that need no cluster: that a document is a Kubernetes object, and that it says where it lives.

use std::collections::BTreeMap;

use base64::Engine as _;
use heddle_mesh::annotation;
use serde_json::Value;

use crate::{
    fault::Fault,
    object::{self, Object, ObjectId, Origin, Stage},
};

/// Takes a document for an object.
///
/// # Errors
/// What is missing or out of place.
pub(super) fn object(mut body: Value, origin: Origin) -> Result<Object, Fault> {
    let fault = |message: String| {
        let fault = Fault::new(&origin.file, message);
        if origin.rendered {
            fault
        } else {
            fault.line(origin.line)
        }
    };
    let Some(map) = body.as_object() else {
        return Err(fault(format!(
            "document at {}: expected an object with apiVersion and kind",
            line(&origin)
        )));
    };
    let text = |key: &str| {
        map.get(key)
            .and_then(Value::as_str)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let Some(kind) = text("kind") else {
        return Err(fault(format!(
            "document at {}: `kind` is missing or not text",
            line(&origin)
        ))
        .field("kind"));
    };
    let name = object::text_at(&body, &["metadata", "name"])
        .unwrap_or_default()
        .to_owned();
    let namespace = object::text_at(&body, &["metadata", "namespace"])
        .unwrap_or_default()
        .to_owned();
    let about = |fault: Fault| fault.object(format!("{kind} {name}").trim_end());
    let Some(api_version) = text("apiVersion") else {
        return Err(about(
            fault("`apiVersion` is missing or not text".to_owned()).field("apiVersion"),
        ));
    };
    if kind == "List" {
        return Err(about(fault("lists are not taken apart".to_owned()))
            .hint("write the items as documents of their own"));
    }
    if api_version.starts_with("heddle.dev/") && (kind == "MeshProfile" || kind == "Profile") {
        return Err(about(fault("a profile is no object of the cluster".to_owned()))
            .hint("keep it out of the policies folder"));
    }
    if object::at(&body, &["metadata", "generateName"]).is_some() {
        let fault = fault("generateName gives another object on every apply".to_owned())
            .field("metadata.generateName");
        return Err(about(fault).hint("give metadata.name"));
    }
    if name.is_empty() {
        return Err(about(
            fault("the object has no name".to_owned()).field("metadata.name"),
        ));
    }
    if name.len() > 253
        || name.contains(['/', '%'])
        || name.chars().any(|char| char.is_whitespace() || char.is_control())
    {
        return Err(about(
            fault(format!("`{name}` is no name of an object")).field("metadata.name"),
        ));
    }
    if let Some(wrong) = not_text(&body) {
        return Err(about(fault("expected text".to_owned()).field(wrong)).hint("put quotes around the value"));
    }
    let group = object::group_of(&api_version);
    let id = ObjectId::new(group, &kind, &namespace, &name);
    if let Some(field) = private_key(&id, &body) {
        let fault = fault("a private key has no place in Git".to_owned())
            .field(field)
            .object(&id);
        return Err(fault
            .hint("let cert-manager or the cluster make the key; remove it from the repository's history"));
    }
    let mut requires_crd = None;
    if let Some(annotations) = body
        .pointer_mut("/metadata/annotations")
        .and_then(Value::as_object_mut)
    {
        requires_crd = annotations
            .get(annotation::REQUIRES_CRD)
            .and_then(Value::as_str)
            .map(str::to_owned);
        annotations.retain(|key, _| !super::is_private_annotation(key));
        if annotations.is_empty()
            && let Some(meta) = body.pointer_mut("/metadata").and_then(Value::as_object_mut)
        {
            meta.remove("annotations");
        }
    }
    if let Some(meta) = body.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        meta.retain(|key, value| !(key == "creationTimestamp" && value.is_null()));
    }
    let stage = Stage::of(&id);
    Ok(Object {
        id,
        api_version,
        body,
        origin,
        stage,
        partial: false,
        requires_crd,
    })
}

fn line(origin: &Origin) -> String {
    format!(
        "{}line {}",
        if origin.rendered { "rendered " } else { "" },
        origin.line
    )
}

/// The first label or annotation whose value is not text: `port: 80` unquoted is the classic.
fn not_text(body: &Value) -> Option<String> {
    for field in ["labels", "annotations"] {
        let value = object::at(body, &["metadata", field]);
        match value {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                if let Some((key, _)) = map.iter().find(|(_, value)| !value.is_string()) {
                    return Some(format!("metadata.{field}[{key}]"));
                }
            }
            Some(_) => return Some(format!("metadata.{field}")),
        }
    }
    None
}

/// The field of a Secret or ConfigMap that holds a private key.
fn private_key(id: &ObjectId, body: &Value) -> Option<String> {
    if !(id.is("", "Secret") || id.is("", "ConfigMap")) {
        return None;
    }
    let is_key = |text: &str| text.contains("-----BEGIN") && text.contains("PRIVATE KEY-----");
    for field in ["data", "stringData", "binaryData"] {
        for (key, value) in body.get(field).and_then(Value::as_object).into_iter().flatten() {
            let text = value.as_str().unwrap_or_default();
            let decoded = base64::engine::general_purpose::STANDARD
                .decode(text.trim())
                .unwrap_or_default();
            if is_key(text) || is_key(&String::from_utf8_lossy(&decoded)) {
                return Some(format!("{field}[{key}]"));
            }
        }
    }
    None
}

/// Kinds without a namespace, of Kubernetes and of what is often installed beside a mesh. Other kinds are looked up in
/// the rendered CRDs, or else left to the API server.
const CLUSTER_SCOPED: [(&str, &str); 17] = [
    ("", "Namespace"),
    ("", "Node"),
    ("", "PersistentVolume"),
    ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicy"),
    ("admissionregistration.k8s.io", "ValidatingAdmissionPolicyBinding"),
    ("apiextensions.k8s.io", "CustomResourceDefinition"),
    ("apiregistration.k8s.io", "APIService"),
    ("cert-manager.io", "ClusterIssuer"),
    ("gateway.networking.k8s.io", "GatewayClass"),
    ("heddle.dev", "Mesh"),
    ("rbac.authorization.k8s.io", "ClusterRole"),
    ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
    ("scheduling.k8s.io", "PriorityClass"),
    ("storage.k8s.io", "StorageClass"),
    ("trust.cert-manager.io", "Bundle"),
];

/// Groups whose other kinds are all namespaced.
const NAMESPACED_GROUPS: [&str; 8] = [
    "",
    "apps",
    "batch",
    "policy",
    "rbac.authorization.k8s.io",
    "cert-manager.io",
    "gateway.networking.k8s.io",
    "monitoring.coreos.com",
];

/// Checks that namespaced objects name a namespace; takes a stray one off cluster-scoped objects as the API server does.
pub(super) fn scopes(objects: &mut [Object], faults: &mut Vec<Fault>) {
    let rendered: BTreeMap<(String, String), bool> = objects
        .iter()
        .filter(|object| object.id.is("apiextensions.k8s.io", "CustomResourceDefinition"))
        .filter_map(|object| {
            let spec = object.body.get("spec")?;
            let group = object::text_at(spec, &["group"])?.to_owned();
            let kind = object::text_at(spec, &["names", "kind"])?.to_owned();
            Some(((group, kind), object::text_at(spec, &["scope"])? == "Namespaced"))
        })
        .collect();
    for object in objects {
        let key = (object.id.group.clone(), object.id.kind.clone());
        let namespaced = if CLUSTER_SCOPED.contains(&(key.0.as_str(), key.1.as_str())) {
            Some(false)
        } else {
            rendered
                .get(&key)
                .copied()
                .or_else(|| NAMESPACED_GROUPS.contains(&key.0.as_str()).then_some(true))
        };
        match namespaced {
            Some(true) if object.id.namespace.is_empty() => {
                let fault = Fault::new(&object.origin.file, "the object has no namespace").object(&object.id);
                let fault = if object.origin.rendered {
                    fault
                } else {
                    fault.line(object.origin.line)
                };
                faults.push(fault.field("metadata.namespace").hint("give metadata.namespace"));
            }
            Some(false) if !object.id.namespace.is_empty() => {
                object.id.namespace.clear();
                if let Some(meta) = object
                    .body
                    .pointer_mut("/metadata")
                    .and_then(Value::as_object_mut)
                {
                    meta.remove("namespace");
                }
            }
            _ => {}
        }
    }
}
