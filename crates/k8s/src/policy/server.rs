//! `Server`: a port of some pods, to which policies attach.

use std::{fmt, str::FromStr};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{port::PortRef, selector::LabelSelector};

/// Selects a port of pods or external workloads in its namespace, says which protocol is spoken there, and who may
/// connect when no policy says otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1beta3",
    kind = "Server",
    namespaced,
    shortname = "srv",
    status = "ServerStatus",
    doc = "A port of pods or external workloads, to which policies and routes attach.",
    derive = "PartialEq",
    printcolumn(
        name = "Port",
        type_ = "string",
        json_path = ".spec.port",
        description = "The port that is selected"
    ),
    printcolumn(
        name = "Protocol",
        type_ = "string",
        json_path = ".spec.proxyProtocol",
        description = "The protocol that is spoken there"
    ),
    printcolumn(
        name = "Access Policy",
        type_ = "string",
        json_path = ".spec.accessPolicy",
        description = "Who may connect when no policy says otherwise"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.podSelector) != has(self.externalWorkloadSelector)")
        .message("exactly one of podSelector and externalWorkloadSelector must be given")
)]
pub struct ServerSpec {
    /// Selects pods of the same namespace by their labels; `{}` selects all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Selects ExternalWorkloads of the same namespace by their labels; `{}` selects all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_workload_selector: Option<LabelSelector>,
    /// The port: a number, or the name of a container's port.
    pub port: PortRef,
    /// The protocol that clients speak on the port. `unknown` lets the proxy find out from the first bytes.
    #[serde(default)]
    pub proxy_protocol: ProxyProtocol,
    /// Who may connect when no AuthorizationPolicy or ServerAuthorization permits it.
    #[serde(default)]
    pub access_policy: AccessPolicy,
}

/// What the policy controller says about a Server.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServerStatus {
    /// `Conflicted`: whether another Server is in force in its place on some port of some pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

impl ServerSpec {
    /// What this selects; `None` when it selects nothing, which the API server does not let happen.
    pub fn selects(&self) -> Option<ServerTarget<'_>> {
        match (&self.pod_selector, &self.external_workload_selector) {
            (Some(selector), _) => Some(ServerTarget::Pods(selector)),
            (None, Some(selector)) => Some(ServerTarget::ExternalWorkloads(selector)),
            (None, None) => None,
        }
    }
}

/// What a Server selects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerTarget<'a> {
    /// Pods with these labels.
    Pods(&'a LabelSelector),
    /// ExternalWorkloads with these labels.
    ExternalWorkloads(&'a LabelSelector),
}

/// The protocol that clients speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum ProxyProtocol {
    /// To be found out from the first bytes.
    #[default]
    #[serde(rename = "unknown")]
    Unknown,
    /// HTTP/1.1.
    #[serde(rename = "HTTP/1")]
    Http1,
    /// HTTP/2.
    #[serde(rename = "HTTP/2")]
    Http2,
    /// gRPC over HTTP/2.
    #[serde(rename = "gRPC")]
    Grpc,
    /// Bytes that are not looked into.
    #[serde(rename = "opaque")]
    Opaque,
    /// TLS that the workload terminates itself.
    #[serde(rename = "TLS")]
    Tls,
}

/// Who may connect when no policy says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[schemars(inline)]
pub enum AccessPolicy {
    /// Everybody.
    AllUnauthenticated,
    /// Everybody with a mesh identity.
    AllAuthenticated,
    /// Everybody inside the cluster's networks.
    ClusterUnauthenticated,
    /// Everybody inside the cluster's networks with a mesh identity.
    ClusterAuthenticated,
    /// Nobody.
    #[default]
    Deny,
    /// Everybody, and what no policy permits is counted and logged.
    Audit,
}

impl AccessPolicy {
    /// All of them, in the order of documentation.
    pub const ALL: [Self; 6] = [
        Self::AllUnauthenticated,
        Self::AllAuthenticated,
        Self::ClusterUnauthenticated,
        Self::ClusterAuthenticated,
        Self::Deny,
        Self::Audit,
    ];

    /// As manifests and annotations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }
}

/// A text is no default policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a default policy: expected all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, deny or audit"
)]
pub struct AccessPolicyError(pub String);

impl FromStr for AccessPolicy {
    type Err = AccessPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|policy| policy.as_str() == text)
            .ok_or_else(|| AccessPolicyError(text.to_owned()))
    }
}

impl fmt::Display for AccessPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_policies_have_one_spelling() {
        for policy in AccessPolicy::ALL {
            assert_eq!(serde_json::to_value(policy).ok(), Some(policy.as_str().into()));
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        assert!("Deny".parse::<AccessPolicy>().is_err());
    }

    #[test]
    fn reads_the_shortest_server() {
        let spec: ServerSpec =
            serde_json::from_value(serde_json::json!({"podSelector": {}, "port": "http"})).expect("a spec");
        assert_eq!(spec.proxy_protocol, ProxyProtocol::Unknown);
        assert_eq!(spec.access_policy, AccessPolicy::Deny);
        assert_eq!(
            spec.selects(),
            Some(ServerTarget::Pods(&LabelSelector::default()))
        );
    }
}
