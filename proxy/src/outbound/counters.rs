//! The counters of a policy's routes, and of their backends. Each is made when its first request comes.

use std::{
    cell::{OnceCell, RefCell},
    rc::Rc,
    sync::Arc,
};

use ahash::AHashMap;
use heddle_proxy_policy::{
    Meta,
    outbound::{ClientPolicy, OutboundRule, Protocol, RouteBackend},
};
use heddle_tls::rustls::pki_types::DnsName;

use crate::metrics::{Metrics, OutboundFamilies, labels::Labels, retry::RetryHandles, stream::StreamHandles};

/// Routes, or hosts of routes, whose counters are held on to.
const ROUTES_MAX: usize = 1_024;
const BACKENDS_MAX: usize = 256;

/// The counters of a policy's routes.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// By the rule's place in memory, which the policy keeps.
    routes: RefCell<AHashMap<usize, Rc<RouteCounters>>>,
    /// When hosts are told: by host, too.
    hosts: RefCell<AHashMap<(usize, String), Rc<RouteCounters>>>,
}

/// The counters of one rule of a route.
#[derive(Debug)]
pub(super) struct RouteCounters {
    metrics: Arc<Metrics>,
    grpc: bool,
    /// Parent and route.
    labels: Labels,
    host: String,
    pub(super) stream: Rc<StreamHandles>,
    retry: OnceCell<RetryHandles>,
    backends: RefCell<AHashMap<usize, Rc<StreamHandles>>>,
}

impl Counters {
    /// The counters of a rule. `host` is whom the request is for, when metrics are to tell it.
    pub(super) fn route(
        &self,
        metrics: &Arc<Metrics>,
        policy: &ClientPolicy,
        route: &Meta,
        rule: &OutboundRule,
        host: Option<&str>,
    ) -> Rc<RouteCounters> {
        let key = std::ptr::from_ref(rule) as usize;
        let make = |host| RouteCounters::new(metrics, policy, route, host);
        match host.and_then(|host| DnsName::try_from(host).ok()) {
            None => known(&mut self.routes.borrow_mut(), key, ROUTES_MAX, || make("")),
            Some(name) => {
                let host = name.as_ref();
                let key = (key, host.to_owned());
                known(&mut self.hosts.borrow_mut(), key, ROUTES_MAX, || make(host))
            }
        }
    }
}

impl RouteCounters {
    fn new(metrics: &Arc<Metrics>, policy: &ClientPolicy, route: &Meta, host: &str) -> Rc<Self> {
        let grpc = matches!(policy.protocol, Protocol::Grpc(_));
        let labels = Labels::default()
            .port_reference("parent", &policy.parent)
            .reference("route", route);
        let families = families(metrics, grpc);
        Rc::new(Self {
            metrics: metrics.clone(),
            grpc,
            stream: StreamHandles::new(&families.route, labels.clone().with("hostname", host)),
            host: host.to_owned(),
            labels,
            retry: OnceCell::new(),
            backends: RefCell::default(),
        })
    }

    pub(super) fn retry(&self) -> &RetryHandles {
        self.retry.get_or_init(|| {
            let labels = self.labels.clone().with("hostname", &self.host);
            families(&self.metrics, self.grpc).retry.handles(&labels)
        })
    }

    /// The counters of requests by this rule to one of its backends.
    pub(super) fn backend(&self, backend: &RouteBackend) -> Rc<StreamHandles> {
        let key = Arc::as_ptr(&backend.backend) as usize;
        known(&mut self.backends.borrow_mut(), key, BACKENDS_MAX, || {
            let labels = self.labels.clone();
            let labels = labels.port_reference("backend", &backend.backend.meta);
            StreamHandles::new(&families(&self.metrics, self.grpc).backend, labels)
        })
    }
}

fn families(metrics: &Metrics, grpc: bool) -> &OutboundFamilies {
    match grpc {
        true => &metrics.outbound_grpc,
        false => &metrics.outbound_http,
    }
}

/// What is known under a key, or else is made. When there are too many all are looked up anew.
fn known<K: std::hash::Hash + Eq, V>(
    all: &mut AHashMap<K, Rc<V>>,
    key: K,
    count_max: usize,
    make: impl FnOnce() -> Rc<V>,
) -> Rc<V> {
    if all.len() >= count_max && !all.contains_key(&key) {
        all.clear();
    }
    all.entry(key).or_insert_with(make).clone()
}
