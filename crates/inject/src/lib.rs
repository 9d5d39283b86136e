//! Who is injected, and with what.
//!
//! In go the mesh's defaults ([`ProxyDefaults`]), a namespace, a pod and its owner; out comes a [`Decision`]: an
//! [`Injection`], which is a JSON patch and a [`ProxyStamp`], or a [`SkipReason`]. Everything is pure and
//! deterministic. The webhook, `heddle inject` and the rollout planner call the same [`decide`], so that what a plan
//! predicts is what admission does. This crate does no I/O and must never know a cluster, a clock or a key.

mod annotations;
mod defaults;
mod environment;
mod owner;
mod patch;
mod ports;
mod quantity;
mod seen;
mod service;
mod setting;
mod settings;
mod sidecar;
mod skip;
mod stamp;

use std::collections::BTreeMap;

use heddle_mesh::{VERSION, annotation};
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};

pub use annotations::{AnnotationError, Holder};
pub use defaults::{
    Amount, Cni, Collector, ConfigError, ControlStreams, Cpu, DebugContainer, DebugImage, Image, InitValues,
    MeshIdentity, NetworkValidator, Ports, ProxyDefaults, ProxyValues, Resources, SkippedPorts, Tracing,
};
pub use owner::Owner;
pub use patch::{Injection, trust_root_sha256};
pub use quantity::{Quantity, QuantityError};
pub use seen::SeenPod;
pub use service::decide_service;
pub use setting::{AccessLog, InboundPolicy, LogFormat, LogHttpHeaders, PullPolicy, Timeout};
pub use skip::SkipReason;
pub use stamp::ProxyStamp;

/// The annotation that holds a pod's stamp.
pub const STAMP_ANNOTATION: &str = annotation::PROXY_STAMP;

/// The ConfigMap of the control plane's namespace that holds the [`ProxyDefaults`].
pub const CONFIG_MAP: &str = "linkerd-config";

/// The key of [`CONFIG_MAP`] that holds them.
pub const CONFIG_KEY: &str = "values";

/// A namespace, as far as it matters to its pods.
#[derive(Clone, Copy, Debug)]
pub struct Namespace<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its annotations.
    pub annotations: &'a BTreeMap<String, String>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Whether a pod is injected.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// With this sidecar.
    Inject(Box<Injection>),
    /// It is not, and why.
    Skip(SkipReason),
}

/// Decides about a pod, or about a workload's pod template (see [`pod_of_template`]).
pub fn decide(
    defaults: &ProxyDefaults,
    namespace: &Namespace<'_>,
    pod: &Pod,
    owner: Option<&Owner>,
) -> Decision {
    match try_inject(defaults, namespace, pod, owner) {
        Ok(injection) => Decision::Inject(Box::new(injection)),
        Err(reason) => Decision::Skip(reason),
    }
}

/// What about a pod forbids injection, whatever its namespace says: for those who do not know the namespace.
pub fn obstacle(pod: &Pod) -> Option<SkipReason> {
    let Some(spec) = &pod.spec else {
        return Some(SkipReason::NoSpec);
    };
    let none = BTreeMap::new();
    let nowhere = Namespace {
        name: "",
        annotations: &none,
        labels: &none,
    };
    let asked = match skip::asked(&nowhere, pod) {
        Ok(_) | Err(SkipReason::NotEnabled) => None,
        Err(reason) => Some(reason),
    };
    asked.or_else(|| skip::pod_forbids(pod, spec))
}

/// Whether a template's containers declare UDP ports, whose traffic the proxy does not carry.
pub fn uses_udp(template: &PodTemplateSpec) -> bool {
    let containers = template.spec.iter().flat_map(|spec| &spec.containers);
    let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
    ports.any(|port| port.protocol.as_deref() == Some("UDP"))
}

/// The pod that a workload's template makes, before any admission.
pub fn pod_of_template(template: &PodTemplateSpec) -> Pod {
    Pod {
        metadata: template.metadata.clone().unwrap_or_default(),
        spec: template.spec.clone(),
        status: None,
    }
}

