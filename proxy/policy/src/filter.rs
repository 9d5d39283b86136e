//! What a rule does to a request or response besides choosing where it goes.

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, uri};
use linkerd2_proxy_api::{grpc_route, http_route, http_types, inbound, outbound};

use crate::{
    Invalid,
    rewrite::{PathModifier, Rewrite},
};

/// One step of a rule.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Changes the request's headers.
    RequestHeaders(HeaderChange),
    /// Changes the response's headers.
    ResponseHeaders(HeaderChange),
    /// Answers with a redirect.
    Redirect(Redirect),
    /// Changes the request's URL.
    Rewrite(Rewrite),
    /// Answers some requests with an error.
    Fail(FailureInjector),
}

/// Changes to headers: added first, then set, then removed, as the proxy API has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderChange {
    add: Vec<(HeaderName, HeaderValue)>,
    set: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

/// A redirect; parts that are absent stay as the request has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    scheme: Option<uri::Scheme>,
    host: Option<String>,
    port: Option<u16>,
    path: Option<PathModifier>,
    status: StatusCode,
}

/// Fails a share of the requests.
#[derive(Clone, Debug, PartialEq)]
pub struct FailureInjector {
    /// HTTP status, or gRPC status.
    pub code: FailureCode,
    /// What the answer says.
    pub message: String,
    numerator: u32,
    denominator: u32,
}

/// The status of an injected failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    /// An HTTP status.
    Http(StatusCode),
    /// A gRPC status.
    Grpc(u32),
}

impl HeaderChange {
    /// Applies the changes.
    pub fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.add {
            headers.append(name, value.clone());
        }
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }

    fn new(
        add: Option<http_types::Headers>,
        set: Option<http_types::Headers>,
        remove: Vec<String>,
    ) -> Result<Self, Invalid> {
        let pairs = |headers: Option<http_types::Headers>| -> Result<Vec<_>, Invalid> {
            let headers = headers.map(|headers| headers.headers).unwrap_or_default();
            headers
                .into_iter()
                .map(|header| {
                    let name: HeaderName =
                        header.name.parse().map_err(|error| Invalid::new("name", error))?;
                    let value = HeaderValue::from_bytes(&header.value)
                        .map_err(|error| Invalid::new("value", error))?;
                    Ok((name, value))
                })
                .collect()
        };
        let remove = remove
            .into_iter()
            .map(|name| name.parse().map_err(|error| Invalid::new("remove", error)));
        Ok(Self {
            add: pairs(add)?,
            set: pairs(set)?,
            remove: remove.collect::<Result<_, _>>()?,
        })
    }
}

impl Redirect {
    /// The status and target for a request with this URI (absolute, or with `host` given by its header) and a rule
    /// that matched `prefix` of its path. `None` when the target would be no URI, or a prefix is to be replaced and none
    /// matched.
    pub fn target(&self, uri: &Uri, host: Option<&str>, prefix: Option<&str>) -> Option<(StatusCode, Uri)> {
        let scheme = self
            .scheme
            .clone()
            .or_else(|| uri.scheme().cloned())
            .unwrap_or(uri::Scheme::HTTP);
        let old_authority = uri.authority().map(|authority| authority.as_str()).or(host)?;
        let authority: uri::Authority = old_authority.parse().ok()?;
        let host = self.host.as_deref().unwrap_or_else(|| authority.host());
        // Another scheme has a port of its own; another host is asked at the same one, as Gateway API has it.
        let port = self
            .port
            .or_else(|| authority.port_u16().filter(|_| self.scheme.is_none()));
        let authority = match port {
            Some(port) if !is_default_port(&scheme, port) => format!("{host}:{port}"),
            _ => host.to_owned(),
        };
        let path = match &self.path {
            None => uri.path().to_owned(),
            Some(modifier) => modifier.apply(uri.path(), prefix)?,
        };
        let path_and_query = match uri.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        let target = Uri::builder()
            .scheme(scheme)
            .authority(authority)
            .path_and_query(path_and_query)
            .build()
            .ok()?;
        Some((self.status, target))
    }
}

