//! The admin server: HTTP on a port of its own, with `/live`, `/ready`, `/metrics` and what a program adds.
//!
//! It answers probes and scrapes while the program is under load, so its cost is bounded on every side: connections,
//! header bytes and count, time to send a header, and a connection's life. Request bodies are never read.

use std::{convert::Infallible, fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
};
use tracing::{debug, info, warn};

/// Probes come from one kubelet and scrapes from a few collectors.
const CONNECTIONS_MAX: usize = 64;
/// Also bounds how long an idle connection stays.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;
/// A connection is asked to end after this, and cut some seconds later: one that reads slowly must not hold its place.
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
const CONNECTION_END: Duration = Duration::from_secs(5);

/// Media type of [`prometheus_client`]'s text.
const METRICS_TYPE: HeaderValue =
    HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");

/// A reply of the admin server.
pub type Reply = Response<Full<Bytes>>;

type Check = Arc<dyn Fn() -> bool + Send + Sync>;
type Routes = Arc<dyn Fn(&Parts) -> Option<Reply> + Send + Sync>;

/// An admin server that is yet to be bound.
#[derive(Clone)]
pub struct Admin {
    addr: SocketAddr,
    registry: Arc<Registry>,
    ready: Check,
    routes: Option<Routes>,
}

/// A bound admin server: from here on connections queue up.
pub struct Bound {
    admin: Admin,
    listener: TcpListener,
    addr: SocketAddr,
}

/// The admin server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {addr} for the admin server")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

impl Admin {
    /// An admin server for `addr` that serves `registry` and is ready from the start.
    pub fn new(addr: SocketAddr, registry: Registry) -> Self {
        Self {
            addr,
            registry: Arc::new(registry),
            ready: Arc::new(|| true),
            routes: None,
        }
    }

    /// Asks `ready` on each `/ready`: 200 when it returns true, else 503. It must not block.
    #[must_use]
    pub fn ready(mut self, ready: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.ready = Arc::new(ready);
        self
    }

    /// Asks `routes` first for each request, of any method; `None` leaves the request to the built-in paths. It must
    /// not block, and it never sees a body.
    #[must_use]
    pub fn routes(mut self, routes: impl Fn(&Parts) -> Option<Reply> + Send + Sync + 'static) -> Self {
        self.routes = Some(Arc::new(routes));
        self
    }

    /// Starts to listen.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn bind(self) -> Result<Bound, BindError> {
        let error = |source| BindError {
            addr: self.addr,
            source,
        };
        let listener = TcpListener::bind(self.addr).await.map_err(error)?;
        let addr = listener.local_addr().map_err(error)?;
        Ok(Bound {
            admin: self,
            listener,
            addr,
        })
    }

    /// Binds and serves until dropped: probes and scrapes go on while the program drains.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn serve(self) -> Result<Infallible, BindError> {
        Ok(self.bind().await?.run().await)
    }

    /// Binds, then serves in a task of its own. The task ends when the handle is aborted or the runtime ends.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn spawn(self) -> Result<tokio::task::JoinHandle<Infallible>, BindError> {
        Ok(tokio::spawn(self.bind().await?.run()))
    }

    fn reply(&self, parts: &Parts) -> Reply {
        if let Some(reply) = self.routes.as_ref().and_then(|routes| routes(parts)) {
            return reply;
        }
        let known = matches!(parts.uri.path(), "/live" | "/ready" | "/metrics");
        if known && !matches!(parts.method, Method::GET | Method::HEAD) {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n");
            reply
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return reply;
        }
        match parts.uri.path() {
            "/live" => text(StatusCode::OK, "live\n"),
            "/ready" if (self.ready)() => text(StatusCode::OK, "ready\n"),
            "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
            "/metrics" => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }

    fn metrics(&self) -> Reply {
        let mut body = String::with_capacity(16 * 1024);
        match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            Ok(()) => {
                let mut reply = Response::new(Full::from(body));
                reply.headers_mut().insert(header::CONTENT_TYPE, METRICS_TYPE);
                reply
            }
            Err(error) => {
                warn!(%error, "Failed to encode metrics");
                text(StatusCode::INTERNAL_SERVER_ERROR, "failed to encode metrics\n")
            }
        }
    }
}

impl Bound {
    /// The address with its real port.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// Serves until dropped.
    pub async fn run(self) -> Infallible {
        let Self {
            admin,
            listener,
            addr,
        } = self;
        info!(%addr, "Serving admin requests");
        let admin = Arc::new(admin);
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut connections = JoinSet::new();
        loop {
            let place = Arc::clone(&places)
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                // Reaps ended connections; the accept is simply begun anew.
                Some(_) = connections.join_next() => continue,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let admin = Arc::clone(&admin);
                    connections.spawn(async move {
                        if let Err(error) = connection(admin, stream).await {
                            debug!(%peer, %error, "Admin connection failed");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, most likely: they come back when connections end.
                    warn!(%error, "Failed to accept an admin connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn connection(admin: Arc<Admin>, stream: TcpStream) -> Result<(), hyper::Error> {
    let service = service_fn(move |request: Request<Incoming>| {
        let (parts, _body) = request.into_parts();
        let reply = admin.reply(&parts);
        async move { Ok::<_, Infallible>(reply) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    if let Ok(ended) = tokio::time::timeout(CONNECTION_LIFE, connection.as_mut()).await {
        return ended;
    }
    connection.as_mut().graceful_shutdown();
    tokio::time::timeout(CONNECTION_END, connection)
        .await
        .unwrap_or(Ok(()))
}

/// A reply of plain text, for a program's own routes.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    reply
}

impl fmt::Debug for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Admin")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bound")
            .field("addr", &self.addr)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
