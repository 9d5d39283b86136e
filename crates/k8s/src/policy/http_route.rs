//! `HTTPRoute` of `policy.linkerd.io`: how HTTP requests to a Server, Service or EgressNetwork are matched and forwarded.
//!
//! Its shape is a part of the Gateway API's HTTPRoute, so that [`HttpRoute::to_gateway`] can turn it into one and
//! controllers need to understand only one of the two.

mod filter;
mod matches;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    filter::{Filter, HeaderModifier, HttpHeader, PathModifier, RequestRedirect, Scheme},
    matches::{HeaderMatch, Method, PathMatch, PathMatchType, QueryParamMatch, RouteMatch, ValueMatchType},
};

/// Routes HTTP requests that reach its parents.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1beta3",
    kind = "HTTPRoute",
    root = "HttpRoute",
    plural = "httproutes",
    namespaced,
    status = "HttpRouteStatus",
    doc = "Matches HTTP requests to a Server, Service or EgressNetwork, and says what becomes of them.",
    derive = "PartialEq",
    printcolumn(name = "Hostnames", type_ = "string", json_path = ".spec.hostnames"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// What the route is for: Servers of its namespace (inbound), or Services and EgressNetworks (outbound).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub parent_refs: Vec<ParentReference>,
    /// Host names that requests must be for; absent: any. `*.example.com` stands for all names below example.com.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    pub hostnames: Vec<String>,
    /// The rules; the most specific match among them decides. Absent: one rule that matches everything.
    #[serde(
        default = "one_rule_for_everything",
        skip_serializing_if = "is_one_rule_for_everything"
    )]
    #[schemars(length(max = 16), extend("default" = [{"matches": [{"path": {"type": "PathPrefix", "value": "/"}}]}]))]
    pub rules: Vec<HttpRouteRule>,
}

/// Names what a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "self.kind.lowerAscii() != 'egressnetwork' || self.group.lowerAscii() != 'policy.linkerd.io' || has(self.port)"
    )
    .message("a port must be given for an EgressNetwork")
)]
pub struct ParentReference {
    /// API group of the parent. Empty and `core` mean Kubernetes' core group, the group of Services.
    #[serde(default = "policy_group")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: String,
    /// Kind of the parent: Server, Service or EgressNetwork.
    #[serde(default = "server_kind")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub kind: String,
    /// Name of the parent.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of the parent. Absent or empty: the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// Name of a section within the parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
    /// Port of a Service or EgressNetwork. Absent: all of a Service's ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// Matches requests and says what becomes of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// Conditions on requests, any one of which suffices. Absent: every request.
    #[serde(default = "match_everything", skip_serializing_if = "is_match_everything")]
    #[schemars(length(max = 8), extend("default" = [{"path": {"type": "PathPrefix", "value": "/"}}]))]
    pub matches: Vec<RouteMatch>,
    /// What is done to matching requests and their responses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<Filter>,
    /// Where matching requests go, in proportion to the weights. Absent: where they were going.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<HttpBackendRef>,
    /// How long matching requests may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
}

/// One destination of requests, and its share of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpBackendRef {
    /// API group of the backend. Empty and `core` mean Kubernetes' core group, the group of Services.
    #[serde(default)]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: String,
    /// Kind of the backend: Service or EgressNetwork.
    #[serde(default = "service_kind")]
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub kind: String,
    /// Name of the backend.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of the backend. Absent or empty: the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// Port of the backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Share of the requests, relative to the sum of all weights. 0: none.
    #[serde(default = "one")]
    #[schemars(with = "i32", range(min = 0, max = 1_000_000))]
    pub weight: u32,
    /// What is done to requests that go to this backend, and to their responses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub filters: Vec<Filter>,
}

/// How long requests may take, as Gateway API durations such as `10s` or `1m30s`; `0s` is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!(has(self.request) && has(self.backendRequest)) || duration(self.backendRequest) <= duration(self.request)"
    )
    .message("backendRequest must not be longer than request")
)]
pub struct Timeouts {
    /// From the request's first byte to the response's last, retries included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub request: Option<String>,
    /// Each single attempt at a backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))]
    pub backend_request: Option<String>,
}

/// What controllers say about a route, by parent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpRouteStatus {
    /// One entry for each parent and controller.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub parents: Vec<RouteParentStatus>,
}

