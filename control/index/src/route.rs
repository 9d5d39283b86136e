//! Routes as text becomes routes as checked values: one reader for HTTPRoutes of both groups and for GRPCRoutes.
//!
//! The three kinds have the same shape on the wire, so they are read by that shape. A route with anything that cannot
//! be carried out is refused whole, and said so: half a route sends requests where nobody meant them to go.

mod filter;
mod session;
mod spec;

use std::{str::FromStr, time::Duration};

use heddle_control_core::{
    balance::Persistence,
    route::{Filter, GrpcMatch, HeaderMatch, HostMatch, HttpMatch, PathMatch, QueryMatch},
};
use http::{HeaderName, HeaderValue, Method};
use regex::Regex;
use serde::de::IgnoredAny;

pub use self::spec::ParentRef;
pub(crate) use self::spec::RouteSpec;
use self::spec::{GrpcMatchSpec, HeaderMatchSpec, HttpMatchSpec};

/// Why a route cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RouteError {
    #[error("the route's shape is not understood")]
    Shape(#[from] serde_json::Error),
    #[error("{field}: `{value}` is no {expected}")]
    Value {
        field: &'static str,
        value: String,
        expected: &'static str,
    },
    #[error("filters: {0} is not supported")]
    Unsupported(String),
}

/// A match that can be read.
pub(crate) trait ReadMatch: Sized {
    type Spec: serde::de::DeserializeOwned;

    /// What a rule without matches means.
    fn everything() -> Self;

    fn read(spec: Self::Spec) -> Result<Self, RouteError>;

    /// Whether it needs expressions that only Heddle's extension carries.
    fn is_regex(&self) -> bool {
        false
    }
}

/// A rule that has been read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rule<M> {
    pub(crate) matches: Vec<M>,
    pub(crate) filters: Vec<Filter>,
    pub(crate) backends: Vec<BackendRef>,
    pub(crate) mirrors: Vec<MirrorRef>,
    /// `None` is unlimited.
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) session: Option<Persistence>,
}

/// Where a share of requests is copied to.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MirrorRef {
    pub(crate) backend: Box<BackendRef>,
    /// Numerator and denominator, which is not 0.
    pub(crate) share: (u32, u32),
}

/// What a connection is matched by beside its server name: nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectionMatch;

/// Where requests of a rule go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct BackendRef {
    pub(crate) kind: BackendKind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    pub(crate) port: u16,
    pub(crate) weight: u32,
    pub(crate) filters: Vec<Filter>,
    pub(crate) mirrors: Vec<MirrorRef>,
}

/// What a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BackendKind {
    /// A Service with a port.
    Service,
    /// An EgressNetwork: the address that the client asked for.
    EgressNetwork,
    /// Nothing that requests can be sent to.
    Other,
}

/// The hosts and rules of a route.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Body<M> {
    pub(crate) hosts: Vec<HostMatch>,
    pub(crate) rules: Vec<Rule<M>>,
}

impl<M: ReadMatch> Body<M> {
    pub(crate) fn read(spec: RouteSpec<M::Spec>) -> Result<(Vec<ParentRef>, Self), RouteError> {
        let hosts = spec.hostnames.iter().map(|host| host_match(host)).collect();
        let rules = match spec.rules {
            // The API server's default for an absent list.
            rules if rules.is_empty() => vec![spec::RuleSpec::default()],
            rules => rules,
        };
        let rules = rules.into_iter().map(Rule::read).collect::<Result<_, _>>()?;
        Ok((spec.parent_refs, Self { hosts, rules }))
    }
}

impl<M: ReadMatch> Rule<M> {
    fn read(spec: spec::RuleSpec<M::Spec>) -> Result<Self, RouteError> {
        let matches = match spec.matches {
            matches if matches.is_empty() => vec![M::everything()],
            matches => matches.into_iter().map(M::read).collect::<Result<_, _>>()?,
        };
        let request = spec.timeouts.and_then(|timeouts| timeouts.request);
        let request_timeout = request
            .map(|text| gateway_duration(&text))
            .transpose()?
            .filter(|timeout| !timeout.is_zero());
        let (filters, mirrors) = filter::read_all(spec.filters)?;
        Ok(Self {
            matches,
            filters,
            mirrors,
            backends: spec
                .backend_refs
                .into_iter()
                .map(BackendRef::read)
                .collect::<Result<_, _>>()?,
            request_timeout,
            session: spec.session_persistence.map(session::read).transpose()?,
        })
    }
}

