//! An object of any kind as the API server wrote it. It is read when its turn comes, and only what the index keeps of it
//! stays: so a page of large objects never lives as a page of large structures. One that cannot be read does not stop
//! the others. That all kinds are one type here keeps the program small, too: what follows a watch is compiled once.

use std::{borrow::Cow, fmt, sync::Arc};

use kube::{
    Resource,
    core::{ApiResource, DynamicResourceScope, ObjectMeta},
};
use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_json::value::RawValue;

/// An object that is not read yet. An event of a watch must name its type before it, as API servers write it.
#[derive(Clone)]
pub(super) struct Raw {
    /// Name, namespace, resource version and uid alone.
    metadata: ObjectMeta,
    text: Arc<RawValue>,
}

impl Raw {
    pub(super) fn read<K: DeserializeOwned>(&self) -> serde_json::Result<K> {
        serde_json::from_str(self.text.get())
    }
}

/// What can be said of every object.
#[derive(Deserialize)]
struct Named {
    #[serde(default)]
    metadata: Names,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Names {
    name: Option<String>,
    namespace: Option<String>,
    resource_version: Option<String>,
    uid: Option<String>,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<RawValue>::deserialize(deserializer)?;
        let Named { metadata } = serde_json::from_str(text.get()).map_err(serde::de::Error::custom)?;
        let Names {
            name,
            namespace,
            resource_version,
            uid,
        } = metadata;
        Ok(Self {
            metadata: ObjectMeta {
                name,
                namespace,
                resource_version,
                uid,
                ..ObjectMeta::default()
            },
            text: text.into(),
        })
    }
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Raw").field("metadata", &self.metadata).finish()
    }
}

impl Resource for Raw {
    type DynamicType = ApiResource;
    type Scope = DynamicResourceScope;

    fn kind(kind: &ApiResource) -> Cow<'_, str> {
        kind.kind.as_str().into()
    }

    fn group(kind: &ApiResource) -> Cow<'_, str> {
        kind.group.as_str().into()
    }

    fn version(kind: &ApiResource) -> Cow<'_, str> {
        kind.version.as_str().into()
    }

    fn plural(kind: &ApiResource) -> Cow<'_, str> {
        kind.plural.as_str().into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::core::{ObjectList, WatchEvent};

    use super::*;
    use crate::ObjectKey;

    const GOOD: &str = r#"{"kind":"Service","metadata":{"name":"web","namespace":"ns","resourceVersion":"7"},"spec":{"ports":[]}}"#;
    const BAD: &str = r#"{"metadata":{"name":"bad","namespace":"ns"},"spec":{"ports":"none"}}"#;

    #[test]
    fn a_list_is_read_object_by_object() {
        let text = format!(
            r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{{"resourceVersion":"9"}},"items":[{GOOD},{BAD}]}}"#
        );
        let list: ObjectList<Raw> = serde_json::from_str(&text).expect("a list");
        let [good, bad] = list.items.as_slice() else {
            panic!("{} items", list.items.len());
        };
        assert_eq!(ObjectKey::of(good), ObjectKey::new("ns", "web"));
        assert_eq!(good.meta().resource_version.as_deref(), Some("7"));
        assert!(good.read::<Service>().expect("a Service").spec.is_some());
        assert_eq!(ObjectKey::of(bad), ObjectKey::new("ns", "bad"));
        assert!(
            bad.read::<Service>().is_err(),
            "a text was taken for a list of ports"
        );
    }

    #[test]
    fn events_of_a_watch_are_read() {
        let text = format!(r#"{{"type":"MODIFIED","object":{GOOD}}}"#);
        let event: WatchEvent<Raw> = serde_json::from_str(&text).expect("an event");
        let WatchEvent::Modified(object) = event else {
            panic!("{event:?}");
        };
        assert_eq!(ObjectKey::of(&object), ObjectKey::new("ns", "web"));
    }
}
