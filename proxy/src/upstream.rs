//! Connections to one address: made with TLS or without, one HTTP/2 connection shared by all requests, and idle HTTP/1
//! connections kept for the next.
//!
//! Belongs to one worker. Connections are driven by tasks of that worker.

mod keep_alive;

use std::{cell::RefCell, io, net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest as Http2Sender;
use heddle_tls::{Identity, PeerId, rustls::pki_types::ServerName};
use http::{Request, Response};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    sync::watch,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::{
    config::PoolConfig,
    http::{ProxyError, RequestBody, frugal::Frugal, windows::Windows},
    http1::{Connection, Http1Body, Http1Error},
    io::{Io, Prefixed, Socket, Wire},
    limits::Gate,
    metrics::tcp::TcpHandles,
    tls::{Side, Tls},
    transport_header::{self, TransportHeader},
};

pub(crate) use keep_alive::Care;

/// A handshake is one round trip and a few hundred microseconds of work; a peer that takes longer is in trouble.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(3);
/// An application whose queue of connections is full for a moment lets the kernel drop what asks to connect, and that
/// would be sent anew only after a second, when the connect timeout has passed. So it is tried again for so long.
const NEAR_PATIENCE: Duration = Duration::from_secs(1);
/// Data that the peer has not acknowledged for so long means that it is gone.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(15);
pub(crate) const KEEPALIVE: Duration = Duration::from_secs(10);
/// A response's head of more than this is not passed on.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// No connection was made; nothing of the request was sent, so that another endpoint may be tried.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("failed to connect to {addr}")]
    Tcp {
        addr: SocketAddr,
        source: Arc<io::Error>,
    },
    #[error("failed to connect to {addr} within {timeout:?}")]
    TcpTimeout { addr: SocketAddr, timeout: Duration },
    #[error("the TLS handshake with {addr} as {name} failed")]
    Tls {
        addr: SocketAddr,
        name: String,
        source: Arc<io::Error>,
    },
    #[error("the TLS handshake with {addr} as {name} took longer than {HANDSHAKE_TIMEOUT:?}")]
    TlsTimeout { addr: SocketAddr, name: String },
    #[error("the transport header was not taken by {addr}")]
    Header {
        addr: SocketAddr,
        source: Arc<io::Error>,
    },
    #[error("{addr} does not speak HTTP/2")]
    Http2 {
        addr: SocketAddr,
        source: Arc<h2::Error>,
    },
    #[error("{addr} does not speak HTTP/1")]
    Http1 {
        addr: SocketAddr,
        source: Arc<hyper::Error>,
    },
    #[error("connections to {addr} end before they are used")]
    Unstable { addr: SocketAddr },
    #[error("the policy allows no more connections to {addr}, or to its service")]
    Limited { addr: SocketAddr },
}

/// How connections are made.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub addr: SocketAddr,
    pub connect_timeout: Duration,
    pub tls: Option<TargetTls>,
    /// In the same pod.
    pub near: bool,
    /// How HTTP/2 connections are looked after.
    pub care: Option<Care>,
    /// HTTP/1 connections that wait for the next request.
    pub pool: PoolConfig,
}

/// Who the other side must be.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    server_name: ServerName<'static>,
    /// When it is not the server name that it must prove.
    id: Option<PeerId>,
}

/// How the other side is spoken to over TLS.
#[derive(Clone, Debug)]
pub(crate) struct TargetTls {
    pub peer: Peer,
    /// What to tell the peer's proxy first.
    pub header: Option<TransportHeader>,
}

/// Connections to one address.
#[derive(Debug)]
pub(crate) struct Upstream {
    target: Target,
    tls: Rc<Tls>,
    tcp: TcpHandles,
    gate: Option<Rc<Gate>>,
    http2: RefCell<Http2>,
    idle: RefCell<Vec<Idle>>,
}

/// The shared HTTP/2 connection.
#[derive(Clone, Debug)]
enum Http2 {
    None,
    Connecting(watch::Receiver<Option<Result<(), ConnectError>>>),
    Up(Http2Sender<Bytes>),
}

#[derive(Debug)]
struct Idle {
    connection: Box<Connection>,
    since: Instant,
}

impl Peer {
    /// One that must prove `id`, and is asked for by `server_name` where that is another.
    pub(crate) fn new(id: &PeerId, server_name: Option<&Identity>) -> Self {
        let name = server_name
            .or(id.dns())
            .expect("a SPIFFE ID has a server name beside it: checked in Endpoint::from_proto");
        Self {
            server_name: ServerName::try_from(name.as_str().to_owned()).expect("an identity is a DNS name"),
            id: server_name.map(|_| id.clone()),
        }
    }
}

