//! What Heddle adds to Linkerd's proxy API: an extension of `OutboundPolicy` that other proxies skip.
//!
//! linkerd2-proxy-api has no place for URL rewrites, mirrored requests, session affinity, limits of connections and
//! requests, response headers of gRPC routes, and gRPC methods by regular expression. They travel in field
//! [`EXTENSION_FIELD`] of the message `OutboundPolicy`. Protobuf readers skip fields that they do not know, so a stock
//! linkerd2-proxy sees the policy without the extension, and Heddle's proxy under Linkerd's control plane sees an empty
//! extension.
//!
//! In go a policy and a checked [`Extension`]; out come bytes ([`encode_policy`]), and the other way round
//! ([`decode_policy`]). Nothing is believed on the way in: indexes must lie inside the policy, names, paths and hosts
//! must be ones, lists and texts are bounded; one violation refuses the message, as one invalid field of the policy
//! itself does. [`PolicyMessage`] is the whole message for those who have a codec of their own: a tonic client decodes
//! `PolicyMessage` instead of `OutboundPolicy` and calls [`PolicyMessage::into_parts`].
//!
//! # The messages
//!
//! `rules` name a rule by the index of its route in the policy's list (of `http1`, `http2` or `grpc`; in `detect`,
//! `http1` and `http2` hold the same list) and by its index in that route. With `backend`, the index in the rule's
//! distribution, an entry speaks of requests to that backend alone. `backends` name a balancer by its discovery path,
//! because the settings are the service's: they hold wherever the policy sends to that path, opaque and TLS routes
//! included.
//!
//! ```protobuf
//! message OutboundPolicy { /* 1: protocol, 2: metadata */ Extension extension = 1000; }
//! message Extension { repeated Rule rules = 1; repeated Balancer balancers = 2; }
//! message Rule {
//!   uint32 route = 1; uint32 rule = 2; optional uint32 backend = 3;
//!   Rewrite rewrite = 4; repeated Mirror mirrors = 5; Persistence session = 6;
//!   http_route.ResponseHeaderModifier response_headers = 7; repeated GrpcMatch grpc_matches = 8;
//! }
//! message Rewrite { optional string host = 1; oneof path { string full = 2; string prefix = 3; } }
//! message Mirror { outbound.Backend backend = 1; uint32 numerator = 2; uint32 denominator = 3; }
//! message GrpcMatch { uint32 index = 1; optional string service = 2; optional string method = 3; }
//! message Balancer { string path = 1; oneof affinity { Persistence persistence = 2; Hash hash = 3; } Limits limits = 4; }
//! message Persistence {
//!   Carrier carrier = 1; string name = 2; Duration idle_timeout = 3; Duration absolute_timeout = 4; bool permanent = 5;
//! }
//! message Hash { HashKey key = 1; string name = 2; }
//! message Limits {
//!   uint32 connections = 1; uint32 requests = 2; uint32 pending_requests = 3;
//!   uint32 endpoint_connections = 4; uint32 endpoint_requests = 5;  // 0: unlimited
//! }
//! enum Carrier { COOKIE = 0; HEADER = 1; }
//! enum HashKey { SOURCE = 0; COOKIE = 1; HEADER = 2; }
//! ```
//!
//! # What a proxy does with it
//!
//! - [`Rewrite`]: after the standard filters of the same rule or backend. `host` becomes the request's authority;
//!   `full` replaces the path, `prefix` replaces the prefix that the rule's match has matched; the query stays.
//! - [`Mirror`]: after all filters and the rewrite, `numerator/denominator` of the requests are sent to `backend`, too.
//!   Answers are thrown away, failures ignored, and the request itself never waits for a copy. A body is copied only as
//!   far as it fits into a bounded buffer; what is larger is not mirrored.
//! - [`Persistence`] (`session`, or of a balancer; the rule's comes first): the answer to a request without a valid
//!   session carries a cookie or header that names the endpoint, opaquely. A request that carries it goes to that endpoint
//!   as long as it is known and ready, and to any other when it is not. A session ends with either timeout.
//! - [`HashKey`]: requests with the same value go to the same endpoint as long as the endpoints stay the same
//!   (consistent, for instance rendezvous hashing). Requests without the cookie or header are balanced as usual. On
//!   connections that are not looked into only [`HashKey::Source`] means anything.
//! - [`Limits`]: counted by the one proxy, towards the balancer's service or any one of its endpoints. An endpoint at
//!   its limit takes part in balancing no more until it is below it. A request beyond a limit of the service waits in
//!   the queue, of at most `pending_requests`; beyond that it fails at once with 503 (gRPC: `UNAVAILABLE`).
//! - `response_headers`: on gRPC routes; HTTP routes have the filter of the standard.
//! - [`GrpcMatchRegex`]: replaces `service` and `method` of a match by regular expressions for the whole name. The
//!   standard match holds the expressions as if they were names, so that a stock proxy never takes that match. The
//!   reader compiles the expressions with a limit of its own.
//!
//! This crate must never know Kubernetes, and does no I/O.

mod check;
mod decode;
mod encode;
mod extension;
mod message;

pub use check::WireError;
pub use extension::{
    Affinity, Balancer, Carrier, Extension, GrpcMatchRegex, HashKey, Limits, Mirror, PathRewrite,
    Persistence, Rewrite, RuleExtension,
};
pub use message::{EXTENSION_FIELD, PolicyMessage};

use bytes::{Buf, Bytes};
use linkerd2_proxy_api::outbound::OutboundPolicy;
use prost::Message as _;

/// Encodes a policy with its extension. An empty extension adds no byte.
pub fn encode_policy(policy: &OutboundPolicy, extension: &Extension) -> Bytes {
    PolicyMessage::new(policy.clone(), extension)
        .encode_to_vec()
        .into()
}

/// Decodes a policy with its extension, which is empty when there is none.
///
/// # Errors
/// When the bytes are no such message, or the extension breaks a rule of this crate.
pub fn decode_policy(bytes: impl Buf) -> Result<(OutboundPolicy, Extension), WireError> {
    PolicyMessage::decode(bytes)?.into_parts()
}

#[cfg(test)]
mod tests;
