//! The policy of what a client connects to: a service with its routes, or an address outside the cluster.

mod traffic;

use std::net::SocketAddr;

use heddle_control_core::{
    Meta, ResourceRef,
    discover::{NotFound, Target},
    outbound::{
        Backend, BackendTarget, Distribution, OpaqueRoute, OutboundPolicy, OutboundProtocol, OutboundRoute, OutboundRule, Retry, Routes,
        Timeouts,
    },
    route::{Filter, GrpcMatch, HttpMatch},
};

use self::traffic::{RouteTraffic, ServiceTraffic};
use crate::{
    config::Config,
    facts::{BackendRef, ObjectKey, PortFacts, RouteFacts, RouteKind, RuleFacts},
    store::Store,
};

/// The policy of a target, for clients in a namespace.
pub(crate) fn compute(store: &Store, config: &Config, client_namespace: &str, target: &Target) -> Result<OutboundPolicy, NotFound> {
    let (key, port) = match target {
        Target::Service(target) => (ObjectKey::new(&target.service.namespace, &target.service.name), target.port),
        Target::Addr(addr) => match store.services_by_ip.get(&addr.ip()) {
            Some(key) => (key.clone(), addr.port()),
            None if config.is_in_cluster(addr.ip()) || addr.ip().is_loopback() => return Err(NotFound::Address(addr.ip())),
            None => return Ok(egress_fallback(config, *addr)),
        },
    };
    let missing = || NotFound::Service { namespace: key.namespace.clone(), name: key.name.clone() };
    let service = store.services.get(&key).ok_or_else(missing)?;
    let parent = Parent { store, config, client_namespace, key: &key, port, traffic: ServiceTraffic::read(&key, &service.traffic) };
    let protocol = match service.port(port) {
        Some(declared) => parent.protocol(declared),
        // kube-proxy, too, refuses what the service does not declare; a headless service has no such gate.
        None if service.headless() => parent.detect(),
        None => OutboundProtocol::Opaque(parent.opaque(true)),
    };
    Ok(OutboundPolicy { meta: Meta::Resource(parent.resource()), protocol })
}

/// A service's port, as the parent of routes.
struct Parent<'a> {
    store: &'a Store,
    config: &'a Config,
    client_namespace: &'a str,
    key: &'a ObjectKey,
    port: u16,
    traffic: ServiceTraffic,
}

