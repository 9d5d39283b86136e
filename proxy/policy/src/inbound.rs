//! The policy of one of the pod's ports.

use std::{net::IpAddr, str::FromStr, sync::Arc, time::Duration};

use http::Request;
use ipnet::IpNet;
use linkerd2_proxy_api::inbound as proto;

use crate::{
    Client, Denied, Invalid, Meta, Permit,
    authorize::{self, Authentication, Authorization},
    filter::Filter,
    invalid::{self, duration, each},
    net::{self, Network},
    path,
    ratelimit::RateLimit,
    route::{self, Route, Rule},
};

/// The policy of a port.
#[derive(Clone, Debug)]
pub struct ServerPolicy {
    /// The Server resource, or the default.
    pub meta: Meta,
    /// What the port speaks.
    pub protocol: Protocol,
    /// Who may connect.
    pub authorizations: Arc<[Authorization]>,
    /// The addresses at which connections are taken; none: at all of the pod's.
    pub ips: Arc<[IpAddr]>,
}

/// What a port speaks.
#[derive(Clone, Debug)]
pub enum Protocol {
    /// Whatever the client's first bytes say, if they come within the timeout.
    Detect {
        /// How long to wait for them.
        timeout: Duration,
        /// What holds when it is HTTP.
        http: Http,
    },
    /// HTTP/1.
    Http1(Http),
    /// HTTP/2.
    Http2(Http),
    /// gRPC, which is HTTP/2.
    Grpc(Http),
    /// Bytes.
    Opaque,
    /// The application's own TLS.
    Tls,
}

/// What holds for HTTP on a port.
#[derive(Clone, Debug, Default)]
pub struct Http {
    /// Routes.
    pub routes: Vec<Route<InboundRule>>,
    /// Rate limit.
    pub rate_limit: Option<RateLimit>,
}

/// What a route's rule says.
#[derive(Clone, Debug)]
pub struct InboundRule {
    /// Who may use it, besides those whom the server allows.
    pub authorizations: Arc<[Authorization]>,
    /// What is done to requests.
    pub filters: Vec<Filter>,
}

/// An authorized request.
#[derive(Debug)]
pub struct Allowed<'p> {
    /// The permit.
    pub permit: Permit,
    /// The route taken.
    pub route: &'p Meta,
    /// What is done to the request.
    pub filters: &'p [Filter],
    /// The path prefix by which it matched.
    pub prefix: Option<&'p str>,
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refused<'p> {
    /// No route takes it.
    #[error("no route of server {server} matches the request")]
    NoRoute {
        /// The server's name.
        server: &'p str,
    },
    /// The client may not use the route.
    #[error("not authorized on route {}", .route.name())]
    Denied {
        /// The route.
        route: &'p Meta,
        /// Why.
        #[source]
        denied: Denied,
    },
}

impl ServerPolicy {
    /// Whether connections to this address are taken.
    pub fn takes(&self, ip: IpAddr) -> bool {
        self.ips.is_empty() || self.ips.contains(&ip)
    }

    /// Judges a connection as a whole, for protocols that have no requests. On a port that is known to speak HTTP nobody
    /// may send anything else, which its routes and limits would not see.
    pub fn authorize(&self, client: &Client) -> Result<Permit, Denied> {
        let bytes = match &self.protocol {
            Protocol::Detect { .. } | Protocol::Opaque | Protocol::Tls => &*self.authorizations,
            Protocol::Http1(_) | Protocol::Http2(_) | Protocol::Grpc(_) => &[],
        };
        authorize::judge(&self.meta, bytes, client)
    }

