//! URL rewrites: what a rule makes of a request's host and path before the request goes on.

use std::borrow::Cow;

use http::{HeaderMap, HeaderValue, Uri, header, uri};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::{Invalid, path::canonical_path};

/// What a decoded path must not contain in a URI: RFC 3986 section 3.3.
const NO_PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// A rewrite; parts that are absent stay as the request has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    host: Option<(uri::Authority, HeaderValue)>,
    path: Option<PathModifier>,
}

/// What becomes of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PathModifier {
    /// It becomes this.
    Full(String),
    /// The matched prefix becomes this.
    Prefix(String),
}

impl PathModifier {
    /// The new path of a request for `path` whose rule matched `prefix` of it; `None` where it matched no prefix, because
    /// then there is nothing to replace (the proxy API's PathModifier).
    pub(crate) fn apply(&self, path: &str, prefix: Option<&str>) -> Option<String> {
        let new = match self {
            Self::Full(path) => return Some(path.clone()),
            Self::Prefix(new) => new,
        };
        let prefix = prefix?;
        // Rules match the canonical path; a request may have written its path in another way.
        let rest = match path.strip_prefix(prefix) {
            Some(rest) => Cow::Borrowed(rest),
            None => {
                let path = canonical_path(path);
                let rest = path.strip_prefix(prefix).unwrap_or(&path);
                Cow::Owned(utf8_percent_encode(rest, NO_PATH).to_string())
            }
        };
        Some(match &*rest {
            "" if new.is_empty() => "/".to_owned(),
            "" => new.clone(),
            rest => format!("{}/{}", new.trim_end_matches('/'), rest.trim_start_matches('/')),
        })
    }
}

impl Rewrite {
    /// Changes the request's URI and Host header; `prefix` is the part of the path by which its rule was chosen. False
    /// when the result would be no URI: then the request must not go on.
    #[must_use]
    pub fn apply(&self, uri: &mut Uri, headers: &mut HeaderMap, prefix: Option<&str>) -> bool {
        let path = match self.path.as_ref().map(|path| path.apply(uri.path(), prefix)) {
            None => None,
            Some(Some(path)) => Some(path),
            Some(None) => return false,
        };
        let mut parts = uri.clone().into_parts();
        if let Some(path) = path {
            let text = match uri.query() {
                Some(query) => format!("{path}?{query}"),
                None => path,
            };
            let Ok(path_and_query) = text.parse() else {
                return false;
            };
            parts.path_and_query = Some(path_and_query);
        }
        if let Some((authority, _)) = &self.host
            && parts.authority.is_some()
        {
            parts.authority = Some(authority.clone());
        }
        let Ok(new) = Uri::from_parts(parts) else {
            return false;
        };
        *uri = new;
        // HTTP/2 requests name the host in the URI alone.
        if let Some((_, host)) = &self.host
            && (headers.contains_key(header::HOST) || uri.authority().is_none())
        {
            headers.insert(header::HOST, host.clone());
        }
        true
    }
}

impl TryFrom<heddle_wire::Rewrite> for Rewrite {
    type Error = Invalid;

    fn try_from(rewrite: heddle_wire::Rewrite) -> Result<Self, Invalid> {
        use heddle_wire::PathRewrite;
        let heddle_wire::Rewrite { host, path } = rewrite;
        let host = host.map(|host| {
            let value = HeaderValue::from_str(&host).map_err(|error| Invalid::new("rewrite.host", error))?;
            let authority = host
                .parse()
                .map_err(|error| Invalid::new("rewrite.host", error))?;
            Ok::<_, Invalid>((authority, value))
        });
        Ok(Self {
            host: host.transpose()?,
            path: path.map(|path| match path {
                PathRewrite::Full(path) => PathModifier::Full(path),
                PathRewrite::Prefix(path) => PathModifier::Prefix(path),
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use heddle_wire::PathRewrite;

    use super::*;

    fn rewritten(
        host: Option<&str>,
        path: Option<PathRewrite>,
        request: &str,
        prefix: &str,
    ) -> (String, Option<String>) {
        let rewrite = Rewrite::try_from(heddle_wire::Rewrite {
            host: host.map(str::to_owned),
            path,
        })
        .expect("valid");
        let (mut uri, mut headers) = (request.parse::<Uri>().expect("valid"), HeaderMap::new());
        if uri.authority().is_none() {
            headers.insert(header::HOST, HeaderValue::from_static("old.test:80"));
        }
        assert!(rewrite.apply(&mut uri, &mut headers, Some(prefix)));
        let host = headers
            .get(header::HOST)
            .map(|host| host.to_str().expect("text").to_owned());
        (uri.to_string(), host)
    }

    /// The table of Gateway API's ReplacePrefixMatch.
    #[test]
    fn a_prefix_is_replaced_by_whole_segments() {
        for (path, prefix, new, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo", "/foo", "/", "/"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/bar?a=b", "/foo", "/xyz", "/xyz/bar?a=b"),
            ("//foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/%66oo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/a%20b/c%20d%3f", "/a b", "/xyz", "/xyz/c%20d%3F"),
            ("/bar", "", "/xyz", "/xyz/bar"),
        ] {
            let path_rewrite = Some(PathRewrite::Prefix(new.to_owned()));
            assert_eq!(
                rewritten(None, path_rewrite, path, prefix).0,
                expected,
                "{path} {new}"
            );
        }
    }

    #[test]
    fn the_host_changes_where_the_request_names_it() {
        let full = || Some(PathRewrite::Full("/new".to_owned()));
        let (uri, host) = rewritten(Some("new.test"), full(), "/old?a=b", "");
        assert_eq!((uri.as_str(), host.as_deref()), ("/new?a=b", Some("new.test")));
        let (uri, host) = rewritten(Some("new.test"), None, "http://old.test/old", "");
        assert_eq!((uri.as_str(), host), ("http://new.test/old", None));
    }
}
