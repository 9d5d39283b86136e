//! Requests and upgraded connections that live when the policy changes.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkerd2_proxy_api::inbound::{self, proxy_protocol::Kind};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::upgrade,
    attack_routing::route,
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::A_WHILE,
    policies::{authz, identity, server},
};

/// `/endless/open` and upgrades by strangers are for everyone, everything else for these.
fn policy(who: &[&str]) -> inbound::Server {
    let mut server = server(Vec::new());
    let routes = vec![
        route("open", "/endless/open", vec![authz(None)]),
        route("rest", "/", vec![authz(Some(who))]),
    ];
    if let Some(Kind::Detect(detect)) = server.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
        detect.http_routes = routes;
    }
    server
}

fn ask(path: &str) -> Request<Full<Bytes>> {
    let request = Request::get(format!("http://web.test{path}"));
    request.body(Full::default()).expect("valid")
}

async fn first_frame(body: &mut Incoming) -> Bytes {
    let frame = timeout(DEADLINE, body.frame()).await.expect("in time");
    let frame = frame.expect("not ended").expect("no error");
    frame.into_data().expect("data")
}

async fn reversed(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> std::io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    io.write_all(b"abcd").await?;
    io.read_exact(&mut bytes).await?;
    Ok(bytes)
}

#[test]
fn what_a_new_policy_forbids_ends_and_the_rest_goes_on() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, policy(&["client"]));
    let (client, pod) = pair(&network, &script);
    let script_too = script.clone();
    client.namespace.block_on(move || async move {
        let tcp = TcpStream::connect(service()).await.expect("connects");
        let (mut http2, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .expect("HTTP/2");
        tokio::spawn(connection);
        let mut streams = Vec::new();
        for path in ["/endless", "/endless/open"] {
            let response = http2.send_request(ask(path)).await.expect("a reply");
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            assert_eq!(&first_frame(&mut body).await[..], b"first");
            streams.push(body);
        }
        let silent = tokio::spawn(http2.send_request(ask("/silent")));
        let mut upgraded = upgrade(service()).await.expect("upgraded");
        assert_eq!(&reversed(&mut upgraded).await.expect("an answer"), b"dcba");

        // A change that allows what it did before ends nothing.
        script_too.set_inbound("server", 8080, policy(&["client", "other"]));
        tokio::time::sleep(A_WHILE).await;
        assert_eq!(&reversed(&mut upgraded).await.expect("an answer"), b"dcba");
        assert!(!silent.is_finished());

        script_too.set_inbound("server", 8080, policy(&["other"]));
        let ended = timeout(DEADLINE, streams[0].frame())
            .await
            .expect("ended in time");
        assert!(matches!(ended, Some(Err(_))), "{ended:?}");
        let refused = timeout(DEADLINE, silent).await.expect("answered in time");
        let refused = refused.expect("no panic").expect("a reply");
        assert_eq!(refused.status(), 403);
        let ended = timeout(DEADLINE, upgraded.read(&mut [0; 4]))
            .await
            .expect("ended in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        // On the same connection, what is still allowed.
        assert!(timeout(A_WHILE, streams[1].frame()).await.is_err(), "it goes on");
        let response = http2.send_request(ask("/endless/open")).await.expect("a reply");
        assert_eq!(response.status(), 200);
    });
    let client_id = identity("client");
    let terminated = [("client_id", client_id.as_str()), ("srv_name", "web")];
    assert_eq!(
        pod.metric("inbound_tcp_authz_terminate_total", &terminated),
        Some(1.0)
    );
    let denied = [("client_id", client_id.as_str()), ("route_name", "rest")];
    assert_eq!(pod.metric("inbound_http_authz_deny_total", &denied), Some(1.0));
    // Upgraded connections are counted as the responses that they began with.
    let switched = [("direction", "inbound"), ("status_code", "101")];
    assert_eq!(pod.metric("response_total", &switched), Some(1.0));

    // What was forbidden may begin again when it is allowed again.
    script.set_inbound("server", 8080, policy(&["client"]));
    eventually("the client is let in again", || {
        client
            .namespace
            .block_on(|| async { upgrade(service()).await.ok()?.write_all(b"abcd").await.ok() })
    });
}

#[test]
fn an_unmeshed_upgraded_connection_carries_much_and_ends_when_forbidden() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (_client, pod) = pair(&network, &script);
    let (outside, addr) = (network.namespace(), pod.addr(8080));
    outside.block_on(move || async move {
        let mut upgraded = upgrade(addr).await.expect("upgraded");
        // More than is copied before the kernel takes over; both ways at once.
        let (mut read, mut write) = tokio::io::split(&mut upgraded);
        const BYTES: usize = 1 << 20;
        let mut sent = 0;
        let sending = async {
            while sent < BYTES {
                write.write_all(b"abcdefgh").await?;
                sent += 8;
            }
            write.flush().await
        };
        let receiving = async {
            let mut bytes = vec![0; BYTES];
            read.read_exact(&mut bytes).await.map(|_| bytes)
        };
        let (_, bytes) = timeout(DEADLINE, async { tokio::try_join!(sending, receiving) })
            .await
            .expect("in time")
            .expect("no error");
        assert!(bytes.chunks(8).all(|chunk| chunk == b"dcbahgfe"));
        script.set_inbound("server", 8080, policy(&["nobody"]));
        let ended = timeout(DEADLINE, upgraded.read(&mut [0; 4]))
            .await
            .expect("ended in time");
        assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    });
}
