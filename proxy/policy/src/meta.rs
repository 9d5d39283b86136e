//! The resource that a policy, route, authorization or backend comes from, as metrics name it.

use std::sync::Arc;

use linkerd2_proxy_api::meta as proto;

use crate::Invalid;

/// Where a piece of policy comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Meta {
    /// Built in: the control plane's or the proxy's default of this name.
    Default(Arc<str>),
    /// A Kubernetes resource.
    Resource(Arc<Resource>),
}

/// A reference to a Kubernetes resource.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Resource {
    /// API group; `core` for the core group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Section of the resource, or empty.
    pub section: String,
    /// Port, or 0.
    pub port: u16,
}

impl Meta {
    /// A default of the given name.
    pub fn default_named(name: &str) -> Self {
        Self::Default(name.into())
    }

    /// Whether it is the default that lets everyone in, for others to see who would be shut out.
    pub fn is_audit(&self) -> bool {
        matches!(self, Self::Default(name) if **name == *"audit")
    }

    /// The resource's group; empty for defaults.
    pub fn group(&self) -> &str {
        match self {
            Self::Default(_) => "",
            Self::Resource(resource) => &resource.group,
        }
    }

    /// The resource's kind; `default` for defaults.
    pub fn kind(&self) -> &str {
        match self {
            Self::Default(_) => "default",
            Self::Resource(resource) => &resource.kind,
        }
    }

    /// The resource's, or the default's, name.
    pub fn name(&self) -> &str {
        match self {
            Self::Default(name) => name,
            Self::Resource(resource) => &resource.name,
        }
    }

    /// The resource's namespace; empty for defaults.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Default(_) => "",
            Self::Resource(resource) => &resource.namespace,
        }
    }

    /// The resource's section; empty when there is none.
    pub fn section(&self) -> &str {
        match self {
            Self::Default(_) => "",
            Self::Resource(resource) => &resource.section,
        }
    }

    /// The resource's port; 0 when there is none.
    pub fn port(&self) -> u16 {
        match self {
            Self::Default(_) => 0,
            Self::Resource(resource) => resource.port,
        }
    }

    /// Reads a field that must hold metadata.
    pub(crate) fn required(field: &str, meta: Option<proto::Metadata>) -> Result<Self, Invalid> {
        meta.ok_or_else(|| Invalid::missing(field))?
            .try_into()
            .map_err(|error: Invalid| error.within(field))
    }
}

impl TryFrom<proto::Metadata> for Meta {
    type Error = Invalid;

    fn try_from(meta: proto::Metadata) -> Result<Self, Invalid> {
        match meta.kind.ok_or_else(|| Invalid::missing("kind"))? {
            proto::metadata::Kind::Default(name) => Ok(Self::Default(name.into())),
            proto::metadata::Kind::Resource(resource) => {
                let proto::Resource {
                    group,
                    kind,
                    name,
                    namespace,
                    section,
                    port,
                } = resource;
                for (field, value) in [("kind", &kind), ("name", &name)] {
                    if value.is_empty() {
                        return Err(Invalid::new(format!("resource.{field}"), "must not be empty"));
                    }
                }
                let port = u16::try_from(port)
                    .map_err(|_| Invalid::new("resource.port", "must be at most 65535"))?;
                Ok(Self::Resource(Arc::new(Resource {
                    group,
                    kind,
                    name,
                    namespace,
                    section,
                    port,
                })))
            }
        }
    }
}
