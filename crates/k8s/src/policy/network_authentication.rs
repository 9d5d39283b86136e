//! `NetworkAuthentication`: a set of client networks.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::network::Network;

/// Lists networks that clients may come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1alpha1",
    kind = "NetworkAuthentication",
    namespaced,
    shortname = "netauthn",
    shortname = "networkauthn",
    doc = "A set of networks that an AuthorizationPolicy can require clients to come from.",
    derive = "PartialEq",
    printcolumn(name = "Networks", type_ = "string", json_path = ".spec.networks[*].cidr"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NetworkAuthenticationSpec {
    /// The networks; a client must come from one of them.
    #[schemars(length(min = 1, max = 1024))]
    pub networks: Vec<Network>,
}
