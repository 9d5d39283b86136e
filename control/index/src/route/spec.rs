//! The shape that HTTPRoutes and GRPCRoutes share.

use serde::Deserialize;

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

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ParentRef {
    pub(crate) group: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
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
    pub(super) path: Option<RedirectPathSpec>,
    pub(super) port: Option<u16>,
    pub(super) status_code: Option<u16>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RedirectPathSpec {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) replace_full_path: Option<String>,
    pub(super) replace_prefix_match: Option<String>,
}

impl<M> Default for RuleSpec<M> {
    fn default() -> Self {
        Self {
            matches: Vec::new(),
            filters: Vec::new(),
            backend_refs: Vec::new(),
            timeouts: None,
        }
    }
}
