//! Whether an object can be carried out, judged by the very code that the index reads it by. For admission: nothing here
//! changes the index.

use std::time::Duration;

use heddle_control_core::route::{GrpcMatch, HttpMatch};
use heddle_k8s::{policy::Server, service_profile::ServiceProfile};
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    Cluster, ObjectKey, Tracked,
    facts::read_service_profile,
    pool::Pools,
    route::{self, Body, ReadMatch, RouteError},
    store::Store,
};

/// A kind of route, of one of the two groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// HTTPRoute of `policy.linkerd.io`.
    PolicyHttp,
    /// HTTPRoute of the Gateway API.
    GatewayHttp,
    /// GRPCRoute.
    Grpc,
    /// TLSRoute.
    Tls,
    /// TCPRoute.
    Tcp,
}

/// Why a route cannot be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteProblem {
    /// It says what means nothing.
    Invalid(String),
    /// It asks for what the mesh does not do.
    Unsupported(String),
}

/// Reads a duration of the Gateway API, such as `1m30s`.
///
/// # Errors
/// Anything else; the text says what was expected.
pub fn gateway_duration(text: &str) -> Result<Duration, String> {
    route::gateway_duration(text).map_err(|error| error.to_string())
}

/// What of a ServiceProfile the index ignores.
///
/// # Errors
/// When it cannot be read at all.
pub fn service_profile(object: &Value) -> Result<Vec<String>, String> {
    let profile = ServiceProfile::deserialize(object).map_err(|error| error.to_string())?;
    Ok(read_service_profile(&profile).1)
}

impl RouteKind {
    /// By group and kind, as an AdmissionReview names them.
    pub fn of(group: &str, kind: &str) -> Option<Self> {
        match (group, kind) {
            ("policy.linkerd.io", "HTTPRoute") => Some(Self::PolicyHttp),
            ("gateway.networking.k8s.io", "HTTPRoute") => Some(Self::GatewayHttp),
            ("gateway.networking.k8s.io", "GRPCRoute") => Some(Self::Grpc),
            ("gateway.networking.k8s.io", "TLSRoute") => Some(Self::Tls),
            ("gateway.networking.k8s.io", "TCPRoute") => Some(Self::Tcp),
            _ => None,
        }
    }

    /// The API group, which is also that of parents without one.
    pub fn group(self) -> &'static str {
        match self {
            Self::PolicyHttp => "policy.linkerd.io",
            _ => "gateway.networking.k8s.io",
        }
    }

    /// The kind, as the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::PolicyHttp | Self::GatewayHttp => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
            Self::Tls => "TLSRoute",
            Self::Tcp => "TCPRoute",
        }
    }

    /// Whether the index can read a route's `spec`.
    ///
    /// # Errors
    /// The first thing that it cannot read.
    pub fn read(self, spec: &Value) -> Result<(), RouteProblem> {
        match self {
            Self::PolicyHttp | Self::GatewayHttp => read::<HttpMatch>(spec),
            Self::Grpc => read::<GrpcMatch>(spec),
            // Nothing in them can be wrong that their schema does not see.
            Self::Tls | Self::Tcp => Ok(()),
        }
    }
}

fn read<M: ReadMatch>(spec: &Value) -> Result<(), RouteProblem> {
    let read = || -> Result<_, RouteError> { Body::<M>::read(serde_json::from_value(spec.clone())?) };
    match read() {
        Ok(_) => Ok(()),
        Err(RouteError::Unsupported(what)) => {
            Err(RouteProblem::Unsupported(format!("{what} is not supported")))
        }
        Err(RouteError::Shape(error)) => Err(RouteProblem::Invalid(error.to_string())),
        Err(error @ RouteError::Value { .. }) => Err(RouteProblem::Invalid(error.to_string())),
    }
}

impl Cluster {
    /// Names of the Servers of the same namespace that select a port of a workload which `server` selects, too; also those
    /// whose selector says so for all workloads to come. Only the oldest of them is in force.
    pub fn overlapping_servers(&self, server: &Server) -> Vec<String> {
        self.read(|store| overlapping(store, &ObjectKey::of(server), &server.facts(&Pools::default())))
    }
}

fn overlapping(store: &Store, key: &ObjectKey, facts: &<Server as Tracked>::Facts) -> Vec<String> {
    let pods = store
        .pods
        .namespace(&key.namespace)
        .map(|(_, pod)| &pod.template.workload);
    let external = store.external_workloads.namespace(&key.namespace);
    let external = external.map(|(_, external)| &external.workload);
    let workloads: Vec<_> = pods.chain(external).collect();
    let others = store.servers.namespace(&key.namespace).filter(|(name, other)| {
        let meets = || workloads.iter().any(|workload| facts.meets(other, workload));
        **name != key.name && (facts.selects_alike(other) || meets())
    });
    others.map(|(name, _)| name.to_string()).collect()
}
