//! The endpoints behind a service's port, from its slices and the workloads they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, LazyLock},
};

use heddle_control_core::{
    discover::{ServiceTarget, WorkloadName},
    endpoints::{
        Addresses, DEFAULT_WEIGHT, Endpoint, Endpoints, Labels, PeerIdentity, Place, Protocol, ProtocolHint,
    },
};
use heddle_mesh::{Identity, ServiceAccountRef};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{
    config::Config,
    facts::{
        ExternalWorkloadFacts, ObjectKey, PodFacts, PodTemplate, ServiceFacts, SliceEndpoint, SliceFacts,
        WorkloadFacts,
    },
    store::{Found, Store},
};

/// Computes the endpoints; those that equal one of `old` share its memory, so that comparing them later is cheap.
pub(crate) fn compute(
    store: &Store,
    config: &Config,
    target: &ServiceTarget,
    old: Option<&Endpoints>,
) -> Endpoints {
    let ServiceTarget {
        service,
        port,
        instance,
    } = target;
    let labels: Labels = [
        ("namespace".to_owned(), service.namespace.clone()),
        ("service".to_owned(), service.name.clone()),
    ]
    .into();
    let key = ObjectKey::new(&service.namespace, &service.name);
    let Some(facts) = store.services.get(&key).filter(|facts| !facts.external_name) else {
        return Endpoints::missing(labels);
    };
    let mut found = Candidates::default();
    for slice in store.slices_of(&key) {
        let Some(port) = target_port(facts, slice, *port) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            if instance.is_some() && instance.as_deref() != endpoint.hostname.as_deref() {
                continue;
            }
            let mut base = match &endpoint.workload {
                // Until the workload is known, so are neither its identity nor its proxy: traffic would go there in
                // the clear.
                Some(name) => match store
                    .workload(name)
                    .and_then(|found| of_workload(store, config, name, found, port))
                {
                    Some(endpoint) => endpoint,
                    None => continue,
                },
                None => unmeshed(),
            };
            // A slice made by hand may leave the node to the pod.
            base.place = match (&base.place.node, &endpoint.place.node) {
                (Some(node), None) => store.pools.places.share(Place {
                    node: Some(node.clone()),
                    ..endpoint.place.as_ref().clone()
                }),
                _ => endpoint.place.clone(),
            };
            for ip in endpoint.ips.iter().filter(|ip| ip.is_ipv4() || config.ipv6) {
                let addr = SocketAddr::new(*ip, port);
                let known = old
                    .and_then(|old| old.addresses.get(&addr))
                    .filter(|known| ***known == base);
                let new = known.cloned().unwrap_or_else(|| Arc::new(base.clone()));
                found.insert(endpoint, addr, new);
            }
        }
    }
    Endpoints {
        exists: true,
        labels,
        local_only: facts.local_only,
        zone_weights: config.zone_weights,
        addresses: found.chosen(),
    }
}

/// The workloads that a service's slices name for a host name and address.
pub(crate) fn workloads_at<'a>(
    store: &'a Store,
    service: &'a ObjectKey,
    hostname: &'a str,
    ip: IpAddr,
) -> impl Iterator<Item = &'a Arc<WorkloadName>> {
    let endpoints = store.slices_of(service).flat_map(|slice| &slice.endpoints);
    endpoints
        .filter(move |endpoint| endpoint.hostname.as_deref() == Some(hostname) && endpoint.ips.contains(&ip))
        .filter_map(|endpoint| endpoint.workload.as_ref())
}

/// The addresses that slices name.
#[derive(Debug, Default)]
struct Candidates<'a> {
    ready: Addresses,
    /// Those that are used while there is no ready one.
    draining: Addresses,
    /// Workloads that have an IPv6 address.
    six: BTreeSet<&'a WorkloadName>,
    /// Which workload an IPv4 address is of.
    four: BTreeMap<SocketAddr, &'a WorkloadName>,
}

impl<'a> Candidates<'a> {
    fn insert(&mut self, from: &'a SliceEndpoint, addr: SocketAddr, endpoint: Arc<Endpoint>) {
        if let Some(name) = &from.workload {
            if addr.is_ipv6() {
                self.six.insert(name);
            } else {
                self.four.insert(addr, name);
            }
        }
        let addresses = match from.draining {
            true => &mut self.draining,
            false => &mut self.ready,
        };
        // While slices are rearranged an address may stand in two. One that has an identity is met with it.
        let known = addresses.entry(addr).or_insert_with(|| endpoint.clone());
        if known.identity.is_none() {
            *known = endpoint;
        }
    }

    /// A workload with addresses of both families is one endpoint, not two: its IPv6 one, as in Linkerd.
    fn chosen(self) -> Addresses {
        let Self {
            ready,
            draining,
            six,
            four,
        } = self;
        let addresses = if ready.is_empty() { draining } else { ready };
        let chosen = addresses
            .into_iter()
            .filter(|(addr, _)| !four.get(addr).is_some_and(|name| six.contains(name)));
        // Built at once the map is dense.
        chosen.collect()
    }
}

