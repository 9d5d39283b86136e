//! The whole label sets of metrics: dashboards are made for Linkerd's, so that none may be missing, and sums are taken by
//! them, so that none may be there besides.

use std::{collections::BTreeSet, net::SocketAddr, slice::from_ref, sync::Arc};

use bytes::Bytes;
use heddle_tls::rustls::{ClientConfig, ClientConnection, RootCertStore};
use http::Request;
use http_body_util::Full;
use linkerd2_proxy_api::{grpc_route, inbound, outbound};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    apps::{send_http2, serve_greeting, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::{Labels, Pod, labels},
    policies::{
        authz, backend, default_meta, endpoint, identity, opaque_server, outbound_tls, path,
        server_for_everyone,
    },
    telemetry::{bytes_service, resources},
};

/// Several label sets in one.
fn all(sets: &[&Labels]) -> Labels {
    let pairs = sets.iter().flat_map(|set| set.iter());
    pairs.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Waits until the family has series of exactly these labels.
fn has_exactly(pod: &Pod, name: &str, expected: &[Labels]) {
    let expected: BTreeSet<_> = expected.iter().cloned().collect();
    let mut last = BTreeSet::new();
    let start = std::time::Instant::now();
    while last != expected && start.elapsed() < crate::DEADLINE {
        std::thread::park_timeout(std::time::Duration::from_millis(20));
        last = pod.series(name).into_keys().collect();
    }
    assert_eq!(last, expected, "{name}");
}

fn target(addr: SocketAddr) -> Labels {
    let (text, ip, port) = (addr.to_string(), addr.ip().to_string(), addr.port().to_string());
    labels([
        ("target_addr", text.as_str()),
        ("target_ip", ip.as_str()),
        ("target_port", port.as_str()),
    ])
}

fn unmeshed(reason: &str) -> Labels {
    labels([("tls", "no_identity"), ("no_tls_reason", reason)])
}

/// The Server of a port.
fn srv(port: &str) -> Labels {
    labels([
        ("srv_group", "policy.linkerd.io"),
        ("srv_kind", "server"),
        ("srv_name", "web"),
        ("srv_port", port),
    ])
}

/// What a default, without a name in Kubernetes, is called.
fn of_default(prefix: &str, name: &str) -> Labels {
    let pairs = [("group", ""), ("kind", "default"), ("name", name)];
    let prefixed = pairs.map(|(label, value)| (format!("{prefix}_{label}"), value.to_owned()));
    prefixed.into()
}

#[test]
fn requests_and_connections_have_linkerds_labels_and_no_others() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, server_for_everyone());
    let (client, server) = pair(&network, &script);
    script.set_outbound(service(), resources());
    let reply = client
        .namespace
        .block_on(|| async { try_get(service(), "/").await.expect("a reply") });
    assert_eq!(reply.status, 200);

    let status = labels([
        ("status_code", "200"),
        ("classification", "success"),
        ("grpc_status", ""),
        ("error", ""),
    ]);
    let (inbound, outbound) = (
        labels([("direction", "inbound")]),
        labels([("direction", "outbound")]),
    );
    let (src, dst) = (labels([("peer", "src")]), labels([("peer", "dst")]));

    let (pod, server_id) = (format!("pod-{}", server.namespace.ip), identity("server"));
    let authority = path("web");
    let to_endpoint = all(&[
        &labels([
            ("authority", authority.as_str()),
            ("tls", "true"),
            ("server_id", server_id.as_str()),
            ("dst_pod", pod.as_str()),
        ]),
        &outbound,
        &target(server.addr(8080)),
    ]);
    has_exactly(&client, "request_total", from_ref(&to_endpoint));
    has_exactly(&client, "response_total", &[all(&[&to_endpoint, &status])]);
    let from_app = all(&[&outbound, &src, &target(service()), &unmeshed("loopback")]);
    has_exactly(
        &client,
        "tcp_open_total",
        &[all(&[&to_endpoint, &dst]), from_app.clone()],
    );
    let of_service = |prefix: &str| -> Labels {
        let pairs = [
            ("group", "core"),
            ("kind", "Service"),
            ("namespace", "test"),
            ("name", "web"),
            ("port", "80"),
            ("section_name", ""),
        ];
        pairs
            .map(|(label, value)| (format!("{prefix}_{label}"), value.to_owned()))
            .into()
    };
    let route = all(&[
        &of_service("parent"),
        &of_default("route", "http"),
        &labels([("route_namespace", "")]),
    ]);
    let outcome = labels([("http_status", "200"), ("error", "")]);
    let name = "outbound_http_route_request_statuses_total";
    has_exactly(
        &client,
        name,
        &[all(&[&route, &labels([("hostname", "")]), &outcome])],
    );
    let name = "outbound_http_route_backend_response_statuses_total";
    has_exactly(&client, name, &[all(&[&route, &of_service("backend"), &outcome])]);

    let client_id = identity("client");
    let from_client = all(&[
        &labels([("tls", "true"), ("client_id", client_id.as_str())]),
        &target(server.addr(8080)),
        &srv("8080"),
    ]);
    let permitted = all(&[
        &from_client,
        &of_default("route", "default"),
        &of_default("authz", "everyone"),
    ]);
    has_exactly(&server, "inbound_http_authz_allow_total", from_ref(&permitted));
    let request = all(&[&permitted, &inbound]);
    has_exactly(&server, "request_total", from_ref(&request));
    has_exactly(&server, "response_total", &[all(&[&request, &status])]);
    let to_app = all(&[&inbound, &dst, &unmeshed("loopback")]);
    has_exactly(
        &server,
        "tcp_open_total",
        &[all(&[&from_client, &inbound, &src]), to_app],
    );
    // Closed as it should.
    client.terminate();
    let errno = labels([("errno", "")]);
    eventually("the client's connection is counted as closed", || {
        let closed = server.series("tcp_close_total");
        closed
            .get(&all(&[&from_client, &inbound, &src, &errno]))
            .filter(|count| **count == 1.0)
            .map(drop)
    });
}

