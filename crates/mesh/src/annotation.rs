//! Annotation keys on namespaces, workloads, pods and services.

/// Whether pods are injected: `enabled`, `disabled` or `ingress`; on a pod or its namespace.
pub const INJECT: &str = "linkerd.io/inject";
/// Who injected a pod: `linkerd/proxy-injector VERSION`.
pub const CREATED_BY: &str = "linkerd.io/created-by";
/// The version of the proxy that a pod carries.
pub const PROXY_VERSION: &str = "linkerd.io/proxy-version";
/// Hex SHA-256 of the trust anchors that a pod's proxy started with.
pub const TRUST_ROOT_SHA256: &str = "linkerd.io/trust-root-sha256";
/// Fingerprint of everything that decided a pod's sidecar; the rollout compares it with what Git asks for.
pub const PROXY_STAMP: &str = "heddle.dev/proxy-stamp";
/// On a workload's pod template: when, and by which commit, Heddle restarted it.
pub const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
/// On a rendered object: apply it only when this CRD (`plural.group`) exists. Never reaches the API server.
pub const REQUIRES_CRD: &str = "heddle.dev/requires-crd";
/// On a live or rendered object: `disabled` keeps Heddle from deleting it when it leaves Git.
pub const PRUNE: &str = "heddle.dev/prune";
/// On a live object: `disabled` makes Heddle leave it alone altogether.
pub const RECONCILE: &str = "heddle.dev/reconcile";
/// On a Server: `enabled` lets the kubelet's probes pass even when routes are attached to it.
pub const AUTHORIZE_PROBES: &str = "heddle.dev/authorize-probes";

/// Prefix of the settings that a namespace or pod gives to its proxies.
pub const CONFIG_PREFIX: &str = "config.linkerd.io/";
/// Prefix of settings that Linkerd calls alpha.
pub const CONFIG_ALPHA_PREFIX: &str = "config.alpha.linkerd.io/";
/// Prefix of settings that Linkerd calls beta.
pub const CONFIG_BETA_PREFIX: &str = "config.beta.linkerd.io/";
/// Prefix of the annotations that become attributes of a pod's spans.
pub const RESOURCE_ATTRIBUTE_PREFIX: &str = "resource.opentelemetry.io/";
/// Kubernetes' own: the container that `kubectl logs` and `kubectl exec` take when none is named.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";
/// Ports that carry bytes the proxy must not look into; on pods, namespaces and services.
pub const OPAQUE_PORTS: &str = "config.linkerd.io/opaque-ports";
/// Policy for connections that no Server selects.
pub const DEFAULT_INBOUND_POLICY: &str = "config.linkerd.io/default-inbound-policy";
/// Inbound ports that only clients with a mesh identity may use.
pub const REQUIRE_IDENTITY_PORTS: &str = "config.linkerd.io/proxy-require-identity-inbound-ports";
/// Inbound ports that bypass the proxy.
pub const SKIP_INBOUND_PORTS: &str = "config.linkerd.io/skip-inbound-ports";
/// Outbound ports that bypass the proxy.
pub const SKIP_OUTBOUND_PORTS: &str = "config.linkerd.io/skip-outbound-ports";
