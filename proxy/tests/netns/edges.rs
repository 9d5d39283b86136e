//! HTTP at its edges: tunnels, upgrades, responses without bodies, old versions, endless bodies, trailers, IPv6.

use std::net::{Ipv6Addr, SocketAddr};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{exchange, serve_greeting, serve_http_with, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::{
        authz, default_meta, endpoint, http_rule, opaque, outbound_detect, outbound_opaque, path, server,
    },
};

const CHUNKS: usize = 3_000;
const CHUNK: usize = 1_000;

/// An application that answers byte by byte what each path asks for.
fn serve_scripted(namespace: &Namespace, port: u16) {
    namespace.serve(port, scripted);
}

async fn scripted(mut tcp: TcpStream) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let mut words = head.split(' ');
        let (method, path) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let answer: Vec<u8> = match (method, path) {
            ("connect", _) => {
                tcp.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                let (mut read, mut write) = tcp.split();
                tokio::io::copy(&mut read, &mut write).await?;
                return Ok(());
            }
            ("head", _) => b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n".to_vec(),
            (_, "/204") => b"HTTP/1.1 204 No Content\r\nx-seen: 204\r\n\r\n".to_vec(),
            (_, "/304") => b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\netag: \"x\"\r\n\r\n".to_vec(),
            (_, "/103") => b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate".to_vec(),
            (_, "/old") => {
                tcp.write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil the end").await?;
                return tcp.shutdown().await;
            }
            (_, "/continue") => {
                // The client's body comes only when it is asked for.
                let mut body = [0; 4];
                tcp.read_exact(&mut body).await?;
                [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n".as_slice(), &body].concat()
            }
            (_, "/trailers") => b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n4\r\nbody\r\n0\r\nx-sum: 42\r\n\r\n".to_vec(),
            (_, "/long") => {
                tcp.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                let chunk = format!("{CHUNK:x}\r\n{}\r\n", "x".repeat(CHUNK));
                for _ in 0..CHUNKS {
                    tcp.write_all(chunk.as_bytes()).await?;
                }
                b"0\r\n\r\n".to_vec()
            }
            _ => {
                let wishes = head.contains("upgrade:") || head.contains("http2-settings");
                let body = if wishes { "upgrade?" } else { "plain" };
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
            }
        };
        tcp.write_all(&answer).await?;
    }
}

