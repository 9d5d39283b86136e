//! What a worker knows of an address that applications connect to, or of a name that requests ask for.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ahash::AHashMap;
use heddle_proxy_policy::{
    ClientPolicy,
    balance::Weights,
    outbound::{
        Backend, Distribution, Http, Opaque, OpaqueVerdict, OutboundRule, Protocol, RouteBackend, TlsRoute,
    },
};
use tokio::{sync::watch, time::Instant};

use super::counters::Counters;
use crate::{
    balance::{Availability, Balancer},
    discovery::Outbound,
    dst::Dst,
    http::{ProxyError, serve::HttpVersion},
    metrics::{labels::Labels, route::RouteHandles, tcp::TcpHandles},
    worker::Worker,
};

/// A worker's addresses and names.
#[derive(Debug, Default)]
pub(crate) struct Targets(RefCell<AHashMap<Dst, Rc<Target>>>);

/// One address or name.
#[derive(Debug)]
pub(crate) struct Target {
    worker: Rc<Worker>,
    pub dst: Dst,
    watch: RefCell<watch::Receiver<Outbound>>,
    current: RefCell<Option<Rc<Policy>>>,
    source: OnceCell<TcpHandles>,
    used: Cell<Instant>,
}

/// What a backend without endpoints does with its share.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Absent {
    /// Fails it. Gateway API: a backend that has none has its share answered with 503.
    Answers,
    /// Leaves it to the others, as Linkerd does with a ServiceProfile's targets.
    IsLeftOut,
}

/// A policy with this worker's balancers of its backends.
#[derive(Debug)]
pub(crate) struct Policy {
    pub policy: Arc<ClientPolicy>,
    /// By the backend's place in memory, which `policy` keeps.
    balancers: AHashMap<usize, Rc<Balancer>>,
    /// The counters of ServiceProfiles' routes, by the route's place in memory.
    routes: AHashMap<usize, Rc<RouteHandles>>,
    pub(super) counters: Counters,
}

impl Targets {
    pub(crate) fn target(&self, worker: &Rc<Worker>, dst: Dst) -> Result<Rc<Target>, ProxyError> {
        if let Some(target) = self.0.borrow().get(&dst) {
            target.used.set(Instant::now());
            return Ok(target.clone());
        }
        let mut watch = worker.discovery.outbound(&dst)?;
        watch.mark_changed();
        let target = Rc::new(Target {
            worker: worker.clone(),
            dst: dst.clone(),
            watch: RefCell::new(watch),
            current: RefCell::default(),
            source: OnceCell::new(),
            used: Cell::new(Instant::now()),
        });
        self.0.borrow_mut().insert(dst, target.clone());
        Ok(target)
    }

    /// Forgets addresses that no connection has used for `idle_timeout`.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        self.0.borrow_mut().retain(|_, target| {
            if Rc::strong_count(target) > 1 {
                target.used.set(Instant::now());
            }
            target.used.get().elapsed() < idle_timeout
        });
    }
}

impl Target {
    /// The counters of applications' connections to it.
    pub(crate) fn source(&self) -> &TcpHandles {
        self.source.get_or_init(|| {
            // The application's own side of the connection never leaves the pod.
            let labels = Labels::direction("outbound").with("peer", "src");
            let labels = match self.dst.addr() {
                Some(addr) => labels.target_addr(addr),
                None => labels,
            };
            TcpHandles::new(&self.worker.metrics, &labels.server_tls(Err("loopback")))
        })
    }

    /// What discovery says, once it has said anything.
    pub(crate) async fn known(&self) -> Outbound {
        let mut watch = self.watch.borrow().clone();
        match watch.wait_for(|now| !matches!(now, Outbound::Pending)).await {
            Ok(known) => known.clone(),
            Err(_) => Outbound::Unavailable("the proxy is shutting down".into()),
        }
    }

