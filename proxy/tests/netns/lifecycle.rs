//! Start, drain, and a control plane that comes and goes.

use std::{
    io::Read as _,
    net::TcpStream,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Http1, get, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::{Network, runtime},
    pod::{A_WHILE, Pod},
    policies::{endpoint, path},
};

#[test]
fn a_wrong_environment_is_told_whole() {
    let output = Command::new(env!("CARGO_BIN_EXE_heddle-proxy"))
        .env_clear()
        .env("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "nowhere")
        .env("LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT", "1.5s")
        .env("LINKERD2_PROXY_INBOUND_PORTS", "80-70")
        .env("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", "10.0.0.0/99")
        .env("LINKERD2_PROXY_INGRESS_MODE", "perhaps")
        .env("LINKERD2_PROXY_LOG", "warn,heddle=loud")
        .env("LINKERD2_PROXY_IDENTITY_SVC_ADDR", "identity:port")
        .env("LINKERD2_PROXY_TRACE_COLLECTOR_SVC_NAME", "otel.test")
        .output()
        .expect("heddle-proxy runs");
    assert_eq!(output.status.code(), Some(64));
    let stderr = String::from_utf8_lossy(&output.stderr);
    for name in [
        "INBOUND_LISTEN_ADDR is invalid",
        "OUTBOUND_CONNECT_TIMEOUT is invalid",
        "INBOUND_PORTS is invalid",
        "POLICY_CLUSTER_NETWORKS is invalid",
        "INGRESS_MODE is invalid",
        "LOG is invalid",
        "IDENTITY_SVC_ADDR is invalid",
        "IDENTITY_SVC_NAME must be set",
        "DESTINATION_SVC_ADDR must be set",
        "POLICY_SVC_ADDR must be set",
        "POLICY_WORKLOAD must be set",
        "IDENTITY_LOCAL_NAME must be set",
        "IDENTITY_TOKEN_FILE must be set",
        "IDENTITY_DIR must be set",
        "IDENTITY_TRUST_ANCHORS must be set",
        "TRACE_COLLECTOR_SVC_ADDR must be set",
    ] {
        assert!(
            stderr.contains(&format!("LINKERD2_PROXY_{name}")),
            "{name}: {stderr}"
        );
    }
}

#[test]
fn draining_either_side_loses_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, mut first) = pair(&network, &script);
    let mut client = client;
    let second = Pod::start(&network, &script, "second");
    serve_http(&second.namespace, 8080, "second");
    let one = endpoint(first.namespace.ip, 8080, Some("server"), false);
    let two = endpoint(second.namespace.ip, 8080, Some("second"), false);
    script.set_endpoints(&path("web"), vec![one, two.clone()]);

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, done) = (stop.clone(), done.clone());
            client.namespace.thread(move || {
                runtime().block_on(async move {
                    let mut connection = Http1::connect(service()).await.expect("connects");
                    while !stop.load(Relaxed) {
                        let reply = connection.send(get("/")).await.expect("no request is lost");
                        assert_eq!(reply.status, 200, "{reply:?}");
                        done.fetch_add(1, Relaxed);
                        if reply
                            .headers
                            .get("connection")
                            .is_some_and(|value| value == "close")
                        {
                            break;
                        }
                    }
                });
            })
        })
        .collect();
    let reached = |count: u32| eventually("requests flow", || (done.load(Relaxed) >= count).then_some(()));
    reached(50);
    // As Kubernetes does it: the endpoint goes, and the pod is told to end.
    script.set_endpoints(&path("web"), vec![two]);
    first.terminate();
    assert_eq!(first.exit_code(), Some(0));
    reached(done.load(Relaxed) + 50);
    // Now the client's own proxy: its connections are told that they end.
    client.terminate();
    for client in clients {
        client.join().expect("no client has lost a request");
    }
    stop.store(true, Relaxed);
    assert_eq!(client.exit_code(), Some(0));
}

#[test]
fn a_slow_request_is_finished_while_draining() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, mut server) = pair(&network, &script);
    let requesting = client
        .namespace
        .thread(|| runtime().block_on(async { try_get(service(), "/slow").await }));
    eventually("the request is under way", || {
        server.metric("request_total", &[("direction", "inbound")])
    });
    server.terminate();
    let reply = requesting.join().expect("no panic").expect("a reply");
    assert_eq!((reply.status, reply.body.as_str()), (200, "server"));
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn traffic_goes_on_without_a_control_plane_and_follows_it_when_it_returns() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (mut client, mut server) = pair(&network, &script);
    let ask = |client: &Pod| {
        client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply") })
    };
    assert_eq!(ask(&client).status, 200);
    for pod in [&mut client, &mut server] {
        pod.control.take().expect("it runs").stop();
    }
    for _ in 0..20 {
        assert_eq!(ask(&client).status, 200);
    }
    let second = Pod::start(&network, &script, "second");
    serve_http(&second.namespace, 8080, "second");
    script.set_endpoints(
        &path("web"),
        vec![endpoint(second.namespace.ip, 8080, Some("second"), false)],
    );
    client.control = Some(script.serve(&client.namespace));
    eventually("the new endpoint is used", || {
        (ask(&client).body == "second").then_some(())
    });
    assert!(client.is_running() && server.is_running());
}

#[test]
fn a_head_without_end_is_cut_and_an_idle_connection_stays() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (_client, server) = pair(&network, &script);
    let outside = network.namespace();
    let addr = server.addr(8080);
    let reply = outside.block_on(move || async move {
        let mut idle = Http1::connect(addr).await.expect("connects");
        assert_eq!(idle.send(get("/")).await.expect("a reply").status, 200);
        let mut slow = tokio::net::TcpStream::connect(addr).await.expect("connects");
        slow.write_all(b"GET / HTTP/1.1\r\nhost: web.test\r\n")
            .await
            .expect("writes");
        let cut = async {
            // A byte now and then does not help.
            while slow.write_all(b"x").await.is_ok() {
                if let Ok(Ok(0) | Err(_)) = timeout(Duration::from_secs(1), slow.read(&mut [0; 64])).await {
                    return;
                }
            }
        };
        timeout(DEADLINE, cut).await.expect("cut in time");
        idle.send(get("/")).await.expect("a reply")
    });
    assert_eq!(reply.status, 200);
}

#[test]
fn bad_peers_are_survived() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, mut server) = pair(&network, &script);
    let outside = network.namespace();
    let addr = server.addr(8080);
    let direct = server.addr(4143);
    outside
        .thread(move || {
            use std::io::Write as _;
            let hello = [&[22, 3, 1, 0xff, 0xff, 1, 0, 0, 1][..], &[0; 64]].concat();
            let long_header = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200_000));
            let h2_garbage = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0xff; 4096]].concat();
            for bytes in [
                &b""[..],
                b"\x16",
                &hello,
                long_header.as_bytes(),
                &h2_garbage,
                b"GET / HTTP/1.1\r\nhost",
            ] {
                for addr in [addr, direct] {
                    let mut tcp = TcpStream::connect(addr).expect("connects");
                    // What the proxy makes of it is its own affair, as long as it lives.
                    let _ = tcp.write_all(bytes);
                    tcp.set_read_timeout(Some(A_WHILE)).expect("a timeout");
                    let _ = tcp.read(&mut [0; 1024]);
                }
            }
        })
        .join()
        .expect("no panic");
    let reply = client
        .namespace
        .block_on(|| async { try_get(service(), "/").await.expect("a reply") });
    assert_eq!(reply.status, 200);
    assert!(server.is_running());
}
