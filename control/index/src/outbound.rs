//! The policy of what a client connects to: a service with its routes, or an address outside the cluster.

mod backend;
mod egress;
mod parent;

use std::net::SocketAddr;

use heddle_control_core::{
    Meta, ResourceRef,
    discover::{NotFound, Target},
    outbound::{Backend, BackendTarget, OutboundPolicy, OutboundProtocol},
};

use self::parent::{Fallback, Parent};
use crate::{
    config::Config,
    facts::{ObjectKey, ParentKind, PortFacts, ServiceFacts},
    store::Store,
};

/// The policy of a target, for clients in a namespace.
pub(crate) fn compute(
    store: &Store,
    config: &Config,
    client_namespace: &str,
    target: &Target,
) -> Result<OutboundPolicy, NotFound> {
    let (key, port) = match target {
        Target::Service(target) => (
            ObjectKey::new(&target.service.namespace, &target.service.name),
            target.port,
        ),
        Target::Addr(addr) => match store.service_at(addr.ip()) {
            Some((key, _)) => (key.clone(), addr.port()),
            None if config.is_in_cluster(addr.ip()) || addr.ip().is_loopback() => {
                return Err(NotFound::Address(addr.ip()));
            }
            None => return Ok(outside(store, config, client_namespace, *addr)),
        },
    };
    let missing = || NotFound::Service {
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
    };
    let service = store.services.get(&key).ok_or_else(missing)?;
    let resource = ResourceRef::service(&key.namespace, &key.name, port);
    let mut parent = Parent {
        store,
        config,
        client_namespace,
        kind: ParentKind::Service,
        key: &key,
        port,
        backend: Backend::service(resource.clone(), &config.cluster_domain),
        fallback: Fallback::Backend,
        traffic: &service.traffic,
        failure_accrual: service.balancing.failure_accrual,
        load_bias: service.balancing.load_bias,
    };
    parent.balance(service);
    let protocol = match service.port(port) {
        Some(declared) => of_port(&parent, declared, service),
        // kube-proxy, too, refuses what the service does not declare; a headless service has no such gate.
        None if service.headless() => parent.detected(),
        None => {
            parent.fallback = Fallback::Forbidden;
            OutboundProtocol::Opaque(vec![parent.default_opaque()])
        }
    };
    Ok(OutboundPolicy {
        meta: Meta::Resource(resource),
        protocol,
    })
}

/// What is spoken on a port that a service declares. Linkerd: what the port says of itself comes before the annotation
/// about opaque ports, and every application protocol that is not known is the application's own affair.
fn of_port(parent: &Parent<'_>, declared: &PortFacts, service: &ServiceFacts) -> OutboundProtocol {
    match declared.app_protocol.as_deref() {
        Some("http") => OutboundProtocol::Http1(parent.http()),
        Some("kubernetes.io/h2c") => match parent.grpc() {
            Some(grpc) => OutboundProtocol::Grpc(grpc),
            None => OutboundProtocol::Http2(parent.http()),
        },
        Some(_) => OutboundProtocol::Opaque(parent.tcp_or_default()),
        None if is_opaque(parent, service) => OutboundProtocol::Opaque(parent.tcp_or_default()),
        None => parent.by_routes(),
    }
}

fn is_opaque(parent: &Parent<'_>, service: &ServiceFacts) -> bool {
    let Parent {
        store, config, key, ..
    } = parent;
    store
        .opaque_ports(config, service.opaque_ports.as_ref(), &key.namespace)
        .contains(parent.port)
}

/// An address outside the cluster: as its EgressNetwork says, or forwarded to when there is none.
fn outside(store: &Store, config: &Config, client_namespace: &str, addr: SocketAddr) -> OutboundPolicy {
    let forward = |meta| Backend::new(meta, BackendTarget::Forward(addr));
    let Some((key, facts)) = egress::find(store, config, client_namespace, addr.ip()) else {
        return unknown(store, config, client_namespace, addr);
    };
    let resource = ResourceRef {
        group: "policy.linkerd.io",
        kind: "EgressNetwork",
        namespace: key.namespace.to_string(),
        name: key.name.to_string(),
        section: String::new(),
        port: Some(addr.port()),
    };
    let meta = Meta::Resource(resource);
    let parent = Parent {
        store,
        config,
        client_namespace,
        kind: ParentKind::EgressNetwork,
        key: &key,
        port: addr.port(),
        backend: forward(meta.clone()),
        fallback: match facts.allowed {
            true => Fallback::EgressAllowed,
            false => Fallback::EgressDenied,
        },
        traffic: &facts.traffic,
        failure_accrual: facts.failure_accrual,
        load_bias: None,
    };
    let opaque_ports = facts.opaque_ports.as_ref().unwrap_or(&config.opaque_ports);
    let protocol = match opaque_ports.contains(addr.port()) {
        true => OutboundProtocol::Opaque(parent.tcp_or_default()),
        false => parent.by_routes(),
    };
    OutboundPolicy { meta, protocol }
}

/// Linkerd: an address that no EgressNetwork is for is forwarded to.
fn unknown(store: &Store, config: &Config, client_namespace: &str, addr: SocketAddr) -> OutboundPolicy {
    let meta = Meta::Default("egress-fallback");
    let nowhere = ObjectKey::new("", "");
    let parent = Parent {
        store,
        config,
        client_namespace,
        kind: ParentKind::EgressNetwork,
        key: &nowhere,
        port: addr.port(),
        backend: Backend::new(meta.clone(), BackendTarget::Forward(addr)),
        fallback: Fallback::Unknown,
        traffic: &Default::default(),
        failure_accrual: None,
        load_bias: None,
    };
    let protocol = match config.opaque_ports.contains(addr.port()) {
        true => OutboundProtocol::Opaque(vec![parent.default_opaque()]),
        false => parent.detected(),
    };
    OutboundPolicy { meta, protocol }
}