    /// Judges one request.
    pub fn authorize_request<'p, B>(
        &'p self,
        client: &Client,
        req: &Request<B>,
    ) -> Result<Allowed<'p>, Refused<'p>> {
        let routes = match &self.protocol {
            Protocol::Detect { http, .. }
            | Protocol::Http1(http)
            | Protocol::Http2(http)
            | Protocol::Grpc(http) => http.routes.as_slice(),
            Protocol::Opaque | Protocol::Tls => &[],
        };
        let (permit, route, rule) = self.judge_rule(client, route::find(routes, req))?;
        // The application may read the path in another way, by which another rule would hold.
        if route::only(routes).is_none() {
            for path in path::other_readings(req.uri().path()) {
                self.judge_rule(client, route::find_by_path(routes, req, &path))?;
            }
        }
        Ok(Allowed {
            permit,
            route: &route.meta,
            filters: &rule.policy.filters,
            prefix: if rule.policy.filters.is_empty() {
                None
            } else {
                rule.matched_prefix(req)
            },
        })
    }

    fn judge_rule<'p>(
        &'p self,
        client: &Client,
        found: Option<(&'p Route<InboundRule>, &'p Rule<InboundRule>)>,
    ) -> Result<(Permit, &'p Route<InboundRule>, &'p Rule<InboundRule>), Refused<'p>> {
        let (route, rule) = found.ok_or(Refused::NoRoute {
            server: self.meta.name(),
        })?;
        let all = self
            .authorizations
            .iter()
            .chain(rule.policy.authorizations.iter());
        match authorize::judge(&self.meta, all, client) {
            Ok(permit) => Ok((permit, route, rule)),
            Err(denied) => Err(Refused::Denied {
                route: &route.meta,
                denied,
            }),
        }
    }

    /// Whether a client whose request took `route` under an older policy may go on under this one. Where the route is no
    /// longer there, nobody knows which one the request would take: then it may only if all allow it.
    pub fn still_allows(&self, client: &Client, route: &Meta) -> bool {
        let routes = match &self.protocol {
            Protocol::Detect { http, .. }
            | Protocol::Http1(http)
            | Protocol::Http2(http)
            | Protocol::Grpc(http) => http.routes.as_slice(),
            Protocol::Opaque | Protocol::Tls => return self.authorize(client).is_ok(),
        };
        let allows = |one: &Route<InboundRule>| {
            let mut of_rules = one
                .rules
                .iter()
                .flat_map(|rule| rule.policy.authorizations.iter());
            self.authorizations.iter().any(|one| one.fits(client)) || of_rules.any(|one| one.fits(client))
        };
        match routes.iter().find(|one| one.meta == *route) {
            Some(same) => allows(same),
            None => routes.iter().all(allows),
        }
    }

    /// The port's rate limit for HTTP.
    pub fn rate_limit(&self) -> Option<&RateLimit> {
        match &self.protocol {
            Protocol::Detect { http, .. }
            | Protocol::Http1(http)
            | Protocol::Http2(http)
            | Protocol::Grpc(http) => http.rate_limit.as_ref(),
            Protocol::Opaque | Protocol::Tls => None,
        }
    }

    /// A policy that lets nobody in: what a malformed message becomes, since policy must never open by mistake.
    pub fn invalid(detect_timeout: Duration) -> Self {
        Self {
            meta: Meta::default_named("invalid"),
            protocol: Protocol::Detect {
                timeout: detect_timeout,
                http: default_http(),
            },
            authorizations: Arc::new([]),
            ips: Arc::new([]),
        }
    }
}

fn default_http() -> Http {
    let policy = InboundRule {
        authorizations: Arc::new([]),
        filters: Vec::new(),
    };
    let rules = vec![Rule {
        matches: Vec::new(),
        policy,
    }];
    Http {
        routes: vec![Route {
            meta: Meta::default_named("default"),
            hosts: Vec::new(),
            rules,
        }],
        rate_limit: None,
    }
}

/// The policy of ports that no Server selects, and of all ports until the control plane has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultPolicy {
    /// Everyone.
    AllUnauthenticated,
    /// Everyone with an identity.
    AllAuthenticated,
    /// Everyone in the cluster's networks.
    ClusterUnauthenticated,
    /// Everyone in the cluster's networks with an identity.
    ClusterAuthenticated,
    /// Nobody.
    Deny,
    /// Everyone, but said in metrics.
    Audit,
}

/// The text names no default policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no default policy: expected all-unauthenticated, all-authenticated, cluster-unauthenticated, cluster-authenticated, deny or audit"
)]
pub struct DefaultPolicyError(String);

impl DefaultPolicy {
    /// The name, as annotations write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AllUnauthenticated => "all-unauthenticated",
            Self::AllAuthenticated => "all-authenticated",
            Self::ClusterUnauthenticated => "cluster-unauthenticated",
            Self::ClusterAuthenticated => "cluster-authenticated",
            Self::Deny => "deny",
            Self::Audit => "audit",
        }
    }

    /// The policy of a port under this default; opaque ports have no detection.
    pub fn policy(self, cluster_networks: &[IpNet], detect_timeout: Duration, opaque: bool) -> ServerPolicy {
        let cluster = || cluster_networks.iter().copied().map(Network::from).collect();
        let allowed = match self {
            Self::Deny => None,
            Self::AllUnauthenticated | Self::Audit => Some((Network::all(), Authentication::Unauthenticated)),
            Self::AllAuthenticated => Some((Network::all(), Authentication::any_identity())),
            Self::ClusterUnauthenticated => Some((cluster(), Authentication::Unauthenticated)),
            Self::ClusterAuthenticated => Some((cluster(), Authentication::any_identity())),
        };
        let meta = Meta::default_named(self.as_str());
        let authorization = allowed.map(|(networks, authentication)| Authorization {
            meta: meta.clone(),
            networks,
            authentication,
        });
        let protocol = match opaque {
            true => Protocol::Opaque,
            false => Protocol::Detect {
                timeout: detect_timeout,
                http: default_http(),
            },
        };
        ServerPolicy {
            meta,
            protocol,
            authorizations: authorization.into_iter().collect(),
            ips: Arc::new([]),
        }
    }
}

