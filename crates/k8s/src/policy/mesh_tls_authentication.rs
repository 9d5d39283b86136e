//! `MeshTLSAuthentication`: a set of mesh identities.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::reference::IdentityRef;

/// Lists mesh identities, as names or by the service accounts that have them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1alpha1",
    kind = "MeshTLSAuthentication",
    namespaced,
    shortname = "meshtlsauthn",
    doc = "A set of mesh identities that an AuthorizationPolicy can require of clients.",
    derive = "PartialEq",
    printcolumn(name = "Identities", type_ = "string", json_path = ".spec.identities"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.identities) != has(self.identityRefs)")
        .message("exactly one of identities and identityRefs must be given")
)]
pub struct MeshTLSAuthenticationSpec {
    /// Identities such as `web.shop.serviceaccount.identity.linkerd.cluster.local`. A leading `*` label stands for any
    /// prefix, and `*` alone for every authenticated client. SPIFFE IDs are those of workloads outside the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 1024),
        inner(
            length(min = 1, max = 2048),
            regex(
                pattern = r"^(\*|[a-z0-9]([-a-z0-9]*[a-z0-9])?)(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$|^spiffe://[-_.a-z0-9]{1,255}(/[-_.A-Za-z0-9]+)+$"
            )
        )
    )]
    pub identities: Vec<String>,
    /// Service accounts, or namespaces for all of their service accounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024))]
    #[x_kube(
        validation = Rule::new(
            "self.all(r, r.kind.lowerAscii() in ['serviceaccount', 'namespace'] && (!has(r.group) || r.group.lowerAscii() in ['', 'core']))"
        )
        .message("an identity reference must be a ServiceAccount or a Namespace (core)"),
        validation = Rule::new("self.all(r, r.kind.lowerAscii() != 'namespace' || !has(r.namespace))")
            .message("a Namespace is in no namespace: leave out the reference's namespace")
    )]
    pub identity_refs: Vec<IdentityRef>,
}
