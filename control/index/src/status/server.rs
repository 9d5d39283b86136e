//! Servers that select the same port of the same pod: one of them is in force there, and the others are told.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::condition::Condition;
use crate::{
    facts::{ObjectKey, PodFacts},
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
        for (name, pod) in store.pods.namespace(namespace) {
            if !seen.insert((&pod.labels, &pod.ports)) {
                continue;
            }
            let named = pod.ports.iter().map(|(number, _)| *number);
            let ports: BTreeSet<u16> = numbers.iter().copied().chain(named).collect();
            for port in ports {
                self.find_at(store, namespace, name, pod, port);
            }
        }
    }

    fn find_at(&mut self, store: &Store, namespace: &str, name: &str, pod: &PodFacts, port: u16) {
        let Some((winner, _)) = store.server_of(namespace, pod, port) else {
            return;
        };
        let selecting = store
            .servers
            .namespace(namespace)
            .filter(|(_, server)| server.selects(pod, port));
        for (loser, _) in selecting.filter(|(name, _)| *name != winner) {
            let lost = self.0.entry(ObjectKey::new(namespace, loser)).or_default();
            lost.entry(winner.clone()).or_insert_with(|| Place {
                workload: workload(name, pod),
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
fn workload(name: &str, pod: &PodFacts) -> String {
    const OF_THE_POD: [&str; 4] = ["pod", "serviceaccount", "control_plane_ns", "pod_template_hash"];
    let owner = pod
        .metric_labels
        .iter()
        .find(|(kind, _)| !OF_THE_POD.contains(&kind.as_str()));
    match owner {
        Some((kind, name)) => format!("{kind} {name}"),
        None => format!("pod {name}"),
    }
}
