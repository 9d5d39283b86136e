//! `Injection`: a decision to inject, as a JSON patch.

use std::collections::BTreeMap;

use heddle_mesh::{annotation, label};
use json_patch::{
    Patch,
    jsonptr::{PointerBuf, Token},
};
use k8s_openapi::api::core::v1::{Container, Pod, Volume};
use serde::Serialize;
use sha2::{Digest, Sha256};

use crate::{Owner, ProxyStamp, ports::ContainerPorts, settings::Settings, sidecar::Sidecar};

/// A patch has about this many bytes: some variables, and the trust anchors.
const PATCH_BYTES_EXPECTED: usize = 12 << 10;

/// A pod's sidecar, fully decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Injection {
    pub(crate) settings: Settings,
    /// Complete but for the pod's own ports and the trust anchors.
    pub(crate) sidecar: Sidecar,
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
    /// The JSON patch that makes the pod meshed, as text. The same decision and anchors give the same bytes.
    pub fn into_patch(self, trust_anchors_pem: &str) -> Vec<u8> {
        let Self {
            settings,
            mut sidecar,
            ports,
            stamp: _,
            labels,
            mut annotations,
            shape,
            warnings: _,
        } = self;
        sidecar.complete(&settings, &ports, trust_anchors_pem);
        let Sidecar {
            first,
            proxy,
            debug,
            volumes,
        } = &sidecar;
        let mut patch = Operations::default();

        match &shape.volumes {
            None => patch.add(&["spec", "volumes"], Part::Volumes(volumes)),
            Some(names) => {
                for volume in volumes {
                    let part = Part::Volume(volume);
                    // A template exported from an injected pod may carry our volumes without our containers.
                    match names.iter().position(|name| *name == volume.name) {
                        Some(index) => patch.replace(&["spec", "volumes", &index.to_string()], part),
                        None => patch.add(&["spec", "volumes", "-"], part),
                    }
                }
            }
        }

        let native = settings.proxy.native_sidecar;
        let mut before = vec![first];
        if native {
            before.push(proxy);
        }
        if shape.init_containers {
            for (index, container) in before.into_iter().enumerate() {
                let path = ["spec", "initContainers", &index.to_string()];
                patch.add(&path, Part::Container(container));
            }
        } else {
            patch.add(&["spec", "initContainers"], Part::Containers(before));
        }
        if !native {
            // The kubelet starts containers in order, and holds the next back until the hook of this one returns.
            let place = match settings.proxy_is_first_container() {
                true => "0",
                false => "-",
            };
            patch.container(shape.containers, place, proxy);
        }
        if let Some(debug) = debug {
            patch.container(!native || shape.containers, "-", debug);
        }

        annotations.insert(
            annotation::TRUST_ROOT_SHA256.to_owned(),
            trust_root_sha256(trust_anchors_pem),
        );
        patch.merge("annotations", shape.annotations, &annotations);
        patch.merge("labels", shape.labels, &labels);
        let mut text = Vec::with_capacity(PATCH_BYTES_EXPECTED);
        serde_json::to_writer(&mut text, &patch.0)
            .expect("Kubernetes objects have text keys and no fallible serializers");
        text
    }

    /// The same patch, for applying it.
    pub fn patch(&self, trust_anchors_pem: &str) -> Patch {
        let text = self.clone().into_patch(trust_anchors_pem);
        serde_json::from_slice(&text).expect("what is written is a patch")
    }

    /// The init container that comes first and the proxy's, with the given trust anchors.
    pub fn containers(&self, trust_anchors_pem: &str) -> (Container, Container) {
        let mut sidecar = self.sidecar.clone();
        sidecar.complete(&self.settings, &self.ports, trust_anchors_pem);
        (sidecar.first, sidecar.proxy)
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

/// A patch's operations, in order.
#[derive(Default)]
struct Operations<'a>(Vec<Operation<'a>>);

#[derive(Serialize)]
struct Operation<'a> {
    op: &'static str,
    path: PointerBuf,
    value: Part<'a>,
}

/// What an operation puts into the pod.
#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Container(&'a Container),
    Containers(Vec<&'a Container>),
    Volume(&'a Volume),
    Volumes(&'a [Volume]),
    Entry(&'a str),
    Entries(&'a BTreeMap<String, String>),
}

impl<'a> Operations<'a> {
    fn add(&mut self, path: &[&str], value: Part<'a>) {
        self.push("add", path, value);
    }

    fn replace(&mut self, path: &[&str], value: Part<'a>) {
        self.push("replace", path, value);
    }

    fn push(&mut self, op: &'static str, path: &[&str], value: Part<'a>) {
        let path = PointerBuf::from_tokens(path.iter().map(|token| Token::new(*token)));
        self.0.push(Operation { op, path, value });
    }

    /// Adds one to the containers that are there, or the first.
    fn container(&mut self, exist: bool, place: &str, container: &'a Container) {
        match exist {
            true => self.add(&["spec", "containers", place], Part::Container(container)),
            false => self.add(&["spec", "containers"], Part::Containers(vec![container])),
        }
    }

    fn merge(&mut self, map: &str, exists: bool, entries: &'a BTreeMap<String, String>) {
        if !exists {
            return self.add(&["metadata", map], Part::Entries(entries));
        }
        for (key, value) in entries {
            self.add(&["metadata", map, key], Part::Entry(value));
        }
    }
}
