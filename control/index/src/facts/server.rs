//! Servers: ports of pods, and what is spoken there.

use std::collections::BTreeMap;

use heddle_control_core::{DefaultPolicy, discover::WorkloadKind};
use heddle_k8s::{
    policy::{
        Server,
        server::{AccessPolicy, ProxyProtocol, ServerTarget},
    },
    port::PortRef,
    selector::LabelSelector,
};
use heddle_mesh::annotation;
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked, WorkloadFacts};
use crate::{
    dirty::Dirty,
    pool::Pools,
    status::{Subject, Told},
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct ServerFacts {
    pub(crate) created: i64,
    pub(crate) labels: BTreeMap<String, String>,
    /// Absent when it selects nothing, which the API server does not let happen.
    selector: Option<(WorkloadKind, LabelSelector)>,
    port: PortRef,
    pub(crate) protocol: ProxyProtocol,
    pub(crate) access: DefaultPolicy,
    /// Whether the kubelet's probes pass even when routes are attached.
    pub(crate) authorize_probes: bool,
}

impl Tracked for Server {
    type Facts = ServerFacts;

    const SUBJECT: Option<Subject> = Some(Subject::Server);

    fn told(&self) -> Told {
        Told::of(self, self.status.as_ref())
    }

    fn facts(&self, _: &Pools) -> ServerFacts {
        ServerFacts {
            created: super::created(self),
            labels: self.labels().clone(),
            selector: self.spec.selects().map(|target| match target {
                ServerTarget::Pods(selector) => (WorkloadKind::Pod, selector.clone()),
                ServerTarget::ExternalWorkloads(selector) => {
                    (WorkloadKind::ExternalWorkload, selector.clone())
                }
            }),
            port: self.spec.port.clone(),
            protocol: self.spec.proxy_protocol,
            access: default_policy(self.spec.access_policy),
            authorize_probes: self
                .annotations()
                .get(annotation::AUTHORIZE_PROBES)
                .is_some_and(|value| value == "enabled"),
        }
    }

    fn table(store: &mut Store) -> &mut Table<ServerFacts> {
        &mut store.servers
    }

    fn touch(_: &mut Store, key: &ObjectKey, _: &ServerFacts, _: bool, dirty: &mut Dirty) {
        dirty.namespace_inbound(&key.namespace);
        // A Server may make a port opaque, which clients are told as well.
        dirty.namespace_endpoints(&key.namespace);
        dirty.all_profiles();
    }
}

impl ServerFacts {
    /// Whether it selects this port of this workload of its namespace.
    pub(crate) fn selects(&self, workload: &WorkloadFacts, port: u16) -> bool {
        let by_port = match &self.port {
            PortRef::Number(number) => number.get() == port,
            PortRef::Name(name) => workload.port_names(port).any(|theirs| theirs == name),
        };
        by_port
            && self
                .selector
                .as_ref()
                .is_some_and(|(kind, selector)| *kind == workload.kind && selector.matches(&workload.labels))
    }

    /// The port, when it is given by number.
    pub(crate) fn port_number(&self) -> Option<u16> {
        match &self.port {
            PortRef::Number(number) => Some(number.get()),
            PortRef::Name(_) => None,
        }
    }

    /// Whether both select the same port of this workload.
    pub(crate) fn meets(&self, other: &Self, workload: &WorkloadFacts) -> bool {
        let numbers = [self.port_number(), other.port_number()].into_iter().flatten();
        let mut ports = numbers.chain(workload.ports.iter().map(|(number, _)| *number));
        ports.any(|port| self.selects(workload, port) && other.selects(workload, port))
    }

    /// Whether both are bound to select the same port of the same workloads, whatever workloads there are.
    pub(crate) fn selects_alike(&self, other: &Self) -> bool {
        let (Some((kind, mine)), Some((other_kind, theirs))) = (&self.selector, &other.selector) else {
            return false;
        };
        self.port == other.port
            && kind == other_kind
            && (mine == theirs || mine.selects_all() || theirs.selects_all())
    }

    pub(crate) fn is_opaque(&self) -> bool {
        self.protocol == ProxyProtocol::Opaque
    }
}

fn default_policy(access: AccessPolicy) -> DefaultPolicy {
    let allow = |authenticated_only, cluster_only| DefaultPolicy::Allow {
        authenticated_only,
        cluster_only,
    };
    match access {
        AccessPolicy::AllUnauthenticated => allow(false, false),
        AccessPolicy::AllAuthenticated => allow(true, false),
        AccessPolicy::ClusterUnauthenticated => allow(false, true),
        AccessPolicy::ClusterAuthenticated => allow(true, true),
        AccessPolicy::Deny => DefaultPolicy::Deny,
        AccessPolicy::Audit => DefaultPolicy::Audit,
    }
}