fn is_default_port(scheme: &uri::Scheme, port: u16) -> bool {
    (scheme == &uri::Scheme::HTTP && port == 80) || (scheme == &uri::Scheme::HTTPS && port == 443)
}

impl FailureInjector {
    /// Whether a request with this random number fails.
    pub fn strikes(&self, random: u64) -> bool {
        random
            .checked_rem(self.denominator.into())
            .is_some_and(|draw| draw < self.numerator.into())
    }

    fn new(code: FailureCode, message: String, ratio: Option<http_route::Ratio>) -> Result<Self, Invalid> {
        let http_route::Ratio {
            numerator,
            denominator,
        } = ratio.unwrap_or(http_route::Ratio {
            numerator: 1,
            denominator: 1,
        });
        if denominator == 0 {
            return Err(Invalid::new("ratio.denominator", "must not be 0"));
        }
        Ok(Self {
            code,
            message,
            numerator,
            denominator,
        })
    }
}

impl TryFrom<http_route::HttpFailureInjector> for Filter {
    type Error = Invalid;

    fn try_from(fail: http_route::HttpFailureInjector) -> Result<Self, Invalid> {
        let status = u16::try_from(fail.status)
            .ok()
            .and_then(|status| StatusCode::from_u16(status).ok());
        let status =
            status.ok_or_else(|| Invalid::new("failure_injector.status", "is not an HTTP status"))?;
        FailureInjector::new(FailureCode::Http(status), fail.message, fail.ratio).map(Self::Fail)
    }
}

impl TryFrom<grpc_route::GrpcFailureInjector> for Filter {
    type Error = Invalid;

    fn try_from(fail: grpc_route::GrpcFailureInjector) -> Result<Self, Invalid> {
        FailureInjector::new(FailureCode::Grpc(fail.code), fail.message, fail.ratio).map(Self::Fail)
    }
}

impl TryFrom<http_route::RequestHeaderModifier> for Filter {
    type Error = Invalid;

    fn try_from(change: http_route::RequestHeaderModifier) -> Result<Self, Invalid> {
        let http_route::RequestHeaderModifier { add, set, remove } = change;
        let change =
            HeaderChange::new(add, set, remove).map_err(|error| error.within("request_header_modifier"))?;
        Ok(Self::RequestHeaders(change))
    }
}

impl TryFrom<http_route::ResponseHeaderModifier> for Filter {
    type Error = Invalid;

    fn try_from(change: http_route::ResponseHeaderModifier) -> Result<Self, Invalid> {
        let http_route::ResponseHeaderModifier { add, set, remove } = change;
        let change =
            HeaderChange::new(add, set, remove).map_err(|error| error.within("response_header_modifier"))?;
        Ok(Self::ResponseHeaders(change))
    }
}

impl TryFrom<http_route::RequestRedirect> for Filter {
    type Error = Invalid;

    fn try_from(redirect: http_route::RequestRedirect) -> Result<Self, Invalid> {
        use http_route::path_modifier::Replace;
        let http_route::RequestRedirect {
            scheme,
            host,
            path,
            port,
            status,
        } = redirect;
        let invalid =
            |field: &str, error: &dyn std::fmt::Display| Invalid::new(format!("redirect.{field}"), error);
        let scheme = scheme
            .map(|scheme| uri::Scheme::try_from(scheme).map_err(|error| invalid("scheme", &error)))
            .transpose()?;
        let status = match status {
            0 => StatusCode::MOVED_PERMANENTLY,
            _ => u16::try_from(status)
                .ok()
                .and_then(|status| StatusCode::from_u16(status).ok())
                .filter(StatusCode::is_redirection)
                .ok_or_else(|| invalid("status", &"must be 300 to 399"))?,
        };
        Ok(Self::Redirect(Redirect {
            scheme,
            host: (!host.is_empty()).then_some(host),
            port: match u16::try_from(port) {
                Ok(port) => (port > 0).then_some(port),
                Err(error) => return Err(invalid("port", &error)),
            },
            path: path.and_then(|path| path.replace).map(|replace| match replace {
                Replace::Full(path) => PathModifier::Full(path),
                Replace::Prefix(path) => PathModifier::Prefix(path),
            }),
            status,
        }))
    }
}

