//! A port of a service or of an EgressNetwork, as the parent of routes.

use std::sync::Arc;

use heddle_control_core::{
    Meta, ResourceRef,
    outbound::{
        Backend, Distribution, FailureAccrual, LoadBias, OpaqueRoute, OutboundProtocol, OutboundRoute,
        OutboundRule, Retry, Routes, Timeouts, TlsRoute,
    },
    route::{Filter, GrpcMatch, HttpMatch},
};

use crate::{
    annotation::RouteTraffic,
    config::Config,
    facts::{ObjectKey, ParentKind, RouteFacts, RouteKind, RuleFacts, ServiceFacts},
    route::ConnectionMatch,
    status::route,
    store::Store,
};

/// See the module's documentation.
pub(super) struct Parent<'a> {
    pub(super) store: &'a Store,
    pub(super) config: &'a Config,
    pub(super) client_namespace: &'a str,
    pub(super) kind: ParentKind,
    pub(super) key: &'a ObjectKey,
    pub(super) port: u16,
    /// Where requests go when no route says otherwise.
    pub(super) backend: Backend,
    pub(super) fallback: Fallback,
    pub(super) traffic: &'a RouteTraffic,
    pub(super) failure_accrual: Option<FailureAccrual>,
    pub(super) load_bias: Option<LoadBias>,
}

/// What becomes of what no route is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fallback {
    /// It goes to the service, as long as the service has no routes.
    Backend,
    /// It is refused.
    Forbidden,
    /// It goes where it was going, beside all routes.
    EgressAllowed,
    /// It is refused, beside all routes.
    EgressDenied,
    /// It goes where it was going: nothing is known of the target.
    Unknown,
}

impl Fallback {
    /// Whether there is something for the rest even when there are routes.
    fn is_for_the_rest(self) -> bool {
        matches!(self, Self::EgressAllowed | Self::EgressDenied)
    }

    fn denies(self) -> bool {
        matches!(self, Self::Forbidden | Self::EgressDenied)
    }

    /// Linkerd's names of the default routes; they are labels of metrics. In order: of the service, when allowed, when
    /// denied.
    fn meta(self, [service, allowed, denied]: [&'static str; 3]) -> Meta {
        Meta::Default(match self {
            Self::Backend | Self::Forbidden => service,
            Self::EgressAllowed => allowed,
            Self::EgressDenied => denied,
            Self::Unknown => "egress-fallback",
        })
    }
}

impl Parent<'_> {
    /// A service's own settings hold for the service as a backend.
    pub(super) fn balance(&mut self, service: &ServiceFacts) {
        self.backend = self.balanced(self.backend.clone(), service);
    }

    /// What the kinds of routes say that there are: the first kind of these decides.
    pub(super) fn by_routes(&self) -> OutboundProtocol {
        if let Some(grpc) = self.grpc() {
            return OutboundProtocol::Grpc(grpc);
        }
        if !self.http_routes().is_empty() {
            return self.detected();
        }
        let tls = self.tls();
        if !tls.is_empty() {
            return OutboundProtocol::Tls(tls);
        }
        let tcp = self.tcp();
        if !tcp.is_empty() {
            return OutboundProtocol::Opaque(self.with_rest(tcp));
        }
        self.detected()
    }

    pub(super) fn detected(&self) -> OutboundProtocol {
        OutboundProtocol::Detect {
            timeout: self.config.detect_timeout,
            http: self.http(),
            opaque: self.default_opaque(),
        }
    }

    pub(super) fn default_opaque(&self) -> OpaqueRoute {
        OpaqueRoute {
            meta: self
                .fallback
                .meta(["opaq", "tcp-egress-allow", "tcp-egress-deny"]),
            backends: Distribution::first(self.backend.clone()),
            forbidden: self.fallback.denies(),
        }
    }

    pub(super) fn tcp_or_default(&self) -> Vec<OpaqueRoute> {
        match self.tcp() {
            tcp if tcp.is_empty() => vec![self.default_opaque()],
            tcp => self.with_rest(tcp),
        }
    }

