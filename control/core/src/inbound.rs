//! What a pod's proxy is told about one of the pod's ports: the protocol, and who may use it.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::{
    meta::Meta,
    policy::DefaultPolicy,
    route::{Filter, GrpcMatch, HostMatch, HttpMatch},
};

/// The policy of one port of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundServer {
    /// What it comes from.
    pub reference: ServerRef,
    /// What is spoken on the port.
    pub protocol: ProxyProtocol,
    /// Who may connect. An empty list lets nobody in.
    pub authorizations: Vec<Authorization>,
    /// HTTP routes, in order of precedence. Never empty where the protocol has HTTP routes.
    pub http_routes: Vec<InboundRoute<HttpMatch>>,
    /// gRPC routes, in order of precedence. Never empty where the protocol is gRPC.
    pub grpc_routes: Vec<InboundRoute<GrpcMatch>>,
    /// How many requests are let in.
    pub rate_limit: Option<RateLimit>,
    /// The pod's addresses.
    pub ips: Vec<IpAddr>,
}

/// What an inbound policy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ServerRef {
    /// No Server selects the port.
    Default(DefaultPolicy),
    /// The Server of this name, in the pod's namespace.
    Server(String),
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// To be found out from the first bytes.
    Detect {
        /// How long to wait for them.
        timeout: Duration,
    },
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Bytes that are not to be looked into.
    Opaque,
    /// TLS of the application's own.
    Tls,
}

/// A set of clients that are let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authorization {
    /// What it comes from.
    pub reference: AuthorizationRef,
    /// Where they must connect from; one match suffices.
    pub networks: Vec<NetworkMatch>,
    /// What they must prove.
    pub clients: Clients,
}

/// What an authorization comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AuthorizationRef {
    /// A default policy.
    Default(DefaultPolicy),
    /// The kubelet's probes.
    Probe,
    /// The AuthorizationPolicy of this name.
    AuthorizationPolicy(String),
    /// The ServerAuthorization of this name.
    ServerAuthorization(String),
}

/// A network, less some parts of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkMatch {
    /// The network.
    pub net: IpNet,
    /// What does not count.
    pub except: Vec<IpNet>,
}

/// What clients must prove.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Clients {
    /// Nothing.
    Unauthenticated,
    /// That they speak mesh TLS, with or without a certificate.
    TlsUnauthenticated,
    /// One of these identities.
    Tls(Vec<IdentityMatch>),
}

/// A set of identities.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IdentityMatch {
    /// This one.
    Exact(String),
    /// All whose last DNS labels are these; without labels, every identity.
    Suffix(Vec<String>),
}

/// A route that requests may take in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRoute<M> {
    /// What it comes from.
    pub meta: Meta,
    /// Hosts it is for; empty means all.
    pub hosts: Vec<HostMatch>,
    /// Who may use it, beside those who may use the whole server.
    pub authorizations: Vec<Authorization>,
    /// Its rules.
    pub rules: Vec<InboundRule<M>>,
}

/// A rule of an [`InboundRoute`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InboundRule<M> {
    /// Which requests; one match suffices.
    pub matches: Vec<M>,
    /// What is done to them.
    pub filters: Vec<Filter>,
}

/// A limit of requests per second and proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The HTTPLocalRateLimitPolicy's namespace.
    pub namespace: String,
    /// The HTTPLocalRateLimitPolicy's name.
    pub name: String,
    /// All requests.
    pub total: Option<u32>,
    /// Each client's.
    pub identity: Option<u32>,
    /// Limits of certain clients.
    pub overrides: Vec<RateLimitOverride>,
}

/// See [`RateLimit::overrides`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimitOverride {
    /// The limit.
    pub requests_per_second: u32,
    /// Identities of the clients.
    pub clients: Vec<String>,
}

impl NetworkMatch {
    /// A whole network.
    pub fn whole(net: IpNet) -> Self {
        Self {
            net,
            except: Vec::new(),
        }
    }

    /// Every address.
    pub fn all() -> Vec<Self> {
        let any =
            |addr: IpAddr| Self::whole(IpNet::new(addr, 0).expect("a prefix of 0 bits fits every address"));
        vec![any(IpAddr::from([0_u8; 4])), any(IpAddr::from([0_u8; 16]))]
    }
}

impl IdentityMatch {
    /// Reads `*`, `*.suffix` or a whole identity, as Linkerd's resources write them.
    ///
    /// DNS names are compared in lower case; SPIFFE IDs as they are. A `*` anywhere else is no pattern but a part of a
    /// name, which no client can have.
    pub fn parse(text: &str) -> Self {
        if text == "*" {
            return Self::Suffix(Vec::new());
        }
        if let Some(suffix) = text.strip_prefix("*.") {
            let suffix = suffix.trim_end_matches('.').to_lowercase();
            let labels: Vec<String> = suffix.split('.').map(str::to_owned).collect();
            if labels.iter().all(|label| !label.is_empty() && label != "*") {
                return Self::Suffix(labels);
            }
        }
        match text.contains("://") {
            true => Self::Exact(text.to_owned()),
            false => Self::Exact(text.trim_end_matches('.').to_lowercase()),
        }
    }
}

impl<M> InboundRoute<M> {
    /// A route for all requests, named `default`.
    pub fn default_for(all: M) -> Self {
        Self {
            meta: Meta::Default("default"),
            hosts: Vec::new(),
            authorizations: Vec::new(),
            rules: vec![InboundRule {
                matches: vec![all],
                filters: Vec::new(),
            }],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_are_exact_or_end_in_a_suffix() {
        assert_eq!(IdentityMatch::parse("*"), IdentityMatch::Suffix(vec![]));
        assert_eq!(
            IdentityMatch::parse("*.ns.x"),
            IdentityMatch::Suffix(vec!["ns".into(), "x".into()])
        );
        assert_eq!(IdentityMatch::parse("A.ns."), IdentityMatch::Exact("a.ns".into()));
        let spiffe = "spiffe://root.linkerd.cluster.local/VM";
        assert_eq!(IdentityMatch::parse(spiffe), IdentityMatch::Exact(spiffe.into()));
        for wrong in ["*ns.x", "a.*.x", "*.", "*.*", "*..x"] {
            assert!(
                matches!(IdentityMatch::parse(wrong), IdentityMatch::Exact(_)),
                "{wrong} was taken for a pattern"
            );
        }
    }
}
