//! The endpoints of a backend, and which of them the next request or connection goes to.
//!
//! Two endpoints are drawn at random and the one with the lower load is taken. An endpoint that cannot be connected to
//! rests for a time that doubles; so does one that fails too often, when the policy asks for it. Belongs to one worker.

mod endpoint;
mod failfast;
mod verdict;

use std::{
    cell::{Cell, OnceCell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use heddle_proxy_policy::{
    EndpointSet, Meta, affinity,
    balance::{EwmaParams, two_choices},
    breaker::{Pass, Turn},
    outbound::{Backend, BackendKind, FailureAccrual, Limits},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::{debug, info};

use crate::{
    http::ProxyError,
    limits::Service,
    metrics::{balancer::BalancerHandles, labels::Labels},
    upstream::ConnectError,
    worker::Worker,
};

pub(crate) use endpoint::{Endpoint, InFlight, Picked};
use failfast::Failfast;
pub(crate) use heddle_proxy_policy::breaker::Answer;
pub(crate) use verdict::{Verdict, of_head};

/// A request that waits for a connection looks again after this, though it was told nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The endpoints of one backend.
#[derive(Debug)]
pub(crate) struct Balancer {
    worker: Rc<Worker>,
    authority: String,
    ewma: Cell<EwmaParams>,
    failfast: Failfast,
    watch: RefCell<Option<watch::Receiver<Arc<EndpointSet>>>>,
    exists: Cell<bool>,
    /// Whether it has been told which endpoints there are.
    is_known: Cell<bool>,
    endpoints: RefCell<Vec<Rc<Endpoint>>>,
    service: Arc<Service>,
    /// Parent and backend.
    labels: Labels,
    counters: [OnceCell<BalancerHandles>; 3],
}

/// What the next request or connection asks of its endpoint, by the policy in force.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    pub layer: Layer,
    pub wish: Wish,
    pub limits: Limits,
    /// How long it may wait for one.
    pub failfast: Duration,
}

/// Whether a backend has an endpoint for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    Ready,
    /// All of them rest, or nobody has said yet which there are.
    Unready,
    /// It has none, or does not exist.
    Absent,
}

/// What it is, as metrics tell them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Layer {
    /// A request.
    #[default]
    Http,
    /// A connection of bytes.
    Tcp,
    /// A connection of bytes that was routed by its TLS server name.
    Tls,
}

/// Which endpoint it should be.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Wish {
    /// The less loaded of two.
    #[default]
    Any,
    /// The one of this number, as long as it is ready.
    Endpoint(u64),
    /// The one that this key leads to.
    Key(u64),
}

impl Terms {
    /// Until when what begins now may wait for an endpoint.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.failfast
    }
}

impl Balancer {
    pub(crate) fn new(worker: Rc<Worker>, parent: &Meta, backend: &Backend) -> Result<Rc<Self>, ProxyError> {
        let (authority, ewma, watch, service, endpoints) = match &backend.kind {
            BackendKind::Forward(endpoint) => {
                let authority = endpoint.addr.to_string();
                let ewma = EwmaParams::default();
                let service = worker.services.service(&authority);
                let only = Endpoint::new(&worker, &authority, &service, endpoint.clone(), ewma);
                (authority, ewma, None, service, vec![only])
            }
            BackendKind::Balance { path, ewma } => (
                path.clone(),
                *ewma,
                Some(worker.discovery.endpoints(path)?),
                worker.services.service(path),
                Vec::new(),
            ),
            BackendKind::Nowhere => (
                String::new(),
                EwmaParams::default(),
                None,
                worker.services.service(""),
                Vec::new(),
            ),
        };
        // The watch's first value has not been looked at.
        let watch = watch.map(|mut watch| {
            watch.mark_changed();
            watch
        });
        Ok(Rc::new(Self {
            worker,
            authority,
            ewma: Cell::new(ewma),
            failfast: Failfast::default(),
            watch: RefCell::new(watch),
            is_known: Cell::new(matches!(backend.kind, BackendKind::Forward(_))),
            exists: Cell::new(!matches!(backend.kind, BackendKind::Nowhere)),
            endpoints: RefCell::new(endpoints),
            service,
            labels: Labels::default()
                .port_reference("parent", parent)
                .port_reference("backend", &backend.meta),
            counters: [const { OnceCell::new() }; 3],
        }))
    }

