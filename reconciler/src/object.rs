//! Kubernetes objects as the pipeline handles them: an identity, a JSON body, where in Git it came from, and the stage
//! in which it is applied. Pure data.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What names an object in a cluster, whatever version of its API it is written in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectId {
    pub group: String,
    pub kind: String,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    pub name: String,
}

impl ObjectId {
    pub fn new(group: &str, kind: &str, namespace: &str, name: &str) -> Self {
        Self {
            group: group.into(),
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Flux's inventory form: `namespace_name_group_kind`.
    pub fn inventory_key(&self) -> String {
        // RBAC names may hold colons, which Flux writes as `__`.
        format!(
            "{}_{}_{}_{}",
            self.namespace,
            self.name.replace(':', "__"),
            self.group,
            self.kind
        )
    }

    /// Reads [`Self::inventory_key`] back.
    pub fn from_inventory_key(key: &str) -> Option<Self> {
        let (namespace, rest) = key.split_once('_')?;
        let (rest, kind) = rest.rsplit_once('_')?;
        let (name, group) = rest.rsplit_once('_')?;
        if name.is_empty() || kind.is_empty() {
            return None;
        }
        Some(Self::new(group, kind, namespace, &name.replace("__", ":")))
    }

    pub fn is(&self, group: &str, kind: &str) -> bool {
        self.group == group && self.kind == kind
    }
}

impl fmt::Display for ObjectId {
    /// `Deployment linkerd/linkerd-identity`, `CustomResourceDefinition servers.policy.linkerd.io`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if !BUILTIN_GROUPS.contains(&self.group.as_str()) {
            write!(f, ".{}", self.group)?;
        }
        f.write_str(" ")?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// Groups that people leave out when they name a kind.
const BUILTIN_GROUPS: [&str; 9] = [
    "",
    "apps",
    "batch",
    "policy",
    "rbac.authorization.k8s.io",
    "apiextensions.k8s.io",
    "admissionregistration.k8s.io",
    "scheduling.k8s.io",
    "networking.k8s.io",
];

/// The order in which a commit becomes real. A later stage waits until the earlier ones are ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Namespaces, CRDs and cluster roles: what others are written in terms of.
    Definitions,
    /// What makes the issuer of identities.
    Issuer,
    /// The control plane, its webhooks last.
    Control,
    /// Policies, routes and the annotations that ask for injection.
    Policy,
    /// Restarts of workloads whose pods carry another proxy than Git asks for.
    Rollout,
}

/// All stages that objects are applied in.
pub const APPLY_STAGES: [Stage; 4] = [Stage::Definitions, Stage::Issuer, Stage::Control, Stage::Policy];

impl Stage {
    /// The stage of an object of this kind.
    pub fn of(id: &ObjectId) -> Self {
        match (id.group.as_str(), id.kind.as_str()) {
            ("", "Namespace")
            | ("apiextensions.k8s.io", "CustomResourceDefinition")
            | ("rbac.authorization.k8s.io", "ClusterRole")
            | ("scheduling.k8s.io", "PriorityClass") => Self::Definitions,
            ("cert-manager.io", _) | ("trust.cert-manager.io", _) | ("", "Secret") => Self::Issuer,
            ("policy.linkerd.io" | "gateway.networking.k8s.io" | "linkerd.io", _) => Self::Policy,
            _ => Self::Control,
        }
    }

    /// The order inside a stage: small first.
    pub fn rank(id: &ObjectId) -> u8 {
        match (id.group.as_str(), id.kind.as_str()) {
            ("", "Namespace") => 0,
            ("apiextensions.k8s.io", _) => 1,
            ("", "ServiceAccount" | "ConfigMap" | "Secret" | "Service")
            | ("rbac.authorization.k8s.io", _) => 2,
            ("admissionregistration.k8s.io", _) => 4,
            _ => 3,
        }
    }
}

/// Where in Git, or in a bundled profile, an object was written.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Origin {
    /// The file, as `clusters/production/policies/web.yaml` or `core/templates/identity.yaml.hbs`.
    pub file: String,
    /// The line that the object begins at: of the file, or of the text that the template rendered to.
    pub line: usize,
    /// Whether `line` counts in the rendered text.
    pub rendered: bool,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rendered {
            true => write!(f, "{} (rendered line {})", self.file, self.line),
            false => write!(f, "{}:{}", self.file, self.line),
        }
    }
}

/// One object that Git asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub id: ObjectId,
    pub api_version: String,
    /// The whole object, without annotations that are meant for Heddle alone.
    pub body: Value,
    pub origin: Origin,
    pub stage: Stage,
    /// Only some fields of an object that somebody else owns: it is never created for its own sake, nor deleted.
    pub partial: bool,
    /// The CRD (`plural.group`) without which the object is left out.
    pub requires_crd: Option<String>,
}

impl Object {
    /// The API version without its group.
    pub fn version(&self) -> &str {
        self.api_version
            .rsplit_once('/')
            .map_or(self.api_version.as_str(), |(_, version)| version)
    }

    /// Hex SHA-256 of the body; equal bodies have equal digests because JSON maps are ordered.
    pub fn digest(&self) -> String {
        digest(self.body.to_string().as_bytes())
    }
}

/// Hex SHA-256.
pub fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    hex::encode(sha2::Sha256::digest(bytes))
}

/// The group of an `apiVersion`.
pub fn group_of(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}

/// Reads a string at a path of keys.
pub fn text_at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a str> {
    at(value, path)?.as_str()
}

/// Reads a value at a path of keys.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(value, |value, key| value.get(key))
}

/// The map at a path of keys, made when absent. `None` when something else stands in the way.
pub fn map_mut<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    path.iter()
        .try_fold(value, |value, key| {
            let map = value.as_object_mut()?;
            let entry = map
                .entry((*key).to_owned())
                .or_insert_with(|| Value::Object(Map::new()));
            if entry.is_null() {
                *entry = Value::Object(Map::new());
            }
            Some(entry)
        })?
        .as_object_mut()
}

/// The string entries of a map such as `metadata.annotations`.
pub fn string_map(value: Option<&Value>) -> std::collections::BTreeMap<String, String> {
    value
        .and_then(Value::as_object)
        .map(|map| {
            map.iter()
                .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
                .collect()
        })
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inventory_keys_are_read_back() {
        for id in [
            ObjectId::new("apps", "Deployment", "linkerd", "linkerd-identity"),
            ObjectId::new("", "Namespace", "", "payments"),
            ObjectId::new("rbac.authorization.k8s.io", "ClusterRole", "", "linkerd:identity"),
        ] {
            assert_eq!(ObjectId::from_inventory_key(&id.inventory_key()), Some(id));
        }
        assert_eq!(ObjectId::from_inventory_key("nonsense"), None);
        assert_eq!(ObjectId::from_inventory_key("a__b_"), None);
    }

    #[test]
    fn stages_follow_kinds() {
        let stage = |group, kind| Stage::of(&ObjectId::new(group, kind, "", "x"));
        assert_eq!(stage("", "Namespace"), Stage::Definitions);
        assert_eq!(stage("cert-manager.io", "Certificate"), Stage::Issuer);
        assert_eq!(stage("apps", "Deployment"), Stage::Control);
        assert_eq!(stage("policy.linkerd.io", "Server"), Stage::Policy);
    }
}
