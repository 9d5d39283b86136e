//! From Kubernetes watch events to what proxies are told.
//!
//! In go objects of the cluster, by [`Cluster::apply`], [`Cluster::delete`] and [`Cluster::reset`]; out come
//! [`watch`](tokio::sync::watch) channels, one per thing that somebody asked about, through the `Discover` traits of
//! `heddle-control-core`. An object is reduced to the facts that matter (`facts`), what many have in common is held once
//! (`pool`), and both are kept in tables (`store`); every answer is a pure function of the tables (`endpoints`, `profile`,
//! `inbound`, `outbound`). A change marks the answers it may touch, these are computed anew, and only those that really
//! differ are published.
//!
//! [`watcher`] is the only part that talks to an API server. This crate must never know tonic or protobuf.

pub mod annotation;
pub mod check;
mod cluster;
mod config;
mod dirty;
mod endpoints;
mod facts;
mod inbound;
mod keyed;
mod outbound;
mod pool;
mod profile;
mod route;
pub mod status;
mod store;
pub mod watcher;

pub use cluster::{Change, Cluster, Listing, Reduced, Sizes};
pub use config::Config;
pub use facts::{ObjectKey, TlsRouteV1Alpha2, Tracked};
pub use route::ParentRef;

#[cfg(test)]
mod tests;
