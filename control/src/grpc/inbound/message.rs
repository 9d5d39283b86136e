//! Inbound policies as messages.

use std::collections::HashMap;

use heddle_control_core::{
    Meta, ResourceRef,
    inbound::{
        Authorization, AuthorizationRef, Clients, IdentityMatch, InboundRoute, InboundServer, NetworkMatch,
        ProxyProtocol, RateLimit, ServerRef,
    },
    route::{Filter, GrpcMatch, HttpMatch},
};
use linkerd2_proxy_api::inbound as proto;

use crate::grpc::encode;

const POLICY_GROUP: &str = "policy.linkerd.io";

pub(super) fn server(server: &InboundServer, namespace: &str) -> proto::Server {
    use proto::proxy_protocol::{Detect, Grpc, Http1, Http2, Kind, Opaque, Tls};
    let InboundServer {
        reference,
        protocol,
        authorizations,
        http_routes,
        grpc_routes,
        rate_limit,
        ips,
    } = server;
    let routes = || {
        http_routes
            .iter()
            .map(|route| http_route(route, namespace))
            .collect()
    };
    let limit = || rate_limit.as_ref().map(local_rate_limit);
    let kind = match protocol {
        ProxyProtocol::Detect { timeout } => Kind::Detect(Detect {
            timeout: encode::duration(*timeout),
            http_routes: routes(),
            http_local_rate_limit: limit(),
        }),
        ProxyProtocol::Http1 => Kind::Http1(Http1 {
            routes: routes(),
            local_rate_limit: limit(),
        }),
        ProxyProtocol::Http2 => Kind::Http2(Http2 {
            routes: routes(),
            local_rate_limit: limit(),
        }),
        ProxyProtocol::Grpc => Kind::Grpc(Grpc {
            routes: grpc_routes
                .iter()
                .map(|route| grpc_route(route, namespace))
                .collect(),
        }),
        ProxyProtocol::Opaque => Kind::Opaque(Opaque {}),
        ProxyProtocol::Tls => Kind::Tls(Tls {}),
    };
    proto::Server {
        protocol: Some(proto::ProxyProtocol { kind: Some(kind) }),
        server_ips: ips.iter().map(|ip| (*ip).into()).collect(),
        authorizations: authorizations
            .iter()
            .map(|authorization| authz(authorization, namespace))
            .collect(),
        labels: match reference {
            ServerRef::Default(policy) => labels("", "default", policy.name()),
            ServerRef::Server(name) => labels(POLICY_GROUP, "server", name),
        },
    }
}

fn labels(group: &str, kind: &str, name: &str) -> HashMap<String, String> {
    [("group", group), ("kind", kind), ("name", name)]
        .into_iter()
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn authz(authorization: &Authorization, namespace: &str) -> proto::Authz {
    let Authorization {
        reference,
        networks,
        clients,
    } = authorization;
    // Proxies insist on both: the labels are for metrics, the metadata is what newer ones read.
    let named = |kind: &'static str, name: &str| {
        let resource = ResourceRef {
            group: POLICY_GROUP,
            kind,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            section: String::new(),
            port: None,
        };
        (labels(POLICY_GROUP, kind, name), Meta::Resource(resource))
    };
    let (labels, meta) = match reference {
        AuthorizationRef::Default(policy) => {
            (labels("", "default", policy.name()), Meta::Default(policy.name()))
        }
        AuthorizationRef::Probe => (labels("", "default", "probe"), Meta::Default("probe")),
        AuthorizationRef::AuthorizationPolicy(name) => named("authorizationpolicy", name),
        AuthorizationRef::ServerAuthorization(name) => named("serverauthorization", name),
    };
    proto::Authz {
        networks: networks.iter().map(network).collect(),
        authentication: Some(proto::Authn {
            permit: Some(permit(clients)),
        }),
        labels,
        metadata: Some(encode::metadata(&meta)),
    }
}

fn network(network: &NetworkMatch) -> proto::Network {
    proto::Network {
        net: Some(network.net.into()),
        except: network.except.iter().map(|net| (*net).into()).collect(),
    }
}

