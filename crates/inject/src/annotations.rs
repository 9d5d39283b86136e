//! The table of `config.linkerd.io/` annotations: names, inheritance, and what each does to the settings.
//!
//! A pod's annotation wins over its namespace's. Linkerd forgets to inherit a few names; here a namespace hands down all
//! but `enable-gateway`, which must not make gateways of a namespace's pods by accident.
//! A value that cannot be read is an error that names annotation, value and what was expected: a pod whose author
//! asked for something else than they would get does not silently start.

mod read;
mod table;

use std::collections::BTreeMap;

use heddle_mesh::{annotation, label};

use self::table::TABLE;
use crate::{ports::ContainerPorts, settings::Settings};

/// An annotation whose value cannot be read, or contradicts another.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {name} of the {holder}: `{value}` is invalid: expected {expected}")]
pub struct AnnotationError {
    /// The annotation's whole key.
    pub name: String,
    /// The object that carries it.
    pub holder: Holder,
    /// The value as written.
    pub value: String,
    /// What would have been accepted.
    pub expected: String,
}

/// Which object carries an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The pod, or the pod template.
    Pod,
    /// The pod's namespace.
    Namespace,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pod => "pod",
            Self::Namespace => "namespace",
        })
    }
}

/// How a name behaves.
struct Known {
    name: &'static str,
    reach: Reach,
    apply: fn(&mut Settings, &str, &ContainerPorts) -> Result<(), String>,
}

/// Where an annotation's value may come from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The pod, else its namespace.
    PodOrNamespace,
    /// The pod alone.
    Pod,
    /// The namespace, and then the pod over it.
    Both,
}

/// One annotation that is in force for a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InForce {
    pub(crate) name: &'static str,
    pub(crate) holder: Holder,
    pub(crate) value: String,
}

type Annotations = BTreeMap<String, String>;

/// The known annotations that are in force: the namespace's first, so that what the pod says is applied over it even
/// where a setting has an older and a newer name.
pub(crate) fn in_force(namespace: &Annotations, pod: Option<&Annotations>) -> Vec<InForce> {
    let mut found = Vec::new();
    let mut push = |holder, name, value: &String| {
        let value = value.clone();
        found.push(InForce { name, holder, value });
    };
    let on_pod = |known: &Known| pod.and_then(|pod| pod.get(known.name));
    for known in TABLE {
        let counts = match known.reach {
            Reach::Pod => false,
            Reach::PodOrNamespace => on_pod(known).is_none(),
            Reach::Both => true,
        };
        if let Some(value) = namespace.get(known.name).filter(|_| counts) {
            push(Holder::Namespace, known.name, value);
        }
    }
    for known in TABLE {
        if let Some(value) = on_pod(known) {
            push(Holder::Pod, known.name, value);
        }
    }
    found
}

/// Applies annotations to the settings; all that are invalid are reported, not only the first.
pub(crate) fn apply(
    settings: &mut Settings,
    in_force: &[InForce],
    ports: &ContainerPorts,
) -> Vec<AnnotationError> {
    let mut errors = Vec::new();
    for InForce { name, holder, value } in in_force {
        let known = TABLE
            .iter()
            .find(|known| known.name == *name)
            .expect("in_force takes names from the table");
        if let Err(expected) = (known.apply)(settings, value.trim(), ports) {
            let (name, value) = ((*name).to_owned(), value.clone());
            errors.push(AnnotationError {
                name,
                holder: *holder,
                value,
                expected,
            });
        }
    }
    let together = |name: &str, value: String, expected: String| AnnotationError {
        name: name.to_owned(),
        holder: Holder::Pod,
        value,
        expected,
    };
    if errors.is_empty() {
        if let Some(problem) = settings.proxy.resources.problem() {
            let name = "config.linkerd.io/proxy-{cpu,memory,ephemeral-storage}-{request,limit}";
            errors.push(together(
                name,
                problem,
                "requests at or below their limits, annotations and defaults taken together".into(),
            ));
        }
        let ports = settings.proxy.ports.clone();
        let mut sorted = [ports.inbound, ports.outbound, ports.control, ports.admin];
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            let name = "config.linkerd.io/{inbound,outbound,control,admin}-port";
            errors.push(together(
                name,
                format!("{sorted:?}"),
                "four different ports".into(),
            ));
        }
    }
    errors
}

/// What a pod's annotations say about its spans, by attribute.
pub(crate) fn span_attributes(on_pod: Option<&Annotations>) -> BTreeMap<String, String> {
    /// An attribute's name goes into a list as it is.
    fn is_plain(name: &str) -> bool {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        !name.is_empty() && name.bytes().all(plain)
    }
    let all = on_pod.into_iter().flatten();
    all.filter_map(|(key, value)| {
        let name = key.strip_prefix(annotation::RESOURCE_ATTRIBUTE_PREFIX)?;
        is_plain(name).then(|| (name.to_owned(), value.clone()))
    })
    .collect()
}

/// Annotations under Linkerd's prefixes that nothing here acts on: a typing error, or something that Heddle lacks.
pub(crate) fn without_effect(annotations: &Annotations) -> impl Iterator<Item = &str> {
    annotations.keys().map(String::as_str).filter(|key| {
        let ours = [
            annotation::CONFIG_PREFIX,
            annotation::CONFIG_ALPHA_PREFIX,
            annotation::CONFIG_BETA_PREFIX,
        ]
        .iter()
        .any(|prefix| key.starts_with(prefix));
        ours && !TABLE.iter().any(|known| known.name == *key) && *key != label::ADMISSION_WEBHOOKS
    })
}

/// Names of the annotations that a namespace hands down to its pods.
pub(crate) fn inherited() -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .filter(|known| known.reach != Reach::Pod)
        .map(|known| known.name)
}
