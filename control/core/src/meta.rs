//! Names of the things that settings come from; they become labels of the proxy's metrics.

/// What a setting comes from: a Kubernetes object, or a default of the control plane's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Meta {
    /// A default, by its name, such as `http` or `all-unauthenticated`.
    Default(&'static str),
    /// An object of the cluster.
    Resource(ResourceRef),
}

/// An object of the cluster, perhaps one of its ports or sections.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ResourceRef {
    /// The API group; `core` for Kubernetes' own, because proxies refuse an empty one.
    pub group: &'static str,
    /// The kind, as the API spells it.
    pub kind: &'static str,
    /// The object's namespace.
    pub namespace: String,
    /// The object's name.
    pub name: String,
    /// A section (a rule's or listener's name), or empty.
    pub section: String,
    /// The port, when one is meant.
    pub port: Option<u16>,
}

impl ResourceRef {
    /// A Service's port.
    pub fn service(namespace: &str, name: &str, port: u16) -> Self {
        Self {
            group: "core",
            kind: "Service",
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            section: String::new(),
            port: Some(port),
        }
    }
}
