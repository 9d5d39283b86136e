//! `EgressNetwork`: destinations outside the cluster, to which routes attach.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Describes destinations outside the cluster, and whether traffic there is allowed when no route says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1alpha1",
    kind = "EgressNetwork",
    namespaced,
    category = "policy",
    status = "EgressNetworkStatus",
    doc = "Destinations outside the cluster: which of them may be reached, and by which routes.",
    derive = "PartialEq",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.trafficPolicy"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Accepted")].status"#
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct EgressNetworkSpec {
    /// What happens to traffic that no route matches.
    pub traffic_policy: TrafficPolicy,
    /// The destinations. Absent: everything that is not in the cluster's networks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub networks: Option<Vec<Network>>,
}

/// What happens to traffic that no route matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum TrafficPolicy {
    /// It is let through.
    Allow,
    /// It is refused.
    Deny,
}

/// What the policy controller says about an EgressNetwork.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EgressNetworkStatus {
    /// `Accepted`: whether the networks are usable.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
