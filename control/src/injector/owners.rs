//! Which workload a pod belongs to, where the pod alone does not tell.
//!
//! A Deployment's pods tell (`heddle_inject::Owner`), so this asks the API server about Jobs and bare ReplicaSets only,
//! remembers the answers, and does without when the API server is slow.

use std::{collections::HashMap, time::Duration};

use heddle_inject::Owner;
use k8s_openapi::{
    api::{
        apps::v1::ReplicaSet,
        batch::v1::Job,
        core::v1::{ObjectReference, Pod},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, ResourceExt as _,
    core::{ApiResource, DynamicObject, GroupVersion, PartialObjectMeta},
};
use parking_lot::Mutex;
use tokio::time::timeout;
use tracing::debug;

use crate::webhook::said;

/// An admission must not wait long for a label.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// Some thousand workloads; when they are more, the memory starts anew.
const REMEMBERED_MAX: usize = 4096;

/// Finds owners.
pub(super) struct Owners {
    client: Client,
    /// The owner of an owner, by the latter's uid: neither ever changes.
    remembered: Mutex<HashMap<String, Owner>>,
}

impl Owners {
    pub(super) fn new(client: Client) -> Self {
        Self {
            client,
            remembered: Mutex::default(),
        }
    }

    /// The pod's workload; none for a pod of its own.
    pub(super) async fn of(&self, namespace: &str, pod: &Pod) -> Option<Owner> {
        let owner = Owner::of_pod(pod)?;
        if owner.is_certain() {
            return Some(owner);
        }
        let references = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let uid = references
            .iter()
            .find(|reference| reference.name == owner.name)
            .map(|r| r.uid.clone());
        let uid = uid.unwrap_or_default();
        if let Some(known) = self.remembered.lock().get(&uid) {
            return Some(known.clone());
        }
        let Ok(asked) = timeout(ASK_TIMEOUT, self.ask(namespace, &owner)).await else {
            debug!(
                namespace,
                owner = owner.name,
                "The API server is slow; taking a pod's direct owner"
            );
            return Some(owner);
        };
        let found = match asked {
            Ok(references) => references
                .into_iter()
                .find(|reference| reference.controller == Some(true)),
            Err(error) => {
                debug!(
                    namespace,
                    owner = owner.name,
                    error = said(&error),
                    "Taking a pod's direct owner"
                );
                return Some(owner);
            }
        };
        let found = found.map_or(
            owner,
            |OwnerReference {
                 api_version,
                 kind,
                 name,
                 ..
             }| Owner {
                api_version,
                kind,
                name,
            },
        );
        let mut remembered = self.remembered.lock();
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(uid, found.clone());
        Some(found)
    }

    async fn ask(&self, namespace: &str, owner: &Owner) -> kube::Result<Vec<OwnerReference>> {
        let client = self.client.clone();
        let owners = match owner.kind.as_str() {
            "Job" => {
                Api::<Job>::namespaced(client, namespace)
                    .get_metadata(&owner.name)
                    .await?
                    .metadata
                    .owner_references
            }
            _ => {
                Api::<ReplicaSet>::namespaced(client, namespace)
                    .get_metadata(&owner.name)
                    .await?
                    .metadata
                    .owner_references
            }
        };
        Ok(owners.unwrap_or_default())
    }

    /// A reference that `kubectl describe` matches events by: it wants the uid.
    pub(super) async fn reference(&self, namespace: &str, owner: &Owner) -> ObjectReference {
        let mut reference = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            namespace: Some(namespace.to_owned()),
            ..ObjectReference::default()
        };
        let Ok(version) = owner.api_version.parse::<GroupVersion>() else {
            return reference;
        };
        let resource = ApiResource::from_gvk(&version.with_kind(&owner.kind));
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &resource);
        if let Ok(Ok(found)) = timeout(ASK_TIMEOUT, api.get_metadata(&owner.name)).await {
            let found: PartialObjectMeta<DynamicObject> = found;
            reference.uid = found.uid();
        }
        reference
    }
}
