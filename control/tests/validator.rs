//! The validating webhook as API servers and clients meet it: the real program, the profile's own webhook configurations
//! and CRDs, and a real API server that asks it.
//!
//! The API server reaches the webhook through a Service without an address of the cluster: one of type ExternalName,
//! whose name is this host's.

#[path = "injector/https.rs"]
#[expect(dead_code, reason = "the injector's tests need more of it")]
mod https;

mod validator {
    pub(crate) mod admit;
    pub(crate) mod serving;
    pub(crate) mod world;
}