impl Upstream {
    /// Connections beyond the gate's limits are not made.
    pub(crate) fn new(target: Target, tls: Rc<Tls>, tcp: TcpHandles, gate: Option<Rc<Gate>>) -> Rc<Self> {
        Rc::new(Self {
            target,
            tls,
            tcp,
            gate,
            http2: RefCell::new(Http2::None),
            idle: RefCell::default(),
        })
    }

    /// The same, with connections of its own.
    pub(crate) fn apart(&self) -> Rc<Self> {
        Self::new(
            self.target.clone(),
            self.tls.clone(),
            self.tcp.clone(),
            self.gate.clone(),
        )
    }

    /// A new connection, for bytes.
    pub(crate) async fn connect(&self) -> Result<Io, ConnectError> {
        self.connect_for(None).await
    }

    /// A new connection for this protocol, as its transport header tells where it has one.
    async fn connect_for(&self, protocol: Option<transport_header::Protocol>) -> Result<Io, ConnectError> {
        let Target {
            addr,
            connect_timeout,
            tls,
            near,
            care: _,
            pool: _,
        } = &self.target;
        let addr = *addr;
        let permit = match &self.gate {
            Some(gate) => gate.connection().map_err(|()| ConnectError::Limited { addr })?,
            None => None,
        };
        let patience = if *near { NEAR_PATIENCE } else { Duration::ZERO };
        let tcp = connect_tcp(addr, *connect_timeout, patience).await?;
        set_options(&SockRef::from(&tcp));
        let Some(TargetTls { peer, header }) = tls else {
            return Ok(Io::new(Socket::Plain(Prefixed::new(tcp)), self.tcp.open()).holding(permit));
        };
        let Peer { server_name, id } = peer;
        let config = self.tls.client(id.as_ref(), header.is_some());
        let handshake =
            TlsConnector::from(config).connect(server_name.clone(), Wire::new(Prefixed::new(tcp)));
        let name = || server_name.to_str().into_owned();
        let tls = match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(tls)) => tls,
            Ok(Err(source)) => {
                return Err(ConnectError::Tls {
                    addr,
                    name: name(),
                    source: source.into(),
                });
            }
            Err(_) => return Err(ConnectError::TlsTimeout { addr, name: name() }),
        };
        let guard = self
            .tls
            .guard(Side::Outbound, tls.get_ref().0.tcp(), tls.get_ref().1)
            .map_err(|source| ConnectError::Tls {
                addr,
                name: name(),
                source: source.into(),
            })?;
        let mut io = Io::new(Socket::Client(Box::new(tls)), self.tcp.open())
            .holding(permit)
            .guarded(guard);
        if let Some(header) = header {
            let header = TransportHeader {
                protocol,
                ..header.clone()
            };
            // It is flushed with the first bytes that follow, or at once by whoever has none.
            io.write_all(&header.encode())
                .await
                .map_err(|source| ConnectError::Header {
                    addr,
                    source: source.into(),
                })?;
            io.flush().await.map_err(|source| ConnectError::Header {
                addr,
                source: source.into(),
            })?;
        }
        Ok(io)
    }

    /// A sender on the shared HTTP/2 connection that can take a request now.
    pub(crate) async fn http2(self: &Rc<Self>) -> Result<Http2Sender<Bytes>, ConnectError> {
        // A connection may end between any two steps; one that keeps ending is an error.
        for _ in 0..4 {
            let state = self.http2.borrow().clone();
            match state {
                Http2::Up(sender) => match sender.ready().await {
                    Ok(sender) => return Ok(sender),
                    Err(_) => self.forget_http2(),
                },
                Http2::Connecting(mut connecting) => {
                    if let Ok(done) = connecting.wait_for(Option::is_some).await
                        && let Some(Err(error)) = &*done
                    {
                        return Err(error.clone());
                    }
                }
                Http2::None => {
                    let (publish, connecting) = watch::channel(None);
                    *self.http2.borrow_mut() = Http2::Connecting(connecting);
                    let this = self.clone();
                    // In a task of its own: the request that wants it first may be given up.
                    tokio::task::spawn_local(async move {
                        let connected = Box::pin(this.connect_http2()).await;
                        let (state, result) = match connected {
                            Ok(sender) => (Http2::Up(sender), Ok(())),
                            Err(error) => (Http2::None, Err(error)),
                        };
                        *this.http2.borrow_mut() = state;
                        publish.send_replace(Some(result));
                    });
                }
            }
        }
        Err(ConnectError::Unstable {
            addr: self.target.addr,
        })
    }

    /// Only a connection that is up is forgotten: another request may be making the next one already.
    fn forget_http2(&self) {
        let mut state = self.http2.borrow_mut();
        if matches!(*state, Http2::Up(_)) {
            *state = Http2::None;
        }
    }

    async fn connect_http2(self: &Rc<Self>) -> Result<Http2Sender<Bytes>, ConnectError> {
        let addr = self.target.addr;
        let io = self.connect_for(Some(transport_header::Protocol::Http2)).await?;
        io.set_unacknowledged_max(UNACKNOWLEDGED_MAX);
        let windows = match self.target.near {
            true => Windows::near(),
            false => Windows::far(),
        };
        let traffic = io.traffic();
        let (sender, mut connection) = h2::client::Builder::new()
            .initial_window_size(windows.stream())
            .initial_connection_window_size(windows.connection())
            .max_send_buffer_size(windows.send_buffer())
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .enable_push(false)
            .handshake(Frugal::client(io))
            .await
            .map_err(|source| ConnectError::Http2 {
                addr,
                source: Arc::new(source),
            })?;
        let care = self.target.care.clone().zip(connection.ping_pong());
        tokio::task::spawn_local(async move {
            let gone = async {
                match care {
                    Some((care, pings)) => care.watch(pings, traffic).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    debug!(%addr, %error, "HTTP/2 connection ended");
                },
                () = gone => debug!(%addr, "HTTP/2 connection ended: no answer to a ping"),
            }
            drop(windows);
        });
        Ok(sender)
    }

    /// An HTTP/1 connection that no other request uses.
    pub(crate) async fn http1(self: &Rc<Self>) -> Result<Box<Connection>, ConnectError> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let Some(Idle {
                mut connection,
                since,
            }) = idle
            else {
                break;
            };
            if since.elapsed() <= self.target.pool.idle_timeout && connection.is_alive() {
                return Ok(connection);
            }
        }
        Box::pin(self.fresh_http1()).await
    }

    async fn fresh_http1(self: &Rc<Self>) -> Result<Box<Connection>, ConnectError> {
        let io = self.connect_for(Some(transport_header::Protocol::Http1)).await?;
        Ok(Connection::new(io, Rc::downgrade(self)))
    }

    /// Sends a request on a connection of [`Upstream::http1`]. One that an idle connection swallowed, because the
    /// other side was closing it, is sent again on a new one.
    pub(crate) async fn send_http1(
        self: &Rc<Self>,
        connection: Box<Connection>,
        request: Request<RequestBody>,
    ) -> Result<Response<Http1Body>, ProxyError> {
        let (head, body) = request.into_parts();
        match connection.send(&head, body).await {
            Ok(response) => Ok(response),
            Err((_, Some(body))) => {
                let connection = Box::pin(self.fresh_http1()).await?;
                connection
                    .send(&head, body)
                    .await
                    .map_err(|(error, _)| ProxyError::Http1(error))
            }
            Err((Http1Error::Client(error), None)) => Err(ProxyError::Client(error)),
            Err((error, None)) => Err(ProxyError::Http1(error)),
        }
    }

    /// Takes a connection back that is free again.
    pub(crate) fn give_back(&self, connection: Box<Connection>) {
        let mut idle = self.idle.borrow_mut();
        if idle.len() < self.target.pool.idle_max {
            idle.push(Idle {
                connection,
                since: Instant::now(),
            });
            if let Some(gate) = &self.gate {
                gate.connection_is_free();
            }
        }
    }

    /// An HTTP/1 connection that may become something else.
    pub(crate) async fn upgradable(&self) -> Result<http1::SendRequest<RequestBody>, ConnectError> {
        let addr = self.target.addr;
        let io = self.connect_for(Some(transport_header::Protocol::Http1)).await?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|source| ConnectError::Http1 {
                addr,
                source: Arc::new(source),
            })?;
        tokio::task::spawn_local(async move {
            if let Err(error) = connection.with_upgrades().await {
                debug!(%addr, %error, "HTTP/1 connection ended");
            }
        });
        Ok(sender)
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        self.idle
            .borrow_mut()
            .retain(|idle| idle.since.elapsed() <= self.target.pool.idle_timeout);
    }
}

/// Connects, and after each timeout again, until `patience` is over.
async fn connect_tcp(
    addr: SocketAddr,
    connect_timeout: Duration,
    patience: Duration,
) -> Result<TcpStream, ConnectError> {
    let start = Instant::now();
    loop {
        match timeout(connect_timeout, TcpStream::connect(addr)).await {
            Ok(Ok(tcp)) => return Ok(tcp),
            Ok(Err(source)) => {
                return Err(ConnectError::Tcp {
                    addr,
                    source: source.into(),
                });
            }
            Err(_) if start.elapsed() < patience => {}
            Err(_) => {
                return Err(ConnectError::TcpTimeout {
                    addr,
                    timeout: connect_timeout.max(patience),
                });
            }
        }
    }
}

/// Options of all connections between proxies and applications.
pub(crate) fn set_options(socket: &SockRef<'_>) {
    // A kernel that refuses one of these still carries bytes.
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE));
}
