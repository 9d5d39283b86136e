//! The index: tables and channels under one lock, changed by watch events and asked by the gRPC layer.

use std::{collections::BTreeSet, sync::Arc};

use heddle_control_core::{
    discover::{
        DiscoverEndpoints, DiscoverInbound, DiscoverOutbound, DiscoverProfiles, NotFound, ServiceTarget,
        Target, Watched, WorkloadName,
    },
    endpoints::{ClientLocation, Endpoints},
    inbound::InboundServer,
    outbound::OutboundPolicy,
    profile::Profile,
};
use parking_lot::RwLock;
use tokio::sync::watch;

use crate::{
    config::Config,
    dirty::Dirty,
    endpoints,
    facts::{ObjectKey, Tracked},
    inbound,
    keyed::Watches,
    outbound,
    pool::Pools,
    profile,
    status::{self, Judgement, Notice, Told},
    store::Store,
};

/// Everything that is known of the cluster, and everything that somebody watches. Clones are the same index.
///
/// The lock is never held across an `.await`: what is done under it is computing.
#[derive(Clone, Debug)]
pub struct Cluster {
    config: Arc<Config>,
    pools: Arc<Pools>,
    state: Arc<RwLock<State>>,
}

#[derive(Debug)]
struct State {
    store: Store,
    /// Counts the changes that statuses may depend on.
    judged: watch::Sender<u64>,
    endpoints: Watches<ServiceTarget, Endpoints>,
    profiles: Watches<(String, Target), Profile>,
    inbound: Watches<(WorkloadName, u16), InboundServer>,
    outbound: Watches<(String, Target), OutboundPolicy>,
}

/// What happened to an object.
pub enum Change<K: Tracked> {
    /// It was made or changed.
    Applied(Reduced<K>),
    /// It was deleted.
    Deleted(ObjectKey),
}

/// How large the index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sizes {
    /// Pods known.
    pub pods: usize,
    /// Services known.
    pub services: usize,
    /// EndpointSlices known.
    pub slices: usize,
    /// Servers known.
    pub servers: usize,
    /// Channels of endpoints.
    pub endpoint_watches: usize,
    /// Channels of profiles.
    pub profile_watches: usize,
    /// Channels of inbound policies.
    pub inbound_watches: usize,
    /// Channels of outbound policies.
    pub outbound_watches: usize,
}

