//! What the gRPC layer asks of the index. Each answer is a [`watch::Receiver`]: the newest value, and a wake-up when it
//! changes. A reader that is slow skips values and never makes anyone wait or queue.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::watch;

use crate::{
    endpoints::{ClientLocation, Endpoints},
    inbound::InboundServer,
    outbound::OutboundPolicy,
    profile::Profile,
};

/// The newest value of something, and its changes. Closed when the thing is gone for good.
pub type Watched<T> = watch::Receiver<Arc<T>>;

/// A service by name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// A port of a service, or of one pod behind a headless service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceTarget {
    /// The service.
    pub service: ServiceName,
    /// The port.
    pub port: u16,
    /// The host name of one pod.
    pub instance: Option<String>,
}

/// What a client connects to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// An address.
    Addr(SocketAddr),
    /// A service by name.
    Service(ServiceTarget),
}

/// A workload that a proxy runs in.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadName {
    /// What it is.
    pub kind: WorkloadKind,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// What a proxy can run in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WorkloadKind {
    /// A pod.
    Pod,
    /// A process outside the cluster that an ExternalWorkload describes.
    ExternalWorkload,
}

/// Why there is nothing to watch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// No such pod or external workload.
    #[error("no {0} is known (yet)")]
    Workload(WorkloadName),
    /// No such service.
    #[error("no service {namespace}/{name} is known")]
    Service {
        /// The namespace asked for.
        namespace: String,
        /// The name asked for.
        name: String,
    },
    /// An ExternalName service has no endpoints in the cluster.
    #[error("service {namespace}/{name} is an ExternalName: it has no endpoints to balance over")]
    ExternalName {
        /// The namespace asked for.
        namespace: String,
        /// The name asked for.
        name: String,
    },
    /// An address inside the cluster that is no service's.
    #[error("{0} is no service's address")]
    Address(IpAddr),
}

impl WorkloadName {
    /// A pod.
    pub fn pod(namespace: &str, name: &str) -> Self {
        Self::new(WorkloadKind::Pod, namespace, name)
    }

    /// An external workload.
    pub fn external(namespace: &str, name: &str) -> Self {
        Self::new(WorkloadKind::ExternalWorkload, namespace, name)
    }

    fn new(kind: WorkloadKind, namespace: &str, name: &str) -> Self {
        Self {
            kind,
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for WorkloadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kind,
            namespace,
            name,
        } = self;
        let kind = match kind {
            WorkloadKind::Pod => "pod",
            WorkloadKind::ExternalWorkload => "external workload",
        };
        write!(f, "{kind} {namespace}/{name}")
    }
}

/// Endpoints of services.
pub trait DiscoverEndpoints: Send + Sync + 'static {
    /// The endpoints behind a service's port.
    ///
    /// # Errors
    /// The service does not exist or has no endpoints by its nature.
    fn endpoints(&self, target: &ServiceTarget) -> Result<Watched<Endpoints>, NotFound>;

    /// Where a node is.
    fn locate(&self, node: &str) -> ClientLocation;
}

/// Profiles of addresses.
pub trait DiscoverProfiles: Send + Sync + 'static {
    /// The profile of a target, for clients in `client_namespace`. Every target has one.
    fn profile(&self, client_namespace: &str, target: &Target) -> Watched<Profile>;
}

/// Policies of the ports of workloads.
pub trait DiscoverInbound: Send + Sync + 'static {
    /// The policy of a workload's port.
    ///
    /// # Errors
    /// The workload is not known.
    fn inbound(&self, workload: &WorkloadName, port: u16) -> Result<Watched<InboundServer>, NotFound>;
}

/// Policies of what clients connect to.
pub trait DiscoverOutbound: Send + Sync + 'static {
    /// The policy of a target, for clients in `client_namespace`.
    ///
    /// # Errors
    /// The target is in the cluster and no service: the proxy then goes by the profile.
    fn outbound(&self, client_namespace: &str, target: &Target) -> Result<Watched<OutboundPolicy>, NotFound>;
}
