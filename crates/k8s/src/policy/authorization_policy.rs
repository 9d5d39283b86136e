//! `AuthorizationPolicy`: lets authenticated clients reach a Server, a route or all Servers of a namespace.

use k8s_openapi::{
    api::core::v1::{Namespace, ServiceAccount},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    http_route::HttpRoute, mesh_tls_authentication::MeshTLSAuthentication,
    network_authentication::NetworkAuthentication, server::Server,
};
use crate::reference::{LocalTargetRef, NamespacedTargetRef, same_group};

/// Permits clients that satisfy all of the required authentications to reach the target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "policy.linkerd.io",
    version = "v1alpha1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    namespaced,
    shortname = "authzpolicy",
    status = "AuthorizationPolicyStatus",
    doc = "Permits authenticated clients to reach a Server, a route, or all Servers of the namespace.",
    derive = "PartialEq",
    printcolumn(name = "Target Kind", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// What may be reached: a Server, an HTTPRoute or a GRPCRoute of the same namespace, or the namespace itself,
    /// which stands for all of its Servers.
    #[x_kube(
        validation = Rule::new(
            "(self.kind.lowerAscii() in ['server', 'httproute'] && has(self.group) && self.group.lowerAscii() == 'policy.linkerd.io') \
             || (self.kind.lowerAscii() in ['httproute', 'grpcroute'] && has(self.group) && self.group.lowerAscii() == 'gateway.networking.k8s.io') \
             || (self.kind.lowerAscii() == 'namespace' && (!has(self.group) || self.group.lowerAscii() in ['', 'core']))"
        )
        .message("a policy's target must be a Server or HTTPRoute (policy.linkerd.io), an HTTPRoute or GRPCRoute (gateway.networking.k8s.io), or a Namespace (core)")
    )]
    pub target_ref: LocalTargetRef,
    /// What a client must prove, all of it: at most one MeshTLSAuthentication or ServiceAccount, and at most one
    /// NetworkAuthentication. An empty list permits everybody.
    #[schemars(length(max = 2))]
    #[x_kube(
        validation = Rule::new(
            "self.all(r, (r.kind.lowerAscii() in ['meshtlsauthentication', 'networkauthentication'] && has(r.group) && r.group.lowerAscii() == 'policy.linkerd.io') \
             || (r.kind.lowerAscii() == 'serviceaccount' && (!has(r.group) || r.group.lowerAscii() in ['', 'core'])))"
        )
        .message("an authentication must be a MeshTLSAuthentication or NetworkAuthentication (policy.linkerd.io), or a ServiceAccount (core)"),
        validation = Rule::new(
            "self.filter(r, r.kind.lowerAscii() != 'networkauthentication').size() <= 1 \
             && self.filter(r, r.kind.lowerAscii() == 'networkauthentication').size() <= 1"
        )
        .message("at most one MeshTLSAuthentication or ServiceAccount, and at most one NetworkAuthentication, may be required")
    )]
    pub required_authentication_refs: Vec<NamespacedTargetRef>,
}

/// What the policy controller says about an AuthorizationPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationPolicyStatus {
    /// `Accepted`: whether its target is there. `ResolvedRefs`: whether the authentications that it requires are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A policy's target, once its kind is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    /// A Server of the same namespace.
    Server(&'a str),
    /// An HTTPRoute of `policy.linkerd.io` in the same namespace.
    PolicyHttpRoute(&'a str),
    /// An HTTPRoute of the Gateway API in the same namespace.
    GatewayHttpRoute(&'a str),
    /// A GRPCRoute of the Gateway API in the same namespace.
    GatewayGrpcRoute(&'a str),
    /// All Servers of the namespace with this name, which must be the policy's own.
    Namespace(&'a str),
}

/// What a client must prove, once its kind is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication<'a> {
    /// An identity that a MeshTLSAuthentication lists.
    MeshTls(&'a NamespacedTargetRef),
    /// An address that a NetworkAuthentication lists.
    Network(&'a NamespacedTargetRef),
    /// The identity of a service account.
    ServiceAccount(&'a NamespacedTargetRef),
}

/// A policy that says something Heddle does not know. Such a policy permits nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthorizationPolicyError {
    /// The target's kind cannot be a target.
    #[error(
        "spec.targetRef: {group}/{kind} cannot be a target: expected a Server, HTTPRoute, GRPCRoute or Namespace"
    )]
    UnknownTarget {
        /// The reference's group.
        group: String,
        /// The reference's kind.
        kind: String,
    },
    /// A required authentication's kind is not one.
    #[error(
        "spec.requiredAuthenticationRefs[{index}]: {group}/{kind} is no authentication: expected a MeshTLSAuthentication, NetworkAuthentication or ServiceAccount"
    )]
    UnknownAuthentication {
        /// Which of the references.
        index: usize,
        /// The reference's group.
        group: String,
        /// The reference's kind.
        kind: String,
    },
}

impl AuthorizationPolicySpec {
    /// The target by kind.
    ///
    /// # Errors
    /// When the target's kind cannot be one.
    pub fn target(&self) -> Result<Target<'_>, AuthorizationPolicyError> {
        let reference = &self.target_ref;
        let gateway = same_group(
            reference.group.as_deref().unwrap_or_default(),
            "gateway.networking.k8s.io",
        );
        let name = reference.name.as_str();
        Ok(match () {
            () if reference.targets_kind::<Server>() => Target::Server(name),
            () if reference.targets_kind::<HttpRoute>() => Target::PolicyHttpRoute(name),
            () if reference.targets_kind::<Namespace>() => Target::Namespace(name),
            () if gateway && reference.kind.eq_ignore_ascii_case("HTTPRoute") => {
                Target::GatewayHttpRoute(name)
            }
            () if gateway && reference.kind.eq_ignore_ascii_case("GRPCRoute") => {
                Target::GatewayGrpcRoute(name)
            }
            () => {
                return Err(AuthorizationPolicyError::UnknownTarget {
                    group: reference.group.clone().unwrap_or_default(),
                    kind: reference.kind.clone(),
                });
            }
        })
    }

    /// The required authentications by kind, in the order written.
    ///
    /// # Errors
    /// When one of them is of no known kind.
    pub fn authentications<'a>(&'a self) -> Result<Vec<Authentication<'a>>, AuthorizationPolicyError> {
        let by_kind = |(index, reference): (usize, &'a NamespacedTargetRef)| match () {
            () if reference.targets_kind::<MeshTLSAuthentication>() => Ok(Authentication::MeshTls(reference)),
            () if reference.targets_kind::<NetworkAuthentication>() => Ok(Authentication::Network(reference)),
            () if reference.targets_kind::<ServiceAccount>() => Ok(Authentication::ServiceAccount(reference)),
            () => Err(AuthorizationPolicyError::UnknownAuthentication {
                index,
                group: reference.group.clone().unwrap_or_default(),
                kind: reference.kind.clone(),
            }),
        };
        self.required_authentication_refs
            .iter()
            .enumerate()
            .map(by_kind)
            .collect()
    }
}
