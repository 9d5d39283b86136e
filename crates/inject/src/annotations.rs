//! The table of `config.linkerd.io/` annotations: names, inheritance, and what each does to the settings.
//!
//! A pod's annotation wins over its namespace's, and a namespace's counts only for the names that Linkerd inherits.
//! A value that cannot be read is an error that names annotation, value and what was expected: a pod whose author
//! asked for something else than they would get does not silently start.

use std::{collections::BTreeMap, str::FromStr};

use heddle_mesh::PortSet;
use k8s_openapi::api::core::v1::EnvVar;

use crate::{
    ports::ContainerPorts,
    quantity::Quantity,
    setting::{AccessLog, InboundPolicy, LogFormat, LogHttpHeaders, PullPolicy, Timeout},
    settings::Settings,
};

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
    /// The pod alone: Linkerd does not inherit these.
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

/// The known annotations that are in force, in the table's order.
pub(crate) fn in_force(namespace: &Annotations, pod: Option<&Annotations>) -> Vec<InForce> {
    let mut found = Vec::new();
    for known in TABLE {
        let mut push = |holder, value: Option<&String>| -> Option<()> {
            let value = value?.clone();
            found.push(InForce {
                name: known.name,
                holder,
                value,
            });
            Some(())
        };
        let on_pod = pod.and_then(|pod| pod.get(known.name));
        let on_namespace = namespace.get(known.name);
        match known.reach {
            Reach::Pod => {
                push(Holder::Pod, on_pod);
            }
            Reach::PodOrNamespace => {
                push(Holder::Pod, on_pod).or_else(|| push(Holder::Namespace, on_namespace));
            }
            Reach::Both => {
                push(Holder::Namespace, on_namespace);
                push(Holder::Pod, on_pod);
            }
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

/// Annotations under Linkerd's prefixes that nothing here acts on: a typing error, or something that Heddle lacks.
pub(crate) fn without_effect(annotations: &Annotations) -> impl Iterator<Item = &str> {
    annotations.keys().map(String::as_str).filter(|key| {
        let ours = [
            heddle_mesh::annotation::CONFIG_PREFIX,
            heddle_mesh::annotation::CONFIG_ALPHA_PREFIX,
            heddle_mesh::annotation::CONFIG_BETA_PREFIX,
        ]
        .iter()
        .any(|prefix| key.starts_with(prefix));
        ours && !TABLE.iter().any(|known| known.name == *key)
    })
}

/// Names of the annotations that a namespace hands down to its pods.
pub(crate) fn inherited() -> impl Iterator<Item = &'static str> {
    TABLE
        .iter()
        .filter(|known| known.reach != Reach::Pod)
        .map(|known| known.name)
}

// === How values are read ===

fn parse<T: FromStr>(value: &str, expected: &str) -> Result<T, String> {
    value.parse().map_err(|_| expected.to_owned())
}

fn timeout(value: &str) -> Result<Timeout, String> {
    parse(
        value,
        "a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h",
    )
}

fn quantity(value: &str) -> Result<Option<Quantity>, String> {
    parse(value, "a quantity, such as 100m, 0.5, 250Mi or 1Gi").map(Some)
}

fn port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("a port from 1 to 65535".to_owned()),
    }
}

fn ports(value: &str) -> Result<PortSet, String> {
    parse(value, "ports and ranges of ports, such as 25,8000-8010")
}

/// Linkerd writes some switches `enabled`/`disabled` and others `true`/`false`; both are read for all.
fn flag(value: &str) -> Result<bool, String> {
    match value {
        "true" | "enabled" => Ok(true),
        "false" | "disabled" => Ok(false),
        _ => Err("`enabled` or `disabled`, or `true` or `false`".to_owned()),
    }
}

fn text(value: &str, what: &str) -> Result<String, String> {
    let fine = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
    if fine {
        Ok(value.to_owned())
    } else {
        Err(what.to_owned())
    }
}

fn choice<T: FromStr<Err = &'static str>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|expected: &str| expected.to_owned())
}

fn additional_env(value: &str) -> Result<Vec<EnvVar>, String> {
    let expected = "a JSON list of environment variables, such as [{\"name\":\"A\",\"value\":\"b\"}]";
    let vars: Vec<EnvVar> = serde_json::from_str(value).map_err(|error| format!("{expected} ({error})"))?;
    match vars.iter().all(|var| !var.name.is_empty()) {
        true => Ok(vars),
        false => Err(format!("{expected}, each with a name")),
    }
}

