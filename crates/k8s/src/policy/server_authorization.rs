//! `ServerAuthorization`: the older form of AuthorizationPolicy, for Servers alone.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{network::Network, selector::LabelSelector};

/// Permits clients to reach Servers of the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1beta1",
    kind = "ServerAuthorization",
    namespaced,
    shortname = "saz",
    shortname = "serverauthz",
    shortname = "srvauthz",
    doc = "Permits clients to reach Servers of the namespace. AuthorizationPolicy can say the same and more.",
    derive = "PartialEq",
    printcolumn(name = "Server", type_ = "string", json_path = ".spec.server.name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct ServerAuthorizationSpec {
    /// The Servers that may be reached.
    pub server: ServerRef,
    /// The clients that may reach them.
    pub client: Client,
}

/// Names one Server, or selects Servers by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.name) != has(self.selector)").message("exactly one of name and selector must be given"))]
pub struct ServerRef {
    /// The Server's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Selects Servers by their labels; `{}` selects all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<LabelSelector>,
}

/// Describes clients by network and by what they prove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!(has(self.meshTLS) && has(self.unauthenticated) && self.unauthenticated)")
        .message("unauthenticated: true and meshTLS exclude each other")
)]
pub struct Client {
    /// Networks that clients may come from. Absent: the cluster's networks for authenticated clients, and none for
    /// unauthenticated ones unless `unauthenticated` is true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub networks: Option<Vec<Network>>,
    /// Permits clients without TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unauthenticated: bool,
    /// What clients must prove by mesh TLS.
    #[serde(default, rename = "meshTLS", skip_serializing_if = "Option::is_none")]
    pub mesh_tls: Option<MeshTls>,
}

/// What clients prove by mesh TLS. Any one of the lists suffices.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(
        "!(has(self.unauthenticatedTLS) && self.unauthenticatedTLS) \
         || ((!has(self.identities) || self.identities.size() == 0) && (!has(self.serviceAccounts) || self.serviceAccounts.size() == 0))"
    )
    .message("unauthenticatedTLS: true excludes identities and serviceAccounts")
)]
pub struct MeshTls {
    /// Permits TLS without a client identity: needed only by control planes.
    #[serde(
        default,
        rename = "unauthenticatedTLS",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub unauthenticated_tls: bool,
    /// Identities; a leading `*` label stands for any prefix, and `*` alone for every authenticated client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 1024),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    pub identities: Option<Vec<String>>,
    /// Service accounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub service_accounts: Option<Vec<ServiceAccountName>>,
}

/// Names a service account.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAccountName {
    /// The service account's name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The service account's namespace. Absent or empty: the ServerAuthorization's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

impl ServerRef {
    /// Whether this names or selects a Server with this name and these labels.
    pub fn selects<K: kube::Resource>(&self, server: &K) -> bool {
        match (&self.name, &self.selector) {
            (Some(name), _) => server.meta().name.as_ref() == Some(name),
            (None, Some(selector)) => selector.matches_object(server),
            (None, None) => false,
        }
    }
}
