//! Namespaces: what their annotations say for all that lives in them.

use heddle_control_core::DefaultPolicy;
use heddle_mesh::{PortSet, annotation};
use k8s_openapi::api::core::v1::Namespace;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    pool::Pools,
    store::{Store, Table},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NamespaceFacts {
    pub(crate) default_policy: Option<DefaultPolicy>,
    pub(crate) opaque_ports: Option<PortSet>,
    pub(crate) identity_ports: Option<PortSet>,
}

impl Tracked for Namespace {
    type Facts = NamespaceFacts;

    fn facts(&self, _: &Pools) -> NamespaceFacts {
        NamespaceFacts {
            default_policy: super::annotation(self, annotation::DEFAULT_INBOUND_POLICY),
            opaque_ports: super::annotation(self, annotation::OPAQUE_PORTS),
            identity_ports: super::annotation(self, annotation::REQUIRE_IDENTITY_PORTS),
        }
    }

    fn table(store: &mut Store) -> &mut Table<NamespaceFacts> {
        &mut store.namespaces
    }

    fn touch(_: &mut Store, key: &ObjectKey, _: &NamespaceFacts, _: bool, dirty: &mut Dirty) {
        dirty.namespace_endpoints(&key.name);
        dirty.namespace_inbound(&key.name);
        dirty.all_profiles();
        dirty.all_outbound();
    }
}
