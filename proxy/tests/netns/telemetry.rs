//! What the proxy tells of its traffic: metrics, and the access log.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::Full;
use linkerd2_proxy_api::{meta, outbound};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    apps::{Http1, serve_greeting, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::{Options, Pod},
    policies::{authz, endpoint, http_rule, identity, opaque_server, outbound_detect, outbound_opaque, path},
};

pub(crate) fn bytes_service() -> SocketAddr {
    ([10, 96, 0, 2], 25).into()
}

/// The service's policy with the names that Kubernetes gives it.
pub(crate) fn resources() -> outbound::OutboundPolicy {
    let service = meta::Metadata {
        kind: Some(meta::metadata::Kind::Resource(meta::Resource {
            group: "core".to_owned(),
            kind: "Service".to_owned(),
            name: "web".to_owned(),
            namespace: "test".to_owned(),
            section: String::new(),
            port: 80,
        })),
    };
    let mut rule = http_rule("web");
    let backends = rule.backends.as_mut().and_then(|backends| backends.kind.as_mut());
    let Some(outbound::http_route::distribution::Kind::FirstAvailable(first)) = backends else {
        panic!("the rule has one backend");
    };
    for backend in first.backends.iter_mut().filter_map(|one| one.backend.as_mut()) {
        backend.metadata = Some(service.clone());
    }
    outbound::OutboundPolicy {
        metadata: Some(service),
        ..outbound_detect("web", rule)
    }
}

/// A family of metrics, its type, and labels that one of its series has.
type Expected<'e> = (&'e str, &'e str, &'e [(&'e str, &'e str)]);

fn missing(scrape: &str, expected: &[Expected<'_>]) -> Vec<String> {
    let is_there = |(name, kind, labels): &Expected<'_>| {
        let typed = scrape.lines().any(|line| line == format!("# TYPE {name} {kind}"));
        let suffix = if *kind == "histogram" { "_count" } else { "" };
        let series = scrape.lines().any(|line| {
            line.starts_with(&format!("{name}{suffix}{{"))
                && labels.iter().all(|(label, value)| {
                    let text = format!("{label}=\"{value}\"");
                    line.contains(&format!("{{{text}")) || line.contains(&format!(",{text}"))
                })
        });
        typed && series
    };
    let absent = expected.iter().filter(|one| !is_there(one));
    absent.map(|one| format!("{one:?}")).collect()
}

