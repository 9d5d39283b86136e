//! Rate limits: whether their Server is there, and which of several is in force.

use std::sync::Arc;

use super::{
    Status,
    condition::{Condition, Rejection},
};
use crate::{
    facts::{ObjectKey, RateLimitFacts},
    store::Store,
};

/// The rate limit of a Server: of several the oldest, then the first by name.
pub(crate) fn in_force<'a>(
    store: &'a Store,
    namespace: &str,
    server: &str,
) -> Option<(&'a Arc<str>, &'a RateLimitFacts)> {
    store
        .rate_limits
        .namespace(namespace)
        .filter(|(_, limit)| limit.server.as_deref() == Some(server))
        .min_by_key(|(name, limit)| (limit.created, *name))
}

pub(super) fn judge(store: &Store, key: &ObjectKey, facts: &RateLimitFacts) -> Status {
    let Some(server) = &facts.server else {
        let message = "spec.targetRef names no Server: it limits nothing".to_owned();
        return Status::OfTarget(
            vec![Condition::rejected(Rejection::NoMatchingTarget, message)],
            None,
        );
    };
    let condition = match in_force(store, &key.namespace, server) {
        _ if store.servers.find(&key.namespace, server).is_none() => Condition::rejected(
            Rejection::NoMatchingTarget,
            format!(
                "spec.targetRef: there is no Server {server} in namespace {}",
                key.namespace
            ),
        ),
        Some((first, _)) if *first != key.name => Condition::rejected(
            Rejection::RateLimitExists,
            format!("Server {server} already has the older rate limit {first}: merge this one into it"),
        ),
        _ => Condition::accepted(),
    };
    Status::OfTarget(vec![condition], Some(server.clone()))
}
