//! Floods of HTTP/2 frames: the attacker's connection ends, and nobody else's.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    attack::{
        Honest, assert_small, flood,
        h2::{
            CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE,
            frame, head, header, opening, request,
        },
        long,
    },
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
};

/// How a flood's chunks are made. The first stream has an open request.
struct Attack {
    name: &'static str,
    chunk: fn(u32) -> Vec<u8>,
}

/// The stream of the n-th request.
fn stream(number: u32) -> u32 {
    number * 2 + 3
}

const ATTACKS: &[Attack] = &[
    Attack {
        name: "rapid reset",
        chunk: |number| {
            let pair = |number| {
                let stream = stream(number);
                [
                    request(stream, "/slow"),
                    frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
                ]
                .concat()
            };
            (number * 100..(number + 1) * 100).flat_map(pair).collect()
        },
    },
    Attack {
        // The requests are taken up before they are reset.
        name: "reset in waves",
        chunk: |number| {
            let wave = number / 2 * 40..(number / 2 + 1) * 40;
            match number % 2 {
                0 => wave.flat_map(|one| request(stream(one), "/slow")).collect(),
                _ => wave
                    .flat_map(|one| frame(RST_STREAM, 0, stream(one), &[0, 0, 0, 8]))
                    .collect(),
            }
        },
    },
    Attack {
        // What comes with a request makes its reset no cheaper.
        name: "reset in waves, with bodies",
        chunk: |number| {
            let wave = number / 2 * 40..(number / 2 + 1) * 40;
            let posted = |one| {
                let head = frame(HEADERS, END_HEADERS, stream(one), &head("/slow", &[]));
                [head, frame(DATA, 0, stream(one), &[b'.'; 256])].concat()
            };
            match number % 2 {
                0 => wave.flat_map(posted).collect(),
                _ => wave
                    .flat_map(|one| frame(RST_STREAM, 0, stream(one), &[0, 0, 0, 8]))
                    .collect(),
            }
        },
    },
    Attack {
        name: "padding",
        chunk: |_| {
            const PADDED: u8 = 8;
            let nothing = [&[255][..], &[0; 255]].concat();
            frame(DATA, PADDED, 1, &nothing).repeat(100)
        },
    },
    Attack {
        name: "continuations without end",
        chunk: |number| match number {
            0 => frame(HEADERS, 0, stream(0), &head("/", &[])),
            _ => frame(
                CONTINUATION,
                0,
                stream(0),
                &header("x-more", &"y".repeat(100)).repeat(100),
            ),
        },
    },
    Attack {
        name: "small continuations",
        chunk: |number| match number {
            0 => frame(HEADERS, 0, stream(0), &head("/", &[])),
            _ => frame(CONTINUATION, 0, stream(0), &[]).repeat(100),
        },
    },
    Attack {
        name: "pings",
        chunk: |_| frame(PING, 0, 0, &[7; 8]).repeat(100),
    },
    Attack {
        name: "settings",
        chunk: |_| frame(SETTINGS, 0, 0, &[]).repeat(100),
    },
    Attack {
        name: "acknowledgements of nothing",
        chunk: |_| {
            [
                frame(PING, 1, 0, &[7; 8]),
                frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]),
            ]
            .concat()
            .repeat(100)
        },
    },
    Attack {
        name: "window updates",
        chunk: |_| frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]).repeat(100),
    },
    Attack {
        name: "priorities",
        chunk: |_| frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1]).repeat(100),
    },
    Attack {
        name: "empty data",
        chunk: |_| frame(DATA, 0, 1, &[]).repeat(100),
    },
    Attack {
        name: "unknown frames",
        chunk: |_| frame(0xbb, 0, 0, b"what?").repeat(100),
    },
    Attack {
        name: "windows beyond all bounds",
        chunk: |_| frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
    },
];

/// F17.
#[test]
fn floods_end_the_attackers_connection_alone() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let attacker = network.namespace();
    let honest = Honest::start(&client.namespace, service(), 2, "/");
    honest.goes_on(20, "honest clients are answered");
    let (addr, before) = (server.addr(8080), server.memory_kib());
    let rounds = if long() { 50 } else { 1 };
    for Attack { name, chunk } in ATTACKS.iter().cycle().take(ATTACKS.len() * rounds) {
        let opening = [
            opening(&[]),
            // A body follows, says the head, so the stream stays open.
            frame(HEADERS, END_HEADERS, 1, &head("/echo", &[])),
        ]
        .concat();
        let flooding =
            attacker.thread(move || crate::net::runtime().block_on(flood(addr, opening, 5_000, *chunk)));
        honest.goes_on(10, name);
        let taken = flooding.join().expect("no panic");
        assert!(taken.is_some(), "{name}: all was taken");
        assert_small(&server, before, name);
    }
    let (answered, failed) = honest.finish();
    assert_eq!(failed, 0, "of {}", answered + failed);
}

#[test]
fn too_many_or_too_large_headers_are_refused() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let (direct, meshed) = (server.addr(8080), service());
    for (namespace, addr) in [(&outside, direct), (&client.namespace, meshed)] {
        let statuses = namespace.block_on(move || async move {
            let mut statuses = Vec::new();
            for (count, size) in [(50, 10), (101, 10), (50, 2_000), (1, 100_000)] {
                statuses.push(headers_over_http2(addr, count, size).await);
            }
            statuses
        });
        assert_eq!(statuses[0], Some(200));
        for refused in &statuses[1..] {
            assert!(matches!(refused, None | Some(431)), "{statuses:?}");
        }
    }
}