/// The first message of an application's own TLS.
fn client_hello(name: &'static str) -> Vec<u8> {
    let config = ClientConfig::builder_with_provider(heddle_tls::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.3")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = name.try_into().expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("memory takes all");
    bytes
}

#[test]
fn strangers_are_told_apart_by_their_tls_and_how_they_end() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8081, server_for_everyone());
    let route = inbound::HttpRoute {
        metadata: default_meta("known"),
        hosts: Vec::new(),
        authorizations: vec![authz(None)],
        rules: vec![inbound::http_route::Rule {
            matches: vec![linkerd2_proxy_api::http_route::HttpRouteMatch {
                path: Some(linkerd2_proxy_api::http_route::PathMatch {
                    kind: Some(linkerd2_proxy_api::http_route::path_match::Kind::Exact(
                        "/known".to_owned(),
                    )),
                }),
                ..Default::default()
            }],
            filters: Vec::new(),
        }],
    };
    let mut routed = server_for_everyone();
    if let Some(inbound::proxy_protocol::Kind::Detect(detect)) =
        routed.protocol.as_mut().and_then(|one| one.kind.as_mut())
    {
        detect.http_routes = vec![route];
    }
    script.set_inbound("server", 8080, routed);
    let server = Pod::start(&network, &script, "server");
    serve_http(&server.namespace, 8080, "server");
    serve_greeting(&server.namespace, 8081);
    let (http, bytes, outside) = (server.addr(8080), server.addr(8081), network.namespace());
    let hello = client_hello("app.example.test");
    let sent = hello.clone();
    let (statuses, echoed) = outside.block_on(move || async move {
        let mut statuses = Vec::new();
        for path in ["/known", "/unknown"] {
            statuses.push(try_get(http, path).await.expect("a reply").status);
        }
        let mut tls = TcpStream::connect(bytes).await.expect("connects");
        tls.write_all(&sent).await.expect("sends");
        tls.shutdown().await.expect("ends");
        let mut echoed = Vec::new();
        tls.read_to_end(&mut echoed).await.expect("an echo");
        // A client that resets its connection, when the proxy knows that it is plain.
        let mut reset = TcpStream::connect(bytes).await.expect("connects");
        reset.write_all(b"no TLS, no HTTP\r\n\r\n").await.expect("sends");
        reset.read_exact(&mut [0; 11]).await.expect("a greeting");
        SockRef::from(&reset)
            .set_linger(Some(std::time::Duration::ZERO))
            .expect("our own socket");
        drop(reset);
        (statuses, echoed)
    });
    assert_eq!(statuses, [200, 404]);
    assert!(echoed.ends_with(&hello), "the application's own TLS passes");

    let passed = labels([("tls", "opaque"), ("sni", "app.example.test")]);
    let plain = unmeshed("no_tls_from_remote");
    let (opaque, stranger) = (
        all(&[&passed, &target(bytes), &srv("8081")]),
        all(&[&plain, &target(bytes), &srv("8081")]),
    );
    let everyone = of_default("authz", "everyone");
    has_exactly(
        &server,
        "inbound_tcp_authz_allow_total",
        &[all(&[&opaque, &everyone]), all(&[&stranger, &everyone])],
    );
    let src = labels([("direction", "inbound"), ("peer", "src")]);
    let at_http = all(&[&plain, &target(http), &srv("8080")]);
    has_exactly(&server, "inbound_http_route_not_found_total", from_ref(&at_http));
    has_exactly(
        &server,
        "inbound_http_errors_total",
        &[labels([("error", "no route")])],
    );
    for (whose, errno) in [(&opaque, ""), (&stranger, "ECONNRESET"), (&at_http, "")] {
        let closed = all(&[whose, &src, &labels([("errno", errno)])]);
        eventually("connections are counted by what ended them", || {
            server
                .series("tcp_close_total")
                .contains_key(&closed)
                .then_some(())
        });
    }
}

