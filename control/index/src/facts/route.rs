//! Routes: what they are attached to, and what they do.

use std::borrow::Cow;

use gateway_api::apis::experimental::{
    grpcroutes::GrpcRoute as GatewayGrpcRoute, httproutes::HttpRoute as GatewayHttpRoute,
    tcproutes::TcpRoute, tlsroutes::TlsRoute,
};
use heddle_control_core::route::{GrpcMatch, HttpMatch};
use heddle_k8s::policy::HttpRoute as PolicyHttpRoute;
use kube::{Resource, ResourceExt as _, api::ObjectMeta, core::NamespaceResourceScope};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ObjectKey, Tracked};
pub(crate) use crate::route::{BackendKind, BackendRef, MirrorRef, Rule as RuleFacts};
use crate::{
    annotation::{Annotated, Reader, RouteTraffic},
    dirty::Dirty,
    pool::Pools,
    route::{Body, ConnectionMatch, ParentRef, ReadMatch, RouteError},
    status::{Subject, Told},
    store::{Store, Table},
};

/// A kind of route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteKind {
    PolicyHttp,
    GatewayHttp,
    GatewayGrpc,
    GatewayTls,
    GatewayTcp,
}

pub(crate) type HttpRouteFacts = RouteFacts<HttpMatch>;
pub(crate) type GrpcRouteFacts = RouteFacts<GrpcMatch>;
pub(crate) type ConnectionRouteFacts = RouteFacts<ConnectionMatch>;

#[derive(Clone, Debug, PartialEq)]
pub struct RouteFacts<M> {
    pub(crate) created: i64,
    pub(crate) parents: Vec<Parent>,
    /// `None`: the route says something that cannot be carried out.
    pub(crate) body: Option<Body<M>>,
    /// Why there is no body.
    pub(crate) problem: Option<String>,
    /// What its annotations say; `None`: nothing, so that its parent's hold.
    pub(crate) traffic: Option<RouteTraffic>,
}

/// What a route is attached to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Parent {
    pub(crate) kind: ParentKind,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) port: Option<u16>,
    /// As the route has it: its status repeats that.
    pub(crate) written: ParentRef,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ParentKind {
    Server,
    Service,
    EgressNetwork,
}

impl RouteKind {
    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::PolicyHttp => "policy.linkerd.io",
            Self::GatewayHttp | Self::GatewayGrpc | Self::GatewayTls | Self::GatewayTcp => {
                "gateway.networking.k8s.io"
            }
        }
    }

    pub(crate) fn kind(self) -> &'static str {
        match self {
            Self::PolicyHttp | Self::GatewayHttp => "HTTPRoute",
            Self::GatewayGrpc => "GRPCRoute",
            Self::GatewayTls => "TLSRoute",
            Self::GatewayTcp => "TCPRoute",
        }
    }
}

impl<M> RouteFacts<M> {
    /// Its references to a Server of its own namespace.
    pub(crate) fn for_server(&self, namespace: &str, server: &str) -> impl Iterator<Item = &Parent> {
        let parents = self
            .parents
            .iter()
            .filter(|parent| parent.kind == ParentKind::Server);
        parents.filter(move |parent| parent.namespace == namespace && parent.name == server)
    }

    /// Its references to a port of a Service or EgressNetwork.
    pub(crate) fn for_port(
        &self,
        kind: ParentKind,
        key: &ObjectKey,
        port: u16,
    ) -> impl Iterator<Item = &Parent> {
        let parents = self.parents.iter().filter(move |parent| parent.kind == kind);
        parents.filter(move |parent| {
            *parent.namespace == *key.namespace
                && *parent.name == *key.name
                && parent.port.is_none_or(|p| p == port)
        })
    }

