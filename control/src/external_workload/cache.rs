//! What is known of workloads, Services and slices, and which Services an event is about.

use std::collections::{BTreeMap, BTreeSet};

use heddle_k8s::external_workload::ExternalWorkload;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{Resource, ResourceExt as _, runtime::watcher::Event};

use super::plan::{self, Change, LABEL_SERVICE, ServiceFacts, WorkloadFacts};

/// Namespace and name.
pub(super) type ServiceKey = (String, String);
type Key = (String, String);

/// Objects of one kind.
#[derive(Debug)]
struct Table<F> {
    objects: BTreeMap<Key, F>,
    /// Keys of a list that is still coming in.
    listed: Option<BTreeSet<Key>>,
    is_complete: bool,
}

impl<F> Default for Table<F> {
    fn default() -> Self {
        Self {
            objects: BTreeMap::new(),
            listed: None,
            is_complete: false,
        }
    }
}

impl<F> Table<F> {
    /// Takes an event in; returns what was and what is, of each object that it changes.
    fn take<K: Resource>(
        &mut self,
        event: Event<K>,
        reduce: impl Fn(&K) -> Option<F>,
    ) -> Vec<(Key, Option<F>)> {
        match event {
            Event::Init => {
                self.listed = Some(BTreeSet::new());
                Vec::new()
            }
            Event::InitApply(object) | Event::Apply(object) => {
                let key = key(&object);
                if let Some(listed) = &mut self.listed {
                    listed.insert(key.clone());
                }
                let old = match reduce(&object) {
                    Some(facts) => self.objects.insert(key.clone(), facts),
                    None => self.objects.remove(&key),
                };
                vec![(key, old)]
            }
            Event::Delete(object) => {
                let key = key(&object);
                let old = self.objects.remove(&key);
                vec![(key, old)]
            }
            Event::InitDone => {
                self.is_complete = true;
                let listed = self.listed.take().unwrap_or_default();
                let gone = self.objects.extract_if(.., |key, _| !listed.contains(key));
                gone.map(|(key, old)| (key, Some(old))).collect()
            }
        }
    }

    fn in_namespace<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = (&'a Key, &'a F)> {
        let from = (namespace.to_owned(), String::new());
        self.objects
            .range(from..)
            .take_while(move |((theirs, _), _)| theirs == namespace)
    }
}

/// All that is known.
#[derive(Debug, Default)]
pub(super) struct Cache {
    workloads: Table<WorkloadFacts>,
    services: Table<ServiceFacts>,
    slices: Table<EndpointSlice>,
    pub(super) watches_services: bool,
}

impl Cache {
    /// Whether all that plans depend on is known.
    pub(super) fn is_complete(&self) -> bool {
        self.workloads.is_complete
            && self.slices.is_complete
            && (self.services.is_complete || !self.needs_services())
    }

    pub(super) fn needs_services(&self) -> bool {
        !self.workloads.objects.is_empty() || !self.slices.objects.is_empty()
    }

    pub(super) fn forget_services(&mut self) {
        self.services = Table::default();
        self.watches_services = false;
    }

    pub(super) fn workload(&mut self, event: Event<ExternalWorkload>) -> Vec<ServiceKey> {
        let changed = self
            .workloads
            .take(event, |workload| Some(WorkloadFacts::of(workload)));
        let mut keys = Vec::new();
        for (key, old) in changed {
            let new = self.workloads.objects.get(&key);
            if old.as_ref() == new {
                continue;
            }
            let selecting = self.services.in_namespace(&key.0).filter(|(_, service)| {
                let selects =
                    |workload: Option<&WorkloadFacts>| workload.is_some_and(|one| service.selects(one));
                selects(old.as_ref()) || selects(new)
            });
            keys.extend(selecting.map(|(key, _)| key.clone()));
        }
        keys
    }

    pub(super) fn service(&mut self, event: Event<Service>) -> Vec<ServiceKey> {
        let changed = self.services.take(event, ServiceFacts::of);
        let differs =
            |(key, old): &(Key, Option<ServiceFacts>)| self.services.objects.get(key) != old.as_ref();
        changed.into_iter().filter(differs).map(|(key, _)| key).collect()
    }

    pub(super) fn slice(&mut self, event: Event<EndpointSlice>) -> Vec<ServiceKey> {
        let changed = self.slices.take(event, |slice| {
            let mut slice = slice.clone();
            slice.metadata.managed_fields = None;
            Some(slice)
        });
        let mut keys = Vec::new();
        for (key, old) in changed {
            let new = self.slices.objects.get(&key);
            let version = |slice: Option<&EndpointSlice>| {
                slice.and_then(|slice| slice.metadata.resource_version.clone())
            };
            // An echo of our own write is nothing to look at.
            if version(old.as_ref()) != version(new) || new.is_none() {
                keys.extend(old.iter().chain(new).filter_map(service_of));
            }
        }
        keys
    }

    /// A slice as the API server has it after our write.
    pub(super) fn wrote(&mut self, mut slice: EndpointSlice) {
        slice.metadata.managed_fields = None;
        let key = key(&slice);
        if let Some(listed) = &mut self.slices.listed {
            listed.insert(key.clone());
        }
        self.slices.objects.insert(key, slice);
    }

    pub(super) fn deleted(&mut self, namespace: &str, name: &str) {
        self.slices
            .objects
            .remove(&(namespace.to_owned(), name.to_owned()));
    }

    /// What is to be done about a Service's slices.
    pub(super) fn plan(&self, namespace: &str, name: &str) -> Vec<Change> {
        let service = self
            .services
            .objects
            .get(&(namespace.to_owned(), name.to_owned()));
        let workloads = self
            .workloads
            .in_namespace(namespace)
            .map(|(_, workload)| workload);
        let selected = workloads.filter(|workload| service.is_some_and(|service| service.selects(workload)));
        let slices = self.slices.in_namespace(namespace).map(|(_, slice)| slice);
        let theirs = slices.filter(|slice| {
            slice
                .labels()
                .get(LABEL_SERVICE)
                .is_some_and(|theirs| theirs == name)
        });
        plan::plan(
            namespace,
            service,
            &selected.collect::<Vec<_>>(),
            &theirs.collect::<Vec<_>>(),
        )
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

fn service_of(slice: &EndpointSlice) -> Option<ServiceKey> {
    let service = slice.labels().get(LABEL_SERVICE)?;
    Some((slice.namespace()?, service.clone()))
}