    /// Goes on as a policy says that was just taken over. What is known of the endpoints stays.
    pub(crate) fn adopt(&self, backend: &Backend) {
        let BackendKind::Balance { path: _, ewma } = &backend.kind else {
            return;
        };
        if self.ewma.replace(*ewma) != *ewma {
            for endpoint in self.endpoints.borrow().iter() {
                endpoint.load.borrow_mut().set_params(*ewma);
            }
        }
    }

    /// Whether any endpoint could take a request now. One that took no connection is for requests that have no other.
    pub(crate) fn availability(&self) -> Availability {
        self.refresh();
        let now = Instant::now();
        let endpoints = self.endpoints.borrow();
        if endpoints
            .iter()
            .any(|endpoint| endpoint.is_reachable() && endpoint.is_ready(now))
        {
            return Availability::Ready;
        }
        match self.exists.get() && !(self.is_known.get() && endpoints.is_empty()) {
            true => Availability::Unready,
            false => Availability::Absent,
        }
    }

    /// The endpoint for the next request; waits for one until `deadline`, unless others have waited in vain. Where the
    /// policy sets no limit, as many wait as come over the connections that are taken: as with Linkerd, whose queue makes
    /// those wait that find it full.
    pub(crate) async fn pick(&self, terms: Terms, deadline: Instant) -> Result<Picked, ProxyError> {
        let counters = self.counters(terms.layer, terms.failfast);
        if let Some(picked) = self.try_pick(terms) {
            counters.served_at_once();
            return Ok(picked);
        }
        let _queued = counters.queued();
        let place = |limit| self.service.wait(limit).ok_or(ProxyError::LoadShed(limit.get()));
        let _pending = terms.limits.pending_requests.map(place).transpose()?;
        loop {
            // Listening begins before looking, or what is freed in between would be missed.
            let freed = self.service.freed().notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let looked = Instant::now();
            if let Some(picked) = self.try_pick(terms) {
                return Ok(picked);
            }
            if !self.exists.get() {
                return Err(ProxyError::NoSuchService);
            }
            let until = self.waits_until(terms, deadline)?;
            let wake = self.next_ready(looked).map_or(until, |at| at.min(until));
            let changes = self.watch.borrow().clone();
            let changed = async {
                match changes {
                    Some(mut changes) => drop(timeout_at(wake, changes.changed()).await),
                    None => sleep_until(wake).await,
                }
            };
            tokio::select! {
                () = changed => {}
                () = freed => {}
            }
        }
    }

    /// Until when what has found no endpoint may wait, if it may.
    fn waits_until(&self, terms: Terms, deadline: Instant) -> Result<Instant, ProxyError> {
        let now = Instant::now();
        let until = match self.availability() {
            // It is a limit that there is no room under: each waits for its own time.
            Availability::Ready => deadline,
            Availability::Unready | Availability::Absent => {
                let until = self.failfast.unready(terms.failfast, now);
                if self.failfast.is_over(terms.failfast, now) && self.failfast.shut() {
                    self.gate_turned(false);
                }
                until.min(deadline)
            }
        };
        match until > now {
            true => Ok(until),
            false => Err(ProxyError::FailFast(terms.failfast)),
        }
    }

    /// There is an endpoint that nothing speaks against.
    fn is_ready_again(&self) {
        if self.failfast.ready() {
            self.gate_turned(true);
        }
    }

    /// From now on requests wait for an endpoint, or fail at once.
    fn gate_turned(&self, open: bool) {
        for counters in self.counters.iter().filter_map(|one| one.get()) {
            counters.gate_turned(open);
        }
        let backend = self.authority.as_str();
        match open {
            true => info!(%backend, "An endpoint is ready again"),
            false => info!(%backend, "No endpoint is ready: requests fail at once until one is"),
        }
    }

