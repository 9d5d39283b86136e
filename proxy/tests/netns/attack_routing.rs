//! Where a request may go: not to the proxy itself, not past a policy by another spelling of its path or host.

use std::net::SocketAddr;

use linkerd2_proxy_api::{
    http_route::{HttpRouteMatch, PathMatch, path_match},
    inbound::{self, http_route::Rule, proxy_protocol::Kind},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    attack::{
        Honest,
        h2::{END_HEADERS, END_STREAM, HEADERS, frame, opening},
    },
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::{Namespace, Network},
    policies::{authz, default_meta, endpoint, outbound_opaque, path, server},
};

/// What comes back for these bytes, at most so many.
fn exchange(namespace: &Namespace, addr: SocketAddr, bytes: Vec<u8>) -> Vec<u8> {
    namespace.block_on(move || async move {
        let Ok(mut tcp) = TcpStream::connect(addr).await else {
            return Vec::new();
        };
        // It may be refused before all is written.
        let _ = tcp.write_all(&bytes).await;
        let mut answer = vec![0; 4096];
        match timeout(DEADLINE, tcp.read(&mut answer))
            .await
            .expect("answered or closed in time")
        {
            Ok(count) => answer.truncate(count),
            Err(_) => answer.clear(),
        }
        answer
    })
}

fn status(answer: &[u8]) -> Option<u16> {
    std::str::from_utf8(answer.strip_prefix(b"HTTP/1.1 ")?.get(..3)?)
        .ok()?
        .parse()
        .ok()
}

/// A route of all paths below this.
pub(crate) fn route(name: &str, prefix: &str, authorizations: Vec<inbound::Authz>) -> inbound::HttpRoute {
    inbound::HttpRoute {
        metadata: default_meta(name),
        hosts: Vec::new(),
        authorizations,
        rules: vec![Rule {
            matches: vec![HttpRouteMatch {
                path: Some(PathMatch {
                    kind: Some(path_match::Kind::Prefix(prefix.into())),
                }),
                ..Default::default()
            }],
            filters: Vec::new(),
        }],
    }
}

/// `/admin` is for one client, everything else for everyone.
fn guarded() -> inbound::Server {
    let mut server = server(Vec::new());
    let routes = vec![
        route("admin", "/admin", vec![authz(Some(&["admin"]))]),
        route("rest", "/", vec![authz(None)]),
    ];
    if let Some(Kind::Detect(detect)) = server.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
        detect.http_routes = routes;
    }
    server
}

#[test]
fn no_spelling_of_a_path_passes_its_policy() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, guarded());
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let get = |path: &[u8], version: &[u8]| {
        [
            b"GET ",
            path,
            b" ",
            version,
            b"\r\nhost: web.test\r\nconnection: close\r\n\r\n",
        ]
        .concat()
    };
    for (namespace, addr) in [(&outside, server.addr(8080)), (&client.namespace, service())] {
        assert_eq!(
            status(&exchange(namespace, addr, get(b"/public", b"HTTP/1.1"))),
            Some(200)
        );
        for path in [
            &b"/admin"[..],
            b"/admin/",
            b"/admin/users?x=y",
            b"//admin",
            b"/./admin",
            b"/public/../admin",
            b"/public/..//admin/x",
            b"/public/.././admin",
            b"/%61dmin",
            b"/%61%64%6d%69%6e",
            b"/public/%2e%2e/admin",
            b"/public/%2E%2e%2Fadmin",
            b"/%2fadmin",
            b"/admin%2fusers",
            b"/admin#fragment",
            b"/admin?/public",
            b"http://web.test/admin",
            b"http://web.test//admin",
            b"/../../../admin",
            // What one application resolves, another takes as it is.
            b"/admin/../public",
            b"/admin/%2e%2e/public",
            b"/admin/..%2fpublic",
            b"/admin/x/../../public",
            b"/public/..;/admin",
            b"/admin;x",
            b"/public%5c..%5cadmin",
            b"/%2561dmin",
            b"/admin%00",
        ] {
            let answer = exchange(namespace, addr, get(path, b"HTTP/1.1"));
            // Denied, or no path at all to whoever reads it.
            assert!(
                matches!(status(&answer), Some(403 | 400)),
                "{}: {}",
                String::from_utf8_lossy(path),
                String::from_utf8_lossy(&answer)
            );
        }
        // Whatever is no HTTP to the proxy is no HTTP to the application either: as bytes, nobody may.
        for (path, version) in [
            (&b"/admin"[..], &b"HTTP/1.2"[..]),
            (b"/admin", b"http/1.1"),
            (b"/ad min", b"HTTP/1.1"),
        ] {
            let answer = exchange(namespace, addr, get(path, version));
            assert_ne!(status(&answer), Some(200), "{}", String::from_utf8_lossy(&answer));
        }
        // Bytes that are no text are part of no other path.
        let odd = exchange(namespace, addr, get(b"/adm\xffin", b"HTTP/1.1"));
        assert!(
            matches!(status(&odd), Some(200 | 400)),
            "{}",
            String::from_utf8_lossy(&odd)
        );
    }
}

