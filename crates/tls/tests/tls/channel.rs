use std::{net::SocketAddr, time::Duration};

use heddle_tls::{
    ClientAuth, ControlChannel, Store,
    connect::ChannelOptions,
    serve::{Limits, Server},
};
use linkerd2_proxy_api::identity::{CertifyRequest, identity_client::IdentityClient};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tonic::{Code, Status, service::Routes};

use crate::support::{DEADLINE, Running, identity, mk_ca, mk_certified, mk_store};

fn options() -> ChannelOptions {
    ChannelOptions {
        always_tls: true,
        ..ChannelOptions::default()
    }
}

fn client(
    addr: SocketAddr,
    server: &str,
    store: &Store,
    auth: ClientAuth,
    options: ChannelOptions,
) -> IdentityClient<ControlChannel> {
    IdentityClient::new(ControlChannel::with_options(
        addr.into(),
        identity(server),
        store.clone(),
        auth,
        options,
    ))
}

async fn ask(client: &mut IdentityClient<ControlChannel>) -> Result<String, Status> {
    ask_with(client, b"").await
}

async fn ask_with(client: &mut IdentityClient<ControlChannel>, token: &[u8]) -> Result<String, Status> {
    let request = CertifyRequest {
        token: token.to_vec(),
        ..CertifyRequest::default()
    };
    let response = timeout(DEADLINE, client.certify(request))
        .await
        .expect("in time")?;
    Ok(String::from_utf8_lossy(&response.into_inner().leaf_certificate).into_owned())
}

#[tokio::test]
async fn the_server_sees_who_calls() {
    let ca = mk_ca("root");
    let server = Running::start(Some(mk_certified("server", &ca)), Limits::default()).await;
    let store = mk_certified("web", &ca);
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, options());
    assert_eq!(
        ask(&mut web).await.expect("answers"),
        format!("{} tls=true", identity("web"))
    );
    let mut anonymous = client(server.addr, "server", &store, ClientAuth::Anonymous, options());
    assert_eq!(ask(&mut anonymous).await.expect("answers"), "nobody tls=true");
    // One that has no leaf yet is nobody, too.
    let (bare, _) = mk_store("bare", &[&ca]);
    let mut bare = client(server.addr, "server", &bare, ClientAuth::Leaf, options());
    assert_eq!(ask(&mut bare).await.expect("answers"), "nobody tls=true");
    server.stop().await;
}

#[tokio::test]
async fn loopback_is_spoken_to_without_tls() {
    let ca = mk_ca("root");
    let server = Running::start(None, Limits::default()).await;
    let store = mk_certified("web", &ca);
    let mut web = client(
        server.addr,
        "server",
        &store,
        ClientAuth::Leaf,
        ChannelOptions::default(),
    );
    assert_eq!(ask(&mut web).await.expect("answers"), "nobody tls=false");
    server.stop().await;
}

#[tokio::test]
async fn plaintext_is_served_on_loopback_only() {
    let listener = TcpListener::bind("0.0.0.0:0").await.expect("binds");
    let (_drain, watch) = drain::channel();
    let error = Server::new(Routes::default())
        .serve_plaintext(listener, watch)
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("is not a loopback address"), "{error}");
}

#[tokio::test]
async fn servers_that_are_not_who_they_should_be_are_refused() {
    let (ca, other) = (mk_ca("root"), mk_ca("other"));
    let impatient = ChannelOptions {
        wait_timeout: Duration::from_millis(500),
        ..options()
    };
    let store = mk_certified("web", &ca);
    for (server, reason) in [
        (mk_certified("impostor", &ca), "certificate not valid for name"),
        (mk_certified("server", &other), "UnknownIssuer"),
    ] {
        let server = Running::start(Some(server), Limits::default()).await;
        let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, impatient.clone());
        let status = ask(&mut web).await.expect_err("refused");
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains(reason), "{}", status.message());
        server.stop().await;
    }
}

