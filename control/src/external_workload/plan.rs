//! Which EndpointSlices a Service should have for the ExternalWorkloads that it selects, with as few writes as will do:
//! pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use heddle_k8s::external_workload::{ExternalWorkload, PortProtocol};
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{
        apis::meta::v1::{ObjectMeta, OwnerReference},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt as _;

/// Linkerd's, so that its slices are taken over when Heddle takes its place, and back.
pub(super) const MANAGED_BY: &str = "linkerd-external-workloads-controller";
pub(super) const LABEL_MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub(super) const LABEL_SERVICE: &str = "kubernetes.io/service-name";
const LABEL_HEADLESS: &str = "service.kubernetes.io/headless";
const LABEL_ZONE: &str = "topology.kubernetes.io/zone";
/// Linkerd's and Kubernetes' own.
pub(super) const ENDPOINTS_MAX: usize = 100;

/// What slices need of a Service.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ServiceFacts {
    name: String,
    uid: String,
    labels: BTreeMap<String, String>,
    selector: BTreeMap<String, String>,
    headless: bool,
    families: BTreeSet<Family>,
    ports: Vec<ServicePort>,
}

/// What slices need of a workload.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct WorkloadFacts {
    name: String,
    uid: String,
    labels: BTreeMap<String, String>,
    ips: Vec<IpAddr>,
    ports: Vec<(Option<String>, i32, &'static str)>,
    ready: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    IPv4,
    IPv6,
}

#[derive(Clone, Debug, PartialEq)]
struct ServicePort {
    name: Option<String>,
    protocol: String,
    target: IntOrString,
}

/// A port as slices have it: name, protocol, number.
type Port = (Option<String>, String, i32);

/// A change to the cluster.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    Create(Box<EndpointSlice>),
    /// With the resource version that it was made for.
    Update(Box<EndpointSlice>),
    Delete(String),
}

impl ServiceFacts {
    /// `None`: a Service that selects nothing, or is but a name.
    pub(super) fn of(service: &Service) -> Option<Self> {
        let spec = service.spec.as_ref()?;
        let selector = spec.selector.clone().filter(|selector| !selector.is_empty())?;
        if spec.type_.as_deref() == Some("ExternalName") || service.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let mut families: BTreeSet<Family> = spec
            .ip_families
            .iter()
            .flatten()
            .map(|family| {
                if family == "IPv6" {
                    Family::IPv6
                } else {
                    Family::IPv4
                }
            })
            .collect();
        if families.is_empty() {
            families.extend([Family::IPv4, Family::IPv6]);
        }
        let ports = spec.ports.iter().flatten().map(|port| ServicePort {
            name: port.name.clone().filter(|name| !name.is_empty()),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            target: port.target_port.clone().unwrap_or(IntOrString::Int(port.port)),
        });
        Some(Self {
            name: service.name_any(),
            uid: service.uid().unwrap_or_default(),
            labels: service.labels().clone(),
            selector,
            headless: spec.cluster_ip.as_deref() == Some("None"),
            families,
            ports: ports.collect(),
        })
    }

    pub(super) fn selects(&self, workload: &WorkloadFacts) -> bool {
        self.selector
            .iter()
            .all(|(key, value)| workload.labels.get(key) == Some(value))
    }
}

impl WorkloadFacts {
    pub(super) fn of(workload: &ExternalWorkload) -> Self {
        let conditions = workload.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions
            .into_iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let ports = workload.spec.ports.iter().map(|port| {
            let protocol = match port.protocol {
                PortProtocol::Tcp => "TCP",
                PortProtocol::Udp => "UDP",
            };
            (port.name.clone(), i32::from(port.port.get()), protocol)
        });
        let ips = workload.spec.workload_ips.iter();
        Self {
            name: workload.name_any(),
            uid: workload.uid().unwrap_or_default(),
            labels: workload.labels().clone(),
            ips: ips.filter_map(|ip| ip.ip.parse().ok()).collect(),
            ports: ports.collect(),
            ready,
        }
    }
}

