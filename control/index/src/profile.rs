//! The profile of an address or name: a service's, a pod's, or the default.

use std::{net::SocketAddr, sync::Arc};

use heddle_control_core::{
    discover::{ServiceTarget, Target, WorkloadKind, WorkloadName},
    endpoints::Place,
    meta::ResourceRef,
    profile::Profile,
};

use crate::{
    config::Config,
    endpoints,
    facts::{ObjectKey, ServiceFacts},
    store::{Found, Store},
};

/// The profile of a target, for clients in a namespace.
pub(crate) fn compute(store: &Store, config: &Config, client_namespace: &str, target: &Target) -> Profile {
    match target {
        Target::Addr(addr) => of_addr(store, config, client_namespace, *addr),
        Target::Service(target) => of_name(store, config, client_namespace, target),
    }
}

fn of_addr(store: &Store, config: &Config, client_namespace: &str, addr: SocketAddr) -> Profile {
    let (ip, port) = (addr.ip(), addr.port());
    if let Some((key, facts)) = store.service_at(ip) {
        return of_service(store, config, client_namespace, key, facts, port);
    }
    if let Some((key, pod, inside)) = store.pod_at_host_port(addr) {
        let name = store.pools.workloads.share(key.workload(WorkloadKind::Pod));
        return of_workload(store, config, &name, Found::Pod(pod), inside);
    }
    if let Some((name, found)) = store.workload_at(ip) {
        return of_workload(store, config, name, found, addr);
    }
    Profile::unknown(config.opaque_ports.contains(port))
}

fn of_workload(
    store: &Store,
    config: &Config,
    name: &Arc<WorkloadName>,
    found: Found<'_>,
    addr: SocketAddr,
) -> Profile {
    let opaque = store.is_opaque_on_workload(config, &name.namespace, found.workload(), addr.port());
    let Some(mut endpoint) = endpoints::of_workload(store, config, name, found, addr.port()) else {
        return Profile::unknown(opaque);
    };
    let mut labels = endpoint.labels.as_ref().clone();
    labels.insert("namespace".into(), name.namespace.as_ref().to_owned());
    endpoint.labels = Arc::new(labels);
    let node = endpoint.place.node.clone();
    endpoint.place = store.pools.places.share(Place {
        zone: node
            .as_deref()
            .and_then(|node| store.nodes.find("", node)?.zone.clone()),
        node,
        ..Place::default()
    });
    Profile {
        endpoint: Some((addr, Arc::new(endpoint))),
        ..Profile::unknown(opaque)
    }
}

fn of_name(store: &Store, config: &Config, client_namespace: &str, target: &ServiceTarget) -> Profile {
    let ServiceTarget {
        service,
        port,
        instance,
    } = target;
    let key = ObjectKey::new(&service.namespace, &service.name);
    let Some(facts) = store.services.get(&key) else {
        return Profile::unknown(config.opaque_ports.contains(*port));
    };
    if let Some(instance) = instance {
        // The name of one pod behind a headless service: that pod's profile, whoever else has its address by now.
        let all = endpoints::compute(store, config, target, None);
        if let Some((addr, _)) = all.addresses.first_key_value() {
            let mut workloads = endpoints::workloads_at(store, &key, instance, addr.ip());
            return match workloads.find_map(|name| Some((name, store.workload(name)?))) {
                Some((name, found)) => of_workload(store, config, name, found, *addr),
                None => Profile::unknown(config.opaque_ports.contains(addr.port())),
            };
        }
    }
    of_service(store, config, client_namespace, &key, facts, *port)
}

fn of_service(
    store: &Store,
    config: &Config,
    client_namespace: &str,
    key: &ObjectKey,
    facts: &ServiceFacts,
    port: u16,
) -> Profile {
    if facts.port(port).is_none() && !facts.headless() {
        // Linkerd: nothing is said of a port that the service does not declare.
        return Profile::unknown(config.opaque_ports.contains(port));
    }
    let ObjectKey { namespace, name } = key;
    let fqdn = format!("{name}.{namespace}.svc.{}", config.cluster_domain);
    let plain = Profile {
        fully_qualified_name: Some(fqdn.clone()),
        parent: Some(ResourceRef::service(namespace, name, port)),
        ..Profile::unknown(store.is_opaque_on_service(config, key, port))
    };
    // Linkerd: the client's namespace may have a profile of its own for the service.
    let own = |namespace| Some((namespace, store.service_profiles.find(namespace, &fqdn)?));
    let Some((found_in, profile)) = own(client_namespace).or_else(|| own(namespace.as_ref())) else {
        return plain;
    };
    let authority = |text: &String| match text.contains(':') {
        true => text.clone(),
        false => format!("{text}:{port}"),
    };
    Profile {
        opaque: plain.opaque || profile.opaque_ports.contains(port),
        profile: Some(ResourceRef {
            group: "linkerd.io",
            kind: "ServiceProfile",
            namespace: found_in.to_owned(),
            name: fqdn,
            section: String::new(),
            port: None,
        }),
        routes: profile.routes.clone(),
        retry_budget: profile.budget,
        overrides: profile
            .overrides
            .iter()
            .map(|(text, weight)| (authority(text), *weight))
            .collect(),
        ..plain
    }
}
