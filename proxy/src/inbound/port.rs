//! What a worker knows of one of the pod's ports.

use std::{
    cell::{Cell, RefCell},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ahash::{AHashMap, AHashSet};
use heddle_proxy_policy::{ClientTls, ServerPolicy, ratelimit::Cells};
use tokio::{sync::watch, time::Instant};

use super::app::App;
use crate::{
    discovery::{Full, Inbound},
    metrics::{
        labels::{Labels, Unmeshed},
        tcp::TcpHandles,
    },
    worker::Worker,
};

/// Clients whose counters are held for the next connection.
const SOURCES_MAX: usize = 256;
/// Server names of one port that metrics tell. Strangers make them up, and must not crowd out what else is counted.
const SERVER_NAMES_MAX: usize = 64;

/// A worker's ports, by the address that clients connect to.
#[derive(Debug, Default)]
pub(crate) struct Ports(RefCell<AHashMap<SocketAddr, Rc<Port>>>);

/// One port.
#[derive(Debug)]
pub(crate) struct Port {
    worker: Rc<Worker>,
    addr: SocketAddr,
    watch: RefCell<watch::Receiver<Inbound>>,
    current: RefCell<Arc<ServerPolicy>>,
    app: App,
    sources: RefCell<AHashMap<(ClientTls, Unmeshed), TcpHandles>>,
    /// For which servers clients speak the application's own TLS.
    server_names: RefCell<ServerNames>,
    /// All workers count by the same.
    pub cells: Arc<Cells>,
    used: Cell<Instant>,
}

/// Server names that metrics tell.
#[derive(Debug, Default)]
struct ServerNames(AHashSet<Arc<str>>);

impl Ports {
    pub(crate) fn port(&self, worker: &Rc<Worker>, addr: SocketAddr) -> Result<Rc<Port>, Full> {
        if let Some(port) = self.0.borrow().get(&addr) {
            port.used.set(Instant::now());
            return Ok(port.clone());
        }
        let watch = worker.discovery.inbound(addr.port())?;
        let (current, cells) = {
            let inbound = watch.borrow();
            (inbound.policy.clone(), inbound.cells.clone())
        };
        // An address of ours is where the application listens; any other was translated on the way here, and loopback
        // is the one that every application of the pod can be reached at.
        let ip = match addr.ip() {
            ip if worker.config.inbound.ips.contains(&ip) => ip,
            // The admin server takes who comes by loopback for the pod itself.
            ip if addr.port() == worker.config.admin.listen.port() => ip,
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        };
        let port = Rc::new(Port {
            worker: worker.clone(),
            addr,
            watch: RefCell::new(watch),
            current: RefCell::new(current),
            app: App::new(worker, SocketAddr::new(ip, addr.port())),
            sources: RefCell::default(),
            server_names: RefCell::default(),
            cells,
            used: Cell::new(Instant::now()),
        });
        self.0.borrow_mut().insert(addr, port.clone());
        Ok(port)
    }

    /// Forgets ports that no connection has used for `idle_timeout`.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        self.0.borrow_mut().retain(|_, port| {
            port.app.sweep();
            if Rc::strong_count(port) > 1 {
                port.used.set(Instant::now());
            }
            port.used.get().elapsed() < idle_timeout
        });
    }
}

impl Port {
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn app(&self) -> &App {
        &self.app
    }

    /// Waits for the control plane's first answer, for a moment.
    pub(crate) async fn settled(&self) {
        if self.watch.borrow().borrow().settled {
            return;
        }
        let mut watch = self.changes();
        // It ends only with the process.
        let _ = watch.wait_for(|inbound| inbound.settled).await;
    }

    /// The policy as it is now.
    pub(crate) fn policy(&self) -> Arc<ServerPolicy> {
        let mut watch = self.watch.borrow_mut();
        if watch.has_changed().unwrap_or(false) {
            let policy = watch.borrow_and_update().policy.clone();
            *self.current.borrow_mut() = policy;
        }
        self.current.borrow().clone()
    }

    /// For waiting for the next change.
    pub(crate) fn changes(&self) -> watch::Receiver<Inbound> {
        self.watch.borrow().clone()
    }

    /// How metrics tell of a client that is not meshed, and whose TLS, if any, is for a server of this name.
    pub(crate) fn unmeshed(&self, server_name: Option<String>) -> Unmeshed {
        self.server_names.borrow_mut().unmeshed(server_name)
    }

    /// The counters of connections from such clients.
    pub(crate) fn source(&self, tls: &ClientTls, unmeshed: &Unmeshed) -> TcpHandles {
        let mut sources = self.sources.borrow_mut();
        let key = (tls.clone(), unmeshed.clone());
        if let Some(handles) = sources.get(&key) {
            return handles.clone();
        }
        let labels = Labels::direction("inbound")
            .with("peer", "src")
            .target_addr(self.addr);
        let labels = labels.client_tls(tls, unmeshed);
        let labels = super::http::server_labels(labels, &self.policy().meta, self.addr.port());
        let handles = TcpHandles::new(&self.worker.metrics, &labels);
        if sources.len() >= SOURCES_MAX {
            sources.clear();
        }
        sources.insert(key, handles.clone());
        handles
    }
}

impl ServerNames {
    /// What is beyond the bound has no name.
    fn unmeshed(&mut self, name: Option<String>) -> Unmeshed {
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Unmeshed::NoClientHello;
        };
        if let Some(known) = self.0.get(name.as_str()) {
            return Unmeshed::Passthru(known.clone());
        }
        if self.0.len() >= SERVER_NAMES_MAX {
            return Unmeshed::Passthru("".into());
        }
        let name: Arc<str> = name.into();
        self.0.insert(name.clone());
        Unmeshed::Passthru(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_names_that_strangers_make_up_are_bounded() {
        let mut names = ServerNames::default();
        let passthru = |name: &str| Unmeshed::Passthru(name.into());
        assert_eq!(names.unmeshed(None), Unmeshed::NoClientHello);
        for n in 0..SERVER_NAMES_MAX {
            let name = format!("{n}.test");
            assert_eq!(names.unmeshed(Some(name.clone())), passthru(&name));
        }
        assert_eq!(names.unmeshed(Some("one.more.test".to_owned())), passthru(""));
        assert_eq!(names.unmeshed(Some("0.test".to_owned())), passthru("0.test"));
    }
}
