//! EgressNetworks: destinations outside the cluster, and whether they may be reached.

use heddle_control_core::{inbound::NetworkMatch, outbound::FailureAccrual};
use heddle_k8s::policy::{EgressNetwork, TrafficPolicy};
use heddle_mesh::PortSet;
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    annotation::{Annotated, Reader, RouteTraffic},
    dirty::Dirty,
    pool::Pools,
    status::{Subject, Told},
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct EgressFacts {
    pub(crate) created: i64,
    pub(crate) allowed: bool,
    /// `None`: everything outside the cluster's networks.
    pub(crate) networks: Option<Vec<NetworkMatch>>,
    pub(crate) opaque_ports: Option<PortSet>,
    /// How requests are treated that take no route, or one without annotations of its own.
    pub(crate) traffic: RouteTraffic,
    pub(crate) failure_accrual: Option<FailureAccrual>,
}

impl Tracked for EgressNetwork {
    type Facts = EgressFacts;

    const SUBJECT: Option<Subject> = Some(Subject::EgressNetwork);

    fn told(&self) -> Told {
        Told::of(self, self.status.as_ref()).annotated(Annotated::EgressNetwork, self)
    }

    fn facts(&self, _: &Pools) -> EgressFacts {
        // Networks that cannot be read are no networks: the rest of the world stays as it is without this object.
        let networks = self
            .spec
            .networks
            .as_ref()
            .map(|list| super::authentication::networks(self, list).unwrap_or_default());
        let mut annotations = Reader::new(self.annotations());
        let (opaque_ports, traffic, failure_accrual) = (
            annotations.opaque_ports(),
            annotations.route_traffic(),
            annotations.failure_accrual(),
        );
        super::complain(self, annotations.problems);
        EgressFacts {
            created: super::created(self),
            allowed: self.spec.traffic_policy == TrafficPolicy::Allow,
            networks,
            opaque_ports,
            traffic,
            failure_accrual,
        }
    }

    fn table(store: &mut Store) -> &mut Table<EgressFacts> {
        &mut store.egress_networks
    }

    fn touch(_: &mut Store, _: &ObjectKey, _: &EgressFacts, _: bool, dirty: &mut Dirty) {
        dirty.all_outbound();
    }
}
