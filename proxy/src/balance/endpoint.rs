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
    balance::{Backoff, EwmaParams, PeakEwma, Successes},
    endpoint::ProtocolHint,
};
use heddle_tls::PeerId;
use tokio::time::Instant;

use crate::{
    http::ProxyError,
    limits::{Gate, Permit, Service},
    metrics::{http::HttpHandles, labels::Labels, tcp::TcpHandles},
    transport_header::TransportHeader,
    upstream::{Peer, Target, TargetTls, Upstream},
    worker::Worker,
};

/// An endpoint that has been picked, with its place under the limits.
#[derive(Debug)]
pub(crate) struct Picked {
    pub(super) endpoint: Rc<Endpoint>,
    pub(super) permit: Option<Permit>,
}

/// One endpoint, with what this worker knows of it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(super) info: Arc<policy::Endpoint>,
    /// See [`affinity::endpoint_id`].
    pub(super) id: u64,
    pub(super) gate: Rc<Gate>,
    pub(super) load: RefCell<PeakEwma>,
    pub(super) in_flight: Cell<u32>,
    /// Failed connections in a row, and failed responses in a row.
    connect_failures: Cell<u32>,
    pub(super) failures: Cell<u32>,
    /// Rests in a row, without a success in between.
    pub(super) trips: Cell<u32>,
    pub(super) successes: RefCell<Successes>,
    pub(super) rests_until: Cell<Option<Instant>>,
    /// How long it rests after failed connections.
    connect_backoff: Backoff,
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
    _permit: Option<Permit>,
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
        let upstream = |addr, tls| {
            Upstream::new(
                Target {
                    addr,
                    connect_timeout,
                    tls,
                    near: false,
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
            in_flight: Cell::new(0),
            connect_failures: Cell::new(0),
            failures: Cell::new(0),
            trips: Cell::new(0),
            successes: RefCell::new(Successes::new(std::time::Instant::now())),
            rests_until: Cell::new(None),
            connect_backoff: worker.config.outbound.connect_backoff,
            http,
            opaque,
            handles: HttpHandles::new(worker.metrics.clone(), labels),
            proves_identity,
            no_tls_reason: identity.err(),
            info,
        })
    }

    pub(super) fn is_ready(&self, now: Instant) -> bool {
        match self.rests_until.get() {
            Some(until) if until > now => false,
            Some(_) => {
                // One try is let through; another failure makes the rest longer.
                self.rests_until.set(None);
                true
            }
            None => true,
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
        if self.rests_until.get().is_some_and(|until| until > now) {
            return;
        }
        let failures = self.connect_failures.get().saturating_add(1);
        self.connect_failures.set(failures);
        self.rests_until
            .set(Some(now + self.connect_backoff.after(failures, rand::random())));
    }

    /// A connection was there.
    pub(crate) fn connected(&self) {
        self.connect_failures.set(0);
    }
}

impl Picked {
    /// Counts what it was picked for as in flight until what is returned is dropped.
    pub(crate) fn begin(self) -> InFlight {
        let Self { endpoint, permit } = self;
        endpoint.in_flight.set(endpoint.in_flight.get() + 1);
        InFlight {
            endpoint,
            _permit: permit,
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
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.endpoint.in_flight.set(self.endpoint.in_flight.get() - 1);
    }
}
