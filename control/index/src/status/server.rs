//! Servers that select the same port of the same workload: one of them is in force there, and the others are told.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use heddle_control_core::discover::WorkloadKind;

use super::condition::Condition;
use crate::{
    facts::{ObjectKey, WorkloadFacts},
    store::Store,
};

/// Servers by namespace and name, with those that take their place on some port of some pod.
#[derive(Debug, Default)]
pub(super) struct Overlaps(BTreeMap<ObjectKey, BTreeMap<String, Place>>);

/// One of the places where a Server loses; the first by pod and port.
#[derive(Clone, Debug)]
struct Place {
    workload: String,
    port: u16,
}

impl Overlaps {
    pub(super) fn find(store: &Store) -> Self {
        let mut all = Self::default();
        for namespace in store.servers.namespaces() {
            if store.servers.namespace(namespace).nth(1).is_some() {
                all.find_in(store, namespace);
            }
        }
        all
    }

    fn find_in(&mut self, store: &Store, namespace: &str) {
        let numbers: BTreeSet<u16> = store
            .servers
            .namespace(namespace)
            .filter_map(|(_, server)| server.port_number())
            .collect();
        // Replicas of one workload are alike: looking at one of them is enough.
        let mut seen = HashSet::new();
        let pods = store
            .pods
            .namespace(namespace)
            .map(|(name, pod)| (name, &pod.template.workload));
        let external = store.external_workloads.namespace(namespace);
        let external = external.map(|(name, external)| (name, &external.workload));
        for (name, facts) in pods.chain(external) {
            if !seen.insert((facts.kind, &facts.labels, &facts.ports)) {
                continue;
            }
            let named = facts.ports.iter().map(|(number, _)| *number);
            let ports: BTreeSet<u16> = numbers.iter().copied().chain(named).collect();
            for port in ports {
                self.find_at(store, namespace, name, facts, port);
            }
        }
    }

    fn find_at(&mut self, store: &Store, namespace: &str, name: &str, facts: &WorkloadFacts, port: u16) {
        let Some((winner, _)) = store.server_of(namespace, facts, port) else {
            return;
        };
        let selecting = store.servers_of(namespace, facts, port);
        for (loser, _) in selecting.filter(|(name, _)| *name != winner) {
            let lost = self.0.entry(ObjectKey::new(namespace, loser)).or_default();
            lost.entry(winner.to_string()).or_insert_with(|| Place {
                workload: workload(name, facts),
                port,
            });
        }
    }

    pub(super) fn judge(&self, key: &ObjectKey) -> Condition {
        let Some((winner, place)) = self.0.get(key).and_then(|lost| lost.first_key_value()) else {
            return Condition::without_conflicts();
        };
        Condition::overlapped(format!(
            "the older Server {winner} is in force in its place on port {} of {}: make the two select different \
             pods or ports, or delete one",
            place.port, place.workload
        ))
    }
}

/// What a pod belongs to. Not the pod itself where that can be helped: a message with its name would be written anew
/// with every rollout.
fn workload(name: &str, facts: &WorkloadFacts) -> String {
    const OF_ITSELF: [&str; 5] = [
        "pod",
        "external_workload",
        "serviceaccount",
        "control_plane_ns",
        "pod_template_hash",
    ];
    let owner = facts
        .metric_labels
        .iter()
        .find(|(kind, _)| !OF_ITSELF.contains(&kind.as_str()));
    match owner {
        Some((kind, name)) => format!("{kind} {name}"),
        None if facts.kind == WorkloadKind::Pod => format!("pod {name}"),
        None => format!("external workload {name}"),
    }
}
