//! One endpoint: the ways to it, and what this worker knows of it.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use heddle_proxy_policy::{
    self as policy, affinity,
    balance::{Backoff, EwmaParams, PeakEwma},
    breaker::{Breaker, Pass},
    endpoint::ProtocolHint,
};
use heddle_tls::PeerId;
use tokio::time::Instant;

use crate::{
    http::ProxyError,
    limits::{Gate, Permit, Service},
    metrics::{http::HttpHandles, labels::Labels, tcp::TcpHandles},
    transport_header::TransportHeader,
    upstream::{Care, ConnectError, Peer, Target, TargetTls, Upstream},
    worker::Worker,
};

/// An endpoint that has been picked, with its place under the limits.
#[derive(Debug)]
pub(crate) struct Picked {
    endpoint: Rc<Endpoint>,
    pass: Pass,
    permit: Option<Permit>,
    probe: Option<Probe>,
    _trial: Option<Trial>,
}

/// A connection to an endpoint that took none last time. Meanwhile nobody else makes one.
#[derive(Debug)]
struct Trial(Rc<Endpoint>);

/// A request whose answer decides whether the endpoint gets more. When it ends without one, another takes its place.
#[derive(Debug)]
struct Probe {
    endpoint: Rc<Endpoint>,
    pass: Pass,
}

/// One endpoint, with what this worker knows of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(super) info: Arc<policy::Endpoint>,
    /// See [`affinity::endpoint_id`].
    pub(super) id: u64,
    pub(super) gate: Rc<Gate>,
    pub(super) load: RefCell<PeakEwma>,
    pub(super) in_flight: Rc<Cell<u32>>,
    /// Failed connections in a row.
    connect_failures: Cell<u32>,
    /// When the next connection may be made, after one that failed.
    connects_at: Cell<Option<Instant>>,
    /// Whether one is being made that shows whether it takes any.
    is_tried: Cell<bool>,
    /// How long it rests after failed connections.
    connect_backoff: Backoff,
    /// Judges its answers.
    pub(super) breaker: RefCell<Breaker>,
    /// For requests.
    pub(super) http: Rc<Upstream>,
    /// For connections of bytes.
    opaque: Rc<Upstream>,
    handles: Rc<HttpHandles>,
    /// Whether connections to it are TLS; those of our own pod to itself are not.
    proves_identity: bool,
    /// Why there is no TLS, if there is none.
    no_tls_reason: Option<&'static str>,
}

/// A request or connection that an endpoint is busy with.
#[derive(Debug)]
pub(crate) struct InFlight {
    endpoint: Rc<Endpoint>,
    pass: Pass,
    _permit: Option<Permit>,
    _probe: Option<Probe>,
}

impl Endpoint {
    pub(super) fn new(
        worker: &Rc<Worker>,
        authority: &str,
        service: &Arc<Service>,
        info: Arc<policy::Endpoint>,
        ewma: EwmaParams,
    ) -> Rc<Self> {
        let gate = Rc::new(service.gate(info.addr));
        // Our own pod's traffic to itself does not pass our inbound side, so nobody would speak TLS with us.
        let own = worker.config.inbound.ips.contains(&info.addr.ip());
        let identity = match &info.identity {
            Some(_) if own => Err("loopback"),
            Some(identity) => Ok(identity),
            None => Err("not_provided_by_service_discovery"),
        };
        let labels = Labels::direction("outbound")
            .with("authority", authority)
            .target_addr(info.addr);
        let labels = labels.server_tls(identity).endpoint(&info);
        let tcp = TcpHandles::to_endpoint(
            &worker.metrics,
            &Labels::direction("outbound")
                .with("peer", "dst")
                .with("authority", authority)
                .target_addr(info.addr)
                .server_tls(identity)
                .endpoint(&info),
            &info,
        );
        let peer = identity.ok().map(|id| Peer::new(id, info.server_name.as_ref()));
        let proves_identity = peer.is_some();
        let connect_timeout = worker.config.outbound.connect_timeout;
        let in_flight = Rc::new(Cell::new(0));
        let care = info.keep_alive.map(|keep_alive| Care {
            keep_alive,
            in_flight: in_flight.clone(),
        });
        let upstream = |addr, tls| {
            Upstream::new(
                Target {
                    addr,
                    connect_timeout,
                    tls,
                    near: false,
                    care: care.clone(),
                    pool: worker.config.outbound.pool,
                },
                worker.tls.clone(),
                tcp.clone(),
                Some(gate.clone()),
            )
        };
        // A gateway is told in the transport header which service it is to pass a connection on to; other proxies, only
        // for which port opaque connections are.
        let gateway = info.authority_override.as_ref();
        let header = TransportHeader {
            port: gateway
                .and_then(|authority| authority.port_u16())
                .unwrap_or(info.addr.port()),
            name: gateway.map(|authority| authority.host().to_owned()),
            protocol: None,
        };
        let direct = |port| match (peer.clone(), port) {
            (Some(peer), Some(port)) => {
                let tls = TargetTls {
                    peer,
                    header: Some(header.clone()),
                };
                upstream(SocketAddr::new(info.addr.ip(), port), Some(tls))
            }
            (peer, _) => upstream(info.addr, peer.map(|peer| TargetTls { peer, header: None })),
        };
        let http = direct(info.opaque_transport_port.filter(|_| gateway.is_some()));
        let opaque = direct(info.opaque_transport_port);
        Rc::new(Self {
            id: affinity::endpoint_id(info.addr),
            gate,
            load: RefCell::new(PeakEwma::new(ewma, std::time::Instant::now())),
            in_flight,
            connect_failures: Cell::new(0),
            connects_at: Cell::new(None),
            is_tried: Cell::new(false),
            connect_backoff: worker.config.outbound.connect_backoff,
            breaker: RefCell::new(Breaker::new(Instant::now().into_std())),
            http,
            opaque,
            handles: HttpHandles::new(worker.metrics.clone(), labels),
            proves_identity,
            no_tls_reason: identity.err(),
            info,
        })
    }

