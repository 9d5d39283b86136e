//! Conditions on HTTP requests.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Conditions on a request, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteMatch {
    /// On the path. Absent: any path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// On headers, all of which must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// On query parameters, all of which must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<QueryParamMatch>,
    /// On the method. Absent: any method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == 'RegularExpression' || self.value.startsWith('/')")
        .message("a path must begin with / (unless type is RegularExpression)")
)]
pub struct PathMatch {
    /// How `value` is compared with the path.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// The path, prefix or regular expression.
    #[serde(default = "root")]
    #[schemars(length(max = 1024))]
    pub value: String,
}

impl Default for PathMatch {
    fn default() -> Self {
        Self {
            kind: PathMatchType::PathPrefix,
            value: root(),
        }
    }
}

fn root() -> String {
    "/".to_owned()
}

/// How paths are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum PathMatchType {
    /// The whole path, as it is.
    Exact,
    /// The path's first elements; `/a` matches `/a` and `/a/b`, and not `/ab`.
    #[default]
    PathPrefix,
    /// The whole path, by regular expression.
    RegularExpression,
}

/// How header and query values are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ValueMatchType {
    /// The whole value, as it is.
    #[default]
    Exact,
    /// The whole value, by regular expression.
    RegularExpression,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// How `value` is compared with the header's.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// The header's name, without regard to case.
    #[schemars(
        length(min = 1, max = 256),
        regex(pattern = r"^[A-Za-z0-9!#$%&'*+\-.^_`|~]+$")
    )]
    pub name: String,
    /// The value or regular expression.
    #[schemars(length(min = 1, max = 4096))]
    pub value: String,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct QueryParamMatch {
    /// How `value` is compared with the parameter's.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// The parameter's name.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The value or regular expression.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// An HTTP method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD.
    Head,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
    /// CONNECT.
    Connect,
    /// OPTIONS.
    Options,
    /// TRACE.
    Trace,
    /// PATCH.
    Patch,
}