    /// The policy as it is now.
    pub(crate) fn policy(&self) -> Result<Rc<Policy>, ProxyError> {
        let mut watch = self.watch.borrow_mut();
        let mut current = self.current.borrow_mut();
        if let Some(policy) = &*current
            && !watch.has_changed().unwrap_or(false)
        {
            return Ok(policy.clone());
        }
        let outbound = watch.borrow_and_update().clone();
        match outbound {
            Outbound::Policy(policy) => {
                let policy = Rc::new(Policy::new(&self.worker, policy)?);
                *current = Some(policy.clone());
                Ok(policy)
            }
            failed => {
                *current = None;
                match failed {
                    Outbound::Invalid(why) => Err(ProxyError::InvalidPolicy(why)),
                    Outbound::Unavailable(why) => Err(ProxyError::Unavailable(why)),
                    Outbound::Unknown => Err(ProxyError::NoSuchService),
                    Outbound::Pending | Outbound::Policy(_) => {
                        Err(ProxyError::Unavailable("not looked up yet".into()))
                    }
                }
            }
        }
    }
}

impl Policy {
    fn new(worker: &Rc<Worker>, policy: Arc<ClientPolicy>) -> Result<Self, ProxyError> {
        let mut balancers = AHashMap::new();
        let mut add_one = |backend: &Arc<Backend>| -> Result<(), ProxyError> {
            balancers.insert(
                Arc::as_ptr(backend) as usize,
                worker.balancer(&policy.parent, backend)?,
            );
            Ok(())
        };
        let mut routes = AHashMap::new();
        for rule in policy.http_rules() {
            if let Some(profile) = &rule.profile {
                let handles = RouteHandles::new(&worker.metrics, "outbound", profile.clone());
                routes.insert(Arc::as_ptr(profile) as usize, handles);
            }
            rule.mirrors
                .iter()
                .try_for_each(|mirror| add_one(&mirror.backend))?;
        }
        let mut add = |distribution: &Distribution| -> Result<(), ProxyError> {
            let mirrors = distribution.backends().iter().flat_map(|one| &one.mirrors);
            let mirrors = mirrors.map(|mirror| &mirror.backend);
            for backend in distribution
                .backends()
                .iter()
                .map(|one| &one.backend)
                .chain(mirrors)
            {
                add_one(backend)?;
            }
            Ok(())
        };
        let add_http = |http: &Http, add: &mut dyn FnMut(&Distribution) -> Result<(), ProxyError>| {
            http.routes
                .iter()
                .flat_map(|route| &route.rules)
                .try_for_each(|rule| add(&rule.policy.distribution))
        };
        let add_opaque =
            |opaque: &Opaque, add: &mut dyn FnMut(&Distribution) -> Result<(), ProxyError>| match &opaque
                .verdict
            {
                OpaqueVerdict::To(distribution) => add(distribution),
                OpaqueVerdict::Forbidden | OpaqueVerdict::Invalid(_) => Ok(()),
            };
        match &policy.protocol {
            Protocol::Detect {
                http1, http2, opaque, ..
            } => {
                add_http(http1, &mut add)?;
                add_http(http2, &mut add)?;
                add_opaque(opaque, &mut add)?;
            }
            Protocol::Http1(http) | Protocol::Http2(http) | Protocol::Grpc(http) => add_http(http, &mut add)?,
            Protocol::Opaque(opaque) => add_opaque(opaque, &mut add)?,
            Protocol::Tls(routes) => {
                routes
                    .iter()
                    .try_for_each(|route| add_opaque(&route.opaque, &mut add))?;
            }
        }
        Ok(Self {
            policy,
            balancers,
            routes,
            counters: Counters::default(),
        })
    }

