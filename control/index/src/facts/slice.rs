//! EndpointSlices: the addresses behind services.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::{
    core::v1::ObjectReference,
    discovery::v1::{Endpoint, EndpointSlice},
};
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    pool::Pools,
    store::{Store, Table},
};
use heddle_control_core::{
    discover::{WorkloadKind, WorkloadName},
    endpoints::Place,
};

/// The label that names a slice's service.
const SERVICE: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq)]
pub struct SliceFacts {
    /// The service, in the slice's namespace.
    pub(crate) service: Option<Arc<str>>,
    /// TCP ports by name.
    pub(crate) ports: Box<[(String, u16)]>,
    /// Endpoints that take traffic.
    pub(crate) endpoints: Box<[SliceEndpoint]>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SliceEndpoint {
    /// Whether it is about to go: it is used only while there is no other.
    pub(crate) draining: bool,
    pub(crate) ips: Box<[IpAddr]>,
    pub(crate) hostname: Option<Arc<str>>,
    pub(crate) place: Arc<Place>,
    /// The workload behind the address, when it is one.
    pub(crate) workload: Option<Arc<WorkloadName>>,
}

impl Tracked for EndpointSlice {
    type Facts = SliceFacts;

    const MATTERS_TO_STATUS: bool = false;

    fn facts(&self, pools: &Pools) -> SliceFacts {
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        // A slice of DNS names has no addresses to balance over.
        let by_address = self.address_type != "FQDN";
        let tcp = self
            .ports
            .iter()
            .flatten()
            .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
        SliceFacts {
            service: self.labels().get(SERVICE).map(|service| service.as_str().into()),
            ports: tcp
                .filter_map(|port| {
                    Some((
                        port.name.clone().unwrap_or_default(),
                        u16::try_from(port.port?).ok()?,
                    ))
                })
                .collect(),
            endpoints: self
                .endpoints
                .iter()
                .flatten()
                .filter(|_| by_address)
                .filter_map(|e| endpoint(e, namespace, pools))
                .collect(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<SliceFacts> {
        &mut store.slices
    }

    fn touch(store: &mut Store, key: &ObjectKey, facts: &SliceFacts, added: bool, dirty: &mut Dirty) {
        let Some(service) = &facts.service else { return };
        let service = key.beside(service);
        store.link_slice(&service, key, facts, added);
        dirty.service_endpoints(service);
    }
}

/// Whether an endpoint takes traffic, and is draining; `None` when it takes none.
///
/// A service that publishes addresses that are not ready has them all marked as ready.
fn draining(endpoint: &Endpoint) -> Option<bool> {
    let Some(conditions) = &endpoint.conditions else {
        return Some(false);
    };
    // Kubernetes: an unknown condition counts as ready.
    let ready = conditions.ready.unwrap_or(true);
    // As kube-proxy does: better an endpoint that still serves while it ends than none at all.
    let last_resort = conditions.serving == Some(true) && conditions.terminating == Some(true);
    match (ready, last_resort) {
        (true, _) => Some(false),
        (false, true) => Some(true),
        (false, false) => None,
    }
}

fn endpoint(endpoint: &Endpoint, namespace: &str, pools: &Pools) -> Option<SliceEndpoint> {
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref());
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
    let share = |name: &str| pools.names.share(name);
    let place = Place {
        node: endpoint.node_name.as_deref().map(share),
        zone: endpoint.zone.as_deref().map(share),
        for_zones: zones
            .into_iter()
            .flatten()
            .map(|zone| share(&zone.name))
            .collect(),
        for_nodes: nodes
            .into_iter()
            .flatten()
            .map(|node| share(&node.name))
            .collect(),
    };
    Some(SliceEndpoint {
        draining: draining(endpoint)?,
        ips: endpoint
            .addresses
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect(),
        hostname: endpoint.hostname.as_deref().map(Arc::from),
        place: pools.places.share(place),
        workload: endpoint
            .target_ref
            .as_ref()
            .and_then(|target| workload(target, namespace, pools)),
    })
}

fn workload(target: &ObjectReference, namespace: &str, pools: &Pools) -> Option<Arc<WorkloadName>> {
    let kind = match target.kind.as_deref()? {
        "Pod" => WorkloadKind::Pod,
        "ExternalWorkload" => WorkloadKind::ExternalWorkload,
        _ => return None,
    };
    let namespace = target.namespace.as_deref().unwrap_or(namespace);
    Some(pools.workloads.share(WorkloadName {
        kind,
        namespace: pools.names.share(namespace),
        name: target.name.as_deref()?.into(),
    }))
}
