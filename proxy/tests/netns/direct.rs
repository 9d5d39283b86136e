//! Peers' connections straight to the proxy's own port, as Linkerd's outbound proxy makes them when it is told to use the
//! transport header for everything; and other TLS.

use std::{net::SocketAddr, sync::Arc};

use heddle_tls::rustls::ClientConfig;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::inbound::{
    Authz, HttpLocalRateLimit, Server,
    http_local_rate_limit::Limit,
    proxy_protocol::{Http1, Kind},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Reply, connect_tls, send_on, serve_greeting, serve_http},
    attack_routing::route,
    can_run,
    control::Script,
    net::{Namespace, Network},
    pod::Pod,
    policies::{authz, default_meta, identity, server, told_server},
};

/// What Linkerd's proxy puts before all else: a preface, a length, and a message with the port in field 1 and the session's
/// protocol in field 3 (HTTP/1 is its field 1, HTTP/2 its field 2).
fn header(port: u16, http2: Option<bool>) -> Vec<u8> {
    let mut message = vec![0x08, (port as u8 & 0x7f) | 0x80, (port >> 7) as u8 & 0x7f];
    assert!((128..16_384).contains(&port), "two bytes of seven bits");
    match http2 {
        None => {}
        Some(false) => message.extend([0x1a, 2, 0x0a, 0]),
        Some(true) => message.extend([0x1a, 2, 0x12, 0]),
    }
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&b"transport.l5d.io/v1\r\n\r\n"[..], &length, &message].concat()
}

/// One request, as a proxy with this TLS sends it straight to the server's.
fn ask(
    from: &Namespace,
    pod: &Pod,
    config: &Arc<ClientConfig>,
    port: u16,
    http2: bool,
    path: &'static str,
) -> Option<Reply> {
    let (addr, config) = (pod.addr(4143), config.clone());
    from.block_on(move || async move {
        let mut tls = connect_tls(addr, identity("server"), config).await.ok()?;
        assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"transport.l5d.io/v1"[..]));
        tls.write_all(&header(port, Some(http2))).await.ok()?;
        let uri = if http2 {
            format!("http://web.test{path}")
        } else {
            path.to_owned()
        };
        let mut request = Request::get(uri);
        if http2 {
            request = request.header("l5d-orig-proto", "HTTP/1.1");
        } else {
            request = request.header("host", "web.test");
        }
        let request = request.body(Full::default()).expect("valid");
        send_on(TokioIo::new(tls), http2, request).await.ok()
    })
}

/// Bytes, until the other side ends.
fn exchange(
    from: &Namespace,
    addr: SocketAddr,
    config: &Arc<ClientConfig>,
    port: u16,
    bytes: &'static [u8],
) -> Option<Vec<u8>> {
    let config = config.clone();
    let exchange = async move {
        let mut tls = connect_tls(addr, identity("server"), config).await.ok()?;
        tls.write_all(&[&header(port, None)[..], bytes].concat())
            .await
            .ok()?;
        let mut answer = vec![0; 1024];
        let count = tls.read(&mut answer).await.ok().filter(|count| *count > 0)?;
        answer.truncate(count);
        Some(answer)
    };
    from.block_on(move || async move { timeout(DEADLINE, exchange).await.expect("answered or ended") })
}

fn guarded_and_limited(limit: u32, authorizations: Vec<Authz>) -> Server {
    let routes = vec![
        route("admin", "/admin", vec![authz(Some(&["admin"]))]),
        route("rest", "/", vec![authz(Some(&["admin", "client"]))]),
    ];
    let limit = HttpLocalRateLimit {
        metadata: default_meta("slow"),
        total: Some(Limit {
            requests_per_second: limit,
        }),
        ..Default::default()
    };
    let http1 = Http1 {
        routes,
        local_rate_limit: Some(limit),
    };
    told_server(Kind::Http1(http1), authorizations)
}

