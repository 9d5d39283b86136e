//! Messages of the proxy API as JSON, in the form that `linkerd diagnostics` prints: fields by their protobuf names, what
//! is unset left out, a choice as the name of the field (such as `Kind`) around the name of what was chosen. Addresses and
//! networks are text, where Linkerd prints integers.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use linkerd2_proxy_api::{
    destination, grpc_route, http_route, http_types, inbound, meta, net, opaque_route, outbound, tls_route,
};
use serde_json::{Map, Value, json};

pub(super) trait ToJson {
    /// Null when there is nothing to say.
    fn to_json(&self) -> Value;
}

/// The address, unless it is malformed.
pub(super) fn ip(address: &net::IpAddress) -> Option<IpAddr> {
    Some(match address.ip.as_ref()? {
        net::ip_address::Ip::Ipv4(bits) => Ipv4Addr::from(*bits).into(),
        net::ip_address::Ip::Ipv6(net::IPv6 { first, last }) => {
            Ipv6Addr::from(u128::from(*first) << 64 | u128::from(*last)).into()
        }
    })
}

macro_rules! scalar {
    ($($type:ty),*) => {$(
        impl ToJson for $type {
            fn to_json(&self) -> Value {
                if *self == <$type>::default() { Value::Null } else { json!(self) }
            }
        }
    )*};
}
scalar!(bool, u32, i32, f32, f64, String);

impl ToJson for Vec<u8> {
    fn to_json(&self) -> Value {
        String::from_utf8_lossy(self).into_owned().to_json()
    }
}

impl<T: ToJson> ToJson for Option<T> {
    fn to_json(&self) -> Value {
        self.as_ref().map_or(Value::Null, ToJson::to_json)
    }
}

impl<T: ToJson> ToJson for Box<T> {
    fn to_json(&self) -> Value {
        (**self).to_json()
    }
}

/// A list of messages; an empty message in it is said, for its place counts.
fn list<T: ToJson>(items: &[T]) -> Value {
    if items.is_empty() {
        return Value::Null;
    }
    let said = |value: Value| if value.is_null() { json!({}) } else { value };
    items.iter().map(|item| said(item.to_json())).collect()
}

macro_rules! lists {
    ($($type:ty),* $(,)?) => {$(
        impl ToJson for Vec<$type> {
            fn to_json(&self) -> Value {
                list(self)
            }
        }
    )*};
}

impl ToJson for HashMap<String, String> {
    fn to_json(&self) -> Value {
        if self.is_empty() {
            Value::Null
        } else {
            json!(self.iter().collect::<BTreeMap<_, _>>())
        }
    }
}

impl ToJson for prost_types::Duration {
    fn to_json(&self) -> Value {
        object([("seconds", json!(self.seconds)), ("nanos", self.nanos.to_json())])
    }
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let fields = fields.into_iter().filter(|(_, value)| !value.is_null());
    Value::Object(
        fields
            .map(|(name, value)| (name.to_owned(), value))
            .collect::<Map<_, _>>(),
    )
}

/// A message: its fields, and its choices by the names that Go gives them.
macro_rules! message {
    ($($type:ty { $($field:ident),* $(; $choice:ident as $name:literal)* })*) => {$(
        impl ToJson for $type {
            fn to_json(&self) -> Value {
                object([$((stringify!($field), self.$field.to_json()),)* $(($name, self.$choice.to_json()),)*])
            }
        }
    )*};
}

/// A choice: the name of what was chosen, around it.
macro_rules! choice {
    ($($type:ty { $($variant:ident $(as $name:literal)?),* })*) => {$(
        impl ToJson for $type {
            fn to_json(&self) -> Value {
                match self {
                    $(Self::$variant(chosen) => choice!(@one $variant $($name)?, chosen.to_json()),)*
                }
            }
        }
    )*};
    (@one $variant:ident, $value:expr) => { json!({stringify!($variant): $value}) };
    (@one $variant:ident $name:literal, $value:expr) => { json!({$name: $value}) };
}