    fn touch(&self, store: &mut Store, kind: RouteKind, key: &ObjectKey, added: bool, dirty: &mut Dirty) {
        for parent in &self.parents {
            // What cannot be carried out stands in no other route's way.
            if self.body.is_some() {
                store.attach(kind, key, parent, added);
            }
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
    let value = serde_json::to_value(spec).unwrap_or_default();
    // Who its parents are is told even of a route that cannot be used: its status says so to each of them.
    let parents = ParentRef::all(&value);
    let parents: Vec<_> = parents
        .into_iter()
        .filter_map(|parent| known_parent(parent, &namespace))
        .collect();
    let on_server = parents.iter().any(|parent| parent.kind == ParentKind::Server);
    let parse = |value| -> Result<_, RouteError> {
        let (_, body) = Body::read(serde_json::from_value(value)?)?;
        match body.outbound_only().filter(|_| on_server) {
            None => Ok(body),
            Some(error) => Err(error),
        }
    };
    let (body, problem) = match parse(value) {
        Ok(body) => (Some(body), None),
        Err(error) => {
            tracing::warn!(kind = %K::kind(&()), namespace, name = object.name_any(), %error, "Ignored a route");
            (None, Some(error.to_string()))
        }
    };
    RouteFacts {
        created: super::created(object),
        parents,
        body,
        problem,
        traffic: traffic(object),
    }
}

/// Linkerd: one annotation on a route replaces all of its parent's.
fn traffic<K: Resource<DynamicType = ()>>(object: &K) -> Option<RouteTraffic> {
    let mut annotations = Reader::new(object.annotations());
    let traffic = annotations.route_traffic();
    super::complain(object, annotations.problems);
    (traffic != RouteTraffic::default()).then_some(traffic)
}

fn known_parent(written: ParentRef, namespace: &str) -> Option<Parent> {
    let kind = match (written.group.as_deref(), written.kind.as_deref()) {
        (Some("policy.linkerd.io"), Some("Server")) => ParentKind::Server,
        (Some("policy.linkerd.io"), Some("EgressNetwork")) => ParentKind::EgressNetwork,
        (Some("" | "core"), Some("Service")) => ParentKind::Service,
        // Gateways and the like are somebody else's.
        _ => return None,
    };
    let named = written
        .namespace
        .as_deref()
        .filter(|namespace| !namespace.is_empty());
    Some(Parent {
        kind,
        namespace: named.unwrap_or(namespace).to_owned(),
        name: written.name.clone(),
        port: written.port,
        written,
    })
}

/// A TLSRoute as clusters have it whose Gateway API is older than the one that made it stable; of the same shape.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TlsRouteV1Alpha2 {
    /// Name, namespace and the like.
    pub metadata: ObjectMeta,
    /// What it says.
    #[serde(default)]
    pub spec: Value,
    /// What is said of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Value>,
}

impl Resource for TlsRouteV1Alpha2 {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind(_: &()) -> Cow<'_, str> {
        "TLSRoute".into()
    }

    fn group(_: &()) -> Cow<'_, str> {
        "gateway.networking.k8s.io".into()
    }

    fn version(_: &()) -> Cow<'_, str> {
        "v1alpha2".into()
    }

    fn plural(_: &()) -> Cow<'_, str> {
        "tlsroutes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

macro_rules! tracked {
    ($kind:ty, $subject:expr, $annotated:expr, $route:expr, $matches:ty, $table:ident) => {
        impl Tracked for $kind {
            type Facts = RouteFacts<$matches>;

            const SUBJECT: Option<Subject> = Some($subject);

            fn told(&self) -> Told {
                Told::of(self, self.status.as_ref()).annotated($annotated, self)
            }

            fn facts(&self, _: &Pools) -> Self::Facts {
                read(self, &self.spec)
            }

            fn table(store: &mut Store) -> &mut Table<Self::Facts> {
                &mut store.$table
            }

            fn touch(
                store: &mut Store,
                key: &ObjectKey,
                facts: &Self::Facts,
                added: bool,
                dirty: &mut Dirty,
            ) {
                facts.touch(store, $route, key, added, dirty);
            }
        }
    };
}

tracked!(
    PolicyHttpRoute,
    Subject::PolicyHttpRoute,
    Annotated::HttpRoute,
    RouteKind::PolicyHttp,
    HttpMatch,
    policy_http_routes
);
tracked!(
    GatewayHttpRoute,
    Subject::HttpRoute,
    Annotated::HttpRoute,
    RouteKind::GatewayHttp,
    HttpMatch,
    gateway_http_routes
);
tracked!(
    GatewayGrpcRoute,
    Subject::GrpcRoute,
    Annotated::GrpcRoute,
    RouteKind::GatewayGrpc,
    GrpcMatch,
    grpc_routes
);
tracked!(
    TlsRoute,
    Subject::TlsRoute,
    Annotated::TlsRoute,
    RouteKind::GatewayTls,
    ConnectionMatch,
    tls_routes
);
tracked!(
    TlsRouteV1Alpha2,
    Subject::TlsRoute,
    Annotated::TlsRoute,
    RouteKind::GatewayTls,
    ConnectionMatch,
    tls_routes_v1alpha2
);
tracked!(
    TcpRoute,
    Subject::TcpRoute,
    Annotated::TcpRoute,
    RouteKind::GatewayTcp,
    ConnectionMatch,
    tcp_routes
);