#[test]
fn metrics_have_linkerds_names_types_and_labels() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8081, opaque_server(vec![authz(None)]));
    let (client, server) = pair(&network, &script);
    serve_greeting(&server.namespace, 8081);
    script.set_outbound(service(), resources());
    let smtp = endpoint(server.namespace.ip, 8081, Some("server"), true);
    script.set_endpoints(&path("smtp"), vec![smtp]);
    script.set_outbound(bytes_service(), outbound_opaque("smtp"));
    client.namespace.block_on(|| async {
        let mut connection = Http1::connect(service()).await.expect("connects");
        for _ in 0..3 {
            let request = Request::post("/echo").header(header::HOST, "web.test");
            let request = request
                .body(Full::new(Bytes::from_static(b"a body")))
                .expect("valid");
            assert_eq!(connection.send(request).await.expect("a reply").status, 200);
        }
        let mut tcp = tokio::net::TcpStream::connect(bytes_service())
            .await
            .expect("connects");
        tcp.write_all(b"bytes").await.expect("sends");
        tcp.shutdown().await.expect("ends");
        let mut all = Vec::new();
        tcp.read_to_end(&mut all)
            .await
            .expect("the greeting, and what was sent");
        assert_eq!(all, b"220 hello\r\nbytes");
    });

    let (client_id, server_id) = (identity("client"), identity("server"));
    let parent = [
        ("parent_group", "core"),
        ("parent_kind", "Service"),
        ("parent_name", "web"),
    ];
    let route = [parent[0], parent[2], ("route_kind", "default"), ("hostname", "")];
    let backend = [
        parent[2],
        ("backend_kind", "Service"),
        ("backend_name", "web"),
        ("backend_port", "80"),
    ];
    // A policy that is not used for five seconds is forgotten, and its endpoints with it.
    let ready = [backend[2], ("endpoint_state", "ready")];
    assert_eq!(
        client.metric("outbound_http_balancer_endpoints", &ready),
        Some(1.0)
    );
    let status = [parent[2], ("http_status", "200"), ("error", "")];
    let backend_status = [backend[2], ("http_status", "200"), ("error", "")];
    let to_server = [
        ("direction", "outbound"),
        ("server_id", server_id.as_str()),
        ("tls", "true"),
    ];
    let smtp_open = [("parent_name", "smtp")];
    let smtp_close = [("parent_name", "smtp"), ("error", "")];
    let outbound: &[Expected<'_>] = &[
        ("request_total", "counter", &to_server),
        ("response_total", "counter", &to_server),
        ("response_latency_ms", "histogram", &to_server),
        ("tcp_open_total", "counter", &[("peer", "dst"), ("tls", "true")]),
        ("tcp_open_connections", "gauge", &[("peer", "src")]),
        ("tcp_read_bytes_total", "counter", &to_server),
        ("tcp_write_bytes_total", "counter", &to_server),
        ("tcp_close_total", "counter", &[("peer", "src"), ("errno", "")]),
        (
            "outbound_http_route_request_duration_seconds",
            "histogram",
            &route,
        ),
        ("outbound_http_route_request_statuses_total", "counter", &status),
        (
            "outbound_http_route_request_frame_size_bytes",
            "histogram",
            &route,
        ),
        ("outbound_http_route_backend_requests_total", "counter", &backend),
        (
            "outbound_http_route_backend_response_duration_seconds",
            "histogram",
            &backend,
        ),
        (
            "outbound_http_route_backend_response_statuses_total",
            "counter",
            &backend_status,
        ),
        (
            "outbound_http_route_backend_response_frame_size_bytes",
            "histogram",
            &backend,
        ),
        (
            "outbound_http_balancer_endpoints",
            "gauge",
            &[backend[2], ("endpoint_state", "ready")],
        ),
        (
            "outbound_http_balancer_endpoints",
            "gauge",
            &[backend[2], ("endpoint_state", "pending")],
        ),
        ("outbound_http_balancer_p2c_endpoints", "gauge", &backend),
        (
            "outbound_http_balancer_p2c_updates_total",
            "counter",
            &[backend[2], ("op", "Add")],
        ),
        ("outbound_http_balancer_queue_length", "gauge", &backend),
        ("outbound_http_balancer_queue_requests_total", "counter", &backend),
        (
            "outbound_http_balancer_queue_latency_seconds",
            "histogram",
            &backend,
        ),
        (
            "outbound_tcp_balancer_endpoints",
            "gauge",
            &[("backend_name", "smtp")],
        ),
        ("outbound_tcp_route_open_total", "counter", &smtp_open),
        ("outbound_tcp_route_close_total", "counter", &smtp_close),
        (
            "outbound_tcp_protocol_connections_total",
            "counter",
            &[parent[2], ("protocol", "detect")],
        ),
        (
            "outbound_tcp_protocol_connections_total",
            "counter",
            &[smtp_open[0], ("protocol", "opaq")],
        ),
        (
            "outbound_tcp_detect_http_results_total",
            "counter",
            &[parent[2], ("result", "http/1")],
        ),
        ("outbound_tcp_detect_http_duration_seconds", "histogram", &parent),
        (
            "outbound_tcp_transfer_cost_bytes_total",
            "counter",
            &[("op", "Send"), ("zone_locality", "unknown")],
        ),
        (
            "outbound_tcp_transfer_cost_bytes_total",
            "counter",
            &[("op", "Recv")],
        ),
        ("control_request_total", "counter", &[("addr", "127.0.0.1:8086")]),
        (
            "control_response_total",
            "counter",
            &[("classification", "success"), ("error", "")],
        ),
        (
            "control_response_latency_ms",
            "histogram",
            &[("status_code", "200")],
        ),
        ("tokio_rt_workers", "gauge", &[("rt", "worker-0")]),
        ("tokio_rt_alive_tasks", "gauge", &[("rt", "control")]),
        ("tokio_rt_injection_queue_depth", "gauge", &[("rt", "control")]),
        ("tokio_rt_park_total", "counter", &[("rt", "worker-0")]),
        ("tokio_rt_busy_seconds_total", "counter", &[("rt", "worker-0")]),
        (
            "rustls_info",
            "gauge",
            &[("tls_kx_groups", "X25519MLKEM768,X25519,secp256r1,secp384r1")],
        ),
        ("proxy_build_info", "gauge", &[("vendor", "heddle")]),
    ];
    let from_client = [
        ("direction", "inbound"),
        ("client_id", client_id.as_str()),
        ("srv_name", "web"),
    ];
    let policy = [
        ("client_id", client_id.as_str()),
        ("srv_name", "web"),
        ("srv_port", "8080"),
        ("authz_name", "everyone"),
    ];
    let server_route = [
        ("parent_kind", "server"),
        ("parent_name", "web"),
        ("parent_port", "8080"),
        ("route_name", "default"),
    ];
    let server_status = [server_route[1], ("http_status", "200"), ("error", "")];
    let header = [
        ("session_protocol", ""),
        ("target_port", "8081"),
        ("client_id", client_id.as_str()),
    ];
    let inbound: &[Expected<'_>] = &[
        ("request_total", "counter", &from_client),
        ("response_total", "counter", &from_client),
        ("response_latency_ms", "histogram", &from_client),
        ("inbound_http_authz_allow_total", "counter", &policy),
        (
            "inbound_tcp_authz_allow_total",
            "counter",
            &[("srv_port", "8081")],
        ),
        ("inbound_http_requests_total", "counter", &server_route),
        ("inbound_http_statuses_total", "counter", &server_status),
        (
            "inbound_http_request_duration_seconds",
            "histogram",
            &server_route,
        ),
        (
            "inbound_http_response_duration_seconds",
            "histogram",
            &server_route,
        ),
        (
            "inbound_http_request_frame_size_bytes",
            "histogram",
            &server_route,
        ),
        (
            "inbound_http_response_frame_size_bytes",
            "histogram",
            &server_route,
        ),
        (
            "inbound_tcp_detect_http_results_total",
            "counter",
            &[("result", "h2"), ("srv_name", "web")],
        ),
        (
            "inbound_tcp_detect_http_duration_seconds",
            "histogram",
            &[("srv_name", "web")],
        ),
        (
            "inbound_tcp_transport_header_connections_total",
            "counter",
            &header,
        ),
    ];
    for (pod, expected) in [(&client, outbound), (&server, inbound)] {
        eventually("all families are there", || {
            let (_, scrape) = pod.admin("/metrics");
            let missing = missing(&scrape, expected);
            if !missing.is_empty() && std::env::var_os("SHOW_MISSING").is_some() {
                println!("missing: {missing:#?}");
            }
            missing.is_empty().then_some(())
        });
        let (_, scrape) = pod.admin("/metrics");
        for name in [
            "control_identity_cert_expiration_timestamp_seconds",
            "control_identity_cert_refresh_timestamp_seconds",
            "process_resident_memory_bytes",
            "process_open_fds",
            "process_start_time_seconds",
        ] {
            assert!(scrape.contains(&format!("# TYPE {name} gauge\n")), "{name}");
        }
        for line in scrape.lines().filter(|line| !line.starts_with('#')) {
            let value = line.rsplit(' ').next().unwrap_or_default();
            assert!(value.parse::<f64>().is_ok(), "`{line}` has no value");
        }
        let mut families: Vec<_> = scrape.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = families.len();
        families.sort_unstable();
        families.dedup();
        assert_eq!(families.len(), all, "each family is told once");
    }
    assert_eq!(
        client.metric("control_identity_cert_refreshes_total", &[("result", "ok")]),
        Some(1.0)
    );
    assert_eq!(
        client.metric("outbound_http_route_backend_requests_total", &backend),
        Some(3.0)
    );
    assert_eq!(
        client.metric("outbound_http_route_request_statuses_total", &status),
        Some(3.0)
    );
    assert_eq!(
        server.metric("inbound_http_requests_total", &server_route),
        Some(3.0)
    );
    assert_eq!(
        client.metric("outbound_http_balancer_queue_requests_total", &backend),
        Some(3.0)
    );
}