fn permit(clients: &Clients) -> proto::authn::Permit {
    use proto::authn::{Permit, PermitMeshTls, PermitUnauthenticated, permit_mesh_tls};
    let mesh = |clients| {
        Permit::MeshTls(PermitMeshTls {
            clients: Some(clients),
        })
    };
    match clients {
        Clients::Unauthenticated => Permit::Unauthenticated(PermitUnauthenticated {}),
        Clients::TlsUnauthenticated => mesh(permit_mesh_tls::Clients::Unauthenticated(
            PermitUnauthenticated {},
        )),
        Clients::Tls(identities) => {
            let mut permit = permit_mesh_tls::PermitClientIdentities::default();
            for identity in identities {
                match identity {
                    IdentityMatch::Exact(name) => {
                        permit.identities.push(proto::Identity { name: name.clone() })
                    }
                    // A suffix without parts is every identity.
                    IdentityMatch::Suffix(parts) => permit
                        .suffixes
                        .push(proto::IdentitySuffix { parts: parts.clone() }),
                }
            }
            mesh(permit_mesh_tls::Clients::Identities(permit))
        }
    }
}

fn http_route(route: &InboundRoute<HttpMatch>, namespace: &str) -> proto::HttpRoute {
    let InboundRoute {
        meta,
        hosts,
        authorizations,
        rules,
    } = route;
    proto::HttpRoute {
        metadata: Some(encode::metadata(meta)),
        hosts: hosts.iter().map(encode::host).collect(),
        authorizations: authorizations
            .iter()
            .map(|authorization| authz(authorization, namespace))
            .collect(),
        rules: rules
            .iter()
            .map(|rule| proto::http_route::Rule {
                matches: rule.matches.iter().map(encode::http_match).collect(),
                filters: rule.filters.iter().filter_map(http_filter).collect(),
            })
            .collect(),
    }
}

fn http_filter(filter: &Filter) -> Option<proto::http_route::Filter> {
    use proto::http_route::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(modifier) => Kind::RequestHeaderModifier(encode::request_headers(modifier)),
        Filter::Redirect(redirect) => Kind::Redirect(encode::redirect(redirect)),
        Filter::Fail { status, message } => Kind::FailureInjector(encode::http_failure(*status, message)),
        // The message has no place for it; the index leaves it out.
        Filter::ResponseHeaders(_) | Filter::Rewrite(_) => return None,
    };
    Some(proto::http_route::Filter { kind: Some(kind) })
}

fn grpc_route(route: &InboundRoute<GrpcMatch>, namespace: &str) -> proto::GrpcRoute {
    let InboundRoute {
        meta,
        hosts,
        authorizations,
        rules,
    } = route;
    proto::GrpcRoute {
        metadata: Some(encode::metadata(meta)),
        hosts: hosts.iter().map(encode::host).collect(),
        authorizations: authorizations
            .iter()
            .map(|authorization| authz(authorization, namespace))
            .collect(),
        rules: rules
            .iter()
            .map(|rule| proto::grpc_route::Rule {
                matches: rule.matches.iter().map(encode::grpc_match).collect(),
                filters: rule.filters.iter().filter_map(grpc_filter).collect(),
            })
            .collect(),
    }
}

fn grpc_filter(filter: &Filter) -> Option<proto::grpc_route::Filter> {
    use proto::grpc_route::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(modifier) => Kind::RequestHeaderModifier(encode::request_headers(modifier)),
        Filter::Fail { status, message } => Kind::FailureInjector(encode::grpc_failure(*status, message)),
        // A gRPC call cannot be redirected, and the message has no place for the other.
        Filter::Redirect(_) | Filter::ResponseHeaders(_) | Filter::Rewrite(_) => return None,
    };
    Some(proto::grpc_route::Filter { kind: Some(kind) })
}

fn local_rate_limit(limit: &RateLimit) -> proto::HttpLocalRateLimit {
    use proto::http_local_rate_limit::{Limit, Override, r#override::ClientIdentities};
    let RateLimit {
        namespace,
        name,
        total,
        identity,
        overrides,
    } = limit;
    let resource = ResourceRef {
        group: POLICY_GROUP,
        kind: "httplocalratelimitpolicy",
        namespace: namespace.clone(),
        name: name.clone(),
        section: String::new(),
        port: None,
    };
    let rate = |requests_per_second| Limit { requests_per_second };
    proto::HttpLocalRateLimit {
        metadata: Some(encode::resource(&resource)),
        total: total.map(rate),
        identity: identity.map(rate),
        overrides: overrides
            .iter()
            .map(|one| Override {
                limit: Some(rate(one.requests_per_second)),
                clients: Some(ClientIdentities {
                    identities: one
                        .clients
                        .iter()
                        .map(|name| proto::Identity { name: name.clone() })
                        .collect(),
                }),
            })
            .collect(),
    }
}
