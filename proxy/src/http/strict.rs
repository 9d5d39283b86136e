//! Requests that two readers could read in two ways. They end here: the next hop might read them the other way, and
//! then another request than the one that was judged would reach the application.
//!
//! What hyper and h2 refuse by themselves (lengths that differ, line folding, connection headers in HTTP/2 and the
//! like) does not get this far; the corpus of the tests has both.

use http::{HeaderMap, HeaderValue, Request, Version, header, uri::Authority};

use super::ProxyError;

/// A request may have as many headers.
pub(crate) const HEADERS_MAX: usize = 100;

/// Refuses an ambiguous request.
pub(crate) fn check<B>(request: &Request<B>) -> Result<(), ProxyError> {
    let headers = request.headers();
    if headers.len() > HEADERS_MAX {
        return Err(ProxyError::TooManyHeaders);
    }
    check_length(headers)?;
    let path = request.uri().path();
    if path.as_bytes().contains(&b'%') && path.contains("%00") {
        // Where strings end with a zero, the path ends here.
        return Err(ProxyError::Ambiguous("its path has a zero byte"));
    }
    let host = match request.uri().authority() {
        // RFC 9113 §8.3.1, and RFC 9110 §4.2.4 for HTTP/1.
        Some(authority) if authority.as_str().contains('@') => {
            return Err(ProxyError::Ambiguous("its authority names a user"));
        }
        authority => authority,
    };
    let Some(named) = headers.get(header::HOST) else {
        return Ok(());
    };
    if headers.get_all(header::HOST).iter().nth(1).is_some() {
        return Err(ProxyError::Ambiguous("it has more than one host"));
    }
    if let Some(host) = host {
        // In HTTP/1 the absolute form wins (RFC 9112 §3.2.2); `Host` is then written anew.
        let differs = request.version() == Version::HTTP_2
            && !named.as_bytes().eq_ignore_ascii_case(host.as_str().as_bytes());
        return match differs {
            true => Err(ProxyError::Ambiguous("its host is not its authority")),
            false => Ok(()),
        };
    }
    check_host(named)
}

/// RFC 9112 §3.2: an invalid `Host` is an error. An empty one is not: the target has no authority.
fn check_host(host: &HeaderValue) -> Result<(), ProxyError> {
    let valid =
        host.is_empty() || (!host.as_bytes().contains(&b'@') && Authority::try_from(host.as_bytes()).is_ok());
    match valid {
        true => Ok(()),
        false => Err(ProxyError::Ambiguous("its host is invalid")),
    }
}

/// RFC 9112 §6: one length, or one coding that we know.
fn check_length(headers: &HeaderMap) -> Result<(), ProxyError> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (codings.next().is_some() || !coding.as_bytes().eq_ignore_ascii_case(b"chunked"))
    {
        return Err(ProxyError::Ambiguous("its transfer coding is not just chunked"));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(length) = lengths.next()
        && (lengths.next().is_some()
            || length.is_empty()
            || !length.as_bytes().iter().all(u8::is_ascii_digit)
            || headers.contains_key(header::TRANSFER_ENCODING))
    {
        return Err(ProxyError::Ambiguous("its length is not said once, in digits"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_taken(version: Version, uri: &str, headers: &[(&str, &str)]) -> bool {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        check(&request.body(()).expect("valid")).is_ok()
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        for (taken, version, uri, headers) in [
            (true, one, "/", &[("host", "a.test:80")][..]),
            (true, one, "/", &[]),
            (true, one, "/", &[("host", "")]),
            (true, one, "/a%20b", &[]),
            (false, one, "/a%00b", &[]),
            (true, one, "/", &[("host", "[::1]:80")]),
            (true, one, "http://a.test/", &[("host", "b.test")]),
            (true, one, "/", &[("transfer-encoding", "Chunked")]),
            (true, one, "/", &[("content-length", "10")]),
            (true, two, "http://a.test/", &[]),
            (true, two, "http://a.test/", &[("host", "A.test")]),
            (false, one, "/", &[("host", "a.test"), ("host", "a.test")]),
            (false, one, "/", &[("host", "a@b")]),
            (false, one, "/", &[("host", "a/b")]),
            (false, one, "/", &[("host", "a b")]),
            (false, one, "http://u@a.test/", &[]),
            (false, one, "/", &[("transfer-encoding", "gzip, chunked")]),
            (
                false,
                one,
                "/",
                &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            ),
            (
                false,
                one,
                "/",
                &[("transfer-encoding", "chunked"), ("content-length", "1")],
            ),
            (false, two, "http://a.test/", &[("host", "b.test")]),
            (false, two, "http://u@a.test/", &[]),
            (
                false,
                two,
                "http://a.test/",
                &[("content-length", "1"), ("content-length", "1")],
            ),
            (false, two, "http://a.test/", &[("content-length", "+1")]),
        ] {
            assert_eq!(
                is_taken(version, uri, headers),
                taken,
                "{version:?} {uri} {headers:?}"
            );
        }
        let many = vec![("x", "y"); HEADERS_MAX + 1];
        assert!(is_taken(one, "/", &many[1..]) && !is_taken(one, "/", &many));
    }

    /// The host that a request is judged by is the one that the application is told, whatever way it takes.
    #[test]
    fn fuzz_host() {
        use heddle_proxy_policy::route::host;
        let told = |request: &Request<()>| {
            let value = request.headers().get(header::HOST)?;
            let authority = Authority::try_from(value.as_bytes()).ok()?;
            let host = authority.host().strip_suffix('.').unwrap_or(authority.host());
            Some(host.to_ascii_lowercase())
        };
        bolero::check!().for_each(|bytes: &[u8]| {
            // The target, the host, and another host, by lines.
            let lines: Vec<_> = bytes.splitn(3, |byte| *byte == b'\n').collect();
            let Ok(uri) = http::Uri::try_from(lines[0]) else {
                return;
            };
            for version in [Version::HTTP_11, Version::HTTP_2] {
                let mut request = Request::new(());
                (*request.uri_mut(), *request.version_mut()) = (uri.clone(), version);
                for line in &lines[1..] {
                    let Ok(value) = HeaderValue::from_bytes(line) else {
                        return;
                    };
                    request.headers_mut().append(header::HOST, value);
                }
                if check(&request).is_err() {
                    continue;
                }
                let judged = host(&request).map(std::borrow::Cow::into_owned);
                let fallback = || Authority::from_static("fallback.test");
                let mut direct = request.clone();
                super::super::headers::origin_form(&mut direct);
                let mut meshed = request;
                super::super::headers::upgrade_to_h2(&mut meshed, fallback);
                assert!(super::super::headers::downgrade_to_h1(&mut meshed));
                let Some(judged) = judged.filter(|host| !host.is_empty()) else {
                    continue;
                };
                for seen in [told(&direct), told(&meshed)].into_iter().flatten() {
                    assert_eq!(seen, judged);
                }
            }
        });
    }
}
