//! Backends of routes: services, or where a client was going anyway. What cannot be reached fails, and says why.

use heddle_control_core::{
    Meta, ResourceRef,
    outbound::{Backend, Distribution, Mirror},
    route::Filter,
};

use super::parent::Parent;
use crate::facts::{BackendKind, BackendRef, MirrorRef, ParentKind, ServiceFacts};

impl Parent<'_> {
    /// Where a rule of a route in `namespace` sends requests.
    pub(super) fn distribution(&self, namespace: &str, references: &[BackendRef]) -> Distribution {
        if references.is_empty() {
            return Distribution::first(self.backend.clone());
        }
        let weighted: Vec<_> = references
            .iter()
            .filter(|reference| reference.weight > 0)
            .map(|reference| (self.backend_of(namespace, reference), reference.weight))
            .collect();
        match weighted.is_empty() {
            false => Distribution::Weighted(weighted),
            // The Gateway API: when all weights are 0, requests get a 500.
            true => Distribution::first(failing(
                self.backend.clone(),
                "all backends of the route have weight 0".to_owned(),
            )),
        }
    }

    /// Where copies go. The Gateway API: what cannot be mirrored to is not, and requests go on.
    pub(super) fn mirrors(&self, namespace: &str, references: &[MirrorRef]) -> Vec<Mirror> {
        let reachable = |reference: &MirrorRef| {
            let MirrorRef { backend, share } = reference;
            let backend = self.plain(namespace, backend).ok()?;
            (share.0 > 0).then_some(Mirror {
                backend,
                share: *share,
            })
        };
        references.iter().filter_map(reachable).collect()
    }

    fn backend_of(&self, namespace: &str, reference: &BackendRef) -> Backend {
        let backend = self
            .plain(namespace, reference)
            .unwrap_or_else(|(backend, why)| failing(*backend, why));
        let mut filters = reference.filters.clone();
        filters.extend(backend.filters);
        Backend {
            filters,
            mirrors: self.mirrors(namespace, &reference.mirrors),
            ..backend
        }
    }

    /// A backend without what the reference says of it, or something in its place and why it cannot be reached.
    fn plain(&self, namespace: &str, reference: &BackendRef) -> Result<Backend, (Box<Backend>, String)> {
        let namespace = reference.namespace.as_deref().unwrap_or(namespace);
        let BackendRef { kind, name, port, .. } = reference;
        let in_place = |meta| {
            Box::new(Backend {
                meta,
                ..self.backend.clone()
            })
        };
        match kind {
            BackendKind::Other => Err((
                in_place(Meta::Default("invalid")),
                format!("backend {name} is no Service with a port, and no EgressNetwork"),
            )),
            BackendKind::EgressNetwork => {
                let is_parent = self.kind == ParentKind::EgressNetwork
                    && *self.key.namespace == *namespace
                    && *self.key.name == **name;
                if is_parent {
                    return Ok(self.backend.clone());
                }
                let why = match self.store.egress_networks.find(namespace, name) {
                    None => format!("EgressNetwork not found {name}"),
                    Some(_) => {
                        format!("EgressNetwork {name} can be a backend only of routes whose parent it is")
                    }
                };
                Err((in_place(Meta::Default("invalid")), why))
            }
            BackendKind::Service => {
                let service = ResourceRef::service(namespace, name, *port);
                let backend = Backend::service(service, &self.config.cluster_domain);
                match self.store.services.find(namespace, name) {
                    None => Err((Box::new(backend), format!("Service not found {name}"))),
                    Some(service) if service.port(*port).is_none() && !service.headless() => {
                        Err((Box::new(backend), format!("Service {name} has no port {port}")))
                    }
                    Some(service) => Ok(self.balanced(backend, service)),
                }
            }
        }
    }

    /// How failures weigh is the parent's affair; limits and affinity are those of the service that is protected.
    pub(super) fn balanced(&self, backend: Backend, service: &ServiceFacts) -> Backend {
        Backend {
            load_bias: self.load_bias,
            limits: service.balancing.limits,
            affinity: service.balancing.affinity.clone(),
            ..backend
        }
    }
}

/// The Gateway API: requests to a backend that cannot be found get a 500.
fn failing(mut backend: Backend, message: String) -> Backend {
    backend.filters.push(Filter::Fail { status: 500, message });
    backend
}