    fn with_rest(&self, mut routes: Vec<OpaqueRoute>) -> Vec<OpaqueRoute> {
        if self.fallback.is_for_the_rest() {
            routes.push(self.default_opaque());
        }
        routes
    }

    pub(super) fn http(&self) -> Routes<HttpMatch> {
        let mut routes = self.http_routes();
        if routes.is_empty() || self.fallback.is_for_the_rest() {
            let meta = self
                .fallback
                .meta(["http", "http-egress-allow", "http-egress-deny"]);
            routes.push(self.default_route(meta, HttpMatch::all()));
        }
        Routes {
            routes,
            failure_accrual: self.failure_accrual,
        }
    }

    fn http_routes(&self) -> Vec<OutboundRoute<HttpMatch>> {
        let policy = self.store.policy_http_routes.iter();
        let policy = policy.map(|(ns, name, facts)| (RouteKind::PolicyHttp, ns, name, facts));
        let gateway = self.store.gateway_http_routes.iter();
        let gateway = gateway.map(|(ns, name, facts)| (RouteKind::GatewayHttp, ns, name, facts));
        let routes = self.attached(policy.chain(gateway)).into_iter();
        routes.filter_map(|one| self.route(one)).collect()
    }

    pub(super) fn grpc(&self) -> Option<Routes<GrpcMatch>> {
        let routes = self.store.grpc_routes.iter();
        let routes = routes.map(|(ns, name, facts)| (RouteKind::GatewayGrpc, ns, name, facts));
        let routes = self.attached(routes).into_iter();
        let mut routes: Vec<_> = routes.filter_map(|one| self.route(one)).collect();
        if routes.is_empty() {
            return None;
        }
        if self.fallback.is_for_the_rest() {
            let meta = self
                .fallback
                .meta(["grpc", "grpc-egress-allow", "grpc-egress-deny"]);
            routes.push(self.default_route(meta, GrpcMatch::default()));
        }
        Some(Routes {
            routes,
            failure_accrual: self.failure_accrual,
        })
    }

    /// Nothing is for TLS that no route names: a service's other server names are not served.
    fn tls(&self) -> Vec<TlsRoute> {
        let Store {
            tls_routes,
            tls_routes_v1alpha2,
            ..
        } = self.store;
        let older = tls_routes_v1alpha2
            .iter()
            .filter(|(ns, name, _)| tls_routes.find(ns, name).is_none());
        let all = tls_routes.iter().chain(older);
        let routes = all.map(|(ns, name, facts)| (RouteKind::GatewayTls, ns, name, facts));
        let routes = self.attached(routes).into_iter();
        let mut routes: Vec<_> = routes
            .filter_map(|one| {
                let snis = one.facts.body.as_ref()?.hosts.clone();
                self.connections(one).map(|route| TlsRoute { snis, route })
            })
            .collect();
        if !routes.is_empty() && self.fallback.is_for_the_rest() {
            routes.push(TlsRoute {
                snis: Vec::new(),
                route: OpaqueRoute {
                    meta: self.fallback.meta(["tls", "tls-egress-allow", "tls-egress-deny"]),
                    ..self.default_opaque()
                },
            });
        }
        routes
    }

    fn tcp(&self) -> Vec<OpaqueRoute> {
        let routes = self.store.tcp_routes.iter();
        let routes = routes.map(|(ns, name, facts)| (RouteKind::GatewayTcp, ns, name, facts));
        let routes = self.attached(routes).into_iter();
        routes.filter_map(|one| self.connections(one)).collect()
    }

    /// Linkerd: of a route of connections the first rule holds.
    fn connections(&self, route: Attached<'_, ConnectionMatch>) -> Option<OpaqueRoute> {
        let rule = route.facts.body.as_ref()?.rules.first()?;
        Some(OpaqueRoute {
            meta: route.meta(),
            backends: self.distribution(route.namespace, &rule.backends),
            forbidden: false,
        })
    }

