//! rustls configurations of a worker: the store's, and the same with the transport header's ALPN. And what ends its
//! connections, whatever they carry, when their peers' certificates are revoked.

mod revoked;

use std::{cell::RefCell, io, sync::Arc};

use heddle_tls::{
    Identity, PeerId, PeerLeaf, Store,
    rustls::{ClientConfig, CommonState, ServerConfig},
};

use tokio::net::TcpStream;

use crate::{metrics::Metrics, transport_header};
use revoked::Guarded;
pub(crate) use revoked::{Guard, Side};

/// The configurations. Belongs to one worker; always made from the newest certificate and anchors.
#[derive(Debug)]
pub(crate) struct Tls {
    store: Store,
    /// Connections whose peers' certificates may be revoked; none when that is not looked at.
    guarded: Option<Arc<Guarded>>,
    server: RefCell<Option<Derived<ServerConfig>>>,
    client: RefCell<Option<Derived<ClientConfig>>>,
}

#[derive(Debug)]
struct Derived<C> {
    from: Arc<C>,
    with_alpn: Arc<C>,
}

impl Tls {
    pub(crate) fn new(store: Store, revocation: bool) -> Self {
        Self {
            store,
            guarded: revocation.then(Arc::default),
            server: RefCell::default(),
            client: RefCell::default(),
        }
    }

    pub(crate) fn name(&self) -> &Identity {
        self.store.name()
    }

    /// Has the connection `tcp` end when the certificate of its `peer` is revoked. To be held as long as it is open.
    ///
    /// # Errors
    /// It is revoked already, or cannot be watched over.
    pub(crate) fn guard(&self, side: Side, tcp: &TcpStream, peer: &CommonState) -> io::Result<Option<Guard>> {
        let Some(guarded) = &self.guarded else {
            return Ok(None);
        };
        let Some(leaf) = peer.peer_certificates().and_then(PeerLeaf::of) else {
            return Ok(None);
        };
        if self.store.revocations().borrow().revokes(&leaf) {
            return Err(io::Error::other("the peer's certificate was revoked"));
        }
        guarded.guard(side, tcp, leaf).map(Some)
    }

    /// Ends connections as their peers' certificates are revoked, for as long as the worker runs.
    pub(crate) async fn end_revoked(&self, metrics: &Metrics) {
        let Some(guarded) = &self.guarded else { return };
        let mut lists = self.store.revocations();
        while lists.changed().await.is_ok() {
            let lists = lists.borrow_and_update().clone();
            guarded.end(&lists, metrics);
        }
    }

    /// For connections that were meant for the application.
    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.store.server_config()
    }

    /// For connections straight to the inbound listener.
    pub(crate) fn direct_server(&self) -> Arc<ServerConfig> {
        derive(&self.server, self.store.server_config(), |config| {
            config.alpn_protocols = vec![transport_header::ALPN.to_vec()];
        })
    }

    /// For connections to a peer that must prove the name that it is asked for, or else `id`. `direct` ones begin with
    /// a transport header.
    pub(crate) fn client(&self, id: Option<&PeerId>, direct: bool) -> Arc<ClientConfig> {
        let alpn = |config: &mut ClientConfig| {
            config.alpn_protocols = vec![transport_header::ALPN.to_vec()];
        };
        match (id, direct) {
            (None, false) => self.store.client_config(),
            (None, true) => derive(&self.client, self.store.client_config(), alpn),
            (Some(id), direct) => {
                let mut config = self.store.client_config_for(id.clone());
                if direct {
                    alpn(&mut config);
                }
                Arc::new(config)
            }
        }
    }
}

fn derive<C: Clone>(cell: &RefCell<Option<Derived<C>>>, from: Arc<C>, change: impl FnOnce(&mut C)) -> Arc<C> {
    let mut derived = cell.borrow_mut();
    if let Some(derived) = &*derived
        && Arc::ptr_eq(&derived.from, &from)
    {
        return derived.with_alpn.clone();
    }
    let mut config = C::clone(&from);
    change(&mut config);
    let with_alpn = Arc::new(config);
    *derived = Some(Derived {
        from,
        with_alpn: with_alpn.clone(),
    });
    with_alpn
}
