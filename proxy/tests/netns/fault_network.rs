//! Networks that lose and delay packets, and processes that stand still.

use std::{net::SocketAddr, sync::atomic::Ordering::Relaxed, time::Duration};

use http::Request;
use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::{Instant, sleep_until},
};

use crate::{
    apps::{Http1, serve_http, try_get},
    attack::{Honest, long},
    can_run,
    control::Script,
    eventually,
    fault_app::Fickle,
    http_traffic::{pair, service},
    net::{Namespace, Network, runtime},
    pod::{Options, Pod},
    policies::{endpoint, http_rule, outbound_detect, path},
};

/// F6, loss.
#[test]
fn lost_packets_cost_time_and_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let honest = Honest::start(&client.namespace, service(), 4, "/");
    honest.goes_on(50, "without loss");
    let files = (client.open_files(), server.open_files());
    for percent in [1, 5] {
        // Between the pods, not between a pod's proxy and its own application.
        let rule = format!("iifname eth0 numgen random mod 100 < {percent}");
        for pod in [&client, &server] {
            pod.namespace.drop_packets(&rule);
        }
        honest.goes_on(if long() { 5_000 } else { 300 }, "with loss");
        for pod in [&client, &server] {
            pod.namespace.heal();
        }
    }
    eventually("no connection is left over", || {
        let now = (client.open_files(), server.open_files());
        (now.0 <= files.0 + 10 && now.1 <= files.1 + 10).then_some(())
    });
    let (answered, failed) = honest.finish();
    assert_eq!(failed, 0, "of {}", answered + failed);
}

const DELAY: Duration = Duration::from_millis(100);

/// Passes connections on, and what they carry a moment later, however much that is.
fn serve_delay(namespace: &Namespace, port: u16, to: SocketAddr) {
    namespace.serve(port, move |one| async move {
        if let Ok(two) = TcpStream::connect(to).await {
            let ((one_read, one_write), (two_read, two_write)) = (one.into_split(), two.into_split());
            tokio::join!(delayed(one_read, two_write), delayed(two_read, one_write));
        }
    });
}

async fn delayed(mut read: OwnedReadHalf, mut write: OwnedWriteHalf) {
    let (queue, mut queued) = mpsc::channel::<(Instant, Vec<u8>)>(1_024);
    let reading = async move {
        let mut bytes = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = read.read(&mut bytes).await {
            if queue
                .send((Instant::now() + DELAY, bytes[..count].to_vec()))
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let writing = async move {
        while let Some((at, bytes)) = queued.recv().await {
            sleep_until(at).await;
            if write.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(reading, writing);
}

/// F6, delay.
#[test]
fn a_long_way_costs_time_and_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let relay = network.namespace();
    serve_delay(&relay, 8080, server.addr(8080));
    script.set_endpoints(
        &path("web"),
        vec![endpoint(relay.ip, 8080, Some("server"), false)],
    );
    let honest = Honest::start(&client.namespace, service(), 8, "/");
    honest.goes_on(if long() { 400 } else { 80 }, "over a long way");
    let (answered, failed) = honest.finish();
    assert_eq!(failed, 0, "of {}", answered + failed);
}

/// F20: requests that were under way are neither lost nor sent twice.
#[test]
fn a_paused_proxy_goes_on_where_it_stood() {
    if !can_run() {
        return;
    }
    use rustix::process::{Signal, kill_process};
    let (network, script) = (Network::new(), Script::new());
    let server = Pod::start(&network, &script, "server");
    let app = Fickle::serve(&server.namespace, 8080);
    script.set_endpoints(
        &path("web"),
        vec![endpoint(server.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start(&network, &script, "client");
    let (stop, sent) = (
        std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false)),
        std::sync::Arc::new(std::sync::atomic::AtomicU32::new(0)),
    );
    let posting: Vec<_> = (0..4)
        .map(|one| {
            let (stop, sent) = (stop.clone(), sent.clone());
            client.namespace.thread(move || {
                runtime().block_on(async move {
                    let mut connection = Http1::connect(service()).await.expect("connects");
                    let mut count = 0;
                    while !stop.load(Relaxed) {
                        let request = Request::post("/")
                            .header("host", "web.test")
                            .header("id", format!("{one}-{count}"))
                            .body(Full::default());
                        let reply = connection
                            .send(request.expect("valid"))
                            .await
                            .expect("no request is lost");
                        assert_eq!(reply.status, 200, "{reply:?}");
                        count += 1;
                        sent.fetch_add(1, Relaxed);
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                    count
                })
            })
        })
        .collect();
    let goes_on = |what: &str| {
        let before = sent.load(Relaxed);
        eventually(what, || (sent.load(Relaxed) >= before + 100).then_some(()));
    };
    goes_on("requests flow");
    let pause = Duration::from_secs(if long() { 60 } else { 1 });
    for pod in [&server, &client] {
        kill_process(pod.pid(), Signal::STOP).expect("our own child");
        // How long it stands still is what is tested.
        std::thread::sleep(pause);
        kill_process(pod.pid(), Signal::CONT).expect("our own child");
        goes_on("requests flow again");
    }
    stop.store(true, Relaxed);
    let mut all = 0;
    for client in posting {
        all += client.join().expect("no request was lost");
    }
    let ids = app.ids();
    assert_eq!(ids.len(), usize::try_from(all).expect("small"));
    let twice: Vec<_> = ids.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "sent more than once: {twice:?}");
}

/// A connection that nothing is heard on any more, as its endpoint's pings show; nobody waits for an answer.
#[test]
fn a_connection_whose_other_side_is_gone_is_given_up() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::destination::{Http2ClientParams, WeightedAddr, http2_client_params::KeepAlive};
    let (network, script) = (Network::new(), Script::new());
    let server = Pod::start(&network, &script, "server");
    serve_http(&server.namespace, 8080, "server");
    // Of one worker, which forgets an endpoint when no client is there any more.
    let options = Options {
        env: vec![("CORES", "1".to_owned())],
    };
    let client = Pod::start_with(&network, &script, "client", options);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let time = |ms: i32| {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: ms * 1_000_000,
        })
    };
    let known = WeightedAddr {
        http2: Some(Http2ClientParams {
            keep_alive: Some(KeepAlive {
                interval: time(300),
                timeout: time(500),
                while_idle: true,
            }),
            ..Default::default()
        }),
        ..endpoint(server.namespace.ip, 8080, Some("server"), false)
    };
    script.set_endpoints(&path("web"), vec![known]);
    let open = || {
        let labels = [("direction", "outbound"), ("peer", "dst"), ("tls", "true")];
        client.metric("tcp_open_connections", &labels).unwrap_or(0.0)
    };
    eventually("it answers", || {
        let reply = client
            .namespace
            .block_on(|| async { try_get(service(), "/").await });
        (reply.expect("a reply").status == 200 && open() > 0.0).then_some(())
    });
    let _stays = client
        .namespace
        .block_on(|| async { std::net::TcpStream::connect(service()).expect("connects") });
    let before = open();
    // Pings are answered: nothing ends meanwhile.
    std::thread::park_timeout(Duration::from_secs(2));
    assert_eq!(open(), before);
    // As the redirection leaves them.
    server.namespace.drop_packets("tcp dport 4143");
    let start = std::time::Instant::now();
    eventually("it is given up", || (open() == 0.0).then_some(()));
    // The kernel alone takes its time.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
