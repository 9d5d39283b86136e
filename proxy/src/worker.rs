//! A worker: one thread, one single-threaded runtime, its own listeners on the shared ports, its own connections to
//! upstreams. Workers share what they learn of the control plane, and the counters; nothing else.

use std::{
    cell::{Cell, RefCell},
    fmt,
    rc::Rc,
    sync::Arc,
    thread,
    time::Duration,
};

use ahash::AHashMap;
use heddle_proxy_policy::{
    Meta,
    outbound::{Backend, BackendKind},
};
use heddle_tls::Store;
use tokio::{task::LocalSet, time::interval};
use tracing::error;

use crate::{
    balance::Balancer, config::Config, discovery::Discovery, http::ProxyError, inbound, limits::Services,
    listen, metrics::Metrics, observe::Observers, outbound, tls::Tls,
};

/// Idle connections and unused backends are looked for this often.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// A block of this size has pages of its own. Nothing is written to it.
const LARGE_BLOCK_BYTES: usize = 2 << 20;

/// What a worker is made of.
#[derive(Clone)]
pub(crate) struct Parts {
    pub config: Arc<Config>,
    pub discovery: Discovery,
    pub store: Store,
    pub metrics: Arc<Metrics>,
    pub observers: Observers,
    pub services: Arc<Services>,
    pub drain: drain::Watch,
}

/// A worker's own state.
pub(crate) struct Worker {
    pub config: Arc<Config>,
    pub discovery: Discovery,
    pub tls: Rc<Tls>,
    pub metrics: Arc<Metrics>,
    pub observers: Observers,
    pub services: Arc<Services>,
    pub draining: Cell<bool>,
    pub outbound: outbound::Targets,
    pub inbound: inbound::Ports,
    /// Of services that this pod is behind.
    pub profiles: inbound::Profiles,
    /// Held once by the worker, and once by each copy of a request that is under way.
    pub mirrored: Rc<()>,
    balancers: RefCell<AHashMap<BackendKey, Rc<Balancer>>>,
}

/// Backends that are the same share their connections, whatever route they are part of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum BackendKey {
    Path(String),
    Forward(String),
}

impl Worker {
    /// The worker's balancer of a backend, which goes on as that says. The metrics of one that several parents share name
    /// the first of them.
    pub(crate) fn balancer(
        self: &Rc<Self>,
        parent: &Meta,
        backend: &Backend,
    ) -> Result<Rc<Balancer>, ProxyError> {
        let key = match &backend.kind {
            BackendKind::Balance { path, .. } => BackendKey::Path(path.clone()),
            // All that is known of the endpoint: two policies may know different things of one address.
            BackendKind::Forward(endpoint) => BackendKey::Forward(format!("{endpoint:?}")),
            BackendKind::Nowhere => BackendKey::Path(String::new()),
        };
        if let Some(balancer) = self.balancers.borrow().get(&key) {
            balancer.adopt(backend);
            return Ok(balancer.clone());
        }
        let balancer = Balancer::new(self.clone(), parent, backend)?;
        self.balancers.borrow_mut().insert(key, balancer.clone());
        Ok(balancer)
    }

    fn sweep(&self) {
        self.outbound.sweep(self.config.outbound.discovery_idle);
        self.inbound.sweep(self.config.inbound.discovery_idle);
        self.profiles.sweep(self.config.inbound.discovery_idle);
        let mut balancers = self.balancers.borrow_mut();
        // Whoever still uses it, holds it.
        balancers.retain(|_, balancer| Rc::strong_count(balancer) > 1);
        for balancer in balancers.values() {
            balancer.sweep();
        }
    }
}

/// The allocator returns what has been free for a second to the system, but looks for it only when a large block comes or
/// goes: after the last of many connections nothing else would.
fn give_back_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity(LARGE_BLOCK_BYTES)));
}

/// Runs a worker until its connections have ended after a drain. Blocks the thread.
pub(crate) fn run(parts: Parts, listeners: listen::Listeners) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "Failed to start a worker");
            return;
        }
    };
    let local = LocalSet::new();
    runtime.block_on(local.run_until(async move {
        let revocation = parts.config.identity.revocation;
        let Parts {
            config,
            discovery,
            store,
            metrics,
            observers,
            services,
            drain,
        } = parts;
        metrics
            .runtimes
            .add_current(thread::current().name().unwrap_or("worker"));
        let worker = Rc::new(Worker {
            config,
            discovery,
            tls: Rc::new(Tls::new(store, revocation)),
            metrics,
            observers,
            services,
            draining: Cell::new(false),
            outbound: outbound::Targets::default(),
            inbound: inbound::Ports::default(),
            profiles: inbound::Profiles::default(),
            mirrored: Rc::default(),
            balancers: RefCell::default(),
        });
        let sweeping = worker.clone();
        tokio::task::spawn_local(async move {
            let mut tick = interval(SWEEP_INTERVAL);
            loop {
                tick.tick().await;
                sweeping.sweep();
                crate::io::trim();
                give_back_memory();
            }
        });
        let ending = worker.clone();
        tokio::task::spawn_local(async move { ending.tls.end_revoked(&ending.metrics).await });
        let flagging = worker.clone();
        let drained = drain.clone().signaled();
        tokio::task::spawn_local(async move {
            let release = drained.await;
            flagging.draining.set(true);
            drop(release);
        });
        listen::serve(&worker, listeners, drain).await;
        // Connections hold the drain; the process ends when all have let go of it, or the grace period is over.
        std::future::pending::<()>().await;
    }));
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker").finish_non_exhaustive()
    }
}
