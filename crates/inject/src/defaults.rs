//! `ProxyDefaults`: what an injected pod gets when neither its annotations nor its namespace's say otherwise.
//!
//! The type is the schema of ConfigMap `linkerd-config`, key `values`. The injector reads it from a mounted file, the
//! reconciler from the object that it rendered: one type, one meaning. Names are Linkerd's Helm values where it has
//! them. Unknown keys are errors; a missing or null key is the default.

mod beside;
mod forms;

use heddle_mesh::{PortSet, TrustDomain, port};
use k8s_openapi::api::core::v1::EnvVar;
use serde::{Deserialize, Serialize};

pub use self::beside::{Cni, Collector, DebugContainer, DebugImage, MeshIdentity, NetworkValidator, Tracing};
pub(crate) use self::forms::parse_networks;
use self::forms::{
    networks, networks_or_none, or_default, or_default_cluster_domain, or_default_control_namespace,
    or_default_image_name, or_default_log_level, or_default_uid, or_default_version, or_true, ports,
    ports_or_opaque, ports_or_skipped, timeout_or_1s, timeout_or_5s, timeout_or_90s, timeout_or_100ms,
};
use crate::{
    Quantity,
    setting::{AccessLog, InboundPolicy, LogFormat, LogHttpHeaders, PullPolicy, Timeout},
};

/// Settings of the sidecar that a whole mesh shares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyDefaults {
    /// The control plane's namespace; part of every workload's identity.
    #[serde(deserialize_with = "or_default_control_namespace")]
    pub control_namespace: String,
    /// The cluster's DNS domain, such as `cluster.local`.
    #[serde(deserialize_with = "or_default_cluster_domain")]
    pub cluster_domain: String,
    /// The suffix of all identities.
    #[serde(deserialize_with = "or_default")]
    pub trust_domain: TrustDomain,
    /// Networks (CIDR) of pods and services: what counts as inside the cluster.
    #[serde(deserialize_with = "networks")]
    pub cluster_networks: Vec<String>,
    /// The sidecar.
    #[serde(deserialize_with = "or_default")]
    pub proxy: ProxyValues,
    /// The init container that redirects the pod's traffic.
    #[serde(deserialize_with = "or_default")]
    pub proxy_init: InitValues,
    /// Whether a CNI plugin redirects pods' traffic, rather than an init container.
    #[serde(deserialize_with = "or_default")]
    pub cni: Cni,
    /// With a CNI plugin: the init container that checks that it has done its work.
    #[serde(deserialize_with = "or_default")]
    pub network_validator: NetworkValidator,
    /// The container that `config.linkerd.io/enable-debug-sidecar` adds.
    #[serde(deserialize_with = "or_default")]
    pub debug_container: DebugContainer,
}

