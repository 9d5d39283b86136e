//! What a proxy decides, apart from how it moves bytes: checked forms of the control plane's messages, route
//! matching, authorization, and load-balancing arithmetic.
//!
//! In go messages of linkerd2-proxy-api, facts about a client and a request, a random number and a time; out come
//! policies, decisions and numbers. This crate opens no socket, reads no clock, and knows neither tokio nor hyper.
//! A message is taken whole or refused whole: every `TryFrom` names the first field that is wrong.

pub mod affinity;
pub mod authorize;
pub mod balance;
pub mod breaker;
pub mod budget;
pub mod endpoint;
pub mod filter;
#[cfg(test)]
mod fuzz;
pub mod inbound;
pub mod invalid;
pub mod meta;
pub mod net;
pub mod outbound;
pub mod path;
pub mod profile;
pub mod ratelimit;
pub mod rewrite;
pub mod route;

pub use authorize::{Client, ClientTls, Denied, Permit};
pub use endpoint::{Endpoint, EndpointSet};
pub use inbound::{DefaultPolicy, ServerPolicy};
pub use invalid::Invalid;
pub use meta::Meta;
pub use outbound::ClientPolicy;
pub use profile::Profile;
