//! ServiceProfiles on the server's side: they only count here. The client's proxy says in `l5d-dst-canonical` which service
//! it took a request to be for; requests without it are not counted by route.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use ahash::AHashMap;
use heddle_proxy_policy::{
    Profile,
    path::canonical_path,
    profile::{Condition, RouteProfile},
};
use http::{HeaderValue, Request};
use tokio::{sync::watch, time::Instant};

use crate::{
    dst::NameAddr,
    metrics::{Metrics, route::RouteHandles},
    worker::Worker,
};

/// Services of one pod that clients are counted for; a client that makes up names must not fill the memory.
const SERVICES_MAX: usize = 64;

/// A worker's services, by what clients' proxies call them.
#[derive(Debug, Default)]
pub(crate) struct Profiles(RefCell<AHashMap<HeaderValue, Rc<Service>>>);

#[derive(Debug)]
struct Service {
    name: NameAddr,
    watch: RefCell<watch::Receiver<Option<Arc<Profile>>>>,
    routes: RefCell<Option<Rc<Routes>>>,
    used: Cell<Instant>,
}

#[derive(Debug)]
struct Routes {
    routes: Vec<(Condition, Rc<RouteHandles>)>,
    /// For requests that no route takes.
    other: Rc<RouteHandles>,
}

impl Profiles {
    /// The counters of the route that a request takes; none when the service has no routes, or is not known yet.
    pub(crate) fn route<B>(
        &self,
        worker: &Worker,
        service: &HeaderValue,
        request: &Request<B>,
    ) -> Option<Rc<RouteHandles>> {
        let service = self.service(worker, service)?;
        service.used.set(Instant::now());
        let routes = service.routes(&worker.metrics)?;
        let path = canonical_path(request.uri().path());
        let taken = routes
            .routes
            .iter()
            .find(|(condition, _)| condition.holds(&path, request.method()));
        Some(taken.map_or(&routes.other, |(_, handles)| handles).clone())
    }

    /// Forgets services that no request has been for during `idle_timeout`.
    pub(crate) fn sweep(&self, idle_timeout: Duration) {
        self.0
            .borrow_mut()
            .retain(|_, service| service.used.get().elapsed() < idle_timeout);
    }

    fn service(&self, worker: &Worker, called: &HeaderValue) -> Option<Rc<Service>> {
        let mut services = self.0.borrow_mut();
        if let Some(service) = services.get(called) {
            return Some(service.clone());
        }
        let name: NameAddr = called.to_str().ok()?.parse().ok()?;
        if services.len() >= SERVICES_MAX || !worker.config.control.profile_suffixes.contain(&name) {
            return None;
        }
        let mut watch = worker.discovery.profile(&name).ok()?;
        watch.mark_changed();
        let service = Rc::new(Service {
            name,
            watch: RefCell::new(watch),
            routes: RefCell::default(),
            used: Cell::new(Instant::now()),
        });
        services.insert(called.clone(), service.clone());
        Some(service)
    }
}

impl Service {
    /// The routes as they are now.
    fn routes(&self, metrics: &Arc<Metrics>) -> Option<Rc<Routes>> {
        let mut watch = self.watch.borrow_mut();
        if watch.has_changed().unwrap_or(false) {
            let profile = watch.borrow_and_update().clone();
            *self.routes.borrow_mut() = profile
                .filter(|profile| profile.has_routes_or_targets())
                .map(|profile| Rc::new(self.read(metrics, &profile)));
        }
        self.routes.borrow().clone()
    }

    fn read(&self, metrics: &Arc<Metrics>, profile: &Profile) -> Routes {
        let handles = |labels, classes| {
            let route = RouteProfile {
                service: self.name.to_string(),
                labels,
                classes,
            };
            RouteHandles::new(metrics, "inbound", Arc::new(route))
        };
        let routes = profile.routes.iter().map(|route| {
            let handles = handles(route.labels.clone(), route.classes.clone());
            (route.condition.clone(), handles)
        });
        Routes {
            routes: routes.collect(),
            other: handles(Vec::new(), Vec::new()),
        }
    }
}
