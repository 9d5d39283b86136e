//! The kinds of `policy.linkerd.io`: who may talk to which ports, how often, and by which routes.

pub mod authorization_policy;
pub mod egress_network;
pub mod http_local_rate_limit_policy;
pub mod http_route;
pub mod mesh_tls_authentication;
pub mod network_authentication;
pub mod server;
pub mod server_authorization;

pub use authorization_policy::{AuthorizationPolicy, AuthorizationPolicySpec};
pub use egress_network::{EgressNetwork, EgressNetworkSpec, EgressNetworkStatus, TrafficPolicy};
pub use http_local_rate_limit_policy::{
    HttpLocalRateLimitPolicy, HttpLocalRateLimitPolicySpec, HttpLocalRateLimitPolicyStatus,
};
pub use http_route::{HttpRoute, HttpRouteSpec, HttpRouteStatus};
pub use mesh_tls_authentication::{MeshTLSAuthentication, MeshTLSAuthenticationSpec};
pub use network_authentication::{NetworkAuthentication, NetworkAuthenticationSpec};
pub use server::{AccessPolicy, ProxyProtocol, Server, ServerSpec};
pub use server_authorization::{ServerAuthorization, ServerAuthorizationSpec};

/// The API group.
pub const GROUP: &str = "policy.linkerd.io";