impl ToJson for net::IpAddress {
    fn to_json(&self) -> Value {
        json!(ip(self))
    }
}

impl ToJson for net::IpNetwork {
    fn to_json(&self) -> Value {
        let address = self.ip.as_ref().and_then(ip);
        json!(address.map(|address| format!("{address}/{}", self.prefix_len)))
    }
}

impl ToJson for http_types::HttpMethod {
    fn to_json(&self) -> Value {
        use http_types::http_method::{Registered, Type};
        match &self.r#type {
            Some(Type::Registered(number)) => Registered::try_from(*number)
                .map_or_else(|_| json!(number), |method| json!(method.as_str_name())),
            Some(Type::Unregistered(name)) => json!(name),
            None => Value::Null,
        }
    }
}

impl ToJson for http_types::Scheme {
    fn to_json(&self) -> Value {
        use http_types::scheme::{Registered, Type};
        match &self.r#type {
            Some(Type::Registered(number)) => Registered::try_from(*number)
                .map_or_else(|_| json!(number), |scheme| json!(scheme.as_str_name())),
            Some(Type::Unregistered(name)) => json!(name),
            None => Value::Null,
        }
    }
}

lists!(
    String,
    destination::RequestMatch,
    destination::ResponseClass,
    destination::ResponseMatch,
    destination::Route,
    destination::WeightedDst,
    grpc_route::GrpcRouteMatch,
    http_route::HeaderMatch,
    http_route::HostMatch,
    http_route::HttpRouteMatch,
    http_route::QueryParamMatch,
    http_types::headers::Header,
    inbound::Authz,
    inbound::GrpcRoute,
    inbound::HttpRoute,
    inbound::Identity,
    inbound::IdentitySuffix,
    inbound::Network,
    inbound::grpc_route::Filter,
    inbound::grpc_route::Rule,
    inbound::http_local_rate_limit::Override,
    inbound::http_route::Filter,
    inbound::http_route::Rule,
    net::IpAddress,
    net::IpNetwork,
    outbound::GrpcRoute,
    outbound::HttpRoute,
    outbound::OpaqueRoute,
    outbound::TlsRoute,
    outbound::grpc_route::Filter,
    outbound::grpc_route::RouteBackend,
    outbound::grpc_route::Rule,
    outbound::grpc_route::WeightedRouteBackend,
    outbound::http_route::Filter,
    outbound::http_route::RouteBackend,
    outbound::http_route::Rule,
    outbound::http_route::WeightedRouteBackend,
    outbound::http_route::retry::conditions::StatusRange,
    outbound::opaque_route::Filter,
    outbound::opaque_route::RouteBackend,
    outbound::opaque_route::Rule,
    outbound::opaque_route::WeightedRouteBackend,
    outbound::tls_route::Filter,
    outbound::tls_route::RouteBackend,
    outbound::tls_route::Rule,
    outbound::tls_route::WeightedRouteBackend,
    tls_route::SniMatch,
);