/// What one controller says about a route's attachment to one parent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteParentStatus {
    /// The parent.
    pub parent_ref: ParentReference,
    /// The controller, such as `linkerd.io/policy-controller`.
    #[schemars(length(min = 1, max = 253))]
    pub controller_name: String,
    /// `Accepted` and `ResolvedRefs`.
    #[serde(default)]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl HttpRoute {
    /// The same route as the Gateway API has it, with name, namespace and creation time.
    ///
    /// # Errors
    /// When the Gateway API's type cannot hold it; that would be a mistake in these types.
    pub fn to_gateway(
        &self,
    ) -> Result<gateway_api::apis::experimental::httproutes::HttpRoute, serde_json::Error> {
        Ok(gateway_api::apis::experimental::httproutes::HttpRoute {
            metadata: self.metadata.clone(),
            spec: serde_json::from_value(serde_json::to_value(&self.spec)?)?,
            status: self
                .status
                .as_ref()
                .map(serde_json::to_value)
                .transpose()?
                .map(serde_json::from_value)
                .transpose()?,
        })
    }
}

fn policy_group() -> String {
    super::GROUP.to_owned()
}

fn server_kind() -> String {
    "Server".to_owned()
}

fn service_kind() -> String {
    "Service".to_owned()
}

fn one() -> u32 {
    1
}

fn match_everything() -> Vec<RouteMatch> {
    vec![RouteMatch {
        path: Some(PathMatch::default()),
        ..RouteMatch::default()
    }]
}

fn is_match_everything(matches: &[RouteMatch]) -> bool {
    matches == match_everything()
}

fn one_rule_for_everything() -> Vec<HttpRouteRule> {
    vec![HttpRouteRule {
        matches: match_everything(),
        ..HttpRouteRule::default()
    }]
}

fn is_one_rule_for_everything(rules: &[HttpRouteRule]) -> bool {
    rules == one_rule_for_everything()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> HttpRoute {
        serde_json::from_value(serde_json::json!({
            "apiVersion": "policy.linkerd.io/v1beta3",
            "kind": "HTTPRoute",
            "metadata": {"name": "r", "namespace": "ns"},
            "spec": {
                "parentRefs": [{"name": "s", "port": 80, "kind": "Service", "group": "core", "namespace": "other"}],
                "hostnames": ["*.example.com"],
                "rules": [{
                    "matches": [{
                        "path": {"type": "RegularExpression", "value": "/a.*"},
                        "headers": [{"type": "RegularExpression", "name": "x", "value": "y"}],
                        "queryParams": [{"name": "q", "value": "1"}],
                        "method": "GET",
                    }],
                    "filters": [
                        {"type": "RequestHeaderModifier", "requestHeaderModifier": {"add": [{"name": "a", "value": "b"}], "set": [{"name": "c", "value": "d"}], "remove": ["e"]}},
                        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["e"]}},
                        {"type": "RequestRedirect", "requestRedirect": {"scheme": "https", "hostname": "h", "port": 443, "statusCode": 301, "path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/x"}}},
                    ],
                    "backendRefs": [{"name": "b", "port": 81, "weight": 9, "filters": [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "c", "value": "d"}]}}]}],
                    "timeouts": {"request": "10s", "backendRequest": "5s"},
                }],
            },
            "status": {"parents": [{"parentRef": {"name": "s"}, "controllerName": "linkerd.io/policy-controller", "conditions": []}]},
        }))
        .expect("a route")
    }

    #[test]
    fn everything_in_it_survives_the_way_to_the_gateway_api() {
        let route = full();
        let gateway = route.to_gateway().expect("fits");
        assert_eq!(
            serde_json::to_value(&gateway.spec).expect("serialises"),
            serde_json::to_value(&route.spec).expect("serialises")
        );
        assert_eq!(gateway.metadata, route.metadata);
        assert_eq!(gateway.status.map(|status| status.parents.len()), Some(1));
    }

    #[test]
    fn a_route_without_rules_matches_everything() {
        let spec: HttpRouteSpec =
            serde_json::from_value(serde_json::json!({"parentRefs": [{"name": "s"}]})).expect("a spec");
        assert_eq!(spec.parent_refs[0].group, "policy.linkerd.io");
        assert_eq!(spec.rules.len(), 1);
        assert_eq!(
            spec.rules[0].matches[0].path,
            Some(PathMatch {
                kind: PathMatchType::PathPrefix,
                value: "/".into()
            })
        );
    }
}
