//! The vocabulary that all of Heddle's programs share: identities, names, annotation and label keys, ports and
//! environment variables.
//!
//! In goes text (a trust domain, a service account, an annotation's value); out come checked types and constants.
//! This crate does no I/O and knows neither Kubernetes clients, nor TLS, nor gRPC. The names are Linkerd's, so that
//! a Linkerd user's manifests, dashboards and proxies work unchanged; what is Heddle's own begins with `heddle.dev/`.

pub mod annotation;
pub mod duration;
pub mod env;
pub mod identity;
pub mod label;
pub mod port;
pub mod portset;

pub use identity::{Identity, IdentityError, PeerId, ServiceAccountRef, SpiffeId, TrustDomain};
pub use portset::{PortSet, PortSetError};

/// The version of all of Heddle's programs and of the images that the bundled profiles name.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Server-side apply's field manager of the reconciler.
pub const FIELD_MANAGER: &str = "heddle";

/// The control plane's namespace when nothing else is said; part of every workload's identity.
pub const CONTROL_NAMESPACE: &str = "linkerd";

/// The namespace of the reconciler itself.
pub const RECONCILER_NAMESPACE: &str = "heddle-system";

/// Audience of the service-account tokens that proxies present to obtain their certificate.
pub const IDENTITY_TOKEN_AUDIENCE: &str = "identity.l5d.io";

/// Namespaces whose pods are never injected, whatever their annotations say. The control plane's own namespace and
/// the reconciler's are added to these by whoever decides.
pub const NEVER_INJECTED_NAMESPACES: [&str; 2] = ["kube-system", "kube-public"];