impl Cluster {
    /// An empty index.
    pub fn new(config: Config) -> Self {
        let store = Store::default();
        let pools = store.pools.clone();
        let state = State {
            store,
            judged: watch::Sender::new(0),
            endpoints: Watches::new(),
            profiles: Watches::new(),
            inbound: Watches::new(),
            outbound: Watches::new(),
        };
        Self {
            config: Arc::new(config),
            pools,
            state: Arc::new(RwLock::new(state)),
        }
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Asks the tables something.
    pub(crate) fn read<T>(&self, ask: impl FnOnce(&Store) -> T) -> T {
        ask(&self.state.read().store)
    }

    /// What is kept of an object. Nothing is changed, and nobody is waited for.
    pub fn reduce<K: Tracked>(&self, object: &K) -> Reduced<K> {
        let ObjectKey { namespace, name } = ObjectKey::of(object);
        Reduced {
            key: ObjectKey {
                namespace: self.pools.names.share(namespace),
                name,
            },
            facts: object.facts(&self.pools),
            told: K::SUBJECT.map(|_| object.told()),
        }
    }

    /// An object was made or changed.
    pub fn apply<K: Tracked>(&self, object: &K) {
        self.apply_all(vec![Change::Applied(self.reduce(object))]);
    }

    /// An object was deleted. Kubernetes may replay deletions after a relist, so an unknown key is no error.
    pub fn delete<K: Tracked>(&self, key: &ObjectKey) {
        self.apply_all::<K>(vec![Change::Deleted(key.clone())]);
    }

    /// These objects were made, changed or deleted, in this order. Watchers see one change, and answers are computed
    /// once: a rollout of a large service is a burst of events.
    pub fn apply_all<K: Tracked>(&self, changes: Vec<Change<K>>) {
        let mut state = self.state.write();
        let mut dirty = Dirty::default();
        let mut changed = false;
        for change in changes {
            changed |= match change {
                Change::Applied(object) => put::<K>(&mut state.store, object, &mut dirty),
                Change::Deleted(key) => take::<K>(&mut state.store, &key, &mut dirty),
            };
        }
        if changed {
            state.refresh(&self.config, &dirty);
        }
    }

    /// These are all the objects of their kind. Watchers see one change, not many.
    pub fn reset<K: Tracked>(&self, objects: &[K]) {
        let mut listing = Listing::default();
        for object in objects {
            listing.push(self.reduce(object));
        }
        self.replace(listing);
    }

    /// The listing has all the objects of their kind. Watchers see one change, not many.
    pub fn replace<K: Tracked>(&self, listing: Listing<K>) {
        let Listing { objects, unreadable } = listing;
        let mut state = self.state.write();
        let mut dirty = Dirty::default();
        let listed: BTreeSet<&ObjectKey> = objects
            .iter()
            .map(|object| &object.key)
            .chain(&unreadable)
            .collect();
        let gone: Vec<ObjectKey> = K::table(&mut state.store)
            .keys()
            .filter(|key| !listed.contains(key))
            .collect();
        let mut changed = false;
        for key in &gone {
            changed |= take::<K>(&mut state.store, key, &mut dirty);
        }
        for object in objects {
            changed |= put::<K>(&mut state.store, object, &mut dirty);
        }
        if changed {
            state.refresh(&self.config, &dirty);
        }
    }

    /// Ends all watches: each is told that its value is gone for good. Those that begin later end after their first value.
    pub fn close(&self) {
        let mut state = self.state.write();
        let State {
            store: _,
            judged: _,
            endpoints,
            profiles,
            inbound,
            outbound,
        } = &mut *state;
        endpoints.close();
        profiles.close();
        inbound.close();
        outbound.close();
    }

    /// Changes whenever statuses may have to say something else; for whoever writes them.
    pub fn judged(&self) -> watch::Receiver<u64> {
        self.state.read().judged.subscribe()
    }

    /// The statuses that do not say what they should, in a fixed order.
    pub fn judgements(&self) -> Vec<Judgement> {
        status::judgements(&self.state.read().store, &self.config)
    }

    /// What people should be told of by Events, in a fixed order.
    pub fn notices(&self) -> Vec<Notice> {
        status::notices(&self.state.read().store, &self.config)
    }

    /// How large the index is.
    pub fn sizes(&self) -> Sizes {
        let state = self.state.read();
        let State {
            store,
            judged: _,
            endpoints,
            profiles,
            inbound,
            outbound,
        } = &*state;
        Sizes {
            pods: store.pods.len(),
            services: store.services.len(),
            slices: store.slices.len(),
            servers: store.servers.len(),
            endpoint_watches: endpoints.len(),
            profile_watches: profiles.len(),
            inbound_watches: inbound.len(),
            outbound_watches: outbound.len(),
        }
    }
}

/// All objects of a kind, as they come in page by page: only what is kept of them is held.
pub struct Listing<K: Tracked> {
    objects: Vec<Reduced<K>>,
    unreadable: Vec<ObjectKey>,
}

impl<K: Tracked> Default for Listing<K> {
    fn default() -> Self {
        Self {
            objects: Vec::new(),
            unreadable: Vec::new(),
        }
    }
}

impl<K: Tracked> Listing<K> {
    /// An object is there.
    pub fn push(&mut self, object: Reduced<K>) {
        self.objects.push(object);
    }

