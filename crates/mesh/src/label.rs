//! Label keys.

/// The control plane's namespace that a meshed pod belongs to; set on every injected pod.
pub const CONTROL_PLANE_NS: &str = "linkerd.io/control-plane-ns";
/// The component of the control plane that a workload is: `destination`, `identity`, `proxy-injector`.
pub const CONTROL_PLANE_COMPONENT: &str = "linkerd.io/control-plane-component";
/// The namespace that an injected pod runs in.
pub const WORKLOAD_NS: &str = "linkerd.io/workload-ns";
/// Marks the control plane's namespace.
pub const IS_CONTROL_PLANE: &str = "linkerd.io/is-control-plane";
/// Prefix of the labels that name an injected pod's owner: `linkerd.io/proxy-deployment`, …
pub const PROXY_OWNER_PREFIX: &str = "linkerd.io/proxy-";
/// On a namespace: `disabled` keeps all of Heddle's admission webhooks away from it.
pub const ADMISSION_WEBHOOKS: &str = "config.linkerd.io/admission-webhooks";
/// Marks the CNI plugin's own pods, which are never injected.
pub const CNI_RESOURCE: &str = "linkerd.io/cni-resource";
/// Kubernetes' own label for what manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The mesh profile that an object was rendered from.
pub const PROFILE: &str = "heddle.dev/profile";
/// Kubernetes' zone label on nodes.
pub const ZONE: &str = "topology.kubernetes.io/zone";