impl FromStr for DefaultPolicy {
    type Err = DefaultPolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [
            Self::AllUnauthenticated,
            Self::AllAuthenticated,
            Self::ClusterUnauthenticated,
            Self::ClusterAuthenticated,
            Self::Deny,
            Self::Audit,
        ];
        all.into_iter()
            .find(|one| one.as_str() == text)
            .ok_or_else(|| DefaultPolicyError(text.to_owned()))
    }
}

impl TryFrom<proto::Server> for ServerPolicy {
    type Error = Invalid;

    fn try_from(server: proto::Server) -> Result<Self, Invalid> {
        use proto::proxy_protocol::Kind;
        let proto::Server {
            protocol,
            server_ips,
            authorizations,
            labels,
        } = server;
        let kind = protocol
            .and_then(|protocol| protocol.kind)
            .ok_or_else(|| Invalid::missing("protocol"))?;
        let http_routes = |routes, limit| http("http_routes", routes, limit, http_route);
        let protocol = match kind {
            Kind::Detect(proto::proxy_protocol::Detect {
                timeout,
                http_routes: routes,
                http_local_rate_limit,
            }) => {
                let timeout = timeout.ok_or_else(|| Invalid::missing("protocol.detect.timeout"))?;
                Protocol::Detect {
                    timeout: duration("protocol.detect.timeout", timeout)?,
                    http: http_routes(routes, http_local_rate_limit)?,
                }
            }
            Kind::Http1(proto::proxy_protocol::Http1 {
                routes,
                local_rate_limit,
            }) => Protocol::Http1(http_routes(routes, local_rate_limit)?),
            Kind::Http2(proto::proxy_protocol::Http2 {
                routes,
                local_rate_limit,
            }) => Protocol::Http2(http_routes(routes, local_rate_limit)?),
            Kind::Grpc(proto::proxy_protocol::Grpc { routes }) => {
                Protocol::Grpc(http("routes", routes, None, grpc_route)?)
            }
            Kind::Opaque(_) => Protocol::Opaque,
            Kind::Tls(_) => Protocol::Tls,
        };
        Ok(Self {
            meta: authorize::labels_meta(&labels).unwrap_or_else(|| Meta::default_named("")),
            protocol,
            authorizations: each("authorizations", authorizations, Authorization::try_from)?.into(),
            ips: each("server_ips", server_ips, net::ip_addr)?.into(),
        })
    }
}

fn http<R>(
    field: &str,
    routes: Vec<R>,
    limit: Option<proto::HttpLocalRateLimit>,
    convert: impl Fn(R) -> Result<Route<InboundRule>, Invalid>,
) -> Result<Http, Invalid> {
    let routes = match routes.is_empty() {
        // A controller that sends no routes has none to restrict requests with.
        true => default_http().routes,
        false => each(field, routes, convert)?,
    };
    Ok(Http {
        routes,
        rate_limit: limit.map(RateLimit::try_from).transpose()?,
    })
}

fn http_route(route: proto::HttpRoute) -> Result<Route<InboundRule>, Invalid> {
    let proto::HttpRoute {
        metadata,
        hosts,
        authorizations,
        rules,
    } = route;
    let authorizations: Arc<[_]> = each("authorizations", authorizations, Authorization::try_from)?.into();
    let rule = |rule: proto::http_route::Rule| {
        Ok(Rule {
            matches: route::matches(rule.matches)?,
            policy: InboundRule {
                authorizations: authorizations.clone(),
                filters: each("filters", rule.filters, Filter::try_from)?,
            },
        })
    };
    mk_route(metadata, hosts, rules, rule)
}

fn grpc_route(route: proto::GrpcRoute) -> Result<Route<InboundRule>, Invalid> {
    let proto::GrpcRoute {
        metadata,
        hosts,
        authorizations,
        rules,
    } = route;
    let authorizations: Arc<[_]> = each("authorizations", authorizations, Authorization::try_from)?.into();
    let rule = |rule: proto::grpc_route::Rule| {
        Ok(Rule {
            matches: route::matches(rule.matches)?,
            policy: InboundRule {
                authorizations: authorizations.clone(),
                filters: each("filters", rule.filters, Filter::try_from)?,
            },
        })
    };
    mk_route(metadata, hosts, rules, rule)
}

/// A route of any kind, from its parts.
pub(crate) fn mk_route<R, P>(
    metadata: Option<linkerd2_proxy_api::meta::Metadata>,
    hosts: Vec<linkerd2_proxy_api::http_route::HostMatch>,
    rules: Vec<R>,
    rule: impl Fn(R) -> Result<Rule<P>, Invalid>,
) -> Result<Route<P>, Invalid> {
    if rules.is_empty() {
        return Err(Invalid::new("rules", "must have at least one rule"));
    }
    Ok(Route {
        meta: Meta::required("metadata", metadata)?,
        hosts: each("hosts", hosts, route::HostMatch::try_from)?,
        rules: invalid::each("rules", rules, rule)?,
    })
}

#[cfg(test)]
mod tests;
