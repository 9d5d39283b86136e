//! AuthorizationPolicies and ServerAuthorizations: who may use what.

use std::collections::BTreeMap;

use heddle_control_core::inbound::NetworkMatch;
use heddle_k8s::{
    policy::{
        AuthorizationPolicy, ServerAuthorization,
        authorization_policy::{Authentication, AuthorizationPolicyError, Target},
    },
    selector::LabelSelector,
};
use heddle_mesh::ServiceAccountRef;
use kube::ResourceExt as _;

use super::{ObjectKey, RouteKind, Tracked};
use crate::{
    dirty::Dirty,
    pool::Pools,
    status::{Subject, Told},
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct PolicyFacts {
    pub(crate) created: i64,
    /// `None`: it names something that is not known, so it permits nothing.
    pub(crate) body: Option<(PolicyTarget, Vec<AuthenticationRef>)>,
    /// Why there is no body.
    pub(crate) problem: Option<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PolicyTarget {
    Server(String),
    Route(RouteKind, String),
    Namespace,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AuthenticationRef {
    MeshTls(ObjectKey),
    Network(ObjectKey),
    ServiceAccount(ServiceAccountRef),
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServerAuthorizationFacts {
    pub(crate) created: i64,
    pub(crate) server: ServerSelector,
    /// `None`: the cluster's networks for authenticated clients, all for others. `Some(None)`: one cannot be read.
    pub(crate) networks: Option<Option<Vec<NetworkMatch>>>,
    pub(crate) unauthenticated: bool,
    pub(crate) unauthenticated_tls: bool,
    pub(crate) identities: Vec<String>,
    pub(crate) accounts: Vec<ServiceAccountRef>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ServerSelector {
    Name(String),
    Labels(LabelSelector),
    Nothing,
}

impl Tracked for AuthorizationPolicy {
    type Facts = PolicyFacts;

    const SUBJECT: Option<Subject> = Some(Subject::AuthorizationPolicy);

    fn told(&self) -> Told {
        Told::of(self, self.status.as_ref())
    }

    fn facts(&self, _: &Pools) -> PolicyFacts {
        let namespace = self.namespace().unwrap_or_default();
        let body = body(self, &namespace);
        if let Err(error) = &body {
            tracing::warn!(namespace, name = self.name_any(), %error, "An AuthorizationPolicy permits nothing until corrected");
        }
        PolicyFacts {
            created: super::created(self),
            problem: body.as_ref().err().map(ToString::to_string),
            body: body.ok(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<PolicyFacts> {
        &mut store.policies
    }

    fn touch(_: &mut Store, key: &ObjectKey, _: &PolicyFacts, _: bool, dirty: &mut Dirty) {
        dirty.namespace_inbound(&key.namespace);
    }
}

/// Why an AuthorizationPolicy permits nothing.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error(transparent)]
    Reference(#[from] AuthorizationPolicyError),
    #[error("spec.targetRef: Namespace `{0}` is not the policy's own")]
    OtherNamespace(String),
    #[error(
        "spec.requiredAuthenticationRefs: at most one of MeshTLSAuthentication and ServiceAccount, and one NetworkAuthentication, may be required"
    )]
    TooMany,
}

fn body(
    policy: &AuthorizationPolicy,
    namespace: &str,
) -> Result<(PolicyTarget, Vec<AuthenticationRef>), BodyError> {
    let target = match policy.spec.target()? {
        Target::Server(name) => PolicyTarget::Server(name.to_owned()),
        Target::PolicyHttpRoute(name) => PolicyTarget::Route(RouteKind::PolicyHttp, name.to_owned()),
        Target::GatewayHttpRoute(name) => PolicyTarget::Route(RouteKind::GatewayHttp, name.to_owned()),
        Target::GatewayGrpcRoute(name) => PolicyTarget::Route(RouteKind::GatewayGrpc, name.to_owned()),
        Target::Namespace(name) if name == namespace => PolicyTarget::Namespace,
        Target::Namespace(name) => return Err(BodyError::OtherNamespace(name.to_owned())),
    };
    let references: Vec<AuthenticationRef> = policy
        .spec
        .authentications()?
        .into_iter()
        .map(|authentication| {
            let key = |reference: &heddle_k8s::reference::NamespacedTargetRef| {
                ObjectKey::new(reference.namespace_or(namespace), &reference.name)
            };
            match authentication {
                Authentication::MeshTls(reference) => AuthenticationRef::MeshTls(key(reference)),
                Authentication::Network(reference) => AuthenticationRef::Network(key(reference)),
                Authentication::ServiceAccount(reference) => {
                    AuthenticationRef::ServiceAccount(ServiceAccountRef {
                        namespace: reference.namespace_or(namespace).to_owned(),
                        name: reference.name.clone(),
                    })
                }
            }
        })
        .collect();
    let networks = references
        .iter()
        .filter(|reference| matches!(reference, AuthenticationRef::Network(_)))
        .count();
    if networks > 1 || references.len() - networks > 1 {
        return Err(BodyError::TooMany);
    }
    Ok((target, references))
}

impl Tracked for ServerAuthorization {
    type Facts = ServerAuthorizationFacts;

    fn facts(&self, _: &Pools) -> ServerAuthorizationFacts {
        let namespace = self.namespace().unwrap_or_default();
        let client = &self.spec.client;
        let tls = client.mesh_tls.as_ref();
        let account =
            |account: &heddle_k8s::policy::server_authorization::ServiceAccountName| ServiceAccountRef {
                namespace: account
                    .namespace
                    .clone()
                    .filter(|ns| !ns.is_empty())
                    .unwrap_or_else(|| namespace.clone()),
                name: account.name.clone(),
            };
        ServerAuthorizationFacts {
            created: super::created(self),
            server: match (&self.spec.server.name, &self.spec.server.selector) {
                (Some(name), _) => ServerSelector::Name(name.clone()),
                (None, Some(selector)) => ServerSelector::Labels(selector.clone()),
                (None, None) => ServerSelector::Nothing,
            },
            networks: client
                .networks
                .as_ref()
                .map(|networks| super::authentication::networks(self, networks)),
            unauthenticated: client.unauthenticated,
            unauthenticated_tls: tls.is_some_and(|tls| tls.unauthenticated_tls),
            identities: tls.and_then(|tls| tls.identities.clone()).unwrap_or_default(),
            accounts: tls
                .and_then(|tls| tls.service_accounts.as_ref())
                .into_iter()
                .flatten()
                .map(account)
                .collect(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<ServerAuthorizationFacts> {
        &mut store.server_authorizations
    }

    fn touch(_: &mut Store, key: &ObjectKey, _: &ServerAuthorizationFacts, _: bool, dirty: &mut Dirty) {
        dirty.namespace_inbound(&key.namespace);
    }
}

impl ServerAuthorizationFacts {
    pub(crate) fn selects(&self, server: &str, labels: &BTreeMap<String, String>) -> bool {
        match &self.server {
            ServerSelector::Name(name) => name == server,
            ServerSelector::Labels(selector) => selector.matches(labels),
            ServerSelector::Nothing => false,
        }
    }
}
