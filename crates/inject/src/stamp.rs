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

use crate::{annotations::InForce, settings::Settings, sidecar::Sidecar};

/// A sidecar's spec as text has about this many bytes.
const TEXT_BYTES_EXPECTED: usize = 8 << 10;

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

    /// The sidecar that the settings make, and its stamp.
    pub(crate) fn of(settings: &mut Settings, in_force: &[InForce]) -> (Sidecar, Self) {
        // An opaque-ports annotation may name container ports: its text counts, what the names mean in this pod does
        // not. Whether the pod or its namespace carries an annotation makes no difference to the sidecar.
        let annotated = in_force
            .iter()
            .any(|set| set.name == heddle_mesh::annotation::OPAQUE_PORTS);
        let named = annotated.then(|| std::mem::take(&mut settings.proxy.opaque_ports));
        let sidecar = Sidecar::of(settings);
        let stamp = Self::of_neutral(&sidecar, settings, in_force);
        if let Some(named) = named {
            settings.proxy.opaque_ports = named;
        }
        (sidecar, stamp)
    }

    fn of_neutral(sidecar: &Sidecar, settings: &Settings, in_force: &[InForce]) -> Self {
        let Sidecar {
            first,
            proxy,
            debug,
            volumes,
        } = sidecar;
        let mut annotations: Vec<_> = in_force.iter().map(|set| (set.name, set.value.trim())).collect();
        annotations.sort_by_key(|(name, _)| *name);
        // Serialized straight to text: the order of a JSON map's keys would depend on how serde_json was built, and
        // the injector and the reconciler are different programs.
        let parts = (
            first,
            proxy,
            debug,
            volumes,
            &settings.proxy.opaque_ports,
            annotations,
        );
        let mut text = Vec::with_capacity(TEXT_BYTES_EXPECTED);
        serde_json::to_writer(&mut text, &parts).expect("Kubernetes objects have no fallible serializers");
        Self(hex::encode(Sha256::digest(&text)))
    }
}

impl fmt::Display for ProxyStamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