#[test]
fn the_edges_of_http_pass_through_a_pair_of_proxies() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, pod) = pair(&network, &script);
    serve_scripted(&pod.namespace, 8082);
    let one = |hint: bool| {
        let mut one = endpoint(pod.namespace.ip, 8082, Some("server"), false);
        if !hint {
            one.protocol_hint = None;
        }
        vec![one]
    };
    let ask = |bytes: &'static str| {
        client
            .namespace
            .block_on(move || async move { exchange(service(), bytes.as_bytes()).await.expect("an answer") })
    };
    // Inside HTTP/2, and as HTTP/1 over TLS.
    for hint in [true, false] {
        script.set_endpoints(&path("web"), one(hint));
        eventually("the scripted application is asked", || {
            ask("GET / HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n")
                .ends_with("\r\n\r\nplain")
                .then_some(())
        });
        // One connection; what follows each shows that nothing was left over.
        let many = ask(
            "HEAD / HTTP/1.1\r\nhost: web.test\r\n\r\nGET /204 HTTP/1.1\r\nhost: web.test\r\n\r\n\
             GET /304 HTTP/1.1\r\nhost: web.test\r\n\r\nGET /103 HTTP/1.1\r\nhost: web.test\r\n\r\n\
             GET / HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n",
        );
        let answers: Vec<_> = many.split("HTTP/1.1 ").skip(1).collect();
        let statuses: Vec<_> = answers.iter().map(|answer| &answer[..3]).collect();
        assert_eq!(
            statuses,
            ["200", "204", "304", "200", "200"],
            "hint {hint}: {many}"
        );
        assert!(answers[0].contains("content-length: 5\r\n"), "{many}");
        assert!(
            answers[1].contains("x-seen: 204") && !answers[1].contains("content-length"),
            "{many}"
        );
        assert!(answers[2].contains("etag: \"x\""), "{many}");
        assert!(
            answers[3].ends_with("late") && answers[4].ends_with("plain"),
            "{many}"
        );

        let old = ask("GET /old HTTP/1.0\r\n\r\n");
        assert!(
            old.starts_with("HTTP/1.0 200") || old.starts_with("HTTP/1.1 200"),
            "{old}"
        );
        assert!(
            old.ends_with("until the end") && !old.contains("chunked"),
            "{old}"
        );
        let trailers =
            ask("GET /trailers HTTP/1.1\r\nhost: web.test\r\nte: trailers\r\nconnection: close\r\n\r\n");
        assert!(
            trailers.contains("body") && trailers.contains("x-sum: 42"),
            "{trailers}"
        );
        let long = ask("GET /long HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n");
        assert_eq!(long.matches('x').count(), CHUNKS * CHUNK);
        assert!(long.ends_with("0\r\n\r\n"));
        // HTTP/2 by an upgrade would pass by the policy: the wish does not go on.
        let h2c = ask(
            "GET / HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade, http2-settings, close\r\nupgrade: h2c\r\n\
             http2-settings: AAMAAABkAAQAAP__\r\n\r\n",
        );
        assert!(h2c.starts_with("HTTP/1.1 200") && h2c.ends_with("plain"), "{h2c}");

        client.namespace.block_on(|| async {
            let conversation = async {
                let mut tcp = TcpStream::connect(service()).await?;
                tcp.write_all(b"CONNECT web.test:443 HTTP/1.1\r\nhost: web.test:443\r\n\r\n").await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await?);
                }
                assert!(head.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&head));
                tcp.write_all(b"through the tunnel").await?;
                let mut echoed = [0; 18];
                tcp.read_exact(&mut echoed).await?;
                assert_eq!(&echoed, b"through the tunnel");

                let mut tcp = TcpStream::connect(service()).await?;
                tcp.write_all(
                    b"POST /continue HTTP/1.1\r\nhost: web.test\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\
                      connection: close\r\n\r\n",
                )
                .await?;
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(tcp.read_u8().await?);
                }
                assert!(head.starts_with(b"HTTP/1.1 100"), "{}", String::from_utf8_lossy(&head));
                tcp.write_all(b"body").await?;
                let mut rest = String::new();
                tcp.read_to_string(&mut rest).await?;
                assert!(rest.starts_with("HTTP/1.1 200") && rest.ends_with("body"), "{rest}");
                std::io::Result::Ok(())
            };
            timeout(DEADLINE, conversation).await.expect("in time").expect("no error");
        });
    }
}

#[test]
fn ipv6_is_carried_from_end_to_end() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    // The namespaces' addresses are given out in this order.
    let start = |name: &str, number: u16| {
        let ip = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number);
        let options = Options {
            env: vec![
                ("INBOUND_LISTEN_ADDR", "[::]:4143".to_owned()),
                ("OUTBOUND_LISTEN_ADDRS", "127.0.0.1:4140,[::1]:4140".to_owned()),
                ("INBOUND_IPS", ip.to_string()),
            ],
        };
        let pod = Pod::start_with(&network, &script, name, options);
        assert_eq!(pod.namespace.ip6, ip);
        pod
    };
    script.set_inbound("server", 8080, server(vec![authz(Some(&["client"]))]));
    let (pod, client) = (start("server", 1), start("client", 2));
    let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 8080));
    serve_http_with(&pod.namespace, listen, "server", None);
    let one = endpoint(pod.namespace.ip6, 8080, Some("server"), false);
    script.set_endpoints(&path("web"), vec![one]);
    let service = SocketAddr::from((Ipv6Addr::new(0xfd96, 0, 0, 0, 0, 0, 0, 1), 80));
    script.set_outbound(service, outbound_detect("web", http_rule("web")));
    let reply = client
        .namespace
        .block_on(move || async move { try_get(service, "/").await.expect("a reply") });
    assert_eq!((reply.status, reply.body.as_str()), (200, "server"), "{reply:?}");
    let addr = SocketAddr::from((pod.namespace.ip6, 8080));
    let labels = [
        ("direction", "inbound"),
        ("tls", "true"),
        ("target_addr", &addr.to_string()),
    ];
    assert_eq!(pod.metric("request_total", &labels), Some(1.0));
    // A stranger is told apart, over IPv6, too.
    let outside = network.namespace();
    let status = outside.block_on(move || async move { try_get(addr, "/").await.expect("a reply").status });
    assert_eq!(status, 403);
}

