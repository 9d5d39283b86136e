//! Why a pod is not injected, and the truth table of `linkerd.io/inject`.

use std::fmt;

use heddle_mesh::{NEVER_INJECTED_NAMESPACES, RECONCILER_NAMESPACE, annotation, label, port};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

use crate::{AnnotationError, Namespace, ProxyDefaults, annotations::Holder};

/// Why a pod is not injected. `Display` is a sentence for people; [`SkipReason::key`] is a word for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// The namespace belongs to Kubernetes, the control plane or the reconciler.
    ProtectedNamespace(String),
    /// The namespace's label keeps admission webhooks away.
    WebhooksDisabled,
    /// The pod shares its node's network, whose traffic is not the pod's alone.
    HostNetwork,
    /// A container of this name is there already.
    SidecarExists(String),
    /// The pod runs on Windows.
    Windows,
    /// The pod mirrors one that a kubelet runs from a file, and cannot be changed here.
    MirrorPod,
    /// Neither pod nor namespace asks for injection.
    NotEnabled,
    /// The pod opts out.
    DisabledByPod,
    /// The namespace opts out, and the pod does not opt in.
    DisabledByNamespace,
    /// Annotations that cannot be read, `linkerd.io/inject` among them.
    Invalid(Vec<AnnotationError>),
    /// There is no pod spec to inject.
    NoSpec,
}

impl SkipReason {
    /// A word for metrics and events.
    pub fn key(&self) -> &'static str {
        match self {
            Self::ProtectedNamespace(_) => "protected_namespace",
            Self::WebhooksDisabled => "admission_webhooks_disabled",
            Self::HostNetwork => "host_network_enabled",
            Self::SidecarExists(_) => "sidecar_exists",
            Self::Windows => "unsupported_os",
            Self::MirrorPod => "mirror_pod",
            Self::NotEnabled => "injection_enable_annotation_absent",
            Self::DisabledByPod => "injection_disable_annotation_present_workload",
            Self::DisabledByNamespace => "injection_disable_annotation_present_namespace",
            Self::Invalid(_) => "invalid_annotation",
            Self::NoSpec => "unsupported_resource",
        }
    }

    /// Whether someone asked for injection and does not get it: worth a warning, too.
    pub fn is_surprising(&self) -> bool {
        matches!(self, Self::HostNetwork | Self::Invalid(_) | Self::Windows)
    }

    /// Whether the workload's owner should find the reason in its Events. Linkerd writes one for each pod that is not
    /// injected; here those say nothing that nobody asked to be in the mesh.
    pub fn is_worth_an_event(&self) -> bool {
        self.is_surprising() || matches!(self, Self::DisabledByPod | Self::SidecarExists(_))
    }
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProtectedNamespace(name) => write!(f, "pods of namespace {name} are never injected"),
            Self::WebhooksDisabled => {
                write!(
                    f,
                    "the namespace's label {}=disabled keeps webhooks away",
                    label::ADMISSION_WEBHOOKS
                )
            }
            Self::HostNetwork => {
                f.write_str("the pod has hostNetwork: true, so its traffic cannot be redirected")
            }
            Self::SidecarExists(name) => write!(f, "container {name} is in the pod already"),
            Self::Windows => f.write_str("the pod runs on Windows, where traffic cannot be redirected"),
            Self::MirrorPod => f.write_str("the pod is static: its kubelet runs it from a file"),
            Self::NotEnabled => {
                write!(
                    f,
                    "neither the pod nor its namespace has the annotation {}: enabled",
                    annotation::INJECT
                )
            }
            Self::DisabledByPod => write!(f, "the pod has the annotation {}: disabled", annotation::INJECT),
            Self::DisabledByNamespace => write!(
                f,
                "the namespace has the annotation {}: disabled",
                annotation::INJECT
            ),
            Self::Invalid(errors) => {
                for (i, error) in errors.iter().enumerate() {
                    if i > 0 {
                        f.write_str("; ")?;
                    }
                    write!(f, "{error}")?;
                }
                Ok(())
            }
            Self::NoSpec => f.write_str("the pod has no spec"),
        }
    }
}