/// The policy of a service that is known to speak gRPC.
fn outbound_grpc(service: &str) -> outbound::OutboundPolicy {
    use outbound::grpc_route::{Distribution, RouteBackend, Rule, distribution};
    let first = RouteBackend {
        backend: Some(backend(service)),
        ..Default::default()
    };
    let first = distribution::FirstAvailable {
        backends: vec![first],
    };
    let rule = Rule {
        matches: vec![grpc_route::GrpcRouteMatch::default()],
        backends: Some(Distribution {
            kind: Some(distribution::Kind::FirstAvailable(first)),
        }),
        ..Default::default()
    };
    let grpc = outbound::proxy_protocol::Grpc {
        routes: vec![outbound::GrpcRoute {
            metadata: default_meta("grpc"),
            hosts: Vec::new(),
            rules: vec![rule],
        }],
        failure_accrual: None,
    };
    outbound::OutboundPolicy {
        protocol: Some(outbound::ProxyProtocol {
            kind: Some(outbound::proxy_protocol::Kind::Grpc(grpc)),
        }),
        metadata: default_meta(service),
    }
}

#[test]
fn grpc_and_tls_have_families_of_their_own() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let grpc = inbound::proxy_protocol::Kind::Grpc(inbound::proxy_protocol::Grpc::default());
    let grpc_server = inbound::Server {
        protocol: Some(inbound::ProxyProtocol { kind: Some(grpc) }),
        ..server_for_everyone()
    };
    script.set_inbound("server", 8080, grpc_server);
    script.set_inbound("server", 8081, opaque_server(vec![authz(None)]));
    let (client, server) = pair(&network, &script);
    serve_greeting(&server.namespace, 8081);
    script.set_outbound(service(), outbound_grpc("web"));
    let tls = endpoint(server.namespace.ip, 8081, Some("server"), true);
    script.set_endpoints(&path("tls"), vec![tls]);
    script.set_outbound(bytes_service(), outbound_tls(&[("app.example.test", "tls")]));
    let hello = client_hello("app.example.test");
    let sent = hello.clone();
    let (reply, echoed) = client.namespace.block_on(move || async move {
        let request = Request::post("http://web.test/grpc.Test/Call")
            .header("content-type", "application/grpc")
            .body(Full::new(Bytes::from_static(b"message")))
            .expect("valid");
        let reply = send_http2(service(), request).await.expect("a reply");
        let mut tcp = TcpStream::connect(bytes_service()).await.expect("connects");
        tcp.write_all(&sent).await.expect("sends");
        tcp.shutdown().await.expect("ends");
        let mut echoed = Vec::new();
        tcp.read_to_end(&mut echoed).await.expect("an echo");
        (reply, echoed)
    });
    let trailers = reply.trailers.expect("gRPC's trailers");
    assert_eq!(trailers["grpc-status"], "0");
    assert!(echoed.ends_with(&hello));

    let ok = [("grpc_status", "OK"), ("error", "")];
    for (pod, name, expected) in [
        (&client, "outbound_grpc_route_request_statuses_total", &ok[..]),
        (&client, "outbound_grpc_route_request_duration_seconds_count", &[]),
        (&client, "outbound_grpc_route_request_frame_size_bytes_count", &[]),
        (&client, "outbound_grpc_route_backend_requests_total", &[]),
        (
            &client,
            "outbound_grpc_route_backend_response_statuses_total",
            &ok,
        ),
        (
            &client,
            "outbound_grpc_route_backend_response_duration_seconds_count",
            &[],
        ),
        (&server, "inbound_grpc_requests_total", &[("parent_name", "web")]),
        (&server, "inbound_grpc_statuses_total", &ok),
        (&server, "inbound_grpc_request_duration_seconds_count", &[]),
        (&server, "inbound_grpc_response_duration_seconds_count", &[]),
        (
            &client,
            "outbound_tls_route_open_total",
            &[("route_name", "tls"), ("parent_name", "tls")],
        ),
        (&client, "outbound_tls_route_close_total", &[("error", "")]),
        (
            &client,
            "outbound_tls_balancer_queue_requests_total",
            &[("backend_name", "tls")],
        ),
        (&client, "outbound_tls_balancer_queue_gate_open_total", &[]),
        (
            &client,
            "outbound_tls_balancer_endpoints",
            &[("endpoint_state", "ready")],
        ),
        (
            &client,
            "outbound_tcp_protocol_connections_total",
            &[("protocol", "tls")],
        ),
        (
            &client,
            "response_total",
            &[("grpc_status", "0"), ("classification", "success")],
        ),
    ] {
        eventually(name, || {
            pod.metric(name, expected).filter(|value| *value == 1.0).map(drop)
        });
    }
}
