//! References from one object to another by group, kind and name, as policies write them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Names an object in the same namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LocalTargetRef {
    /// API group of the object. Empty, absent or `core` mean Kubernetes' core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: Option<String>,
    /// Kind of the object.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub kind: String,
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Names an object in the same or another namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NamespacedTargetRef {
    /// API group of the object. Empty, absent or `core` mean Kubernetes' core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: Option<String>,
    /// Kind of the object.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub kind: String,
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Namespace of the object. Absent or empty: the namespace of the referring object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// Names an object, or all objects of a kind in a namespace when the name is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityRef {
    /// API group of the object. Empty, absent or `core` mean Kubernetes' core group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 253),
        regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub group: Option<String>,
    /// `ServiceAccount`, or `Namespace` for all of a namespace's service accounts.
    #[schemars(
        length(min = 1, max = 63),
        regex(pattern = r"^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$")
    )]
    pub kind: String,
    /// Name of the service account or namespace. Absent: all service accounts of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
    /// Namespace of the service account. Absent or empty: the namespace of the referring object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63), regex(pattern = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// Whether two API groups are one. Groups compare without regard to case, and `core` is the empty group, as in Linkerd.
pub fn same_group(left: &str, right: &str) -> bool {
    canonical_group(left).eq_ignore_ascii_case(canonical_group(right))
}

fn canonical_group(group: &str) -> &str {
    match group.eq_ignore_ascii_case("core") {
        true => "",
        false => group,
    }
}

/// Whether a reference's group and kind are those of `K`.
pub fn targets_kind<K>(group: Option<&str>, kind: &str) -> bool
where
    K: kube::Resource<DynamicType = ()>,
{
    same_group(group.unwrap_or_default(), &K::group(&())) && kind.eq_ignore_ascii_case(&K::kind(&()))
}

impl LocalTargetRef {
    /// Whether this names an object of kind `K`.
    pub fn targets_kind<K: kube::Resource<DynamicType = ()>>(&self) -> bool {
        targets_kind::<K>(self.group.as_deref(), &self.kind)
    }

    /// Whether this, written in namespace `namespace`, names `object`.
    pub fn targets<K: kube::Resource<DynamicType = ()>>(&self, namespace: &str, object: &K) -> bool {
        let meta = object.meta();
        self.targets_kind::<K>()
            && meta.name.as_deref() == Some(&self.name)
            && meta.namespace.as_deref().is_none_or(|theirs| theirs == namespace)
    }
}

impl NamespacedTargetRef {
    /// Whether this names an object of kind `K`.
    pub fn targets_kind<K: kube::Resource<DynamicType = ()>>(&self) -> bool {
        targets_kind::<K>(self.group.as_deref(), &self.kind)
    }

    /// The namespace of the object that this names, when this is written in namespace `default`.
    pub fn namespace_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or(default)
    }
}

impl IdentityRef {
    /// Whether this names an object of kind `K`.
    pub fn targets_kind<K: kube::Resource<DynamicType = ()>>(&self) -> bool {
        targets_kind::<K>(self.group.as_deref(), &self.kind)
    }

    /// The namespace of the object that this names, when this is written in namespace `default`.
    pub fn namespace_or<'a>(&'a self, default: &'a str) -> &'a str {
        self.namespace
            .as_deref()
            .filter(|namespace| !namespace.is_empty())
            .unwrap_or(default)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};

    use super::*;
    use crate::policy::server::Server;

    fn reference(group: Option<&str>, kind: &str) -> LocalTargetRef {
        LocalTargetRef {
            group: group.map(str::to_owned),
            kind: kind.to_owned(),
            name: "x".to_owned(),
        }
    }

    #[test]
    fn core_group_has_three_spellings_and_case_does_not_matter() {
        for group in [None, Some(""), Some("core")] {
            assert!(
                reference(group, "ServiceAccount").targets_kind::<ServiceAccount>(),
                "{group:?}"
            );
        }
        assert!(reference(Some("policy.linkerd.io"), "server").targets_kind::<Server>());
        assert!(!reference(None, "Server").targets_kind::<Server>());
        assert!(!reference(Some("policy.linkerd.io"), "Namespace").targets_kind::<Namespace>());
    }

    #[test]
    fn empty_namespace_means_the_referrers_own() {
        let with = |namespace: Option<&str>| NamespacedTargetRef {
            namespace: namespace.map(str::to_owned),
            ..NamespacedTargetRef::default()
        };
        assert_eq!(with(None).namespace_or("here"), "here");
        assert_eq!(with(Some("")).namespace_or("here"), "here");
        assert_eq!(with(Some("there")).namespace_or("here"), "there");
    }
}
