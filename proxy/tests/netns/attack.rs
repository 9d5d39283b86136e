//! What attacks and faults share: clients that must go on being answered, the proxy's memory, frames of HTTP/2.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Duration,
};

use http_body_util::Full;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Error, Http1, get, send_http2},
    eventually,
    net::{Namespace, runtime},
    pod::{A_WHILE, Pod},
};

/// Memory that an attack may make the proxy take, beyond what it had. Linux counts pages, allocators keep some.
pub(crate) const GROWTH_KIB_MAX: u64 = 16 * 1024;
/// Between two requests of an honest client, so that the tests leave the machine to the proxies.
const PACE: Duration = Duration::from_millis(5);

/// Whether the long forms of these tests were asked for.
pub(crate) fn long() -> bool {
    std::env::var_os("HEDDLE_LONG_FAULTS").is_some()
}

/// Clients that ask on and on, each on a connection that it keeps.
pub(crate) struct Honest {
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    answered: AtomicU32,
    failed: AtomicU32,
}

impl Honest {
    pub(crate) fn start(namespace: &Namespace, addr: SocketAddr, clients: usize, path: &'static str) -> Self {
        Self::start_with(namespace, clients, move |counts| ask(addr, path, counts))
    }

    /// Clients that speak HTTP/2.
    pub(crate) fn start_http2(namespace: &Namespace, addr: SocketAddr, clients: usize) -> Self {
        Self::start_with(namespace, clients, move |counts| ask_http2(addr, counts))
    }

    fn start_with<F: Future<Output = ()>>(
        namespace: &Namespace,
        clients: usize,
        ask: impl FnOnce(Arc<Counts>) -> F + Clone + Send + 'static,
    ) -> Self {
        let counts = Arc::<Counts>::default();
        let threads = (0..clients)
            .map(|_| {
                let (counts, ask) = (counts.clone(), ask.clone());
                namespace.thread(move || runtime().block_on(ask(counts)))
            })
            .collect();
        Self { counts, threads }
    }

    pub(crate) fn answered(&self) -> u32 {
        self.counts.answered.load(Relaxed)
    }

    pub(crate) fn failed(&self) -> u32 {
        self.counts.failed.load(Relaxed)
    }

    /// Waits for so many more answers.
    pub(crate) fn goes_on(&self, answers: u32, when: &str) {
        let before = self.answered();
        eventually(when, || (self.answered() >= before + answers).then_some(()));
    }

    /// Ends them, and tells how many requests were answered and how many failed.
    pub(crate) fn finish(self) -> (u32, u32) {
        self.counts.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().expect("an honest client does not panic");
        }
        let Counts { answered, failed, .. } = &*self.counts;
        (answered.load(Relaxed), failed.load(Relaxed))
    }
}

async fn ask_http2(addr: SocketAddr, counts: Arc<Counts>) {
    while !counts.stop.load(Relaxed) {
        let request = http::Request::get("http://web.test/")
            .body(Full::default())
            .expect("valid");
        match timeout(DEADLINE, send_http2(addr, request)).await {
            Ok(Ok(reply)) if reply.status == 200 => counts.answered.fetch_add(1, Relaxed),
            failed => {
                println!("A request failed: {failed:?}");
                counts.failed.fetch_add(1, Relaxed)
            }
        };
        tokio::time::sleep(PACE).await;
    }
}

async fn ask(addr: SocketAddr, path: &str, counts: Arc<Counts>) {
    let mut kept = None;
    while !counts.stop.load(Relaxed) {
        let exchange = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Http1::connect(addr).await?,
            };
            let reply = connection.send(get(path)).await?;
            Ok::<_, Error>((connection, reply))
        };
        match timeout(DEADLINE, exchange).await {
            Ok(Ok((connection, reply))) => {
                let (count, told) = match reply.status {
                    200 => (&counts.answered, ""),
                    _ => (&counts.failed, "A request failed: "),
                };
                count.fetch_add(1, Relaxed);
                if !told.is_empty() {
                    println!("{told}{reply:?}");
                }
                let closes = reply
                    .headers
                    .get("connection")
                    .is_some_and(|value| value == "close");
                kept = (!closes).then_some(connection);
            }
            failed => {
                println!("A request failed: {:?}", failed.map(|failed| failed.err()));
                counts.failed.fetch_add(1, Relaxed);
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Asserts that an attack has not made the proxy keep memory. What was freed goes back to the system within seconds.
pub(crate) fn assert_small(pod: &Pod, before_kib: u64, after: &str) {
    let when = format!("{before_kib} KiB have not become more than {GROWTH_KIB_MAX} KiB more, after {after}");
    eventually(&when, || {
        (pod.memory_kib() <= before_kib + GROWTH_KIB_MAX).then_some(())
    });
}

/// HTTP/2 by hand: what no library would send.
pub(crate) mod h2 {
    pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const PRIORITY: u8 = 2;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
    pub(crate) const END_STREAM: u8 = 1;
    pub(crate) const END_HEADERS: u8 = 4;

    pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// The preface and our settings.
    pub(crate) fn opening(settings: &[(u16, u32)]) -> Vec<u8> {
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        [PREFACE, &frame(SETTINGS, 0, 0, &payload)].concat()
    }

    /// A header that no table knows or learns.
    pub(crate) fn header(name: &str, value: &str) -> Vec<u8> {
        let text = |text: &str| {
            let length = u8::try_from(text.len()).expect("short");
            assert!(length < 127, "longer ones need more bytes for their length");
            [&[length], text.as_bytes()].concat()
        };
        [&[0][..], &text(name), &text(value)].concat()
    }

    /// `POST http://web.test` and a path, and other headers.
    pub(crate) fn head(path: &str, more: &[(&str, &str)]) -> Vec<u8> {
        let authority = [&[0x01, 8][..], b"web.test"].concat();
        let path = [&[0x04, u8::try_from(path.len()).expect("short")], path.as_bytes()].concat();
        let more: Vec<u8> = more
            .iter()
            .flat_map(|(name, value)| header(name, value))
            .collect();
        [&[0x83, 0x86][..], &path, &authority, &more].concat()
    }

    /// A whole request without a body.
    pub(crate) fn request(stream: u32, path: &str) -> Vec<u8> {
        frame(HEADERS, END_HEADERS | END_STREAM, stream, &head(path, &[]))
    }
}

/// Sends chunk after chunk until the peer closes. Tells how many it took; `None` when it took them all.
pub(crate) async fn flood(
    addr: SocketAddr,
    opening: Vec<u8>,
    chunks_max: u32,
    mut chunk: impl FnMut(u32) -> Vec<u8>,
) -> Option<u32> {
    let tcp = TcpStream::connect(addr).await.expect("connects");
    let (mut read, mut write) = tcp.into_split();
    // What it answers is read, or it would wait for us.
    let mut closed = tokio::spawn(async move {
        let mut sink = vec![0; 64 * 1024];
        while read.read(&mut sink).await.is_ok_and(|count| count > 0) {}
    });
    write.write_all(&opening).await.expect("the opening is small");
    let flooding = async {
        for number in 0..chunks_max {
            let bytes = chunk(number);
            tokio::select! {
                _ = &mut closed => return Some(number),
                written = write.write_all(&bytes) => if written.is_err() {
                    return Some(number);
                },
            }
        }
        timeout(A_WHILE, &mut closed).await.is_ok().then_some(chunks_max)
    };
    timeout(DEADLINE, flooding)
        .await
        .expect("a flood is taken or ended")
}
