//! `Mesh` of `heddle.dev`: where the mesh's desired state comes from, and how far it has become real.
//!
//! The status follows kstatus, so that Flux and `kubectl wait` understand it: `Ready`, `Reconciling` and `Stalled`, and
//! an observedGeneration of -1 until somebody has looked at the object.

use std::time::Duration;

use heddle_mesh::duration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition: the mesh is as the last attempted revision wants it.
pub const CONDITION_READY: &str = "Ready";
/// Condition: work is going on.
pub const CONDITION_RECONCILING: &str = "Reconciling";
/// Condition: nothing will change until the object or its source does.
pub const CONDITION_STALLED: &str = "Stalled";
/// The observed generation of an object that nobody has looked at.
pub const NEVER_OBSERVED: i64 = -1;
/// How many entries `status.history` keeps, newest first: enough to see a week of releases, and a small object.
pub const HISTORY_MAX: usize = 20;
/// How many workloads `status.rollout.pending` names.
pub const PENDING_MAX: usize = 50;
/// How many objects `status.inventory` can name: some 100 bytes each, within the object's limit of 1.5 MB.
pub const INVENTORY_MAX: usize = 10_000;

/// Says where the mesh's profile is, and how it is applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "heddle.dev",
    version = "v1alpha1",
    kind = "Mesh",
    plural = "meshes",
    category = "heddle",
    status = "MeshStatus",
    doc = "A service mesh that follows a mesh profile, usually in Git.",
    derive = "PartialEq",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#
    ),
    printcolumn(
        name = "Revision",
        type_ = "string",
        json_path = ".status.lastAppliedRevision",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MeshSpec {
    /// Where the mesh profile and everything it refers to come from.
    pub source: Source,
    /// Path of the MeshProfile's folder or file within the source.
    #[serde(default = "root")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(
        validation = Rule::new("!self.startsWith('/') && !self.split('/').exists(part, part == '..')")
            .message("path must be relative to the source's root, and must not leave it")
    )]
    pub path: String,
    /// How often the source is asked for changes, such as `30s`.
    #[serde(default = "default_interval", with = "duration::text")]
    #[schemars(with = "String", regex(pattern = r"^[0-9]{1,9}(ms|s|m|h|d)$"))]
    pub interval: Duration,
    /// How long applying one revision may take until it counts as failed, such as `5m`.
    #[serde(default = "default_timeout", with = "duration::text")]
    #[schemars(with = "String", regex(pattern = r"^[0-9]{1,9}(ms|s|m|h|d)$"))]
    pub timeout: Duration,
    /// Stops all work on the mesh: what runs keeps running as it is.
    #[serde(default)]
    pub suspend: bool,
    /// Whether objects that leave the profile are deleted from the cluster.
    #[serde(default = "yes")]
    pub prune: bool,
}

/// Where a mesh profile comes from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.git), has(self.directory), has(self.inline)].filter(given, given).size() == 1")
        .message("exactly one of git, directory and inline must be given")
)]
pub struct Source {
    /// A Git repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub git: Option<GitSource>,
    /// A directory that the reconciler can read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<DirectorySource>,
    /// The `spec` of a MeshProfile, right here. It can name bundled profiles, but no files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "open_object")]
    pub inline: Option<serde_json::Map<String, serde_json::Value>>,
}

/// A Git repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GitSource {
    /// The repository: an http or https URL, a file URL, or an absolute path.
    #[schemars(length(min = 2, max = 2048), regex(pattern = r"^(https?://[^/]|file:///|/)"))]
    pub url: String,
    /// What of the repository is followed. Absent: the branch that its HEAD names.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<GitRef>,
    /// A Secret in the reconciler's namespace with `username` and `password`, or `bearerToken`, and optionally `ca.crt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// What of a repository is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.branch), has(self.tag), has(self.commit)].filter(given, given).size() == 1")
        .message("exactly one of branch, tag and commit must be given")
)]
pub struct GitRef {
    /// A branch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub branch: Option<String>,
    /// A tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 255))]
    pub tag: Option<String>,
    /// A commit's full hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9a-f]{40}|[0-9a-f]{64})$"))]
    pub commit: Option<String>,
}

/// A directory that the reconciler can read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectorySource {
    /// The directory's absolute path.
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/"))]
    pub path: String,
}

