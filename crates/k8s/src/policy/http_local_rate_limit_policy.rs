//! `HTTPLocalRateLimitPolicy`: how many HTTP requests each pod of a Server takes per second.

use std::num::NonZeroU32;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::reference::{LocalTargetRef, NamespacedTargetRef};

/// Limits the requests that each pod of a Server takes per second. An empty spec limits nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1alpha1",
    kind = "HTTPLocalRateLimitPolicy",
    root = "HttpLocalRateLimitPolicy",
    plural = "httplocalratelimitpolicies",
    namespaced,
    status = "HttpLocalRateLimitPolicyStatus",
    doc = "Limits the HTTP requests that each pod of a Server takes per second.",
    derive = "PartialEq",
    printcolumn(name = "Target_kind", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Target_name", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(
        name = "Total_RPS",
        type_ = "integer",
        json_path = ".spec.total.requestsPerSecond"
    ),
    printcolumn(
        name = "Identity_RPS",
        type_ = "integer",
        json_path = ".spec.identity.requestsPerSecond"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.targetRef) || !(has(self.total) || has(self.identity) || has(self.overrides))")
        .message("targetRef must name the Server that the limits are for"),
    validation = Rule::new(
        "!(has(self.total) && has(self.identity)) || self.identity.requestsPerSecond <= self.total.requestsPerSecond"
    )
    .message("identity.requestsPerSecond must not be above total.requestsPerSecond"),
    validation = Rule::new(
        "!(has(self.total) && has(self.overrides)) || self.overrides.all(o, o.requestsPerSecond <= self.total.requestsPerSecond)"
    )
    .message("an override's requestsPerSecond must not be above total.requestsPerSecond")
)]
pub struct HttpLocalRateLimitPolicySpec {
    /// The Server of the same namespace whose requests are limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("self.kind.lowerAscii() == 'server' && has(self.group) && self.group.lowerAscii() == 'policy.linkerd.io'")
            .message("only a Server (policy.linkerd.io) can have a rate limit")
    )]
    pub target_ref: Option<LocalTargetRef>,
    /// The limit for all clients together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<Limit>,
    /// The limit for each client identity. Clients without one share one limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Limit>,
    /// Limits for particular clients, in place of `identity`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    pub overrides: Vec<Override>,
}

/// A rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limit {
    /// Requests per second.
    #[schemars(with = "i64", range(min = 1, max = 4_294_967_295_u32))]
    pub requests_per_second: NonZeroU32,
}

/// The rate of particular clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Override {
    /// Requests per second of each of these clients.
    #[schemars(with = "i64", range(min = 1, max = 4_294_967_295_u32))]
    pub requests_per_second: NonZeroU32,
    /// The clients: ServiceAccounts.
    #[schemars(length(max = 64))]
    #[x_kube(
        validation = Rule::new("self.all(r, r.kind.lowerAscii() == 'serviceaccount' && (!has(r.group) || r.group.lowerAscii() in ['', 'core']))")
            .message("a client must be a ServiceAccount (core)")
    )]
    pub client_refs: Vec<NamespacedTargetRef>,
}

/// What the policy controller says about a rate limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpLocalRateLimitPolicyStatus {
    /// `Accepted`: whether the limit is in force.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The target that the conditions are about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<LocalTargetRef>,
}
