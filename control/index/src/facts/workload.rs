//! What pods and external workloads have in common: labels, ports, and the settings of their annotations.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use heddle_control_core::{DefaultPolicy, discover::WorkloadKind, discover::WorkloadName, endpoints::Labels};
use heddle_mesh::{PortSet, annotation};
use kube::{Resource, ResourceExt as _};

use crate::{dirty::Dirty, store::Store};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct WorkloadFacts {
    pub(crate) kind: WorkloadKind,
    pub(crate) labels: BTreeMap<String, String>,
    /// TCP ports and their names.
    pub(crate) ports: Vec<(u16, Option<String>)>,
    pub(crate) default_policy: Option<DefaultPolicy>,
    pub(crate) opaque_ports: Option<PortSet>,
    /// Ports that unauthenticated clients may not use, whatever the default policy says.
    pub(crate) identity_ports: Option<PortSet>,
    /// Labels that metrics of traffic to the workload carry beside its name.
    pub(crate) metric_labels: Arc<Labels>,
}

impl WorkloadFacts {
    /// Facts of an object's metadata, without ports.
    pub(super) fn of<K: Resource<DynamicType = ()>>(
        kind: WorkloadKind,
        object: &K,
        metric_labels: Arc<Labels>,
    ) -> Self {
        Self {
            kind,
            labels: object.labels().clone(),
            ports: Vec::new(),
            default_policy: super::annotation(object, annotation::DEFAULT_INBOUND_POLICY),
            opaque_ports: super::annotation(object, annotation::OPAQUE_PORTS),
            identity_ports: super::annotation(object, annotation::REQUIRE_IDENTITY_PORTS),
            metric_labels,
        }
    }

    /// The names that the workload gives to a port.
    pub(crate) fn port_names(&self, number: u16) -> impl Iterator<Item = &str> {
        self.ports
            .iter()
            .filter(move |(port, _)| *port == number)
            .filter_map(|(_, name)| name.as_deref())
    }
}

/// See [`Tracked::touch`](super::Tracked::touch); `ips` are the workload's own addresses.
pub(super) fn touch(ips: &[IpAddr], store: &mut Store, name: WorkloadName, added: bool, dirty: &mut Dirty) {
    let name = store.pools.workloads.share(name);
    for ip in ips {
        store.workloads_by_ip.link(*ip, &name, added);
        dirty.profile_ip(*ip);
    }
    for service in store.services_of(&name) {
        dirty.service_endpoints(service);
    }
    dirty.workload_inbound(name.as_ref().clone());
}
