//! The injector against a real API server: what it makes of pods, and how it keeps its certificate and the caBundle.
//!
//! etcd and an API server are enough. The API server reaches the webhook through a Service without an address of the
//! cluster: one of type ExternalName, whose name is this host's.

mod injector {
    pub(crate) mod admission;
    pub(crate) mod bundle;
    pub(crate) mod cluster;
    pub(crate) mod https;
}
