//! One pass over a cluster: observe, plan, execute, as commands and the loop both do it.

use std::collections::BTreeSet;

use crate::{
    cluster::{Cluster, ClusterError},
    identity::{self, IdentityWish},
    object::{Object, ObjectId},
    observe::{self, Observed},
    plan::{self, Plan},
    render::Rendered,
};

/// What a plan is made of besides the commit.
pub struct Wish<'a> {
    pub rendered: &'a Rendered,
    /// What was applied before.
    pub inventory: &'a BTreeSet<ObjectId>,
    pub prune: bool,
    /// Whether to look at workloads and plan restarts.
    pub rollout: bool,
}

/// Looks at the cluster and plans. `dirty` chooses the objects that have to be looked at.
///
/// # Errors
/// The API server does not answer.
pub async fn plan(
    cluster: &Cluster,
    wish: &Wish<'_>,
    dirty: impl Fn(&Object) -> bool,
) -> Result<(Observed, Plan), ClusterError> {
    let mut observed = observe::observe(cluster, wish.rendered, wish.inventory, dirty).await?;
    if let Some(identity) =
        IdentityWish::from_values(&wish.rendered.values, wish.rendered.control_namespace())
    {
        observed.identity = identity::cluster::missing(cluster, &identity).await?;
    }
    if wish.rollout {
        observed.fleet = Some(observe::fleet::list(&cluster.client).await?);
    }
    let plan = plan::plan(wish.rendered, &observed, wish.prune);
    Ok((observed, plan))
}
