//! How a service's balancer is bounded, and which requests stick to an endpoint.

use std::time::Duration;

/// Bounds that one client's proxy keeps towards a service; what is absent is unlimited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections to all endpoints together.
    pub connections: Option<u32>,
    /// Requests under way to all endpoints together.
    pub requests: Option<u32>,
    /// Requests that wait for an endpoint.
    pub pending_requests: Option<u32>,
    /// Connections to any one endpoint.
    pub endpoint_connections: Option<u32>,
    /// Requests under way to any one endpoint.
    pub endpoint_requests: Option<u32>,
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
    /// How long a session lives without a request.
    pub idle_timeout: Option<Duration>,
    /// How long a session lives at all.
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
    /// The value of a cookie or header of this name; requests without it are balanced.
    Named(Carrier, String),
    /// The client's address.
    Source,
}

impl Limits {
    /// Whether nothing is bounded.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }
}