    /// Takes in that there was no connection to an endpoint. When that is because of a limit, waits for one to end.
    pub(crate) async fn not_connected(&self, endpoint: Picked, error: &ConnectError, deadline: Instant) {
        if !matches!(error, ConnectError::Limited { .. }) {
            return endpoint.connect_failed();
        }
        // The place under the limit of requests is for others meanwhile.
        drop(endpoint);
        // It may have ended already: then one more look costs little.
        let wake = deadline.min(Instant::now() + LOOK_AGAIN);
        let _ = timeout_at(wake, self.service.freed().notified()).await;
    }

    /// Whether the endpoint of this number could take a request now.
    pub(crate) fn has_ready(&self, id: u64) -> bool {
        self.refresh();
        let now = Instant::now();
        let endpoints = self.endpoints.borrow();
        endpoints
            .iter()
            .any(|endpoint| endpoint.id == id && endpoint.is_ready(now))
    }

    fn try_pick(&self, terms: Terms) -> Option<Picked> {
        self.refresh();
        let endpoint = self.candidate(terms)?;
        // Another worker may have taken the last place.
        let permit = endpoint.gate.request(&terms.limits).ok()?;
        if self.failfast.is_unready() && endpoint.is_sound() {
            self.is_ready_again();
        }
        Some(endpoint.pick(permit, terms.layer == Layer::Http))
    }

    fn candidate(
        &self,
        Terms {
            layer,
            wish,
            limits,
            failfast: _,
        }: Terms,
    ) -> Option<Rc<Endpoint>> {
        let endpoints = self.endpoints.borrow();
        let now = Instant::now();
        let can_take = |endpoint: &Endpoint| {
            let ready = match layer {
                Layer::Http => endpoint.is_ready(now),
                Layer::Tcp | Layer::Tls => endpoint.takes_bytes(now),
            };
            ready && endpoint.gate.has_room(&limits)
        };
        if let [only] = endpoints.as_slice() {
            return can_take(only).then(|| only.clone());
        }
        match wish {
            Wish::Any => {}
            Wish::Endpoint(id) => {
                let known = endpoints
                    .iter()
                    .find(|endpoint| endpoint.id == id && can_take(endpoint));
                if let Some(known) = known {
                    return Some(known.clone());
                }
            }
            Wish::Key(key) => {
                let ready = endpoints.iter().filter(|endpoint| can_take(endpoint));
                return ready
                    .max_by_key(|endpoint| affinity::score(key, endpoint.id))
                    .cloned();
            }
        }
        let (one, two) = two_choices(endpoints.len(), rand::random())?;
        let (one, two) = (&endpoints[one], &endpoints[two]);
        match (can_take(one), can_take(two)) {
            (true, true) => Some(lighter(one, two, now)),
            (true, false) => Some(one.clone()),
            (false, true) => Some(two.clone()),
            (false, false) => {
                // Both rest: look at all that do not.
                let ready: Vec<_> = endpoints.iter().filter(|endpoint| can_take(endpoint)).collect();
                let (one, two) = two_choices(ready.len(), rand::random())?;
                Some(lighter(ready[one], ready[two], now))
            }
        }
    }

    /// When the first of the endpoints may be tried again that rested then. One that did not is told of by who is at it.
    fn next_ready(&self, then: Instant) -> Option<Instant> {
        self.endpoints
            .borrow()
            .iter()
            .filter_map(|endpoint| endpoint.ready_at())
            .filter(|at| *at > then)
            .min()
    }

    /// The counters of requests, or of connections; made when the first comes.
    fn counters(&self, layer: Layer, failfast: Duration) -> &BalancerHandles {
        self.counters[layer as usize].get_or_init(|| {
            let metrics = &self.worker.metrics;
            let families = match layer {
                Layer::Http => &metrics.http_balancer,
                Layer::Tcp => &metrics.tcp_balancer,
                Layer::Tls => &metrics.tls_balancer,
            };
            let counters = families.handles(&self.labels, failfast);
            let all = self.endpoints.borrow().len();
            counters.updated(all, 0);
            counters.endpoints(all, self.ready());
            counters
        })
    }

