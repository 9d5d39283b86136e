//! MeshTLSAuthentications and NetworkAuthentications: who clients are, and where they come from.

use heddle_control_core::inbound::{IdentityMatch, NetworkMatch};
use heddle_k8s::{
    network::Network,
    policy::{MeshTLSAuthentication, NetworkAuthentication},
};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::{Resource, ResourceExt as _};

use super::{ObjectKey, Tracked};
use crate::{
    config::Config,
    dirty::Dirty,
    pool::Pools,
    store::{Store, Table},
};

/// Identities as written, and those that depend on the mesh's settings as references.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshTlsFacts {
    identities: Vec<IdentityMatch>,
    accounts: Vec<Accounts>,
}

#[derive(Clone, Debug, PartialEq)]
enum Accounts {
    One { namespace: String, name: String },
    AllOf { namespace: String },
}

#[derive(Clone, Debug, PartialEq)]
pub struct NetworkFacts {
    /// `None`: one of the networks cannot be read.
    pub(crate) networks: Option<Vec<NetworkMatch>>,
}

impl Tracked for MeshTLSAuthentication {
    type Facts = MeshTlsFacts;

    fn facts(&self, _: &Pools) -> MeshTlsFacts {
        let own = self.namespace().unwrap_or_default();
        let accounts = self
            .spec
            .identity_refs
            .iter()
            .filter_map(|reference| match &reference.name {
                Some(name) if reference.targets_kind::<ServiceAccount>() => Some(Accounts::One {
                    namespace: reference.namespace_or(&own).to_owned(),
                    name: name.clone(),
                }),
                None if reference.targets_kind::<ServiceAccount>() => Some(Accounts::AllOf {
                    namespace: reference.namespace_or(&own).to_owned(),
                }),
                name if reference.targets_kind::<Namespace>() => Some(Accounts::AllOf {
                    namespace: name.clone().unwrap_or_else(|| own.clone()),
                }),
                _ => {
                    let name = self.name_any();
                    tracing::warn!(
                        namespace = own,
                        name,
                        kind = reference.kind,
                        "A MeshTLSAuthentication refers to what is no ServiceAccount or Namespace: ignored"
                    );
                    None
                }
            });
        MeshTlsFacts {
            identities: self
                .spec
                .identities
                .iter()
                .map(|text| IdentityMatch::parse(text))
                .collect(),
            accounts: accounts.collect(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<MeshTlsFacts> {
        &mut store.mesh_tls
    }

    fn touch(_: &mut Store, _: &ObjectKey, _: &MeshTlsFacts, _: bool, dirty: &mut Dirty) {
        // Policies of any namespace may refer to it.
        dirty.all_inbound();
    }
}

impl Tracked for NetworkAuthentication {
    type Facts = NetworkFacts;

    fn facts(&self, _: &Pools) -> NetworkFacts {
        NetworkFacts {
            networks: networks(self, &self.spec.networks),
        }
    }

    fn table(store: &mut Store) -> &mut Table<NetworkFacts> {
        &mut store.networks
    }

    fn touch(_: &mut Store, _: &ObjectKey, _: &NetworkFacts, _: bool, dirty: &mut Dirty) {
        dirty.all_inbound();
    }
}

impl MeshTlsFacts {
    pub(crate) fn identities(&self, config: &Config) -> Vec<IdentityMatch> {
        let accounts = self.accounts.iter().map(|accounts| match accounts {
            Accounts::One { namespace, name } => IdentityMatch::Exact(config.identity(namespace, name)),
            Accounts::AllOf { namespace } => all_of(config, namespace),
        });
        self.identities.iter().cloned().chain(accounts).collect()
    }
}

/// The identities of all service accounts of a namespace.
fn all_of(config: &Config, namespace: &str) -> IdentityMatch {
    IdentityMatch::parse(&config.identity(namespace, "*"))
}

/// Parsed networks; `None`, and a line in the log, when one cannot be read: an exception that is not understood must
/// not let in what it was to keep out.
pub(crate) fn networks<K: Resource<DynamicType = ()>>(
    object: &K,
    networks: &[Network],
) -> Option<Vec<NetworkMatch>> {
    let parsed: Result<Vec<_>, _> = networks.iter().map(Network::parse).collect();
    match parsed {
        Ok(parsed) => Some(
            parsed
                .into_iter()
                .map(|network| NetworkMatch {
                    net: network.net,
                    except: network.except,
                })
                .collect(),
        ),
        Err(error) => {
            let kind = K::kind(&());
            tracing::warn!(%kind, namespace = object.namespace(), name = object.name_any(), %error, "Permits nothing until corrected");
            None
        }
    }
}