/// Names a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// How far the mesh has become what its profile says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshStatus {
    /// The generation of the spec that this status is about; -1 until there is one.
    #[serde(default = "never_observed")]
    pub observed_generation: i64,
    /// `Ready`, `Reconciling` and `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The revision that was last tried, such as `main@sha1:5f0c…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub last_attempted_revision: Option<String>,
    /// The revision that was last applied in full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub last_applied_revision: Option<String>,
    /// The value of the annotation `reconcile.fluxcd.io/requestedAt` that was last acted upon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub last_handled_reconcile_at: Option<String>,
    /// The objects that were applied, and that are deleted when they leave the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Inventory>,
    /// The revisions that were tried, newest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    pub history: Vec<HistoryEntry>,
    /// How far the workloads carry the proxy that the profile asks for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
}

impl Default for MeshStatus {
    fn default() -> Self {
        Self {
            observed_generation: NEVER_OBSERVED,
            conditions: Vec::new(),
            last_attempted_revision: None,
            last_applied_revision: None,
            last_handled_reconcile_at: None,
            inventory: None,
            history: Vec::new(),
            rollout: None,
        }
    }
}

/// The objects that were applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Inventory {
    /// One entry for each object.
    #[serde(default)]
    #[schemars(length(max = 10_000))]
    pub entries: Vec<InventoryEntry>,
}

/// An object that was applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InventoryEntry {
    /// `namespace_name_group_kind`; namespace and group may be empty.
    #[schemars(length(max = 1024))]
    pub id: String,
    /// The API version without its group.
    #[schemars(length(max = 63))]
    pub v: String,
}

/// A revision that was tried.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HistoryEntry {
    /// The revision.
    #[schemars(length(max = 512))]
    pub revision: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What happened, in words; for a failure, the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub message: Option<String>,
    /// When it was first tried.
    pub started_at: Time,
    /// When the outcome was known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
}

/// What came of a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Outcome {
    /// All of it is applied, and its workloads are ready.
    Applied,
    /// It was refused, or did not become ready; the revision before it stays applied as far as it was.
    Failed,
    /// A newer revision came before it was done.
    Superseded,
}

/// How far the workloads carry the proxy that the profile asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// Workloads that should carry the proxy.
    #[schemars(with = "i32", range(min = 0))]
    pub desired: u32,
    /// Workloads all of whose pods carry it as the profile asks.
    #[schemars(with = "i32", range(min = 0))]
    pub updated: u32,
    /// Workloads that do not yet, as `namespace/kind/name`; the first 50 by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 50), inner(length(max = 512)))]
    pub pending: Vec<String>,
}

fn root() -> String {
    ".".to_owned()
}

fn default_interval() -> Duration {
    Duration::from_secs(60)
}

fn default_timeout() -> Duration {
    Duration::from_secs(5 * 60)
}

fn yes() -> bool {
    true
}

fn never_observed() -> i64 {
    NEVER_OBSERVED
}

fn open_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shortest_mesh_has_sensible_settings() {
        let mesh: Mesh = serde_json::from_value(serde_json::json!({
            "apiVersion": "heddle.dev/v1alpha1",
            "kind": "Mesh",
            "metadata": {"name": "production"},
            "spec": {"source": {"git": {"url": "https://git.example.com/mesh.git", "ref": {"branch": "main"}}}, "interval": "30s"},
        }))
        .expect("a mesh");
        assert_eq!(mesh.spec.path, ".");
        assert_eq!(mesh.spec.interval, Duration::from_secs(30));
        assert_eq!(mesh.spec.timeout, Duration::from_secs(300));
        assert!(mesh.spec.prune && !mesh.spec.suspend);
        let git = mesh.spec.source.git.expect("a git source");
        assert_eq!(
            git.reference.and_then(|reference| reference.branch).as_deref(),
            Some("main")
        );
        assert_eq!(MeshStatus::default().observed_generation, NEVER_OBSERVED);
    }

    #[test]
    fn an_empty_status_says_only_that_nobody_looked() {
        assert_eq!(
            serde_json::to_value(MeshStatus::default()).ok(),
            Some(serde_json::json!({"observedGeneration": -1}))
        );
    }
}
