//! Pods: addresses, ports, identity, and the settings of the proxy inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_control_core::{DefaultPolicy, endpoints::Labels};
use heddle_k8s::port::tcp_ports;
use heddle_mesh::{PortSet, annotation, env, label, port};
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) service_account: String,
    pub(crate) node: Option<Arc<str>>,
    /// The pod's own addresses: none when it shares its node's, or has ended and given them back.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) ports: Vec<(u16, Option<String>)>,
    /// Paths that the kubelet probes, by port.
    pub(crate) probes: BTreeMap<u16, BTreeSet<String>>,
    pub(crate) default_policy: Option<DefaultPolicy>,
    pub(crate) opaque_ports: Option<PortSet>,
    pub(crate) skipped_ports: PortSet,
    pub(crate) proxy: Option<ProxyFacts>,
    /// Labels that metrics of traffic to the pod carry.
    pub(crate) metric_labels: Arc<Labels>,
}

/// The proxy inside a meshed pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProxyFacts {
    /// The control plane that it belongs to.
    pub(crate) control_namespace: String,
    pub(crate) inbound_port: u16,
    /// Ports that the proxy itself serves.
    pub(crate) own_ports: [u16; 2],
}

impl Tracked for Pod {
    type Facts = PodFacts;

    fn facts(&self) -> PodFacts {
        let empty = PodSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let service_account = spec
            .service_account_name
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into());
        PodFacts {
            labels: self.labels().clone(),
            node: spec.node_name.as_deref().map(Arc::from),
            ips: own_ips(self),
            ports: tcp_ports(self)
                .map(|(number, name)| (number.get(), name.map(str::to_owned)))
                .collect(),
            probes: probes(spec),
            default_policy: super::annotation(self, annotation::DEFAULT_INBOUND_POLICY),
            opaque_ports: super::annotation(self, annotation::OPAQUE_PORTS),
            skipped_ports: skipped_ports(self, spec),
            proxy: proxy(self, spec),
            metric_labels: Arc::new(metric_labels(self, &service_account)),
            service_account,
        }
    }

    fn table(store: &mut Store) -> &mut Table<PodFacts> {
        &mut store.pods
    }

    fn touch(store: &mut Store, key: &ObjectKey, facts: &PodFacts, added: bool, dirty: &mut Dirty) {
        for ip in &facts.ips {
            let pods = store.pods_by_ip.entry(*ip).or_default();
            match added {
                true => pods.insert(key.clone()),
                false => pods.remove(key),
            };
            if pods.is_empty() {
                store.pods_by_ip.remove(ip);
            }
            dirty.profile_ip(*ip);
        }
        for service in store.services_of_pod(key) {
            dirty.service_endpoints(service);
        }
        dirty.pod_inbound(key.clone());
    }
}

impl PodFacts {
    /// The names that containers give to a port.
    pub(crate) fn port_names(&self, number: u16) -> impl Iterator<Item = &str> {
        self.ports
            .iter()
            .filter(move |(port, _)| *port == number)
            .filter_map(|(_, name)| name.as_deref())
    }
}

fn own_ips(pod: &Pod) -> Vec<IpAddr> {
    let host_network = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.host_network)
        .unwrap_or(false);
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    // The addresses of a pod that has ended may by now be another's.
    if host_network || matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut ips: Vec<IpAddr> = status
        .pod_ip
        .as_deref()
        .into_iter()
        .chain(many)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    let mut seen = BTreeSet::new();
    ips.retain(|ip| seen.insert(*ip));
    ips
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn probes(spec: &PodSpec) -> BTreeMap<u16, BTreeSet<String>> {
    let mut probes: BTreeMap<u16, BTreeSet<String>> = BTreeMap::new();
    // The proxy's own probes never pass through it.
    for container in containers(spec).filter(|container| container.name != port::PROXY_CONTAINER) {
        let all = [
            &container.liveness_probe,
            &container.readiness_probe,
            &container.startup_probe,
        ];
        for get in all.into_iter().filter_map(|probe| {
            probe
                .as_ref()
                .and_then(|Probe { http_get, .. }| http_get.as_ref())
        }) {
            let number = match &get.port {
                IntOrString::Int(number) => u16::try_from(*number).ok(),
                IntOrString::String(name) => named_port(container, name),
            };
            if let Some(number) = number {
                probes
                    .entry(number)
                    .or_default()
                    .insert(get.path.clone().unwrap_or_else(|| "/".into()));
            }
        }
    }
    probes
}

