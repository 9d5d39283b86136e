//! HTTP/1 requests that readers read in different ways, and clients that take their time.
//!
//! Each entry of the corpus is sent to the proxy and, where they are installed, to nginx and haproxy before the same
//! application. What the proxy makes of it is said in the corpus; where another takes it, too, both must have seen
//! the same requests in it: else one of them could be used to smuggle a request past the other.

use std::{
    collections::BTreeMap,
    io::Write as _,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Http1, get},
    attack::{Honest, assert_small, long},
    can_run,
    control::Script,
    eventually,
    http_traffic::service,
    net::{Namespace, Network, runtime},
    pod::Pod,
    policies::{authz, endpoint, http_rule, outbound_detect, path, server},
    smuggling::{CORPUS, Entry, Verdict},
};

/// Requests as the application saw them, by their entry's number.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<BTreeMap<usize, Vec<String>>>>);

impl Recorder {
    /// Answers everything and remembers it.
    fn serve(&self, namespace: &Namespace) {
        let recorder = self.clone();
        namespace.serve(8080, move |tcp| {
            let recorder = recorder.clone();
            async move {
                let answer = service_fn(move |request| recorder.clone().answer(request));
                // Clients come and go.
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), answer)
                    .await;
            }
        });
    }

    async fn answer(
        self,
        request: http::Request<Incoming>,
    ) -> Result<http::Response<Full<Bytes>>, hyper::Error> {
        let (head, body) = request.into_parts();
        // A request whose body does not come to its end has not been seen.
        let body = body.collect().await?;
        let trailers = body.trailers().map_or(0, http::HeaderMap::len);
        let host = head
            .headers
            .get("host")
            .map_or("", |host| host.to_str().unwrap_or("?"));
        let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
        let mut segments = head.uri.path().trim_start_matches('/').splitn(2, '/');
        if let Some(number) = segments
            .next()
            .and_then(|entry| entry.strip_prefix('e')?.parse().ok())
        {
            let rest = segments.next().unwrap_or_default();
            let seen = match trailers {
                0 => format!("{} {rest} {host} {body:?}", head.method),
                _ => format!("{} {rest} {host} {body:?} +{trailers}", head.method),
            };
            let mut all = self.0.lock().expect("no test panics while it holds this");
            all.entry(number).or_default().push(seen);
        }
        Ok(http::Response::new(Full::default()))
    }

    fn take(&self) -> BTreeMap<usize, Vec<String>> {
        std::mem::take(&mut *self.0.lock().expect("no test panics while it holds this"))
    }
}

/// Sends the whole corpus, each entry on a connection of its own with one more request behind it.
async fn send_corpus(addr: SocketAddr) {
    let sending = CORPUS.iter().enumerate().map(|(number, entry)| {
        tokio::spawn(async move {
            let mut tcp = TcpStream::connect(addr).await.expect("connects");
            let canary =
                format!("GET /e{number}/canary HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n");
            let bytes = [entry.bytes(number), canary.into_bytes()].concat();
            // It may be closed before all is sent. One that waits for more than there is need not be awaited.
            let _ = tcp.write_all(&bytes).await;
            let mut sink = vec![0; 4096];
            while let Ok(Ok(1..)) = timeout(Duration::from_secs(2), tcp.read(&mut sink)).await {}
        })
    });
    for sent in sending.collect::<Vec<_>>() {
        sent.await.expect("no panic");
    }
}

/// Another proxy, before the application at 8080.
struct Peer {
    name: &'static str,
    child: Child,
    _config: tempfile::NamedTempFile,
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Peer {
    /// `None` when it is not installed.
    fn start(
        namespace: &Namespace,
        name: &'static str,
        port: u16,
        config: &str,
        args: &[&str],
    ) -> Option<Self> {
        let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
        file.write_all(config.as_bytes()).expect("a small file");
        let mut command = Command::new(name);
        command
            .args(args)
            .arg(file.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let spawned = namespace
            .thread(move || command.spawn())
            .join()
            .expect("no panic");
        let child = match spawned {
            Ok(child) => child,
            Err(error) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "CI compares with {name}: {error}"
                );
                println!("not compared with {name}: {error}");
                return None;
            }
        };
        let peer = Self {
            name,
            child,
            _config: file,
        };
        eventually("a peer listens", || {
            namespace
                .block_on(move || async move { TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop) })
        });
        Some(peer)
    }
}

