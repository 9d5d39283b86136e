//! Parts that several messages share.

use std::time::Duration;

use heddle_control_core::{
    Meta, ResourceRef,
    route::{
        GrpcMatch, HeaderMatch, HeaderModifier, HostMatch, HttpMatch, PathMatch, PathModifier, QueryMatch,
        Redirect, Scheme,
    },
};
use http::{HeaderName, HeaderValue};
use linkerd2_proxy_api::{grpc_route, http_route, http_types, meta};

/// No setting is longer than the 316 thousand years that the message can hold.
pub(super) fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}

pub(super) fn metadata(meta: &Meta) -> meta::Metadata {
    match meta {
        Meta::Default(name) => meta::Metadata {
            kind: Some(meta::metadata::Kind::Default((*name).to_owned())),
        },
        Meta::Resource(reference) => resource(reference),
    }
}

pub(super) fn resource(reference: &ResourceRef) -> meta::Metadata {
    let ResourceRef {
        group,
        kind,
        namespace,
        name,
        section,
        port,
    } = reference;
    let resource = meta::Resource {
        group: (*group).to_owned(),
        kind: (*kind).to_owned(),
        name: name.clone(),
        namespace: namespace.clone(),
        section: section.clone(),
        port: port.unwrap_or_default().into(),
    };
    meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(resource)),
    }
}

pub(super) fn host(host: &HostMatch) -> http_route::HostMatch {
    use http_route::host_match::{Match, Suffix};
    let kind = match host {
        HostMatch::Exact(name) => Match::Exact(name.clone()),
        HostMatch::Suffix(labels) => Match::Suffix(Suffix {
            reverse_labels: labels.clone(),
        }),
    };
    http_route::HostMatch { r#match: Some(kind) }
}

pub(super) fn http_match(matches: &HttpMatch) -> http_route::HttpRouteMatch {
    let HttpMatch {
        path,
        headers,
        query,
        method,
    } = matches;
    http_route::HttpRouteMatch {
        path: path.as_ref().map(|path| http_route::PathMatch {
            kind: Some(match path {
                PathMatch::Exact(path) => http_route::path_match::Kind::Exact(path.clone()),
                PathMatch::Prefix(prefix) => http_route::path_match::Kind::Prefix(prefix.clone()),
                PathMatch::Regex(regex) => http_route::path_match::Kind::Regex(regex.clone()),
            }),
        }),
        headers: headers.iter().map(header_match).collect(),
        query_params: query
            .iter()
            .map(|query| {
                use http_route::query_param_match::Value;
                let (name, value) = match query {
                    QueryMatch::Exact(name, value) => (name, Value::Exact(value.clone())),
                    QueryMatch::Regex(name, regex) => (name, Value::Regex(regex.clone())),
                };
                http_route::QueryParamMatch {
                    name: name.clone(),
                    value: Some(value),
                }
            })
            .collect(),
        method: method.clone().map(Into::into),
    }
}

pub(super) fn grpc_match(matches: &GrpcMatch) -> grpc_route::GrpcRouteMatch {
    let GrpcMatch {
        service,
        method,
        // Of expressions the extension speaks. As names they match nothing, which is right where they are not understood.
        regex: _,
        headers,
    } = matches;
    grpc_route::GrpcRouteMatch {
        rpc: Some(grpc_route::GrpcRpcMatch {
            service: service.clone().unwrap_or_default(),
            method: method.clone().unwrap_or_default(),
        }),
        headers: headers.iter().map(header_match).collect(),
    }
}

fn header_match(header: &HeaderMatch) -> http_route::HeaderMatch {
    use http_route::header_match::Value;
    let (name, value) = match header {
        HeaderMatch::Exact(name, value) => (name, Value::Exact(value.as_bytes().to_vec())),
        HeaderMatch::Regex(name, regex) => (name, Value::Regex(regex.clone())),
    };
    http_route::HeaderMatch {
        name: name.to_string(),
        value: Some(value),
    }
}

fn headers(list: &[(HeaderName, HeaderValue)]) -> Option<http_types::Headers> {
    let header = |(name, value): &(HeaderName, HeaderValue)| http_types::headers::Header {
        name: name.to_string(),
        value: value.as_bytes().to_vec(),
    };
    Some(http_types::Headers {
        headers: list.iter().map(header).collect(),
    })
}

pub(super) fn request_headers(modifier: &HeaderModifier) -> http_route::RequestHeaderModifier {
    let HeaderModifier { add, set, remove } = modifier;
    http_route::RequestHeaderModifier {
        add: headers(add),
        set: headers(set),
        remove: remove.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn response_headers(modifier: &HeaderModifier) -> http_route::ResponseHeaderModifier {
    let HeaderModifier { add, set, remove } = modifier;
    http_route::ResponseHeaderModifier {
        add: headers(add),
        set: headers(set),
        remove: remove.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn redirect(redirect: &Redirect) -> http_route::RequestRedirect {
    use http_route::path_modifier::Replace;
    let Redirect {
        scheme,
        host,
        path,
        port,
        status,
    } = redirect;
    let scheme = scheme.map(|scheme| match scheme {
        Scheme::Http => http_types::scheme::Registered::Http,
        Scheme::Https => http_types::scheme::Registered::Https,
    });
    http_route::RequestRedirect {
        scheme: scheme.map(|scheme| http_types::Scheme {
            r#type: Some(http_types::scheme::Type::Registered(scheme.into())),
        }),
        host: host.clone().unwrap_or_default(),
        path: path.as_ref().map(|path| http_route::PathModifier {
            replace: Some(match path {
                PathModifier::Full(path) => Replace::Full(path.clone()),
                PathModifier::Prefix(prefix) => Replace::Prefix(prefix.clone()),
            }),
        }),
        port: port.unwrap_or_default().into(),
        // Gateway API's default; to a proxy that is told none it is 301.
        status: status.unwrap_or(302).into(),
    }
}

/// A failure of every request.
pub(super) fn http_failure(status: u16, message: &str) -> http_route::HttpFailureInjector {
    http_route::HttpFailureInjector {
        status: status.into(),
        message: message.to_owned(),
        ratio: Some(always()),
    }
}

/// A failure of every call, with the gRPC status that stands for an HTTP status.
pub(super) fn grpc_failure(status: u16, message: &str) -> grpc_route::GrpcFailureInjector {
    const PERMISSION_DENIED: u32 = 7;
    const INTERNAL: u32 = 13;
    grpc_route::GrpcFailureInjector {
        code: if status == 403 {
            PERMISSION_DENIED
        } else {
            INTERNAL
        },
        message: message.to_owned(),
        ratio: Some(always()),
    }
}

fn always() -> http_route::Ratio {
    http_route::Ratio {
        numerator: 1,
        denominator: 1,
    }
}
