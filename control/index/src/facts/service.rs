//! Services: addresses, ports, and the traffic settings in their annotations.

use std::net::IpAddr;

use heddle_mesh::PortSet;
use k8s_openapi::{
    api::core::v1::{Service, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    annotation::{Annotated, Balancing, Reader, RouteTraffic},
    dirty::Dirty,
    pool::Pools,
    status::{Subject, Told},
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    pub(crate) cluster_ips: Vec<IpAddr>,
    pub(crate) ports: Vec<PortFacts>,
    pub(crate) external_name: bool,
    pub(crate) local_only: bool,
    pub(crate) opaque_ports: Option<PortSet>,
    /// How requests are treated that take no route, or one without annotations of its own.
    pub(crate) traffic: RouteTraffic,
    pub(crate) balancing: Balancing,
}

/// A TCP port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortFacts {
    pub(crate) port: u16,
    /// Empty when the service has but one port and gives it no name.
    pub(crate) name: String,
    pub(crate) target: IntOrString,
    pub(crate) app_protocol: Option<String>,
}

impl Tracked for Service {
    type Facts = ServiceFacts;

    const SUBJECT: Option<Subject> = Some(Subject::Service);

    fn told(&self) -> Told {
        Told::of::<_, ()>(self, None).annotated(Annotated::Service, self)
    }

    fn facts(&self, _: &Pools) -> ServiceFacts {
        let empty = ServiceSpec::default();
        let spec = self.spec.as_ref().unwrap_or(&empty);
        let first = spec.cluster_ip.iter();
        let mut cluster_ips: Vec<IpAddr> = first
            .chain(spec.cluster_ips.iter().flatten())
            .filter_map(|ip| ip.parse().ok())
            .collect();
        cluster_ips.sort_unstable();
        cluster_ips.dedup();
        let mut annotations = Reader::new(self.annotations());
        let (opaque_ports, traffic, balancing) = (
            annotations.opaque_ports(),
            annotations.route_traffic(),
            annotations.balancing(),
        );
        super::complain(self, annotations.problems);
        ServiceFacts {
            cluster_ips,
            ports: ports(spec),
            external_name: spec.type_.as_deref() == Some("ExternalName"),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            opaque_ports,
            traffic,
            balancing,
        }
    }

    fn table(store: &mut Store) -> &mut Table<ServiceFacts> {
        &mut store.services
    }

    fn touch(store: &mut Store, key: &ObjectKey, facts: &ServiceFacts, added: bool, dirty: &mut Dirty) {
        for ip in &facts.cluster_ips {
            store.services_by_ip.link(*ip, key, added);
            dirty.profile_ip(*ip);
        }
        dirty.service_endpoints(key.clone());
        dirty.service_profile(key.clone());
        dirty.all_outbound();
    }
}

fn ports(spec: &ServiceSpec) -> Vec<PortFacts> {
    let tcp = spec
        .ports
        .iter()
        .flatten()
        .filter(|port| matches!(port.protocol.as_deref(), None | Some("TCP")));
    tcp.filter_map(|port| {
        Some(PortFacts {
            port: u16::try_from(port.port).ok()?,
            name: port.name.clone().unwrap_or_default(),
            target: port.target_port.clone().unwrap_or(IntOrString::Int(port.port)),
            app_protocol: port.app_protocol.clone(),
        })
    })
    .collect()
}

impl ServiceFacts {
    pub(crate) fn port(&self, number: u16) -> Option<&PortFacts> {
        self.ports.iter().find(|port| port.port == number)
    }

    /// Whether names resolve to its pods rather than to an address of its own.
    pub(crate) fn headless(&self) -> bool {
        self.cluster_ips.is_empty() && !self.external_name
    }
}