const NGINX: &str = "daemon off; master_process off; pid /dev/null; error_log /dev/null; events {} http { access_log off;
client_body_temp_path /tmp/heddle-nginx; proxy_temp_path /tmp/heddle-nginx; fastcgi_temp_path /tmp/heddle-nginx;
uwsgi_temp_path /tmp/heddle-nginx; scgi_temp_path /tmp/heddle-nginx; server { listen 8081; location / {
proxy_pass http://127.0.0.1:8080; proxy_http_version 1.1; proxy_set_header Host $http_host; } } }\n";
const HAPROXY: &str = "defaults\n mode http\n timeout connect 5s\n timeout client 5s\n timeout server 5s\n
frontend f\n bind :8082\n default_backend b\nbackend b\n server s 127.0.0.1:8080\n";

#[test]
fn no_request_is_smuggled_past_the_proxy() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let meshed = Pod::start(&network, &script, "server");
    let client = Pod::start(&network, &script, "client");
    let outside = network.namespace();
    let recorder = Recorder::default();
    recorder.serve(&meshed.namespace);
    script.set_inbound("server", 8080, http1_server());
    script.set_endpoints(
        &path("web"),
        vec![endpoint(meshed.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));

    let direct = meshed.addr(8080);
    outside.block_on(move || send_corpus(direct));
    let ours = recorder.take();
    client.namespace.block_on(|| send_corpus(service()));
    let through_both = recorder.take();
    let mut wrong = Vec::new();
    for (number, entry) in CORPUS.iter().enumerate() {
        for (way, seen) in [("one proxy", &ours), ("two proxies", &through_both)] {
            // What is no HTTP by its first line is passed on as bytes where the protocol is detected.
            if way == "two proxies" && entry.is_first_line {
                continue;
            }
            let seen = seen.get(&number).map_or(&[][..], Vec::as_slice);
            let is_right = match entry.verdict {
                Verdict::Refused => seen.is_empty(),
                Verdict::Last(want) => seen.iter().eq(want),
                Verdict::Taken(want) => seen
                    .iter()
                    .map(String::as_str)
                    .eq(want.iter().copied().chain(CANARY)),
            };
            if !is_right {
                wrong.push(format!(
                    "{} by {way}: {:?}, but seen {seen:?}",
                    entry.name, entry.verdict
                ));
            }
        }
    }

    let plain = network.namespace();
    recorder.serve(&plain);
    let peers = [
        (Peer::start(&plain, "nginx", 8081, NGINX, &["-c"]), 8081),
        (Peer::start(&plain, "haproxy", 8082, HAPROXY, &["-f"]), 8082),
    ];
    for (peer, port) in peers {
        let Some(peer) = peer else { continue };
        plain.block_on(move || send_corpus(([127, 0, 0, 1], port).into()));
        for (number, theirs) in recorder.take() {
            let entry = &CORPUS[number];
            let Some(ours) = ours.get(&number) else { continue };
            // Who ends the connection earlier has seen fewer, but the same.
            let same = ours
                .iter()
                .zip(&theirs)
                .all(|(ours, theirs)| framing(ours) == framing(theirs));
            if !same {
                wrong.push(format!(
                    "{}: {} sees {theirs:?}, we {ours:?}",
                    entry.name, peer.name
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Where a request begins and ends: its method, its path and its body. Hosts and trailers are each proxy's own affair.
fn framing(seen: &str) -> (&str, &str, &str) {
    let mut words = seen.splitn(4, ' ');
    let (method, path, _host) = (words.next(), words.next(), words.next());
    let body = words.next().unwrap_or_default();
    let body = body.rfind('"').map_or(body, |end| &body[..=end]);
    (method.unwrap_or_default(), path.unwrap_or_default(), body)
}

/// The request behind an entry.
const CANARY: [&str; 1] = ["GET canary web.test \"\""];

fn http1_server() -> linkerd2_proxy_api::inbound::Server {
    use linkerd2_proxy_api::inbound::{ProxyProtocol, proxy_protocol};
    let mut server = server(vec![authz(None)]);
    server.protocol = Some(ProxyProtocol {
        kind: Some(proxy_protocol::Kind::Http1(proxy_protocol::Http1::default())),
    });
    server
}

impl Entry {
    fn bytes(&self, number: usize) -> Vec<u8> {
        let text: Vec<u8> = self
            .request
            .iter()
            .map(|part| part.bytes())
            .collect::<Vec<_>>()
            .concat();
        // `{e}` is the entry's own path.
        let (mark, path) = (b"{e}", format!("/e{number}"));
        let mut out = Vec::new();
        let mut rest = text.as_slice();
        while let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(path.as_bytes());
            rest = &rest[at + mark.len()..];
        }
        out.extend_from_slice(rest);
        out
    }
}

/// F16: clients that begin and do not go on: of TLS handshakes, of heads, of bodies. All are let go within the same bounds;
/// a connection that has been idle all along stays.
#[test]
fn slow_clients_are_let_go_and_idle_ones_stay() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = crate::http_traffic::pair(&network, &script);
    let outside = network.namespace();
    let each: usize = if long() { 2_000 } else { 100 };
    let (addr, direct) = (server.addr(8080), server.addr(4143));
    let honest = Honest::start(&client.namespace, service(), 2, "/");
    honest.goes_on(20, "honest clients are answered");
    let (memory, files) = (server.memory_kib(), server.open_files());

    let slow = outside.thread(move || {
        runtime().block_on(async move {
            let mut idle = Http1::connect(addr).await.expect("connects");
            assert_eq!(idle.send(get("/")).await.expect("a reply").status, 200);
            let hello = [22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
            let kinds: [(SocketAddr, &'static [u8]); 4] = [
                (direct, Box::leak(Box::new(hello))),
                (direct, b"\x16"),
                (addr, b"GET / HTTP/1.1\r\nhost: web.test\r\n"),
                (
                    addr,
                    b"POST /echo HTTP/1.1\r\nhost: web.test\r\ncontent-length: 1000\r\n\r\n",
                ),
            ];
            let clients: Vec<_> = (0..each)
                .flat_map(|_| kinds)
                .map(|(addr, start)| tokio::spawn(drip(addr, start)))
                .collect();
            for client in clients {
                client.await.expect("let go in time");
            }
            idle.send(get("/")).await.expect("a reply").status
        })
    });
    honest.goes_on(50, "honest clients among slow ones");
    let peak = server.memory_kib();
    assert!(peak < memory + 256 * 1024, "{memory} KiB have become {peak} KiB");
    assert_eq!(
        slow.join().expect("all are let go"),
        200,
        "the idle connection still works"
    );
    eventually("their file descriptors are closed", || {
        (server.open_files() <= files + 20).then_some(())
    });
    assert_small(&server, memory, "slow clients");
    let (answered, failed) = honest.finish();
    assert_eq!(failed, 0, "of {}", answered + failed);
}

/// Begins, then sends a byte a second, until the connection is closed. HTTP says in its reply what was wrong, or not.
async fn drip(addr: SocketAddr, start: &[u8]) {
    let started = Instant::now();
    let mut tcp = TcpStream::connect(addr).await.expect("connects");
    tcp.write_all(start).await.expect("small");
    let mut sink = [0; 1024];
    while started.elapsed() < DEADLINE + DEADLINE {
        match timeout(Duration::from_secs(1), tcp.read(&mut sink)).await {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(_)) => {}
            Err(_) => {
                if tcp.write_all(b"a").await.is_err() {
                    return;
                }
            }
        }
    }
    panic!(
        "the connection that began with {:?} is still open",
        String::from_utf8_lossy(start)
    );
}
