//! Which route a request takes, by Gateway API's precedence: the most specific host, then path (exact, then longest
//! prefix, then expression), then method, then most headers, then most query parameters, then the first listed.
//!
//! Paths are compared in one canonical form ([`crate::path`]), so that `//admin`, `/./admin` and `/%61dmin` are `/admin` to
//! every rule; the request itself goes on as it came.

use std::borrow::Cow;

use http::{HeaderName, HeaderValue, Method, Request};
use linkerd2_proxy_api::{grpc_route, http_route};
use regex::{Regex, RegexBuilder};

use crate::{
    Invalid, Meta, invalid,
    path::{canonical_path, percent_decode},
    profile::Condition,
};

/// A compiled expression may take this much memory; the control plane's expressions are small.
const REGEX_SIZE_MAX: usize = 1 << 20;

/// A named list of rules for some hosts.
#[derive(Clone, Debug)]
pub struct Route<P> {
    /// The resource it comes from.
    pub meta: Meta,
    /// Hosts it is for; empty for all.
    pub hosts: Vec<HostMatch>,
    /// Its rules.
    pub rules: Vec<Rule<P>>,
}

/// What to do with requests that match.
#[derive(Clone, Debug)]
pub struct Rule<P> {
    /// Any of these suffices; empty matches all requests.
    pub matches: Vec<RequestMatch>,
    /// What to do.
    pub policy: P,
}

/// A match on the request's host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostMatch {
    /// This host, lower case.
    Exact(String),
    /// Any host below this suffix, which begins with a dot.
    Suffix(String),
}

/// A match on the rest of the request. All given parts must hold.
#[derive(Clone, Debug, Default)]
pub struct RequestMatch {
    /// On the path.
    pub path: Option<PathMatch>,
    /// On headers.
    pub headers: Vec<HeaderMatch>,
    /// On query parameters.
    pub query_params: Vec<QueryMatch>,
    /// On the method.
    pub method: Option<Method>,
    /// A ServiceProfile's condition. It has no precedence: the first that holds wins.
    pub condition: Option<Condition>,
}

/// A match on the path.
#[derive(Clone, Debug)]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Leading segments of the path, without a trailing slash.
    Prefix(String),
    /// The whole path as an expression.
    Regex(Regex),
    /// A gRPC call; an absent part matches any.
    Rpc {
        /// The service, with its package.
        service: Option<String>,
        /// The method.
        method: Option<String>,
    },
    /// A gRPC call by expressions; an absent one matches any.
    RpcRegex {
        /// For the service, with its package.
        service: Option<Regex>,
        /// For the method.
        method: Option<Regex>,
    },
}

/// A match on one header.
#[derive(Clone, Debug)]
pub enum HeaderMatch {
    /// One of its values is this.
    Exact(HeaderName, HeaderValue),
    /// One of its values matches this.
    Regex(HeaderName, Regex),
}

/// A match on one query parameter.
#[derive(Clone, Debug)]
pub enum QueryMatch {
    /// Its value is this.
    Exact(String, String),
    /// Its value matches this.
    Regex(String, Regex),
}

/// How specific a match is; the greatest wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Specificity {
    host: HostRank,
    path: PathRank,
    method: bool,
    headers: usize,
    query_params: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HostRank {
    #[default]
    Any,
    Suffix(usize),
    Exact,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    #[default]
    Any,
    Regex,
    Prefix(usize),
    Exact,
}

/// The rule that a request takes, with its route; `None` when no rule matches.
pub fn find<'r, P, B>(routes: &'r [Route<P>], req: &Request<B>) -> Option<(&'r Route<P>, &'r Rule<P>)> {
    if let Some(only) = only(routes) {
        return Some(only);
    }
    find_by_path(routes, req, &canonical_path(req.uri().path()))
}

/// The one rule that takes every request, where there is no other.
pub(crate) fn only<P>(routes: &[Route<P>]) -> Option<(&Route<P>, &Rule<P>)> {
    // Most servers and services have the one default route that takes everything.
    if let [route] = routes
        && route.hosts.is_empty()
        && let [rule] = route.rules.as_slice()
        && rule.matches.is_empty()
    {
        return Some((route, rule));
    }
    None
}

