//! Serves gRPC over mesh TLS: every request's extensions tell who calls ([`Peer`]).
//!
//! Bounded on every side: connections, time of a handshake, streams, header bytes, time without a sign of life, and
//! time to drain. When there are as many connections as may be, one that nothing is asked on goes for each that comes.

mod places;

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use heddle_daemon::report::chain;
use heddle_mesh::Identity;
use http::{Request, Response};
use http_body::{Frame, SizeHint};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
    server::conn::http2,
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::Interest,
    net::{TcpListener, TcpSocket, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::{Status, body::Body, service::Routes};
use tower::{Service, ServiceExt};
use tracing::{Instrument, debug, debug_span, info, warn};

use self::places::{Busy, Place, Places};
use crate::{
    PeerLeaf, Store, peer_identity,
    pieces::{Pieces, Unvectored},
};

/// Connections that wait to be accepted; the kernel has its own bound. A cluster that restarts comes all at once, and who
/// finds the queue full comes back after a second at the soonest.
const BACKLOG: u32 = 8192;

/// Handshakes at a time, in the order in which connections came: when thousands come at once, the first are done before they
/// have given up, and only these take memory.
const HANDSHAKES_MAX: usize = 128;
/// One that takes longer waits for its peer; it goes on, and another begins.
const HANDSHAKE_TURN: Duration = Duration::from_millis(250);

/// Who is at the other end of a request's connection; in the request's extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// The address that it connects from.
    pub addr: SocketAddr,
    /// The identity that it proved, if it showed a certificate.
    pub identity: Option<Identity>,
    /// Whether the connection is TLS.
    pub tls: bool,
}

/// The bounds of a server.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections at a time; more wait in the kernel's queue until one without a request has been cut.
    pub connections_max: usize,
    /// For a TLS handshake.
    pub handshake_timeout: Duration,
    /// Streams at a time of one connection.
    pub streams_max: u32,
    /// A request is given up after this; `None` where streams may live for ever.
    pub request_timeout: Option<Duration>,
    /// Bytes of a request's headers.
    pub header_bytes_max: u32,
    /// A silent peer is asked after this …
    pub keep_alive_interval: Duration,
    /// … and given up after that.
    pub keep_alive_timeout: Duration,
    /// On shutdown, streams have this long to end.
    pub drain_timeout: Duration,
    /// A connection is asked to go after this, so that clients spread over replicas anew.
    pub connection_age_max: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 20_000,
            handshake_timeout: Duration::from_secs(10),
            streams_max: 4096,
            request_timeout: None,
            header_bytes_max: 16 * 1024,
            keep_alive_interval: Duration::from_secs(20),
            keep_alive_timeout: Duration::from_secs(20),
            drain_timeout: Duration::from_secs(5),
            connection_age_max: None,
        }
    }
}

/// Plaintext is served on loopback only.
#[derive(Debug, thiserror::Error)]
#[error("{0} is not a loopback address: without TLS only loopback is served")]
pub struct NotLoopback(SocketAddr);

/// A server could not listen.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {addr}")]
pub struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// gRPC services with their bounds.
#[derive(Clone, Debug)]
pub struct Server<S = Routes> {
    service: S,
    limits: Limits,
    /// Whether answers are written in [`pieces`](crate::pieces).
    pieces: bool,
}

/// What can be served: whatever happens, it answers.
pub trait Serve:
    Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Serve for S where
    S: Service<Request<Incoming>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Listens on `addr`.
