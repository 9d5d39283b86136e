//! `Settings`: the mesh's defaults with one pod's annotations applied. Everything that the sidecar's spec depends on,
//! apart from the trust anchors and the pod's own shape.

use std::collections::BTreeMap;

use heddle_mesh::PortSet;

use crate::defaults::{DebugImage, Image, InitValues, NetworkValidator, ProxyDefaults, ProxyValues};

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
    /// A CNI plugin redirects the pod's traffic, and this container checks that it did.
    pub(crate) validator: Option<NetworkValidator>,
    /// Whether there is a debug container.
    pub(crate) debug: bool,
    /// The debug container's image.
    pub(crate) debug_image: DebugImage,
    /// Ports that the pod's author names beside those that containers declare.
    pub(crate) pod_inbound_ports: PortSet,
    /// Attributes of the proxy's spans, from the pod's annotations `resource.opentelemetry.io/…`.
    pub(crate) span_attributes: BTreeMap<String, String>,
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
            cni,
            network_validator,
            debug_container,
        } = defaults;
        Self {
            control_namespace: control_namespace.clone(),
            cluster_domain: cluster_domain.trim_end_matches('.').to_owned(),
            trust_domain: trust_domain.to_string(),
            cluster_networks: cluster_networks.clone(),
            init_image: proxy_init.image.clone().unwrap_or_else(|| proxy.image.clone()),
            proxy: proxy.clone(),
            init: proxy_init.clone(),
            validator: cni.enabled.then(|| network_validator.clone()),
            debug: false,
            debug_image: debug_container.image.clone(),
            pod_inbound_ports: PortSet::default(),
            span_attributes: BTreeMap::new(),
            ingress,
            gateway: false,
            unknown_port_names: Vec::new(),
        }
    }

    /// Whether the proxy is put before the pod's own containers, among them.
    pub(crate) fn proxy_is_first_container(&self) -> bool {
        !self.proxy.native_sidecar && self.proxy.await_ready
    }
}
