//! HTTP between pods.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    apps::{Http1, get, send_http2, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    net::Network,
    pod::{Options, Pod},
    policies::{endpoint, http_rule, identity, outbound_detect, path, unified_accrual},
};

/// The address of the service in these tests: no interface has it, only proxies know it.
pub(crate) fn service() -> SocketAddr {
    ([10, 96, 0, 1], 80).into()
}

/// A client pod and a server pod with an application behind the service.
pub(crate) fn pair(network: &Network, script: &Script) -> (Pod, Pod) {
    pair_with(network, script, || Options { env: Vec::new() })
}

/// As [`pair`], both with these options.
pub(crate) fn pair_with(network: &Network, script: &Script, options: impl Fn() -> Options) -> (Pod, Pod) {
    let server = Pod::start_with(network, script, "server", options());
    serve_http(&server.namespace, 8080, "server");
    script.set_endpoints(
        &path("web"),
        vec![endpoint(server.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start_with(network, script, "client", options());
    (client, server)
}

#[test]
fn http1_goes_over_mutual_tls_and_both_sides_count_it() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let replies = client.namespace.block_on(|| async {
        let mut connection = Http1::connect(service()).await.expect("connects");
        let mut replies = Vec::new();
        for body in ["", "a body", &"x".repeat(300_000)] {
            let request = Request::post("/echo?a=b")
                .header(header::HOST, "web.test:80")
                .header("l5d-client-id", "a lie")
                .body(Full::new(Bytes::from(body.to_owned())))
                .expect("valid");
            replies.push(connection.send(request).await.expect("a reply"));
        }
        replies
    });
    for (reply, length) in replies.iter().zip([0, 6, 300_000]) {
        assert_eq!((reply.status, reply.body.len()), (200, length), "{reply:?}");
        assert_eq!(
            reply.headers["seen-version"], "HTTP/1.1",
            "the application's own version"
        );
        assert_eq!(reply.headers["seen-host"], "web.test:80");
        assert_eq!(reply.headers["seen-client-id"], identity("client").as_str());
        assert_eq!(reply.headers["seen-l5d"], "1", "only the client's identity");
        assert!(!reply.headers.contains_key("l5d-orig-proto"));
    }
    let (client_id, server_id) = (identity("client"), identity("server"));
    let outbound = [
        ("direction", "outbound"),
        ("tls", "true"),
        ("server_id", &server_id),
        ("dst_pod", &format!("pod-{}", server.namespace.ip)),
    ];
    assert_eq!(client.metric("request_total", &outbound), Some(3.0));
    let success = [
        outbound[0],
        outbound[2],
        ("classification", "success"),
        ("status_code", "200"),
    ];
    eventually("responses are counted", || {
        (client.metric("response_total", &success) == Some(3.0)).then_some(())
    });
    assert!(
        client.metric(
            "tcp_open_total",
            &[("direction", "outbound"), ("peer", "dst"), ("tls", "true")]
        ) == Some(1.0)
    );
    let inbound = [
        ("direction", "inbound"),
        ("tls", "true"),
        ("client_id", &client_id),
        ("srv_name", "web"),
        ("authz_name", "everyone"),
    ];
    assert_eq!(server.metric("request_total", &inbound), Some(3.0));
    assert_eq!(
        server.metric("inbound_http_authz_allow_total", &[("client_id", &client_id)]),
        Some(3.0)
    );
    assert!(server.metric("response_latency_ms_count", &[("direction", "inbound")]) == Some(3.0));
    assert!(
        server
            .metric("control_identity_cert_expiration_timestamp_seconds", &[])
            .is_none()
    );
    assert!(
        server
            .admin("/metrics")
            .1
            .contains("control_identity_cert_expiration_timestamp_seconds ")
    );
}

#[test]
fn http2_and_grpc_trailers_pass() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let reply = client.namespace.block_on(|| async {
        let request = Request::post("http://web.test/grpc.Test/Call")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(Full::new(Bytes::from_static(b"request")))
            .expect("valid");
        send_http2(service(), request).await.expect("a reply")
    });
    assert_eq!((reply.status, reply.body.as_str()), (200, "message"));
    assert_eq!(reply.headers["seen-version"], "HTTP/2.0");
    assert_eq!(reply.trailers.expect("trailers")["grpc-status"], "0");
    let labels = [
        ("direction", "inbound"),
        ("grpc_status", "0"),
        ("classification", "success"),
    ];
    eventually("the response is counted", || {
        server.metric("response_total", &labels)
    });
}

#[test]
fn unmeshed_peers_are_served_in_plaintext_both_ways() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let addr = server.addr(8080);
    let reply = outside.block_on(move || async move { try_get(addr, "/").await.expect("a reply") });
    assert_eq!((reply.status, reply.body.as_str()), (200, "server"));
    assert_eq!(reply.headers["seen-client-id"], "none");
    let labels = [
        ("direction", "inbound"),
        ("tls", "no_identity"),
        ("no_tls_reason", "no_tls_from_remote"),
    ];
    assert_eq!(server.metric("request_total", &labels), Some(1.0));

    // No service, no profile: to the address itself.
    serve_http(&outside, 9000, "outside");
    let addr = SocketAddr::from((outside.ip, 9000));
    let reply = client
        .namespace
        .block_on(move || async move { try_get(addr, "/").await.expect("a reply") });
    assert_eq!(reply.body, "outside");
    let labels = [
        ("direction", "outbound"),
        ("tls", "no_identity"),
        ("no_tls_reason", "not_provided_by_service_discovery"),
    ];
    assert_eq!(client.metric("request_total", &labels), Some(1.0));
}