#[test]
fn http_by_transport_header_is_judged_by_the_ports_policy() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, guarded_and_limited(1_000, Vec::new()));
    script.set_inbound(
        "server",
        8081,
        guarded_and_limited(1, vec![authz(Some(&["client"]))]),
    );
    script.set_inbound("server", 8082, server(vec![authz(Some(&["client"]))]));
    let pod = Pod::start(&network, &script, "server");
    serve_http(&pod.namespace, 8080, "server");
    serve_http(&pod.namespace, 8081, "limited");
    serve_greeting(&pod.namespace, 8082);
    let peer = network.namespace();
    let config = |account: &str| script.client(&identity(account), true);
    let (client, admin, stranger) = (config("client"), config("admin"), config("stranger"));
    for (http2, session) in [(false, "http/1"), (true, "http/2")] {
        let reply = ask(&peer, &pod, &client, 8080, http2, "/").expect("a reply");
        assert_eq!((reply.status, reply.body.as_str()), (200, "server"), "{session}");
        assert_eq!(reply.headers["seen-client-id"], identity("client").as_str());
        assert_eq!(reply.headers["seen-version"], "HTTP/1.1");
        for (config, path, status) in [
            (&client, "/admin", 403),
            (&admin, "/admin", 200),
            (&stranger, "/", 403),
        ] {
            let reply = ask(&peer, &pod, config, 8080, http2, path).expect("a reply");
            assert_eq!(reply.status, status, "{session} {path}");
        }
        let labels = [("session_protocol", session), ("target_port", "8080")];
        let counted = pod.metric("inbound_tcp_transport_header_connections_total", &labels);
        assert_eq!(counted, Some(1.0), "of each client");
    }
    let limited = (0..5).map(|_| {
        ask(&peer, &pod, &client, 8081, true, "/")
            .expect("a reply")
            .status
    });
    assert!(limited.collect::<Vec<_>>().contains(&429));
    let total = [("srv_port", "8081"), ("scope", "total")];
    assert!(pod.metric("inbound_http_local_ratelimit_total", &total).is_some());

    // Bytes: where they may be anything, and never where only requests are, whose routes they would pass by.
    let addr = pod.addr(4143);
    let answer = exchange(&peer, addr, &client, 8082, b"hello");
    assert!(answer.is_some_and(|answer| answer.starts_with(b"220 hello\r\n")));
    assert_eq!(exchange(&peer, addr, &stranger, 8082, b"hello"), None);
    // Who may send any request to the port may send no bytes either.
    let request = b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n";
    assert_eq!(exchange(&peer, addr, &client, 8081, request), None);
    assert_eq!(exchange(&peer, addr, &admin, 8080, request), None);
    for port in ["8080", "8081"] {
        let denied = [("srv_port", port)];
        assert_eq!(
            pod.metric("inbound_tcp_authz_deny_total", &denied),
            Some(1.0),
            "{port}"
        );
    }

    // Nobody without an identity, no port of the proxy itself, and no end of TLS without the header.
    let anonymous = script.anonymous(true);
    assert!(ask(&peer, &pod, &anonymous, 8082, false, "/").is_none());
    for port in [4143, 4140] {
        assert!(ask(&peer, &pod, &client, port, false, "/").is_none());
    }
    let without = script.client(&identity("client"), false);
    let ended = peer.block_on(move || async move {
        let mut tls = connect_tls(addr, identity("server"), without).await.ok()?;
        tls.write_all(b"GET / HTTP/1.1\r\nhost: web.test\r\n\r\n")
            .await
            .ok()?;
        let mut answer = [0; 64];
        let read = timeout(DEADLINE, tls.read(&mut answer))
            .await
            .expect("ended in time");
        read.ok().filter(|count| *count > 0)
    });
    assert_eq!(ended, None);
}

/// A ClientHello of TLS 1.2 for this name: without `supported_versions`, as RFC 5246 has it.
fn tls12_hello(name: &str) -> Vec<u8> {
    let name_length = u16::try_from(name.len()).expect("short");
    let u16s = |numbers: &[u16]| -> Vec<u8> { numbers.iter().flat_map(|one| one.to_be_bytes()).collect() };
    let server_name = [
        &u16s(&[0, name_length + 5, name_length + 3])[..],
        &[0],
        &u16s(&[name_length]),
        name.as_bytes(),
    ]
    .concat();
    // supported_groups: X25519, P-256; signature_algorithms: ECDSA and RSA with SHA-256.
    let groups = u16s(&[10, 6, 4, 29, 23]);
    let signatures = u16s(&[13, 6, 4, 0x0403, 0x0804]);
    let extensions = [server_name, groups, signatures].concat();
    let extensions_length = u16::try_from(extensions.len()).expect("short");
    // ECDHE with AES-128-GCM, for ECDSA and RSA; no compression.
    let body = [
        &[3, 3][..],
        &[7; 32],
        &[0],
        &u16s(&[4, 0xc02b, 0xc02f]),
        &[1, 0],
        &u16s(&[extensions_length]),
        &extensions,
    ]
    .concat();
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    let length = u16::try_from(handshake.len()).expect("short").to_be_bytes();
    [&[22, 3, 1][..], &length, &handshake].concat()
}

#[test]
fn older_tls_is_refused() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let pod = Pod::start(&network, &script, "server");
    serve_http(&pod.namespace, 8080, "server");
    let outside = network.namespace();
    for port in [8080, 4143] {
        let addr = pod.addr(port);
        let alert = outside.block_on(move || async move {
            let exchange = async {
                let mut tcp = TcpStream::connect(addr).await.expect("connects");
                tcp.write_all(&tls12_hello(&identity("server")))
                    .await
                    .expect("writes");
                let mut answer = Vec::new();
                tcp.read_to_end(&mut answer).await.map(|_| answer)
            };
            timeout(DEADLINE, exchange)
                .await
                .expect("ended in time")
                .expect("an end")
        });
        // An alert (21) that is fatal (2): protocol_version (70).
        assert_eq!(
            (alert[0], &alert[5..]),
            (21, &[2, 70][..]),
            "port {port}: {alert:?}"
        );
    }
    let refused = [("error", "tls handshake")];
    assert_eq!(pod.metric("inbound_tcp_errors_total", &refused), Some(2.0));
}
