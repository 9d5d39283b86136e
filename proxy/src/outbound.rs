//! Connections that the pod's applications make: where they wanted to go, what the policy says of it, what they
//! speak, and on to an endpoint.

mod attempt;
mod clock;
mod counters;
mod http;
mod mirror;
mod opaque;
mod overrides;
mod retry;
mod sticky;
mod target;
mod through;
mod upgrade;

use std::{net::SocketAddr, rc::Rc};

use heddle_proxy_policy::{ClientPolicy, Meta, outbound::Protocol};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};
use tracing::debug;

use crate::{
    detect::client_hello::{self, HELLO_BYTES_MAX, Hello},
    discovery::Outbound,
    http::{ProxyError, serve::HttpVersion},
    io::{Ahead, Io, Prefixed, Socket},
    listen::Accepted,
    metrics::labels::Labels,
    worker::Worker,
};
use target::Target;
pub(crate) use target::Targets;
pub(crate) use through::Through;

/// Why a connection came to its end early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OutboundError {
    #[error("the connection was made to the proxy itself")]
    Loop,
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the policy forbids connections to this address")]
    Forbidden,
}

impl OutboundError {
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Self::Loop => "loop",
            Self::Proxy(error) => error.label(),
            Self::Io(_) => "i/o",
            Self::Forbidden => "forbidden",
        }
    }
}

/// Serves one connection. Its task holds little; what a stage needs is on the heap while it lasts.
pub(crate) async fn accept(worker: Rc<Worker>, accepted: Accepted) {
    let addr = accepted.orig_dst;
    if let Err(error) = serve(&worker, accepted).await {
        debug!(%addr, error = %heddle_daemon::report::chain(&error), "Outbound connection failed");
        let labels = Labels::default().with("error", error.label());
        worker.metrics.outbound_tcp_errors_total.get(&labels).add(1);
    }
}

/// What a connection carries.
enum Carries {
    Http(HttpVersion),
    Bytes,
    /// The application's own TLS, with the server name that its client asks for.
    Tls(Option<String>),
}

/// A connection that it is known of where it goes.
struct Known {
    io: Io,
    target: Rc<Target>,
    client: SocketAddr,
    drain: drain::Watch,
    _place: OwnedSemaphorePermit,
}

async fn serve(worker: &Rc<Worker>, accepted: Accepted) -> Result<(), OutboundError> {
    let (known, carries) = Box::pin(look_up(worker, accepted)).await?;
    match carries {
        Carries::Http(version) => {
            Box::pin(http::serve(worker.clone(), known, version)).await;
            Ok(())
        }
        Carries::Bytes => Box::pin(opaque::serve(worker, known, None)).await,
        Carries::Tls(name) => Box::pin(opaque::serve(worker, known, name)).await,
    }
}

async fn look_up(worker: &Rc<Worker>, accepted: Accepted) -> Result<(Box<Known>, Carries), OutboundError> {
    let Accepted {
        tcp,
        client,
        orig_dst,
        drain,
        place: _place,
    } = accepted;
    if worker.config.outbound.listen.contains(&orig_dst) {
        return Err(OutboundError::Loop);
    }
    let target = worker.outbound.target(worker, orig_dst.into())?;
    let io = Io::new(Socket::Plain(Prefixed::new(tcp)), target.source().open());
    let mut known = Box::new(Known {
        io,
        target,
        client,
        drain,
        _place,
    });
    let io = &mut known.io;
    let carries = match known.target.known().await {
        Outbound::Policy(policy) => match told(worker, &policy) {
            Protocol::Detect { timeout, .. } => detect(worker, &policy.parent, io, *timeout).await?,
            Protocol::Http1(_) => Carries::Http(HttpVersion::Http1),
            Protocol::Http2(_) | Protocol::Grpc(_) => Carries::Http(HttpVersion::Http2),
            Protocol::Opaque(_) => Carries::Bytes,
            Protocol::Tls(_) => server_name(io, worker.config.outbound.detect_timeout).await?,
        },
        // HTTP clients are told what is wrong.
        _ => {
            let parent = Meta::default_named("unknown");
            detect(worker, &parent, io, worker.config.outbound.detect_timeout).await?
        }
    };
    Ok((known, carries))
}

async fn server_name(io: &mut Io, timeout: std::time::Duration) -> Result<Carries, OutboundError> {
    let judge = |bytes: &[u8]| match client_hello::parse(bytes) {
        Hello::Tls(name) => Some(name),
        Hello::NotTls => Some(None),
        Hello::More => None,
    };
    let deadline = Instant::now() + timeout;
    match io.ahead().peek(HELLO_BYTES_MAX, deadline, judge).await? {
        Ahead::Decided(name) => Ok(Carries::Tls(name)),
        Ahead::Undecided => Ok(Carries::Tls(None)),
    }
}

/// The protocol that the policy tells; counts the connection by it.
fn told<'p>(worker: &Worker, policy: &'p ClientPolicy) -> &'p Protocol {
    let protocol = match &policy.protocol {
        Protocol::Detect { .. } => "detect",
        Protocol::Http1(_) => "http/1",
        Protocol::Http2(_) | Protocol::Grpc(_) => "http/2",
        Protocol::Opaque(_) => "opaq",
        Protocol::Tls(_) => "tls",
    };
    let labels = Labels::default().with("protocol", protocol);
    let labels = labels.port_reference("parent", &policy.parent);
    let connections = &worker.metrics.outbound_tcp_protocol_connections_total;
    connections.get(&labels).add(1);
    &policy.protocol
}

async fn detect(
    worker: &Worker,
    parent: &Meta,
    io: &mut Io,
    timeout: std::time::Duration,
) -> Result<Carries, OutboundError> {
    let labels = Labels::default().port_reference("parent", parent);
    let version = worker
        .metrics
        .outbound_detect
        .version(&labels, io, timeout)
        .await?;
    Ok(version.map_or(Carries::Bytes, Carries::Http))
}
