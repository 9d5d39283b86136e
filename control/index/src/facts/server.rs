//! Servers: ports of pods, and what is spoken there.

use std::collections::BTreeMap;

use heddle_control_core::DefaultPolicy;
use heddle_k8s::{
    policy::{
        Server,
        server::{AccessPolicy, ProxyProtocol},
    },
    port::PortRef,
    selector::LabelSelector,
};
use kube::ResourceExt as _;

use super::{ObjectKey, PodFacts, Tracked};
use crate::{
    dirty::Dirty,
    status::{Subject, Told},
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct ServerFacts {
    pub(crate) created: i64,
    pub(crate) labels: BTreeMap<String, String>,
    /// Absent when it selects external workloads.
    pods: Option<LabelSelector>,
    port: PortRef,
    pub(crate) protocol: ProxyProtocol,
    pub(crate) access: DefaultPolicy,
}

impl Tracked for Server {
    type Facts = ServerFacts;

    const SUBJECT: Option<Subject> = Some(Subject::Server);

    fn told(&self) -> Told {
        Told::of(self, self.status.as_ref())
    }

    fn facts(&self) -> ServerFacts {
        ServerFacts {
            created: super::created(self),
            labels: self.labels().clone(),
            pods: self.spec.pod_selector.clone(),
            port: self.spec.port.clone(),
            protocol: self.spec.proxy_protocol,
            access: default_policy(self.spec.access_policy),
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
    /// Whether it selects this port of this pod of its namespace.
    pub(crate) fn selects(&self, pod: &PodFacts, port: u16) -> bool {
        let by_port = match &self.port {
            PortRef::Number(number) => number.get() == port,
            PortRef::Name(name) => pod.port_names(port).any(|theirs| theirs == name),
        };
        by_port
            && self
                .pods
                .as_ref()
                .is_some_and(|selector| selector.matches(&pod.labels))
    }

    /// The port, when it is given by number.
    pub(crate) fn port_number(&self) -> Option<u16> {
        match &self.port {
            PortRef::Number(number) => Some(number.get()),
            PortRef::Name(_) => None,
        }
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
