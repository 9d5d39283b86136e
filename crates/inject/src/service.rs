//! Services: which of their ports are opaque.
//!
//! Clients of a Service learn from its annotation which of its ports they must not look into. As Linkerd, Heddle
//! writes the annotation on new Services that lack it: the namespace's, or the defaults that concern their ports.

use std::collections::BTreeMap;

use heddle_mesh::annotation;
use json_patch::{
    AddOperation, Patch, PatchOperation,
    jsonptr::{PointerBuf, Token},
};
use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::json;

use crate::{Namespace, ProxyDefaults, skip};

/// The patch that gives a new Service its opaque-ports annotation, or none where there is nothing to say.
pub fn decide_service(
    defaults: &ProxyDefaults,
    namespace: &Namespace<'_>,
    service: &Service,
) -> Option<Patch> {
    skip::namespace_forbids(defaults, namespace).map_or(Some(()), |_| None)?;
    let existing = service.metadata.annotations.as_ref();
    if existing.is_some_and(|all| all.contains_key(annotation::OPAQUE_PORTS)) {
        return None;
    }
    let value = match namespace.annotations.get(annotation::OPAQUE_PORTS) {
        Some(inherited) => inherited.clone(),
        None => defaults_for(defaults, service)?,
    };
    let (path, value) = match existing {
        Some(_) => (
            vec!["metadata", "annotations", annotation::OPAQUE_PORTS],
            json!(value),
        ),
        None => (
            vec!["metadata", "annotations"],
            json!(BTreeMap::from([(annotation::OPAQUE_PORTS, value)])),
        ),
    };
    let path = PointerBuf::from_tokens(path.into_iter().map(Token::new));
    Some(Patch(vec![PatchOperation::Add(AddOperation { path, value })]))
}

/// The default opaque ports among a Service's own: a client sees the Service's port, or, at a pod, its target.
fn defaults_for(defaults: &ProxyDefaults, service: &Service) -> Option<String> {
    let ports = service.spec.as_ref()?.ports.as_deref().unwrap_or_default();
    let concerns = |number: i32| u16::try_from(number).is_ok_and(|n| defaults.proxy.opaque_ports.contains(n));
    let mut opaque: Vec<i32> = ports
        .iter()
        .filter(|port| {
            let target = match port.target_port {
                Some(IntOrString::Int(target)) => target,
                _ => port.port,
            };
            concerns(port.port) || concerns(target)
        })
        .map(|port| port.port)
        .collect();
    opaque.sort_unstable();
    opaque.dedup();
    let opaque: Vec<String> = opaque.iter().map(i32::to_string).collect();
    Some(opaque.join(",")).filter(|text| !text.is_empty())
}
