//! The webhook's HTTPS listener. Every connection gets the newest certificate; everything has a bound.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_daemon::report;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, SemaphorePermit, watch},
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use super::{
    certificate::Serving,
    metrics::{HttpMetrics, RefusedLabels},
};

/// The API server takes objects of up to 3 MiB; a review holds one of them and a little more.
const BODY_BYTES_MAX: usize = 5 << 20;
/// API servers hold a few connections each.
const CONNECTIONS_MAX: usize = 512;
/// Bytes of bodies that are held at a time, of all reviews together. Taken as the bytes come, so that clients who send
/// nothing, or slowly, keep nobody else waiting.
const BODIES_BYTES_MAX: usize = 64 << 20;
/// A pod and its review, mostly.
const BODY_BYTES_EXPECTED: u64 = 64 << 10;
const STREAMS_MAX: u32 = 100;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// An API server waits 10 s by default, and 30 s at most.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_PING: Duration = Duration::from_secs(30);
/// API servers keep coming until they know that this pod ends.
const LINGER: Duration = Duration::from_secs(3);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

type Reply = Response<Full<Bytes>>;

/// Who answers the reviews.
pub(crate) trait Review: Send + Sync + 'static {
    /// Why there is no answer.
    type Error: std::error::Error + Send + 'static;

    /// Answers one AdmissionReview, from bytes to bytes.
    fn answer(&self, body: &[u8]) -> impl Future<Output = Result<Vec<u8>, Self::Error>> + Send;

    /// Whether what was asked is at fault, rather than who should answer.
    fn is_bad_request(error: &Self::Error) -> bool;

    fn metrics(&self) -> &HttpMetrics;
}

/// The listener and what it serves.
pub(crate) struct Server<R> {
    pub(crate) admission: Arc<R>,
    pub(crate) presented: watch::Receiver<Option<Arc<Serving>>>,
    pub(crate) linger: Duration,
}

impl<R: Review> Server<R> {
    pub(crate) fn new(admission: Arc<R>, presented: watch::Receiver<Option<Arc<Serving>>>) -> Self {
        Self {
            admission,
            presented,
            linger: LINGER,
        }
    }

    /// Serves until `drain` is signalled, a little longer, and until what is in flight has ended.
    pub(crate) async fn run(self, listener: TcpListener, drain: heddle_daemon::Watch) {
        info!(addr = ?listener.local_addr().ok(), "Serving admissions");
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let memory = Arc::new(Semaphore::new(BODIES_BYTES_MAX));
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        let stop = async {
            let release = drain.signaled().await;
            tokio::time::sleep(self.linger).await;
            release
        };
        tokio::pin!(stop);
        let release = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = connections.join_next() => continue,
                release = &mut stop => break release,
            };
            let (stream, peer) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "Failed to accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
                warn!(%peer, "Refused a connection: {CONNECTIONS_MAX} are open");
                continue;
            };
            let Some(serving) = self.presented.borrow().clone() else {
                debug!(%peer, "Refused a connection: there is no certificate yet");
                continue;
            };
            let connection = Connection {
                admission: Arc::clone(&self.admission),
                memory: Arc::clone(&memory),
                peer,
            };
            let watcher = graceful.watcher();
            connections.spawn(async move {
                connection.serve(stream, serving, watcher).await;
                drop(place);
            });
        };
        drop(listener);
        if timeout(DRAIN_TIMEOUT, graceful.shutdown()).await.is_err() {
            warn!("Ended with admissions in flight");
        }
        connections.shutdown().await;
        drop(release);
    }
}

struct Connection<R> {
    admission: Arc<R>,
    memory: Arc<Semaphore>,
    peer: SocketAddr,
}

