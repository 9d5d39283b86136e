//! The policy of a pod's port: its Server, who may use it, and by which routes.

mod authorization;

use heddle_control_core::{
    Meta, ResourceRef,
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
    facts::{ObjectKey, PodFacts, RouteFacts, RouteKind, ServerFacts},
    status::{rate_limit_in_force, route},
    store::Store,
};

/// The policy; `None` when the pod is not known.
pub(crate) fn compute(store: &Store, config: &Config, key: &ObjectKey, port: u16) -> Option<InboundServer> {
    let pod = store.pods.get(key)?;
    let mut server = match store.server_of(&key.namespace, pod, port) {
        Some((name, server)) => of_server(store, config, &key.namespace, name, server),
        None => of_default(store, config, key, pod, port),
    };
    let http = matches!(
        server.protocol,
        ProxyProtocol::Detect { .. } | ProxyProtocol::Http1 | ProxyProtocol::Http2
    );
    if http && server.http_routes.is_empty() {
        server.http_routes = unrouted(config, pod, port);
    }
    if server.protocol == ProxyProtocol::Grpc && server.grpc_routes.is_empty() {
        server.grpc_routes = vec![InboundRoute::default_for(GrpcMatch::default())];
    }
    server.ips.clone_from(&pod.ips);
    Some(server)
}

fn of_default(store: &Store, config: &Config, key: &ObjectKey, pod: &PodFacts, port: u16) -> InboundServer {
    let inherited = || {
        store
            .namespaces
            .find("", &key.namespace)
            .and_then(|namespace| namespace.default_policy)
    };
    let policy = pod
        .default_policy
        .or_else(inherited)
        .unwrap_or(config.default_policy);
    let opaque = store
        .opaque_ports(config, pod.opaque_ports.as_ref(), &key.namespace)
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

fn attached<'a, M: Clone + 'a>(
    store: &Store,
    config: &Config,
    namespace: &str,
    server: &str,
    routes: impl Iterator<Item = (RouteKind, &'a String, &'a RouteFacts<M>)>,
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
    let inbound = |(kind, name, facts): (RouteKind, &String, &RouteFacts<M>)| {
        let body = facts.body.as_ref()?;
        let rules = body.rules.iter().map(|rule| {
            if rule
                .filters
                .iter()
                .any(|filter| matches!(filter, Filter::ResponseHeaders(_)))
            {
                tracing::debug!(
                    namespace,
                    route = name,
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
        Some(InboundRoute {
            meta: Meta::Resource(ResourceRef {
                group: kind.group(),
                kind: kind.kind(),
                namespace: namespace.to_owned(),
                name: name.clone(),
                section: String::new(),
                port: None,
            }),
            hosts: body.hosts.clone(),
            authorizations: authorization::of_route(store, config, namespace, kind, name),
            rules: rules.collect(),
        })
    };
    routes.into_iter().filter_map(inbound).collect()
}

/// Without routes of its own a port takes every request, and the kubelet's probes even when nobody else may connect.
fn unrouted(config: &Config, pod: &PodFacts, port: u16) -> Vec<InboundRoute<HttpMatch>> {
    let mut routes = Vec::new();
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
    if !matches.is_empty() && !config.probe_networks.is_empty() {
        routes.push(InboundRoute {
            meta: Meta::Default("probe"),
            hosts: Vec::new(),
            authorizations: vec![Authorization {
                reference: AuthorizationRef::Probe,
                networks: config
                    .probe_networks
                    .iter()
                    .copied()
                    .map(NetworkMatch::whole)
                    .collect(),
                clients: Clients::Unauthenticated,
            }],
            rules: vec![InboundRule {
                matches,
                filters: Vec::new(),
            }],
        });
    }
    routes.push(InboundRoute::default_for(HttpMatch::all()));
    routes
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
        name: name.clone(),
        total: limit.total,
        identity: limit.identity,
        overrides: overrides.collect(),
    })
}