/// Settings of container `linkerd-proxy`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxyValues {
    /// The proxy's image.
    #[serde(deserialize_with = "or_default")]
    pub image: Image,
    /// The proxy's listeners.
    #[serde(deserialize_with = "or_default")]
    pub ports: Ports,
    /// User that the proxy runs as; its traffic is not redirected.
    #[serde(deserialize_with = "or_default_uid")]
    pub uid: u32,
    /// Group that the proxy runs as; none: the image's.
    pub gid: Option<u32>,
    /// Requests and limits.
    #[serde(deserialize_with = "or_default")]
    pub resources: Resources,
    /// Log filter, in tracing's syntax.
    #[serde(deserialize_with = "or_default_log_level")]
    pub log_level: String,
    /// Form of a log line.
    #[serde(rename = "logFormat", deserialize_with = "or_default")]
    pub log_format: LogFormat,
    /// Whether HTTP headers may appear in debug logs.
    #[serde(rename = "logHTTPHeaders", deserialize_with = "or_default")]
    pub log_http_headers: LogHttpHeaders,
    /// One line per inbound request on stderr; none: no access log.
    pub access_log: Option<AccessLog>,
    /// Ports whose bytes the proxy does not look into.
    #[serde(deserialize_with = "ports_or_opaque")]
    pub opaque_ports: PortSet,
    /// Inbound ports on which only meshed clients are served.
    #[serde(deserialize_with = "ports")]
    pub require_identity_on_inbound_ports: PortSet,
    /// Policy for connections that no Server selects.
    #[serde(deserialize_with = "or_default")]
    pub default_inbound_policy: InboundPolicy,
    /// How long a connection to a peer may take.
    #[serde(deserialize_with = "timeout_or_1s")]
    pub outbound_connect_timeout: Timeout,
    /// How long a connection to the local application may take.
    #[serde(deserialize_with = "timeout_or_100ms")]
    pub inbound_connect_timeout: Timeout,
    /// How long an unused outbound discovery stays cached.
    #[serde(deserialize_with = "timeout_or_5s")]
    pub outbound_discovery_cache_unused_timeout: Timeout,
    /// How long an unused inbound discovery stays cached.
    #[serde(deserialize_with = "timeout_or_90s")]
    pub inbound_discovery_cache_unused_timeout: Timeout,
    /// Wait for outbound clients' first bytes as long as it takes, rather than 10 s.
    #[serde(deserialize_with = "or_default")]
    pub disable_outbound_protocol_detect_timeout: bool,
    /// Wait for inbound clients' first bytes as long as it takes, rather than 10 s.
    #[serde(deserialize_with = "or_default")]
    pub disable_inbound_protocol_detect_timeout: bool,
    /// How long draining may take after SIGTERM; none: the proxy's own default.
    pub shutdown_grace_period: Option<Timeout>,
    /// Applications start only when the proxy is ready.
    #[serde(rename = "await", deserialize_with = "or_true")]
    pub await_ready: bool,
    /// The proxy is an init container that keeps running (Kubernetes 1.29 and newer), rather than a plain container.
    #[serde(deserialize_with = "or_true")]
    pub native_sidecar: bool,
    /// `POST /shutdown` on the admin port ends the proxy.
    #[serde(deserialize_with = "or_default")]
    pub enable_shutdown_endpoint: bool,
    /// Seconds that a plain sidecar keeps serving after the pod was told to end; native sidecars end last anyway.
    #[serde(deserialize_with = "or_default")]
    pub wait_before_exit_seconds: u32,
    /// Look names outside the cluster up in the destination service, too.
    #[serde(deserialize_with = "or_default")]
    pub enable_external_profiles: bool,
    /// Put host names on outbound metrics.
    #[serde(deserialize_with = "or_default")]
    pub metrics_hostname_labels: bool,
    /// More environment for the proxy; a later name wins over an earlier one.
    #[serde(deserialize_with = "or_default")]
    pub additional_env: Vec<EnvVar>,
    /// Lifetimes of the streams to the control plane.
    #[serde(deserialize_with = "or_default")]
    pub control_streams: ControlStreams,
    /// IPv4 only: no IPv6 listeners and no IPv6 redirection.
    #[serde(rename = "disableIPv6", deserialize_with = "or_true")]
    pub disable_ipv6: bool,
    /// Where the proxy sends its spans.
    #[serde(deserialize_with = "or_default")]
    pub tracing: Tracing,
}

/// Settings of container `linkerd-init`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct InitValues {
    /// The image; none: the proxy's default image, which carries `/heddle-init`.
    pub image: Option<Image>,
    /// Inbound ports that bypass the proxy.
    #[serde(deserialize_with = "ports_or_skipped")]
    pub ignore_inbound_ports: SkippedPorts,
    /// Outbound ports that bypass the proxy.
    #[serde(deserialize_with = "ports_or_skipped")]
    pub ignore_outbound_ports: SkippedPorts,
    /// Networks (CIDR) whose traffic to the pod bypasses the proxy.
    #[serde(deserialize_with = "networks_or_none")]
    pub skip_subnets: Vec<String>,
    /// How long the kernel remembers half-closed connections of the pod; none: the kernel's own time. Setting it
    /// needs a privileged init container.
    pub close_wait_timeout: Option<Timeout>,
    /// Requests and limits.
    #[serde(deserialize_with = "or_default")]
    pub resources: Resources,
}

/// Ports that bypass the proxy; by default Linkerd's 4567 and 4568.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct SkippedPorts(pub PortSet);

/// An image without its registry credentials.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Image {
    /// Registry and repository, such as `heddle.dev/proxy`.
    #[serde(deserialize_with = "or_default_image_name")]
    pub name: String,
    /// The tag.
    #[serde(deserialize_with = "or_default_version")]
    pub version: String,
    /// When the kubelet pulls.
    #[serde(deserialize_with = "or_default")]
    pub pull_policy: PullPolicy,
}

