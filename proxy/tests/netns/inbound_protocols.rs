//! Ports that are told what they speak, routes to them, and how long a client's first bytes are waited for.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::{
    grpc_route::{GrpcRouteMatch, GrpcRpcMatch},
    http_route::{RequestHeaderModifier, RequestRedirect},
    http_types::{Headers, headers::Header},
    inbound::{
        self,
        http_route::{Filter, filter},
        proxy_protocol::{Grpc, Http1, Kind, Tls},
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Reply, connect_tls, send_on, serve_greeting, serve_http, try_get},
    attack_routing::route,
    can_run,
    control::Script,
    net::Network,
    pod::{Options, Pod},
    policies::{authz, default_meta, identity, server, told_server},
    tcp_traffic::client_hello,
};

/// A route of calls of one method.
fn method(name: &str, who: &[&str]) -> inbound::GrpcRoute {
    let rpc = GrpcRpcMatch {
        service: "grpc.Test".to_owned(),
        method: name.to_owned(),
    };
    inbound::GrpcRoute {
        metadata: default_meta(name),
        hosts: Vec::new(),
        authorizations: vec![authz(Some(who))],
        rules: vec![inbound::grpc_route::Rule {
            matches: vec![GrpcRouteMatch {
                rpc: Some(rpc),
                headers: Vec::new(),
            }],
            filters: Vec::new(),
        }],
    }
}

fn header(name: &str, value: &str) -> Option<Headers> {
    let header = Header {
        name: name.to_owned(),
        value: value.as_bytes().to_vec(),
    };
    Some(Headers {
        headers: vec![header],
    })
}

const GRPC: u16 = 8080;
const HTTP1: u16 = 8081;
const TLS: u16 = 8082;

#[test]
fn ports_are_what_they_are_told_to_be() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let grpc = Grpc {
        routes: vec![method("Call", &["client"]), method("Other", &["nobody"])],
    };
    script.set_inbound("server", GRPC, told_server(Kind::Grpc(grpc), Vec::new()));
    let mut changed = route("changed", "/changed", vec![authz(None)]);
    let modifier = RequestHeaderModifier {
        add: None,
        set: header("forwarded", "by=policy"),
        remove: vec!["l5d-nothing".to_owned()],
    };
    changed.rules[0].filters = vec![Filter {
        kind: Some(filter::Kind::RequestHeaderModifier(modifier)),
    }];
    let mut moved = route("moved", "/moved", vec![authz(None)]);
    let redirect = RequestRedirect {
        host: "new.test".to_owned(),
        status: 301,
        ..Default::default()
    };
    moved.rules[0].filters = vec![Filter {
        kind: Some(filter::Kind::Redirect(redirect)),
    }];
    let http1 = Http1 {
        routes: vec![changed, moved],
        local_rate_limit: None,
    };
    script.set_inbound("server", HTTP1, told_server(Kind::Http1(http1), Vec::new()));
    script.set_inbound("server", TLS, told_server(Kind::Tls(Tls {}), vec![authz(None)]));
    let pod = Pod::start(&network, &script, "server");
    serve_http(&pod.namespace, GRPC, "server");
    serve_http(&pod.namespace, HTTP1, "server");
    serve_greeting(&pod.namespace, TLS);
    let outside = network.namespace();

    let (addr, client) = (pod.addr(GRPC), script.client(&identity("client"), false));
    let call = |path: &'static str| -> Reply {
        let client = client.clone();
        outside.block_on(move || async move {
            let tls = connect_tls(addr, identity("server"), client)
                .await
                .expect("a handshake");
            let request = Request::post(format!("http://web.test{path}"))
                .header("content-type", "application/grpc")
                .header("te", "trailers")
                .body(Full::new(Bytes::from_static(b"request")))
                .expect("valid");
            send_on(TokioIo::new(tls), true, request).await.expect("a reply")
        })
    };
    let allowed = call("/grpc.Test/Call");
    assert_eq!(allowed.trailers.expect("trailers")["grpc-status"], "0");
    for (path, code) in [("/grpc.Test/Other", "7"), ("/grpc.Test/Unknown", "5"), ("/", "5")] {
        let reply = call(path);
        assert_eq!(
            (reply.status, &reply.headers["grpc-status"]),
            (200, &code.parse().expect("a value")),
            "{path}"
        );
    }
    let counted = [("srv_port", "8080"), ("route_name", "Call"), ("grpc_status", "0")];
    assert!(pod.metric("response_total", &counted).is_some());

    let addr = pod.addr(HTTP1);
    let ask = |path: &'static str| {
        outside.block_on(move || async move { try_get(addr, path).await.expect("a reply") })
    };
    assert_eq!(ask("/changed").headers["seen-forwarded"], "by=policy");
    let moved = ask("/moved/to");
    assert_eq!(moved.status, 301);
    assert_eq!(moved.headers["location"], "http://new.test/moved/to");
    assert_eq!(ask("/elsewhere").status, 404);
    let redirected = [
        ("srv_port", "8081"),
        ("route_name", "moved"),
        ("status_code", "301"),
    ];
    assert_eq!(
        pod.metric("response_total", &redirected),
        Some(1.0),
        "a filter's answer"
    );
    let unrouted = [("srv_port", "8081")];
    assert_eq!(
        pod.metric("inbound_http_route_not_found_total", &unrouted),
        Some(1.0)
    );

    // The application's own TLS passes as it is, for whoever may connect.
    let (addr, hello) = (pod.addr(TLS), client_hello("app.test"));
    let converse = move || async move {
        let exchange = async {
            let mut tcp = TcpStream::connect(addr).await?;
            tcp.write_all(&hello).await?;
            let mut echoed = vec![0; b"220 hello\r\n".len() + hello.len()];
            tcp.read_exact(&mut echoed).await?;
            std::io::Result::Ok(echoed[11..] == hello)
        };
        timeout(DEADLINE, exchange).await.expect("in time")
    };
    assert!(outside.block_on(converse.clone()).expect("an echo"));
    script.set_inbound(
        "server",
        TLS,
        told_server(Kind::Tls(Tls {}), vec![authz(Some(&["client"]))]),
    );
    crate::eventually("the port is closed to strangers", || {
        outside.block_on(converse.clone()).err()
    });
}

