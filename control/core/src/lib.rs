//! The control plane's nouns: what a proxy is told about a server, a destination or a service, without a word about
//! where it comes from or how it travels.
//!
//! The index makes these values from Kubernetes objects; the gRPC layer turns them into messages. In between stand the
//! `Discover` traits in [`discover`]. This crate must never know kube, tonic or protobuf, and does no I/O.

pub mod balance;
pub mod discover;
pub mod endpoints;
pub mod inbound;
pub mod meta;
pub mod outbound;
pub mod policy;
pub mod profile;
pub mod route;

pub use discover::{DiscoverEndpoints, DiscoverInbound, DiscoverOutbound, DiscoverProfiles, NotFound};
pub use meta::{Meta, ResourceRef};
pub use policy::{DefaultPolicy, DefaultPolicyError};
