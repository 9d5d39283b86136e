//! Connections that end when their peers' certificates are revoked. A handshake judges once; what lives on after it, in a
//! pool, as an upgraded connection or in the midst of a request, is cut at its socket, so that no protocol has to
//! think of it.

use std::{io, net::Shutdown, sync::Arc};

use ahash::AHashMap;
use heddle_tls::{PeerLeaf, Revocations};
use parking_lot::Mutex;
use socket2::{SockRef, Socket};
use tokio::net::TcpStream;
use tracing::info;

use crate::metrics::{Metrics, labels::Labels};

/// Which side of the proxy a connection belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Inbound,
    Outbound,
}

/// A worker's connections to peers with certificates. hyper wants what it may hand out as an upgraded connection to be
/// `Send`; the lock is never contended.
#[derive(Debug, Default)]
pub(crate) struct Guarded(Mutex<Connections>);

#[derive(Debug, Default)]
struct Connections {
    open: AHashMap<u64, Connection>,
    next: u64,
}

#[derive(Debug)]
struct Connection {
    leaf: PeerLeaf,
    side: Side,
    /// A second handle on the connection's socket.
    socket: Socket,
}

/// Held by a connection as long as it is open.
#[derive(Debug)]
pub(crate) struct Guard {
    guarded: Arc<Guarded>,
    id: u64,
}

impl Guarded {
    pub(super) fn guard(self: &Arc<Self>, side: Side, tcp: &TcpStream, leaf: PeerLeaf) -> io::Result<Guard> {
        let socket = SockRef::from(tcp).try_clone()?;
        let mut connections = self.0.lock();
        let id = connections.next;
        connections.next += 1;
        connections.open.insert(id, Connection { leaf, side, socket });
        Ok(Guard {
            guarded: self.clone(),
            id,
        })
    }

    /// Ends the connections whose peers' certificates `lists` revoke.
    pub(super) fn end(&self, lists: &Revocations, metrics: &Metrics) {
        let revoked = |connection: &Connection| lists.revokes(&connection.leaf);
        let mut connections = self.0.lock();
        for (_, Connection { side, socket, .. }) in connections.open.extract_if(|_, one| revoked(one)) {
            info!(?side, "Ending a connection: the peer's certificate was revoked");
            // One that has ended by itself is as good.
            let _ = socket.shutdown(Shutdown::Both);
            let errors = match side {
                Side::Inbound => &metrics.inbound_tcp_errors_total,
                Side::Outbound => &metrics.outbound_tcp_errors_total,
            };
            errors
                .get(&Labels::default().with("error", "unauthorized"))
                .add(1);
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.guarded.0.lock().open.remove(&self.id);
    }
}
