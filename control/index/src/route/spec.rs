//! The shape that HTTPRoutes and GRPCRoutes share.

use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RouteSpec<M> {
    #[serde(default)]
    pub(super) parent_refs: Vec<ParentRef>,
    #[serde(default)]
    pub(super) hostnames: Vec<String>,
    #[serde(default = "Vec::new")]
    pub(super) rules: Vec<RuleSpec<M>>,
}

/// What a route is attached to, as the route and its status write it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// API group of the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Kind of the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Namespace of the parent; absent: the route's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the parent.
    pub name: String,
    /// Section of the parent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Port of the parent; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl ParentRef {
    /// The parents of a route's spec that can be read.
    pub(crate) fn all(spec: &Value) -> Vec<Self> {
        let written = spec.get("parentRefs").and_then(Value::as_array);
        let read = |value: &Value| serde_json::from_value(value.clone()).ok();
        written.into_iter().flatten().filter_map(read).collect()
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RuleSpec<M> {
    #[serde(default = "Vec::new")]
    pub(super) matches: Vec<M>,
    #[serde(default)]
    pub(super) filters: Vec<FilterSpec>,
    #[serde(default)]
    pub(super) backend_refs: Vec<BackendRefSpec>,
    pub(super) timeouts: Option<TimeoutsSpec>,
    pub(super) session_persistence: Option<SessionSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TimeoutsSpec {
    pub(super) request: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct BackendRefSpec {
    pub(super) group: Option<String>,
    pub(super) kind: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    pub(super) port: Option<u16>,
    pub(super) weight: Option<u32>,
    #[serde(default)]
    pub(super) filters: Vec<FilterSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct HttpMatchSpec {
    pub(super) path: Option<PathMatchSpec>,
    #[serde(default)]
    pub(super) headers: Vec<HeaderMatchSpec>,
    #[serde(default)]
    pub(super) query_params: Vec<HeaderMatchSpec>,
    pub(super) method: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct PathMatchSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) value: Option<String>,
}

/// A match of a header or a query parameter.
#[derive(Debug, Deserialize)]
pub(crate) struct HeaderMatchSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct GrpcMatchSpec {
    pub(super) method: Option<GrpcMethodSpec>,
    #[serde(default)]
    pub(super) headers: Vec<HeaderMatchSpec>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct GrpcMethodSpec {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) service: Option<String>,
    pub(super) method: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct FilterSpec {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) request_header_modifier: Option<HeaderModifierSpec>,
    pub(super) response_header_modifier: Option<HeaderModifierSpec>,
    pub(super) request_redirect: Option<RedirectSpec>,
    pub(super) url_rewrite: Option<RewriteSpec>,
    pub(super) request_mirror: Option<MirrorSpec>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct HeaderModifierSpec {
    #[serde(default)]
    pub(super) add: Vec<HeaderSpec>,
    #[serde(default)]
    pub(super) set: Vec<HeaderSpec>,
    #[serde(default)]
    pub(super) remove: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct HeaderSpec {
    pub(super) name: String,
    pub(super) value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RedirectSpec {
    pub(super) scheme: Option<String>,
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifierSpec>,
    pub(super) port: Option<u16>,
    pub(super) status_code: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PathModifierSpec {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) replace_full_path: Option<String>,
    pub(super) replace_prefix_match: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct RewriteSpec {
    pub(super) hostname: Option<String>,
    pub(super) path: Option<PathModifierSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MirrorSpec {
    pub(super) backend_ref: BackendRefSpec,
    pub(super) percent: Option<u32>,
    pub(super) fraction: Option<FractionSpec>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct FractionSpec {
    pub(super) numerator: u32,
    pub(super) denominator: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionSpec {
    pub(super) session_name: Option<String>,
    pub(super) absolute_timeout: Option<String>,
    pub(super) idle_timeout: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) cookie_config: Option<CookieSpec>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CookieSpec {
    pub(super) lifetime_type: Option<String>,
}

impl<M> Default for RuleSpec<M> {
    fn default() -> Self {
        Self {
            matches: Vec::new(),
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: None,
            session_persistence: None,
        }
    }
}