/// As [`find`], for whoever reads the request's path as `path`.
pub(crate) fn find_by_path<'r, P, B>(
    routes: &'r [Route<P>],
    req: &Request<B>,
    path: &str,
) -> Option<(&'r Route<P>, &'r Rule<P>)> {
    let host = host(req);
    let mut best: Option<(Specificity, &Route<P>, &Rule<P>)> = None;
    for route in routes {
        let Some(host) = host_rank(&route.hosts, host.as_deref()) else {
            continue;
        };
        for rule in &route.rules {
            if best.is_some() && rule.has_no_precedence() {
                continue;
            }
            let ranks = rule.matches.iter().filter_map(|one| one.rank(req, path));
            let rank = match rule.matches.is_empty() {
                true => Some(Specificity::default()),
                false => ranks.max(),
            };
            if let Some(rank) = rank.map(|rank| Specificity { host, ..rank })
                && best.as_ref().is_none_or(|(found, ..)| rank > *found)
            {
                best = Some((rank, route, rule));
            }
        }
    }
    best.map(|(_, route, rule)| (route, rule))
}

impl<P> Rule<P> {
    /// Whether it is a ServiceProfile's, which only its order ranks.
    fn has_no_precedence(&self) -> bool {
        !self.matches.is_empty() && self.matches.iter().all(|one| one.condition.is_some())
    }

    /// The longest path prefix by which the request matches the rule: what a redirect replaces.
    pub fn matched_prefix<B>(&self, req: &Request<B>) -> Option<&str> {
        let path = canonical_path(req.uri().path());
        if self.matches.is_empty() {
            return Some("");
        }
        let matching = self.matches.iter().filter(|one| one.rank(req, &path).is_some());
        let prefixes = matching.filter_map(|one| match &one.path {
            Some(PathMatch::Prefix(prefix)) => Some(prefix.as_str()),
            // Without a match on the path, as with the prefix `/`, every path begins alike.
            None if one.condition.is_none() => Some(""),
            _ => None,
        });
        prefixes.max_by_key(|prefix| prefix.len())
    }
}

/// The request's host, lower case and without port: of the URI, else of the Host header.
pub fn host<B>(req: &Request<B>) -> Option<Cow<'_, str>> {
    let host = match req.uri().host() {
        Some(host) => host,
        None => {
            let value = req.headers().get(http::header::HOST)?.to_str().ok()?;
            match value.rsplit_once(':') {
                Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
                _ => value,
            }
        }
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    Some(match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    })
}

pub(crate) fn host_rank(hosts: &[HostMatch], host: Option<&str>) -> Option<HostRank> {
    if hosts.is_empty() {
        return Some(HostRank::Any);
    }
    let host = host?;
    hosts
        .iter()
        .filter_map(|one| match one {
            HostMatch::Exact(exact) => (exact == host).then_some(HostRank::Exact),
            HostMatch::Suffix(suffix) => (host.len() > suffix.len() && host.ends_with(suffix.as_str()))
                .then_some(HostRank::Suffix(suffix.len())),
        })
        .max()
}

impl RequestMatch {
    fn rank<B>(&self, req: &Request<B>, path: &str) -> Option<Specificity> {
        let path_rank = match &self.path {
            None => PathRank::Any,
            Some(one) => one.rank(path)?,
        };
        if self.method.as_ref().is_some_and(|method| method != req.method()) {
            return None;
        }
        if self
            .condition
            .as_ref()
            .is_some_and(|one| !one.holds(path, req.method()))
        {
            return None;
        }
        if !self.headers.iter().all(|header| header.matches(req)) {
            return None;
        }
        if !self
            .query_params
            .iter()
            .all(|param| param.matches(req.uri().query().unwrap_or("")))
        {
            return None;
        }
        Some(Specificity {
            host: HostRank::Any,
            path: path_rank,
            method: self.method.is_some(),
            headers: self.headers.len(),
            query_params: self.query_params.len(),
        })
    }
}

