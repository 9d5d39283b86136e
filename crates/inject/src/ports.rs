//! The ports that a pod's containers declare: which of them the proxy learns policies for at start, and which names
//! opaque-ports annotations may use.

use std::collections::{BTreeMap, BTreeSet};

use heddle_mesh::PortSet;
use k8s_openapi::{
    api::core::v1::{Container, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};

/// TCP ports by number and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContainerPorts {
    /// Declared TCP ports and the numeric ports of HTTP probes: Linkerd's pod-inbound-ports.
    pub(crate) inbound: BTreeSet<u16>,
    names: BTreeMap<String, u16>,
}

impl ContainerPorts {
    /// Reads containers and those init containers that keep running.
    pub(crate) fn of(spec: &PodSpec) -> Self {
        let sidecars = spec
            .init_containers
            .iter()
            .flatten()
            .filter(|c| c.restart_policy.as_deref() == Some("Always"));
        let mut ports = Self::default();
        for container in spec.containers.iter().chain(sidecars) {
            ports.add(container);
        }
        ports
    }

    /// The inbound ports and those that the pod's author names.
    pub(crate) fn with(&self, named: &PortSet) -> BTreeSet<u16> {
        self.inbound.iter().copied().chain(named.iter()).collect()
    }

    fn add(&mut self, container: &Container) {
        for declared in container.ports.iter().flatten() {
            // The API server fills in TCP where nothing is said.
            let tcp = declared
                .protocol
                .as_deref()
                .is_none_or(|protocol| protocol == "TCP");
            let Some(number) = u16::try_from(declared.container_port)
                .ok()
                .filter(|port| tcp && *port > 0)
            else {
                continue;
            };
            self.inbound.insert(number);
            if let Some(name) = &declared.name {
                self.names.insert(name.clone(), number);
            }
        }
        let probes = [
            &container.liveness_probe,
            &container.readiness_probe,
            &container.startup_probe,
        ];
        for probe in probes.into_iter().flatten() {
            self.inbound.extend(http_port(probe));
        }
    }

    /// Reads an opaque-ports annotation: numbers, ranges, and names of this pod's ports. Names that the pod lacks are
    /// returned beside the set: a namespace's annotation may well name a port that only some pods have.
    pub(crate) fn resolve(&self, value: &str) -> Result<(PortSet, Vec<String>), String> {
        let mut ports = PortSet::default();
        let mut unknown = Vec::new();
        for item in value.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            if let Ok(set) = item.parse::<PortSet>() {
                set.iter().for_each(|port| ports.insert(port));
            } else if let Some(port) = self.names.get(item) {
                ports.insert(*port);
            } else if is_port_name(item) {
                unknown.push(item.to_owned());
            } else {
                return Err(
                    "ports, ranges of ports and names of container ports, such as 25,8000-8010,mysql"
                        .to_owned(),
                );
            }
        }
        Ok((ports, unknown))
    }
}

fn http_port(probe: &Probe) -> Option<u16> {
    match probe.http_get.as_ref()?.port {
        IntOrString::Int(port) => u16::try_from(port).ok().filter(|port| *port > 0),
        IntOrString::String(_) => None,
    }
}

/// An IANA service name: at most 15 of a-z, 0-9 and `-`, with a letter.
fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && text.bytes().any(|b| b.is_ascii_lowercase())
        && !text.starts_with('-')
        && !text.ends_with('-')
}