macro_rules! from_kinds {
    ($($module:ident :: $route:ident { $($kind:ident),* })*) => {$(
        impl TryFrom<$module::$route::Filter> for Filter {
            type Error = Invalid;

            fn try_from(filter: $module::$route::Filter) -> Result<Self, Invalid> {
                match filter.kind.ok_or_else(|| Invalid::missing("kind"))? {
                    $($module::$route::filter::Kind::$kind(inner) => inner.try_into(),)*
                }
            }
        }
    )*};
}

from_kinds! {
    inbound::http_route { FailureInjector, RequestHeaderModifier, Redirect }
    inbound::grpc_route { FailureInjector, RequestHeaderModifier }
    outbound::http_route { FailureInjector, RequestHeaderModifier, Redirect, ResponseHeaderModifier }
    outbound::grpc_route { FailureInjector, RequestHeaderModifier }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_keep_what_they_do_not_name() {
        let redirect = |redirect| match Filter::try_from(redirect) {
            Ok(Filter::Redirect(redirect)) => redirect,
            other => panic!("{other:?}"),
        };
        let https = redirect(http_route::RequestRedirect {
            scheme: Some(http_types::Scheme::from(&uri::Scheme::HTTPS)),
            status: 301,
            ..Default::default()
        });
        let uri = "/a/b?c=d".parse().expect("a URI");
        let (status, target) = https.target(&uri, Some("web.test:8080"), None).expect("a target");
        assert_eq!(
            (status.as_u16(), target.to_string().as_str()),
            (301, "https://web.test/a/b?c=d")
        );

        let replace = Some(http_route::path_modifier::Replace::Prefix("/x".into()));
        let moved = redirect(http_route::RequestRedirect {
            path: Some(http_route::PathModifier { replace }),
            ..Default::default()
        });
        let (_, target) = moved
            .target(&uri, Some("web.test:8080"), Some("/a"))
            .expect("a target");
        assert_eq!(target.to_string(), "http://web.test:8080/x/b?c=d");

        let elsewhere = redirect(http_route::RequestRedirect {
            host: "example.org".into(),
            ..Default::default()
        });
        let target = |host| {
            elsewhere
                .target(&uri, Some(host), None)
                .map(|(_, target)| target.to_string())
        };
        let (with_port, without) = (target("web.test:8080"), target("web.test"));
        assert_eq!(with_port.as_deref(), Some("http://example.org:8080/a/b?c=d"));
        assert_eq!(without.as_deref(), Some("http://example.org/a/b?c=d"));
    }

    #[test]
    fn header_changes_add_set_and_remove_in_this_order() {
        let header = |name: &str| http_types::headers::Header {
            name: name.into(),
            value: b"new".to_vec(),
        };
        let both = |a: &str, b: &str| {
            Some(http_types::Headers {
                headers: vec![header(a), header(b)],
            })
        };
        let change = HeaderChange::new(both("a", "b"), both("a", "c"), vec!["c".into()]).expect("valid");
        let mut map = HeaderMap::new();
        for name in ["a", "b", "c"] {
            map.insert(name, HeaderValue::from_static("old"));
        }
        change.apply(&mut map);
        let mut got: Vec<_> = map
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        got.sort_unstable();
        assert_eq!(got, [("a", b"new".as_slice()), ("b", b"new"), ("b", b"old")]);
    }

    #[test]
    fn injects_failures_in_the_given_ratio() {
        let ratio = Some(http_route::Ratio {
            numerator: 1,
            denominator: 4,
        });
        let fail = FailureInjector::new(FailureCode::Grpc(14), String::new(), ratio).expect("valid");
        assert_eq!((0..8).filter(|&random| fail.strikes(random)).count(), 2);
        let zero = Some(http_route::Ratio {
            numerator: 1,
            denominator: 0,
        });
        assert!(FailureInjector::new(FailureCode::Grpc(14), String::new(), zero).is_err());
    }
}
