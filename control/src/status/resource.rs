//! What the API server calls the kinds that are judged.

use gateway_api::apis::{
    experimental::tcproutes::TcpRoute,
    standard::{grpcroutes::GrpcRoute, httproutes::HttpRoute as GatewayHttpRoute, tlsroutes::TlsRoute},
};
use heddle_control_index::status::Subject;
use heddle_k8s::policy::{AuthorizationPolicy, EgressNetwork, HttpLocalRateLimitPolicy, HttpRoute, Server};
use k8s_openapi::api::core::v1::Service;
use kube::core::ApiResource;

/// The resources whose status is ours to write: the first that the cluster has.
pub(super) fn of(subject: Subject) -> Vec<ApiResource> {
    let newest = regarding(subject);
    match subject {
        Subject::Service => Vec::new(),
        // Older bundles of the Gateway API have no other.
        Subject::TlsRoute => {
            let older = ApiResource {
                version: "v1alpha2".to_owned(),
                api_version: format!("{}/v1alpha2", newest.group),
                ..newest.clone()
            };
            vec![newest, older]
        }
        _ => vec![newest],
    }
}

/// The kind, as Events and metrics name it.
pub(super) fn regarding(subject: Subject) -> ApiResource {
    match subject {
        Subject::PolicyHttpRoute => ApiResource::erase::<HttpRoute>(&()),
        Subject::HttpRoute => ApiResource::erase::<GatewayHttpRoute>(&()),
        Subject::GrpcRoute => ApiResource::erase::<GrpcRoute>(&()),
        Subject::TlsRoute => ApiResource::erase::<TlsRoute>(&()),
        Subject::TcpRoute => ApiResource::erase::<TcpRoute>(&()),
        Subject::EgressNetwork => ApiResource::erase::<EgressNetwork>(&()),
        Subject::RateLimit => ApiResource::erase::<HttpLocalRateLimitPolicy>(&()),
        Subject::Server => ApiResource::erase::<Server>(&()),
        Subject::AuthorizationPolicy => ApiResource::erase::<AuthorizationPolicy>(&()),
        Subject::Service => ApiResource::erase::<Service>(&()),
    }
}

/// A short name for metrics and logs.
pub(super) fn name(subject: Subject) -> &'static str {
    match subject {
        Subject::PolicyHttpRoute => "httproutes.policy.linkerd.io",
        Subject::HttpRoute => "httproutes.gateway.networking.k8s.io",
        Subject::GrpcRoute => "grpcroutes.gateway.networking.k8s.io",
        Subject::TlsRoute => "tlsroutes.gateway.networking.k8s.io",
        Subject::TcpRoute => "tcproutes.gateway.networking.k8s.io",
        Subject::EgressNetwork => "egressnetworks.policy.linkerd.io",
        Subject::RateLimit => "httplocalratelimitpolicies.policy.linkerd.io",
        Subject::Server => "servers.policy.linkerd.io",
        Subject::AuthorizationPolicy => "authorizationpolicies.policy.linkerd.io",
        Subject::Service => "services",
    }
}
