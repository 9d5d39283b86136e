//! rustls configurations of a worker: the store's, and the same with the transport header's ALPN.

use std::{cell::RefCell, sync::Arc};

use heddle_tls::{
    Identity, PeerLeaf, Store,
    rustls::{ClientConfig, CommonState, ServerConfig},
};

use crate::transport_header;

/// The configurations. Belongs to one worker; always made from the newest certificate and anchors.
#[derive(Debug)]
pub(crate) struct Tls {
    store: Store,
    revocation: bool,
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
            revocation,
            server: RefCell::default(),
            client: RefCell::default(),
        }
    }

    pub(crate) fn name(&self) -> &Identity {
        self.store.name()
    }

    /// What to remember of a peer, so that its connection can end when its certificate is revoked.
    pub(crate) fn leaf(&self, peer: &CommonState) -> Option<PeerLeaf> {
        self.revocation
            .then(|| peer.peer_certificates().and_then(PeerLeaf::of))?
    }

    /// Returns when `leaf` is revoked, which may be never.
    pub(crate) async fn until_revoked(&self, leaf: Option<PeerLeaf>) {
        self.store.until_revoked(leaf).await;
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

    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.store.client_config()
    }

    /// For connections that begin with a transport header.
    pub(crate) fn direct_client(&self) -> Arc<ClientConfig> {
        derive(&self.client, self.store.client_config(), |config| {
            config.alpn_protocols = vec![transport_header::ALPN.to_vec()];
        })
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
