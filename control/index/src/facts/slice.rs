//! EndpointSlices: the addresses behind services.

use std::{net::IpAddr, sync::Arc};

use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    store::{Store, Table},
};

/// The label that names a slice's service.
const SERVICE: &str = "kubernetes.io/service-name";

#[derive(Clone, Debug, PartialEq)]
pub struct SliceFacts {
    /// The service, in the slice's namespace.
    pub(crate) service: Option<String>,
    /// TCP ports by name.
    pub(crate) ports: Vec<(String, u16)>,
    /// Endpoints that are ready.
    pub(crate) endpoints: Vec<SliceEndpoint>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SliceEndpoint {
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) hostname: Option<String>,
    pub(crate) node: Option<Arc<str>>,
    pub(crate) zone: Option<Arc<str>>,
    pub(crate) for_zones: Vec<Arc<str>>,
    pub(crate) pod: Option<ObjectKey>,
}

impl Tracked for EndpointSlice {
    type Facts = SliceFacts;

    const MATTERS_TO_STATUS: bool = false;

    fn facts(&self) -> SliceFacts {
        let namespace = self.namespace().unwrap_or_default();
        // A slice of DNS names has no addresses to balance over.
        let by_address = self.address_type != "FQDN";
        let tcp = self
            .ports
            .iter()
            .flatten()
            .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
        SliceFacts {
            service: self.labels().get(SERVICE).cloned(),
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
                .filter(|e| by_address && ready(e))
                .map(|e| endpoint(e, &namespace))
                .collect(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<SliceFacts> {
        &mut store.slices
    }

    fn touch(store: &mut Store, key: &ObjectKey, facts: &SliceFacts, added: bool, dirty: &mut Dirty) {
        let Some(service) = &facts.service else { return };
        let service = ObjectKey::new(&key.namespace, service);
        store.link_slice(&service, key, facts, added);
        dirty.service_endpoints(service);
    }
}

/// Kubernetes: an unknown condition counts as ready.
fn ready(endpoint: &Endpoint) -> bool {
    endpoint
        .conditions
        .as_ref()
        .and_then(|conditions| conditions.ready)
        .unwrap_or(true)
}

fn endpoint(endpoint: &Endpoint, namespace: &str) -> SliceEndpoint {
    let pod = endpoint
        .target_ref
        .as_ref()
        .filter(|target| target.kind.as_deref() == Some("Pod"));
    let hints = endpoint.hints.as_ref().and_then(|hints| hints.for_zones.as_ref());
    SliceEndpoint {
        ips: endpoint
            .addresses
            .iter()
            .filter_map(|ip| ip.parse().ok())
            .collect(),
        hostname: endpoint.hostname.clone(),
        node: endpoint.node_name.as_deref().map(Arc::from),
        zone: endpoint.zone.as_deref().map(Arc::from),
        for_zones: hints
            .into_iter()
            .flatten()
            .map(|zone| Arc::from(zone.name.as_str()))
            .collect(),
        pod: pod.and_then(|pod| {
            Some(ObjectKey::new(
                pod.namespace.as_deref().unwrap_or(namespace),
                pod.name.as_deref()?,
            ))
        }),
    }
}