/// The response's status; `None` when there was none.
async fn headers_over_http2(addr: SocketAddr, count: usize, size: usize) -> Option<u16> {
    let tcp = TcpStream::connect(addr).await.expect("connects");
    let (mut sender, connection) = hyper::client::conn::http2::Builder::new(TokioExecutor::new())
        .handshake(TokioIo::new(tcp))
        .await
        .expect("HTTP/2");
    tokio::spawn(connection);
    let mut request = http::Request::get("http://web.test/");
    for number in 0..count {
        request = request.header(format!("x-{number}"), "y".repeat(size));
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).expect("valid");
    let response = timeout(DEADLINE, sender.send_request(request))
        .await
        .expect("in time")
        .ok()?;
    let status = response.status().as_u16();
    response.into_body().collect().await.ok()?;
    Some(status)
}

/// A client that wants much and reads nothing holds a bounded part of the proxy, and no other client's: whether its
/// windows are closed, or open while it does not read what comes.
#[test]
fn clients_that_take_nothing_hold_back_only_themselves() {
    if !can_run() {
        return;
    }
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const WINDOW_MAX: u32 = 0x7fff_ffff;
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let attacker = network.namespace();
    let honest = Honest::start_http2(&client.namespace, service(), 2);
    honest.goes_on(20, "honest clients are answered");
    let (addr, before) = (server.addr(8080), server.memory_kib());
    let requests = || {
        let strangers = [("direction", "inbound"), ("tls", "no_identity")];
        server.metric("request_total", &strangers)
    };
    // 50 MiB are wanted, which is more than any window.
    let wanted: Vec<u8> = (0..200).flat_map(|one| request(stream(one), "/big")).collect();
    let more_for_all = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0, 0, 0]);
    for (window, more, reads, name) in [
        (0, vec![], true, "closed windows"),
        (WINDOW_MAX, more_for_all, false, "open windows and a full socket"),
    ] {
        let asked = requests().unwrap_or_default();
        let bytes = [opening(&[(INITIAL_WINDOW_SIZE, window)]), more, wanted.clone()].concat();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let attacking = attacker.thread(move || {
            crate::net::runtime().block_on(async move {
                let mut tcp = TcpStream::connect(addr).await.expect("connects");
                tcp.write_all(&bytes).await.expect("small");
                let ended = async {
                    let mut sink = vec![0; 64 * 1024];
                    while reads && tcp.read(&mut sink).await.is_ok_and(|count| count > 0) {}
                    if !reads {
                        std::future::pending::<()>().await;
                    }
                };
                tokio::select! {
                    () = ended => panic!("to be slow is not wrong"),
                    _ = stopped => {}
                }
            });
        });
        eventually("the attacker's requests are under way", || {
            (requests() >= Some(asked + 200.0)).then_some(())
        });
        honest.goes_on(100, name);
        assert_small(&server, before, name);
        drop(stop);
        attacking.join().expect("no panic");
    }
    let (answered, failed) = honest.finish();
    assert_eq!(failed, 0, "of {}", answered + failed);
}

/// What a connection lets its client send ahead, on one stream and on all; the connection stays open with it.
async fn windows(addr: SocketAddr) -> (TcpStream, u64, u64) {
    const INITIAL_WINDOW_SIZE: u16 = 4;
    const DEFAULT_WINDOW: u64 = 65_535;
    let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    let mut tcp = TcpStream::connect(addr).await.expect("connects");
    // Whatever is said at the beginning is said before a second ping is answered.
    let ping = |number: u8| frame(PING, 0, 0, &[number; 8]);
    tcp.write_all(&[opening(&[]), ping(1)].concat())
        .await
        .expect("small");
    let (mut stream, mut connection) = (DEFAULT_WINDOW, DEFAULT_WINDOW);
    loop {
        let mut frame_head = [0; 9];
        tcp.read_exact(&mut frame_head).await.expect("frames come");
        let mut payload = vec![0; usize::try_from(number(&frame_head[..3])).expect("small")];
        tcp.read_exact(&mut payload).await.expect("a whole frame");
        match (frame_head[3], frame_head[4]) {
            (SETTINGS, 0) => {
                let setting = payload
                    .chunks(6)
                    .find(|setting| setting[..2] == INITIAL_WINDOW_SIZE.to_be_bytes());
                stream = setting.map_or(DEFAULT_WINDOW, |setting| number(&setting[2..]));
            }
            (WINDOW_UPDATE, _) => connection = DEFAULT_WINDOW + number(&payload),
            (PING, 1) if payload[0] == 1 => tcp.write_all(&ping(2)).await.expect("small"),
            (PING, 1) => return (tcp, stream, connection),
            _ => {}
        }
    }
}

/// What all connections together may send ahead is bounded, whatever their number; a few have room for long paths.
#[test]
fn windows_come_out_of_one_budget() {
    if !can_run() {
        return;
    }
    const CONNECTIONS: usize = 300;
    const BUDGET_MAX: u64 = 256 << 20;
    const LEAST: u64 = 65_535;
    let (network, script) = (Network::new(), Script::new());
    let (_client, server) = pair(&network, &script);
    let attacker = network.namespace();
    let addr = server.addr(8080);
    attacker.block_on(move || async move {
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS {
            open.push(timeout(DEADLINE, windows(addr)).await.expect("in time"));
        }
        let (_, stream, first) = open[0];
        let (_, _, last) = open[CONNECTIONS - 1];
        assert!(first >= 1 << 20 && stream >= first / 8, "{first} {stream}");
        assert_eq!(last, LEAST, "the budget is used up, and all may still send");
        let all: u64 = open.iter().map(|(_, _, connection)| connection).sum();
        assert!(all <= BUDGET_MAX + LEAST * CONNECTIONS as u64, "{all}");
        drop(open);
        let again = async {
            loop {
                let (_, _, connection) = windows(addr).await;
                if connection == first {
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, again)
            .await
            .expect("what ends gives its windows back");
    });
}
