//! The admin server: probes, metrics, log level, shutdown.
//!
//! What changes the proxy or tells its secrets is for the pod itself: such requests must come from loopback. The port
//! speaks plaintext and TLS with the proxy's own certificate, whichever the client begins with: probes and scrapers come
//! without, and `heddle identity` comes for the certificate.

use std::{collections::VecDeque, convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use heddle_daemon::signal::Trigger;
use heddle_tls::{Readiness, Store};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, info, warn};

use crate::{config::Config, logging::LogHandle, metrics::Metrics};

const CONNECTIONS_MAX: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Probes and scrapes are short; a connection that is kept open is closed in the end.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
const HEADER_BYTES_MAX: usize = 16 * 1024;
/// A log filter.
const BODY_BYTES_MAX: usize = 4 * 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Prometheus' text form; OpenMetrics would forbid Linkerd's names.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The admin server's parts.
#[derive(Debug)]
pub(crate) struct Admin {
    pub config: Arc<Config>,
    pub metrics: Arc<Metrics>,
    pub registry: Registry,
    pub ready: watch::Receiver<Readiness>,
    pub store: Store,
    pub log: LogHandle,
    pub shutdown: Trigger,
}

/// The admin server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {addr} for the admin server")]
pub(crate) struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// A bound admin server.
#[derive(Debug)]
pub(crate) struct Bound {
    admin: Arc<Admin>,
    listener: TcpListener,
}

type Reply = Response<Full<Bytes>>;

impl Admin {
    /// Starts to listen.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub(crate) async fn bind(self) -> Result<Bound, BindError> {
        let addr = self.config.admin.listen;
        let listener = TcpListener::bind(addr)
            .await
            .map_err(|source| BindError { addr, source })?;
        Ok(Bound {
            admin: Arc::new(self),
            listener,
        })
    }

    async fn reply(&self, request: Request<Incoming>, client: SocketAddr) -> Reply {
        let local = client.ip().to_canonical().is_loopback();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        match (request.uri().path(), local) {
            ("/live", _) if get => text(StatusCode::OK, "live\n"),
            ("/ready", _) if get => match self.ready.borrow().is_ready() {
                true => text(StatusCode::OK, "ready\n"),
                false => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no certificate yet\n"),
            },
            ("/metrics", _) if get => {
                let mut reply = text(StatusCode::OK, self.render());
                reply
                    .headers_mut()
                    .insert(header::CONTENT_TYPE, http::HeaderValue::from_static(METRICS_TYPE));
                reply
            }
            ("/proxy-log-level" | "/shutdown" | "/env.json", false) => {
                text(StatusCode::FORBIDDEN, "only from the pod itself, over loopback\n")
            }
            ("/proxy-log-level", true) if get => text(StatusCode::OK, self.log.current()),
            ("/proxy-log-level", true) if request.method() == Method::PUT => {
                self.set_log_level(request).await
            }
            ("/shutdown", true) if request.method() == Method::POST => {
                match self.config.admin.shutdown_endpoint {
                    true => {
                        info!("Asked to shut down");
                        self.shutdown.fire();
                        text(StatusCode::OK, "shutting down\n")
                    }
                    false => text(StatusCode::NOT_FOUND, "shutdown is not enabled\n"),
                }
            }
            ("/env.json", true) if get => env_json(),
            ("/live" | "/ready" | "/metrics" | "/proxy-log-level" | "/shutdown" | "/env.json", _) => {
                text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
            }
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    async fn set_log_level(&self, request: Request<Incoming>) -> Reply {
        let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
        let Ok(Ok(body)) = timeout(HEADER_TIMEOUT, body).await else {
            return text(StatusCode::BAD_REQUEST, "no log filter\n");
        };
        let body = body.to_bytes();
        let Ok(filter) = std::str::from_utf8(&body) else {
            return text(StatusCode::BAD_REQUEST, "the log filter is not UTF-8\n");
        };
        match self.log.set(filter.trim()) {
            Ok(()) => text(StatusCode::NO_CONTENT, ""),
            Err(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        }
    }

    fn render(&self) -> String {
        let mut out = String::with_capacity(64 * 1024);
        self.metrics.render(&mut out);
        let mut process = String::new();
        if prometheus_client::encoding::text::encode(&mut process, &self.registry).is_ok() {
            out.push_str(process.trim_end_matches("# EOF\n"));
        }
        out
    }
}

/// The proxy's own settings; other variables of the process are nobody's business.
fn env_json() -> Reply {
    let vars: std::collections::BTreeMap<String, String> = std::env::vars()
        .filter(|(name, _)| name.starts_with("LINKERD2_PROXY_"))
        .collect();
    match serde_json::to_vec(&vars) {
        Ok(json) => {
            let mut reply = text(StatusCode::OK, json);
            reply.headers_mut().insert(
                header::CONTENT_TYPE,
                http::HeaderValue::from_static("application/json"),
            );
            reply
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply
}

impl Bound {
    /// Serves for as long as the process runs, so that probes are answered while it drains.
    pub(crate) async fn serve(self) {
        let Self { admin, listener } = self;
        let mut open = VecDeque::<AbortHandle>::with_capacity(CONNECTIONS_MAX);
        loop {
            match listener.accept().await {
                Ok((tcp, client)) => {
                    open.retain(|one| !one.is_finished());
                    // Whoever came first goes: strangers that keep all places must not keep the kubelet's probes out.
                    if open.len() >= CONNECTIONS_MAX
                        && let Some(oldest) = open.pop_front()
                    {
                        oldest.abort();
                    }
                    let serving = tokio::spawn(connection(admin.clone(), tcp, client));
                    open.push_back(serving.abort_handle());
                }
                Err(error) => {
                    warn!(%error, "Failed to accept an admin connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

/// The first byte of a TLS handshake record (RFC 8446 section 5.1); no HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

async fn connection(admin: Arc<Admin>, tcp: TcpStream, client: SocketAddr) {
    let mut first = [0];
    let peeked = timeout(HEADER_TIMEOUT, tcp.peek(&mut first)).await;
    if !matches!(peeked, Ok(Ok(1))) {
        return;
    }
    if first[0] != TLS_HANDSHAKE {
        return serve(admin, tcp, client).await;
    }
    let acceptor = TlsAcceptor::from(admin.store.server_config());
    match timeout(HEADER_TIMEOUT, acceptor.accept(tcp)).await {
        Ok(Ok(tls)) => serve(admin, tls, client).await,
        Ok(Err(error)) => debug!(%client, %error, "Admin handshake failed"),
        Err(_) => debug!(%client, "Admin handshake took too long"),
    }
}

async fn serve(admin: Arc<Admin>, stream: impl AsyncRead + AsyncWrite + Unpin, client: SocketAddr) {
    let service = service_fn(move |request| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(admin.reply(request, client).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = timeout(CONNECTION_LIFE, connection).await {
        debug!(%client, %error, "Admin connection ended");
    }
}