/// A server whose first bytes are waited for so long.
fn patient(timeout: Duration) -> inbound::Server {
    let mut server = server(vec![authz(None)]);
    if let Some(Kind::Detect(detect)) = server.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
        detect.timeout = Some(timeout.try_into().expect("short"));
    }
    server
}

#[test]
fn the_policys_detection_timeout_comes_before_the_environments() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (short, long) = (Duration::from_millis(200), Duration::from_secs(600));
    script.set_inbound("hasty", 8080, patient(short));
    script.set_inbound("patient", 8080, patient(long));
    let start = |account: &str, timeout: &str| {
        let env = vec![("INBOUND_DETECT_TIMEOUT", timeout.to_owned())];
        Pod::start_with(&network, &script, account, Options { env })
    };
    let (hasty, patient) = (start("hasty", "10m"), start("patient", "200ms"));
    serve_greeting(&hasty.namespace, 8080);
    serve_http(&patient.namespace, 8080, "server");
    let outside = network.namespace();
    let (hasty_addr, patient_addr) = (hasty.addr(8080), patient.addr(8080));
    let waited = outside.block_on(move || async move {
        // The server speaks first, once the proxy has given up waiting for the client.
        let started = Instant::now();
        let mut tcp = TcpStream::connect(hasty_addr).await.expect("connects");
        let mut greeting = [0; 11];
        let read = timeout(DEADLINE, tcp.read_exact(&mut greeting)).await;
        read.expect("a greeting in time").expect("a greeting");
        started.elapsed()
    });
    assert!(waited >= short);
    let reply = outside.block_on(move || async move {
        let tcp = TcpStream::connect(patient_addr).await.expect("connects");
        // By the environment, these would be bytes by now.
        tokio::time::sleep(short * 4).await;
        let request = crate::apps::get("/");
        send_on(TokioIo::new(tcp), false, request).await.expect("a reply")
    });
    assert_eq!(reply.status, 200);
    assert_eq!(
        patient.metric("request_total", &[("direction", "inbound")]),
        Some(1.0)
    );
}

#[test]
fn a_silent_client_of_an_http_port_is_still_a_client_of_http() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let http1 = Http1 {
        routes: vec![
            route("a", "/a", vec![authz(None)]),
            route("b", "/b", vec![authz(Some(&["b"]))]),
        ],
        local_rate_limit: None,
    };
    script.set_inbound("server", 8080, told_server(Kind::Http1(http1), vec![]));
    let env = vec![("INBOUND_DETECT_TIMEOUT", "200ms".to_owned())];
    let pod = Pod::start_with(&network, &script, "server", Options { env });
    serve_http(&pod.namespace, 8080, "server");
    let (outside, addr) = (network.namespace(), pod.addr(8080));
    for (path, status) in [("/a", 200), ("/b", 403)] {
        let reply = outside.block_on(move || async move {
            let tcp = TcpStream::connect(addr).await.expect("connects");
            tokio::time::sleep(Duration::from_millis(600)).await;
            send_on(TokioIo::new(tcp), false, crate::apps::get(path))
                .await
                .expect("a reply")
        });
        assert_eq!(reply.status, status, "{path}");
    }
}
