//! `Settings`: the mesh's defaults with one pod's annotations applied. Everything that the sidecar's spec depends on,
//! apart from the trust anchors and the pod's own shape.

use crate::defaults::{Image, InitValues, ProxyDefaults, ProxyValues};

/// What one pod's sidecar is made of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Settings {
    pub(crate) control_namespace: String,
    pub(crate) cluster_domain: String,
    pub(crate) trust_domain: String,
    pub(crate) cluster_networks: Vec<String>,
    pub(crate) proxy: ProxyValues,
    pub(crate) init: InitValues,
    /// An annotation that picks another proxy image leaves the init image alone: a stock linkerd2-proxy lacks
    /// `/heddle-init`.
    pub(crate) init_image: Image,
    /// The proxy routes by the request's authority, whatever address the application connected to.
    pub(crate) ingress: bool,
    /// The proxy is a multicluster gateway.
    pub(crate) gateway: bool,
    /// Names in the opaque-ports annotation that no container port has.
    pub(crate) unknown_port_names: Vec<String>,
}

impl Settings {
    pub(crate) fn from_defaults(defaults: &ProxyDefaults, ingress: bool) -> Self {
        let ProxyDefaults {
            control_namespace,
            cluster_domain,
            trust_domain,
            cluster_networks,
            proxy,
            proxy_init,
        } = defaults;
        Self {
            control_namespace: control_namespace.clone(),
            cluster_domain: cluster_domain.trim_end_matches('.').to_owned(),
            trust_domain: trust_domain.to_string(),
            cluster_networks: cluster_networks.clone(),
            init_image: proxy_init.image.clone().unwrap_or_else(|| proxy.image.clone()),
            proxy: proxy.clone(),
            init: proxy_init.clone(),
            ingress,
            gateway: false,
            unknown_port_names: Vec::new(),
        }
    }
}
