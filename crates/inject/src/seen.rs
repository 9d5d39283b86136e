//! What a decision looks at of a pod. Reading that alone spares an admission most of the pod, its environment above all.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{Container, ContainerPort, Pod, PodOS, PodSpec, Probe, Volume},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use serde::Deserialize;

/// A pod of which only that is read which [`decide`](crate::decide) and [`Owner::of_pod`](crate::Owner::of_pod) look at;
/// the rest is as if it were not there.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(from = "Seen")]
pub struct SeenPod(pub Pod);

#[derive(Deserialize)]
struct Seen {
    metadata: Option<SeenMeta>,
    spec: Option<SeenSpec>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenMeta {
    name: Option<String>,
    generate_name: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
    owner_references: Option<Vec<OwnerReference>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenSpec {
    containers: Option<Vec<SeenContainer>>,
    init_containers: Option<Vec<SeenContainer>>,
    volumes: Option<Vec<SeenVolume>>,
    host_network: Option<bool>,
    os: Option<PodOS>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SeenContainer {
    name: Option<String>,
    ports: Option<Vec<ContainerPort>>,
    liveness_probe: Option<Probe>,
    readiness_probe: Option<Probe>,
    startup_probe: Option<Probe>,
    restart_policy: Option<String>,
}

#[derive(Deserialize)]
struct SeenVolume {
    name: Option<String>,
}

impl From<Seen> for SeenPod {
    fn from(Seen { metadata, spec }: Seen) -> Self {
        Self(Pod {
            metadata: metadata.unwrap_or_default().into(),
            spec: spec.map(Into::into),
            status: None,
        })
    }
}

impl From<SeenMeta> for ObjectMeta {
    fn from(seen: SeenMeta) -> Self {
        let SeenMeta {
            name,
            generate_name,
            labels,
            annotations,
            owner_references,
        } = seen;
        Self {
            name,
            generate_name,
            labels,
            annotations,
            owner_references,
            ..Self::default()
        }
    }
}

impl From<SeenSpec> for PodSpec {
    fn from(seen: SeenSpec) -> Self {
        let SeenSpec {
            containers,
            init_containers,
            volumes,
            host_network,
            os,
        } = seen;
        let all = |list: Vec<SeenContainer>| list.into_iter().map(Container::from).collect();
        Self {
            containers: containers.map(all).unwrap_or_default(),
            init_containers: init_containers.map(all),
            volumes: volumes.map(|list| list.into_iter().map(Volume::from).collect()),
            host_network,
            os,
            ..Self::default()
        }
    }
}

impl From<SeenContainer> for Container {
    fn from(seen: SeenContainer) -> Self {
        let SeenContainer {
            name,
            ports,
            liveness_probe,
            readiness_probe,
            startup_probe,
            restart_policy,
        } = seen;
        Self {
            name: name.unwrap_or_default(),
            ports,
            liveness_probe,
            readiness_probe,
            startup_probe,
            restart_policy,
            ..Self::default()
        }
    }
}

impl From<SeenVolume> for Volume {
    fn from(seen: SeenVolume) -> Self {
        Self {
            name: seen.name.unwrap_or_default(),
            ..Self::default()
        }
    }
}
