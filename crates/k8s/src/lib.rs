//! Kubernetes objects of our own API groups and of Linkerd's: their types, and the definitions that install them.
//!
//! In go nothing but the types' declarations; out come types that controllers watch and write, and with [`crds`] the
//! custom resource definitions, whose committed text (`profiles/core/crds`) a test keeps equal to the types. Doc comments
//! on fields are what users read in `kubectl explain`. What the API server can check, the schema says: patterns, bounds,
//! and rules with messages. What only a controller can know (whether a reference leads anywhere) is not here.
//!
//! This crate talks to no cluster and knows no gRPC. A type never fails to read an object that its schema admits.

#![expect(
    unreachable_pub,
    reason = "KubeSchema derives a copy of each type inside a function, with the type's own visibility"
)]
#![expect(
    clippy::duplicated_attributes,
    reason = "each of a kind's printer columns has a type of its own"
)]

mod crd;
pub mod external_workload;
pub mod mesh;
pub mod network;
pub mod policy;
pub mod port;
pub mod reference;
pub mod selector;
pub mod service_profile;
pub mod workload;

pub use crd::crds;
