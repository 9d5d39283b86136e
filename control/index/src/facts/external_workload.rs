//! ExternalWorkloads: processes outside the cluster that belong to the mesh.

use std::{net::IpAddr, sync::Arc};

use heddle_control_core::{
    discover::WorkloadKind,
    endpoints::{ExternalIdentity, Labels},
};
use heddle_k8s::external_workload::{ExternalWorkload, PortProtocol};
use heddle_mesh::port;

use super::{ObjectKey, Tracked, WorkloadFacts};
use crate::{
    dirty::Dirty,
    pool::Pools,
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct ExternalWorkloadFacts {
    pub(crate) workload: WorkloadFacts,
    /// The workload's own addresses.
    pub(crate) ips: Vec<IpAddr>,
    /// `None` when the object does not say what its proxy proves: traffic is not sent there then.
    pub(crate) identity: Option<Arc<ExternalIdentity>>,
    /// The port of the proxy's inbound listener.
    pub(crate) inbound_port: u16,
}

impl Tracked for ExternalWorkload {
    type Facts = ExternalWorkloadFacts;

    fn facts(&self, pools: &Pools) -> ExternalWorkloadFacts {
        let spec = &self.spec;
        let identity = spec
            .tls()
            .filter(|tls| !tls.identity.is_empty() && !tls.server_name.is_empty());
        let proxy_port = spec
            .ports
            .iter()
            .find(|port| port.name.as_deref() == Some(port::PROXY_INBOUND_NAME));
        let tcp = spec
            .ports
            .iter()
            .filter(|port| port.protocol == PortProtocol::Tcp);
        let workload = WorkloadFacts {
            ports: tcp.map(|port| (port.port.get(), port.name.clone())).collect(),
            ..WorkloadFacts::of(
                WorkloadKind::ExternalWorkload,
                self,
                pools.metric_labels.share(metric_labels(self)),
            )
        };
        let ips = spec.workload_ips.iter().filter_map(|ip| ip.ip.parse().ok());
        ExternalWorkloadFacts {
            workload,
            ips: ips.collect(),
            identity: identity.map(|tls| {
                Arc::new(ExternalIdentity {
                    identity: tls.identity.clone(),
                    server_name: tls.server_name.clone(),
                })
            }),
            inbound_port: proxy_port.map_or(port::PROXY_INBOUND, |port| port.port.get()),
        }
    }

    fn table(store: &mut Store) -> &mut Table<ExternalWorkloadFacts> {
        &mut store.external_workloads
    }

    fn touch(
        store: &mut Store,
        key: &ObjectKey,
        facts: &ExternalWorkloadFacts,
        added: bool,
        dirty: &mut Dirty,
    ) {
        let name = key.workload(WorkloadKind::ExternalWorkload);
        super::workload::touch(&facts.ips, store, name, added, dirty);
    }
}

fn metric_labels(workload: &ExternalWorkload) -> Labels {
    let mut labels = Labels::new();
    if let Some((kind, name)) = super::owner(workload) {
        labels.insert(kind, name);
    }
    labels
}
