//! `ProxyStamp`: does a pod carry the sidecar that it should?
//!
//! The stamp covers what can change while a workload's pod template stays as it is: the mesh's defaults, the
//! namespace's annotations, and the program that turns them into containers. What the template itself says about
//! containers and their ports is left out: changing it rolls the workload anyway, and other webhooks may add
//! containers to a pod that its template lacks, which must not look like a difference forever. Trust anchors are left
//! out, too: they rotate without a restart.

use std::fmt;

use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{annotations::InForce, ports::ContainerPorts, settings::Settings, sidecar};

/// Hex SHA-256 of everything that decides a sidecar's spec, apart from trust anchors and the pod's own ports.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct ProxyStamp(String);

impl ProxyStamp {
    /// The stamp as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Takes a stamp read from a pod's annotation; any text is a stamp, equal only to itself.
    pub fn from_annotation(text: &str) -> Self {
        Self(text.to_owned())
    }

    pub(crate) fn of(settings: &Settings, in_force: &[InForce]) -> Self {
        // An opaque-ports annotation may name container ports: its text counts, what the names mean in this pod does
        // not. Whether the pod or its namespace carries an annotation makes no difference to the sidecar.
        let mut neutral = settings.clone();
        if in_force
            .iter()
            .any(|set| set.name == heddle_mesh::annotation::OPAQUE_PORTS)
        {
            neutral.proxy.opaque_ports = heddle_mesh::PortSet::default();
        }
        let mut annotations: Vec<_> = in_force.iter().map(|set| (set.name, set.value.trim())).collect();
        annotations.sort_by_key(|(name, _)| *name);
        let none = ContainerPorts::default();
        // Serialized straight to text: the order of a JSON map's keys would depend on how serde_json was built, and
        // the injector and the reconciler are different programs.
        let parts = (
            sidecar::first(&neutral),
            sidecar::proxy(&neutral, &none, ""),
            sidecar::debug(&neutral),
            sidecar::volumes(&neutral),
            &neutral.proxy.opaque_ports,
            annotations,
        );
        let text = serde_json::to_string(&parts).expect("Kubernetes objects have no fallible serializers");
        Self(hex::encode(Sha256::digest(text.as_bytes())))
    }
}

impl fmt::Display for ProxyStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