#[test]
fn http2_requests_that_are_not_well_formed_reach_no_application() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, guarded());
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let honest = Honest::start(&client.namespace, service(), 1, "/");
    honest.goes_on(5, "honest clients are answered");
    let requests = || {
        server
            .metric("inbound_http_authz_allow_total", &[("tls", "no_identity")])
            .unwrap_or(0.0)
    };
    let literal = |index: u8, value: &str| {
        [
            &[index, u8::try_from(value.len()).expect("short")],
            value.as_bytes(),
        ]
        .concat()
    };
    let named = crate::attack::h2::header;
    let (post, http, root, host) = (vec![0x83], vec![0x86], vec![0x84], literal(1, "web.test"));
    let good = [post.clone(), http.clone(), root.clone(), host.clone()].concat();
    let ended = END_HEADERS | END_STREAM;
    let whole = |head: Vec<u8>| frame(HEADERS, ended, 1, &head);
    let with_body = |head: Vec<u8>, body: &[u8]| {
        [
            frame(HEADERS, END_HEADERS, 1, &head),
            frame(0, END_STREAM, 1, body),
        ]
        .concat()
    };
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        (
            "H2.CL too short",
            with_body([good.clone(), named("content-length", "1")].concat(), b"hello"),
        ),
        (
            "H2.CL too long",
            with_body([good.clone(), named("content-length", "10")].concat(), b"hello"),
        ),
        (
            "H2.CL without a body",
            whole([good.clone(), named("content-length", "5")].concat()),
        ),
        (
            "H2.CL twice",
            with_body(
                [
                    good.clone(),
                    named("content-length", "5"),
                    named("content-length", "6"),
                ]
                .concat(),
                b"hello",
            ),
        ),
        (
            "H2.TE",
            with_body(
                [good.clone(), named("transfer-encoding", "chunked")].concat(),
                b"0\r\n\r\nGET /admin",
            ),
        ),
        (
            "connection",
            whole([good.clone(), named("connection", "close")].concat()),
        ),
        (
            "upgrade",
            whole([good.clone(), named("upgrade", "websocket")].concat()),
        ),
        ("te", whole([good.clone(), named("te", "chunked")].concat())),
        (
            "CRLF in a value",
            whole([good.clone(), named("x", "a\r\ntransfer-encoding: chunked")].concat()),
        ),
        (
            "a zero byte in a value",
            whole([good.clone(), named("x", "a\0b")].concat()),
        ),
        (
            "CRLF in a name",
            whole([good.clone(), named("x\r\ny", "a")].concat()),
        ),
        (
            "a colon in a name",
            whole([good.clone(), named("transfer-encoding: chunked", "a")].concat()),
        ),
        (
            "a capital in a name",
            whole([good.clone(), named("X", "a")].concat()),
        ),
        (
            "CRLF in the path",
            whole(
                [
                    post.clone(),
                    http.clone(),
                    literal(4, "/ HTTP/1.1\r\nx: y"),
                    host.clone(),
                ]
                .concat(),
            ),
        ),
        (
            "a space in the path",
            whole([post.clone(), http.clone(), literal(4, "/ /admin"), host.clone()].concat()),
        ),
        (
            "no path",
            whole([post.clone(), http.clone(), host.clone()].concat()),
        ),
        ("two paths", whole([good.clone(), literal(4, "/admin")].concat())),
        ("two methods", whole([good.clone(), vec![0x82]].concat())),
        (
            "CRLF in the method",
            whole(
                [
                    literal(2, "GET / HTTP/1.1\r\nx:"),
                    http.clone(),
                    root.clone(),
                    host.clone(),
                ]
                .concat(),
            ),
        ),
        (
            "CRLF in the authority",
            whole(
                [
                    post.clone(),
                    http.clone(),
                    root.clone(),
                    literal(1, "web.test\r\nx: y"),
                ]
                .concat(),
            ),
        ),
        (
            "a user in the authority",
            whole([post.clone(), http.clone(), root.clone(), literal(1, "a@web.test")].concat()),
        ),
        (
            "a host that is not the authority",
            whole([good.clone(), named("host", "other.test")].concat()),
        ),
        (
            "two hosts",
            whole([good.clone(), named("host", "web.test"), named("host", "web.test")].concat()),
        ),
        (
            "a pseudo-header after the others",
            whole([post, http, named("x", "y"), root, host].concat()),
        ),
        (
            "an unknown pseudo-header",
            whole([good, named(":x", "y")].concat()),
        ),
    ];
    for (name, frames) in malformed {
        let before = requests();
        let answer = exchange_http2(&outside, server.addr(8080), frames);
        assert!(answer.is_none_or(|status| status >= 400), "{name}: {answer:?}");
        // A request whose body goes wrong on the way may have been let in, but its body never ends for the application.
        if !name.starts_with("H2.CL") {
            assert_eq!(requests().to_bits(), before.to_bits(), "{name} was let in");
        }
    }
    assert_eq!(honest.finish().1, 0);
}