fn named_port(container: &Container, name: &str) -> Option<u16> {
    let port = container
        .ports
        .iter()
        .flatten()
        .find(|port| port.name.as_deref() == Some(name))?;
    u16::try_from(port.container_port).ok()
}

/// The annotation is what was asked for, the init container's arguments are what is in force.
fn skipped_ports(pod: &Pod, spec: &PodSpec) -> PortSet {
    let asked: Option<PortSet> = super::annotation(pod, annotation::SKIP_INBOUND_PORTS);
    let mut ports = asked.unwrap_or_default();
    let init = spec
        .init_containers
        .iter()
        .flatten()
        .find(|container| container.name == port::INIT_CONTAINER);
    let words: Vec<&str> = init
        .into_iter()
        .flat_map(|c| c.command.iter().flatten().chain(c.args.iter().flatten()))
        .map(String::as_str)
        .collect();
    let flag = "--inbound-ports-to-ignore";
    for (at, word) in words.iter().enumerate() {
        let value = match word.strip_prefix(flag) {
            Some("") => words.get(at + 1).copied(),
            Some(rest) => rest.strip_prefix('='),
            None => None,
        };
        for port in value
            .and_then(|value| value.parse::<PortSet>().ok())
            .unwrap_or_default()
            .iter()
        {
            ports.insert(port);
        }
    }
    ports
}

/// A pod of the control plane carries the label but no proxy: its traffic is its own business.
fn proxy(pod: &Pod, spec: &PodSpec) -> Option<ProxyFacts> {
    let control_namespace = pod.labels().get(label::CONTROL_PLANE_NS)?.clone();
    let container = containers(spec).find(|container| container.name == port::PROXY_CONTAINER)?;
    let port_of = |name: &str, default: u16| {
        let variable = container
            .env
            .iter()
            .flatten()
            .find(|variable| variable.name == name);
        let value = variable.and_then(|variable| variable.value.as_deref());
        value
            .and_then(|value| value.parse::<SocketAddr>().ok())
            .map_or(default, |addr| addr.port())
    };
    Some(ProxyFacts {
        control_namespace,
        inbound_port: port_of(env::INBOUND_LISTEN_ADDR, port::PROXY_INBOUND),
        own_ports: [
            port_of(env::ADMIN_LISTEN_ADDR, port::PROXY_ADMIN),
            port_of(env::CONTROL_LISTEN_ADDR, port::PROXY_CONTROL),
        ],
    })
}

fn metric_labels(pod: &Pod, service_account: &str) -> Labels {
    let mut labels = Labels::new();
    labels.insert("pod".into(), pod.name_any());
    labels.insert("serviceaccount".into(), service_account.to_owned());
    if let Some(namespace) = pod.labels().get(label::CONTROL_PLANE_NS) {
        labels.insert("control_plane_ns".into(), namespace.clone());
    }
    let hash = pod.labels().get("pod-template-hash");
    if let Some(hash) = hash {
        labels.insert("pod_template_hash".into(), hash.clone());
    }
    let owner = pod
        .owner_references()
        .iter()
        .find(|owner| owner.controller == Some(true))
        .or(pod.owner_references().first());
    if let Some(owner) = owner {
        // A ReplicaSet made by a Deployment is named after it and the hash of its template, which its pods carry too.
        let deployment = hash
            .and_then(|hash| owner.name.strip_suffix(hash.as_str()))
            .and_then(|name| name.strip_suffix('-'));
        let (kind, name) = match (owner.kind.as_str(), deployment) {
            ("ReplicaSet", Some(name)) => ("deployment".to_owned(), name.to_owned()),
            (kind, _) => (kind.to_lowercase(), owner.name.clone()),
        };
        labels.insert(kind, name);
    }
    labels
}