#[tokio::test]
async fn a_channel_outlives_its_server() {
    let ca = mk_ca("root");
    let server = mk_certified("server", &ca);
    let store = mk_certified("web", &ca);
    let first = Running::start(Some(server.clone()), Limits::default()).await;
    let addr = first.addr;
    let mut web = client(addr, "server", &store, ClientAuth::Leaf, options());
    ask(&mut web).await.expect("answers");
    first.stop().await;
    // While there is no server, a request waits for it.
    let mut waiting = web.clone();
    let request = tokio::spawn(async move { ask(&mut waiting).await });
    let second = Running::start_on(addr, Some(server), Limits::default()).await;
    request.await.expect("the task ends").expect("answers");
    ask(&mut web).await.expect("answers");
    second.stop().await;
}

#[tokio::test]
async fn without_a_server_requests_fail_in_time_and_say_why() {
    let ca = mk_ca("root");
    let unused = TcpListener::bind("127.0.0.1:0")
        .await
        .expect("binds")
        .local_addr()
        .expect("has an address");
    let store = mk_certified("web", &ca);
    let impatient = ChannelOptions {
        wait_timeout: Duration::from_millis(300),
        ..options()
    };
    let mut web = client(unused, "server", &store, ClientAuth::Leaf, impatient);
    let status = ask(&mut web).await.expect_err("nobody listens");
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("failed to connect to"),
        "{}",
        status.message()
    );
}

#[tokio::test]
async fn a_drain_lets_requests_in_flight_end() {
    let ca = mk_ca("root");
    let server = Running::start(Some(mk_certified("server", &ca)), Limits::default()).await;
    let store = mk_certified("web", &ca);
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, options());
    let request = tokio::spawn(async move { ask_with(&mut web, b"wait").await });
    let mut waiting = server.waiting.clone();
    timeout(DEADLINE, waiting.wait_for(|waiting| *waiting == 1))
        .await
        .expect("in time")
        .expect("lives");
    let gate = server.gate.clone();
    let stopping = tokio::spawn(server.stop());
    gate.send_replace(true);
    request.await.expect("the task ends").expect("answers");
    stopping.await.expect("stops");
}

#[tokio::test]
async fn a_drain_ends_with_its_time() {
    let ca = mk_ca("root");
    let limits = Limits {
        drain_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Running::start(Some(mk_certified("server", &ca)), limits).await;
    let store = mk_certified("web", &ca);
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, options());
    let request = tokio::spawn(async move { ask_with(&mut web, b"wait").await });
    let mut waiting = server.waiting.clone();
    timeout(DEADLINE, waiting.wait_for(|waiting| *waiting == 1))
        .await
        .expect("in time")
        .expect("lives");
    server.stop().await;
    request.await.expect("the task ends").expect_err("cut");
}

#[tokio::test]
async fn requests_at_a_time_are_bounded() {
    let ca = mk_ca("root");
    let server = Running::start(Some(mk_certified("server", &ca)), Limits::default()).await;
    let store = mk_certified("web", &ca);
    let one = ChannelOptions {
        requests_max: 1,
        wait_timeout: Duration::from_secs(2),
        ..options()
    };
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, one);
    let mut first = web.clone();
    let first = tokio::spawn(async move { ask_with(&mut first, b"wait").await });
    let mut waiting = server.waiting.clone();
    timeout(DEADLINE, waiting.wait_for(|waiting| *waiting == 1))
        .await
        .expect("in time")
        .expect("lives");
    assert_eq!(
        ask(&mut web).await.expect_err("no place").code(),
        Code::ResourceExhausted
    );
    server.gate.send_replace(true);
    first.await.expect("the task ends").expect("answers");
    ask(&mut web).await.expect("answers");
    server.stop().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_made_anew() {
    let ca = mk_ca("root");
    let server = Running::start(Some(mk_certified("server", &ca)), Limits::default()).await;
    // A relay that counts connections and tells when one ends.
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let addr = relay.local_addr().expect("has an address");
    let (ended, mut ends) = tokio::sync::mpsc::channel(8);
    let target = server.addr;
    let relaying = tokio::spawn(async move {
        loop {
            let (mut near, _) = relay.accept().await.expect("accepts");
            let mut far = TcpStream::connect(target).await.expect("connects");
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            ended.send(()).await.expect("the test waits");
        }
    });
    let store = mk_certified("web", &ca);
    let idle = ChannelOptions {
        idle_timeout: Duration::from_millis(200),
        ..options()
    };
    let mut web = client(addr, "server", &store, ClientAuth::Leaf, idle);
    for _ in 0..2 {
        ask(&mut web).await.expect("answers");
        timeout(DEADLINE, ends.recv())
            .await
            .expect("in time")
            .expect("a connection ends");
    }
    relaying.abort();
    server.stop().await;
}

