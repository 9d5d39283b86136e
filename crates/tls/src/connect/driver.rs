//! The task behind a channel: connects when a request needs it, keeps the connection, replaces it when it breaks.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use heddle_daemon::report::chain;
use heddle_mesh::Identity;
use hyper::{
    client::conn::http2::{Builder, Connection, SendRequest},
    rt::{Read, Write},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rand::seq::SliceRandom;
use rustls::pki_types::ServerName;
use tokio::{
    net::TcpStream,
    sync::watch,
    task::{JoinHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tonic::body::Body;
use tracing::{Instrument, debug, debug_span};

use super::{
    Backoff, ChannelOptions, ClientAuth, ControlAddr, Link, Shared,
    resolve::{ResolveError, Resolver},
};
use crate::Store;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// A connection that lived this long was a good one: the next failure counts from the beginning.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// Addresses tried before the attempt counts as failed.
const ADDRESSES_TRIED_MAX: usize = 4;
/// Old connections whose streams still run; more are cut.
const DRAINING_MAX: usize = 8;
/// A peer that is gone without a word is noticed after the sum of both.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// Updates of large services are some hundred kilobytes; several streams share the connection.
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// Ends the driver when dropped.
pub(super) struct Running(JoinHandle<()>);

pub(super) struct Tls {
    pub(super) server: Identity,
    pub(super) store: Store,
    pub(super) auth: ClientAuth,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The name has no address.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// TCP or TLS failed.
    #[error("failed to connect to {addr}")]
    Io {
        /// The address tried.
        addr: SocketAddr,
        /// What failed.
        source: io::Error,
    },
    /// HTTP/2 failed.
    #[error("failed to speak HTTP/2 with {addr}")]
    Http {
        /// The address tried.
        addr: SocketAddr,
        /// What failed.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("no connection to {addr} within {limit:?}")]
    Timeout {
        /// The address tried.
        addr: SocketAddr,
        /// The bound.
        limit: Duration,
    },
    /// The identity cannot be a server name in TLS.
    #[error("{0} cannot be a server name in TLS")]
    ServerName(Identity),
}

struct Driver {
    shared: Arc<Shared>,
    addr: ControlAddr,
    tls: Option<Tls>,
    options: ChannelOptions,
    publish: watch::Sender<Link>,
    resolver: Resolver,
    backoff: Backoff,
    generation: u64,
    /// The address of the last connection: tried last after it broke, since its pod is likely on its way out.
    last: Option<SocketAddr>,
    draining: JoinSet<()>,
}

pub(super) fn spawn(
    shared: Arc<Shared>,
    addr: ControlAddr,
    tls: Option<Tls>,
    options: ChannelOptions,
    publish: watch::Sender<Link>,
) -> Running {
    let span = debug_span!("control", addr = %addr);
    let driver = Driver {
        shared,
        addr,
        tls,
        options,
        publish,
        resolver: Resolver::default(),
        backoff: Backoff::new(BACKOFF_MIN, BACKOFF_MAX),
        generation: 0,
        last: None,
        draining: JoinSet::new(),
    };
    Running(tokio::spawn(driver.run().instrument(span)))
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Driver {
    async fn run(mut self) {
        loop {
            self.shared.demand.notified().await;
            // Nobody may wait any more: a permit of `Notify` outlives its request.
            while self.in_flight() > 0 {
                match self.connect().await {
                    Ok((addr, sender, connection)) => {
                        debug!(%addr, "Connected");
                        self.keep(addr, sender, connection).await;
                        break;
                    }
                    Err(error) => {
                        let text = chain(&error);
                        debug!(error = %text, "Failed to connect");
                        self.publish.send_replace(Link::Down {
                            error: Some(text.into()),
                        });
                        tokio::time::sleep(self.backoff.wait()).await;
                    }
                }
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.shared.requests_max - self.shared.limit.available_permits()
    }

    /// Publishes a connection and drives it until it ends, breaks or idles.
    async fn keep(&mut self, addr: SocketAddr, sender: SendRequest<Body>, connection: impl Driven) {
        let began = Instant::now();
        self.generation += 1;
        let generation = self.generation;
        self.last = Some(addr);
        self.publish.send_replace(Link::Up { generation, sender });
        while self.draining.try_join_next().is_some() {}
        if self.draining.len() >= DRAINING_MAX {
            self.draining.abort_all();
        }
        let task = self.draining.spawn(async move {
            match connection.await {
                Ok(()) => debug!("Connection ended"),
                Err(error) => debug!(error = %chain(&error), "Connection failed"),
            }
        });
        let mut requests = self.shared.requests.load(Ordering::Relaxed);
        let mut idle = tokio::time::interval_at(began + self.options.idle_timeout, self.options.idle_timeout);
        loop {
            tokio::select! {
                // Every end of a task wakes this; an older connection's end changes nothing.
                _ = self.draining.join_next() => {
                    if task.is_finished() {
                        break;
                    }
                }
                () = self.shared.broken_changed.notified() => {
                    // The connection drains in its task: streams that run on it may end well.
                    if self.shared.broken.load(Ordering::Acquire) >= generation {
                        break;
                    }
                }
                _ = idle.tick() => {
                    let now = self.shared.requests.load(Ordering::Relaxed);
                    if now == requests && self.in_flight() == 0 {
                        debug!("Closing an idle connection");
                        break;
                    }
                    requests = now;
                }
            }
        }
        // The sender goes with the old value, and with the last sender the connection ends.
        self.publish.send_replace(Link::Down { error: None });
        if began.elapsed() >= STABLE_AFTER {
            self.backoff.reset();
        } else if self.in_flight() > 0 {
            // One that accepts and then closes is no better than one that refuses.
            tokio::time::sleep(self.backoff.wait()).await;
        }
        if self.in_flight() > 0 {
            self.shared.demand.notify_one();
        }
    }

    async fn connect(&mut self) -> Result<(SocketAddr, SendRequest<Body>, DrivenBox), ConnectError> {
        let mut addrs = self.resolver.resolve(&self.addr).await?;
        addrs.shuffle(&mut rand::rng());
        // Stable: among the others the order stays random.
        addrs.sort_by_key(|addr| Some(*addr) == self.last);
        addrs.truncate(ADDRESSES_TRIED_MAX);
        let mut failed = None;
        for addr in addrs {
            let limit = self.options.connect_timeout;
            match timeout(limit, self.connect_to(addr)).await {
                Ok(Ok((sender, connection))) => return Ok((addr, sender, connection)),
                Ok(Err(error)) => failed = Some(error),
                Err(_) => failed = Some(ConnectError::Timeout { addr, limit }),
            }
        }
        Err(failed.unwrap_or_else(|| ConnectError::Resolve(ResolveError::Empty(self.addr.to_string()))))
    }

    async fn connect_to(&self, addr: SocketAddr) -> Result<(SendRequest<Body>, DrivenBox), ConnectError> {
        let failed = |source| ConnectError::Io { addr, source };
        let tcp = TcpStream::connect(addr).await.map_err(failed)?;
        tcp.set_nodelay(true).map_err(failed)?;
        let Some(Tls { server, store, auth }) = &self.tls else {
            return handshake(addr, TokioIo::new(tcp)).await;
        };
        let config = match auth {
            ClientAuth::Leaf => store.client_config(),
            ClientAuth::Anonymous => store.anonymous_client_config(),
        };
        let name = ServerName::try_from(server.as_str().to_owned())
            .map_err(|_| ConnectError::ServerName(server.clone()))?;
        let tls = TlsConnector::from(config)
            .connect(name, tcp)
            .await
            .map_err(failed)?;
        handshake(addr, TokioIo::new(tls)).await
    }
}

trait Driven: Future<Output = Result<(), hyper::Error>> + Send + 'static {}
impl<T: Future<Output = Result<(), hyper::Error>> + Send + 'static> Driven for T {}
type DrivenBox = std::pin::Pin<Box<dyn Driven>>;

async fn handshake<IO>(addr: SocketAddr, io: IO) -> Result<(SendRequest<Body>, DrivenBox), ConnectError>
where
    IO: Read + Write + Send + Unpin + 'static,
{
    let (sender, connection): (_, Connection<IO, Body, TokioExecutor>) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .handshake(io)
        .await
        .map_err(|source| ConnectError::Http { addr, source })?;
    Ok((sender, Box::pin(connection)))
}
