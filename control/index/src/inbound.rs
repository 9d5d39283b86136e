//! The policy of a workload's port: its Server, who may use it, and by which routes.

mod authorization;

use std::sync::Arc;

use heddle_control_core::{
    DefaultPolicy, Meta, ResourceRef,
    discover::WorkloadName,
    inbound::{
        Authorization, AuthorizationRef, Clients, InboundRoute, InboundRule, InboundServer, NetworkMatch,
        ProxyProtocol, RateLimit, RateLimitOverride, ServerRef,
    },
    route::{Filter, GrpcMatch, HttpMatch, PathMatch},
};
use http::Method;

use self::authorization::default_authorization;
use crate::{
    config::Config,
    facts::{ObjectKey, PodTemplate, RouteFacts, RouteKind, ServerFacts, WorkloadFacts},
    route::ReadMatch,
    status::{rate_limit_in_force, route},
    store::{Found, Store},
};

/// The policy; `None` when the workload is not known.
pub(crate) fn compute(
    store: &Store,
    config: &Config,
    name: &WorkloadName,
    port: u16,
) -> Option<InboundServer> {
    let found = store.workload(name)?;
    let workload = found.workload();
    let selecting = store.server_of(&name.namespace, workload, port);
    let mut server = match selecting {
        Some((server, facts)) => of_server(store, config, &name.namespace, server, facts),
        None => of_default(store, config, &name.namespace, workload, port),
    };
    let probes = match found {
        Found::Pod(pod) => probe_route(config, &pod.template, port),
        Found::External(_) => None,
    };
    let http = matches!(
        server.protocol,
        ProxyProtocol::Detect { .. } | ProxyProtocol::Http1 | ProxyProtocol::Http2
    );
    if http {
        let asked_for = selecting.is_some_and(|(_, facts)| facts.authorize_probes);
        let unrouted = server.http_routes.is_empty();
        // Linkerd: probes pass while there is no route, even when nobody else may connect. A route that cannot be carried
        // out stops other requests, but should not have the pod killed. Last, so that of two equal matches the user's
        // own route is taken.
        if asked_for || server.http_routes.iter().all(is_in_doubt) {
            server.http_routes.extend(probes);
        }
        if unrouted {
            server
                .http_routes
                .push(InboundRoute::default_for(HttpMatch::all()));
        }
    }
    if server.protocol == ProxyProtocol::Grpc && server.grpc_routes.is_empty() {
        server.grpc_routes = vec![InboundRoute::default_for(GrpcMatch::default())];
    }
    // A machine outside may know itself by other addresses than clients do.
    if let Found::Pod(pod) = found {
        server.ips = pod.ips.to_vec();
    }
    Some(server)
}

fn of_default(
    store: &Store,
    config: &Config,
    namespace: &str,
    workload: &WorkloadFacts,
    port: u16,
) -> InboundServer {
    let facts = store.namespaces.find("", namespace);
    let mut policy = workload
        .default_policy
        .or(facts.and_then(|facts| facts.default_policy))
        .unwrap_or(config.default_policy);
    let identity_ports = workload
        .identity_ports
        .as_ref()
        .or(facts.and_then(|facts| facts.identity_ports.as_ref()));
    if identity_ports.is_some_and(|ports| ports.contains(port)) {
        policy = authenticated_only(policy);
    }
    let opaque = store
        .opaque_ports(config, workload.opaque_ports.as_ref(), namespace)
        .contains(port);
    InboundServer {
        reference: ServerRef::Default(policy),
        protocol: if opaque {
            ProxyProtocol::Opaque
        } else {
            ProxyProtocol::Detect {
                timeout: config.detect_timeout,
            }
        },
        authorizations: default_authorization(config, policy).into_iter().collect(),
        http_routes: Vec::new(),
        grpc_routes: Vec::new(),
        rate_limit: None,
        ips: Vec::new(),
    }
}

/// The policy that asks for an identity, and for all else that `policy` asks for. `audit` only watches what a stricter
/// policy would refuse; but here the workload itself refuses, so nobody else is let in.
fn authenticated_only(policy: DefaultPolicy) -> DefaultPolicy {
    match policy {
        DefaultPolicy::Allow { cluster_only, .. } => DefaultPolicy::Allow {
            authenticated_only: true,
            cluster_only,
        },
        DefaultPolicy::Audit => DefaultPolicy::Allow {
            authenticated_only: true,
            cluster_only: false,
        },
        DefaultPolicy::Deny => DefaultPolicy::Deny,
    }
}

fn of_server(
    store: &Store,
    config: &Config,
    namespace: &str,
    name: &str,
    server: &ServerFacts,
) -> InboundServer {
    use heddle_k8s::policy::ProxyProtocol as Spec;
    let protocol = match server.protocol {
        Spec::Unknown => ProxyProtocol::Detect {
            timeout: config.detect_timeout,
        },
        Spec::Http1 => ProxyProtocol::Http1,
        Spec::Http2 => ProxyProtocol::Http2,
        Spec::Grpc => ProxyProtocol::Grpc,
        Spec::Opaque => ProxyProtocol::Opaque,
        Spec::Tls => ProxyProtocol::Tls,
    };
    let mut authorizations = authorization::of_server(store, config, namespace, name, server);
    authorizations.extend(default_authorization(config, server.access));
    InboundServer {
        reference: ServerRef::Server(name.to_owned()),
        protocol,
        authorizations,
        http_routes: http_routes(store, config, namespace, name),
        grpc_routes: grpc_routes(store, config, namespace, name),
        rate_limit: rate_limit(store, config, namespace, name),
        ips: Vec::new(),
    }
}