#[tokio::test]
async fn aged_connections_go_and_requests_do_not_notice() {
    let ca = mk_ca("root");
    let limits = Limits {
        connection_age_max: Some(Duration::from_millis(50)),
        ..Limits::default()
    };
    let server = Running::start(Some(mk_certified("server", &ca)), limits).await;
    let store = mk_certified("web", &ca);
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, options());
    let began = tokio::time::Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        ask(&mut web).await.expect("answers");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_silent_handshake_is_cut() {
    let ca = mk_ca("root");
    let limits = Limits {
        handshake_timeout: Duration::from_millis(200),
        ..Limits::default()
    };
    let server = Running::start(Some(mk_certified("server", &ca)), limits).await;
    let mut silent = TcpStream::connect(server.addr).await.expect("connects");
    let mut byte = [0];
    let read = timeout(DEADLINE, silent.read(&mut byte)).await.expect("in time");
    assert!(matches!(read, Ok(0) | Err(_)), "the server said something");
    server.stop().await;
}

#[tokio::test]
async fn connections_at_a_time_are_bounded() {
    let ca = mk_ca("root");
    let limits = Limits {
        connections_max: 1,
        ..Limits::default()
    };
    let mut server = Running::start(Some(mk_certified("server", &ca)), limits).await;
    let store = mk_certified("web", &ca);
    let impatient = ChannelOptions {
        connect_timeout: Duration::from_millis(200),
        wait_timeout: Duration::from_millis(500),
        ..options()
    };
    let mut first = client(server.addr, "server", &store, ClientAuth::Leaf, impatient.clone());
    let asking = tokio::spawn(async move { (ask_with(&mut first, b"wait").await, first) });
    let asked = server.waiting.wait_for(|waiting| *waiting == 1);
    timeout(DEADLINE, asked).await.expect("in time").expect("serves");
    let mut second = client(server.addr, "server", &store, ClientAuth::Leaf, impatient);
    assert_eq!(
        ask(&mut second).await.expect_err("no place").code(),
        Code::Unavailable
    );
    // As soon as the first has its answer its connection is in the way, and it makes another when it needs one.
    server.gate.send_replace(true);
    let (answer, mut first) = asking.await.expect("the task ends");
    answer.expect("answers");
    for waiting in [&mut second, &mut first] {
        let served = async { while ask(waiting).await.is_err() {} };
        timeout(DEADLINE, served).await.expect("a place is free again");
    }
    server.stop().await;
}

#[tokio::test]
async fn connections_that_ask_for_nothing_keep_nobody_out() {
    let ca = mk_ca("root");
    let limits = Limits {
        connections_max: 4,
        ..Limits::default()
    };
    let server = Running::start(Some(mk_certified("server", &ca)), limits).await;
    let mut flood = Vec::new();
    for number in 0..6 {
        let mut stream = TcpStream::connect(server.addr).await.expect("connects");
        if number % 2 == 0 {
            // The head of a handshake of 512 bytes, of which no more comes.
            stream.write_all(&[22, 3, 1, 2, 0, 1]).await.expect("writes");
        }
        flood.push(stream);
    }
    let store = mk_certified("web", &ca);
    let patient = ChannelOptions {
        connect_timeout: DEADLINE,
        wait_timeout: DEADLINE,
        ..options()
    };
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, patient);
    ask(&mut web).await.expect("answers");
    for mut stream in flood.drain(..3) {
        let read = timeout(DEADLINE, stream.read(&mut [0])).await.expect("in time");
        assert!(matches!(read, Ok(0) | Err(_)), "the first ones were cut");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_request_without_end_is_given_up() {
    let ca = mk_ca("root");
    let limits = Limits {
        request_timeout: Some(Duration::from_millis(100)),
        ..Limits::default()
    };
    let server = Running::start(Some(mk_certified("server", &ca)), limits).await;
    let store = mk_certified("web", &ca);
    let mut web = client(server.addr, "server", &store, ClientAuth::Leaf, options());
    let status = ask_with(&mut web, b"wait").await.expect_err("no answer");
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    ask(&mut web).await.expect("the connection serves on");
    server.stop().await;
}