impl BackendRef {
    fn read(spec: spec::BackendRefSpec) -> Result<Self, RouteError> {
        let kind = match (spec.group.as_deref(), spec.kind.as_deref()) {
            (None | Some("" | "core"), None | Some("Service")) if spec.port.is_some() => BackendKind::Service,
            (Some("policy.linkerd.io"), Some("EgressNetwork")) => BackendKind::EgressNetwork,
            _ => BackendKind::Other,
        };
        let (filters, mirrors) = filter::read_all(spec.filters)?;
        Ok(Self {
            kind,
            namespace: spec.namespace.filter(|namespace| !namespace.is_empty()),
            name: spec.name,
            port: spec.port.unwrap_or_default(),
            weight: spec.weight.unwrap_or(1),
            filters,
            mirrors,
        })
    }
}

impl ReadMatch for HttpMatch {
    type Spec = HttpMatchSpec;

    fn everything() -> Self {
        Self::all()
    }

    fn read(spec: HttpMatchSpec) -> Result<Self, RouteError> {
        let path = spec.path.map(|path| {
            let value = path.value.unwrap_or_else(|| "/".into());
            match path.kind.as_deref() {
                None | Some("PathPrefix") => Ok(PathMatch::Prefix(value)),
                Some("Exact") => Ok(PathMatch::Exact(value)),
                Some("RegularExpression") => checked_regex("path", value).map(PathMatch::Regex),
                Some(other) => Err(bad(
                    "matches.path.type",
                    other,
                    "Exact, PathPrefix or RegularExpression",
                )),
            }
        });
        let method = spec.method.map(|name| {
            Method::from_bytes(name.as_bytes()).map_err(|_| bad("matches.method", &name, "method"))
        });
        Ok(Self {
            path: path.transpose()?,
            headers: headers(spec.headers)?,
            query: spec
                .query_params
                .into_iter()
                .map(query)
                .collect::<Result<_, _>>()?,
            method: method.transpose()?,
        })
    }
}

impl ReadMatch for GrpcMatch {
    type Spec = GrpcMatchSpec;

    fn everything() -> Self {
        Self::default()
    }

    fn is_regex(&self) -> bool {
        self.regex
    }

    fn read(spec: GrpcMatchSpec) -> Result<Self, RouteError> {
        let method = spec.method.unwrap_or_default();
        let regex = is_regex("matches.method.type", method.kind.as_deref())?;
        let name = |field, name: Option<String>| match (regex, name) {
            (true, Some(expression)) => checked_regex(field, expression).map(Some),
            (_, name) => Ok(name),
        };
        Ok(Self {
            service: name("matches.method.service", method.service)?,
            method: name("matches.method.method", method.method)?,
            regex,
            headers: headers(spec.headers)?,
        })
    }
}

impl ReadMatch for ConnectionMatch {
    type Spec = IgnoredAny;

    fn everything() -> Self {
        Self
    }

    fn read(_: IgnoredAny) -> Result<Self, RouteError> {
        Ok(Self)
    }
}

impl<M: ReadMatch> Body<M> {
    /// What only a client's proxy can do, if there is any of it.
    pub(crate) fn outbound_only(&self) -> Option<RouteError> {
        let what = self.rules.iter().find_map(|rule| {
            let has_rewrite = rule.filters.iter().any(|one| matches!(one, Filter::Rewrite(_)));
            match () {
                () if has_rewrite => Some("URLRewrite"),
                () if !rule.mirrors.is_empty() => Some("RequestMirror"),
                () if rule.session.is_some() => Some("sessionPersistence"),
                () if rule.matches.iter().any(M::is_regex) => {
                    Some("a gRPC method match by RegularExpression")
                }
                () => None,
            }
        })?;
        Some(RouteError::Unsupported(format!("{what} on a Server")))
    }
}

fn headers(specs: Vec<HeaderMatchSpec>) -> Result<Vec<HeaderMatch>, RouteError> {
    let read = |spec: HeaderMatchSpec| {
        let name = header_name(&spec.name)?;
        match is_regex("headers.type", spec.kind.as_deref())? {
            false => Ok(HeaderMatch::Exact(name, header_value(&spec.value)?)),
            true => Ok(HeaderMatch::Regex(name, checked_regex("headers", spec.value)?)),
        }
    };
    specs.into_iter().map(read).collect()
}

fn query(spec: HeaderMatchSpec) -> Result<QueryMatch, RouteError> {
    match is_regex("queryParams.type", spec.kind.as_deref())? {
        false => Ok(QueryMatch::Exact(spec.name, spec.value)),
        true => Ok(QueryMatch::Regex(
            spec.name,
            checked_regex("queryParams", spec.value)?,
        )),
    }
}