fn http_routes(
    store: &Store,
    config: &Config,
    namespace: &str,
    server: &str,
) -> Vec<InboundRoute<HttpMatch>> {
    let policy = store
        .policy_http_routes
        .namespace(namespace)
        .map(|(name, facts)| (RouteKind::PolicyHttp, name, facts));
    let gateway = store
        .gateway_http_routes
        .namespace(namespace)
        .map(|(name, facts)| (RouteKind::GatewayHttp, name, facts));
    attached(store, config, namespace, server, policy.chain(gateway))
}

fn grpc_routes(
    store: &Store,
    config: &Config,
    namespace: &str,
    server: &str,
) -> Vec<InboundRoute<GrpcMatch>> {
    let routes = store
        .grpc_routes
        .namespace(namespace)
        .map(|(name, facts)| (RouteKind::GatewayGrpc, name, facts));
    attached(store, config, namespace, server, routes)
}

fn attached<'a, M: ReadMatch + Clone + 'a>(
    store: &Store,
    config: &Config,
    namespace: &str,
    server: &str,
    routes: impl Iterator<Item = (RouteKind, &'a Arc<str>, &'a RouteFacts<M>)>,
) -> Vec<InboundRoute<M>> {
    let mut routes: Vec<_> = routes
        .filter(|(kind, name, facts)| {
            let route = || ObjectKey::new(namespace, name);
            facts
                .for_server(namespace, server)
                .any(|parent| route::is_accepted(store, config, *kind, &route(), parent))
        })
        .collect();
    routes.sort_by_key(|(kind, name, facts)| (facts.created, *name, *kind));
    let inbound = |(kind, name, facts): (RouteKind, &Arc<str>, &RouteFacts<M>)| {
        let meta = Meta::Resource(ResourceRef {
            group: kind.group(),
            kind: kind.kind(),
            namespace: namespace.to_owned(),
            name: name.to_string(),
            section: String::new(),
            port: None,
        });
        let authorizations = authorization::of_route(store, config, namespace, kind, name);
        let Some(body) = &facts.body else {
            return in_doubt(meta, authorizations, facts.problem.as_deref());
        };
        let rules = body.rules.iter().map(|rule| {
            if rule
                .filters
                .iter()
                .any(|filter| matches!(filter, Filter::ResponseHeaders(_)))
            {
                tracing::debug!(
                    namespace,
                    route = %name,
                    "An inbound route cannot change response headers: that filter is left out"
                );
            }
            let filters = rule
                .filters
                .iter()
                .filter(|filter| !matches!(filter, Filter::ResponseHeaders(_)));
            InboundRule {
                matches: rule.matches.clone(),
                filters: filters.cloned().collect(),
            }
        });
        InboundRoute {
            meta,
            hosts: body.hosts.clone(),
            authorizations,
            rules: rules.collect(),
        }
    };
    routes.into_iter().map(inbound).collect()
}

/// A route that cannot be carried out fails what no other route takes: left out, it would open what it closes, because a
/// port without routes takes every request.
fn in_doubt<M: ReadMatch>(
    meta: Meta,
    authorizations: Vec<Authorization>,
    problem: Option<&str>,
) -> InboundRoute<M> {
    let problem = problem.unwrap_or("it cannot be read");
    InboundRoute {
        meta,
        hosts: Vec::new(),
        authorizations,
        rules: vec![InboundRule {
            matches: vec![M::everything()],
            filters: vec![Filter::Fail {
                status: 500,
                message: format!("the route cannot be carried out: {problem}"),
            }],
        }],
    }
}

/// Whether a route was made by [`in_doubt`]; no other fails requests.
fn is_in_doubt<M>(route: &InboundRoute<M>) -> bool {
    let mut filters = route.rules.iter().flat_map(|rule| &rule.filters);
    filters.any(|filter| matches!(filter, Filter::Fail { .. }))
}

/// The route of the kubelet's probes of a port; `None` when it does not probe there.
fn probe_route(config: &Config, pod: &PodTemplate, port: u16) -> Option<InboundRoute<HttpMatch>> {
    let paths = pod.probes.get(&port).into_iter().flatten();
    let matches: Vec<HttpMatch> = paths
        // A proxy matches the path alone; the query of a probe does not take part.
        .map(|path| path.split_once('?').map_or(path.as_str(), |(path, _)| path))
        .map(|path| HttpMatch {
            path: Some(PathMatch::Exact(path.to_owned())),
            method: Some(Method::GET),
            ..HttpMatch::default()
        })
        .collect();
    if matches.is_empty() || config.probe_networks.is_empty() {
        return None;
    }
    let networks = config.probe_networks.iter().copied();
    Some(InboundRoute {
        meta: Meta::Default("probe"),
        hosts: Vec::new(),
        authorizations: vec![Authorization {
            reference: AuthorizationRef::Probe,
            networks: networks.map(NetworkMatch::whole).collect(),
            clients: Clients::Unauthenticated,
        }],
        rules: vec![InboundRule {
            matches,
            filters: Vec::new(),
        }],
    })
}

fn rate_limit(store: &Store, config: &Config, namespace: &str, server: &str) -> Option<RateLimit> {
    let (name, limit) = rate_limit_in_force(store, namespace, server)?;
    let overrides = limit
        .overrides
        .iter()
        .map(|(requests_per_second, accounts)| RateLimitOverride {
            requests_per_second: *requests_per_second,
            clients: accounts
                .iter()
                .map(|account| config.identity(&account.namespace, &account.name))
                .collect(),
        });
    Some(RateLimit {
        namespace: namespace.to_owned(),
        name: name.to_string(),
        total: limit.total,
        identity: limit.identity,
        overrides: overrides.collect(),
    })
}
