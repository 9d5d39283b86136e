//! Routes: what they are attached to, and what they do.

use std::collections::BTreeMap;

use gateway_api::apis::standard::{
    grpcroutes::GrpcRoute as GatewayGrpcRoute, httproutes::HttpRoute as GatewayHttpRoute,
};
use heddle_control_core::route::{GrpcMatch, HttpMatch};
use heddle_k8s::policy::HttpRoute as PolicyHttpRoute;
use kube::{Resource, ResourceExt as _};
use serde::Serialize;

use super::{ObjectKey, Tracked, service::traffic_annotations};
pub(crate) use crate::route::{BackendKind, BackendRef, Rule as RuleFacts};
use crate::{
    dirty::Dirty,
    route::{Body, ParentRef, ReadMatch, RouteError},
    store::{Store, Table},
};

/// A kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    PolicyHttp,
    GatewayHttp,
    GatewayGrpc,
}

pub(crate) type HttpRouteFacts = RouteFacts<HttpMatch>;
pub(crate) type GrpcRouteFacts = RouteFacts<GrpcMatch>;

#[derive(Clone, Debug, PartialEq)]
pub struct RouteFacts<M> {
    pub(crate) created: i64,
    pub(crate) parents: Vec<Parent>,
    /// `None`: the route says something that cannot be carried out.
    pub(crate) body: Option<Body<M>>,
    /// Annotations about retries and timeouts.
    pub(crate) traffic: BTreeMap<String, String>,
}

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parent {
    pub(crate) kind: ParentKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ParentKind {
    Server,
    Service,
    EgressNetwork,
}

impl RouteKind {
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::PolicyHttp => "policy.linkerd.io",
            Self::GatewayHttp | Self::GatewayGrpc => "gateway.networking.k8s.io",
        }
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::PolicyHttp | Self::GatewayHttp => "HTTPRoute",
            Self::GatewayGrpc => "GRPCRoute",
        }
    }
}

impl<M> RouteFacts<M> {
    /// Whether it is attached to a Server of its own namespace.
    pub(crate) fn is_for_server(&self, namespace: &str, server: &str) -> bool {
        let mut parents = self
            .parents
            .iter()
            .filter(|parent| parent.kind == ParentKind::Server);
        parents.any(|parent| parent.namespace == namespace && parent.name == server)
    }

    /// Whether it is attached to a port of a Service or EgressNetwork.
    pub(crate) fn is_for_port(&self, kind: ParentKind, key: &ObjectKey, port: u16) -> bool {
        let mut parents = self.parents.iter().filter(|parent| parent.kind == kind);
        parents.any(|parent| {
            parent.namespace == key.namespace
                && parent.name == key.name
                && parent.port.is_none_or(|p| p == port)
        })
    }

    fn touch(&self, dirty: &mut Dirty) {
        for parent in &self.parents {
            match parent.kind {
                ParentKind::Server => dirty.namespace_inbound(&parent.namespace),
                ParentKind::Service | ParentKind::EgressNetwork => dirty.all_outbound(),
            }
        }
    }
}

fn read<K, S, M>(object: &K, spec: &S) -> RouteFacts<M>
where
    K: Resource<DynamicType = ()>,
    S: Serialize,
    M: ReadMatch,
{
    let namespace = object.namespace().unwrap_or_default();
    let parse =
        || -> Result<_, RouteError> { Body::read(serde_json::from_value(serde_json::to_value(spec)?)?) };
    let (parents, body) = match parse() {
        Ok((parents, body)) => (parents, Some(body)),
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), namespace, name = object.name_any(), %error, "Ignored a route");
            (Vec::new(), None)
        }
    };
    RouteFacts {
        created: super::created(object),
        parents: parents
            .into_iter()
            .filter_map(|parent| known_parent(parent, &namespace))
            .collect(),
        body,
        traffic: traffic_annotations(object.annotations()),
    }
}

fn known_parent(parent: ParentRef, namespace: &str) -> Option<Parent> {
    let kind = match (parent.group.as_deref(), parent.kind.as_deref()) {
        (Some("policy.linkerd.io"), Some("Server")) => ParentKind::Server,
        (Some("policy.linkerd.io"), Some("EgressNetwork")) => ParentKind::EgressNetwork,
        (Some("" | "core"), Some("Service")) => ParentKind::Service,
        // Gateways and the like are somebody else's.
        _ => return None,
    };
    let named = parent.namespace.filter(|namespace| !namespace.is_empty());
    // A route speaks for Servers of its own namespace only.
    if kind == ParentKind::Server && named.as_deref().is_some_and(|named| named != namespace) {
        return None;
    }
    Some(Parent {
        kind,
        namespace: named.unwrap_or_else(|| namespace.to_owned()),
        name: parent.name,
        port: parent.port,
    })
}

macro_rules! tracked {
    ($kind:ty, $matches:ty, $table:ident) => {
        impl Tracked for $kind {
            type Facts = RouteFacts<$matches>;

            fn facts(&self) -> Self::Facts {
                read(self, &self.spec)
            }

            fn table(store: &mut Store) -> &mut Table<Self::Facts> {
                &mut store.$table
            }

            fn touch(_: &mut Store, _: &ObjectKey, facts: &Self::Facts, _: bool, dirty: &mut Dirty) {
                facts.touch(dirty);
            }
        }
    };
}

tracked!(PolicyHttpRoute, HttpMatch, policy_http_routes);
tracked!(GatewayHttpRoute, HttpMatch, gateway_http_routes);
tracked!(GatewayGrpcRoute, GrpcMatch, grpc_routes);