impl PathMatch {
    fn rank(&self, path: &str) -> Option<PathRank> {
        match self {
            Self::Exact(exact) => (path == exact).then_some(PathRank::Exact),
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(prefix.as_str())?;
                (rest.is_empty() || rest.starts_with('/')).then_some(PathRank::Prefix(prefix.len()))
            }
            Self::Regex(regex) => regex.is_match(path).then_some(PathRank::Regex),
            Self::RpcRegex { service, method } => {
                let (path_service, path_method) = path.strip_prefix('/')?.split_once('/')?;
                let holds = |regex: &Option<Regex>, have: &str| {
                    regex.as_ref().is_none_or(|regex| regex.is_match(have))
                };
                (holds(service, path_service) && holds(method, path_method)).then_some(PathRank::Regex)
            }
            Self::Rpc { service, method } => {
                let (path_service, path_method) = path.strip_prefix('/')?.split_once('/')?;
                let same = |want: &Option<String>, have: &str| want.as_ref().is_none_or(|want| want == have);
                (same(service, path_service) && same(method, path_method)).then_some(
                    match (service, method) {
                        (Some(_), Some(_)) => PathRank::Exact,
                        (Some(service), None) => PathRank::Prefix(service.len()),
                        (None, Some(_)) => PathRank::Regex,
                        (None, None) => PathRank::Any,
                    },
                )
            }
        }
    }
}

impl HeaderMatch {
    fn matches<B>(&self, req: &Request<B>) -> bool {
        match self {
            Self::Exact(name, value) => req.headers().get_all(name).iter().any(|have| have == value),
            Self::Regex(name, regex) => req
                .headers()
                .get_all(name)
                .iter()
                // A value that is no text is matched as what it looks like: it must not slip by a rule that any value meets.
                .any(|have| regex.is_match(&String::from_utf8_lossy(have.as_bytes()))),
        }
    }
}

impl QueryMatch {
    fn matches(&self, query: &str) -> bool {
        let (name, check): (_, &dyn Fn(&str) -> bool) = match self {
            Self::Exact(name, value) => (name, &move |have| have == value),
            Self::Regex(name, regex) => (name, &move |have| regex.is_match(have)),
        };
        let pairs = query
            .split('&')
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        // The first value counts, as Gateway API leaves open and most applications do.
        pairs
            .map(|(key, value)| (decode_query(key), decode_query(value)))
            .find(|(key, _)| key == name)
            .is_some_and(|(_, value)| check(&value))
    }
}

fn decode_query(text: &str) -> Cow<'_, str> {
    if !text.contains(['%', '+']) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(String::from_utf8_lossy(&percent_decode(&text.replace('+', " "))).into_owned())
}

/// Compiles an expression that must match the whole text.
pub(crate) fn whole_regex(field: &str, expression: &str) -> Result<Regex, Invalid> {
    let compile = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(REGEX_SIZE_MAX)
            .build()
            .map_err(|error| Invalid::new(field, error))
    };
    // Alone first: a stray parenthesis must not break out of the group that anchors the expression.
    compile(expression)?;
    compile(&format!("^(?:{expression})$"))
}

impl HostMatch {
    /// A suffix of labels that are given in reverse order.
    pub(crate) fn suffix(reverse_labels: Vec<String>) -> Result<Self, Invalid> {
        let labels = reverse_labels
            .iter()
            .rev()
            .map(|label| label.to_ascii_lowercase());
        let labels: Vec<_> = labels.collect();
        match labels.is_empty() {
            true => Err(Invalid::new("suffix", "must have at least one label")),
            false => Ok(Self::Suffix(format!(".{}", labels.join(".")))),
        }
    }
}

impl TryFrom<http_route::HostMatch> for HostMatch {
    type Error = Invalid;

    fn try_from(host: http_route::HostMatch) -> Result<Self, Invalid> {
        use http_route::host_match::Match;
        match host.r#match.ok_or_else(|| Invalid::missing("match"))? {
            Match::Exact(name) => Ok(Self::Exact(name.to_ascii_lowercase())),
            Match::Suffix(suffix) => Self::suffix(suffix.reverse_labels),
        }
    }
}

impl TryFrom<http_route::HttpRouteMatch> for RequestMatch {
    type Error = Invalid;

