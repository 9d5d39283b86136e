//! Connections to the pod's applications: whose they are, what they speak, whether they may, and on to the port.

mod app;
mod gateway;
mod http;
mod port;
mod profile;
mod tcp;

use std::{net::SocketAddr, rc::Rc, sync::Arc, time::Duration};

use heddle_proxy_policy::{Client, ClientTls, ServerPolicy, inbound::Protocol};
use heddle_tls::peer_id;
use tokio::{net::TcpStream, time::Instant};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tracing::debug;

use crate::{
    detect::client_hello::{self, HELLO_BYTES_MAX, Hello},
    discovery::Full,
    dst::{InvalidName, NameAddr},
    http::serve::HttpVersion,
    io::{Ahead, Io, Prefixed, Socket, Wire},
    listen::Accepted,
    metrics::labels::{Labels, Unmeshed},
    outbound::OutboundError,
    tls::Side,
    transport_header::{self, HeaderError, TransportHeader},
    upstream::ConnectError,
    worker::Worker,
};
use http::server_labels;
use port::Port;
pub(crate) use port::Ports;
pub(crate) use profile::Profiles;

/// A peer's handshake is one round trip.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a connection came to its end early.
#[derive(Debug, thiserror::Error)]
enum InboundError {
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the TLS handshake failed")]
    Handshake(#[source] std::io::Error),
    #[error("the TLS handshake took longer than {HANDSHAKE_TIMEOUT:?}")]
    HandshakeTimeout,
    #[error("a connection to the proxy's own port must be meshed and begin with a transport header")]
    NotDirect,
    #[error(transparent)]
    Header(#[from] HeaderError),
    #[error("the proxy does not forward to itself (port {0})")]
    Loop(u16),
    #[error("{0} is none of the pod's addresses")]
    NotOurs(SocketAddr),
    #[error(transparent)]
    Denied(#[from] heddle_proxy_policy::Denied),
    #[error("the application does not take the connection")]
    App(#[from] ConnectError),
    #[error(transparent)]
    Busy(#[from] Full),
    #[error("the policy no longer allows the connection")]
    Terminated,
    #[error(transparent)]
    Name(#[from] InvalidName),
    #[error("this proxy is no gateway to {0}")]
    NotServed(NameAddr),
    #[error("a connection to the proxy's own port must prove an identity")]
    NoIdentity,
    #[error(transparent)]
    Outbound(#[from] OutboundError),
}

impl InboundError {
    fn label(&self) -> &'static str {
        match self {
            Self::Io(_) => "i/o",
            Self::Handshake(_) => "tls handshake",
            Self::HandshakeTimeout => "tls handshake timeout",
            Self::NotDirect | Self::Header(_) => "transport header",
            Self::Loop(_) => "loop",
            Self::NotOurs(_) => "target address",
            Self::Denied(_) | Self::Terminated | Self::NoIdentity => "unauthorized",
            Self::Name(_) | Self::NotServed(_) => "gateway domain invalid",
            Self::Outbound(error) => error.label(),
            Self::App(_) => "connect",
            Self::Busy(_) => "busy",
        }
    }
}

/// Serves one connection. Its task holds little; what a stage needs is on the heap while it lasts.
pub(crate) async fn accept(worker: Rc<Worker>, accepted: Accepted) {
    let (client, addr) = (accepted.client, accepted.orig_dst);
    if let Err(error) = serve(&worker, accepted).await {
        debug!(%client, %addr, error = %heddle_daemon::report::chain(&error), "Inbound connection failed");
        let labels = Labels::default().with("error", error.label());
        worker.metrics.inbound_tcp_errors_total.get(&labels).add(1);
    }
}

/// A connection whose client is known.
struct Known {
    io: Io,
    client: Client,
    /// Where it connects from.
    peer: SocketAddr,
    /// What metrics say when it is not meshed.
    unmeshed: Unmeshed,
    port: Rc<Port>,
}

/// What a connection carries.
enum Carries {
    Http(HttpVersion),
    Bytes,
}

async fn serve(worker: &Rc<Worker>, accepted: Accepted) -> Result<(), InboundError> {
    let Accepted {
        tcp,
        client,
        orig_dst,
        drain,
        place: _place,
    } = accepted;
    let direct = orig_dst.port() == worker.config.inbound.listen.port();
    let (known, carries) = match direct {
        true => {
            let (known, carries, name) = Box::pin(accept_direct(worker, tcp, client, orig_dst)).await?;
            if let Some(name) = name {
                return Box::pin(gateway::serve(worker, known, drain, carries, name)).await;
            }
            (known, carries)
        }
        false => Box::pin(accept_app(worker, tcp, client, orig_dst)).await?,
    };
    match carries {
        Carries::Http(version) => {
            Box::pin(http::serve(worker.clone(), known, drain, version)).await;
            Ok(())
        }
        Carries::Bytes => Box::pin(tcp::serve(worker, known, drain)).await,
    }
}

/// A connection to one of the pod's ports.
async fn accept_app(
    worker: &Rc<Worker>,
    tcp: TcpStream,
    client: SocketAddr,
    orig_dst: SocketAddr,
) -> Result<(Box<Known>, Carries), InboundError> {
    not_ourselves(worker, orig_dst)?;
    let port = worker.inbound.port(worker, orig_dst)?;
    port.settled().await;
    let policy = port.policy();
    takes(&policy, orig_dst)?;
    let timeout = match &policy.protocol {
        Protocol::Detect { timeout, .. } => *timeout,
        _ => worker.config.inbound.detect_timeout,
    };
    let mut tcp = Prefixed::new(tcp);
    // On an opaque port the server may speak first: nothing is waited for. Meshed clients come by the transport header.
    if matches!(policy.protocol, Protocol::Opaque) {
        let known = plain(port, tcp, client, Unmeshed::PortSkipped);
        return Ok((known, Carries::Bytes));
    }
    let hello = |bytes: &[u8]| match client_hello::parse(bytes) {
        Hello::Tls(name) => Some(name),
        Hello::NotTls => Some(None),
        Hello::More => None,
    };
    let name = match tcp.peek(HELLO_BYTES_MAX, Instant::now() + timeout, hello).await? {
        Ahead::Decided(name) => name,
        // Who has said nothing yet may still speak what the port is told to, and nothing else.
        Ahead::Undecided => {
            let carries = told(&policy.protocol).map_or(Carries::Bytes, Carries::Http);
            return Ok((plain(port, tcp, client, Unmeshed::NoClientHello), carries));
        }
    };
    let ours = name.as_deref() == Some(worker.tls.name().as_str());
    let mut known = match ours {
        true => {
            let tls = handshake(worker.tls.server(), tcp).await?;
            meshed(worker, port, tls, client)?
        }
        false => {
            let unmeshed = port.unmeshed(name);
            plain(port, tcp, client, unmeshed)
        }
    };
    let carries = match (&policy.protocol, told(&policy.protocol)) {
        (Protocol::Detect { .. }, _) => detect(worker, &mut known, timeout).await?,
        // A port of one version still gets the other inside the mesh: requests travel as HTTP/2.
        (_, Some(version)) if ours => match detect(worker, &mut known, timeout).await? {
            Carries::Bytes => Carries::Http(version),
            carries => carries,
        },
        (_, Some(version)) => Carries::Http(version),
        (_, None) => Carries::Bytes,
    };
    Ok((known, carries))
}

/// The version of HTTP that a port is told to speak.
fn told(protocol: &Protocol) -> Option<HttpVersion> {
    match protocol {
        Protocol::Http1(_) => Some(HttpVersion::Http1),
        Protocol::Http2(_) | Protocol::Grpc(_) => Some(HttpVersion::Http2),
        Protocol::Detect { .. } | Protocol::Opaque | Protocol::Tls => None,
    }
}

/// A peer's connection to the inbound listener itself, which says by its header what it is for: a port of the pod, or a
/// name that this proxy is a gateway to.
async fn accept_direct(
    worker: &Rc<Worker>,
    tcp: TcpStream,
    client: SocketAddr,
    orig_dst: SocketAddr,
) -> Result<(Box<Known>, Carries, Option<NameAddr>), InboundError> {
    let mut tcp = Prefixed::new(tcp);
    let hello = |bytes: &[u8]| match client_hello::parse(bytes) {
        Hello::Tls(name) => Some(name),
        Hello::NotTls => Some(None),
        Hello::More => None,
    };
    let deadline = Instant::now() + worker.config.inbound.detect_timeout;
    match tcp.peek(HELLO_BYTES_MAX, deadline, hello).await? {
        Ahead::Decided(Some(name)) if name == worker.tls.name().as_str() => {}
        _ => return Err(InboundError::NotDirect),
    }
    let tls = handshake(worker.tls.direct_server(), tcp).await?;
    let session = &tls.get_ref().1;
    if session.alpn_protocol() != Some(transport_header::ALPN) {
        return Err(InboundError::NotDirect);
    }
    // As Linkerd's: only proxies come this way, and they have one.
    if session.peer_certificates().and_then(peer_id).is_none() {
        return Err(InboundError::NoIdentity);
    }
    let mut tls = Prefixed::new(tls);
    let TransportHeader { port, name, protocol } = TransportHeader::read(&mut tls, HEADER_TIMEOUT).await?;
    let name = name.map(|name| NameAddr::new(&name, port)).transpose()?;
    let addr = match name {
        // The gateway's clients are judged by the policy of its own port.
        Some(_) => orig_dst,
        None => SocketAddr::new(orig_dst.ip(), port),
    };
    if name.is_none() {
        not_ourselves(worker, addr)?;
    }
    let port = worker.inbound.port(worker, addr)?;
    port.settled().await;
    takes(&port.policy(), addr)?;
    // Reading the header took exactly its bytes.
    let known = meshed(worker, port, tls.into_inner(), client)?;
    count_header(worker, &known, protocol, name.as_ref());
    let carries = match protocol {
        None => Carries::Bytes,
        Some(transport_header::Protocol::Http1) => Carries::Http(HttpVersion::Http1),
        Some(transport_header::Protocol::Http2) => Carries::Http(HttpVersion::Http2),
    };
    Ok((known, carries, name))
}

/// Counts a connection straight to the proxy, by what its header asks for.
fn count_header(
    worker: &Worker,
    known: &Known,
    protocol: Option<transport_header::Protocol>,
    name: Option<&NameAddr>,
) {
    let session = match protocol {
        None => "",
        Some(transport_header::Protocol::Http1) => "http/1",
        Some(transport_header::Protocol::Http2) => "http/2",
    };
    let id = known.client.tls.identity().map_or("", |id| id.as_str());
    let labels = Labels::default()
        .with("session_protocol", session)
        .with("target_port", known.port.addr().port())
        .with("target_name", name.map(ToString::to_string).unwrap_or_default())
        .with("client_id", id);
    let connections = &worker.metrics.inbound_tcp_transport_header_connections_total;
    connections.get(&labels).add(1);
}

/// The proxy's own listeners are no applications. The admin port may be asked by anyone, as if there were no proxy; but what
/// asks it over loopback it takes for the pod itself.
fn not_ourselves(worker: &Worker, addr: SocketAddr) -> Result<(), InboundError> {
    let (config, port) = (&worker.config, addr.port());
    let ourselves = port == config.inbound.listen.port()
        || config.outbound.listen.iter().any(|listen| listen.port() == port)
        || (addr.ip().is_loopback() && port == config.admin.listen.port());
    match ourselves {
        true => Err(InboundError::Loop(port)),
        false => Ok(()),
    }
}

/// The policy, too, may say at which addresses connections are taken.
fn takes(policy: &ServerPolicy, addr: SocketAddr) -> Result<(), InboundError> {
    match policy.takes(addr.ip()) {
        true => Ok(()),
        false => Err(InboundError::NotOurs(addr)),
    }
}

async fn handshake(
    config: Arc<heddle_tls::rustls::ServerConfig>,
    tcp: Prefixed<TcpStream>,
) -> Result<TlsStream<Wire>, InboundError> {
    match tokio::time::timeout(
        HANDSHAKE_TIMEOUT,
        TlsAcceptor::from(config).accept(Wire::new(tcp)),
    )
    .await
    {
        Ok(Ok(tls)) => Ok(tls),
        Ok(Err(error)) => Err(InboundError::Handshake(error)),
        Err(_) => Err(InboundError::HandshakeTimeout),
    }
}

fn meshed(
    worker: &Worker,
    port: Rc<Port>,
    tls: TlsStream<Wire>,
    client: SocketAddr,
) -> Result<Box<Known>, InboundError> {
    let (tcp, session) = tls.get_ref();
    let guard = worker
        .tls
        .guard(Side::Inbound, tcp.tcp(), session)
        .map_err(InboundError::Handshake)?;
    let identity = session.peer_certificates().and_then(peer_id);
    let peer = client;
    let client = Client {
        addr: peer.ip(),
        tls: ClientTls::Established(identity),
    };
    let unmeshed = Unmeshed::NoClientHello;
    let open = port.source(&client.tls, &unmeshed).open();
    Ok(Box::new(Known {
        io: Io::new(Socket::Server(Box::new(tls)), open).guarded(guard),
        client,
        peer,
        unmeshed,
        port,
    }))
}

fn plain(port: Rc<Port>, tcp: Prefixed<TcpStream>, client: SocketAddr, unmeshed: Unmeshed) -> Box<Known> {
    let peer = client;
    let client = Client {
        addr: peer.ip(),
        tls: ClientTls::None,
    };
    let open = port.source(&client.tls, &unmeshed).open();
    Box::new(Known {
        io: Io::new(Socket::Plain(tcp), open),
        client,
        peer,
        unmeshed,
        port,
    })
}

async fn detect(worker: &Worker, known: &mut Known, timeout: Duration) -> Result<Carries, InboundError> {
    let port = &known.port;
    let labels = server_labels(Labels::default(), &port.policy().meta, port.addr().port());
    let detect = &worker.metrics.inbound_detect;
    let version = detect.version(&labels, &mut known.io, timeout).await?;
    Ok(version.map_or(Carries::Bytes, Carries::Http))
}
