//! The policy of what a client connects to: a service with its routes, or an address outside the cluster.

mod egress;

use std::net::SocketAddr;

use heddle_control_core::{
    Meta, ResourceRef,
    discover::{NotFound, Target},
    outbound::{
        Backend, BackendTarget, Distribution, OpaqueRoute, OutboundPolicy, OutboundProtocol, OutboundRoute,
        OutboundRule, Retry, Routes, Timeouts,
    },
    route::{Filter, GrpcMatch, HttpMatch},
};

use crate::{
    annotation::{Balancing, RouteTraffic},
    config::Config,
    facts::{BackendKind, BackendRef, ObjectKey, ParentKind, PortFacts, RouteFacts, RouteKind, RuleFacts},
    status::route,
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
        namespace: key.namespace.clone(),
        name: key.name.clone(),
    };
    let service = store.services.get(&key).ok_or_else(missing)?;
    let resource = ResourceRef::service(&key.namespace, &key.name, port);
    let parent = Parent {
        store,
        config,
        client_namespace,
        kind: ParentKind::Service,
        key: &key,
        port,
        backend: Backend::service(resource.clone(), &config.cluster_domain),
        traffic: service.traffic.clone(),
        balancing: service.balancing.clone(),
    };
    let protocol = match service.port(port) {
        Some(declared) => parent.protocol(declared),
        // kube-proxy, too, refuses what the service does not declare; a headless service has no such gate.
        None if service.headless() => parent.detect(),
        None => OutboundProtocol::Opaque(vec![parent.opaque(true)]),
    };
    Ok(OutboundPolicy {
        meta: Meta::Resource(resource),
        protocol,
    })
}

/// A port of a service or of an EgressNetwork, as the parent of routes.
struct Parent<'a> {
    store: &'a Store,
    config: &'a Config,
    client_namespace: &'a str,
    kind: ParentKind,
    key: &'a ObjectKey,
    port: u16,
    /// Where requests go when no route says otherwise.
    backend: Backend,
    traffic: RouteTraffic,
    balancing: Balancing,
}

