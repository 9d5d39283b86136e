//! Limits towards a service: requests and connections under way, counted for the whole proxy.
//!
//! Workers share the counts and nothing else of a service's connections. Where a policy sets no limit nothing is counted.

use std::{
    cell::Cell,
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc, Weak,
        atomic::{
            AtomicU32,
            Ordering::{AcqRel, Acquire},
        },
    },
};

use ahash::AHashMap;
use heddle_proxy_policy::outbound::Limits;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Below this many entries nobody looks for forgotten ones.
const PRUNE_MIN: usize = 64;

/// The counts of all services, by their discovery paths.
#[derive(Debug, Default)]
pub(crate) struct Services(Mutex<AHashMap<String, Weak<Service>>>);

/// The counts of one service.
#[derive(Debug, Default)]
pub(crate) struct Service {
    all: Arc<Counts>,
    waiting: AtomicU32,
    /// Told when something under way has ended, or an endpoint takes requests again.
    freed: Arc<Notify>,
    endpoints: Mutex<AHashMap<SocketAddr, Weak<Counts>>>,
}

/// What is under way.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: AtomicU32,
    connections: AtomicU32,
}

/// A place under a limit, taken until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    counts: [Arc<Counts>; 2],
    of: fn(&Counts) -> &AtomicU32,
    freed: Arc<Notify>,
}

/// A waiting request's place.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<Service>);

/// What one endpoint's connections are counted by, and the limits that hold now.
#[derive(Debug)]
pub(crate) struct Gate {
    service: Arc<Service>,
    endpoint: Arc<Counts>,
    limits: Cell<Limits>,
}

impl Services {
    /// The counts of a service.
    pub(crate) fn service(&self, path: &str) -> Arc<Service> {
        let mut services = self.0.lock();
        if let Some(service) = services.get(path).and_then(Weak::upgrade) {
            return service;
        }
        prune(&mut services);
        let service = Arc::new(Service::default());
        services.insert(path.to_owned(), Arc::downgrade(&service));
        service
    }
}

/// Makes room when the next insertion would grow the table.
fn prune<K: Eq + std::hash::Hash, V>(table: &mut AHashMap<K, Weak<V>>) {
    if table.len() >= PRUNE_MIN && table.len() == table.capacity() {
        table.retain(|_, value| value.strong_count() > 0);
    }
}

impl Service {
    /// What the connections of one endpoint are counted by.
    pub(crate) fn gate(self: &Arc<Self>, addr: SocketAddr) -> Gate {
        let mut endpoints = self.endpoints.lock();
        let endpoint = endpoints.get(&addr).and_then(Weak::upgrade).unwrap_or_else(|| {
            prune(&mut endpoints);
            let counts = Arc::new(Counts::default());
            endpoints.insert(addr, Arc::downgrade(&counts));
            counts
        });
        Gate {
            service: self.clone(),
            endpoint,
            limits: Cell::default(),
        }
    }

    /// A place to wait in, unless as many wait as may.
    pub(crate) fn wait(self: &Arc<Self>, limit: NonZeroU32) -> Option<Waiting> {
        take(&self.waiting, Some(limit)).then(|| Waiting(self.clone()))
    }

    /// Told when something under way has ended.
    pub(crate) fn freed(&self) -> &Notify {
        &self.freed
    }
}

impl Gate {
    /// Whether a request could go now, as far as limits are concerned.
    pub(crate) fn has_room(&self, limits: &Limits) -> bool {
        let below = |count: &AtomicU32, limit: Option<NonZeroU32>| {
            limit.is_none_or(|limit| count.load(Acquire) < limit.get())
        };
        below(&self.service.all.requests, limits.requests)
            && below(&self.endpoint.requests, limits.endpoint_requests)
    }

    /// A place for a request, `Ok(None)` when none is needed, `Err` when there is none. The limits hold for connections
    /// from now on.
    pub(crate) fn request(&self, limits: &Limits) -> Result<Option<Permit>, ()> {
        self.limits.set(*limits);
        self.permit(
            |counts| &counts.requests,
            limits.requests,
            limits.endpoint_requests,
        )
    }

    /// A place for a connection; as [`Gate::request`].
    pub(crate) fn connection(&self) -> Result<Option<Permit>, ()> {
        let limits = self.limits.get();
        self.permit(
            |counts| &counts.connections,
            limits.connections,
            limits.endpoint_connections,
        )
    }

    /// A connection that was busy is free for the next request.
    pub(crate) fn connection_is_free(&self) {
        let limits = self.limits.get();
        if limits.connections.is_some() || limits.endpoint_connections.is_some() {
            self.service.freed.notify_waiters();
        }
    }

    /// The endpoint takes requests again; who waits for one looks again.
    pub(crate) fn endpoint_is_free(&self) {
        self.service.freed.notify_waiters();
    }

    fn permit(
        &self,
        of: fn(&Counts) -> &AtomicU32,
        all: Option<NonZeroU32>,
        one: Option<NonZeroU32>,
    ) -> Result<Option<Permit>, ()> {
        if all.is_none() && one.is_none() {
            return Ok(None);
        }
        let (service, endpoint) = (&self.service.all, &self.endpoint);
        if !take(of(service), all) {
            return Err(());
        }
        if !take(of(endpoint), one) {
            of(service).fetch_sub(1, AcqRel);
            return Err(());
        }
        Ok(Some(Permit {
            counts: [service.clone(), endpoint.clone()],
            of,
            freed: self.service.freed.clone(),
        }))
    }
}

/// Counts one more, unless that would be beyond the limit.
fn take(count: &AtomicU32, limit: Option<NonZeroU32>) -> bool {
    let limit = limit.map_or(u32::MAX, NonZeroU32::get);
    count
        .fetch_update(AcqRel, Acquire, |now| (now < limit).then(|| now + 1))
        .is_ok()
}

impl Drop for Permit {
    fn drop(&mut self) {
        for counts in &self.counts {
            (self.of)(counts).fetch_sub(1, AcqRel);
        }
        self.freed.notify_waiters();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_taken_and_given_back() {
        let services = Services::default();
        let service = services.service("web");
        let (one, two) = (
            service.gate(([10, 0, 0, 1], 80).into()),
            service.gate(([10, 0, 0, 2], 80).into()),
        );
        let limits = Limits {
            requests: NonZeroU32::new(3),
            endpoint_requests: NonZeroU32::new(2),
            endpoint_connections: NonZeroU32::new(1),
            ..Limits::default()
        };
        let first = one.request(&limits).expect("room").expect("counted");
        let second = one.request(&limits).expect("room");
        assert!(
            one.request(&limits).is_err() && !one.has_room(&limits),
            "the endpoint has its two"
        );
        let third = services
            .service("web")
            .gate(([10, 0, 0, 2], 80).into())
            .request(&limits)
            .expect("room");
        assert!(two.request(&limits).is_err(), "the service has its three");
        drop(first);
        assert!(two.has_room(&limits));
        drop((second, third));
        let connection = one.connection().expect("room");
        assert!(one.connection().is_err());
        drop(connection);
        assert!(one.connection().is_ok());
        assert!(
            two.request(&Limits::default()).expect("room").is_none(),
            "nothing is counted without a limit"
        );
    }

    #[test]
    fn forgotten_services_do_not_pile_up() {
        let services = Services::default();
        let kept = services.service("kept");
        for number in 0..10_000 {
            drop(services.service(&number.to_string()));
        }
        assert!(services.0.lock().len() < 1_000, "{}", services.0.lock().len());
        assert!(Arc::ptr_eq(&kept, &services.service("kept")));
    }
}