impl Family {
    fn of(ip: &IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::IPv4,
            IpAddr::V6(_) => Self::IPv6,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        }
    }
}

/// What is to be done about the slices of a Service; `None` is a Service that should have none.
pub(super) fn plan(
    namespace: &str,
    service: Option<&ServiceFacts>,
    workloads: &[&WorkloadFacts],
    slices: &[&EndpointSlice],
) -> Vec<Change> {
    let mut groups = service
        .map(|service| groups(namespace, service, workloads))
        .unwrap_or_default();
    let mut changes = Vec::new();
    // By name, so that a plan for the same state is the same plan.
    let mut by_group: BTreeMap<(String, Vec<Port>), Vec<&EndpointSlice>> = BTreeMap::new();
    for slice in slices {
        let key = (slice.address_type.clone(), ports_of(slice));
        let is_owned = service.is_some_and(|service| is_owned_by(slice, service));
        match is_owned && groups.contains_key(&key) {
            true => by_group.entry(key).or_default().push(slice),
            false => changes.push(Change::Delete(slice.name_any())),
        }
    }
    let Some(service) = service else { return changes };
    for (key, wanted) in &mut groups {
        let mut existing = by_group.remove(key).unwrap_or_default();
        existing.sort_by_key(|slice| slice.name_any());
        changes.extend(fill(namespace, service, key, wanted, &existing));
    }
    changes
}

/// Endpoints by the name of their workload, grouped by address type and ports.
type Groups = BTreeMap<(String, Vec<Port>), BTreeMap<String, Endpoint>>;

fn groups(namespace: &str, service: &ServiceFacts, workloads: &[&WorkloadFacts]) -> Groups {
    let mut groups = Groups::new();
    for workload in workloads {
        let ports = ports(service, workload);
        // A headless Service may have no ports at all; any other needs one that the workload serves.
        if ports.is_empty() && !(service.headless && service.ports.is_empty()) {
            continue;
        }
        for family in &service.families {
            let ips: Vec<String> = workload
                .ips
                .iter()
                .filter(|ip| Family::of(ip) == *family)
                .map(ToString::to_string)
                .collect();
            if !ips.is_empty() {
                let group = groups
                    .entry((family.name().to_owned(), ports.clone()))
                    .or_default();
                group.insert(workload.name.clone(), endpoint(namespace, service, workload, ips));
            }
        }
    }
    groups
}

/// The Service's ports that the workload serves; unlike a pod's, a workload's ports must be listed.
fn ports(service: &ServiceFacts, workload: &WorkloadFacts) -> Vec<Port> {
    let find = |port: &ServicePort| {
        let serves = |(name, number, protocol): &&(Option<String>, i32, &'static str)| {
            *protocol == port.protocol
                && match &port.target {
                    IntOrString::Int(target) => target == number,
                    IntOrString::String(target) => name.as_ref() == Some(target),
                }
        };
        let (_, number, _) = workload.ports.iter().find(serves)?;
        Some((port.name.clone(), port.protocol.clone(), *number))
    };
    let mut ports: Vec<Port> = service.ports.iter().filter_map(find).collect();
    ports.sort();
    ports
}

fn endpoint(
    namespace: &str,
    service: &ServiceFacts,
    workload: &WorkloadFacts,
    addresses: Vec<String>,
) -> Endpoint {
    Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(workload.ready),
            serving: Some(workload.ready),
            terminating: Some(false),
        }),
        hostname: service.headless.then(|| workload.name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("ExternalWorkload".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(workload.name.clone()),
            uid: Some(workload.uid.clone()),
            ..ObjectReference::default()
        }),
        zone: workload.labels.get(LABEL_ZONE).cloned(),
        ..Endpoint::default()
    }
}