impl Parent<'_> {
    fn protocol(&self, declared: &PortFacts) -> OutboundProtocol {
        if self.store.is_opaque_on_service(self.config, self.key, self.port) {
            return OutboundProtocol::Opaque(vec![self.opaque(false)]);
        }
        match declared.app_protocol.as_deref() {
            Some("http") => OutboundProtocol::Http1(self.http()),
            Some("kubernetes.io/h2c") => match self.grpc() {
                Some(grpc) => OutboundProtocol::Grpc(grpc),
                None => OutboundProtocol::Http2(self.http()),
            },
            // Linkerd: every other application protocol is the application's own affair.
            Some(_) => OutboundProtocol::Opaque(vec![self.opaque(false)]),
            None => match self.grpc() {
                Some(grpc) => OutboundProtocol::Grpc(grpc),
                None => self.detect(),
            },
        }
    }

    fn detect(&self) -> OutboundProtocol {
        OutboundProtocol::Detect {
            timeout: self.config.detect_timeout,
            http: self.http(),
            opaque: self.opaque(false),
        }
    }

    fn opaque(&self, forbidden: bool) -> OpaqueRoute {
        OpaqueRoute {
            meta: Meta::Default("opaque"),
            backends: Distribution::First(self.backend.clone()),
            forbidden,
        }
    }

    fn http(&self) -> Routes<HttpMatch> {
        let mut routes = self.http_routes();
        if routes.is_empty() {
            routes.push(self.default_route(Meta::Default("http")));
        }
        Routes {
            routes,
            failure_accrual: self.balancing.failure_accrual,
        }
    }

    fn http_routes(&self) -> Vec<OutboundRoute<HttpMatch>> {
        let policy = self
            .store
            .policy_http_routes
            .iter()
            .map(|(ns, name, facts)| (RouteKind::PolicyHttp, ns, name, facts));
        let gateway = self
            .store
            .gateway_http_routes
            .iter()
            .map(|(ns, name, facts)| (RouteKind::GatewayHttp, ns, name, facts));
        self.attached(policy.chain(gateway))
    }

    fn grpc(&self) -> Option<Routes<GrpcMatch>> {
        let routes = self
            .store
            .grpc_routes
            .iter()
            .map(|(ns, name, facts)| (RouteKind::GatewayGrpc, ns, name, facts));
        let routes = self.attached(routes);
        (!routes.is_empty()).then(|| Routes {
            routes,
            failure_accrual: self.balancing.failure_accrual,
        })
    }

    fn default_route(&self, meta: Meta) -> OutboundRoute<HttpMatch> {
        let RouteTraffic {
            timeouts, retry_http, ..
        } = self.traffic.clone();
        let rule = OutboundRule {
            matches: vec![HttpMatch::all()],
            filters: Vec::new(),
            backends: Distribution::First(self.backend.clone()),
            timeouts,
            retry: retry_http,
            mirrors: Vec::new(),
            session: None,
        };
        OutboundRoute {
            meta,
            hosts: Vec::new(),
            rules: vec![rule],
        }
    }

    /// The routes of the client's own namespace when there are any (consumer routes), else those of the service's.
    fn attached<'a, M: Routed + 'a>(
        &self,
        routes: impl Iterator<Item = (RouteKind, &'a String, &'a String, &'a RouteFacts<M>)>,
    ) -> Vec<OutboundRoute<M>> {
        let ours = routes.filter(|(kind, namespace, name, facts)| {
            let heard = **namespace == self.key.namespace || **namespace == *self.client_namespace;
            let route = || ObjectKey::new(namespace, name);
            heard
                && facts.body.is_some()
                && facts
                    .for_port(self.kind, self.key, self.port)
                    .any(|parent| route::is_accepted(self.store, self.config, *kind, &route(), parent))
        });
        let mut ours: Vec<_> = ours.collect();
        if self.client_namespace != self.key.namespace
            && ours.iter().any(|(_, ns, ..)| *ns == self.client_namespace)
        {
            ours.retain(|(_, namespace, ..)| *namespace == self.client_namespace);
        }
        ours.sort_by_key(|(kind, _, name, facts)| (facts.created, *name, *kind));
        ours.into_iter()
            .filter_map(|(kind, namespace, name, facts)| self.route(kind, namespace, name, facts))
            .collect()
    }

    fn route<M: Routed>(
        &self,
        kind: RouteKind,
        namespace: &str,
        name: &str,
        facts: &RouteFacts<M>,
    ) -> Option<OutboundRoute<M>> {
        let body = facts.body.as_ref()?;
        // Linkerd: one annotation on the route replaces all of the service's.
        let traffic = facts.traffic.as_ref().unwrap_or(&self.traffic);
        let rule = |rule: &RuleFacts<M>| {
            let RouteTraffic {
                timeouts,
                retry_http,
                retry_grpc,
            } = traffic.clone();
            OutboundRule {
                matches: rule.matches.clone(),
                filters: rule.filters.clone(),
                backends: self.distribution(namespace, &rule.backends),
                timeouts: Timeouts {
                    request: timeouts.request.or(rule.request_timeout),
                    ..timeouts
                },
                retry: M::retry(retry_http, retry_grpc),
                mirrors: Vec::new(),
                session: None,
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
            return Distribution::First(self.backend.clone());
        }
        let weighted: Vec<_> = references
            .iter()
            .filter(|reference| reference.weight > 0)
            .map(|reference| (self.backend_of(namespace, reference), reference.weight))
            .collect();
        match weighted.is_empty() {
            false => Distribution::Weighted(weighted),
            // The Gateway API: when all weights are 0, requests get a 500.
            true => Distribution::First(failing(
                self.backend.clone(),
                "all backends of the route have weight 0",
            )),
        }
    }

    fn backend_of(&self, namespace: &str, reference: &BackendRef) -> Backend {
        let namespace = reference.namespace.as_deref().unwrap_or(namespace);
        let BackendRef {
            kind,
            name,
            port,
            filters,
            ..
        } = reference;
        let is_own = self.kind == ParentKind::EgressNetwork
            && self.key.namespace == namespace
            && self.key.name == *name;
        if *kind == BackendKind::EgressNetwork && is_own {
            return Backend {
                filters: filters.clone(),
                ..self.backend.clone()
            };
        }
        let service = ResourceRef::service(namespace, name, *port);
        let mut backend = Backend::service(service, &self.config.cluster_domain);
        backend.filters.clone_from(filters);
        let known = self.store.services.find(namespace, name);
        match known {
            _ if *kind != BackendKind::Service => failing(backend, "the backend is no Service with a port"),
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
    fn retry(http: Option<Retry>, grpc: Option<Retry>) -> Option<Retry>;
}

impl Routed for HttpMatch {
    fn retry(http: Option<Retry>, _: Option<Retry>) -> Option<Retry> {
        http
    }
}

impl Routed for GrpcMatch {
    fn retry(_: Option<Retry>, grpc: Option<Retry>) -> Option<Retry> {
        grpc
    }
}

/// The Gateway API: requests to a backend that cannot be found get a 500.
fn failing(mut backend: Backend, message: &str) -> Backend {
    backend.filters.push(Filter::Fail {
        status: 500,
        message: message.to_owned(),
    });
    backend
}

/// An address outside the cluster: as its EgressNetwork says, or forwarded to when there is none.
fn outside(store: &Store, config: &Config, client_namespace: &str, addr: SocketAddr) -> OutboundPolicy {
    let found = egress::find(store, client_namespace, addr.ip());
    let nowhere = ObjectKey::new("", "");
    let (key, allowed, meta, fallback) = match &found {
        None => (
            &nowhere,
            true,
            Meta::Default("egress-fallback"),
            "egress-fallback",
        ),
        Some((key, facts)) => {
            let resource = ResourceRef {
                group: "policy.linkerd.io",
                kind: "EgressNetwork",
                namespace: key.namespace.clone(),
                name: key.name.clone(),
                section: String::new(),
                port: Some(addr.port()),
            };
            let fallback = if facts.allowed {
                "egress-allow"
            } else {
                "egress-deny"
            };
            (key, facts.allowed, Meta::Resource(resource), fallback)
        }
    };
    let parent = Parent {
        store,
        config,
        client_namespace,
        kind: ParentKind::EgressNetwork,
        key,
        port: addr.port(),
        backend: Backend::new(meta.clone(), BackendTarget::Forward(addr)),
        traffic: RouteTraffic::default(),
        balancing: Balancing::default(),
    };
    let opaque = OpaqueRoute {
        meta: Meta::Default(fallback),
        ..parent.opaque(!allowed)
    };
    let protocol = if config.opaque_ports.contains(addr.port()) {
        OutboundProtocol::Opaque(vec![opaque])
    } else {
        let mut routes = parent.http_routes();
        // What no route matches is for the traffic policy to decide.
        let mut rest = parent.default_route(Meta::Default(fallback));
        if !allowed {
            let denied = Filter::Fail {
                status: 403,
                message: "traffic to this destination is denied by its EgressNetwork".into(),
            };
            rest.rules[0].filters.push(denied);
        }
        routes.push(rest);
        let http = Routes {
            routes,
            failure_accrual: None,
        };
        OutboundProtocol::Detect {
            timeout: config.detect_timeout,
            http,
            opaque,
        }
    };
    OutboundPolicy { meta, protocol }
}
