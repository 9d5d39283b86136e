//! Matches and filters that inbound and outbound HTTP and gRPC routes share.
//!
//! All names, methods and regular expressions in here have been checked: a proxy refuses a whole policy for one bad field.

use http::{HeaderName, HeaderValue, Method};

/// A host that a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostMatch {
    /// This name.
    Exact(String),
    /// Any name under this suffix; the labels are in reverse order: `*.a.b` is `[b, a]`.
    Suffix(Vec<String>),
}

/// A condition on requests; its parts are ANDed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HttpMatch {
    /// The path.
    pub path: Option<PathMatch>,
    /// Headers.
    pub headers: Vec<HeaderMatch>,
    /// Query parameters.
    pub query: Vec<QueryMatch>,
    /// The method.
    pub method: Option<Method>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// The path's first segments.
    Prefix(String),
    /// A regular expression for the whole path.
    Regex(String),
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderMatch {
    /// The whole value.
    Exact(HeaderName, HeaderValue),
    /// A regular expression for the whole value.
    Regex(HeaderName, String),
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueryMatch {
    /// The whole value.
    Exact(String, String),
    /// A regular expression for the whole value.
    Regex(String, String),
}

/// A condition on gRPC calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcMatch {
    /// The service's full name.
    pub service: Option<String>,
    /// The method's name.
    pub method: Option<String>,
    /// Whether the two are regular expressions, each for the whole name.
    pub regex: bool,
    /// Metadata.
    pub headers: Vec<HeaderMatch>,
}

/// Something done to a request or its response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Changes the request's headers.
    RequestHeaders(HeaderModifier),
    /// Changes the response's headers.
    ResponseHeaders(HeaderModifier),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes the request's URL on its way.
    Rewrite(Rewrite),
    /// Answers with this status instead of forwarding.
    Fail {
        /// The HTTP status.
        status: u16,
        /// Why, for the log.
        message: String,
    },
}

/// A change of headers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderModifier {
    /// Headers to add.
    pub add: Vec<(HeaderName, HeaderValue)>,
    /// Headers to replace.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Headers to remove.
    pub remove: Vec<HeaderName>,
}

/// A redirect; what is absent stays as in the request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Redirect {
    /// `http` or `https`.
    pub scheme: Option<Scheme>,
    /// The host.
    pub host: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
    /// The port.
    pub port: Option<u16>,
    /// The status, 302 when absent.
    pub status: Option<u16>,
}

/// A change of the URL; what is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// The host.
    pub host: Option<String>,
    /// The path.
    pub path: Option<PathModifier>,
}

/// A URL's scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`
    Http,
    /// `https`
    Https,
}

/// A change of the path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathModifier {
    /// The whole path becomes this.
    Full(String),
    /// The matched prefix becomes this.
    Prefix(String),
}

impl HttpMatch {
    /// A match of all requests.
    pub fn all() -> Self {
        Self {
            path: Some(PathMatch::Prefix("/".to_owned())),
            ..Self::default()
        }
    }
}