/// The status of the reply on the first stream; `None` when the stream or the connection was reset instead.
fn exchange_http2(namespace: &Namespace, addr: SocketAddr, frames: Vec<u8>) -> Option<u16> {
    const GOAWAY: u8 = 7;
    const RST_STREAM: u8 = 3;
    let bytes = [opening(&[(1, 0)]), frames].concat();
    namespace.block_on(move || async move {
        let mut tcp = TcpStream::connect(addr).await.expect("connects");
        tcp.write_all(&bytes).await.expect("small");
        let reading = async {
            loop {
                let mut head = [0; 9];
                tcp.read_exact(&mut head).await.ok()?;
                let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
                tcp.read_exact(&mut payload).await.ok()?;
                match head[3] {
                    RST_STREAM | GOAWAY => return None,
                    // With no table of ours, the status is the first field: of the static table, or a literal.
                    HEADERS => {
                        let known = [200, 204, 206, 304, 400, 404, 500];
                        return Some(match payload.as_slice() {
                            [0x20, 0x88..=0x8e, ..] | [0x88..=0x8e, ..] => {
                                known[usize::from(payload[usize::from(payload[0] == 0x20)] - 0x88)]
                            }
                            // Any other is an error that the static table has no entry for.
                            _ => 499,
                        });
                    }
                    _ => {}
                }
            }
        };
        timeout(DEADLINE, reading).await.expect("answered in time")
    })
}

#[test]
fn nothing_reaches_the_proxys_own_listeners_through_it() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, mut server) = pair(&network, &script);
    let outside = network.namespace();
    let request = b"POST /shutdown HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n".to_vec();
    // The inbound listener is for peers alone; the outbound one is not to be had from outside.
    for port in [4143, 4140] {
        let answer = exchange(&outside, server.addr(port), request.clone());
        assert_eq!(
            status(&answer),
            None,
            "port {port}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    // An application that asks its own proxy where it listens goes round no circle.
    for port in [4140, 4143] {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let answer = exchange(&client.namespace, addr, request.clone());
        assert_eq!(
            status(&answer),
            None,
            "port {port}: {}",
            String::from_utf8_lossy(&answer)
        );
    }
    // Neither does a peer whose header asks for one of these ports; nor one that reaches the admin port over loopback.
    for port in [4143, 4140, 4191] {
        let addr = SocketAddr::from(([10, 96, 0, 9], port));
        script.set_outbound(addr, outbound_opaque(&format!("own-{port}")));
        script.set_endpoints(
            &path(&format!("own-{port}")),
            vec![endpoint(server.namespace.ip, port, Some("server"), true)],
        );
        let answer = exchange(&client.namespace, addr, request.clone());
        // At the pod's own address the admin server may be asked, and says that only the pod itself may.
        let refused = match port {
            4191 => matches!(status(&answer), None | Some(403)),
            _ => status(&answer).is_none(),
        };
        assert!(refused, "{addr}: {}", String::from_utf8_lossy(&answer));
    }
    eventually("loops are counted", || {
        let inbound = server.metric("inbound_tcp_errors_total", &[("error", "loop")]);
        let outbound = client.metric("outbound_tcp_errors_total", &[("error", "loop")]);
        (inbound >= Some(2.0) && outbound >= Some(1.0)).then_some(())
    });
    assert!(server.is_running());
}
