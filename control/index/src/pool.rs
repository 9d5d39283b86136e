//! Parts of objects that are mostly alike: equal ones share their memory.
//!
//! The pods of a workload differ in their names, addresses and nodes, and in little else.

use std::{borrow::Borrow, hash::Hash, sync::Arc};

use ahash::AHashSet;
use heddle_control_core::{
    discover::WorkloadName,
    endpoints::{Labels, Place},
};
use heddle_mesh::Identity;
use parking_lot::Mutex;

use crate::facts::{PodTemplate, Probes};

/// Below this many values nobody looks for those that are not used any more.
const PRUNE_MIN: usize = 64;

/// What objects share.
#[derive(Debug, Default)]
pub struct Pools {
    /// Namespaces, nodes and zones.
    pub(crate) names: Pool<str>,
    pub(crate) templates: Pool<PodTemplate>,
    /// The pods of a workload have a template for each zone, because Kubernetes labels them with it; but not these.
    pub(crate) metric_labels: Pool<Labels>,
    /// Mostly those of a whole cluster are alike.
    pub(crate) probes: Pool<Probes>,
    pub(crate) places: Pool<Place>,
    /// A pod is in its own address, and in every slice that names it.
    pub(crate) workloads: Pool<WorkloadName>,
    pub(crate) identities: Pool<Identity>,
}

/// One copy of each value. When the number has doubled, those that nobody else holds are dropped: so there are at most
/// twice as many as are used.
#[derive(Debug)]
pub(crate) struct Pool<T: ?Sized>(Mutex<Values<T>>);

#[derive(Debug)]
struct Values<T: ?Sized> {
    known: AHashSet<Arc<T>>,
    prune_at: usize,
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self(Mutex::new(Values {
            known: AHashSet::new(),
            prune_at: PRUNE_MIN,
        }))
    }
}

impl<T: ?Sized + Eq + Hash> Pool<T> {
    /// The pool's copy of a value.
    pub(crate) fn share(&self, value: impl Borrow<T> + Into<Arc<T>>) -> Arc<T> {
        let Values { known, prune_at } = &mut *self.0.lock();
        if let Some(known) = known.get(value.borrow()) {
            return known.clone();
        }
        if known.len() >= *prune_at {
            known.retain(|value| Arc::strong_count(value) > 1);
            known.shrink_to_fit();
            *prune_at = PRUNE_MIN.max(known.len() * 2);
        }
        let value = value.into();
        known.insert(value.clone());
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_their_memory() {
        let pool = Pool::<str>::default();
        let (a, b, c) = (pool.share("a"), pool.share("a"), pool.share("c"));
        assert!(Arc::ptr_eq(&a, &b) && !Arc::ptr_eq(&a, &c));
    }

    #[test]
    fn what_is_not_used_any_more_does_not_pile_up() {
        let pool = Pool::<str>::default();
        let kept = pool.share("kept");
        for number in 0..10_000 {
            drop(pool.share(number.to_string()));
        }
        assert!(pool.0.lock().known.len() <= PRUNE_MIN);
        assert!(
            Arc::ptr_eq(&kept, &pool.share("kept")),
            "a value that is used stays"
        );
    }
}