#[test]
fn requests_follow_the_endpoints() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, first) = pair(&network, &script);
    let second = Pod::start(&network, &script, "second");
    serve_http(&second.namespace, 8080, "second");
    let ask = || {
        client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply").body })
    };
    assert_eq!(ask(), "server");
    let one = endpoint(first.namespace.ip, 8080, Some("server"), false);
    let two = endpoint(second.namespace.ip, 8080, Some("second"), false);
    script.set_endpoints(&path("web"), vec![one, two.clone()]);
    eventually("the second endpoint gets requests", || {
        (ask() == "second").then_some(())
    });
    script.set_endpoints(&path("web"), vec![two]);
    eventually("the first gets none any more", || {
        (0..10).all(|_| ask() == "second").then_some(())
    });
    script.set_endpoints(&path("web"), Vec::new());
    let without = eventually("requests fail without endpoints", || {
        let reply = client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply") });
        (reply.status == 503).then_some(reply)
    });
    assert!(without.headers.contains_key("l5d-proxy-error"), "{without:?}");
}

#[test]
fn an_endpoint_that_is_not_who_it_should_be_gets_nothing() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    script.set_endpoints(
        &path("web"),
        vec![endpoint(server.namespace.ip, 8080, Some("someone-else"), false)],
    );
    let reply = client
        .namespace
        .block_on(|| async { try_get(service(), "/").await.expect("a reply") });
    assert_eq!(reply.status, 503, "{reply:?}");
    assert_eq!(server.metric("request_total", &[("direction", "inbound")]), None);
}

#[test]
fn connections_can_be_upgraded() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let echoed = client.namespace.block_on(|| async {
        let mut connection = Http1::connect(service()).await.expect("connects");
        let mut request = get("/upgrade");
        request
            .headers_mut()
            .insert("connection", http::HeaderValue::from_static("upgrade"));
        request
            .headers_mut()
            .insert("upgrade", http::HeaderValue::from_static("reverse"));
        let response = connection.raw(request).await.expect("a reply");
        assert_eq!(response.status(), 101);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
        io.write_all(b"abcd").await.expect("writes");
        let mut bytes = [0; 4];
        io.read_exact(&mut bytes).await.expect("reads");
        bytes
    });
    assert_eq!(&echoed, b"dcba");
}

#[test]
fn failed_requests_are_tried_again_as_the_policy_says() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::outbound::http_route::{Retry, retry};
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let mut rule = http_rule("web");
    rule.retry = Some(Retry {
        max_retries: 2,
        max_request_bytes: 1024,
        conditions: Some(retry::Conditions {
            status_ranges: vec![retry::conditions::StatusRange { start: 500, end: 599 }],
        }),
        timeout: None,
        backoff: None,
    });
    rule.timeouts = Some(linkerd2_proxy_api::http_route::Timeouts {
        request: Some(prost_types::Duration {
            seconds: 0,
            nanos: 400_000_000,
        }),
        ..Default::default()
    });
    script.set_outbound(service(), outbound_detect("web", rule));
    let post = |path: &'static str| {
        client.namespace.block_on(move || async move {
            let request = Request::post(path)
                .header("host", "web.test")
                .body(Full::new(Bytes::from_static(b"again")));
            let mut connection = Http1::connect(service()).await.expect("connects");
            connection.send(request.expect("valid")).await.expect("a reply")
        })
    };
    assert_eq!(post("/fail").status, 503);
    let failed = [("direction", "inbound"), ("status_code", "503")];
    eventually("three tries", || {
        (server.metric("response_total", &failed) == Some(3.0)).then_some(())
    });
    assert_eq!(post("/echo").body, "again");
    assert_eq!(post("/slow").status, 504, "longer than the policy allows");
}

#[test]
fn an_endpoint_that_fails_too_often_rests_but_not_the_last() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::outbound::proxy_protocol::Kind;
    let (network, script) = (Network::new(), Script::new());
    let first = Pod::start(&network, &script, "server");
    serve_http(&first.namespace, 8080, "server");
    // Each worker judges by what it has seen itself; two could each rest another endpoint.
    let options = Options {
        env: vec![("CORES", "1".to_owned())],
    };
    let client = Pod::start_with(&network, &script, "client", options);
    let second = Pod::start(&network, &script, "second");
    serve_http(&second.namespace, 8080, "second");
    let endpoints = [(&first, "server"), (&second, "second")]
        .map(|(pod, name)| endpoint(pod.namespace.ip, 8080, Some(name), false));
    script.set_endpoints(&path("web"), endpoints.to_vec());
    let mut policy = outbound_detect("web", http_rule("web"));
    if let Some(Kind::Detect(detect)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut())
        && let Some(http1) = &mut detect.http1
    {
        http1.failure_accrual = Some(unified_accrual());
    }
    script.set_outbound(service(), policy);
    let ask = |times: usize| {
        client.namespace.block_on(move || async move {
            let mut replies = Vec::new();
            for _ in 0..times {
                replies.push(try_get(service(), "/fail").await.expect("a reply"));
            }
            replies
        })
    };
    let got = |pod: &Pod| {
        pod.metric("request_total", &[("direction", "inbound")])
            .unwrap_or(0.0)
    };
    let one_rests = eventually("one of them rests", || {
        let before = (got(&first), got(&second));
        let replies = ask(20);
        let grown = (got(&first) - before.0, got(&second) - before.1);
        (grown == (20.0, 0.0) || grown == (0.0, 20.0)).then_some(replies)
    });
    assert!(
        one_rests
            .iter()
            .all(|reply| !reply.headers.contains_key("l5d-proxy-error")),
        "the last endpoint answers, however badly"
    );
}
