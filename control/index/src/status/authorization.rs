//! AuthorizationPolicies: whether what they are for, and what they require, is there.

use super::{
    Status,
    condition::{Condition, Rejection, Unresolved},
};
use crate::{
    facts::{AuthenticationRef, ObjectKey, PolicyFacts, PolicyTarget, RouteKind},
    store::Store,
};

pub(super) fn judge(store: &Store, key: &ObjectKey, facts: &PolicyFacts) -> Status {
    let Some((target, references)) = &facts.body else {
        let problem = facts.problem.clone().unwrap_or_default();
        let message = format!("permits nothing until corrected: {problem}");
        return Status::Conditions(vec![
            Condition::rejected(Rejection::Invalid, message),
            Condition::resolved(),
        ]);
    };
    let accepted = match missing_target(store, &key.namespace, target) {
        None => Condition::accepted(),
        Some(missing) => Condition::rejected(
            Rejection::NoMatchingTarget,
            format!(
                "spec.targetRef: there is no {missing} in namespace {}",
                key.namespace
            ),
        ),
    };
    let resolved = match references.iter().find_map(|reference| missing(store, reference)) {
        None => Condition::resolved(),
        Some(missing) => Condition::unresolved(
            Unresolved::AuthenticationNotFound,
            format!("permits nothing: spec.requiredAuthenticationRefs: there is no {missing}"),
        ),
    };
    Status::Conditions(vec![accepted, resolved])
}

fn missing_target(store: &Store, namespace: &str, target: &PolicyTarget) -> Option<String> {
    let (found, kind, name) = match target {
        PolicyTarget::Namespace => return None,
        PolicyTarget::Server(name) => (store.servers.find(namespace, name).is_some(), "Server", name),
        PolicyTarget::Route(kind, name) => (store.has_route(*kind, namespace, name), kind.kind(), name),
    };
    (!found).then(|| format!("{kind} {name}"))
}

/// Service accounts need not exist: an identity is proven by a certificate.
fn missing(store: &Store, reference: &AuthenticationRef) -> Option<String> {
    let (found, kind, ObjectKey { namespace, name }) = match reference {
        AuthenticationRef::MeshTls(key) => (store.mesh_tls.get(key).is_some(), "MeshTLSAuthentication", key),
        AuthenticationRef::Network(key) => (store.networks.get(key).is_some(), "NetworkAuthentication", key),
        AuthenticationRef::ServiceAccount(_) => return None,
    };
    (!found).then(|| format!("{kind} {name} in namespace {namespace}"))
}

impl Store {
    fn has_route(&self, kind: RouteKind, namespace: &str, name: &str) -> bool {
        match kind {
            RouteKind::PolicyHttp => self.policy_http_routes.find(namespace, name).is_some(),
            RouteKind::GatewayHttp => self.gateway_http_routes.find(namespace, name).is_some(),
            RouteKind::GatewayGrpc => self.grpc_routes.find(namespace, name).is_some(),
            // Servers have no such routes.
            RouteKind::GatewayTls | RouteKind::GatewayTcp => false,
        }
    }
}
