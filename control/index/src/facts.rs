//! What is kept of each object: only what answers depend on, so that a change of anything else costs nothing.

mod authentication;
mod authorization;
mod egress;
mod external_workload;
mod namespace;
mod node;
mod pod;
mod rate_limit;
mod route;
mod server;
mod service;
mod service_profile;
mod slice;
mod workload;

use std::sync::Arc;

use heddle_control_core::discover::{WorkloadKind, WorkloadName};
use kube::{Resource, ResourceExt as _};

pub use self::route::TlsRouteV1Alpha2;
pub(crate) use self::{
    authentication::{MeshTlsFacts, NetworkFacts},
    authorization::{AuthenticationRef, PolicyFacts, PolicyTarget, ServerAuthorizationFacts},
    egress::EgressFacts,
    external_workload::ExternalWorkloadFacts,
    namespace::NamespaceFacts,
    node::NodeFacts,
    pod::{PodFacts, PodTemplate, Probes},
    rate_limit::RateLimitFacts,
    route::{
        BackendKind, BackendRef, ConnectionRouteFacts, GrpcRouteFacts, HttpRouteFacts, MirrorRef, Parent,
        ParentKind, RouteFacts, RouteKind, RuleFacts,
    },
    server::ServerFacts,
    service::{PortFacts, ServiceFacts},
    service_profile::{ProfileFacts, read as read_service_profile},
    slice::{SliceEndpoint, SliceFacts},
    workload::WorkloadFacts,
};
use crate::{
    annotation::Problem,
    pool::Pools,
    status::{Subject, Told},
    store::{Store, Table},
};

/// A kind of object that the index tracks.
pub trait Tracked: Resource<DynamicType = ()> {
    /// What is kept of an object.
    #[doc(hidden)]
    type Facts: PartialEq + Send;

    /// As what its status is judged; `None`: nobody reads one.
    #[doc(hidden)]
    const SUBJECT: Option<Subject> = None;

    /// Whether a status may depend on objects of this kind.
    #[doc(hidden)]
    const MATTERS_TO_STATUS: bool = true;

    /// What its status says, for kinds that are a [`Subject`].
    #[doc(hidden)]
    fn told(&self) -> Told {
        Told::default()
    }

    /// Reduces an object to its facts; problems are logged, and what cannot be read permits nothing.
    #[doc(hidden)]
    fn facts(&self, pools: &Pools) -> Self::Facts;

    /// Where the facts are kept.
    #[doc(hidden)]
    fn table(store: &mut Store) -> &mut Table<Self::Facts>;

    /// Adds (`added`) or removes facts to and from what is derived of a table, and marks the answers that they touch.
    #[doc(hidden)]
    fn touch(
        store: &mut Store,
        key: &ObjectKey,
        facts: &Self::Facts,
        added: bool,
        dirty: &mut crate::dirty::Dirty,
    );
}

/// An object's namespace, empty for cluster-scoped kinds, and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self {
            namespace: object.meta().namespace.as_deref().unwrap_or_default().into(),
            name: object.meta().name.as_deref().unwrap_or_default().into(),
        }
    }

    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The same object as a workload.
    pub(crate) fn workload(&self, kind: WorkloadKind) -> WorkloadName {
        let Self { namespace, name } = self.clone();
        WorkloadName {
            kind,
            namespace,
            name,
        }
    }

    /// A neighbour in the same namespace.
    pub(crate) fn beside(&self, name: &Arc<str>) -> Self {
        Self {
            namespace: self.namespace.clone(),
            name: name.clone(),
        }
    }
}

/// The kind, in lower case, and the name of what controls an object.
pub(crate) fn owner<K: Resource>(object: &K) -> Option<(String, String)> {
    let owners = object.owner_references();
    let owner = owners
        .iter()
        .find(|owner| owner.controller == Some(true))
        .or(owners.first())?;
    Some((owner.kind.to_lowercase(), owner.name.clone()))
}

/// Seconds since the epoch at which an object was made; the order in which rivals are preferred.
pub(crate) fn created<K: Resource>(object: &K) -> i64 {
    object
        .meta()
        .creation_timestamp
        .as_ref()
        .map_or(i64::MAX, |time| time.0.as_second())
}

/// Logs what is wrong with an object's annotations.
pub(crate) fn complain<K: Resource<DynamicType = ()>>(object: &K, problems: Vec<Problem>) {
    for problem in problems {
        let kind = K::kind(&());
        tracing::warn!(%kind, namespace = object.namespace(), name = object.name_any(), %problem, "Ignored an annotation");
    }
}

/// An annotation that is parsed; a wrong value is logged and counts as absent.
pub(crate) fn annotation<K, T>(object: &K, key: &str) -> Option<T>
where
    K: Resource<DynamicType = ()>,
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    let text = object.annotations().get(key)?;
    match text.parse() {
        Ok(value) => Some(value),
        Err(error) => {
            let kind = K::kind(&());
            tracing::warn!(%kind, namespace = object.namespace(), name = object.name_any(), annotation = key, %error, "Ignored an annotation");
            None
        }
    }
}
