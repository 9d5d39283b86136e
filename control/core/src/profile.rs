//! What a client is told about an address before it connects: what it stands for, and whether to look into the bytes.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use http::Method;

use crate::{endpoints::Endpoint, meta::ResourceRef};

/// The profile of an address.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The service's name, `svc.ns.svc.domain`, when the address is a service's.
    pub fully_qualified_name: Option<String>,
    /// Whether the connection's bytes are not to be looked into.
    pub opaque: bool,
    /// The endpoint itself, when the address is a pod's.
    pub endpoint: Option<(SocketAddr, Arc<Endpoint>)>,
    /// The service.
    pub parent: Option<ResourceRef>,
    /// The ServiceProfile that the routes below come from.
    pub profile: Option<ResourceRef>,
    /// Routes of a ServiceProfile.
    pub routes: Vec<ProfileRoute>,
    /// Budget of retries.
    pub retry_budget: RetryBudget,
    /// Where the traffic goes instead, as `(svc.ns.svc.domain:port, weight)`.
    pub overrides: Vec<(String, u32)>,
}

/// How many retries there may be in relation to requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryBudget {
    /// Retries per request.
    pub ratio: f32,
    /// Retries that are always allowed.
    pub min_per_second: u32,
    /// How long a request counts.
    pub ttl: Duration,
}

impl Default for RetryBudget {
    /// Linkerd's: one retry for five requests, and at least ten a second.
    fn default() -> Self {
        Self {
            ratio: 0.2,
            min_per_second: 10,
            ttl: Duration::from_secs(10),
        }
    }
}

/// A route of a ServiceProfile.
#[derive(Clone, Debug, PartialEq)]
pub struct ProfileRoute {
    /// The route's name, a metric label.
    pub name: String,
    /// Which requests it takes.
    pub condition: RequestMatch,
    /// Whether failures may be retried.
    pub retryable: bool,
    /// How long a response may take.
    pub timeout: Option<Duration>,
    /// Which responses count as failures.
    pub responses: Vec<ResponseClass>,
}

/// A condition on requests.
#[derive(Clone, Debug, PartialEq)]
pub enum RequestMatch {
    /// All of them.
    All(Vec<RequestMatch>),
    /// At least one of them.
    Any(Vec<RequestMatch>),
    /// Not this one.
    Not(Box<RequestMatch>),
    /// The path matches this regular expression.
    PathRegex(String),
    /// The method is this one.
    Method(Method),
}

/// Whether a kind of response is a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct ResponseClass {
    /// Which responses are meant.
    pub condition: ResponseMatch,
    /// Whether they are failures.
    pub is_failure: bool,
}

/// A condition on responses.
#[derive(Clone, Debug, PartialEq)]
pub enum ResponseMatch {
    /// All of them.
    All(Vec<ResponseMatch>),
    /// At least one of them.
    Any(Vec<ResponseMatch>),
    /// Not this one.
    Not(Box<ResponseMatch>),
    /// The status is in this range.
    Status {
        /// The first status.
        min: u32,
        /// The last status.
        max: u32,
    },
}

impl Profile {
    /// What is said of an address that nothing is known about.
    pub fn unknown(opaque: bool) -> Self {
        Self {
            fully_qualified_name: None,
            opaque,
            endpoint: None,
            parent: None,
            profile: None,
            routes: Vec::new(),
            retry_budget: RetryBudget::default(),
            overrides: Vec::new(),
        }
    }
}
