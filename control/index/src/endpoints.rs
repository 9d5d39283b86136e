//! The endpoints behind a service's port, from its slices and the pods they name.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_control_core::{
    discover::ServiceTarget,
    endpoints::{DEFAULT_WEIGHT, Endpoint, Endpoints, Labels, Protocol, ProtocolHint},
};
use heddle_mesh::{Identity, ServiceAccountRef};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::{
    config::Config,
    facts::{ObjectKey, PodFacts, ServiceFacts, SliceFacts},
    store::Store,
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
    let mut addresses = BTreeMap::new();
    for slice in store.slices_of(&key) {
        let Some(port) = target_port(facts, slice, *port) else {
            continue;
        };
        for endpoint in &slice.endpoints {
            if instance.is_some() && *instance != endpoint.hostname {
                continue;
            }
            let pod = match &endpoint.pod {
                // Until the pod is known, so are neither its identity nor its proxy: traffic would go there in the clear.
                Some(pod) => match store.pods.get(pod) {
                    Some(facts) => Some((pod, facts)),
                    None => continue,
                },
                None => None,
            };
            for ip in &endpoint.ips {
                let addr = SocketAddr::new(*ip, port);
                let mut new = match pod {
                    Some((key, pod)) => of_pod(store, config, key, pod, port),
                    None => unmeshed(),
                };
                new.zone.clone_from(&endpoint.zone);
                new.for_zones.clone_from(&endpoint.for_zones);
                if endpoint.node.is_some() {
                    new.node.clone_from(&endpoint.node);
                }
                let known = old
                    .and_then(|old| old.addresses.get(&addr))
                    .filter(|known| ***known == new);
                addresses.insert(addr, known.cloned().unwrap_or_else(|| Arc::new(new)));
            }
        }
    }
    one_family(&mut addresses);
    Endpoints {
        exists: true,
        labels,
        local_only: facts.local_only,
        addresses,
    }
}

/// An endpoint in a pod, without its zone.
pub(crate) fn of_pod(store: &Store, config: &Config, key: &ObjectKey, pod: &PodFacts, port: u16) -> Endpoint {
    let proxy = pod
        .proxy
        .as_ref()
        .filter(|proxy| proxy.control_namespace == config.control_namespace);
    // What bypasses the proxy, or is the proxy's own, is not met with the proxy's identity or protocols.
    let proxy = proxy.filter(|proxy| !pod.skipped_ports.contains(port) && !proxy.own_ports.contains(&port));
    let (mut identity, mut hint) = (None, ProtocolHint::default());
    if let Some(proxy) = proxy {
        identity = identity_of(config, key, pod);
        let opaque = store.is_opaque_on_pod(config, key, pod, port);
        hint = ProtocolHint {
            protocol: if opaque { Protocol::Opaque } else { Protocol::H2 },
            // Without a transport header, an opaque connection still needs the port to carry its target.
            opaque_transport: (config.transport_header || opaque).then_some(proxy.inbound_port),
        };
    }
    Endpoint {
        weight: DEFAULT_WEIGHT,
        identity,
        hint,
        labels: pod.metric_labels.clone(),
        zone: None,
        for_zones: Vec::new(),
        node: pod.node.clone(),
    }
}

fn identity_of(config: &Config, key: &ObjectKey, pod: &PodFacts) -> Option<Identity> {
    let account = ServiceAccountRef {
        namespace: key.namespace.clone(),
        name: pod.service_account.clone(),
    };
    match Identity::for_service_account(&account, &config.control_namespace, &config.trust_domain) {
        Ok(identity) => Some(identity),
        Err(error) => {
            tracing::warn!(namespace = key.namespace, pod = key.name, %error, "A meshed pod has no usable identity");
            None
        }
    }
}

fn unmeshed() -> Endpoint {
    Endpoint {
        weight: DEFAULT_WEIGHT,
        identity: None,
        hint: ProtocolHint::default(),
        labels: Arc::new(Labels::new()),
        zone: None,
        for_zones: Vec::new(),
        node: None,
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

/// A dual-stack pod is one endpoint, not two.
fn one_family(addresses: &mut BTreeMap<SocketAddr, Arc<Endpoint>>) {
    let is_v4 = |addr: &SocketAddr| matches!(addr.ip(), IpAddr::V4(_));
    if addresses.keys().any(is_v4) {
        addresses.retain(|addr, _| is_v4(addr));
    }
}
