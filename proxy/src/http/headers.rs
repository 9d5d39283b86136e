//! Headers that do not go on as they came: those of one connection, and those between proxies.

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, Uri, Version, header,
    uri::{Authority, PathAndQuery, Scheme},
};

/// The version of a request that travels inside HTTP/2.
pub(crate) const ORIG_PROTO: HeaderName = HeaderName::from_static("l5d-orig-proto");
/// The client's identity, for the application.
pub(crate) const CLIENT_ID: HeaderName = HeaderName::from_static("l5d-client-id");
/// Why a proxy answered in an endpoint's place.
pub(crate) const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const PROXY_ERROR: HeaderName = HeaderName::from_static("l5d-proxy-error");
/// That the connection to the proxy had better end.
pub(crate) const PROXY_CONNECTION: HeaderName = HeaderName::from_static("l5d-proxy-connection");
/// The service that a request of an ingress is for.
pub(crate) const DST_OVERRIDE: HeaderName = HeaderName::from_static("l5d-dst-override");
/// The service that the client's proxy took a request to be for.
pub(crate) const DST_CANONICAL: HeaderName = HeaderName::from_static("l5d-dst-canonical");
/// The identity that the endpoint must have.
pub(crate) const REQUIRE_ID: HeaderName = HeaderName::from_static("l5d-require-id");
const CONNECTION_HEADERS: [HeaderName; 5] = [
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("http2-settings"),
];

/// Headers that are for whoever answers, or that proxies say: no client can have them taken out.
fn is_end_to_end(name: &HeaderName) -> bool {
    *name == header::HOST || *name == header::CONTENT_LENGTH || name.as_str().starts_with("l5d-")
}

/// Headers that only proxies may say; an application's are not believed.
const FORGEABLE: [HeaderName; 6] = [
    HeaderName::from_static("l5d-client-id"),
    HeaderName::from_static("l5d-remote-ip"),
    HeaderName::from_static("l5d-server-id"),
    HeaderName::from_static("l5d-orig-proto"),
    DST_OVERRIDE,
    DST_CANONICAL,
];

/// Removes headers that are about one connection (RFC 9110 §7.6.1), and those that `connection` names.
pub(crate) fn strip_connection(headers: &mut HeaderMap) {
    let names = |value: &HeaderValue| -> Vec<HeaderName> {
        // The common words are no headers' names.
        let is_word =
            |name: &[u8]| name.eq_ignore_ascii_case(b"close") || name.eq_ignore_ascii_case(b"keep-alive");
        let options = value
            .as_bytes()
            .split(|&byte| byte == b',')
            .map(<[u8]>::trim_ascii);
        let options = options.filter(|name| !name.is_empty() && !is_word(name));
        options
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .filter(|name| !is_end_to_end(name))
            .collect()
    };
    let named: Vec<_> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(names)
        .collect();
    headers.remove(header::CONNECTION);
    for name in named {
        headers.remove(name);
    }
    for name in &CONNECTION_HEADERS {
        headers.remove(name);
    }
    // HTTP/2 allows `te: trailers` alone (RFC 9113 §8.2.2).
    if headers.get(header::TE).is_some_and(|te| te != "trailers") {
        headers.remove(header::TE);
    }
}

/// Whom the request is for, as it says.
pub(crate) fn authority<B>(request: &Request<B>) -> Option<&str> {
    match request.uri().authority() {
        Some(authority) => Some(authority.as_str()),
        None => request.headers().get(header::HOST)?.to_str().ok(),
    }
}

/// Whether any header is of those that the mesh gives a meaning. Most requests have none.
pub(crate) fn has_own(headers: &HeaderMap) -> bool {
    headers.keys().any(|name| name.as_str().starts_with("l5d-"))
}

/// Removes what an application must not say to other proxies.
pub(crate) fn strip_forgeable(headers: &mut HeaderMap) {
    for name in &FORGEABLE {
        headers.remove(name);
    }
}

/// Fields that say how a message is read, where it goes or who sends it: whoever merges trailers into headers would believe
/// them (RFC 9110 §6.5.1).
const NO_TRAILERS: [HeaderName; 8] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::CONTENT_ENCODING,
    header::CONTENT_TYPE,
    header::AUTHORIZATION,
    header::COOKIE,
    header::TRAILER,
    header::TE,
];