/// Every annotation that Heddle acts on. Those that Heddle only keeps for others (`proxy-require-identity-…` is
/// enforced by the policy service, which reads it from the pod) are checked here, too.
static TABLE: &[Known] = {
    use Reach::{Both, Pod, PodOrNamespace};
    const fn known(
        name: &'static str,
        reach: Reach,
        apply: fn(&mut Settings, &str, &ContainerPorts) -> Result<(), String>,
    ) -> Known {
        Known { name, reach, apply }
    }
    macro_rules! set {
        ($($field:tt).+, $parse:expr) => {
            |settings, value, _| {
                settings.$($field).+ = $parse(value)?;
                Ok(())
            }
        };
    }
    &[
        // Images.
        known(
            "config.linkerd.io/proxy-image",
            PodOrNamespace,
            set!(proxy.image.name, |v| text(v, "an image's name without a tag")),
        ),
        known(
            "config.linkerd.io/proxy-version",
            PodOrNamespace,
            set!(proxy.image.version, |v| text(v, "an image's tag")),
        ),
        known(
            "config.linkerd.io/image-pull-policy",
            PodOrNamespace,
            |settings, value, _| {
                let policy: PullPolicy = choice(value)?;
                settings.proxy.image.pull_policy = policy;
                settings.init_image.pull_policy = policy;
                Ok(())
            },
        ),
        // Ports.
        known(
            "config.linkerd.io/inbound-port",
            PodOrNamespace,
            set!(proxy.ports.inbound, port),
        ),
        known(
            "config.linkerd.io/outbound-port",
            PodOrNamespace,
            set!(proxy.ports.outbound, port),
        ),
        known(
            "config.linkerd.io/control-port",
            PodOrNamespace,
            set!(proxy.ports.control, port),
        ),
        known(
            "config.linkerd.io/admin-port",
            PodOrNamespace,
            set!(proxy.ports.admin, port),
        ),
        known(
            heddle_mesh::annotation::SKIP_INBOUND_PORTS,
            PodOrNamespace,
            set!(init.ignore_inbound_ports.0, ports),
        ),
        known(
            heddle_mesh::annotation::SKIP_OUTBOUND_PORTS,
            PodOrNamespace,
            set!(init.ignore_outbound_ports.0, ports),
        ),
        known(
            "config.linkerd.io/skip-subnets",
            PodOrNamespace,
            set!(init.skip_subnets, crate::defaults::parse_networks),
        ),
        known(
            heddle_mesh::annotation::OPAQUE_PORTS,
            PodOrNamespace,
            |settings, value, ports| {
                let (opaque, unknown) = ports.resolve(value)?;
                settings.proxy.opaque_ports = opaque;
                settings.unknown_port_names = unknown;
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-require-identity-inbound-ports",
            PodOrNamespace,
            set!(proxy.require_identity_on_inbound_ports, ports),
        ),
        // Resources.
        known(
            "config.linkerd.io/proxy-cpu-request",
            PodOrNamespace,
            set!(proxy.resources.cpu.request, quantity),
        ),
        known(
            "config.linkerd.io/proxy-cpu-limit",
            PodOrNamespace,
            set!(proxy.resources.cpu.limit, quantity),
        ),
        known(
            "config.linkerd.io/proxy-cpu-ratio-limit",
            Pod,
            |settings, value, _| {
                let ratio: Option<f64> = value.parse().ok().filter(|ratio| *ratio > 0.0 && *ratio <= 1.0);
                settings.proxy.resources.cpu.ratio_limit =
                    Some(ratio.ok_or("a number above 0 and at most 1")?);
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-memory-request",
            PodOrNamespace,
            set!(proxy.resources.memory.request, quantity),
        ),
        known(
            "config.linkerd.io/proxy-memory-limit",
            PodOrNamespace,
            set!(proxy.resources.memory.limit, quantity),
        ),
        known(
            "config.linkerd.io/proxy-ephemeral-storage-request",
            PodOrNamespace,
            set!(proxy.resources.ephemeral_storage.request, quantity),
        ),
        known(
            "config.linkerd.io/proxy-ephemeral-storage-limit",
            PodOrNamespace,
            set!(proxy.resources.ephemeral_storage.limit, quantity),
        ),
        // User.
        known(
            "config.linkerd.io/proxy-uid",
            PodOrNamespace,
            |settings, value, _| {
                let uid: Option<u32> = value.parse().ok().filter(|uid| (1..=MAX_ID).contains(uid));
                settings.proxy.uid =
                    uid.ok_or("a user id from 1 to 2147483647: the proxy's own, which is not redirected")?;
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-gid",
            PodOrNamespace,
            |settings, value, _| {
                let gid: Option<u32> = value.parse().ok().filter(|gid| *gid <= MAX_ID);
                settings.proxy.gid = Some(gid.ok_or("a group id from 0 to 2147483647")?);
                Ok(())
            },
        ),
        // Logs and metrics.
        known(
            "config.linkerd.io/proxy-log-level",
            PodOrNamespace,
            set!(proxy.log_level, |v| text(
                v,
                "a log filter, such as warn,heddle=debug"
            )),
        ),
        known(
            "config.linkerd.io/proxy-log-format",
            PodOrNamespace,
            set!(proxy.log_format, choice::<LogFormat>),
        ),
        known(
            "config.linkerd.io/proxy-log-http-headers",
            PodOrNamespace,
            set!(proxy.log_http_headers, choice::<LogHttpHeaders>),
        ),
        known(
            "config.linkerd.io/access-log",
            PodOrNamespace,
            |settings, value, _| {
                settings.proxy.access_log = match value {
                    "" | "none" => None,
                    other => Some(choice::<AccessLog>(other)?),
                };
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-metrics-hostname-labels",
            PodOrNamespace,
            set!(proxy.metrics_hostname_labels, flag),
        ),
        // Timeouts.
        known(
            "config.linkerd.io/proxy-outbound-connect-timeout",
            PodOrNamespace,
            set!(proxy.outbound_connect_timeout, timeout),
        ),
        known(
            "config.linkerd.io/proxy-inbound-connect-timeout",
            PodOrNamespace,
            set!(proxy.inbound_connect_timeout, timeout),
        ),
        known(
            "config.linkerd.io/proxy-outbound-discovery-cache-unused-timeout",
            PodOrNamespace,
            set!(proxy.outbound_discovery_cache_unused_timeout, timeout),
        ),
        known(
            "config.linkerd.io/proxy-inbound-discovery-cache-unused-timeout",
            PodOrNamespace,
            set!(proxy.inbound_discovery_cache_unused_timeout, timeout),
        ),
        known(
            "config.linkerd.io/proxy-disable-outbound-protocol-detect-timeout",
            PodOrNamespace,
            set!(proxy.disable_outbound_protocol_detect_timeout, flag),
        ),
        known(
            "config.linkerd.io/proxy-disable-inbound-protocol-detect-timeout",
            PodOrNamespace,
            set!(proxy.disable_inbound_protocol_detect_timeout, flag),
        ),
        known(
            "config.linkerd.io/shutdown-grace-period",
            PodOrNamespace,
            |settings, value, _| {
                settings.proxy.shutdown_grace_period = Some(timeout(value)?);
                Ok(())
            },
        ),
        // Lifecycle. Linkerd's older names of the native-sidecar switch come first, so that its newer ones win.
        known(
            "config.alpha.linkerd.io/proxy-enable-native-sidecar",
            Pod,
            set!(proxy.native_sidecar, flag),
        ),
        known(
            "config.beta.linkerd.io/proxy-enable-native-sidecar",
            Pod,
            set!(proxy.native_sidecar, flag),
        ),
        known(
            "config.linkerd.io/proxy-enable-native-sidecar",
            PodOrNamespace,
            set!(proxy.native_sidecar, flag),
        ),
        known(
            "config.linkerd.io/proxy-await",
            PodOrNamespace,
            set!(proxy.await_ready, flag),
        ),
        known(
            "config.linkerd.io/proxy-admin-shutdown",
            PodOrNamespace,
            set!(proxy.enable_shutdown_endpoint, flag),
        ),
        known(
            "config.alpha.linkerd.io/proxy-wait-before-exit-seconds",
            PodOrNamespace,
            |settings, value, _| {
                let seconds: Option<u32> = value
                    .parse()
                    .ok()
                    .filter(|seconds| *seconds <= WAIT_BEFORE_EXIT_SECONDS_MAX);
                settings.proxy.wait_before_exit_seconds =
                    seconds.ok_or("a number of seconds from 0 to 3600")?;
                Ok(())
            },
        ),
        // Policy and the rest.
        known(
            heddle_mesh::annotation::DEFAULT_INBOUND_POLICY,
            PodOrNamespace,
            set!(proxy.default_inbound_policy, choice::<InboundPolicy>),
        ),
        known(
            "config.linkerd.io/enable-external-profiles",
            PodOrNamespace,
            set!(proxy.enable_external_profiles, flag),
        ),
        known("config.linkerd.io/enable-gateway", Pod, set!(gateway, flag)),
        known(
            "config.linkerd.io/proxy-additional-env",
            Both,
            |settings, value, _| {
                settings.proxy.additional_env.extend(additional_env(value)?);
                Ok(())
            },
        ),
    ]
};

/// Kubernetes' own bound for user and group ids.
const MAX_ID: u32 = i32::MAX as u32;
/// A pod that waits longer than an hour to end is a mistake.
const WAIT_BEFORE_EXIT_SECONDS_MAX: u32 = 3_600;
