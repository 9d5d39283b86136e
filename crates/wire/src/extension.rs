//! The extension as checked values.

use std::{num::NonZeroU32, time::Duration};

use linkerd2_proxy_api::{http_route::ResponseHeaderModifier, outbound::Backend};

/// What a policy says beside the standard message. The crate's documentation says what each part means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extension {
    /// What is special about rules and their backends; each is named once.
    pub rules: Vec<RuleExtension>,
    /// What is special about balancers; each path is named once.
    pub balancers: Vec<Balancer>,
}

/// What is special about a rule, or about requests that it sends to one backend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleExtension {
    /// The route's index.
    pub route: usize,
    /// The rule's index in its route.
    pub rule: usize,
    /// The backend's index in the rule's distribution; absent: the rule itself is meant.
    pub backend: Option<usize>,
    /// How the URL changes.
    pub rewrite: Option<Rewrite>,
    /// Where copies go.
    pub mirrors: Vec<Mirror>,
    /// How sessions stick; of rules only.
    pub session: Option<Persistence>,
    /// How the response's headers change; on gRPC routes only.
    pub response_headers: Option<ResponseHeaderModifier>,
    /// Matches by regular expression; of rules of gRPC routes only.
    pub grpc_matches: Vec<GrpcMatchRegex>,
}

/// A change of the URL; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The host, without a port.
    pub host: Option<String>,
    /// The path.
    pub path: Option<PathRewrite>,
}

/// A change of the path. Both values begin with `/` and have neither query nor fragment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// The whole path becomes this.
    Full(String),
    /// The matched prefix becomes this.
    Prefix(String),
}

/// Where a share of requests is copied to.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// Where; with all that a backend of the policy itself has.
    pub backend: Backend,
    /// The share's numerator, at most the denominator.
    pub numerator: u32,
    /// The share's denominator.
    pub denominator: NonZeroU32,
}

/// Regular expressions for names in a match of a gRPC route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcMatchRegex {
    /// The match's index in its rule.
    pub index: usize,
    /// For the service; absent: any.
    pub service: Option<String>,
    /// For the method; absent: any.
    pub method: Option<String>,
}

/// What is special about a balancer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Balancer {
    /// The path that its endpoints are discovered by.
    pub path: String,
    /// Which requests stick to an endpoint.
    pub affinity: Option<Affinity>,
    /// Its bounds.
    pub limits: Limits,
}

/// Why a request goes to the same endpoint as another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Affinity {
    /// The proxy tells the client which endpoint it was, and the client repeats it.
    Persist(Persistence),
    /// Something in the request is hashed over the endpoints.
    Hash(HashKey),
}

/// A session that the client carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Persistence {
    /// In what.
    pub carrier: Carrier,
    /// The cookie's or header's name.
    pub name: String,
    /// How long a session lives without a request; more than zero.
    pub idle_timeout: Option<Duration>,
    /// How long a session lives at all; more than zero.
    pub absolute_timeout: Option<Duration>,
    /// Whether a cookie outlives the browser; only with an absolute timeout.
    pub permanent: bool,
}

/// A part of a request that carries a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// A cookie.
    Cookie,
    /// A header.
    Header,
}

/// What is hashed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The client's address.
    Source,
    /// The value of a cookie or header of this name.
    Named(Carrier, String),
}

/// Bounds towards a service; what is absent is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections to all endpoints together.
    pub connections: Option<NonZeroU32>,
    /// Requests under way to all endpoints together.
    pub requests: Option<NonZeroU32>,
    /// Requests that wait for an endpoint.
    pub pending_requests: Option<NonZeroU32>,
    /// Connections to any one endpoint.
    pub endpoint_connections: Option<NonZeroU32>,
    /// Requests under way to any one endpoint.
    pub endpoint_requests: Option<NonZeroU32>,
}

impl Extension {
    /// Whether it says nothing.
    pub fn is_empty(&self) -> bool {
        let Self { rules, balancers } = self;
        rules.is_empty() && balancers.is_empty()
    }

    /// What is said of a rule, or of one of its backends.
    pub fn rule(&self, route: usize, rule: usize, backend: Option<usize>) -> Option<&RuleExtension> {
        self.rules
            .iter()
            .find(|one| (one.route, one.rule, one.backend) == (route, rule, backend))
    }

    /// What is said of the balancer of a path.
    pub fn balancer(&self, path: &str) -> Option<&Balancer> {
        self.balancers.iter().find(|one| one.path == path)
    }
}

impl RuleExtension {
    /// Nothing said of this rule or backend, yet.
    pub fn of(route: usize, rule: usize, backend: Option<usize>) -> Self {
        Self {
            route,
            rule,
            backend,
            ..Self::default()
        }
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        let Self {
            route: _,
            rule: _,
            backend: _,
            rewrite,
            mirrors,
            session,
            response_headers,
            grpc_matches,
        } = self;
        rewrite.is_none()
            && mirrors.is_empty()
            && session.is_none()
            && response_headers.is_none()
            && grpc_matches.is_empty()
    }
}
