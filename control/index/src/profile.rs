//! The profile of an address or name: a service's, a pod's, or the default.

use std::{net::SocketAddr, sync::Arc};

use heddle_control_core::{
    discover::{ServiceTarget, Target},
    meta::ResourceRef,
    profile::Profile,
};

use crate::{
    config::Config,
    endpoints,
    facts::{ObjectKey, ServiceFacts},
    store::Store,
};

pub(crate) fn compute(store: &Store, config: &Config, target: &Target) -> Profile {
    match target {
        Target::Addr(addr) => of_addr(store, config, *addr),
        Target::Service(target) => of_name(store, config, target),
    }
}

fn of_addr(store: &Store, config: &Config, addr: SocketAddr) -> Profile {
    let (ip, port) = (addr.ip(), addr.port());
    if let Some((key, facts)) = store.services_by_ip.get(&ip).and_then(|key| Some((key, store.services.get(key)?))) {
        return of_service(store, config, key, facts, port);
    }
    if let Some((key, pod)) = store.pod_at(ip) {
        let mut endpoint = endpoints::of_pod(store, config, key, pod, port);
        let mut labels = endpoint.labels.as_ref().clone();
        labels.insert("namespace".into(), key.namespace.clone());
        endpoint.labels = Arc::new(labels);
        endpoint.zone = pod.node.as_deref().and_then(|node| store.nodes.find("", node)?.zone.clone());
        let opaque = store.is_opaque_on_pod(config, key, pod, port);
        return Profile { endpoint: Some((addr, Arc::new(endpoint))), ..Profile::unknown(opaque) };
    }
    Profile::unknown(config.opaque_ports.contains(port))
}

fn of_name(store: &Store, config: &Config, target: &ServiceTarget) -> Profile {
    let ServiceTarget { service, port, instance } = target;
    let key = ObjectKey::new(&service.namespace, &service.name);
    let Some(facts) = store.services.get(&key) else { return Profile::unknown(config.opaque_ports.contains(*port)) };
    if instance.is_some() {
        // The name of one pod behind a headless service: the pod's own profile.
        let all = endpoints::compute(store, config, target, None);
        if let Some((addr, _)) = all.addresses.first_key_value() {
            return of_addr(store, config, *addr);
        }
    }
    of_service(store, config, &key, facts, *port)
}

fn of_service(store: &Store, config: &Config, key: &ObjectKey, facts: &ServiceFacts, port: u16) -> Profile {
    if facts.port(port).is_none() && !facts.headless() {
        // Linkerd: nothing is said of a port that the service does not declare.
        return Profile::unknown(config.opaque_ports.contains(port));
    }
    let ObjectKey { namespace, name } = key;
    Profile {
        fully_qualified_name: Some(format!("{name}.{namespace}.svc.{}", config.cluster_domain)),
        parent: Some(ResourceRef::service(namespace, name, port)),
        ..Profile::unknown(store.is_opaque_on_service(config, key, port))
    }
}
