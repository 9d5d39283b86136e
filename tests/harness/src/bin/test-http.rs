//! A workload that says what it sees: an HTTP/1.1 and HTTP/2 server that answers every request with a description of
//! it, and a client that sends requests at a rate and counts what becomes of them. Probes use `/healthz` of both.

use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::{Parser, Subcommand};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Most of a body that is read, of requests and of answers.
const BODY_MAX_BYTES: usize = 4 << 20;
/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 4096;
/// How long open requests may take once the process is told to end.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// How often the client says how it is doing.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Parser)]
#[command(about = "A workload for tests: a server that describes requests, and a client that counts answers")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Answer every request with a description of it in JSON; `/healthz` with 200, `/status/NNN` with NNN.
    Serve(Serve),
    /// Send requests for ever; serve `/healthz` and, at `/stats`, the counts.
    Load(Load),
    /// Send one request and print the answer's body; exit 1 unless it succeeded.
    Get(Get),
}

#[derive(clap::Args)]
struct Serve {
    #[arg(long, default_value_t = 8080)]
    port: u16,
    /// What the answers call this server.
    #[arg(long, env = "TEST_HTTP_NAME", default_value = "test-http")]
    name: String,
    /// A text that every answer carries.
    #[arg(long, default_value = "")]
    body: String,
    /// Milliseconds before each answer.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
}

#[derive(clap::Args)]
struct Load {
    #[command(flatten)]
    target: Target,
    /// Requests per second.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// Requests under way at once; when all are, further ones are counted as failed.
    #[arg(long, default_value_t = 256)]
    concurrency: usize,
    /// Port of `/healthz` and `/stats`.
    #[arg(long, default_value_t = 8080)]
    port: u16,
}

#[derive(clap::Args)]
struct Get {
    #[command(flatten)]
    target: Target,
    /// Where to send an empty POST afterwards, as a Job tells its proxy that it may end.
    #[arg(long)]
    then_post: Option<Uri>,
}

#[derive(clap::Args, Clone)]
struct Target {
    #[arg(long)]
    url: Uri,
    /// Sent as the body of a POST; a GET is sent without it.
    #[arg(long)]
    body: Option<String>,
    /// Speak HTTP/2 from the first byte.
    #[arg(long)]
    http2: bool,
    /// A connection for every request.
    #[arg(long)]
    no_keep_alive: bool,
    /// Milliseconds that an answer may take.
    #[arg(long, default_value_t = 5000)]
    timeout_ms: u64,
}

#[tokio::main]
async fn main() -> Result<()> {
    match Arguments::parse().command {
        Command::Serve(arguments) => serve(arguments).await,
        Command::Load(arguments) => load(arguments).await,
        Command::Get(Get { target, then_post }) => {
            let answer = Sender::new(target.clone()).send().await?;
            if let Some(url) = then_post {
                let body = Some(String::new());
                Sender::new(Target { url, body, ..target }).send().await?;
            }
            #[expect(clippy::print_stdout, reason = "the answer is this command's output")]
            {
                println!("{}", String::from_utf8_lossy(&answer));
            }
            Ok(())
        }
    }
}

type Answer = Response<Full<Bytes>>;

async fn serve(arguments: Serve) -> Result<()> {
    let port = arguments.port;
    let arguments = Arc::new(arguments);
    listen(port, move |request, peer| {
        describe(arguments.clone(), request, peer)
    })
    .await
}

async fn describe(arguments: Arc<Serve>, request: Request<Incoming>, peer: SocketAddr) -> Answer {
    if request.uri().path() == "/healthz" {
        return answer(StatusCode::OK, "ok\n");
    }
    if arguments.delay_ms > 0 {
        tokio::time::sleep(Duration::from_millis(arguments.delay_ms)).await;
    }
    let status = request
        .uri()
        .path()
        .strip_prefix("/status/")
        .and_then(|status| status.parse::<u16>().ok());
    let status = status
        .and_then(|status| StatusCode::from_u16(status).ok())
        .unwrap_or(StatusCode::OK);
    let (parts, body) = request.into_parts();
    let received = match Limited::new(body, BODY_MAX_BYTES).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            return answer(
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("failed to read the body: {error}\n"),
            );
        }
    };
    let mut headers = Map::new();
    for name in parts.headers.keys() {
        let values = parts
            .headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()));
        headers.insert(
            name.to_string(),
            Value::from(values.collect::<Vec<_>>().join(", ")),
        );
    }
    let described = json!({
        "name": arguments.name,
        "method": parts.method.as_str(),
        "path": parts.uri.path_and_query().map_or("/", |path| path.as_str()),
        "version": format!("{:?}", parts.version),
        "peer": peer.to_string(),
        "headers": headers,
        "receivedBytes": received.len(),
        "body": arguments.body,
    });
    let mut answer = answer(status, format!("{described}\n"));
    answer.headers_mut().insert(
        "content-type",
        hyper::header::HeaderValue::from_static("application/json"),
    );
    answer
}

