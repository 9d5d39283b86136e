//! Listeners: one per worker on each shared port, and accepting that survives a lack of file descriptors.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use futures_util::FutureExt as _;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tracing::{info, warn};

use crate::{config::Config, inbound, outbound, upstream::set_options, worker::Worker};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4_096;
/// Out of file descriptors, accepting again at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections of one worker and direction; beyond it new ones wait in the backlog.
const CONNECTIONS_MAX: usize = 50_000;

/// A worker's listeners, bound but not served yet.
#[derive(Debug)]
pub(crate) struct Listeners {
    inbound: std::net::TcpListener,
    outbound: Vec<std::net::TcpListener>,
}

/// A listener could not be made.
#[derive(Debug, thiserror::Error)]
#[error("failed to listen on {addr}")]
pub(crate) struct BindError {
    addr: SocketAddr,
    source: io::Error,
}

/// A connection as it was accepted.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub tcp: TcpStream,
    pub client: SocketAddr,
    /// Where the client wanted to go before it was redirected here.
    pub orig_dst: SocketAddr,
    /// The process does not end before the connection has, or the grace period is over.
    pub drain: drain::Watch,
    pub place: OwnedSemaphorePermit,
}

impl Listeners {
    /// Binds the listeners of one worker; other workers bind the same addresses.
    ///
    /// # Errors
    /// An address cannot be bound.
    pub(crate) fn bind(config: &Config) -> Result<Self, BindError> {
        let mut outbound = Vec::new();
        for &addr in &config.outbound.listen {
            match bind(addr) {
                Ok(listener) => outbound.push(listener),
                // A pod may have no IPv6 although its cluster does; then nothing comes that way.
                Err(error)
                    if addr.is_ipv6() && error.has_no_such_family() && config.outbound.listen.len() > 1 =>
                {
                    warn!(%addr, "Not listening: the pod has no IPv6");
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self {
            inbound: bind(config.inbound.listen)?,
            outbound,
        })
    }
}

impl BindError {
    fn has_no_such_family(&self) -> bool {
        self.source.kind() == io::ErrorKind::AddrNotAvailable
            || self.source.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error())
    }
}

fn bind(addr: SocketAddr) -> Result<std::net::TcpListener, BindError> {
    let make = || {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        if addr.is_ipv6() {
            socket.set_only_v6(false)?;
        }
        // What is accepted has the listener's options (tcp(7)): they are not set once for each connection.
        set_options(&SockRef::from(&socket));
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    make().map_err(|source| BindError { addr, source })
}

/// Accepts until the drain begins. What waits in the backlog by then is still served.
pub(crate) async fn serve(worker: &Rc<Worker>, listeners: Listeners, drain: drain::Watch) {
    let Listeners { inbound, outbound } = listeners;
    let inbound = accept_all(worker, inbound, drain.clone(), |worker, accepted| {
        tokio::task::spawn_local(inbound::accept(worker, accepted));
    });
    let outbound = outbound.into_iter().map(|listener| {
        accept_all(worker, listener, drain.clone(), |worker, accepted| {
            tokio::task::spawn_local(outbound::accept(worker, accepted));
        })
    });
    tokio::join!(inbound, futures_util::future::join_all(outbound));
}

async fn accept_all(
    worker: &Rc<Worker>,
    listener: std::net::TcpListener,
    drain: drain::Watch,
    serve: impl Fn(Rc<Worker>, Accepted) + Copy,
) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => {
            warn!(%error, "Failed to use a listener");
            return;
        }
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let accepted = |tcp: TcpStream, client: SocketAddr, place: OwnedSemaphorePermit| {
        // Without a redirection the client wanted the very address that it reached.
        if let Some(orig_dst) = orig_dst(&tcp).or_else(|| tcp.local_addr().ok()) {
            let (client, orig_dst) = (canonical(client), canonical(orig_dst));
            serve(
                worker.clone(),
                Accepted {
                    tcp,
                    client,
                    orig_dst,
                    drain: drain.clone(),
                    place,
                },
            );
        }
    };
    let mut drained = std::pin::pin!(drain.clone().signaled());
    loop {
        let next = async {
            let place = places
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (listener.accept().await, place)
        };
        tokio::select! {
            _ = &mut drained => break,
            (next, place) = next => match next {
                Ok((tcp, client)) => accepted(tcp, client, place),
                Err(error) if is_of_connection(&error) => {}
                Err(error) => {
                    warn!(%error, "Failed to accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // A connection that is in the backlog was made before we stopped: it is served.
    for _ in 0..BACKLOG {
        let (Some(Ok((tcp, client))), Ok(place)) = (
            listener.accept().now_or_never(),
            places.clone().try_acquire_owned(),
        ) else {
            break;
        };
        accepted(tcp, client, place);
    }
    info!(addr = ?listener.local_addr().ok(), "Stopped accepting");
}

/// Errors of the connection that was to be accepted, not of the listener: accept(2).
fn is_of_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(
        error.kind(),
        ConnectionRefused | ConnectionAborted | ConnectionReset
    )
}

/// The address before the redirection: netfilter remembers it. `None` when there was none.
fn orig_dst(tcp: &TcpStream) -> Option<SocketAddr> {
    let socket = SockRef::from(tcp);
    let is_ipv4 = tcp.local_addr().is_ok_and(|addr| canonical(addr).is_ipv4());
    match is_ipv4 {
        true => socket.original_dst_v4(),
        false => socket.original_dst_v6(),
    }
    .ok()?
    .as_socket()
}

fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V6(ip) => SocketAddr::new(ip.to_canonical(), addr.port()),
        IpAddr::V4(_) => addr,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::KEEPALIVE;

    /// Set on the listener, they must be each connection's: without them every second write would wait for an
    /// acknowledgement.
    #[tokio::test]
    async fn accepted_connections_have_the_listeners_options() {
        let listener = bind(([127, 0, 0, 1], 0).into()).expect("a port is free");
        let listener = TcpListener::from_std(listener).expect("it is bound");
        let addr = listener.local_addr().expect("it is bound");
        let (client, accepted) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (tcp, _client) = (accepted.expect("it was made").0, client.expect("it listens"));
        let socket = SockRef::from(&tcp);
        assert!(tcp.nodelay().expect("an option") && socket.keepalive().expect("an option"));
        assert_eq!(socket.tcp_keepalive_time().expect("an option"), KEEPALIVE);
    }

    fn future_bytes<F: Future>(_: fn(Rc<Worker>, Accepted) -> F) -> usize {
        size_of::<F>()
    }

    /// Every open connection holds one of these, however little it does.
    #[test]
    fn connections_are_small() {
        let (inbound, outbound) = (future_bytes(inbound::accept), future_bytes(outbound::accept));
        assert!(inbound <= 600, "an inbound connection takes {inbound} bytes");
        assert!(outbound <= 600, "an outbound connection takes {outbound} bytes");
    }
}