impl Parent<'_> {
    fn protocol(&self, declared: &PortFacts) -> OutboundProtocol {
        if self.store.is_opaque_on_service(self.config, self.key, self.port) {
            return OutboundProtocol::Opaque(self.opaque(false));
        }
        match declared.app_protocol.as_deref() {
            Some("http") => OutboundProtocol::Http1(self.http()),
            Some("kubernetes.io/h2c") => match self.grpc() {
                Some(grpc) => OutboundProtocol::Grpc(grpc),
                None => OutboundProtocol::Http2(self.http()),
            },
            // Linkerd: every other application protocol is the application's own affair.
            Some(_) => OutboundProtocol::Opaque(self.opaque(false)),
            None => match self.grpc() {
                Some(grpc) => OutboundProtocol::Grpc(grpc),
                None => self.detect(),
            },
        }
    }

    fn detect(&self) -> OutboundProtocol {
        OutboundProtocol::Detect { timeout: self.config.detect_timeout, http: self.http(), opaque: self.opaque(false) }
    }

    fn resource(&self) -> ResourceRef {
        ResourceRef::service(&self.key.namespace, &self.key.name, self.port)
    }

    fn backend(&self) -> Backend {
        Backend::service(self.resource(), &self.config.cluster_domain)
    }

    fn opaque(&self, forbidden: bool) -> OpaqueRoute {
        OpaqueRoute { meta: Meta::Default("opaque"), backends: Distribution::First(self.backend()), forbidden }
    }

    fn http(&self) -> Routes<HttpMatch> {
        let policy = self.store.policy_http_routes.iter().map(|(ns, name, facts)| (RouteKind::PolicyHttp, ns, name, facts));
        let gateway = self.store.gateway_http_routes.iter().map(|(ns, name, facts)| (RouteKind::GatewayHttp, ns, name, facts));
        let mut routes = self.attached(policy.chain(gateway));
        if routes.is_empty() {
            routes.push(self.default_route(HttpMatch::all()));
        }
        Routes { routes, failure_accrual: self.traffic.failure_accrual }
    }

    fn grpc(&self) -> Option<Routes<GrpcMatch>> {
        let routes = self.store.grpc_routes.iter().map(|(ns, name, facts)| (RouteKind::GatewayGrpc, ns, name, facts));
        let routes = self.attached(routes);
        (!routes.is_empty()).then(|| Routes { routes, failure_accrual: self.traffic.failure_accrual })
    }

    fn default_route<M: Routed>(&self, all: M) -> OutboundRoute<M> {
        let RouteTraffic { timeouts, retry_http, retry_grpc } = self.traffic.route.clone();
        OutboundRoute {
            meta: Meta::Default("http"),
            hosts: Vec::new(),
            rules: vec![OutboundRule {
                matches: vec![all],
                filters: Vec::new(),
                backends: Distribution::First(self.backend()),
                timeouts,
                retry: M::retry(retry_http, retry_grpc),
            }],
        }
    }

    /// The routes of the client's own namespace when there are any (consumer routes), else those of the service's.
    fn attached<'a, M: Routed + 'a>(
        &self,
        routes: impl Iterator<Item = (RouteKind, &'a String, &'a String, &'a RouteFacts<M>)>,
    ) -> Vec<OutboundRoute<M>> {
        let ours = routes.filter(|(_, namespace, _, facts)| {
            let heard = **namespace == self.key.namespace || **namespace == *self.client_namespace;
            heard && facts.body.is_some() && facts.is_for_service(self.key, self.port)
        });
        let mut ours: Vec<_> = ours.collect();
        if self.client_namespace != self.key.namespace && ours.iter().any(|(_, ns, ..)| *ns == self.client_namespace) {
            ours.retain(|(_, namespace, ..)| *namespace == self.client_namespace);
        }
        ours.sort_by_key(|(kind, _, name, facts)| (facts.created, *name, *kind));
        ours.into_iter().filter_map(|(kind, namespace, name, facts)| self.route(kind, namespace, name, facts)).collect()
    }

    fn route<M: Routed>(&self, kind: RouteKind, namespace: &str, name: &str, facts: &RouteFacts<M>) -> Option<OutboundRoute<M>> {
        let body = facts.body.as_ref()?;
        // Linkerd: one annotation on the route replaces all of the service's.
        let own = (!facts.traffic.is_empty()).then(|| RouteTraffic::read(kind.kind(), namespace, name, &facts.traffic));
        let traffic = own.unwrap_or_else(|| self.traffic.route.clone());
        let rule = |rule: &RuleFacts<M>| {
            let RouteTraffic { timeouts, retry_http, retry_grpc } = traffic.clone();
            OutboundRule {
                matches: rule.matches.clone(),
                filters: rule.filters.clone(),
                backends: self.distribution(namespace, &rule.backends),
                timeouts: Timeouts { request: timeouts.request.or(rule.request_timeout), ..timeouts },
                retry: M::retry(retry_http, retry_grpc),
            }
        };
        Some(OutboundRoute {
            meta: Meta::Resource(ResourceRef {
                group: kind.group(),
                kind: kind.kind(),
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                section: String::new(),
                port: None,
            }),
            hosts: body.hosts.clone(),
            rules: body.rules.iter().map(rule).collect(),
        })
    }

    fn distribution(&self, namespace: &str, references: &[BackendRef]) -> Distribution {
        if references.is_empty() {
            return Distribution::First(self.backend());
        }
        let weighted: Vec<_> = references
            .iter()
            .filter(|reference| reference.weight > 0)
            .map(|reference| (self.backend_of(namespace, reference), reference.weight))
            .collect();
        match weighted.is_empty() {
            false => Distribution::Weighted(weighted),
            // The Gateway API: when all weights are 0, requests get a 500.
            true => Distribution::First(failing(self.backend(), "all backends of the route have weight 0")),
        }
    }

    fn backend_of(&self, namespace: &str, reference: &BackendRef) -> Backend {
        let namespace = reference.namespace.as_deref().unwrap_or(namespace);
        let BackendRef { is_service, name, port, filters, .. } = reference;
        let service = ResourceRef::service(namespace, name, *port);
        let mut backend = Backend::service(service, &self.config.cluster_domain);
        backend.filters.clone_from(filters);
        let known = self.store.services.find(namespace, name);
        match known {
            _ if !is_service => failing(backend, "the backend is no Service with a port"),
            None => failing(backend, "the backend's Service does not exist"),
            Some(service) if service.port(*port).is_none() && !service.headless() => {
                failing(backend, "the backend's Service has no such port")
            }
            Some(_) => backend,
        }
    }
}

/// What differs between HTTP and gRPC routes.
trait Routed: Clone {
    fn retry(
        http: Option<Retry>,
        grpc: Option<Retry>,
    ) -> Option<Retry>;
}

impl Routed for HttpMatch {
    fn retry(
        http: Option<Retry>,
        _: Option<Retry>,
    ) -> Option<Retry> {
        http
    }
}

impl Routed for GrpcMatch {
    fn retry(
        _: Option<Retry>,
        grpc: Option<Retry>,
    ) -> Option<Retry> {
        grpc
    }
}

/// The Gateway API: requests to a backend that cannot be found get a 500.
fn failing(mut backend: Backend, message: &str) -> Backend {
    backend.filters.push(Filter::Fail { status: 500, message: message.to_owned() });
    backend
}

/// An address outside the cluster that nothing is said about: forwarded as it is.
fn egress_fallback(config: &Config, addr: SocketAddr) -> OutboundPolicy {
    let meta = Meta::Default("egress-fallback");
    let backend = Backend { meta: meta.clone(), target: BackendTarget::Forward(addr), filters: Vec::new() };
    let rule = OutboundRule {
        matches: vec![HttpMatch::all()],
        filters: Vec::new(),
        backends: Distribution::First(backend.clone()),
        timeouts: Timeouts::default(),
        retry: None,
    };
    let opaque = OpaqueRoute { meta: meta.clone(), backends: Distribution::First(backend), forbidden: false };
    let protocol = if config.opaque_ports.contains(addr.port()) {
        OutboundProtocol::Opaque(opaque)
    } else {
        let route = OutboundRoute { meta: meta.clone(), hosts: Vec::new(), rules: vec![rule] };
        let http = Routes { routes: vec![route], failure_accrual: None };
        OutboundProtocol::Detect { timeout: config.detect_timeout, http, opaque }
    };
    OutboundPolicy { meta, protocol }
}