    /// An object is there, but cannot be read: what was known of it stays.
    pub fn keep(&mut self, key: ObjectKey) {
        self.unreadable.push(key);
    }
}

/// What is kept of an object.
pub struct Reduced<K: Tracked> {
    key: ObjectKey,
    facts: K::Facts,
    told: Option<Told>,
}

/// Takes an object into the tables; `false` when it is what was there.
fn put<K: Tracked>(store: &mut Store, object: Reduced<K>, dirty: &mut Dirty) -> bool {
    let Reduced { key, facts, told } = object;
    let told = told.is_some_and(|told| store.tell(K::SUBJECT, &key, Some(told)));
    if told {
        dirty.status();
    }
    if K::table(store).get(&key) == Some(&facts) {
        return told;
    }
    take_facts::<K>(store, &key, dirty);
    K::touch(store, &key, &facts, true, dirty);
    K::table(store).insert(&key, facts);
    if K::MATTERS_TO_STATUS {
        dirty.status();
    }
    true
}

fn take<K: Tracked>(store: &mut Store, key: &ObjectKey, dirty: &mut Dirty) -> bool {
    store.tell(K::SUBJECT, key, None);
    let taken = take_facts::<K>(store, key, dirty);
    if taken && K::MATTERS_TO_STATUS {
        dirty.status();
    }
    taken
}

fn take_facts<K: Tracked>(store: &mut Store, key: &ObjectKey, dirty: &mut Dirty) -> bool {
    let Some(facts) = K::table(store).remove(key) else {
        return false;
    };
    K::touch(store, key, &facts, false, dirty);
    true
}

impl State {
    fn refresh(&mut self, config: &Config, dirty: &Dirty) {
        let Self {
            store,
            judged,
            endpoints,
            profiles,
            inbound,
            outbound,
        } = self;
        let store = &*store;
        if dirty.any_status() {
            judged.send_modify(|count| *count = count.wrapping_add(1));
        }
        if dirty.any_endpoints() {
            let make = |target: &_, old: &_| Some(endpoints::compute(store, config, target, Some(old)));
            endpoints.refresh(|target| dirty.has_endpoints(target), make);
        }
        if dirty.any_profile() {
            let make = |(namespace, target): &(String, Target), _: &_| {
                Some(profile::compute(store, config, namespace, target))
            };
            profiles.refresh(|(_, target)| dirty.has_profile(target, store), make);
        }
        if dirty.any_inbound() {
            let make = |(workload, port): &(WorkloadName, u16), _: &_| {
                inbound::compute(store, config, workload, *port)
            };
            inbound.refresh(|(workload, _)| dirty.has_inbound(workload), make);
        }
        if dirty.any_outbound() {
            let make = |(namespace, target): &(String, Target), _: &_| {
                outbound::compute(store, config, namespace, target).ok()
            };
            outbound.refresh(|_| true, make);
        }
    }
}

impl DiscoverEndpoints for Cluster {
    fn endpoints(&self, target: &ServiceTarget) -> Result<Watched<Endpoints>, NotFound> {
        let mut state = self.state.write();
        let State { store, endpoints, .. } = &mut *state;
        let (namespace, name) = (target.service.namespace.clone(), target.service.name.clone());
        match store.services.find(&namespace, &name) {
            None => return Err(NotFound::Service { namespace, name }),
            Some(service) if service.external_name => return Err(NotFound::ExternalName { namespace, name }),
            Some(_) => {}
        }
        Ok(endpoints.subscribe(target, || endpoints::compute(store, &self.config, target, None)))
    }

    fn locate(&self, node: &str) -> ClientLocation {
        let zone = self
            .state
            .read()
            .store
            .nodes
            .find("", node)
            .and_then(|facts| facts.zone.clone());
        ClientLocation {
            node: Some(node.into()),
            zone,
        }
    }
}

impl DiscoverProfiles for Cluster {
    fn profile(&self, client_namespace: &str, target: &Target) -> Watched<Profile> {
        let mut state = self.state.write();
        let State { store, profiles, .. } = &mut *state;
        let key = (client_namespace.to_owned(), target.clone());
        profiles.subscribe(&key, || {
            profile::compute(store, &self.config, client_namespace, target)
        })
    }
}

impl DiscoverInbound for Cluster {
    fn inbound(&self, workload: &WorkloadName, port: u16) -> Result<Watched<InboundServer>, NotFound> {
        let key = (workload.clone(), port);
        if let Some(watched) = self.state.read().inbound.find(&key) {
            return Ok(watched);
        }
        let mut state = self.state.write();
        let State { store, inbound, .. } = &mut *state;
        let Some(first) = inbound::compute(store, &self.config, workload, port) else {
            return Err(NotFound::Workload(key.0));
        };
        Ok(inbound.subscribe(&key, || first))
    }
}

impl DiscoverOutbound for Cluster {
    fn outbound(&self, client_namespace: &str, target: &Target) -> Result<Watched<OutboundPolicy>, NotFound> {
        let watch = (client_namespace.to_owned(), target.clone());
        if let Some(watched) = self.state.read().outbound.find(&watch) {
            return Ok(watched);
        }
        let mut state = self.state.write();
        let State { store, outbound, .. } = &mut *state;
        let first = outbound::compute(store, &self.config, client_namespace, target)?;
        Ok(outbound.subscribe(&watch, || first))
    }
}