impl<R: Review> Connection<R> {
    async fn serve(
        self,
        stream: TcpStream,
        serving: Arc<Serving>,
        watcher: hyper_util::server::graceful::Watcher,
    ) {
        let peer = self.peer;
        // An answer is a few small writes: held back for acknowledgements, each new connection's would take 40 ms longer.
        if let Err(error) = stream.set_nodelay(true) {
            return debug!(%peer, %error, "Cannot set TCP_NODELAY");
        }
        let acceptor = TlsAcceptor::from(Arc::clone(&serving.config));
        let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return debug!(%peer, "TLS handshake timed out"),
        };
        let this = Arc::new(self);
        let service = service_fn(move |request: Request<Incoming>| {
            let this = Arc::clone(&this);
            async move { Ok::<_, Infallible>(this.reply(request).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .keep_alive_interval(IDLE_PING)
            .keep_alive_timeout(IDLE_PING);
        let connection = builder
            .serve_connection(TokioIo::new(stream), service)
            .into_owned();
        if let Err(error) = watcher.watch(connection).await {
            debug!(%peer, error = %report::chain(error.as_ref()), "Connection failed");
        }
    }

    async fn reply(&self, request: Request<Incoming>) -> Reply {
        let start = Instant::now();
        match self.review(request).await {
            Ok(body) => {
                let seconds = start.elapsed().as_secs_f64();
                self.admission.metrics().seconds.observe(seconds);
                let mut reply = Response::new(Full::from(body));
                reply
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                reply
            }
            Err(refusal) => {
                let (status, text) = refusal.status();
                warn!(peer = %self.peer, status = status.as_u16(), reason = text, "Refused a request");
                let labels = RefusedLabels {
                    status: status.as_u16(),
                };
                self.admission.metrics().refused.get_or_create(&labels).inc();
                let mut reply = Response::new(Full::from(format!("{text}\n")));
                *reply.status_mut() = status;
                let plain = HeaderValue::from_static("text/plain; charset=utf-8");
                reply.headers_mut().insert(header::CONTENT_TYPE, plain);
                reply
            }
        }
    }

    async fn review(&self, request: Request<Incoming>) -> Result<Vec<u8>, Refusal<R::Error>> {
        if request.method() != Method::POST {
            return Err(Refusal::Method);
        }
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .map_or(&b""[..], HeaderValue::as_bytes);
        let kind = kind
            .split(|byte| *byte == b';')
            .next()
            .unwrap_or_default()
            .trim_ascii();
        if !kind.eq_ignore_ascii_case(b"application/json") {
            return Err(Refusal::ContentType(String::from_utf8_lossy(kind).into_owned()));
        }
        let body = timeout(BODY_TIMEOUT, self.body(request.into_body())).await;
        let (body, _held) = body.unwrap_or(Err(Refusal::Slow))?;
        self.admission
            .answer(&body)
            .await
            .map_err(|error| Refusal::Admit {
                bad_request: R::is_bad_request(&error),
                error,
            })
    }
}

impl<R: Review> Connection<R> {
    /// All of a body, and the permits for its memory.
    async fn body(&self, mut body: Incoming) -> Result<(Vec<u8>, SemaphorePermit<'_>), Refusal<R::Error>> {
        // As much as is announced, but no more than what most reviews need before it has come.
        let expected = body.size_hint().lower().min(BODY_BYTES_EXPECTED);
        let mut bytes = Vec::with_capacity(usize::try_from(expected).unwrap_or(0));
        let mut held = self.hold(0).await;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| Refusal::Body(error.to_string()))?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len() + data.len() > BODY_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
            held.merge(self.hold(data.len()).await);
            bytes.extend_from_slice(&data);
        }
        Ok((bytes, held))
    }

    async fn hold(&self, bytes: usize) -> SemaphorePermit<'_> {
        let bytes = u32::try_from(bytes).expect("at most BODY_BYTES_MAX: checked before");
        let held = self.memory.acquire_many(bytes).await;
        held.expect("the semaphore is never closed")
    }
}

/// Why a request gets no answer.
enum Refusal<E> {
    Method,
    ContentType(String),
    TooLarge,
    Slow,
    Body(String),
    Admit { bad_request: bool, error: E },
}

impl<E: std::error::Error + 'static> Refusal<E> {
    /// The one place that turns refusals into HTTP.
    fn status(&self) -> (StatusCode, String) {
        match self {
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "expected POST".to_owned()),
            Self::ContentType(kind) => (
                StatusCode::BAD_REQUEST,
                format!("content type `{kind}`: expected application/json"),
            ),
            Self::TooLarge => (
                StatusCode::PAYLOAD_TOO_LARGE,
                format!("the body is larger than {BODY_BYTES_MAX} bytes"),
            ),
            Self::Slow => (
                StatusCode::REQUEST_TIMEOUT,
                format!("the body did not come within {} s", BODY_TIMEOUT.as_secs()),
            ),
            Self::Body(problem) => (
                StatusCode::BAD_REQUEST,
                format!("the body cannot be read: {problem}"),
            ),
            Self::Admit { bad_request, error } => {
                let status = match bad_request {
                    true => StatusCode::BAD_REQUEST,
                    false => StatusCode::INTERNAL_SERVER_ERROR,
                };
                (status, report::chain(error))
            }
        }
    }
}