    fn ready(&self) -> usize {
        let now = Instant::now();
        let endpoints = self.endpoints.borrow();
        endpoints.iter().filter(|endpoint| endpoint.is_ready(now)).count()
    }

    /// Takes over what discovery says now. Endpoints that stay keep their connections.
    fn refresh(&self) {
        let mut watch = self.watch.borrow_mut();
        let Some(watch) = watch.as_mut() else { return };
        if !watch.has_changed().unwrap_or(false) {
            return;
        }
        let set = watch.borrow_and_update().clone();
        self.exists.set(!matches!(*set, EndpointSet::DoesNotExist));
        self.is_known.set(matches!(*set, EndpointSet::Known(_)));
        let mut endpoints = self.endpoints.borrow_mut();
        let mut old: ahash::AHashMap<SocketAddr, Rc<Endpoint>> = endpoints
            .drain(..)
            .map(|endpoint| (endpoint.info.addr, endpoint))
            .collect();
        let mut added = 0;
        endpoints.extend(set.iter().map(|info| match old.remove(&info.addr) {
            Some(endpoint) if Arc::ptr_eq(&endpoint.info, info) || endpoint.info == *info => endpoint,
            _ => {
                added += 1;
                Endpoint::new(
                    &self.worker,
                    &self.authority,
                    &self.service,
                    info.clone(),
                    self.ewma.get(),
                )
            }
        }));
        let all = endpoints.len();
        drop(endpoints);
        for counters in self.counters.iter().filter_map(OnceCell::get) {
            counters.updated(added, old.len());
            counters.endpoints(all, self.ready());
        }
    }

    /// Counts a response, or that there was none. An endpoint that fails as often as the policy says rests.
    pub(crate) fn judge(
        &self,
        endpoint: &Endpoint,
        pass: Pass,
        answer: Answer,
        accrual: Option<&FailureAccrual>,
    ) {
        let now = Instant::now();
        if answer.overloaded {
            endpoint
                .load
                .borrow_mut()
                .penalize(answer.retry_after, now.into_std());
        }
        let Some(accrual) = accrual else { return };
        let others = || {
            let endpoints = self.endpoints.borrow();
            let others = endpoints
                .iter()
                .filter(|other| !std::ptr::eq(&raw const ***other, endpoint));
            others.filter(|other| other.is_ready(now)).count()
        };
        let turn =
            endpoint
                .breaker
                .borrow_mut()
                .judge(pass, answer, accrual, others, rand::random, now.into_std());
        match turn {
            Turn::None => {}
            Turn::Opened => {
                debug!(addr = %endpoint.info.addr, "An endpoint does well again");
                endpoint.gate.endpoint_is_free();
            }
            Turn::Shut => debug!(addr = %endpoint.info.addr, "An endpoint that fails too often rests"),
        }
    }

    /// Closes connections that have been idle for too long.
    pub(crate) fn sweep(&self) {
        self.refresh();
        let now = Instant::now();
        for endpoint in self.endpoints.borrow().iter() {
            endpoint.http.sweep();
            endpoint.try_again(now);
            // Perhaps no request has come to see it.
            if self.failfast.is_unready() && endpoint.is_sound() && endpoint.is_ready(now) {
                self.is_ready_again();
            }
        }
        for counters in self.counters.iter().filter_map(OnceCell::get) {
            counters.endpoints(self.endpoints.borrow().len(), self.ready());
        }
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        // Another worker's balancer of the same backend says within a second how many there are.
        for counters in self.counters.iter().filter_map(OnceCell::get) {
            counters.endpoints(0, 0);
        }
    }
}

fn lighter(one: &Rc<Endpoint>, two: &Rc<Endpoint>, now: Instant) -> Rc<Endpoint> {
    let now = now.into_std();
    let load = |endpoint: &Endpoint| {
        let load = endpoint.load.borrow().load(endpoint.in_flight.get(), now);
        // A weight of 10,000 is usual; a heavier endpoint seems less loaded than it is.
        load * 10_000.0 / f64::from(endpoint.info.weight.max(1))
    };
    if load(one) <= load(two) {
        one.clone()
    } else {
        two.clone()
    }
}