#[test]
fn routes_tell_the_host_that_was_asked_for_when_metrics_are_to() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (_plain, _server) = pair(&network, &script);
    let options = Options {
        env: vec![("OUTBOUND_METRICS_HOSTNAME_LABELS", "true".to_owned())],
    };
    let client = Pod::start_with(&network, &script, "client", options);
    client.namespace.block_on(|| async {
        let mut connection = Http1::connect(service()).await.expect("connects");
        for host in ["web.test:80", "10.1.1.1", "no name"] {
            let request = Request::get("/").header(header::HOST, host);
            let sent = connection
                .send(request.body(Full::default()).expect("valid"))
                .await;
            assert!(sent.is_ok());
        }
    });
    let name = "outbound_http_route_request_statuses_total";
    eventually("requests are counted by name", || {
        let by_name = client.metric(name, &[("hostname", "web.test")]) == Some(1.0);
        // What is no name is not told.
        (by_name && client.metric(name, &[("hostname", "")]).is_some()).then_some(())
    });
}

#[test]
fn the_access_log_has_linkerds_fields_in_both_forms() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let logging = |format: &str| Options {
        env: vec![("ACCESS_LOG", format.to_owned())],
    };
    let json = Pod::start_with(&network, &script, "server", logging("json"));
    serve_http(&json.namespace, 8080, "json");
    let addrs = vec![endpoint(json.namespace.ip, 8080, Some("server"), false)];
    script.set_endpoints(&path("web"), addrs);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start(&network, &script, "client");
    let reply = client.namespace.block_on(|| async {
        let request = Request::post("/echo?a=b")
            .header(header::HOST, "web.test")
            .header(header::USER_AGENT, "a \"client\"")
            .header("x-b3-traceid", "94d7f6ec6b95f3e9");
        let request = request
            .body(Full::new(Bytes::from_static(b"a body")))
            .expect("valid");
        Http1::connect(service())
            .await
            .expect("connects")
            .send(request)
            .await
    });
    assert_eq!(reply.expect("a reply").status, 200);
    let line = eventually("a line is logged", || {
        let log = json.stderr();
        log.lines().find(|line| line.starts_with('{')).map(str::to_owned)
    });
    let line: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    let text = |key: &str| {
        line[key]
            .as_str()
            .unwrap_or_else(|| panic!("no {key} in {line}"))
            .to_owned()
    };
    let client_ip = client.namespace.ip.to_string();
    assert!(text("client.addr").starts_with(&client_ip), "{line}");
    assert_eq!(text("client.id"), identity("client"));
    assert_eq!(
        (text("method"), text("uri")),
        ("POST".to_owned(), "http://web.test/echo?a=b".to_owned())
    );
    assert_eq!(
        (text("version"), text("request_bytes")),
        ("HTTP/2.0".to_owned(), "6".to_owned())
    );
    assert_eq!(
        (text("user_agent"), text("response_bytes")),
        ("a \"client\"".to_owned(), "6".to_owned())
    );
    assert_eq!(
        (text("trace_id"), line["status"].as_u64()),
        ("94d7f6ec6b95f3e9".to_owned(), Some(200))
    );
    assert!(text("timestamp").ends_with('Z'));
    let number = |key: &str| text(key).parse::<u64>().expect("a number");
    assert!(number("total_ns") >= number("processing_ns") && number("processing_ns") > 0);
    // A HTTP/2 request's host is in its URI.
    assert_eq!(text("host"), "");

    let apache = Pod::start_with(&network, &script, "server", logging("apache"));
    serve_http(&apache.namespace, 8080, "apache");
    let (addr, outside) = (apache.addr(8080), network.namespace());
    let outside_ip = outside.ip.to_string();
    let reply = outside.block_on(move || async move { try_get(addr, "/slow?x").await });
    assert_eq!(reply.expect("a reply").status, 200);
    let line = eventually("a line is logged", || {
        let log = apache.stderr();
        log.lines().find(|line| line.contains("/slow")).map(str::to_owned)
    });
    assert!(line.starts_with(&format!("{outside_ip}:")), "{line}");
    assert!(line.contains(" - - ["), "no identity: {line}");
    assert!(line.ends_with("] \"GET /slow?x HTTP/1.1\" 200 6"), "{line}");
    assert_eq!(
        json.stderr().lines().filter(|line| line.starts_with('{')).count(),
        1
    );
}
