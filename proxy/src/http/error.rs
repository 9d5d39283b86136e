//! What goes wrong between a request and its response, whose fault it is, and what the client is told.

use http::{HeaderValue, Response, StatusCode, header};

use super::ResponseBody;
use crate::{http1::Http1Error, upstream::ConnectError};

/// Why there is no response from an upstream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProxyError {
    #[error("no policy for the destination: {0}")]
    Unavailable(std::sync::Arc<str>),
    #[error("invalid client policy configuration: {0}")]
    InvalidPolicy(std::sync::Arc<str>),
    #[error("no route matches the request")]
    NoRoute,
    #[error("the route has no backend")]
    NoBackend,
    #[error("the service does not exist")]
    NoSuchService,
    #[error("no endpoint became ready within {0:?}")]
    FailFast(std::time::Duration),
    #[error("{0} requests already wait for an endpoint")]
    LoadShed(u32),
    #[error("too many destinations are followed")]
    Busy(#[from] crate::discovery::Full),
    #[error("no connection to the endpoint")]
    Connect(#[from] ConnectError),
    #[error("no response headers within {1:?}")]
    Timeout(Limit, std::time::Duration),
    #[error("the endpoint did not answer")]
    Http1(#[source] Http1Error),
    #[error("the endpoint did not answer")]
    Upgrade(#[source] hyper::Error),
    #[error("the endpoint did not answer")]
    Http2(#[source] h2::Error),
    #[error("the client's request ended early")]
    Client(#[source] super::body::BodyError),
    #[error("the request is malformed: {0}")]
    BadRequest(&'static str),
    #[error("the request is ambiguous: {0}")]
    Ambiguous(&'static str),
    #[error("the request has more than {max} headers", max = super::strict::HEADERS_MAX)]
    TooManyHeaders,
    #[error("unauthorized")]
    Unauthorized,
    #[error("rate limit exceeded")]
    RateLimited,
    #[error("the endpoint is not {0}, which the request requires it to be")]
    IdentityRequired(heddle_tls::PeerId),
    #[error("the gateway does not serve {0}")]
    NotServed(crate::dst::NameAddr),
    #[error("the request has been at this gateway before")]
    GatewayLoop,
}

/// What a time is the limit of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// The request with all its tries.
    Request,
    /// The response, from the request's end on.
    Response,
    /// One try; there may be another.
    Try,
    /// Standing still.
    Idle,
}

/// Who erred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Upstream,
    Downstream,
    Internal,
}

impl ProxyError {
    /// Who erred.
    pub(crate) fn side(&self) -> Side {
        match self {
            Self::Connect(ConnectError::Limited { .. }) => Side::Internal,
            Self::Connect(_)
            | Self::Timeout(..)
            | Self::Http1(_)
            | Self::Upgrade(_)
            | Self::Http2(_)
            | Self::FailFast(_) => Side::Upstream,
            Self::Client(_)
            | Self::BadRequest(_)
            | Self::Ambiguous(_)
            | Self::TooManyHeaders
            | Self::Unauthorized
            | Self::RateLimited
            | Self::IdentityRequired(_)
            | Self::NotServed(_)
            | Self::GatewayLoop
            | Self::NoRoute => Side::Downstream,
            _ => Side::Internal,
        }
    }

    /// Linkerd's name for it in metrics.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::FailFast(_) => "failfast",
            Self::LoadShed(_) | Self::Connect(ConnectError::Limited { .. }) => "load_shed",
            Self::Timeout(..) => "response timeout",
            Self::Connect(_) | Self::Http1(_) | Self::Upgrade(_) | Self::Http2(_) => "i/o",
            Self::Unauthorized => "unauthorized",
            Self::RateLimited => "rate limited",
            Self::NoRoute => "no route",
            Self::IdentityRequired(_) => "identity required",
            Self::NotServed(_) => "gateway domain invalid",
            Self::GatewayLoop => "gateway loop",
            _ => "unexpected",
        }
    }

    /// Whether the client's connection had better end: its next request finds another way, and what follows an
    /// ambiguous one may be a part of it.
    pub(crate) fn closes(&self) -> bool {
        matches!(
            self,
            Self::Connect(_) | Self::Http1(_) | Self::Http2(_) | Self::Upgrade(_)
        ) || self.is_ambiguous()
    }

    /// Whether it cannot be told where the request ends.
    pub(crate) fn is_ambiguous(&self) -> bool {
        matches!(self, Self::Ambiguous(_) | Self::TooManyHeaders)
    }

    /// Linkerd's word for it in the metrics of routes.
    pub(crate) fn stream_label(&self) -> &'static str {
        match self {
            Self::FailFast(_) => "FAIL_FAST",
            Self::LoadShed(_) | Self::Connect(ConnectError::Limited { .. }) => "LOAD_SHED",
            Self::Timeout(..) => "RESPONSE_HEADERS_TIMEOUT",
            Self::Http2(error) => super::body::h2_label(error),
            Self::Client(error) => error.label(),
            Self::Connect(_) | Self::Http1(_) | Self::Upgrade(_) => "IO",
            _ => "UNKNOWN",
        }
    }

    /// The HTTP/2 error that it came with.
    pub(crate) fn h2_reason(&self) -> Option<h2::Reason> {
        match self {
            Self::Http2(error) => error.reason(),
            _ => None,
        }
    }

    /// What the client is told, unless it speaks gRPC.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Unavailable(_)
            | Self::Connect(ConnectError::Limited { .. })
            | Self::FailFast(_)
            | Self::LoadShed(_)
            | Self::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
            Self::InvalidPolicy(_) | Self::NoBackend => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoRoute | Self::NotServed(_) => StatusCode::NOT_FOUND,
            Self::GatewayLoop => StatusCode::LOOP_DETECTED,
            Self::IdentityRequired(_)
            | Self::NoSuchService
            | Self::Connect(_)
            | Self::Http1(_)
            | Self::Upgrade(_)
            | Self::Http2(_) => StatusCode::BAD_GATEWAY,
            Self::Timeout(..) => StatusCode::GATEWAY_TIMEOUT,
            Self::Client(_) | Self::BadRequest(_) | Self::Ambiguous(_) => StatusCode::BAD_REQUEST,
            Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::Unauthorized => StatusCode::FORBIDDEN,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    fn grpc_status(&self) -> &'static str {
        match self {
            Self::Unauthorized => "7",
            Self::RateLimited => "8",
            Self::NoRoute | Self::NotServed(_) => "5",
            Self::InvalidPolicy(_) | Self::NoBackend => "13",
            Self::Timeout(..) => "4",
            Self::Client(_) | Self::BadRequest(_) | Self::Ambiguous(_) | Self::TooManyHeaders => "3",
            _ => "14",
        }
    }

    /// What the client is told. The one place where errors become responses.
    pub(crate) fn response(&self, grpc: bool) -> Response<ResponseBody> {
        // A library's message may have several lines.
        let message = self.to_string().replace(|char: char| char.is_control(), " ");
        let message = HeaderValue::try_from(message).unwrap_or(HeaderValue::from_static("proxy error"));
        let mut response = Response::new(ResponseBody::empty());
        if grpc {
            let headers = response.headers_mut();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static(self.grpc_status()));
            headers.insert("grpc-message", message.clone());
        } else {
            *response.status_mut() = self.status();
            response
                .headers_mut()
                .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
        response.headers_mut().insert("l5d-proxy-error", message);
        response
    }
}

/// The reply to what a filter answers by itself.
pub(crate) fn plain(status: StatusCode) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
    response
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn errors_are_told_in_the_clients_protocol() {
        let error = ProxyError::FailFast(Duration::from_secs(3));
        let response = error.response(false);
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            response.headers()["l5d-proxy-error"],
            "no endpoint became ready within 3s"
        );
        let grpc = ProxyError::Unauthorized.response(true);
        assert_eq!(
            (grpc.status(), grpc.headers()["grpc-status"].as_bytes()),
            (StatusCode::OK, b"7".as_slice())
        );
        assert_eq!(ProxyError::Unauthorized.side(), Side::Downstream);
    }
}