///
/// # Errors
/// The address is taken or not ours; the error names it.
pub async fn bind(addr: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let socket = match addr {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    listen().map_err(|source| BindError { addr, source })
}

impl Server {
    /// Serves `routes` within the default bounds.
    pub fn new(routes: Routes) -> Self {
        Self::only(routes.prepare())
    }
}

impl<S: Serve> Server<S> {
    /// Serves `service` alone, without a router, within the default bounds.
    pub fn only(service: S) -> Self {
        Self {
            service,
            limits: Limits::default(),
            pieces: false,
        }
    }

    /// For a service that is asked for single answers of a kilobyte or two, many at a time: they are written together (see
    /// [`pieces`](crate::pieces)). Not for streams, which keep their connections and would keep its buffers with them.
    #[must_use]
    pub fn short_answers(mut self) -> Self {
        self.pieces = true;
        self
    }

    /// Sets other bounds.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Serves TLS until `drain` is signalled and the connections have ended or used up their time.
    pub async fn serve_tls(self, listener: TcpListener, store: Store, drain: drain::Watch) {
        self.accept(listener, Some(store), drain).await;
    }

    /// Serves without TLS, on a loopback address: for tools inside the pod.
    ///
    /// # Errors
    /// The listener is not on loopback.
    pub async fn serve_plaintext(
        self,
        listener: TcpListener,
        drain: drain::Watch,
    ) -> Result<(), NotLoopback> {
        match listener.local_addr() {
            Ok(addr) if !addr.ip().is_loopback() => return Err(NotLoopback(addr)),
            _ => self.accept(listener, None, drain).await,
        }
        Ok(())
    }

    async fn accept(self, listener: TcpListener, store: Option<Store>, drain: drain::Watch) {
        let tls = store.is_some();
        info!(addr = ?listener.local_addr().ok(), tls, "Serving gRPC");
        let places = Places::new(self.limits.connections_max, self.limits.request_timeout);
        let turns = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let server = Arc::new(self);
        let mut connections = JoinSet::new();
        let signaled = drain.clone().signaled();
        let mut signaled = std::pin::pin!(signaled);
        let mut waiting = None;
        let _release = loop {
            tokio::select! {
                release = signaled.as_mut() => break release,
                // Reaps ended connections.
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if waiting.is_none() => match accepted {
                    Ok(accepted) => waiting = Some(accepted),
                    Err(error) => {
                        // Out of file descriptors, most likely: they come back when connections end.
                        warn!(%error, "Failed to accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                place = places.take(), if waiting.is_some() => {
                    let Some((stream, addr)) = waiting.take() else { continue };
                    let (server, turns) = (Arc::clone(&server), Arc::clone(&turns));
                    let (store, drain) = (store.clone(), drain.clone());
                    let connection = async move {
                        let tls = store.map(|store| (store, turns));
                        tokio::select! {
                            () = server.connection(stream, addr, tls, drain, &place) => {}
                            () = place.needed() => debug!("Cut a connection: another one needs its place"),
                        }
                    };
                    connections.spawn(connection.instrument(debug_span!("accept", peer = %addr)));
                }
            }
        };
        drop(listener);
        while connections.join_next().await.is_some() {}
    }

    async fn connection(
        &self,
        stream: TcpStream,
        addr: SocketAddr,
        tls: Option<(Store, Arc<Semaphore>)>,
        drain: drain::Watch,
        place: &Place,
    ) {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "Failed to set TCP_NODELAY");
        }
        let Some((store, turns)) = tls else {
            let peer = Peer {
                addr,
                identity: None,
                tls: false,
            };
            return Box::pin(self.http(TokioIo::new(stream), peer, drain, place)).await;
        };
        let accept = handshake(stream, &store, &turns);
        match timeout(self.limits.handshake_timeout, accept).await {
            Ok(Ok(stream)) => {
                let certs = stream.get_ref().1.peer_certificates();
                let (identity, leaf) = (certs.and_then(peer_identity), certs.and_then(PeerLeaf::of));
                let peer = Peer {
                    addr,
                    identity,
                    tls: true,
                };
                tokio::select! {
                    () = Box::pin(self.http(TokioIo::new(stream), peer, drain, place)) => {}
                    () = store.until_revoked(leaf) => debug!("Cut a connection: the peer's certificate was revoked"),
                }
            }
            Ok(Err(error)) => debug!(%error, "TLS handshake failed"),
            Err(_) => debug!("TLS handshake took too long"),
        }
    }

    async fn http<IO>(&self, io: IO, peer: Peer, drain: drain::Watch, place: &Place)
    where
        IO: Read + Write + Send + Unpin + 'static,
    {
        let Self {
            service,
            limits,
            pieces,
        } = self;
        let pieces = *pieces;
        let request_timeout = limits.request_timeout;
        let service = service_fn(|mut request: Request<Incoming>| {
            request.extensions_mut().insert(peer.clone());
            let (service, busy) = (service.clone(), place.busy());
            async move {
                let answer = answer(service, request, request_timeout).await;
                let answer = answer.map(|body| Answer { body, _busy: busy });
                Ok::<_, Infallible>(answer.map(|body| Pieces::only_if(pieces, body)))
            }
        });
        let connection = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_max)
            .max_header_list_size(limits.header_bytes_max)
            .keep_alive_interval(limits.keep_alive_interval)
            .keep_alive_timeout(limits.keep_alive_timeout)
            .serve_connection(Unvectored::only_if(pieces, io), service);
        let mut connection = std::pin::pin!(connection);
        let aged = async {
            match limits.connection_age_max {
                // A tenth at random, so that connections made together do not end together.
                Some(age) => {
                    let share = rand::Rng::random_range(&mut rand::rng(), 0.9..=1.0);
                    tokio::time::sleep(age.mul_f64(share)).await;
                }
                None => std::future::pending().await,
            }
        };
        let mut signaled = std::pin::pin!(drain.signaled());
        let ended = tokio::select! {
            ended = connection.as_mut() => Some(ended),
            () = aged => None,
            _release = signaled.as_mut() => {
                connection.as_mut().graceful_shutdown();
                match timeout(limits.drain_timeout, connection.as_mut()).await {
                    Ok(ended) => Some(ended),
                    Err(_) => return debug!("Cut a connection that did not drain in time"),
                }
            }
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                connection.as_mut().graceful_shutdown();
                // Streams may go on, until the program ends.
                tokio::select! {
                    ended = connection.as_mut() => ended,
                    _release = signaled.as_mut() => match timeout(limits.drain_timeout, connection).await {
                        Ok(ended) => ended,
                        Err(_) => return debug!("Cut a connection that did not drain in time"),
                    },
                }
            }
        };
        match ended {
            Ok(()) => debug!("Connection ended"),
            Err(error) => debug!(error = %chain(&error), "Connection failed"),
        }
    }
}

/// Takes its turn, once there is something to read; nothing is made before.
async fn handshake(stream: TcpStream, store: &Store, turns: &Semaphore) -> io::Result<TlsStream<TcpStream>> {
    stream.readable().await?;
    let turn = turns.acquire().await.map_err(io::Error::other)?;
    // Who has given up meanwhile costs no handshake.
    if stream.ready(Interest::READABLE).await?.is_read_closed() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut handshake = Box::pin(TlsAcceptor::from(store.server_config()).accept(stream));
    match timeout(HANDSHAKE_TURN, handshake.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            drop(turn);
            handshake.await
        }
    }
}

async fn answer<S: Serve>(service: S, request: Request<Incoming>, limit: Option<Duration>) -> Response<Body> {
    let answer = service.oneshot(request);
    let answered = match limit {
        Some(limit) => timeout(limit, answer).await,
        None => Ok(answer.await),
    };
    match answered {
        Ok(answered) => answered.unwrap_or_else(|never| match never {}),
        Err(_) => Status::deadline_exceeded("the request took too long").into_http(),
    }
}

/// An answer's body. Until it has been taken, its connection's place is not another's.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
