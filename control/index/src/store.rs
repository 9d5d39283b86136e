//! The tables of facts, and what is derived of them to find things fast.

use std::{
    borrow::Borrow,
    collections::{BTreeMap, hash_map::Entry},
    hash::Hash,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ahash::AHashMap;
use heddle_control_core::discover::{WorkloadKind, WorkloadName};
use heddle_mesh::PortSet;

use crate::{
    config::Config,
    facts::{
        ConnectionRouteFacts, EgressFacts, ExternalWorkloadFacts, GrpcRouteFacts, HttpRouteFacts,
        MeshTlsFacts, NamespaceFacts, NetworkFacts, NodeFacts, ObjectKey, Parent, ParentKind, PodFacts,
        PolicyFacts, ProfileFacts, RateLimitFacts, RouteKind, ServerAuthorizationFacts, ServerFacts,
        ServiceFacts, SliceFacts, WorkloadFacts,
    },
    pool::Pools,
    status::{Subject, Told},
};

/// Facts of one kind, by namespace and name.
#[derive(Debug)]
pub struct Table<F>(BTreeMap<Arc<str>, BTreeMap<Arc<str>, F>>);

/// Everything that is known of the cluster.
#[derive(Debug, Default)]
pub struct Store {
    pub(crate) pods: Table<PodFacts>,
    pub(crate) external_workloads: Table<ExternalWorkloadFacts>,
    pub(crate) services: Table<ServiceFacts>,
    pub(crate) slices: Table<SliceFacts>,
    pub(crate) namespaces: Table<NamespaceFacts>,
    pub(crate) nodes: Table<NodeFacts>,
    pub(crate) servers: Table<ServerFacts>,
    pub(crate) policies: Table<PolicyFacts>,
    pub(crate) server_authorizations: Table<ServerAuthorizationFacts>,
    pub(crate) mesh_tls: Table<MeshTlsFacts>,
    pub(crate) networks: Table<NetworkFacts>,
    pub(crate) egress_networks: Table<EgressFacts>,
    pub(crate) rate_limits: Table<RateLimitFacts>,
    pub(crate) policy_http_routes: Table<HttpRouteFacts>,
    pub(crate) gateway_http_routes: Table<HttpRouteFacts>,
    pub(crate) grpc_routes: Table<GrpcRouteFacts>,
    pub(crate) tls_routes: Table<ConnectionRouteFacts>,
    /// The same objects, in clusters that have only this version or both.
    pub(crate) tls_routes_v1alpha2: Table<ConnectionRouteFacts>,
    pub(crate) tcp_routes: Table<ConnectionRouteFacts>,
    pub(crate) service_profiles: Table<ProfileFacts>,
    /// What facts share.
    pub(crate) pools: Arc<Pools>,
    /// The objects that are judged, and what their statuses say.
    pub(crate) told: BTreeMap<(Subject, ObjectKey), Told>,

    /// Pods before external workloads; addresses may be used anew before the old owner's end is known.
    pub(crate) workloads_by_ip: Links<IpAddr, Arc<WorkloadName>>,
    pub(crate) pods_by_host_port: Links<SocketAddr, ObjectKey>,
    pub(crate) services_by_ip: Links<IpAddr, ObjectKey>,
    slices_by_service: Links<ObjectKey, Arc<str>>,
    /// The slices whose endpoints name a workload.
    slices_by_workload: Links<Arc<WorkloadName>, ObjectKey>,
    /// The routes of each parent.
    attached: AHashMap<(ParentKind, ObjectKey), Vec<Attached>>,
}

/// What is found by a key, in order; keys that lead nowhere are not kept. Most keys lead to one value.
#[derive(Debug)]
pub(crate) struct Links<K, V>(AHashMap<K, Box<[V]>>);

impl<K, V> Default for Links<K, V> {
    fn default() -> Self {
        Self(AHashMap::new())
    }
}

impl<K: Eq + Hash, V: Ord + Clone> Links<K, V> {
    pub(crate) fn get<Q: Eq + Hash>(&self, key: &Q) -> impl Iterator<Item = &V>
    where
        K: Borrow<Q>,
    {
        self.0.get(key).map(Box::as_ref).unwrap_or_default().iter()
    }

    /// Adds (`added`) or removes a link.
    pub(crate) fn link(&mut self, key: K, value: &V, added: bool) {
        if added {
            let values = self.0.entry(key).or_default();
            if let Err(at) = values.binary_search(value) {
                let mut more = std::mem::take(values).into_vec();
                more.reserve_exact(1);
                more.insert(at, value.clone());
                *values = more.into();
            }
        } else if let Entry::Occupied(mut entry) = self.0.entry(key) {
            if let Ok(at) = entry.get().binary_search(value) {
                let mut fewer = std::mem::take(entry.get_mut()).into_vec();
                fewer.remove(at);
                entry.insert(fewer.into());
            }
            if entry.get().is_empty() {
                entry.remove();
            }
        }
    }
}

/// A usable route of a parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(crate) kind: RouteKind,
    pub(crate) route: ObjectKey,
    /// `None`: all of the parent's ports.
    pub(crate) port: Option<u16>,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<F> Table<F> {
    pub(crate) fn get(&self, key: &ObjectKey) -> Option<&F> {
        self.find(&key.namespace, &key.name)
    }

    pub(crate) fn find(&self, namespace: &str, name: &str) -> Option<&F> {
        self.0.get(namespace)?.get(name)
    }

    /// The objects of one namespace in order of their names.
    pub(crate) fn namespace(&self, namespace: &str) -> impl Iterator<Item = (&Arc<str>, &F)> {
        self.0.get(namespace).into_iter().flatten()
    }

    /// The namespaces that have objects.
    pub(crate) fn namespaces(&self) -> impl Iterator<Item = &Arc<str>> {
        self.0.keys()
    }

    /// All objects with their namespaces and names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<str>, &F)> {
        self.0.iter().flat_map(|(namespace, objects)| {
            objects.iter().map(move |(name, facts)| (namespace, name, facts))
        })
    }

    pub(crate) fn insert(&mut self, key: &ObjectKey, facts: F) {
        self.0
            .entry(key.namespace.clone())
            .or_default()
            .insert(key.name.clone(), facts);
    }

    pub(crate) fn remove(&mut self, key: &ObjectKey) -> Option<F> {
        let objects = self.0.get_mut(&key.namespace)?;
        let facts = objects.remove(&key.name)?;
        if objects.is_empty() {
            self.0.remove(&key.namespace);
        }
        Some(facts)
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = ObjectKey> {
        self.iter().map(|(namespace, name, _)| ObjectKey {
            namespace: namespace.clone(),
            name: name.clone(),
        })
    }

    pub(crate) fn len(&self) -> usize {
        self.0.values().map(BTreeMap::len).sum()
    }
}

impl Store {
    pub(crate) fn link_slice(
        &mut self,
        service: &ObjectKey,
        slice: &ObjectKey,
        facts: &SliceFacts,
        added: bool,
    ) {
        self.slices_by_service.link(service.clone(), &slice.name, added);
        for workload in facts
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.workload.as_ref())
        {
            self.slices_by_workload.link(workload.clone(), slice, added);
        }
    }

    /// Keeps what an object's status says, or forgets it; `false` when nothing is new.
    pub(crate) fn tell(&mut self, subject: Option<Subject>, key: &ObjectKey, told: Option<Told>) -> bool {
        let Some(subject) = subject else { return false };
        let id = (subject, key.clone());
        // A Service has no conditions: there is nothing to keep of one without problems.
        match told.filter(|told| subject != Subject::Service || told.has_problems()) {
            None => self.told.remove(&id).is_some(),
            Some(told) if self.told.get(&id) == Some(&told) => false,
            Some(told) => {
                self.told.insert(id, told);
                true
            }
        }
    }

    /// Adds or removes one reference from a route to a parent; a route may have several to the same.
    pub(crate) fn attach(&mut self, kind: RouteKind, route: &ObjectKey, parent: &Parent, added: bool) {
        let key = (parent.kind, ObjectKey::new(&parent.namespace, &parent.name));
        let one = Attached {
            kind,
            route: route.clone(),
            port: parent.port,
        };
        let all = self.attached.entry(key.clone()).or_default();
        match (added, all.iter().position(|other| *other == one)) {
            (true, _) => all.push(one),
            (false, Some(at)) => {
                all.swap_remove(at);
            }
            (false, None) => {}
        }
        if all.is_empty() {
            self.attached.remove(&key);
        }
    }

    /// The usable routes that name a parent, in no order.
    pub(crate) fn attached_to(&self, kind: ParentKind, parent: &ObjectKey) -> &[Attached] {
        self.attached
            .get(&(kind, parent.clone()))
            .map_or(&[], Vec::as_slice)
    }

    /// The services whose slices name a workload.
    pub(crate) fn services_of(&self, workload: &WorkloadName) -> impl Iterator<Item = ObjectKey> {
        self.slices_by_workload.get(workload).filter_map(|slice| {
            let service = self.slices.get(slice)?.service.as_ref()?;
            Some(slice.beside(service))
        })
    }

    pub(crate) fn slices_of(&self, service: &ObjectKey) -> impl Iterator<Item = &SliceFacts> {
        let names = self.slices_by_service.get(service);
        names.filter_map(|name| self.slices.find(&service.namespace, name))
    }

    /// The service that has an address.
    pub(crate) fn service_at(&self, ip: IpAddr) -> Option<(&ObjectKey, &ServiceFacts)> {
        let mut services = self.services_by_ip.get(&ip);
        services.find_map(|key| Some((key, self.services.get(key)?)))
    }

    /// The workload that has an address.
    pub(crate) fn workload_at(&self, ip: IpAddr) -> Option<(&Arc<WorkloadName>, Found<'_>)> {
        let mut names = self.workloads_by_ip.get(&ip);
        names.find_map(|name| Some((name, self.workload(name)?)))
    }

    /// The pod that a port of its node leads to, and its own address.
    pub(crate) fn pod_at_host_port(&self, addr: SocketAddr) -> Option<(&ObjectKey, &PodFacts, SocketAddr)> {
        let mut pods = self.pods_by_host_port.get(&addr);
        pods.find_map(|key| {
            let pod = self.pods.get(key)?;
            let (_, inside) = pod.host_ports.iter().find(|(outside, _)| *outside == addr)?;
            Some((key, pod, *inside))
        })
    }

    /// A workload by name.
    pub(crate) fn workload(&self, name: &WorkloadName) -> Option<Found<'_>> {
        let WorkloadName {
            kind,
            namespace,
            name,
        } = name;
        match kind {
            WorkloadKind::Pod => self.pods.find(namespace, name).map(Found::Pod),
            WorkloadKind::ExternalWorkload => {
                self.external_workloads.find(namespace, name).map(Found::External)
            }
        }
    }

    pub(crate) fn is_opaque_on_service(&self, config: &Config, service: &ObjectKey, port: u16) -> bool {
        let own = self
            .services
            .get(service)
            .and_then(|service| service.opaque_ports.as_ref());
        self.opaque_ports(config, own, &service.namespace).contains(port)
    }

    /// By annotation, or because a Server of the workload's says so.
    pub(crate) fn is_opaque_on_workload(
        &self,
        config: &Config,
        namespace: &str,
        workload: &WorkloadFacts,
        port: u16,
    ) -> bool {
        self.opaque_ports(config, workload.opaque_ports.as_ref(), namespace)
            .contains(port)
            || self
                .server_of(namespace, workload, port)
                .is_some_and(|(_, server)| server.is_opaque())
    }

    /// A TLSRoute, in whichever version the cluster has it.
    pub(crate) fn tls_route(&self, key: &ObjectKey) -> Option<&ConnectionRouteFacts> {
        self.tls_routes
            .get(key)
            .or_else(|| self.tls_routes_v1alpha2.get(key))
    }

    /// An object's own annotation comes before its namespace's, and that before the default.
    pub(crate) fn opaque_ports<'a>(
        &'a self,
        config: &'a Config,
        own: Option<&'a PortSet>,
        namespace: &str,
    ) -> &'a PortSet {
        let inherited = || {
            self.namespaces
                .find("", namespace)
                .and_then(|namespace| namespace.opaque_ports.as_ref())
        };
        own.or_else(inherited).unwrap_or(&config.opaque_ports)
    }

    /// The Server that selects a port of a workload: of several the oldest, then the first by name.
    pub(crate) fn server_of(
        &self,
        namespace: &str,
        workload: &WorkloadFacts,
        port: u16,
    ) -> Option<(&Arc<str>, &ServerFacts)> {
        self.servers_of(namespace, workload, port)
            .min_by_key(|(name, server)| (server.created, *name))
    }

    /// All Servers that select a port of a workload.
    pub(crate) fn servers_of(
        &self,
        namespace: &str,
        workload: &WorkloadFacts,
        port: u16,
    ) -> impl Iterator<Item = (&Arc<str>, &ServerFacts)> {
        self.servers
            .namespace(namespace)
            .filter(move |(_, server)| server.selects(workload, port))
    }
}

/// A workload that has been found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Found<'a> {
    Pod(&'a PodFacts),
    External(&'a ExternalWorkloadFacts),
}

impl<'a> Found<'a> {
    pub(crate) fn workload(self) -> &'a WorkloadFacts {
        match self {
            Self::Pod(pod) => &pod.template.workload,
            Self::External(external) => &external.workload,
        }
    }
}