/// The proxy's listeners.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Ports {
    /// Redirected inbound connections, and mTLS from peers.
    pub inbound: u16,
    /// Redirected outbound connections, on loopback.
    pub outbound: u16,
    /// Tap.
    pub control: u16,
    /// `/live`, `/ready`, `/metrics`.
    pub admin: u16,
}

/// Requests and limits of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Resources {
    /// Processor time; also the proxy's number of workers.
    #[serde(deserialize_with = "or_default")]
    pub cpu: Cpu,
    /// Memory.
    #[serde(deserialize_with = "or_default")]
    pub memory: Amount,
    /// Ephemeral storage.
    #[serde(
        rename = "ephemeral-storage",
        alias = "ephemeralStorage",
        deserialize_with = "or_default"
    )]
    pub ephemeral_storage: Amount,
}

/// Processor time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cpu {
    /// What the scheduler sets aside.
    pub request: Option<Quantity>,
    /// The most that the container gets.
    pub limit: Option<Quantity>,
    /// The most workers, as a share of the node's cores: above 0, at most 1.
    pub ratio_limit: Option<f64>,
}

/// A request and a limit.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Amount {
    /// What the scheduler sets aside.
    pub request: Option<Quantity>,
    /// The most that the container gets.
    pub limit: Option<Quantity>,
}

/// Lifetimes of the streams to the control plane.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControlStreams {
    /// The first message must come within this time.
    pub initial_timeout: Timeout,
    /// A silent stream is opened anew after this time.
    pub idle_timeout: Timeout,
    /// Any stream is opened anew after this time.
    pub lifetime: Timeout,
}

/// Why a text is no `ProxyDefaults`.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not YAML, or an unknown key, or a value of the wrong type.
    #[error("failed to read the injection settings (ConfigMap linkerd-config, key `values`)")]
    Yaml(#[source] serde_yaml::Error),
    /// A value that contradicts another or is out of range.
    #[error("injection settings (ConfigMap linkerd-config, key `values`): {field}: {problem}")]
    Invalid {
        /// The path of the value.
        field: &'static str,
        /// What is wrong with it and what was expected.
        problem: String,
    },
}

impl ProxyDefaults {
    /// Reads the value of key `values` of ConfigMap `linkerd-config`. An empty text is all defaults.
    ///
    /// # Errors
    /// Not YAML, an unknown key, a value of the wrong form, or values that contradict one another.
    pub fn from_yaml(text: &str) -> Result<Self, ConfigError> {
        let defaults: Option<Self> = serde_yaml::from_str(text).map_err(ConfigError::Yaml)?;
        let defaults = defaults.unwrap_or_default();
        defaults.check()?;
        Ok(defaults)
    }

    /// The settings as YAML, every field spelled out.
    ///
    /// # Errors
    /// Only the serializer's own, which these types do not cause.
    pub fn to_yaml(&self) -> Result<String, ConfigError> {
        serde_yaml::to_string(self).map_err(ConfigError::Yaml)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |field, problem| Err(ConfigError::Invalid { field, problem });
        let Ports {
            inbound,
            outbound,
            control,
            admin,
        } = self.proxy.ports;
        let mut ports = [inbound, outbound, control, admin];
        ports.sort_unstable();
        if ports[0] == 0 || ports.windows(2).any(|pair| pair[0] == pair[1]) {
            return invalid(
                "proxy.ports",
                format!("{ports:?} must be four different ports from 1 to 65535"),
            );
        }
        if self.proxy.uid == 0 {
            return invalid(
                "proxy.uid",
                "0 is root: the proxy's own user is exempt from redirection, so it must be its own".into(),
            );
        }
        if let Some(problem) = self.proxy.resources.problem() {
            return invalid("proxy.resources", problem);
        }
        if let Some(problem) = self.proxy_init.resources.problem() {
            return invalid("proxyInit.resources", problem);
        }
        if let Some(problem) = self.proxy.tracing.problem() {
            return invalid("proxy.tracing", problem);
        }
        if let Some(problem) = self.network_validator.problem() {
            return invalid("networkValidator", problem);
        }
        if self.control_namespace.is_empty() || self.cluster_domain.is_empty() {
            return invalid("controlNamespace, clusterDomain", "must not be empty".into());
        }
        Ok(())
    }
}

