//! Settings of what may come beside the proxy: a CNI plugin's validator, a debug container, a span collector.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};

use super::forms::{or_default, timeout_or_10s};
use crate::setting::{LogFormat, PullPolicy, Timeout};

/// How pods' traffic is redirected.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Cni {
    /// A CNI plugin does it: pods get `linkerd-network-validator` in the place of `linkerd-init`.
    #[serde(deserialize_with = "or_default")]
    pub enabled: bool,
}

/// The init container that proves that a pod's traffic is redirected.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct NetworkValidator {
    /// Log filter.
    #[serde(deserialize_with = "super::forms::or_default_validator_log_level")]
    pub log_level: String,
    /// Form of a log line.
    #[serde(deserialize_with = "or_default")]
    pub log_format: LogFormat,
    /// The address to connect to, which redirection must lead to `listenAddr`; none: one that no pod has.
    pub connect_addr: Option<SocketAddr>,
    /// The address to listen on; none: the proxy's outbound port, on all addresses.
    pub listen_addr: Option<SocketAddr>,
    /// How long the proof may take.
    #[serde(deserialize_with = "timeout_or_10s")]
    pub timeout: Timeout,
}

/// A container with tools to look at a pod's traffic.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DebugContainer {
    /// Its image.
    #[serde(deserialize_with = "or_default")]
    pub image: DebugImage,
}

/// The debug container's image. Heddle has none of its own: by default it is Linkerd's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct DebugImage {
    /// Registry and repository.
    #[serde(deserialize_with = "super::forms::or_default_debug_image")]
    pub name: String,
    /// The tag.
    #[serde(deserialize_with = "super::forms::or_default_debug_version")]
    pub version: String,
    /// When the kubelet pulls; none: as the proxy's image.
    pub pull_policy: Option<PullPolicy>,
}

/// Spans, sent by OTLP over gRPC.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Tracing {
    /// Whether proxies send spans.
    #[serde(deserialize_with = "or_default")]
    pub enabled: bool,
    /// The name by which proxies' spans are found.
    #[serde(deserialize_with = "super::forms::or_default_service_name")]
    pub trace_service_name: String,
    /// Who takes them.
    #[serde(deserialize_with = "or_default")]
    pub collector: Collector,
    /// More attributes of every span. Values may refer to the proxy's environment: `$(_pod_name)`.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

/// Who takes spans.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Collector {
    /// `host:port`.
    #[serde(deserialize_with = "or_default")]
    pub endpoint: String,
    /// What it must prove to be: the collector is a meshed pod.
    #[serde(deserialize_with = "or_default")]
    pub mesh_identity: MeshIdentity,
}

/// A meshed pod's service account.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshIdentity {
    /// Its name.
    #[serde(deserialize_with = "or_default")]
    pub service_account_name: String,
    /// Its namespace.
    #[serde(deserialize_with = "or_default")]
    pub namespace: String,
}

impl Tracing {
    /// What makes these settings of no use, if anything.
    pub(super) fn problem(&self) -> Option<String> {
        let Self {
            enabled,
            trace_service_name: _,
            collector: Collector {
                endpoint,
                mesh_identity,
            },
            labels,
        } = self;
        if !enabled {
            return None;
        }
        let port = endpoint
            .rsplit_once(':')
            .filter(|(host, _)| !host.is_empty())
            .and_then(|(_, port)| port.parse::<u16>().ok());
        if port.is_none_or(|port| port == 0) {
            return Some(format!(
                "collector.endpoint: `{endpoint}` is invalid: expected host:port"
            ));
        }
        if mesh_identity.service_account_name.is_empty() || mesh_identity.namespace.is_empty() {
            return Some(
                "collector.meshIdentity: serviceAccountName and namespace must be given: proxies send spans over mTLS"
                    .to_owned(),
            );
        }
        let bad = labels
            .iter()
            .find(|(key, value)| key.is_empty() || key.contains(['=', '\n']) || value.contains('\n'));
        bad.map(|(key, _)| format!("labels: `{key}` or its value has a line break, or a `=` in the key"))
    }
}

impl NetworkValidator {
    pub(super) fn problem(&self) -> Option<String> {
        let port = |addr: &Option<SocketAddr>| addr.is_some_and(|addr| addr.port() == 0);
        (port(&self.connect_addr) || port(&self.listen_addr))
            .then(|| "connectAddr and listenAddr need a port from 1 to 65535".to_owned())
    }
}

impl Default for NetworkValidator {
    fn default() -> Self {
        Self {
            log_level: VALIDATOR_LOG_LEVEL.to_owned(),
            log_format: LogFormat::default(),
            connect_addr: None,
            listen_addr: None,
            timeout: Timeout::from_ms(10_000),
        }
    }
}

impl Default for DebugImage {
    fn default() -> Self {
        Self {
            name: DEBUG_IMAGE.to_owned(),
            version: DEBUG_VERSION.to_owned(),
            pull_policy: None,
        }
    }
}

impl Default for Tracing {
    fn default() -> Self {
        Self {
            enabled: false,
            trace_service_name: TRACE_SERVICE_NAME.to_owned(),
            collector: Collector::default(),
            labels: BTreeMap::new(),
        }
    }
}

pub(super) const VALIDATOR_LOG_LEVEL: &str = "info";
pub(super) const DEBUG_IMAGE: &str = "cr.l5d.io/linkerd/debug";
/// The last that Linkerd published as stable.
pub(super) const DEBUG_VERSION: &str = "stable-2.14.10";
pub(super) const TRACE_SERVICE_NAME: &str = "linkerd-proxy";
