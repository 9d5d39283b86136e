//! Pods: addresses, ports, identity, and the settings of the proxy inside.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use heddle_control_core::{
    discover::WorkloadKind,
    endpoints::{Labels, Place},
};
use heddle_k8s::port::tcp_ports;
use heddle_mesh::{PortSet, annotation, env, label, port};
use k8s_openapi::{
    api::core::v1::{Container, Pod, PodSpec, Probe},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked, WorkloadFacts};
use crate::{
    dirty::Dirty,
    pool::Pools,
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct PodFacts {
    pub(crate) template: Arc<PodTemplate>,
    /// The pod's own addresses.
    pub(crate) ips: Box<[IpAddr]>,
    /// Its node.
    pub(crate) place: Arc<Place>,
    /// Ports of the pod's node that lead to the pod, and where to.
    pub(crate) host_ports: Box<[(SocketAddr, SocketAddr)]>,
}

/// Paths that the kubelet probes, by port.
pub(crate) type Probes = BTreeMap<u16, BTreeSet<String>>;

/// What the pods of a workload mostly have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PodTemplate {
    pub(crate) workload: WorkloadFacts,
    pub(crate) service_account: String,
    pub(crate) probes: Arc<Probes>,
    pub(crate) skipped_ports: PortSet,
    pub(crate) proxy: Option<ProxyFacts>,
}

/// The proxy inside a meshed pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ProxyFacts {
    /// The control plane that it belongs to.
    pub(crate) control_namespace: String,
    /// `None` when the container does not say: then nothing can be sent to that port itself.
    pub(crate) inbound_port: Option<u16>,
    /// Ports that the proxy itself serves.
    pub(crate) own_ports: [u16; 2],
}

impl Tracked for Pod {
    type Facts = PodFacts;

    fn facts(&self, pools: &Pools) -> PodFacts {
        let empty = PodSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let service_account = spec
            .service_account_name
            .clone()
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into());
        let workload = WorkloadFacts {
            ports: tcp_ports(self)
                .map(|(number, name)| (number.get(), name.map(str::to_owned)))
                .collect(),
            ..WorkloadFacts::of(
                WorkloadKind::Pod,
                self,
                pools.metric_labels.share(metric_labels(self, &service_account)),
            )
        };
        let template = PodTemplate {
            probes: pools.probes.share(probes(spec)),
            skipped_ports: skipped_ports(self, spec),
            proxy: proxy(self, spec),
            workload,
            service_account,
        };
        let place = Place {
            node: spec.node_name.as_deref().map(|node| pools.names.share(node)),
            ..Place::default()
        };
        PodFacts {
            template: pools.templates.share(template),
            ips: own_ips(self).into(),
            place: pools.places.share(place),
            host_ports: host_ports(self, spec).into_iter().collect(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<PodFacts> {
        &mut store.pods
    }

    fn touch(store: &mut Store, key: &ObjectKey, facts: &PodFacts, added: bool, dirty: &mut Dirty) {
        let name = key.workload(WorkloadKind::Pod);
        super::workload::touch(&facts.ips, store, name, added, dirty);
        for (addr, _) in &facts.host_ports {
            store.pods_by_host_port.link(*addr, key, added);
            dirty.profile_ip(addr.ip());
        }
    }
}

/// The pod's own addresses: none when it shares its node's, or has ended and given them back.
fn own_ips(pod: &Pod) -> Vec<IpAddr> {
    let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network);
    match host_network {
        Some(true) => Vec::new(),
        _ => all_ips(pod),
    }
}

/// The addresses in the pod's status, the primary first.
fn all_ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    // The addresses of a pod that has ended may by now be another's.
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Vec::new();
    }
    let many = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    parsed(status.pod_ip.as_deref().into_iter().chain(many))
}

fn parsed<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut seen = BTreeSet::new();
    texts
        .filter_map(|text| text.parse().ok())
        .filter(|ip| seen.insert(*ip))
        .collect()
}

/// Kubernetes gives every container port of a pod on its node's network the same host port.
fn host_ports(pod: &Pod, spec: &PodSpec) -> BTreeMap<SocketAddr, SocketAddr> {
    let own = all_ips(pod);
    let Some(status) = &pod.status else {
        return BTreeMap::new();
    };
    let many = status.host_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let hosts = parsed(status.host_ip.as_deref().into_iter().chain(many));
    let declared = running(spec)
        .flat_map(|container| container.ports.iter().flatten())
        .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    let mut ports = BTreeMap::new();
    for port in declared {
        let number = |number: i32| u16::try_from(number).ok().filter(|number| *number > 0);
        let (Some(inside), Some(outside)) = (number(port.container_port), port.host_port.and_then(number))
        else {
            continue;
        };
        let bound: Option<IpAddr> = port.host_ip.as_deref().and_then(|ip| ip.parse().ok());
        let bound = bound.filter(|ip| !ip.is_unspecified());
        for host in hosts
            .iter()
            .filter(|host| bound.is_none_or(|bound| bound == **host))
        {
            // A host's address leads to the pod's of the same family.
            if let Some(ip) = own.iter().find(|ip| ip.is_ipv4() == host.is_ipv4()) {
                ports.insert(SocketAddr::new(*host, outside), SocketAddr::new(*ip, inside));
            }
        }
    }
    ports
}

/// Containers that run as long as the pod does: native sidecars, and those that do the pod's work.
fn running(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    let sidecars = spec
        .init_containers
        .iter()
        .flatten()
        .filter(|container| container.restart_policy.as_deref() == Some("Always"));
    sidecars.chain(&spec.containers)
}

fn containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.init_containers.iter().flatten().chain(&spec.containers)
}

fn probes(spec: &PodSpec) -> Probes {
    let mut probes = Probes::new();
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
    let port_of = |name: &str| {
        let variable = container
            .env
            .iter()
            .flatten()
            .find(|variable| variable.name == name);
        let value = variable.and_then(|variable| variable.value.as_deref());
        let addr = value.and_then(|value| value.parse::<SocketAddr>().ok());
        addr.map(|addr| addr.port())
    };
    Some(ProxyFacts {
        control_namespace,
        inbound_port: port_of(env::INBOUND_LISTEN_ADDR),
        own_ports: [
            port_of(env::ADMIN_LISTEN_ADDR).unwrap_or(port::PROXY_ADMIN),
            port_of(env::CONTROL_LISTEN_ADDR).unwrap_or(port::PROXY_CONTROL),
        ],
    })
}

fn metric_labels(pod: &Pod, service_account: &str) -> Labels {
    let mut labels = Labels::new();
    labels.insert("serviceaccount".into(), service_account.to_owned());
    if let Some(namespace) = pod.labels().get(label::CONTROL_PLANE_NS) {
        labels.insert("control_plane_ns".into(), namespace.clone());
    }
    let hash = pod.labels().get("pod-template-hash");
    if let Some(hash) = hash {
        labels.insert("pod_template_hash".into(), hash.clone());
    }
    if let Some((kind, name)) = super::owner(pod) {
        // A ReplicaSet made by a Deployment is named after it and the hash of its template, which its pods carry too.
        let deployment = hash
            .and_then(|hash| name.strip_suffix(hash.as_str()))
            .and_then(|name| name.strip_suffix('-'));
        match (kind.as_str(), deployment) {
            ("replicaset", Some(deployment)) => labels.insert("deployment".into(), deployment.to_owned()),
            _ => labels.insert(kind, name),
        };
    }
    labels
}