/// What `linkerd.io/inject` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Enabled,
    Ingress,
}

/// What about the namespace forbids injection, whatever the annotations say.
pub(crate) fn namespace_forbids(defaults: &ProxyDefaults, namespace: &Namespace<'_>) -> Option<SkipReason> {
    let protected = NEVER_INJECTED_NAMESPACES.contains(&namespace.name)
        || namespace.name == RECONCILER_NAMESPACE
        || namespace.name == defaults.control_namespace
        || namespace.labels.contains_key(label::IS_CONTROL_PLANE);
    if protected {
        return Some(SkipReason::ProtectedNamespace(namespace.name.to_owned()));
    }
    let disabled = namespace
        .labels
        .get(label::ADMISSION_WEBHOOKS)
        .is_some_and(|value| value == "disabled");
    disabled.then_some(SkipReason::WebhooksDisabled)
}

/// What about the pod forbids injection, although it was asked for.
pub(crate) fn pod_forbids(pod: &Pod, spec: &PodSpec) -> Option<SkipReason> {
    /// Kubernetes' own mark of a mirror pod.
    const MIRROR: &str = "kubernetes.io/config.mirror";
    if pod
        .metadata
        .annotations
        .as_ref()
        .is_some_and(|all| all.contains_key(MIRROR))
    {
        return Some(SkipReason::MirrorPod);
    }
    if spec.host_network == Some(true) {
        return Some(SkipReason::HostNetwork);
    }
    if spec.os.as_ref().is_some_and(|os| os.name == "windows") {
        return Some(SkipReason::Windows);
    }
    sidecar(spec).map(|container| SkipReason::SidecarExists(container.name.clone()))
}

/// The truth table: the pod's annotation wins over the namespace's; an invalid value on either is an error.
pub(crate) fn asked(namespace: &Namespace<'_>, pod: &Pod) -> Result<Mode, SkipReason> {
    let on_pod = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotation::INJECT));
    let on_pod = wish(on_pod, Holder::Pod)?;
    let on_namespace = wish(namespace.annotations.get(annotation::INJECT), Holder::Namespace)?;
    match (on_pod, on_namespace) {
        (Some(Wish::Disabled), _) => Err(SkipReason::DisabledByPod),
        (Some(Wish::Mode(mode)), _) | (None, Some(Wish::Mode(mode))) => Ok(mode),
        (None, Some(Wish::Disabled)) => Err(SkipReason::DisabledByNamespace),
        (None, None) => Err(SkipReason::NotEnabled),
    }
}

enum Wish {
    Mode(Mode),
    Disabled,
}

fn wish(value: Option<&String>, holder: Holder) -> Result<Option<Wish>, SkipReason> {
    match value.map(|value| value.as_str()) {
        None | Some("") => Ok(None),
        Some("enabled") => Ok(Some(Wish::Mode(Mode::Enabled))),
        Some("ingress") => Ok(Some(Wish::Mode(Mode::Ingress))),
        Some("disabled") => Ok(Some(Wish::Disabled)),
        Some(other) => Err(SkipReason::Invalid(vec![AnnotationError {
            name: annotation::INJECT.to_owned(),
            holder,
            value: other.to_owned(),
            expected: "`enabled`, `disabled` or `ingress`".to_owned(),
        }])),
    }
}

/// A container that redirects or proxies the pod's traffic already: ours, Linkerd's or Istio's.
fn sidecar(spec: &PodSpec) -> Option<&Container> {
    let names = [
        port::PROXY_CONTAINER,
        port::INIT_CONTAINER,
        port::NETWORK_VALIDATOR_CONTAINER,
        "istio-proxy",
        "istio-init",
    ];
    let init = spec.init_containers.iter().flatten();
    spec.containers
        .iter()
        .chain(init)
        .find(|container| names.contains(&container.name.as_str()))
}
