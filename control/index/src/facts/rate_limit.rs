//! HTTPLocalRateLimitPolicies: how many requests a Server's pods take.

use heddle_k8s::policy::{HttpLocalRateLimitPolicy, Server};
use heddle_mesh::ServiceAccountRef;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::ResourceExt as _;

use super::{ObjectKey, Tracked};
use crate::{
    dirty::Dirty,
    pool::Pools,
    status::{Subject, Told},
    store::{Store, Table},
};

#[derive(Clone, Debug, PartialEq)]
pub struct RateLimitFacts {
    pub(crate) created: i64,
    pub(crate) server: Option<String>,
    pub(crate) total: Option<u32>,
    pub(crate) identity: Option<u32>,
    pub(crate) overrides: Vec<(u32, Vec<ServiceAccountRef>)>,
}

impl Tracked for HttpLocalRateLimitPolicy {
    type Facts = RateLimitFacts;

    const SUBJECT: Option<Subject> = Some(Subject::RateLimit);

    fn told(&self) -> Told {
        Told::of(self, self.status.as_ref())
    }

    fn facts(&self, _: &Pools) -> RateLimitFacts {
        let own = self.namespace().unwrap_or_default();
        let spec = &self.spec;
        let overrides = spec.overrides.iter().map(|one| {
            let accounts = one
                .client_refs
                .iter()
                .filter(|client| client.targets_kind::<ServiceAccount>());
            let accounts = accounts.map(|client| ServiceAccountRef {
                namespace: client.namespace_or(&own).to_owned(),
                name: client.name.clone(),
            });
            (one.requests_per_second.get(), accounts.collect())
        });
        let target = spec
            .target_ref
            .as_ref()
            .filter(|target| target.targets_kind::<Server>());
        RateLimitFacts {
            created: super::created(self),
            server: target.map(|target| target.name.clone()),
            total: spec.total.map(|limit| limit.requests_per_second.get()),
            identity: spec.identity.map(|limit| limit.requests_per_second.get()),
            overrides: overrides.collect(),
        }
    }

    fn table(store: &mut Store) -> &mut Table<RateLimitFacts> {
        &mut store.rate_limits
    }

    fn touch(_: &mut Store, key: &ObjectKey, _: &RateLimitFacts, _: bool, dirty: &mut Dirty) {
        dirty.namespace_inbound(&key.namespace);
    }
}
