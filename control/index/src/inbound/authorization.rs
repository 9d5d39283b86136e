//! Who may use a Server or a route.

use heddle_control_core::{
    DefaultPolicy,
    inbound::{Authorization, AuthorizationRef, Clients, IdentityMatch, NetworkMatch},
};

use crate::{
    config::Config,
    facts::{AuthenticationRef, PolicyTarget, RouteKind, ServerAuthorizationFacts, ServerFacts},
    store::Store,
};

/// The authorization that a default policy amounts to; none for `deny`.
pub(super) fn default_authorization(config: &Config, policy: DefaultPolicy) -> Option<Authorization> {
    let (authenticated_only, cluster_only) = match policy {
        DefaultPolicy::Allow {
            authenticated_only,
            cluster_only,
        } => (authenticated_only, cluster_only),
        DefaultPolicy::Audit => (false, false),
        DefaultPolicy::Deny => return None,
    };
    let cluster = || {
        config
            .cluster_networks
            .iter()
            .copied()
            .map(NetworkMatch::whole)
            .collect()
    };
    Some(Authorization {
        reference: AuthorizationRef::Default(policy),
        networks: if cluster_only {
            cluster()
        } else {
            NetworkMatch::all()
        },
        clients: if authenticated_only {
            anyone_authenticated()
        } else {
            Clients::Unauthenticated
        },
    })
}

/// The authorizations of a whole Server, oldest policies first.
pub(super) fn of_server(
    store: &Store,
    config: &Config,
    namespace: &str,
    name: &str,
    server: &ServerFacts,
) -> Vec<Authorization> {
    let is_ours = |target: &PolicyTarget| match target {
        PolicyTarget::Server(target) => target == name,
        PolicyTarget::Namespace => true,
        PolicyTarget::Route(..) => false,
    };
    let mut all = by_policies(store, config, namespace, is_ours);
    let older = store
        .server_authorizations
        .namespace(namespace)
        .filter(|(_, facts)| facts.selects(name, &server.labels));
    let mut older: Vec<_> = older.collect();
    older.sort_by_key(|(name, facts)| (facts.created, *name));
    all.extend(
        older
            .into_iter()
            .filter_map(|(name, facts)| by_server_authorization(config, name, facts)),
    );
    all
}

/// The authorizations of a route, oldest first.
pub(super) fn of_route(
    store: &Store,
    config: &Config,
    namespace: &str,
    kind: RouteKind,
    name: &str,
) -> Vec<Authorization> {
    by_policies(
        store,
        config,
        namespace,
        |target| matches!(target, PolicyTarget::Route(k, n) if *k == kind && n == name),
    )
}

fn by_policies(
    store: &Store,
    config: &Config,
    namespace: &str,
    is_ours: impl Fn(&PolicyTarget) -> bool,
) -> Vec<Authorization> {
    let with_body = store
        .policies
        .namespace(namespace)
        .filter_map(|(name, facts)| Some((name, facts.created, facts.body.as_ref()?)));
    let mut ours: Vec<_> = with_body.filter(|(_, _, (target, _))| is_ours(target)).collect();
    ours.sort_by_key(|(name, created, _)| (*created, *name));
    ours.into_iter()
        .filter_map(|(name, _, (_, references))| by_policy(store, config, namespace, name, references))
        .collect()
}

/// `None` when a reference leads nowhere: what cannot be proven permits nothing.
fn by_policy(
    store: &Store,
    config: &Config,
    namespace: &str,
    name: &str,
    references: &[AuthenticationRef],
) -> Option<Authorization> {
    let mut networks = NetworkMatch::all();
    let mut clients = Clients::Unauthenticated;
    for reference in references {
        match reference {
            AuthenticationRef::MeshTls(key) => {
                let Some(authentication) = store.mesh_tls.get(key) else {
                    return dangling(namespace, name, "MeshTLSAuthentication", key);
                };
                let identities = authentication.identities(config);
                if identities.is_empty() {
                    return None;
                }
                clients = Clients::Tls(identities);
            }
            AuthenticationRef::ServiceAccount(account) => {
                clients = Clients::Tls(vec![IdentityMatch::Exact(
                    config.identity(&account.namespace, &account.name),
                )]);
            }
            AuthenticationRef::Network(key) => {
                let Some(authentication) = store.networks.get(key) else {
                    return dangling(namespace, name, "NetworkAuthentication", key);
                };
                networks.clone_from(authentication.networks.as_ref()?);
            }
        }
    }
    Some(Authorization {
        reference: AuthorizationRef::AuthorizationPolicy(name.to_owned()),
        networks,
        clients,
    })
}

fn dangling(namespace: &str, name: &str, kind: &str, key: &crate::facts::ObjectKey) -> Option<Authorization> {
    tracing::debug!(
        namespace,
        name,
        missing = kind,
        missing_namespace = %key.namespace,
        missing_name = %key.name,
        "An AuthorizationPolicy permits nothing: what it requires does not exist"
    );
    None
}

fn by_server_authorization(
    config: &Config,
    name: &str,
    facts: &ServerAuthorizationFacts,
) -> Option<Authorization> {
    let ServerAuthorizationFacts {
        networks,
        unauthenticated,
        unauthenticated_tls,
        identities,
        accounts,
        ..
    } = facts;
    let clients = match (unauthenticated, unauthenticated_tls) {
        (true, _) => Clients::Unauthenticated,
        (false, true) => Clients::TlsUnauthenticated,
        (false, false) => {
            let accounts = accounts
                .iter()
                .map(|account| IdentityMatch::Exact(config.identity(&account.namespace, &account.name)));
            let all: Vec<_> = identities
                .iter()
                .map(|text| IdentityMatch::parse(text))
                .chain(accounts)
                .collect();
            if all.is_empty() {
                return None;
            }
            Clients::Tls(all)
        }
    };
    let networks = match networks {
        Some(Some(networks)) if !networks.is_empty() => networks.clone(),
        // A list that names no network, or one that cannot be read, must not mean all of them.
        Some(_) => return None,
        // The type's documentation: the cluster's networks for clients that prove something.
        None if clients != Clients::Unauthenticated => config
            .cluster_networks
            .iter()
            .copied()
            .map(NetworkMatch::whole)
            .collect(),
        None => NetworkMatch::all(),
    };
    Some(Authorization {
        reference: AuthorizationRef::ServerAuthorization(name.to_owned()),
        networks,
        clients,
    })
}

fn anyone_authenticated() -> Clients {
    Clients::Tls(vec![IdentityMatch::Suffix(Vec::new())])
}
