//! What a process can lack: time before its end, a valid certificate.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Http1, get, serve_greeting, try_get},
    attack::long,
    can_run,
    control::Script,
    eventually,
    fault_app::{Fickle, PIECE, PIECES},
    http_traffic::{pair, service},
    net::{Network, runtime},
    pod::{Options, Pod},
    policies::{authz, endpoint, http_rule, opaque_server, outbound_detect, outbound_opaque, path},
};

/// F10: what is under way when a proxy is told to end comes to its own end first.
#[test]
fn nothing_is_truncated_by_a_drain() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let mut server = Pod::start(&network, &script, "server");
    let app = Fickle::serve(&server.namespace, 8080);
    app.set_delay(Duration::from_secs(1));
    script.set_endpoints(
        &path("web"),
        vec![endpoint(server.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let mut client = Pod::start(&network, &script, "client");
    let (requests, streams) = if long() { (1_000, 100) } else { (150, 50) };
    let asking = client.namespace.thread(move || {
        runtime().block_on(async move {
            let ask = |path: &'static str| tokio::spawn(async move { try_get(service(), path).await });
            let asked: Vec<_> = (0..requests)
                .map(|_| ask("/"))
                .chain((0..streams).map(|_| ask("/long")))
                .collect();
            let mut replies = Vec::new();
            for one in asked {
                let reply = one.await.expect("no panic").expect("a whole reply");
                assert_eq!(reply.status, 200, "{:?}", reply.headers);
                replies.push(reply);
            }
            replies
        })
    });
    eventually("all are under way", || {
        assert!(!asking.is_finished(), "only {} came", app.seen());
        (app.seen() >= requests + streams).then_some(())
    });
    server.terminate();
    client.terminate();
    let replies = asking.join().expect("nothing is lost");
    for (number, reply) in replies.iter().enumerate() {
        let want = if number < requests as usize {
            2
        } else {
            PIECES * PIECE.len()
        };
        assert_eq!(
            (reply.status, reply.body.len()),
            (200, want),
            "{number}: {:?}",
            reply.headers
        );
    }
    assert_eq!((server.exit_code(), client.exit_code()), (Some(0), Some(0)));
}

/// Makes the server one of bytes; returns the service's address.
fn serve_bytes(script: &Script, server: &Pod) -> SocketAddr {
    serve_greeting(&server.namespace, 9000);
    let bytes: SocketAddr = ([10, 96, 0, 1], 9000).into();
    script.set_outbound(bytes, outbound_opaque("bytes"));
    script.set_endpoints(
        &path("bytes"),
        vec![endpoint(server.namespace.ip, 9000, Some("server"), true)],
    );
    bytes
}

/// What never ends by itself has the grace period, and then the proxy ends all the same.
#[test]
fn a_connection_without_end_has_the_grace_period() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 9000, opaque_server(vec![authz(None)]));
    let server = Pod::start(&network, &script, "server");
    let bytes = serve_bytes(&script, &server);
    let options = Options {
        env: vec![("SHUTDOWN_GRACE_PERIOD", "1500ms".to_owned())],
    };
    let mut client = Pod::start_with(&network, &script, "client", options);
    let (ready, is_ready) = std::sync::mpsc::sync_channel::<()>(1);
    let (ending, is_ending) = std::sync::mpsc::sync_channel::<()>(1);
    let held = client.namespace.thread(move || {
        runtime().block_on(async move {
            let mut tcp = TcpStream::connect(bytes).await.expect("connects");
            tcp.read_exact(&mut [0; 11]).await.expect("a greeting");
            ready.send(()).expect("the test waits for this");
            is_ending.recv().expect("the test says so");
            tcp.write_all(b"x").await.expect("it is open");
            let mut echo = [0; 1];
            tcp.read_exact(&mut echo).await.expect("it has its time");
            // Then it is over, without the application's doing.
            assert!(!matches!(tcp.read(&mut echo).await, Ok(1..)));
        })
    });
    is_ready.recv().expect("the connection is there");
    client.terminate();
    ending.send(()).expect("it is held");
    assert_eq!(client.exit_code(), Some(0));
    held.join().expect("it ended with the proxy");
}

/// F11: without the identity service certificates end. Then no new connection is made, and none without TLS instead.
#[test]
fn an_expired_certificate_ends_new_connections_and_no_old_one() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    // Renewal is due before the end, but by then nobody renews.
    script.set_leaf_life(Duration::from_secs(18));
    script.set_inbound("server", 9000, opaque_server(vec![authz(None)]));
    let (mut client, mut server) = pair(&network, &script);
    let bytes = serve_bytes(&script, &server);
    let greeted = |client: &Pod| {
        client.namespace.block_on(move || async move {
            let mut tcp = TcpStream::connect(bytes).await.ok()?;
            let mut greeting = [0; 11];
            timeout(DEADLINE, tcp.read_exact(&mut greeting))
                .await
                .ok()?
                .ok()?;
            Some(greeting)
        })
    };
    assert_eq!(greeted(&client).as_ref(), Some(b"220 hello\r\n"));
    let (over, is_over) = std::sync::mpsc::sync_channel::<()>(1);
    let (ready, is_ready) = std::sync::mpsc::sync_channel::<()>(1);
    let old = client.namespace.thread(move || {
        runtime().block_on(async move {
            let mut http = Http1::connect(service()).await.expect("connects");
            assert_eq!(http.send(get("/")).await.expect("a reply").status, 200);
            let mut tcp = TcpStream::connect(bytes).await.expect("connects");
            tcp.read_exact(&mut [0; 11]).await.expect("a greeting");
            ready.send(()).expect("the test waits for this");
            // Until the test says that it is over.
            while matches!(is_over.try_recv(), Err(std::sync::mpsc::TryRecvError::Empty)) {
                assert_eq!(http.send(get("/")).await.expect("a reply").status, 200);
                tcp.write_all(b"x").await.expect("it is open");
                timeout(DEADLINE, tcp.read_exact(&mut [0; 1]))
                    .await
                    .expect("in time")
                    .expect("an echo");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
    });
    is_ready.recv().expect("the old connections are there");
    for pod in [&mut client, &mut server] {
        pod.control.take().expect("it runs").stop();
    }
    let greeting = greeted(&client);
    assert_eq!(
        greeting.as_ref(),
        Some(b"220 hello\r\n"),
        "not for lack of a control plane"
    );
    eventually("new connections are refused", || {
        greeted(&client).is_none().then_some(())
    });
    assert!(!old.is_finished(), "old connections stay");
    over.send(()).expect("it still asks");
    old.join().expect("old connections work");
    let without_tls = [("direction", "inbound"), ("peer", "src"), ("tls", "no_identity")];
    assert_eq!(server.metric("tcp_open_total", &without_tls), None);
}