/// Puts endpoints into slices of one kind: those that are in one stay there, the others go where there is room, first
/// where something is written anyway.
fn fill(
    namespace: &str,
    service: &ServiceFacts,
    group: &(String, Vec<Port>),
    wanted: &mut BTreeMap<String, Endpoint>,
    existing: &[&EndpointSlice],
) -> Vec<Change> {
    let mut kept: Vec<(&EndpointSlice, Vec<Endpoint>)> = existing
        .iter()
        .map(|slice| {
            let names = slice.endpoints.iter().flatten().filter_map(workload_of);
            (*slice, names.filter_map(|name| wanted.remove(name)).collect())
        })
        .collect();
    let labels = labels(service);
    let differs = |(slice, endpoints): &(&EndpointSlice, Vec<Endpoint>)| {
        *slice.labels() != labels || slice.endpoints.as_deref().unwrap_or_default() != endpoints.as_slice()
    };
    kept.sort_by_key(|one| !differs(one));
    for (_, endpoints) in &mut kept {
        while endpoints.len() < ENDPOINTS_MAX
            && let Some((_, endpoint)) = wanted.pop_first()
        {
            endpoints.push(endpoint);
        }
    }
    let mut changes = Vec::new();
    for one in kept {
        let changed = differs(&one);
        let (slice, endpoints) = one;
        match (endpoints.is_empty(), changed) {
            (true, _) => changes.push(Change::Delete(slice.name_any())),
            (false, false) => {}
            (false, true) => {
                let mut slice = slice.clone();
                slice.metadata.managed_fields = None;
                slice.metadata.labels = Some(labels.clone());
                slice.endpoints = Some(endpoints);
                changes.push(Change::Update(Box::new(slice)));
            }
        }
    }
    while !wanted.is_empty() {
        let endpoints: Vec<Endpoint> = std::iter::from_fn(|| wanted.pop_first())
            .take(ENDPOINTS_MAX)
            .map(|(_, endpoint)| endpoint)
            .collect();
        changes.push(Change::Create(Box::new(slice(
            namespace,
            service,
            group,
            labels.clone(),
            endpoints,
        ))));
    }
    changes
}

fn slice(
    namespace: &str,
    service: &ServiceFacts,
    (address_type, ports): &(String, Vec<Port>),
    labels: BTreeMap<String, String>,
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let ports = ports.iter().map(|(name, protocol, number)| EndpointPort {
        name: name.clone(),
        port: Some(*number),
        protocol: Some(protocol.clone()),
        ..EndpointPort::default()
    });
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Service".to_owned(),
        name: service.name.clone(),
        uid: service.uid.clone(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("linkerd-external-{}-", service.name)),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            owner_references: Some(vec![owner]),
            ..ObjectMeta::default()
        },
        address_type: address_type.clone(),
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
    }
}

/// The Service's labels, and those that say whose slice it is.
fn labels(service: &ServiceFacts) -> BTreeMap<String, String> {
    let mut labels = service.labels.clone();
    labels.remove(LABEL_HEADLESS);
    if service.headless {
        labels.insert(LABEL_HEADLESS.to_owned(), String::new());
    }
    labels.insert(LABEL_SERVICE.to_owned(), service.name.clone());
    labels.insert(LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned());
    labels
}

fn ports_of(slice: &EndpointSlice) -> Vec<Port> {
    let port = |port: &EndpointPort| {
        let name = port.name.clone().filter(|name| !name.is_empty());
        let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
        (name, protocol, port.port.unwrap_or_default())
    };
    let mut ports: Vec<Port> = slice.ports.iter().flatten().map(port).collect();
    ports.sort();
    ports
}

fn is_owned_by(slice: &EndpointSlice, service: &ServiceFacts) -> bool {
    slice
        .owner_references()
        .iter()
        .any(|owner| owner.kind == "Service" && owner.uid == service.uid)
}

fn workload_of(endpoint: &Endpoint) -> Option<&str> {
    endpoint.target_ref.as_ref()?.name.as_deref()
}

#[cfg(test)]
mod tests;
