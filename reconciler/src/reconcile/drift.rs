//! Watches the objects that were applied, by their label and metadata alone, and says which have changed since.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};

use futures_util::StreamExt as _;
use heddle_mesh::label;
use kube::{
    Api,
    api::{DynamicObject, ObjectMeta, PartialObjectMeta},
    discovery::ApiResource,
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::Value;
use tokio::{sync::Notify, task::JoinSet};
use tracing::debug;

use crate::{
    cluster::Cluster,
    object::{self, ObjectId},
};

/// What changes when somebody changes an object, and does not when only its status does.
pub type Mark = u64;

/// The marks of all watched objects.
#[derive(Default)]
struct Marks {
    by_id: BTreeMap<ObjectId, Mark>,
    /// Kinds whose first list has come in.
    known: BTreeSet<(String, String)>,
}

/// Watches over one mesh's objects.
pub struct Drift {
    marks: Arc<Mutex<Marks>>,
    /// Notified at each change.
    pub changed: Arc<Notify>,
    watched: BTreeSet<(String, String)>,
    tasks: JoinSet<()>,
    profile: String,
}

impl Drift {
    pub fn new(profile: &str) -> Self {
        Self {
            marks: Arc::default(),
            changed: Arc::new(Notify::new()),
            watched: BTreeSet::new(),
            tasks: JoinSet::new(),
            profile: profile.to_owned(),
        }
    }

    /// Watches the kinds of these objects too.
    pub async fn watch<'a>(&mut self, cluster: &Cluster, ids: impl Iterator<Item = &'a ObjectId>) {
        for id in ids {
            let key = (id.group.clone(), id.kind.clone());
            if self.watched.contains(&key) {
                continue;
            }
            let Some(kind) = cluster.kind_of(id).await else {
                continue;
            };
            self.watched.insert(key);
            let api = Api::all_with(cluster.client.clone(), &kind.resource);
            let task = watch_kind(
                api,
                kind.resource,
                self.profile.clone(),
                self.marks.clone(),
                self.changed.clone(),
            );
            self.tasks.spawn(task);
        }
    }

    /// The live mark of an object; `None` while its kind's first list has not come in, `Some(None)` when it is gone.
    pub fn mark(&self, id: &ObjectId) -> Option<Option<Mark>> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if !marks.known.contains(&(id.group.clone(), id.kind.clone())) {
            return None;
        }
        Some(marks.by_id.get(id).copied())
    }
}

async fn watch_kind(
    api: Api<PartialObjectMeta<DynamicObject>>,
    resource: ApiResource,
    profile: String,
    marks: Arc<Mutex<Marks>>,
    changed: Arc<Notify>,
) {
    let config = watcher::Config::default().labels(&format!("{}={profile}", label::PROFILE));
    let stream = watcher(api, config).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let key = (resource.group.clone(), resource.kind.clone());
    let id_of = |object: &PartialObjectMeta<DynamicObject>| {
        let meta = &object.metadata;
        ObjectId::new(
            &resource.group,
            &resource.kind,
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    };
    let mut fresh = BTreeMap::new();
    while let Some(event) = stream.next().await {
        let mut lock = marks.lock().unwrap_or_else(PoisonError::into_inner);
        let notify = match event {
            Ok(watcher::Event::Apply(object)) => {
                let mark = of_meta(&object.metadata);
                lock.by_id.insert(id_of(&object), mark) != Some(mark)
            }
            Ok(watcher::Event::Delete(object)) => {
                lock.by_id.remove(&id_of(&object));
                true
            }
            Ok(watcher::Event::Init) => {
                fresh.clear();
                false
            }
            Ok(watcher::Event::InitApply(object)) => {
                fresh.insert(id_of(&object), of_meta(&object.metadata));
                false
            }
            Ok(watcher::Event::InitDone) => {
                lock.by_id
                    .retain(|id, _| !(id.group == key.0 && id.kind == key.1));
                lock.by_id.append(&mut fresh);
                lock.known.insert(key.clone());
                true
            }
            Err(error) => {
                // The watcher backs off and begins anew; what it missed comes with its list.
                debug!(kind = key.1, error = %crate::cli::chain(&error), "A watch broke off");
                false
            }
        };
        drop(lock);
        if notify {
            changed.notify_one();
        }
    }
}

/// The mark of an object's metadata.
pub fn of_meta(meta: &ObjectMeta) -> Mark {
    let state = match meta.generation {
        // Kinds with a generation raise it for each change that is not one of status or metadata.
        Some(generation) if generation > 0 => format!("g{generation}"),
        _ => format!("r{}", meta.resource_version.as_deref().unwrap_or_default()),
    };
    mark(
        &state,
        meta.uid.as_deref(),
        &serde_json::json!(meta.labels),
        &serde_json::json!(meta.annotations),
        meta.deletion_timestamp.is_some(),
    )
}

/// The mark of a whole object, as the API server returned it.
pub fn of_object(object: &Value) -> Mark {
    let meta = object.get("metadata").cloned().unwrap_or_default();
    let state = match meta["generation"].as_i64() {
        Some(generation) if generation > 0 => format!("g{generation}"),
        _ => format!(
            "r{}",
            object::text_at(&meta, &["resourceVersion"]).unwrap_or_default()
        ),
    };
    let field = |key: &str| meta.get(key).cloned().unwrap_or_default();
    mark(
        &state,
        object::text_at(&meta, &["uid"]),
        &field("labels"),
        &field("annotations"),
        !field("deletionTimestamp").is_null(),
    )
}

/// The mark of an object of which only annotations count.
pub fn of_annotations(annotations: Option<&BTreeMap<String, String>>) -> Mark {
    mark(
        if annotations.is_some() { "there" } else { "absent" },
        None,
        &Value::Null,
        &serde_json::json!(annotations),
        false,
    )
}

fn mark(state: &str, uid: Option<&str>, labels: &Value, annotations: &Value, deleting: bool) -> Mark {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    let empty = |value: &Value| {
        if value.as_object().is_some_and(|map| map.is_empty()) {
            String::from("null")
        } else {
            value.to_string()
        }
    };
    (state, uid, empty(labels), empty(annotations), deleting).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_change_leaves_the_mark_and_a_metadata_change_does_not() {
        let object = |generation: i64, version: &str, labels: Value| json!({"metadata": {"uid": "u", "generation": generation, "resourceVersion": version, "labels": labels}});
        assert_eq!(
            of_object(&object(1, "10", json!({}))),
            of_object(&object(1, "11", json!(null)))
        );
        assert_ne!(
            of_object(&object(1, "10", json!({}))),
            of_object(&object(2, "11", json!({})))
        );
        assert_ne!(
            of_object(&object(1, "10", json!({}))),
            of_object(&object(1, "11", json!({"a": "b"})))
        );
        assert_ne!(
            of_object(&object(0, "10", json!({}))),
            of_object(&object(0, "11", json!({})))
        );
    }

    #[test]
    fn an_object_and_its_metadata_have_one_mark() {
        let object = json!({"metadata": {"uid": "u", "resourceVersion": "5", "labels": {"a": "b"}, "name": "x"}, "data": {}});
        let meta: ObjectMeta = serde_json::from_value(object["metadata"].clone()).unwrap();
        assert_eq!(of_object(&object), of_meta(&meta));
    }
}