fn try_inject(
    defaults: &ProxyDefaults,
    namespace: &Namespace<'_>,
    pod: &Pod,
    owner: Option<&Owner>,
) -> Result<Injection, SkipReason> {
    let spec = pod.spec.as_ref().ok_or(SkipReason::NoSpec)?;
    skip::namespace_forbids(defaults, namespace).map_or(Ok(()), Err)?;
    let mode = skip::asked(namespace, pod)?;
    skip::pod_forbids(pod, spec).map_or(Ok(()), Err)?;

    let on_pod = pod.metadata.annotations.as_ref();
    let in_force = annotations::in_force(namespace.annotations, on_pod);
    let ports = ports::ContainerPorts::of(spec);
    let mut settings = settings::Settings::from_defaults(defaults, mode == skip::Mode::Ingress);
    let errors = annotations::apply(&mut settings, &in_force, &ports);
    if !errors.is_empty() {
        return Err(SkipReason::Invalid(errors));
    }

    settings.span_attributes = annotations::span_attributes(on_pod);

    let (sidecar, stamp) = ProxyStamp::of(&mut settings, &in_force);
    let mut warnings: Vec<String> = on_pod
        .into_iter()
        .flat_map(annotations::without_effect)
        .map(|name| format!("annotation {name} has no effect in Heddle"))
        .collect();
    warnings.extend(settings.unknown_port_names.iter().map(|name| {
        format!(
            "annotation {}: no container port of the pod is called `{name}`",
            annotation::OPAQUE_PORTS
        )
    }));
    Ok(Injection {
        labels: patch::labels(&settings, namespace.name, owner),
        annotations: pod_annotations(&settings, &ports, &stamp, namespace, pod),
        shape: patch::Shape::of(pod),
        sidecar,
        settings,
        ports,
        stamp,
        warnings,
    })
}

/// What is written on the pod: what the namespace handed down, so that the pod tells its own story and the control
/// plane needs to read one object only, and what the sidecar is.
fn pod_annotations(
    settings: &settings::Settings,
    ports: &ports::ContainerPorts,
    stamp: &ProxyStamp,
    namespace: &Namespace<'_>,
    pod: &Pod,
) -> BTreeMap<String, String> {
    let on_pod = pod.metadata.annotations.as_ref();
    let has = |name: &str| on_pod.is_some_and(|all| all.contains_key(name));
    let mut written: BTreeMap<String, String> = annotations::inherited()
        .chain([annotation::INJECT])
        .filter(|name| !has(name))
        .filter_map(|name| Some((name.to_owned(), namespace.annotations.get(name)?.clone())))
        .collect();
    // Where nobody says which ports are opaque, the pod says which of the defaults concern it, as Linkerd's do.
    if !has(annotation::OPAQUE_PORTS) && !written.contains_key(annotation::OPAQUE_PORTS) {
        let opaque = ports
            .with(&settings.pod_inbound_ports)
            .into_iter()
            .filter(|port| settings.proxy.opaque_ports.contains(*port));
        let opaque: Vec<String> = opaque.map(|port| port.to_string()).collect();
        if !opaque.is_empty() {
            written.insert(annotation::OPAQUE_PORTS.to_owned(), opaque.join(","));
        }
    }
    // A plain sidecar that comes first would be the one that `kubectl logs` and `kubectl exec` take.
    let app = pod.spec.as_ref().and_then(|spec| spec.containers.first());
    if let Some(app) =
        app.filter(|_| settings.proxy_is_first_container() && !has(annotation::DEFAULT_CONTAINER))
    {
        written.insert(annotation::DEFAULT_CONTAINER.to_owned(), app.name.clone());
    }
    written.insert(
        annotation::CREATED_BY.to_owned(),
        format!("linkerd/proxy-injector heddle-{VERSION}"),
    );
    written.insert(
        annotation::PROXY_VERSION.to_owned(),
        settings.proxy.image.version.clone(),
    );
    written.insert(annotation::PROXY_STAMP.to_owned(), stamp.to_string());
    written
}

#[cfg(test)]
mod tests;
