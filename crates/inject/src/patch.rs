//! `Injection`: a decision to inject, as a JSON patch.

use std::collections::BTreeMap;

use heddle_mesh::{annotation, label};
use json_patch::{
    AddOperation, Patch, PatchOperation, ReplaceOperation,
    jsonptr::{PointerBuf, Token},
};
use k8s_openapi::api::core::v1::{Container, Pod};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{Owner, ProxyStamp, ports::ContainerPorts, settings::Settings, sidecar};

/// A pod's sidecar, fully decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    pub(crate) settings: Settings,
    pub(crate) ports: ContainerPorts,
    pub(crate) stamp: ProxyStamp,
    pub(crate) labels: BTreeMap<String, String>,
    /// Annotations besides those that depend on the trust anchors.
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) shape: Shape,
    pub(crate) warnings: Vec<String>,
}

/// What of the pod exists already: a JSON patch must create a list or map before adding to it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shape {
    annotations: bool,
    labels: bool,
    init_containers: bool,
    containers: bool,
    /// Names of the pod's volumes, in order.
    volumes: Option<Vec<String>>,
}

impl Shape {
    pub(crate) fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        Self {
            annotations: pod.metadata.annotations.is_some(),
            labels: pod.metadata.labels.is_some(),
            init_containers: spec.is_some_and(|spec| spec.init_containers.is_some()),
            containers: spec.is_some_and(|spec| !spec.containers.is_empty()),
            volumes: spec
                .and_then(|spec| spec.volumes.as_ref())
                .map(|volumes| volumes.iter().map(|volume| volume.name.clone()).collect()),
        }
    }
}

impl Injection {
    /// The JSON patch that makes the pod meshed. The same decision and anchors give the same bytes.
    pub fn patch(&self, trust_anchors_pem: &str) -> Patch {
        let mut patch = Operations::default();
        let (init, proxy) = self.containers(trust_anchors_pem);

        let volumes = sidecar::volumes(&self.settings);
        match &self.shape.volumes {
            None => patch.add(&["spec", "volumes"], &volumes),
            Some(names) => {
                for volume in &volumes {
                    // A template exported from an injected pod may carry our volumes without our containers.
                    match names.iter().position(|name| *name == volume.name) {
                        Some(index) => patch.replace(&["spec", "volumes", &index.to_string()], volume),
                        None => patch.add(&["spec", "volumes", "-"], volume),
                    }
                }
            }
        }

        let native = self.settings.proxy.native_sidecar;
        let mut first: Vec<&Container> = vec![&init];
        if native {
            first.push(&proxy);
        }
        if self.shape.init_containers {
            for (index, container) in first.iter().enumerate() {
                patch.add(&["spec", "initContainers", &index.to_string()], container);
            }
        } else {
            patch.add(&["spec", "initContainers"], &first);
        }
        if !native {
            // The kubelet starts containers in order, and holds the next back until the hook of this one returns.
            let place = if self.settings.proxy_is_first_container() {
                "0"
            } else {
                "-"
            };
            if self.shape.containers {
                patch.add(&["spec", "containers", place], &proxy);
            } else {
                patch.add(&["spec", "containers"], &[&proxy]);
            }
        }
        if let Some(debug) = sidecar::debug(&self.settings) {
            if native && !self.shape.containers {
                patch.add(&["spec", "containers"], &[&debug]);
            } else {
                patch.add(&["spec", "containers", "-"], &debug);
            }
        }

        let mut annotations = self.annotations.clone();
        annotations.insert(
            annotation::TRUST_ROOT_SHA256.to_owned(),
            trust_root_sha256(trust_anchors_pem),
        );
        patch.merge("annotations", self.shape.annotations, &annotations);
        patch.merge("labels", self.shape.labels, &self.labels);
        Patch(patch.0)
    }

    /// The init container that comes first and the proxy's, with the given trust anchors.
    pub fn containers(&self, trust_anchors_pem: &str) -> (Container, Container) {
        (
            sidecar::first(&self.settings),
            sidecar::proxy(&self.settings, &self.ports, trust_anchors_pem),
        )
    }

    /// Fingerprint of the sidecar that this decision makes.
    pub fn stamp(&self) -> ProxyStamp {
        self.stamp.clone()
    }

    /// What the pod's author should know although the pod is injected.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Hex SHA-256 of the trust anchors, as Linkerd writes it on pods: of the text without surrounding blanks.
pub fn trust_root_sha256(trust_anchors_pem: &str) -> String {
    hex::encode(Sha256::digest(trust_anchors_pem.trim().as_bytes()))
}

/// The labels of an injected pod.
pub(crate) fn labels(
    settings: &Settings,
    namespace: &str,
    owner: Option<&Owner>,
) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from([
        (
            label::CONTROL_PLANE_NS.to_owned(),
            settings.control_namespace.clone(),
        ),
        (label::WORKLOAD_NS.to_owned(), namespace.to_owned()),
    ]);
    // Names of workloads may be longer than a label's value, and a pod with such a label would be refused.
    if let Some(owner) = owner.filter(|owner| owner.name.len() <= 63 && owner.is_labelled()) {
        labels.insert(
            format!("{}{}", label::PROXY_OWNER_PREFIX, owner.kind.to_ascii_lowercase()),
            owner.name.clone(),
        );
    }
    labels
}

#[derive(Default)]
struct Operations(Vec<PatchOperation>);

impl Operations {
    fn add(&mut self, path: &[&str], value: &(impl Serialize + ?Sized)) {
        self.0.push(PatchOperation::Add(AddOperation {
            path: pointer(path),
            value: json(value),
        }));
    }

    fn replace(&mut self, path: &[&str], value: &impl Serialize) {
        self.0.push(PatchOperation::Replace(ReplaceOperation {
            path: pointer(path),
            value: json(value),
        }));
    }

    fn merge(&mut self, map: &str, exists: bool, entries: &BTreeMap<String, String>) {
        if !exists {
            return self.add(&["metadata", map], entries);
        }
        for (key, value) in entries {
            self.add(&["metadata", map, key], value);
        }
    }
}

fn pointer(path: &[&str]) -> PointerBuf {
    PointerBuf::from_tokens(path.iter().map(|token| Token::new(*token)))
}

/// Kubernetes objects and maps with text keys always become JSON.
fn json(value: &(impl Serialize + ?Sized)) -> Value {
    serde_json::to_value(value).expect("Kubernetes objects have text keys and no fallible serializers")
}
