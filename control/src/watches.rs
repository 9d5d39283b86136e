//! Which kinds each service watches.

use gateway_api::apis::experimental::{
    grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute, tcproutes::TcpRoute,
    tlsroutes::TlsRoute,
};
use heddle_control_index::{TlsRouteV1Alpha2, watcher::Watchers};
use heddle_k8s::{
    external_workload::ExternalWorkload,
    policy::{
        AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, HttpRoute, MeshTLSAuthentication,
        NetworkAuthentication, Server, ServerAuthorization,
    },
    service_profile::ServiceProfile,
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service},
    discovery::v1::EndpointSlice,
};

/// What both services need.
pub(crate) fn common(watchers: &mut Watchers) {
    watchers.watch::<Namespace>();
    watchers.watch::<Pod>();
    watchers.watch::<ExternalWorkload>();
    watchers.watch::<Service>();
    // A Server may make a port opaque, which is the destination service's affair as well.
    watchers.watch::<Server>();
}

/// What the destination service needs besides.
pub(crate) fn destination(watchers: &mut Watchers) {
    watchers.watch::<Node>();
    watchers.watch::<EndpointSlice>();
    watchers.watch::<ServiceProfile>();
}

/// What the policy service needs besides.
pub(crate) fn policy(watchers: &mut Watchers) {
    watchers.watch::<AuthorizationPolicy>();
    watchers.watch::<ServerAuthorization>();
    watchers.watch::<MeshTLSAuthentication>();
    watchers.watch::<NetworkAuthentication>();
    watchers.watch::<HttpLocalRateLimitPolicy>();
    watchers.watch::<EgressNetwork>();
    watchers.watch::<HttpRoute>();
    watchers.watch::<GatewayHttpRoute>();
    watchers.watch::<GrpcRoute>();
    watchers.watch::<TlsRoute>();
    watchers.watch::<TlsRouteV1Alpha2>();
    watchers.watch::<TcpRoute>();
}