/// Removes what a request's trailers must not say.
pub(crate) fn clean_trailers(trailers: &mut HeaderMap) {
    strip_connection(trailers);
    for name in &NO_TRAILERS {
        trailers.remove(name);
    }
    if has_own(trailers) {
        let own = trailers.keys().filter(|name| name.as_str().starts_with("l5d-"));
        for name in own.cloned().collect::<Vec<_>>() {
            trailers.remove(name);
        }
    }
}

/// Whether a request asks for another protocol on its connection. HTTP/2 is none: who gets it by an upgrade (`h2c`)
/// could send requests past the policy. Such a request goes on without the wish.
pub(crate) fn is_upgrade<B>(req: &Request<B>) -> bool {
    let has_token = |value: &HeaderValue, token: &str| {
        value
            .to_str()
            .is_ok_and(|text| text.split(',').any(|one| one.trim().eq_ignore_ascii_case(token)))
    };
    req.version() < Version::HTTP_2
        && (req.method() == http::Method::CONNECT
            || (req.headers().contains_key(header::UPGRADE)
                && !req
                    .headers()
                    .get_all(header::UPGRADE)
                    .iter()
                    .any(|value| has_token(value, "h2c"))
                && req
                    .headers()
                    .get_all(header::CONNECTION)
                    .iter()
                    .any(|value| has_token(value, "upgrade"))))
}

/// Makes an HTTP/1 request one of HTTP/2 that remembers what it was. `fallback` is its authority when it names none.
pub(crate) fn upgrade_to_h2<B>(req: &mut Request<B>, fallback: impl FnOnce() -> Authority) {
    let absolute = req.uri().scheme().is_some();
    let proto = match (req.version(), absolute) {
        (Version::HTTP_10, false) => "HTTP/1.0",
        (Version::HTTP_10, true) => "HTTP/1.0; absolute-form",
        (_, false) => "HTTP/1.1",
        (_, true) => "HTTP/1.1; absolute-form",
    };
    absolute_uri(req, fallback);
    strip_connection(req.headers_mut());
    req.headers_mut().remove(header::HOST);
    req.headers_mut()
        .insert(ORIG_PROTO, HeaderValue::from_static(proto));
    *req.version_mut() = Version::HTTP_2;
}

/// Gives a request's URI the scheme and authority that HTTP/2 needs.
pub(crate) fn absolute_uri<B>(req: &mut Request<B>, fallback: impl FnOnce() -> Authority) {
    if req.uri().scheme().is_some() && req.uri().authority().is_some() {
        return;
    }
    let host = req
        .headers()
        .get(header::HOST)
        .and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut parts = std::mem::take(req.uri_mut()).into_parts();
    parts.scheme = Some(Scheme::HTTP);
    parts.authority = parts.authority.or(host).or_else(|| Some(fallback()));
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    // All three parts are there, so this cannot fail; `/` would be what remains of a URI that did.
    *req.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// Makes a request that came inside HTTP/2 the HTTP/1 request that it was. Returns whether it was one.
pub(crate) fn downgrade_to_h1<B>(req: &mut Request<B>) -> bool {
    if req.version() != Version::HTTP_2 {
        return false;
    }
    let Some(proto) = req.headers_mut().remove(ORIG_PROTO) else {
        return false;
    };
    let absolute = proto.as_bytes().ends_with(b"; absolute-form");
    h2_to_h1(req, absolute);
    true
}

/// Makes an HTTP/2 request one of HTTP/1.1, with its authority as `host`.
pub(crate) fn h2_to_h1<B>(req: &mut Request<B>, absolute: bool) {
    if let Some(authority) = req.uri().authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        req.headers_mut().insert(header::HOST, host);
    }
    if !absolute {
        origin_form(req);
    }
    *req.version_mut() = Version::HTTP_11;
}