    /// Whether it could take a request now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        self.connects(now) && self.breaker.borrow().admits(now.into_std())
    }

    /// Whether it could take a connection of bytes now, which nobody judges.
    pub(super) fn takes_bytes(&self, now: Instant) -> bool {
        self.connects(now) && !self.breaker.borrow().rests(now.into_std())
    }

    fn connects(&self, now: Instant) -> bool {
        self.connects_at.get().is_none_or(|at| at <= now) && !self.is_tried.get()
    }

    /// When it could take a request, if it is not ready, as far as time alone tells.
    pub(super) fn ready_at(&self) -> Option<Instant> {
        let admits_at = self.breaker.borrow().admits_at().map(Instant::from_std);
        self.connects_at.get().max(admits_at)
    }

    /// Whether it took the last connection that was to be made.
    pub(super) fn is_reachable(&self) -> bool {
        self.connect_failures.get() == 0
    }

    /// Whether nothing speaks against it: what it got last, it took.
    pub(super) fn is_sound(&self) -> bool {
        self.is_reachable() && self.breaker.borrow().is_open()
    }

    /// Sees whether one that failed takes connections again, for requests that go around it as long as it does not.
    pub(super) fn try_again(self: &Rc<Self>, now: Instant) {
        if self.is_reachable() || !self.connects(now) {
            return;
        }
        let trial = Trial::begin(self);
        tokio::task::spawn_local(async move {
            let endpoint = &trial.0;
            match Box::pin(endpoint.http.connect()).await {
                Ok(_) => endpoint.connected(),
                Err(ConnectError::Limited { .. }) => {}
                Err(_) => endpoint.connect_failed(),
            }
        });
    }

    /// Takes it for what comes next, which is judged unless it is bytes.
    pub(super) fn pick(self: &Rc<Self>, permit: Option<Permit>, judged: bool) -> Picked {
        let mut breaker = self.breaker.borrow_mut();
        let pass = match judged && !breaker.is_open() {
            true => breaker.pass(Instant::now().into_std()),
            false => breaker.pass_by(),
        };
        drop(breaker);
        Picked {
            endpoint: self.clone(),
            pass,
            permit,
            probe: pass.is_probe().then(|| Probe {
                endpoint: self.clone(),
                pass,
            }),
            _trial: (!self.is_reachable()).then(|| Trial::begin(self)),
        }
    }

    pub(crate) fn info(&self) -> &policy::Endpoint {
        &self.info
    }

    /// Whether all requests go inside HTTP/2.
    pub(crate) fn takes_http2(&self) -> bool {
        self.info.hint == ProtocolHint::Http2
    }

    /// Whether it may get what requires its endpoint to be `id`.
    pub(crate) fn must_be(&self, id: Option<&PeerId>) -> Result<(), ProxyError> {
        match id {
            Some(id) if !self.proves_identity || self.info.identity.as_ref() != Some(id) => {
                Err(ProxyError::IdentityRequired(id.clone()))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn http(&self) -> &Rc<Upstream> {
        &self.http
    }

    pub(crate) fn opaque(&self) -> &Rc<Upstream> {
        &self.opaque
    }

    /// Why there is no TLS to it, if there is none.
    pub(crate) fn no_tls_reason(&self) -> Option<&'static str> {
        self.no_tls_reason
    }

    pub(crate) fn handles(&self) -> &Rc<HttpHandles> {
        &self.handles
    }

    /// See [`affinity::endpoint_id`].
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Takes in how long the endpoint took to answer, or to accept.
    pub(crate) fn observe(&self, latency: Duration) {
        self.load.borrow_mut().observe(latency, std::time::Instant::now());
    }

    /// A connection failed: the endpoint rests. Several requests that waited for the one connection count once.
    pub(crate) fn connect_failed(&self) {
        let now = Instant::now();
        if self.connects_at.get().is_some_and(|at| at > now) {
            return;
        }
        let failures = self.connect_failures.get().saturating_add(1);
        self.connect_failures.set(failures);
        self.connects_at
            .set(Some(now + self.connect_backoff.after(failures, rand::random())));
    }

    /// A connection was there.
    pub(crate) fn connected(&self) {
        self.connect_failures.set(0);
        self.connects_at.set(None);
    }
}

impl Picked {
    /// By this its answer is known.
    pub(crate) fn pass(&self) -> Pass {
        self.pass
    }

    /// Counts what it was picked for as in flight until what is returned is dropped.
    pub(crate) fn begin(self) -> InFlight {
        let Self {
            endpoint,
            pass,
            permit,
            probe,
            // It is connected.
            _trial,
        } = self;
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        InFlight {
            endpoint,
            pass,
            _permit: permit,
            _probe: probe,
        }
    }
}

impl std::ops::Deref for Picked {
    type Target = Rc<Endpoint>;

    fn deref(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }
}

impl InFlight {
    pub(crate) fn endpoint(&self) -> &Rc<Endpoint> {
        &self.endpoint
    }

    /// By this its answer is known.
    pub(crate) fn pass(&self) -> Pass {
        self.pass
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        let now = Instant::now().into_std();
        if self.endpoint.breaker.borrow_mut().over(self.pass, now) {
            self.endpoint.gate.endpoint_is_free();
        }
    }
}

impl Trial {
    fn begin(endpoint: &Rc<Endpoint>) -> Self {
        endpoint.is_tried.set(true);
        Self(endpoint.clone())
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.0.is_tried.set(false);
        self.0.gate.endpoint_is_free();
    }
}
