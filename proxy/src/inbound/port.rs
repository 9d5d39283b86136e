//! What a worker knows of one of the pod's ports.

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::{IpAddr, SocketAddr, UdpSocket},
    rc::{Rc, Weak},
    sync::Arc,
    time::Duration,
};

use ahash::{AHashMap, AHashSet};
use heddle_proxy_policy::{Client, ClientTls, Meta, Permit, ServerPolicy, ratelimit::Cells};
use tokio::{sync::watch, task::JoinHandle, time::Instant};
use tracing::{debug, info};

use super::{InboundError, app::App};
use crate::{
    discovery::Inbound,
    http::live::Leave,
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

/// Strangers do not write the log: what `audit` lets in is told this often, and in between only to who wants to hear all.
const AUDIT_PAUSE: Duration = Duration::from_secs(1);

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
    /// When it was last told what `audit` let in.
    audited: Cell<Option<Instant>>,
    leaves: Leaves,
    judging: OnceCell<Judging>,
    /// All workers count by the same.
    pub cells: Arc<Cells>,
    used: Cell<Instant>,
}

/// Server names that metrics tell.
#[derive(Debug, Default)]
struct ServerNames(AHashSet<Arc<str>>);

impl Ports {
    /// The port that a client wanted. The application is connected to at that very address, never at another of the pod's:
    /// what listens on loopback alone is for the pod alone.
    pub(super) fn port(&self, worker: &Rc<Worker>, addr: SocketAddr) -> Result<Rc<Port>, InboundError> {
        if let Some(port) = self.0.borrow().get(&addr) {
            port.used.set(Instant::now());
            return Ok(port.clone());
        }
        if !is_ours(&worker.config.inbound.ips, addr.ip()) {
            return Err(InboundError::NotOurs(addr));
        }
        let watch = worker.discovery.inbound(addr.port())?;
        let (current, cells) = {
            let inbound = watch.borrow();
            (inbound.policy.clone(), inbound.cells.clone())
        };
        let port = Rc::new(Port {
            worker: worker.clone(),
            addr,
            watch: RefCell::new(watch),
            current: RefCell::new(current),
            app: App::new(worker, addr),
            sources: RefCell::default(),
            server_names: RefCell::default(),
            audited: Cell::default(),
            leaves: Leaves::default(),
            judging: OnceCell::new(),
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

/// What clients of the port may do, to be judged again when its policy changes.
type Leaves = Rc<RefCell<Vec<Weak<Leave>>>>;

/// The task that judges; it ends with the port.
#[derive(Debug)]
struct Judging(JoinHandle<()>);

impl Drop for Judging {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn judge_again(mut changes: watch::Receiver<Inbound>, leaves: Leaves) {
    // It fails only when nobody publishes policies any more: the last one stays.
    while changes.changed().await.is_ok() {
        let policy = changes.borrow_and_update().policy.clone();
        let holds = |leave: &Weak<Leave>| leave.upgrade().is_some_and(|leave| leave.holds(&policy));
        leaves.borrow_mut().retain(holds);
    }
}

/// Whether an address is among those that the pod is told to have. One that is told of none (a machine outside the
/// cluster) has those of its interfaces: only to them can a socket be bound.
fn is_ours(ips: &[IpAddr], ip: IpAddr) -> bool {
    match ips {
        [] => UdpSocket::bind((ip, 0)).is_ok(),
        ips => ips.contains(&ip),
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

    /// Tells what `audit` let in: a connection, or the first request of one to a route.
    pub(crate) fn audit(&self, client: &Client, permit: &Permit, route: Option<&Meta>) {
        if !permit.authorization().is_audit() {
            return;
        }
        let (now, port, server) = (Instant::now(), self.addr.port(), permit.server().name());
        let (addr, route) = (client.addr, route.map_or("", Meta::name));
        let id = client.tls.identity().map_or("", |id| id.as_str());
        match self.audited.get() {
            Some(last) if now < last + AUDIT_PAUSE => {
                debug!(%port, server, route, client = %addr, id, "Allowed by audit");
            }
            _ => {
                self.audited.set(Some(now));
                info!(%port, server, route, client = %addr, id, "Allowed by audit");
            }
        }
    }

    /// Leave for a client's requests to use a route, until the policy forbids it.
    pub(crate) fn leave(&self, client: &Client, route: &Meta) -> Rc<Leave> {
        let leave = Rc::new(Leave::new(client.clone(), route.clone()));
        let mut leaves = self.leaves.borrow_mut();
        if leaves.len() == leaves.capacity() {
            // Then there is room for as many again, so that this is seldom done.
            leaves.retain(|leave| leave.strong_count() > 0);
            let more = leaves.len();
            leaves.reserve(more);
        }
        leaves.push(Rc::downgrade(&leave));
        self.judging.get_or_init(|| {
            let judging = judge_again(self.changes(), self.leaves.clone());
            Judging(tokio::task::spawn_local(judging))
        });
        leave
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

    #[test]
    fn only_the_pods_addresses_are_ours() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        let ips = [ip("10.0.0.1"), ip("fd00::1")];
        assert!(is_ours(&ips, ip("10.0.0.1")) && is_ours(&ips, ip("fd00::1")));
        for other in ["10.0.0.2", "127.0.0.1", "::1", "192.0.2.1"] {
            assert!(!is_ours(&ips, ip(other)), "{other}");
        }
        // Without a list.
        assert!(is_ours(&[], ip("127.0.0.1")));
        assert!(!is_ours(&[], ip("192.0.2.1")) && !is_ours(&[], ip("2001:db8::1")));
    }
}