impl Resources {
    /// What makes these resources unacceptable to the API server, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self {
            cpu,
            memory,
            ephemeral_storage,
        } = self;
        let pairs = [
            ("cpu", &cpu.request, &cpu.limit),
            ("memory", &memory.request, &memory.limit),
            (
                "ephemeral-storage",
                &ephemeral_storage.request,
                &ephemeral_storage.limit,
            ),
        ];
        let backwards = pairs
            .into_iter()
            .find_map(|(name, request, limit)| match (request, limit) {
                (Some(request), Some(limit)) if request > limit => Some(format!(
                    "{name}: the request {request} is above the limit {limit}"
                )),
                _ => None,
            });
        backwards.or_else(|| match cpu.ratio_limit {
            Some(ratio) if !(ratio > 0.0 && ratio <= 1.0) => {
                Some(format!("cpu.ratioLimit: {ratio} must be above 0 and at most 1"))
            }
            _ => None,
        })
    }
}

impl Image {
    /// `name:version`; a version that is a digest (`sha256:…`) is joined with `@`.
    pub fn reference(&self) -> String {
        let separator = if self.version.contains(':') { '@' } else { ':' };
        format!("{}{separator}{}", self.name, self.version)
    }
}

impl Default for ProxyDefaults {
    fn default() -> Self {
        Self {
            control_namespace: heddle_mesh::CONTROL_NAMESPACE.to_owned(),
            cluster_domain: CLUSTER_DOMAIN.to_owned(),
            trust_domain: TrustDomain::default(),
            cluster_networks: default_networks(),
            proxy: ProxyValues::default(),
            proxy_init: InitValues::default(),
            cni: Cni::default(),
            network_validator: NetworkValidator::default(),
            debug_container: DebugContainer::default(),
        }
    }
}

impl Default for ProxyValues {
    fn default() -> Self {
        Self {
            image: Image::default(),
            ports: Ports::default(),
            uid: port::PROXY_UID,
            gid: None,
            resources: Resources::default(),
            log_level: LOG_LEVEL.to_owned(),
            log_format: LogFormat::default(),
            log_http_headers: LogHttpHeaders::default(),
            access_log: None,
            opaque_ports: PortSet::from_iter(port::DEFAULT_OPAQUE),
            require_identity_on_inbound_ports: PortSet::default(),
            default_inbound_policy: InboundPolicy::default(),
            outbound_connect_timeout: Timeout::from_ms(1_000),
            inbound_connect_timeout: Timeout::from_ms(100),
            outbound_discovery_cache_unused_timeout: Timeout::from_ms(5_000),
            inbound_discovery_cache_unused_timeout: Timeout::from_ms(90_000),
            disable_outbound_protocol_detect_timeout: false,
            disable_inbound_protocol_detect_timeout: false,
            shutdown_grace_period: None,
            await_ready: true,
            native_sidecar: true,
            enable_shutdown_endpoint: false,
            wait_before_exit_seconds: 0,
            enable_external_profiles: false,
            metrics_hostname_labels: false,
            additional_env: Vec::new(),
            control_streams: ControlStreams::default(),
            disable_ipv6: true,
            tracing: Tracing::default(),
        }
    }
}

impl Default for SkippedPorts {
    fn default() -> Self {
        Self(PortSet::from_iter(port::DEFAULT_SKIPPED))
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            name: IMAGE_NAME.to_owned(),
            version: heddle_mesh::VERSION.to_owned(),
            pull_policy: PullPolicy::default(),
        }
    }
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            inbound: port::PROXY_INBOUND,
            outbound: port::PROXY_OUTBOUND,
            control: port::PROXY_CONTROL,
            admin: port::PROXY_ADMIN,
        }
    }
}

impl Default for ControlStreams {
    fn default() -> Self {
        Self {
            initial_timeout: Timeout::from_ms(3_000),
            idle_timeout: Timeout::from_ms(300_000),
            lifetime: Timeout::from_ms(3_600_000),
        }
    }
}

const CLUSTER_DOMAIN: &str = "cluster.local";
const IMAGE_NAME: &str = "heddle.dev/proxy";
/// Heddle's own modules and, for a stock linkerd2-proxy, Linkerd's; warnings of everything else.
const LOG_LEVEL: &str = "warn,heddle=info,linkerd=info,hickory=error,h2=error";
/// Linkerd's clusterNetworks: the private networks that pods and services live in.
const CLUSTER_NETWORKS: [&str; 5] = [
    "10.0.0.0/8",
    "100.64.0.0/10",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "fd00::/8",
];

fn default_networks() -> Vec<String> {
    CLUSTER_NETWORKS.map(str::to_owned).to_vec()
}