    fn default_route<M: Routed>(&self, meta: Meta, everything: M) -> OutboundRoute<M> {
        let RouteTraffic {
            timeouts,
            retry_http,
            retry_grpc,
        } = self.traffic.clone();
        let filters = match self.fallback.denies() {
            false => Vec::new(),
            true => vec![Filter::Fail {
                status: 403,
                message: "traffic not allowed".to_owned(),
            }],
        };
        let rule = OutboundRule {
            matches: vec![everything],
            filters,
            backends: Distribution::first(self.backend.clone()),
            timeouts,
            retry: M::retry(retry_http, retry_grpc),
            mirrors: Vec::new(),
            session: None,
            allow_l5d_request_headers: self.config.allow_l5d_request_headers,
        };
        OutboundRoute {
            meta,
            hosts: Vec::new(),
            rules: vec![rule],
        }
    }

    /// The routes that this parent has accepted and that are for the client: those of its own namespace (consumer
    /// routes) and those of the parent's (producer routes). Linkerd: the oldest first, then by name. A client's own come
    /// first, because they would be without effect beside older ones for the same requests (GEP-1426).
    fn attached<'a, M: 'a>(
        &self,
        routes: impl Iterator<Item = (RouteKind, &'a Arc<str>, &'a Arc<str>, &'a RouteFacts<M>)>,
    ) -> Vec<Attached<'a, M>> {
        let ours = routes.filter(|(kind, namespace, name, facts)| {
            let heard = **namespace == self.key.namespace || ***namespace == *self.client_namespace;
            let route = || ObjectKey {
                namespace: (*namespace).clone(),
                name: (*name).clone(),
            };
            heard
                && facts.body.is_some()
                && facts
                    .for_port(self.kind, self.key, self.port)
                    .any(|parent| route::is_accepted(self.store, self.config, *kind, &route(), parent))
        });
        let mut ours: Vec<_> = ours
            .map(|(kind, namespace, name, facts)| Attached {
                kind,
                namespace,
                name,
                facts,
            })
            .collect();
        let is_producers = |one: &Attached<'_, M>| one.namespace != self.client_namespace;
        ours.sort_by_key(|one| (is_producers(one), one.facts.created, one.name, one.kind));
        ours
    }

    fn route<M: Routed>(&self, route: Attached<'_, M>) -> Option<OutboundRoute<M>> {
        let body = route.facts.body.as_ref()?;
        let own = route.facts.traffic.as_ref();
        let rule = |rule: &RuleFacts<M>| {
            let RouteTraffic {
                timeouts,
                retry_http,
                retry_grpc,
            } = own.unwrap_or(self.traffic).clone();
            let timeouts = match (own, rule.request_timeout) {
                // Linkerd: a rule with a timeout of its own takes none of its parent's.
                (None, Some(request)) => Timeouts {
                    request: Some(request),
                    ..Timeouts::default()
                },
                (_, request) => Timeouts {
                    request: timeouts.request.or(request),
                    ..timeouts
                },
            };
            OutboundRule {
                matches: rule.matches.clone(),
                filters: rule.filters.clone(),
                backends: self.distribution(route.namespace, &rule.backends),
                timeouts,
                retry: M::retry(retry_http, retry_grpc),
                mirrors: self.mirrors(route.namespace, &rule.mirrors),
                session: rule.session.clone(),
                allow_l5d_request_headers: self.config.allow_l5d_request_headers,
            }
        };
        Some(OutboundRoute {
            meta: route.meta(),
            hosts: body.hosts.clone(),
            rules: body.rules.iter().map(rule).collect(),
        })
    }
}

/// A route of a parent.
struct Attached<'a, M> {
    kind: RouteKind,
    namespace: &'a str,
    name: &'a str,
    facts: &'a RouteFacts<M>,
}

impl<M> Attached<'_, M> {
    fn meta(&self) -> Meta {
        Meta::Resource(ResourceRef {
            group: self.kind.group(),
            kind: self.kind.kind(),
            namespace: self.namespace.to_owned(),
            name: self.name.to_owned(),
            section: String::new(),
            port: None,
        })
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
