//! Nodes: where clients are.

use heddle_mesh::label;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    pool::Pools,
    store::{Store, Table},
};

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeFacts {
    pub(crate) zone: Option<std::sync::Arc<str>>,
}

impl Tracked for Node {
    type Facts = NodeFacts;

    const MATTERS_TO_STATUS: bool = false;

    fn facts(&self, pools: &Pools) -> NodeFacts {
        NodeFacts {
            zone: self
                .labels()
                .get(label::ZONE)
                .map(|zone| pools.names.share(zone.as_str())),
        }
    }

    fn table(store: &mut Store) -> &mut Table<NodeFacts> {
        &mut store.nodes
    }

    fn touch(_: &mut Store, _: &ObjectKey, _: &NodeFacts, _: bool, dirty: &mut Dirty) {
        // The profile of a pod's address names the pod's zone. A client's zone is looked up when its stream opens, and
        // the endpoints of services carry their own.
        dirty.all_profiles();
    }
}