/// Leaves only path and query of a request's URI; its authority becomes the host.
pub(crate) fn origin_form<B>(req: &mut Request<B>) {
    if req.uri().scheme().is_none() && req.uri().authority().is_none() {
        return;
    }
    let mut parts = std::mem::take(req.uri_mut()).into_parts();
    parts.scheme = None;
    // It wins over what `Host` says (RFC 9112 §3.2.2), and routes have been found by it.
    if let Some(authority) = parts.authority.take()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        req.headers_mut().insert(header::HOST, host);
    }
    parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
    *req.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
}

/// Cleans a response on its way back.
pub(crate) fn clean_response<B>(rsp: &mut Response<B>) {
    strip_connection(rsp.headers_mut());
    rsp.headers_mut().remove(ORIG_PROTO);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut req = Request::builder().uri(uri);
        for (name, value) in headers {
            req = req.header(*name, *value);
        }
        req.body(()).expect("valid")
    }

    #[test]
    fn trailers_say_nothing_of_the_request_itself() {
        let mut trailers = HeaderMap::new();
        for name in [
            "grpc-status",
            "x-sum",
            "l5d-client-id",
            "l5d-any",
            "host",
            "content-length",
            "connection",
        ] {
            trailers.insert(name, HeaderValue::from_static("x-hop"));
        }
        trailers.insert("x-hop", HeaderValue::from_static("1"));
        clean_trailers(&mut trailers);
        let mut left: Vec<_> = trailers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["grpc-status", "x-sum"]);
    }

    #[test]
    fn an_http1_request_survives_the_way_through_http2() {
        let headers = [
            ("host", "web.test:80"),
            ("connection", "keep-alive, x-hop"),
            ("x-hop", "1"),
            ("te", "gzip"),
            ("x-end", "2"),
        ];
        let mut req = request("/a?b", &headers);
        upgrade_to_h2(&mut req, || panic!("there is a host"));
        assert_eq!(
            (req.uri().to_string().as_str(), req.version()),
            ("http://web.test:80/a?b", Version::HTTP_2)
        );
        assert!(downgrade_to_h1(&mut req));
        assert_eq!(
            (req.uri().to_string().as_str(), req.version()),
            ("/a?b", Version::HTTP_11)
        );
        let mut left: Vec<_> = req
            .headers()
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_bytes()))
            .collect();
        left.sort_unstable();
        assert_eq!(left, [("host", b"web.test:80".as_slice()), ("x-end", b"2")]);
    }

    #[test]
    fn the_absolute_form_is_kept_and_a_missing_host_is_filled_in() {
        let mut req = request("http://other.test/a", &[("host", "web.test")]);
        upgrade_to_h2(&mut req, || panic!("there is an authority"));
        assert!(downgrade_to_h1(&mut req));
        assert_eq!(req.uri().to_string(), "http://other.test/a");
        assert_eq!(req.headers()["host"], "other.test");

        let mut bare = request("/", &[]);
        upgrade_to_h2(&mut bare, || Authority::from_static("10.0.0.1:80"));
        assert_eq!(bare.uri().to_string(), "http://10.0.0.1:80/");
    }

    #[test]
    fn a_client_names_only_what_is_its_connections_own() {
        let connection = "x-hop, host, Content-Length, l5d-client-id, close";
        let headers = [
            ("connection", connection),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "2"),
            ("host", "web.test"),
            ("content-length", "3"),
            ("l5d-client-id", "web"),
        ];
        let mut req = request("/", &headers);
        strip_connection(req.headers_mut());
        let mut left: Vec<_> = req.headers().keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["content-length", "host", "l5d-client-id"]);
    }

    #[test]
    fn upgrades_are_seen() {
        assert!(is_upgrade(&request(
            "/",
            &[("connection", "Keep-Alive, Upgrade"), ("upgrade", "websocket")]
        )));
        assert!(!is_upgrade(&request("/", &[("upgrade", "websocket")])));
        assert!(!is_upgrade(&request(
            "/",
            &[("connection", "Upgrade, HTTP2-Settings"), ("upgrade", "foo, H2C")]
        )));
        assert!(!is_upgrade(&request("/", &[("connection", "upgrade")])));
        for protocol in ["h2c", "websocket, H2C"] {
            let headers = [("connection", "Upgrade, HTTP2-Settings"), ("upgrade", protocol)];
            assert!(!is_upgrade(&request("/", &headers)), "{protocol}");
        }
    }
}
