//! Ports as our CRDs name them: by number, or by the name of a container port.

use std::{borrow::Cow, fmt, num::NonZeroU16};

use k8s_openapi::api::core::v1::{Container, Pod};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A port by number, or by the name that a pod's container gives it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// A port number.
    Number(NonZeroU16),
    /// The name of a container port.
    Name(String),
}

impl PortRef {
    /// Whether this names the port with number `number` and, if it has one, name `name`.
    pub fn matches(&self, number: u16, name: Option<&str>) -> bool {
        match self {
            Self::Number(mine) => mine.get() == number,
            Self::Name(mine) => name == Some(mine),
        }
    }

    /// The TCP port numbers of a pod that this names, ascending.
    ///
    /// A number names itself, whether a container declares it or not. A name may stand for several numbers, since
    /// two containers may use the same name; it stands for none when no container has it.
    pub fn numbers_in(&self, pod: &Pod) -> Vec<NonZeroU16> {
        match self {
            Self::Number(number) => vec![*number],
            Self::Name(name) => {
                let mut numbers: Vec<_> = tcp_ports(pod)
                    .filter(|(_, port_name)| *port_name == Some(name))
                    .map(|(number, _)| number)
                    .collect();
                numbers.sort_unstable();
                numbers.dedup();
                numbers
            }
        }
    }
}

/// All TCP ports that a pod's containers declare, those of native sidecars (restartable init containers) included.
pub fn tcp_ports(pod: &Pod) -> impl Iterator<Item = (NonZeroU16, Option<&str>)> {
    let spec = pod.spec.as_ref();
    let sidecars = spec
        .and_then(|spec| spec.init_containers.as_deref())
        .unwrap_or_default()
        .iter()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    sidecars.chain(containers).flat_map(container_tcp_ports)
}

fn container_tcp_ports(container: &Container) -> impl Iterator<Item = (NonZeroU16, Option<&str>)> {
    container
        .ports
        .as_deref()
        .unwrap_or_default()
        .iter()
        .filter_map(|port| {
            let number = u16::try_from(port.container_port)
                .ok()
                .and_then(NonZeroU16::new)?;
            match port.protocol.as_deref() {
                None | Some("TCP") => Some((number, port.name.as_deref())),
                Some(_) => None,
            }
        })
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl From<NonZeroU16> for PortRef {
    fn from(number: NonZeroU16) -> Self {
        Self::Number(number)
    }
}

impl JsonSchema for PortRef {
    fn schema_name() -> Cow<'static, str> {
        "PortRef".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // A bound on numbers does not apply to strings, nor one on lengths to numbers, so both can stand side by side. A
        // name that no container port can have, such as "80", is Linkerd's to admit; the webhook warns of it.
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "minimum": 1,
            "maximum": 65535,
            "minLength": 1,
            "maxLength": 63,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({"spec": {
            "initContainers": [
                {"name": "once", "ports": [{"name": "http", "containerPort": 1}]},
                {"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 4191}]},
            ],
            "containers": [
                {"name": "a", "ports": [{"name": "http", "containerPort": 8080}, {"containerPort": 9000}]},
                {"name": "b", "ports": [{"name": "dns", "containerPort": 53, "protocol": "UDP"}]},
            ],
        }}))
        .expect("a pod")
    }

    fn numbers(port: &PortRef) -> Vec<u16> {
        port.numbers_in(&pod()).into_iter().map(NonZeroU16::get).collect()
    }

    #[test]
    fn a_name_stands_for_the_tcp_ports_of_running_containers() {
        assert_eq!(numbers(&PortRef::Name("http".into())), [4191, 8080]);
        assert_eq!(numbers(&PortRef::Name("dns".into())), [0_u16; 0]);
        assert_eq!(numbers(&PortRef::Number(NonZeroU16::MIN)), [1]);
    }

    #[test]
    fn reads_numbers_and_names_and_refuses_zero() {
        let read = |text| serde_json::from_str::<PortRef>(text);
        assert_eq!(read("8080").ok(), NonZeroU16::new(8080).map(PortRef::Number));
        assert_eq!(read("\"http\"").ok(), Some(PortRef::Name("http".into())));
        for bad in ["0", "65536", "-1", "1.5", "null"] {
            assert!(read(bad).is_err(), "{bad} was taken");
        }
    }

    #[test]
    fn matches_by_number_or_name() {
        let http = PortRef::Name("http".into());
        assert!(http.matches(80, Some("http")));
        assert!(!http.matches(80, None) && !http.matches(80, Some("grpc")));
        assert!(PortRef::from(NonZeroU16::MIN).matches(1, Some("http")));
    }
}