fn is_regex(field: &'static str, kind: Option<&str>) -> Result<bool, RouteError> {
    match kind {
        None | Some("Exact") => Ok(false),
        Some("RegularExpression") => Ok(true),
        Some(other) => Err(bad(field, other, "Exact or RegularExpression")),
    }
}

fn checked_regex(field: &'static str, text: String) -> Result<String, RouteError> {
    match Regex::new(&text) {
        Ok(_) => Ok(text),
        Err(_) => Err(bad(field, &text, "regular expression")),
    }
}

fn header_name(text: &str) -> Result<HeaderName, RouteError> {
    HeaderName::from_str(text).map_err(|_| bad("header name", text, "header name"))
}

fn header_value(text: &str) -> Result<HeaderValue, RouteError> {
    HeaderValue::from_str(text).map_err(|_| bad("header value", text, "header value"))
}

fn bad(field: &'static str, value: &str, expected: &'static str) -> RouteError {
    RouteError::Value {
        field,
        value: value.to_owned(),
        expected,
    }
}

fn host_match(host: &str) -> HostMatch {
    match host.strip_prefix("*.") {
        Some(suffix) => HostMatch::Suffix(suffix.split('.').rev().map(str::to_owned).collect()),
        None => HostMatch::Exact(host.to_owned()),
    }
}

/// A Gateway API duration (GEP-2257): up to four numbers with units, such as `1m30s`.
pub(crate) fn gateway_duration(text: &str) -> Result<Duration, RouteError> {
    let error = || bad("timeouts", text, "duration such as 10s or 1m30s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    for _ in 0..4 {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, after) = rest.split_at(digits);
        let letters = after.bytes().take_while(u8::is_ascii_alphabetic).count();
        let (unit, after) = after.split_at(letters);
        let number: u64 = if digits <= 5 {
            number.parse().map_err(|_| error())?
        } else {
            return Err(error());
        };
        total += match unit {
            "h" => Duration::from_secs(number * 3600),
            "m" => Duration::from_secs(number * 60),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return Err(error()),
        };
        rest = after;
        if rest.is_empty() {
            return Ok(total);
        }
    }
    Err(error())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(json: serde_json::Value) -> Result<Body<HttpMatch>, RouteError> {
        Body::read(serde_json::from_value(json)?).map(|(_, body)| body)
    }

    #[test]
    fn gateway_durations_add_up() {
        assert_eq!(gateway_duration("1m30s").ok(), Some(Duration::from_secs(90)));
        assert_eq!(gateway_duration("0s").ok(), Some(Duration::ZERO));
        for bad in ["", "1", "s", "1.5s", "1s1s1s1s1s", "100000s", "-1s"] {
            assert!(gateway_duration(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_rule_without_matches_takes_everything() {
        let body = http(serde_json::json!({})).expect("an empty route");
        assert_eq!(body.rules[0].matches, [HttpMatch::all()]);
    }

    #[test]
    fn one_bad_field_refuses_the_whole_route() {
        for rule in [
            serde_json::json!({"matches": [{"path": {"type": "RegularExpression", "value": "("}}]}),
            serde_json::json!({"matches": [{"headers": [{"name": "a b", "value": "x"}]}]}),
            serde_json::json!({"matches": [{"method": "G T"}]}),
            serde_json::json!({"filters": [{"type": "CORS", "cors": {}}]}),
            serde_json::json!({"filters": [{"type": "ExtensionRef"}]}),
            serde_json::json!({"filters": [{"type": "RequestMirror"}]}),
            serde_json::json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"hostname": "a b"}}]}),
            serde_json::json!({"filters": [{"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": "x?y"}}}]}),
            serde_json::json!({"filters": [{"type": "RequestMirror", "requestMirror": {"backendRef": {"name": "a", "port": 1}, "percent": 101}}]}),
            serde_json::json!({"sessionPersistence": {"type": "Query"}}),
            serde_json::json!({"sessionPersistence": {"cookieConfig": {"lifetimeType": "Permanent"}}}),
            serde_json::json!({"timeouts": {"request": "soon"}}),
        ] {
            let json = serde_json::json!({"rules": [{}, rule]});
            assert!(http(json.clone()).is_err(), "{json} was taken");
        }
    }

    #[test]
    fn hosts_are_names_or_suffixes() {
        let body = http(serde_json::json!({"hostnames": ["a.b", "*.c.d"]})).expect("a route");
        assert_eq!(
            body.hosts,
            [
                HostMatch::Exact("a.b".into()),
                HostMatch::Suffix(vec!["d".into(), "c".into()])
            ]
        );
    }
}