async fn load(arguments: Load) -> Result<()> {
    let Load {
        target,
        rate,
        concurrency,
        port,
    } = arguments;
    if rate == 0 || rate > 100_000 {
        bail!("--rate must be between 1 and 100000 requests per second");
    }
    let sender = Arc::new(Sender::new(target));
    let counts = Arc::new(Counts::default());
    let stats = counts.clone();
    let server = listen(port, move |request, _| {
        let stats = stats.clone();
        async move {
            match request.uri().path() {
                "/stats" => answer(StatusCode::OK, format!("{}\n", stats.to_json())),
                _ => answer(StatusCode::OK, "ok\n"),
            }
        }
    });
    let permits = Arc::new(Semaphore::new(concurrency));
    let sending = counts.clone();
    let send = async move {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        // After a pause the rate goes on; what was missed is not made up for.
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            sending.sent.fetch_add(1, Ordering::Relaxed);
            let Ok(permit) = permits.clone().try_acquire_owned() else {
                sending.fail("too many requests are under way".into());
                continue;
            };
            let (sender, counts) = (sender.clone(), sending.clone());
            // Not collected: the permits bound how many there are, and each has a timeout.
            tokio::spawn(async move {
                match sender.send().await {
                    Ok(_) => drop(counts.succeeded.fetch_add(1, Ordering::Relaxed)),
                    Err(error) => counts.fail(format!("{error:#}")),
                }
                drop(permit);
            });
        }
    };
    let report = async {
        let mut ticks = tokio::time::interval(REPORT_INTERVAL);
        loop {
            ticks.tick().await;
            eprintln!("{}", counts.to_json());
        }
    };
    tokio::select! {
        result = server => result,
        () = send => Ok(()),
        () = report => Ok(()),
    }
}

#[derive(Default)]
struct Counts {
    sent: AtomicU64,
    succeeded: AtomicU64,
    failed: AtomicU64,
    last_error: std::sync::Mutex<Option<String>>,
}

impl Counts {
    fn fail(&self, error: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        // A poisoned lock means that a holder panicked while replacing a text, which cannot leave it half written.
        *self
            .last_error
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(error);
    }

    fn to_json(&self) -> Value {
        let last_error = self
            .last_error
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .clone();
        json!({
            "sent": self.sent.load(Ordering::Relaxed),
            "succeeded": self.succeeded.load(Ordering::Relaxed),
            "failed": self.failed.load(Ordering::Relaxed),
            "lastError": last_error,
        })
    }
}

struct Sender {
    client: Client<HttpConnector, Full<Bytes>>,
    target: Target,
}

impl Sender {
    fn new(target: Target) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let mut builder = Client::builder(TokioExecutor::new());
        builder.http2_only(target.http2);
        if target.no_keep_alive {
            builder.pool_max_idle_per_host(0);
        }
        Self {
            client: builder.build(connector),
            target,
        }
    }

    async fn send(&self) -> Result<Bytes> {
        let Target {
            url,
            body,
            http2,
            timeout_ms,
            ..
        } = &self.target;
        let request = Request::builder()
            .method(if body.is_some() { Method::POST } else { Method::GET })
            .uri(url.clone())
            .version(if *http2 { Version::HTTP_2 } else { Version::HTTP_11 })
            .body(Full::from(body.clone().unwrap_or_default()))
            .context("the request cannot be made")?;
        let exchange = async {
            let response = self
                .client
                .request(request)
                .await
                .with_context(|| format!("no answer from {url}"))?;
            let status = response.status();
            let body = Limited::new(response.into_body(), BODY_MAX_BYTES).collect().await;
            let body = body
                .map_err(|error| anyhow::anyhow!("failed to read the answer of {url}: {error}"))?
                .to_bytes();
            if !status.is_success() {
                bail!(
                    "{url} answered {status}: {}",
                    String::from_utf8_lossy(&body).trim()
                );
            }
            Ok(body)
        };
        let limit = Duration::from_millis(*timeout_ms);
        tokio::time::timeout(limit, exchange)
            .await
            .with_context(|| format!("{url} did not answer within {timeout_ms} ms"))?
    }
}

/// Serves until told to end, then lets open requests finish.
async fn listen<F, Fut>(port: u16, handle: F) -> Result<()>
where
    F: Fn(Request<Incoming>, SocketAddr) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .with_context(|| format!("failed to listen on port {port}"))?;
    let mut terminate = signal(SignalKind::terminate()).context("failed to watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("failed to watch for SIGINT")?;
    let (draining, _) = tokio::sync::watch::channel(());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, peer)) => drop(connections.spawn(connection(stream, peer, handle.clone(), draining.subscribe()))),
                // The peer has gone again, or descriptors ran out for a moment: neither ends the server.
                Err(error) => {
                    eprintln!("failed to accept a connection: {error}");
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    drop(listener);
    draining.send_replace(());
    let drained = tokio::time::timeout(DRAIN_LIMIT, async {
        while connections.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        eprintln!("{} connections were cut at the end", connections.len());
    }
    Ok(())
}

async fn connection<F, Fut>(
    stream: TcpStream,
    peer: SocketAddr,
    handle: F,
    mut draining: tokio::sync::watch::Receiver<()>,
) where
    F: Fn(Request<Incoming>, SocketAddr) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Answer> + Send + 'static,
{
    // Only latency is at stake.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = handle(request, peer);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // How a client ends its connection is its own affair.
        _ = connection.as_mut() => return,
        _ = draining.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

fn answer(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
}