/// An endpoint in a workload, without its zone; `None` when it is not to be used.
pub(crate) fn of_workload(
    store: &Store,
    config: &Config,
    name: &Arc<WorkloadName>,
    found: Found<'_>,
    port: u16,
) -> Option<Endpoint> {
    match found {
        Found::Pod(pod) => Some(of_pod(store, config, name, pod, port)),
        Found::External(external) => of_external(store, config, name, external, port),
    }
}

fn of_pod(store: &Store, config: &Config, name: &Arc<WorkloadName>, pod: &PodFacts, port: u16) -> Endpoint {
    let template = &pod.template;
    let proxy = template
        .proxy
        .as_ref()
        .filter(|proxy| proxy.control_namespace == config.control_namespace);
    // What bypasses the proxy, or is the proxy's own, is not met with the proxy's identity or protocols.
    let proxy =
        proxy.filter(|proxy| !template.skipped_ports.contains(port) && !proxy.own_ports.contains(&port));
    let (mut identity, mut hint) = (None, ProtocolHint::default());
    if let Some(proxy) = proxy {
        identity = identity_of(store, config, name, template).map(PeerIdentity::ServiceAccount);
        hint = hint_of(store, config, name, &template.workload, port, proxy.inbound_port);
    }
    Endpoint {
        identity,
        hint,
        labels: template.workload.metric_labels.clone(),
        workload: Some(name.clone()),
        place: pod.place.clone(),
        ..unmeshed()
    }
}

/// `None` when the workload does not say what its proxy proves: it must not be met in the clear.
fn of_external(
    store: &Store,
    config: &Config,
    name: &Arc<WorkloadName>,
    external: &ExternalWorkloadFacts,
    port: u16,
) -> Option<Endpoint> {
    let ExternalWorkloadFacts {
        workload,
        ips: _,
        identity,
        inbound_port,
    } = external;
    Some(Endpoint {
        identity: Some(PeerIdentity::External(identity.clone()?)),
        hint: hint_of(store, config, name, workload, port, Some(*inbound_port)),
        labels: workload.metric_labels.clone(),
        workload: Some(name.clone()),
        ..unmeshed()
    })
}

/// What the proxy of a workload understands.
fn hint_of(
    store: &Store,
    config: &Config,
    name: &WorkloadName,
    workload: &WorkloadFacts,
    port: u16,
    inbound_port: Option<u16>,
) -> ProtocolHint {
    let opaque = store.is_opaque_on_workload(config, &name.namespace, workload, port);
    ProtocolHint {
        protocol: if opaque { Protocol::Opaque } else { Protocol::H2 },
        // Without a transport header, an opaque connection still needs the port to carry its target.
        opaque_transport: inbound_port.filter(|_| config.transport_header || opaque),
    }
}

fn identity_of(
    store: &Store,
    config: &Config,
    name: &WorkloadName,
    pod: &PodTemplate,
) -> Option<Arc<Identity>> {
    let account = ServiceAccountRef {
        namespace: name.namespace.as_ref().to_owned(),
        name: pod.service_account.clone(),
    };
    match Identity::for_service_account(&account, &config.control_namespace, &config.trust_domain) {
        Ok(identity) => Some(store.pools.identities.share(identity)),
        Err(error) => {
            tracing::warn!(namespace = %name.namespace, pod = %name.name, %error, "A meshed pod has no usable identity");
            None
        }
    }
}

static NO_LABELS: LazyLock<Arc<Labels>> = LazyLock::new(Arc::default);
static NOWHERE: LazyLock<Arc<Place>> = LazyLock::new(Arc::default);

fn unmeshed() -> Endpoint {
    Endpoint {
        weight: DEFAULT_WEIGHT,
        identity: None,
        hint: ProtocolHint::default(),
        labels: NO_LABELS.clone(),
        workload: None,
        place: NOWHERE.clone(),
    }
}

/// The port of a slice's endpoints that a service's port leads to. A port that the service does not declare leads to
/// the same number on its pods, as in Linkerd; whether it may be used is the outbound policy's affair.
fn target_port(service: &ServiceFacts, slice: &SliceFacts, port: u16) -> Option<u16> {
    match service.port(port) {
        Some(declared) => {
            let by_name = slice.ports.iter().find(|(name, _)| *name == declared.name);
            match (&declared.target, by_name) {
                (_, Some((_, number))) => Some(*number),
                // A slice made by hand may leave its ports unnamed.
                (IntOrString::Int(number), None) if slice.ports.len() == 1 && slice.ports[0].0.is_empty() => {
                    let number = u16::try_from(*number).ok()?;
                    (slice.ports[0].1 == number).then_some(number)
                }
                _ => None,
            }
        }
        None => Some(port),
    }
}
