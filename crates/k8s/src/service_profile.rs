//! `ServiceProfile` of `linkerd.io`: the older way to describe a service's routes, retries and traffic split.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Describes a service's routes. Its name is the service's full DNS name, such as `web.shop.svc.cluster.local`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "linkerd.io",
    version = "v1alpha2",
    kind = "ServiceProfile",
    namespaced,
    shortname = "sp",
    doc = "A service's routes, retries, timeouts and traffic split. HTTPRoute can say the same and more.",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct ServiceProfileSpec {
    /// The routes, in the order in which they are tried.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 512))]
    pub routes: Vec<RouteSpec>,
    /// How many retries the service is worth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// Other services that the traffic is split over, in proportion to their weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub dst_overrides: Vec<WeightedDst>,
    /// Ports whose bytes are not looked into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 11)))]
    pub opaque_ports: Vec<String>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteSpec {
    /// The route's name, for metrics.
    #[schemars(length(max = 1024))]
    pub name: String,
    /// The requests that belong to the route.
    #[schemars(schema_with = "request_match")]
    pub condition: RequestMatch,
    /// Whether failed requests may be sent again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_retryable: bool,
    /// How long a request may take, such as `300ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub timeout: Option<String>,
    /// Which responses count as failures.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub response_classes: Vec<ResponseClass>,
}

/// A condition on requests; every part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RequestMatch {
    /// On the whole path, by regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<String>,
    /// On the method.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// All of these must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<RequestMatch>,
    /// One of these must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub any: Vec<RequestMatch>,
    /// This must not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<RequestMatch>>,
}

/// Tells failures from successes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResponseClass {
    /// The responses that belong to the class.
    #[schemars(schema_with = "response_match")]
    pub condition: ResponseMatch,
    /// Whether they count as failures.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_failure: bool,
}

/// A condition on responses; every part that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResponseMatch {
    /// On the status code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusRange>,
    /// All of these must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub all: Vec<ResponseMatch>,
    /// One of these must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub any: Vec<ResponseMatch>,
    /// This must not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not: Option<Box<ResponseMatch>>,
}

/// A range of status codes, both ends included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusRange {
    /// The lowest. Absent: no lower bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<u32>,
    /// The highest. Absent: no upper bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<u32>,
}

/// How many retries a service is worth.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries as a share of requests: 0.2 is one retry for five requests.
    #[schemars(range(min = 0, max = 1000))]
    pub retry_ratio: f32,
    /// Retries that are always allowed, per second.
    #[schemars(with = "i32", range(min = 0))]
    pub min_retries_per_second: u32,
    /// How long requests count, such as `10s`.
    #[schemars(length(max = 32))]
    pub ttl: String,
}

/// A service, and its share of the traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WeightedDst {
    /// The service's full DNS name, and its port if not 80.
    #[schemars(length(min = 1, max = 260))]
    pub authority: String,
    /// Its share, relative to the sum of all weights: a number, or a Kubernetes quantity such as `500m`.
    #[schemars(schema_with = "quantity")]
    pub weight: IntOrString,
}

/// How deep conditions nest at most, the outermost included.
///
/// A structural schema cannot refer to itself, so each level is written out. One that left conditions open would let
/// anybody nest them deeper than a reader's stack, and no ServiceProfile at all could be read any more.
const LEVELS: u32 = 4;

fn request_match(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let own = json!({
        "pathRegex": {"type": "string", "maxLength": 4096, "description": "On the whole path, by regular expression."},
        "method": {"type": "string", "maxLength": 64, "description": "On the method."},
    });
    condition(&own, "has(self.pathRegex) || has(self.method)")
}

fn response_match(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let bound = |text: &str| json!({"type": "integer", "minimum": 0, "maximum": 599, "description": text});
    let own = json!({
        "status": {
            "type": "object",
            "description": "On the status code, as a range.",
            "properties": {
                "min": bound("The lowest. Absent: no lower bound."),
                "max": bound("The highest. Absent: no upper bound."),
            },
        },
    });
    condition(&own, "has(self.status)")
}

/// A condition with properties of its own, and parts that are conditions.
fn condition(own: &Value, has_own: &str) -> schemars::Schema {
    let mut schema = json!({"type": "object", "properties": own});
    for _ in 1..LEVELS {
        let mut properties = own.clone();
        let list =
            |text: &str| json!({"type": "array", "maxItems": 128, "items": schema, "description": text});
        properties["all"] = list("All of these must hold.");
        properties["any"] = list("One of these must hold.");
        let mut not = schema.clone();
        not["description"] = json!("This must not hold.");
        properties["not"] = not;
        schema = json!({"type": "object", "properties": properties});
    }
    schema["x-kubernetes-validations"] = json!([{
        "rule": format!("{has_own} || has(self.all) || has(self.any) || has(self.not)"),
        "message": "a condition must say something",
    }]);
    schemars::Schema::try_from(schema).expect("an object is a schema")
}

/// A number, or a Kubernetes quantity that is not negative.
fn quantity(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maxLength": 32,
        "pattern": r"^\+?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
    })
}