#[test]
fn egress_networks_and_tls_of_applications() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::{
        http_route::HttpFailureInjector,
        opaque_route::Forbidden,
        outbound::{
            Backend, backend, http_route,
            opaque_route::{Filter, filter},
        },
    };
    let (network, script) = (Network::new(), Script::new());
    let (client, pod) = pair(&network, &script);
    // An application's own TLS on a port whose protocol is detected reaches it as it is.
    serve_greeting(&pod.namespace, 8081);
    let addr = SocketAddr::from((pod.namespace.ip, 8081));
    let hello = crate::tcp_traffic::client_hello("app.test");
    let outside = network.namespace();
    let echoed = outside.block_on(move || async move {
        let exchange = async {
            let mut tcp = TcpStream::connect(addr).await?;
            tcp.write_all(&hello).await?;
            tcp.read_exact(&mut [0; 11]).await?;
            let mut echoed = vec![0; hello.len()];
            tcp.read_exact(&mut echoed).await?;
            std::io::Result::Ok(echoed == hello)
        };
        timeout(DEADLINE, exchange).await.expect("in time")
    });
    assert!(echoed.expect("no error"));

    // An address outside of the cluster, of which an EgressNetwork says who may go there.
    crate::apps::serve_http(&outside, 9000, "outside");
    let addr = SocketAddr::from((outside.ip, 9000));
    let ask = || {
        client
            .namespace
            .block_on(move || async move { try_get(addr, "/").await })
    };
    let forward = || {
        let mut rule = http_rule("web");
        use http_route::distribution::Kind;
        if let Some(Kind::FirstAvailable(first)) = rule.backends.as_mut().and_then(|one| one.kind.as_mut()) {
            let known = first.backends[0].backend.take().expect("a backend");
            first.backends[0].backend = Some(Backend {
                metadata: default_meta("egress-fallback"),
                kind: Some(backend::Kind::Forward(endpoint(
                    addr.ip(),
                    addr.port(),
                    None,
                    false,
                ))),
                ..known
            });
        }
        rule
    };
    script.set_outbound(addr, outbound_detect("egress", forward()));
    assert_eq!(ask().expect("a reply").body, "outside");
    let mut denied = forward();
    denied.filters = vec![http_route::Filter {
        kind: Some(http_route::filter::Kind::FailureInjector(HttpFailureInjector {
            status: 403,
            message: "forbidden by the egress network".to_owned(),
            ratio: None,
        })),
    }];
    script.set_outbound(addr, outbound_detect("egress", denied));
    let reply = eventually("requests are denied", || {
        ask().ok().filter(|reply| reply.status == 403)
    });
    assert_eq!(
        reply.headers["l5d-proxy-error"],
        "forbidden by the egress network"
    );
    let mut forbidden = outbound_opaque("egress");
    let mut routes = opaque("egress");
    routes.routes[0].rules[0].filters = vec![Filter {
        kind: Some(filter::Kind::Forbidden(Forbidden {})),
    }];
    forbidden.protocol = Some(linkerd2_proxy_api::outbound::ProxyProtocol {
        kind: Some(linkerd2_proxy_api::outbound::proxy_protocol::Kind::Opaque(routes)),
    });
    script.set_outbound(addr, forbidden);
    eventually("connections are refused", || ask().is_err().then_some(()));
}