    /// What holds for HTTP of this version.
    pub(crate) fn http(&self, version: HttpVersion) -> Option<&Http> {
        match (&self.policy.protocol, version) {
            (Protocol::Detect { http1, .. }, HttpVersion::Http1) => Some(http1),
            (Protocol::Detect { http2, .. }, HttpVersion::Http2) => Some(http2),
            (Protocol::Http1(http) | Protocol::Http2(http) | Protocol::Grpc(http), _) => Some(http),
            (Protocol::Opaque(_) | Protocol::Tls(_), _) => None,
        }
    }

    /// What holds for bytes, which begin a TLS session with this server name.
    pub(crate) fn opaque(&self, server_name: Option<&str>) -> Option<&Opaque> {
        match &self.policy.protocol {
            Protocol::Detect { opaque, .. } | Protocol::Opaque(opaque) => Some(opaque),
            Protocol::Tls(routes) => TlsRoute::find(routes, server_name),
            Protocol::Http1(_) | Protocol::Http2(_) | Protocol::Grpc(_) => None,
        }
    }

    /// The counters of the rule's route, when a ServiceProfile gives it.
    pub(super) fn route_handles(&self, rule: &OutboundRule) -> Option<&Rc<RouteHandles>> {
        let profile = rule.profile.as_ref()?;
        self.routes.get(&(Arc::as_ptr(profile) as usize))
    }

    pub(super) fn balancer(&self, backend: &Arc<Backend>) -> Result<&Rc<Balancer>, ProxyError> {
        // All backends of the policy are in the map.
        self.balancers
            .get(&(Arc::as_ptr(backend) as usize))
            .ok_or(ProxyError::NoBackend)
    }

    /// The backend for the next request or connection: the one that has the wanted endpoint, else by weight among those
    /// whose endpoints do not all rest, or the first that has an endpoint.
    pub(crate) fn choose<'p>(
        &'p self,
        distribution: &'p Distribution,
        endpoint: Option<u64>,
    ) -> Result<(&'p RouteBackend, &'p Rc<Balancer>), ProxyError> {
        if let Some(id) = endpoint {
            for one in distribution.backends() {
                let balancer = self.balancer(&one.backend)?;
                if balancer.has_ready(id) {
                    return Ok((one, balancer));
                }
            }
        }
        match distribution {
            Distribution::Empty => Err(ProxyError::NoBackend),
            Distribution::FirstAvailable(backends) => {
                let mut first = None;
                for one in backends {
                    let balancer = self.balancer(&one.backend)?;
                    if backends.len() == 1 || balancer.availability() == Availability::Ready {
                        return Ok((one, balancer));
                    }
                    first.get_or_insert((one, balancer));
                }
                first.ok_or(ProxyError::NoBackend)
            }
            Distribution::RandomAvailable(backends, weights) => self.draw(backends, weights, Absent::Answers),
            Distribution::Split(backends, weights) => self.draw(backends, weights, Absent::IsLeftOut),
        }
    }

    /// One by weight; if it cannot take what comes next, one of those that can.
    fn draw<'p>(
        &'p self,
        backends: &'p [RouteBackend],
        weights: &Weights,
        absent: Absent,
    ) -> Result<(&'p RouteBackend, &'p Rc<Balancer>), ProxyError> {
        let takes = |index: usize| {
            let one = backends.get(index).map(|one| self.balancer(&one.backend));
            match one.and_then(Result::ok).map(|balancer| balancer.availability()) {
                Some(Availability::Ready) => true,
                Some(Availability::Absent) => absent == Absent::Answers,
                Some(Availability::Unready) | None => false,
            }
        };
        let drawn = weights.pick(rand::random()).ok_or(ProxyError::NoBackend)?;
        let index = match backends.len() == 1 || takes(drawn) {
            true => drawn,
            // When there is none, it waits for the one that was drawn.
            false => weights.pick_among(rand::random(), takes).unwrap_or(drawn),
        };
        let one = backends.get(index).ok_or(ProxyError::NoBackend)?;
        Ok((one, self.balancer(&one.backend)?))
    }
}