    fn try_from(one: http_route::HttpRouteMatch) -> Result<Self, Invalid> {
        let http_route::HttpRouteMatch {
            path,
            headers,
            query_params,
            method,
        } = one;
        Ok(Self {
            path: path
                .map(PathMatch::try_from)
                .transpose()?
                .filter(|path| !path.is_any()),
            headers: invalid::each("headers", headers, HeaderMatch::try_from)?,
            query_params: invalid::each("query_params", query_params, QueryMatch::try_from)?,
            method: method
                .map(Method::try_from)
                .transpose()
                .map_err(|error| Invalid::new("method", error))?,
            condition: None,
        })
    }
}

impl TryFrom<grpc_route::GrpcRouteMatch> for RequestMatch {
    type Error = Invalid;

    fn try_from(one: grpc_route::GrpcRouteMatch) -> Result<Self, Invalid> {
        let grpc_route::GrpcRouteMatch { rpc, headers } = one;
        let given = |text: String| (!text.is_empty()).then_some(text);
        Ok(Self {
            path: rpc.map(|rpc| PathMatch::Rpc {
                service: given(rpc.service),
                method: given(rpc.method),
            }),
            headers: invalid::each("headers", headers, HeaderMatch::try_from)?,
            query_params: Vec::new(),
            method: None,
            condition: None,
        })
    }
}

impl PathMatch {
    fn is_any(&self) -> bool {
        matches!(self, Self::Prefix(prefix) if prefix.is_empty())
    }
}

impl TryFrom<http_route::PathMatch> for PathMatch {
    type Error = Invalid;

    fn try_from(path: http_route::PathMatch) -> Result<Self, Invalid> {
        use http_route::path_match::Kind;
        match path.kind.ok_or_else(|| Invalid::missing("path.kind"))? {
            // In the form that requests are compared in, whatever the spelling of the rule.
            Kind::Exact(exact) if exact.starts_with('/') => {
                Ok(Self::Exact(canonical_path(&exact).into_owned()))
            }
            Kind::Prefix(prefix) if prefix.starts_with('/') => Ok(Self::Prefix(
                canonical_path(&prefix).trim_end_matches('/').to_owned(),
            )),
            Kind::Exact(path) | Kind::Prefix(path) => {
                Err(Invalid::new("path", format!("`{path}` must begin with a slash")))
            }
            Kind::Regex(regex) => Ok(Self::Regex(whole_regex("path.regex", &regex)?)),
        }
    }
}

impl TryFrom<http_route::HeaderMatch> for HeaderMatch {
    type Error = Invalid;

    fn try_from(header: http_route::HeaderMatch) -> Result<Self, Invalid> {
        use http_route::header_match::Value;
        let name: HeaderName = header.name.parse().map_err(|error| Invalid::new("name", error))?;
        match header.value.ok_or_else(|| Invalid::missing("value"))? {
            Value::Exact(value) => {
                let value = HeaderValue::from_bytes(&value).map_err(|error| Invalid::new("value", error))?;
                Ok(Self::Exact(name, value))
            }
            Value::Regex(regex) => Ok(Self::Regex(name, whole_regex("value.regex", &regex)?)),
        }
    }
}

impl TryFrom<http_route::QueryParamMatch> for QueryMatch {
    type Error = Invalid;

    fn try_from(param: http_route::QueryParamMatch) -> Result<Self, Invalid> {
        use http_route::query_param_match::Value;
        match param.value.ok_or_else(|| Invalid::missing("value"))? {
            Value::Exact(value) => Ok(Self::Exact(param.name, value)),
            Value::Regex(regex) => Ok(Self::Regex(param.name, whole_regex("value.regex", &regex)?)),
        }
    }
}

/// Rule matches, where one that takes every request makes the others pointless.
pub(crate) fn matches<T>(matches: Vec<T>) -> Result<Vec<RequestMatch>, Invalid>
where
    RequestMatch: TryFrom<T, Error = Invalid>,
{
    let matches = invalid::each("matches", matches, RequestMatch::try_from)?;
    let any = |one: &RequestMatch| {
        one.path.is_none() && one.headers.is_empty() && one.query_params.is_empty() && one.method.is_none()
    };
    Ok(if matches.len() == 1 && any(&matches[0]) {
        Vec::new()
    } else {
        matches
    })
}

#[cfg(test)]
mod tests;