message! {
    meta::Metadata { ; kind as "Kind" }
    meta::Resource { group, kind, name, namespace, section, port }
    net::TcpAddress { ip, port }
    opaque_route::Invalid { message }
    opaque_route::Forbidden { }
    tls_route::SniMatch { ; r#match as "Match" }
    tls_route::sni_match::Suffix { reverse_labels }
    http_types::Headers { headers }
    http_types::headers::Header { name, value }
    http_route::HostMatch { ; r#match as "Match" }
    http_route::host_match::Suffix { reverse_labels }
    http_route::HttpRouteMatch { path, headers, query_params, method }
    http_route::PathMatch { ; kind as "Kind" }
    http_route::HeaderMatch { name; value as "Value" }
    http_route::QueryParamMatch { name; value as "Value" }
    http_route::RequestHeaderModifier { add, set, remove }
    http_route::ResponseHeaderModifier { add, set, remove }
    http_route::RequestRedirect { scheme, host, path, port, status }
    http_route::PathModifier { ; replace as "Replace" }
    http_route::HttpFailureInjector { status, message, ratio }
    http_route::Ratio { numerator, denominator }
    http_route::Timeouts { response, request, idle }
    grpc_route::GrpcRouteMatch { rpc, headers }
    grpc_route::GrpcRpcMatch { service, method }
    grpc_route::GrpcFailureInjector { code, message, ratio }
}

choice! {
    meta::metadata::Kind { Default, Resource }
    tls_route::sni_match::Match { Exact, Suffix }
    http_route::host_match::Match { Exact, Suffix }
    http_route::path_match::Kind { Exact, Prefix, Regex }
    http_route::header_match::Value { Exact, Regex }
    http_route::query_param_match::Value { Exact, Regex }
    http_route::path_modifier::Replace { Full, Prefix }
}

message! {
    inbound::Server { protocol, server_ips, authorizations, labels }
    inbound::ProxyProtocol { ; kind as "Kind" }
    inbound::proxy_protocol::Detect { timeout, http_routes, http_local_rate_limit }
    inbound::proxy_protocol::Http1 { routes, local_rate_limit }
    inbound::proxy_protocol::Http2 { routes, local_rate_limit }
    inbound::proxy_protocol::Grpc { routes }
    inbound::proxy_protocol::Opaque { }
    inbound::proxy_protocol::Tls { }
    inbound::Authz { networks, authentication, labels, metadata }
    inbound::Network { net, except }
    inbound::Authn { ; permit as "Permit" }
    inbound::authn::PermitUnauthenticated { }
    inbound::authn::PermitMeshTls { ; clients as "Clients" }
    inbound::authn::permit_mesh_tls::PermitClientIdentities { identities, suffixes }
    inbound::Identity { name }
    inbound::IdentitySuffix { parts }
    inbound::HttpRoute { metadata, hosts, authorizations, rules }
    inbound::http_route::Rule { matches, filters }
    inbound::http_route::Filter { ; kind as "Kind" }
    inbound::GrpcRoute { metadata, hosts, authorizations, rules }
    inbound::grpc_route::Rule { matches, filters }
    inbound::grpc_route::Filter { ; kind as "Kind" }
    inbound::HttpLocalRateLimit { metadata, total, identity, overrides }
    inbound::http_local_rate_limit::Override { limit, clients }
    inbound::http_local_rate_limit::r#override::ClientIdentities { identities }
    inbound::http_local_rate_limit::Limit { requests_per_second }
}

choice! {
    inbound::proxy_protocol::Kind { Detect, Opaque, Tls, Http1, Http2, Grpc }
    inbound::authn::Permit { Unauthenticated, MeshTls as "MeshTLS" }
    inbound::authn::permit_mesh_tls::Clients { Unauthenticated, Identities }
    inbound::http_route::filter::Kind { FailureInjector, RequestHeaderModifier, Redirect }
    inbound::grpc_route::filter::Kind { FailureInjector, RequestHeaderModifier }
}

message! {
    outbound::OutboundPolicy { protocol, metadata }
    outbound::ProxyProtocol { ; kind as "Kind" }
    outbound::proxy_protocol::Detect { timeout, opaque, http1, http2 }
    outbound::proxy_protocol::Opaque { routes }
    outbound::proxy_protocol::Http1 { routes, failure_accrual }
    outbound::proxy_protocol::Http2 { routes, failure_accrual }
    outbound::proxy_protocol::Grpc { routes, failure_accrual }
    outbound::proxy_protocol::Tls { routes }
    outbound::HttpRoute { metadata, hosts, rules }
    outbound::http_route::Rule { matches, filters, backends, timeouts, retry, allow_l5d_request_headers }
    outbound::http_route::Filter { ; kind as "Kind" }
    outbound::http_route::Distribution { ; kind as "Kind" }
    outbound::http_route::distribution::Empty { }
    outbound::http_route::distribution::FirstAvailable { backends }
    outbound::http_route::distribution::RandomAvailable { backends }
    outbound::http_route::Retry { max_retries, max_request_bytes, conditions, timeout, backoff }
    outbound::http_route::retry::Conditions { status_ranges }
    outbound::http_route::retry::conditions::StatusRange { start, end }
    outbound::http_route::RouteBackend { backend, filters }
    outbound::http_route::WeightedRouteBackend { backend, weight }
    outbound::GrpcRoute { metadata, hosts, rules }
    outbound::grpc_route::Rule { matches, filters, backends, timeouts, retry, allow_l5d_request_headers }
    outbound::grpc_route::Filter { ; kind as "Kind" }
    outbound::grpc_route::Distribution { ; kind as "Kind" }
    outbound::grpc_route::distribution::Empty { }
    outbound::grpc_route::distribution::FirstAvailable { backends }
    outbound::grpc_route::distribution::RandomAvailable { backends }
    outbound::grpc_route::Retry { max_retries, max_request_bytes, conditions, timeout, backoff }
    outbound::grpc_route::retry::Conditions { cancelled, deadine_exceeded, resource_exhausted, internal, unavailable }
    outbound::grpc_route::RouteBackend { backend, filters }
    outbound::grpc_route::WeightedRouteBackend { backend, weight }
    outbound::OpaqueRoute { metadata, rules }
    outbound::opaque_route::Rule { backends, filters }
    outbound::opaque_route::Filter { ; kind as "Kind" }
    outbound::opaque_route::Distribution { ; kind as "Kind" }
    outbound::opaque_route::distribution::Empty { }
    outbound::opaque_route::distribution::FirstAvailable { backends }
    outbound::opaque_route::distribution::RandomAvailable { backends }
    outbound::opaque_route::RouteBackend { backend, filters }
    outbound::opaque_route::WeightedRouteBackend { backend, weight }
    outbound::TlsRoute { metadata, snis, rules }
    outbound::tls_route::Rule { backends, filters }
    outbound::tls_route::Filter { ; kind as "Kind" }
    outbound::tls_route::Distribution { ; kind as "Kind" }
    outbound::tls_route::distribution::Empty { }
    outbound::tls_route::distribution::FirstAvailable { backends }
    outbound::tls_route::distribution::RandomAvailable { backends }
    outbound::tls_route::RouteBackend { backend, filters }
    outbound::tls_route::WeightedRouteBackend { backend, weight }
    outbound::Backend { metadata, queue; kind as "Kind" }
    outbound::Queue { capacity, failfast_timeout }
    outbound::backend::EndpointDiscovery { ; kind as "Kind" }
    outbound::backend::endpoint_discovery::DestinationGet { path }
    outbound::backend::BalanceP2c { discovery; load as "Load" }
    outbound::backend::balance_p2c::PeakEwma { default_rtt, decay }
    outbound::backend::balance_p2c::PenaltyPeakEwma { default_rtt, decay, penalty, max_retry_after, penalty_decay }
    outbound::FailureAccrual { ejection; kind as "Kind" }
    outbound::failure_accrual::ConsecutiveFailures { max_failures, backoff }
    outbound::failure_accrual::Unified { success_rate_threshold, decay, min_requests, max_consecutive_failures, backoff }
    outbound::EjectionConfig { min_ready_endpoints }
    outbound::ExponentialBackoff { min_backoff, max_backoff, jitter_ratio, respect_retry_after_hint }
}

choice! {
    outbound::proxy_protocol::Kind { Detect, Opaque, Http1, Http2, Grpc, Tls }
    outbound::http_route::filter::Kind { FailureInjector, RequestHeaderModifier, Redirect, ResponseHeaderModifier }
    outbound::http_route::distribution::Kind { Empty, FirstAvailable, RandomAvailable }
    outbound::grpc_route::filter::Kind { FailureInjector, RequestHeaderModifier }
    outbound::grpc_route::distribution::Kind { Empty, FirstAvailable, RandomAvailable }
    outbound::opaque_route::filter::Kind { Invalid, Forbidden }
    outbound::opaque_route::distribution::Kind { Empty, FirstAvailable, RandomAvailable }
    outbound::tls_route::filter::Kind { Invalid, Forbidden }
    outbound::tls_route::distribution::Kind { Empty, FirstAvailable, RandomAvailable }
    outbound::backend::Kind { Forward, Balancer }
    outbound::backend::endpoint_discovery::Kind { Dst }
    outbound::backend::balance_p2c::Load { PeakEwma, PenaltyPeakEwma }
    outbound::failure_accrual::Kind { ConsecutiveFailures, Unified }
}

message! {
    destination::DestinationProfile {
        fully_qualified_name, opaque_protocol, routes, retry_budget, dst_overrides, endpoint, parent_ref, profile_ref
    }
    destination::Route { condition, response_classes, metrics_labels, is_retryable, timeout }
    destination::RetryBudget { retry_ratio, min_retries_per_second, ttl }
    destination::ResponseClass { condition, is_failure }
    destination::RequestMatch { ; r#match as "Match" }
    destination::request_match::Seq { matches }
    destination::PathMatch { regex }
    destination::ResponseMatch { ; r#match as "Match" }
    destination::response_match::Seq { matches }
    destination::HttpStatusRange { min, max }
    destination::WeightedDst { authority, weight, backend_ref }
    destination::WeightedAddr {
        addr, weight, metric_labels, tls_identity, protocol_hint, authority_override, http2, resource_ref
    }
    destination::TlsIdentity { server_name; strategy as "Strategy" }
    destination::tls_identity::DnsLikeIdentity { name }
    destination::tls_identity::UriLikeIdentity { uri }
    destination::AuthorityOverride { authority_override }
    destination::ProtocolHint { opaque_transport; protocol as "Protocol" }
    destination::protocol_hint::H2 { }
    destination::protocol_hint::Opaque { }
    destination::protocol_hint::OpaqueTransport { inbound_port }
    destination::Http2ClientParams { flow_control, keep_alive, internals }
    destination::http2_client_params::FlowControl {
        initial_connection_window_size, initial_stream_window_size, adaptive_flow_control
    }
    destination::http2_client_params::KeepAlive { interval, timeout, while_idle }
    destination::http2_client_params::Internals { max_concurrent_reset_streams, max_frame_size, max_send_buf_size }
}

choice! {
    destination::request_match::Match { All, Any, Not, Path, Method }
    destination::response_match::Match { All, Any, Not, Status }
    destination::tls_identity::Strategy { DnsLikeIdentity, UriLikeIdentity }
    destination::protocol_hint::Protocol { H2, Opaque }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_linkerd_prints_it() {
        let policy = outbound::OutboundPolicy {
            metadata: Some(meta::Metadata {
                kind: Some(meta::metadata::Kind::Default("x".into())),
            }),
            protocol: Some(outbound::ProxyProtocol {
                kind: Some(outbound::proxy_protocol::Kind::Detect(
                    outbound::proxy_protocol::Detect {
                        timeout: Some(prost_types::Duration {
                            seconds: 10,
                            nanos: 0,
                        }),
                        ..Default::default()
                    },
                )),
            }),
        };
        assert_eq!(
            policy.to_json(),
            json!({
                "metadata": {"Kind": {"Default": "x"}},
                "protocol": {"Kind": {"Detect": {"timeout": {"seconds": 10}}}},
            })
        );
    }

    #[test]
    fn addresses_are_text() {
        let network = net::IpNetwork {
            ip: Some("10.0.0.0".parse::<IpAddr>().unwrap().into()),
            prefix_len: 8,
        };
        assert_eq!(network.to_json(), json!("10.0.0.0/8"));
        let address = net::IpAddress::from("fd00::1".parse::<IpAddr>().unwrap());
        assert_eq!(ip(&address), Some("fd00::1".parse().unwrap()));
    }
}
