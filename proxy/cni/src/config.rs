//! The plugin's own part of a network configuration. Names are those of Linkerd's plugin.

use std::str::FromStr as _;

use heddle_mesh::{PortSet, port};
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::Value;

use crate::protocol::{Code, Failure};

/// The plugin's settings; fields of other plugins are not looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// `debug` and `info` say on standard error what was decided.
    pub log_level: String,
    /// How pods are redirected unless they say otherwise.
    pub linkerd: Redirection,
    /// How to reach the API server.
    pub kubernetes: Kubernetes,
}

/// How to reach the API server.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Kubernetes {
    /// Path of the kubeconfig that the installer writes.
    pub kubeconfig: String,
    /// Namespaces whose pods are never meshed: they start without a question to the API server.
    pub exclude_namespaces: Vec<String>,
}

/// How pods are redirected unless they say otherwise.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct Redirection {
    /// The proxy's inbound port.
    pub incoming_proxy_port: u16,
    /// The proxy's outbound port.
    pub outgoing_proxy_port: u16,
    /// The user that the proxy runs as.
    pub proxy_uid: u32,
    /// The group that the proxy runs as; negative: not told.
    pub proxy_gid: i64,
    /// Inbound ports to redirect; none: all.
    #[serde(deserialize_with = "ports")]
    pub ports_to_redirect: PortSet,
    /// Inbound ports to leave alone.
    #[serde(deserialize_with = "ports")]
    pub inbound_ports_to_ignore: PortSet,
    /// Outbound ports to leave alone.
    #[serde(deserialize_with = "ports")]
    pub outbound_ports_to_ignore: PortSet,
    /// Networks whose inbound connections are left alone.
    pub subnets_to_ignore: Vec<String>,
    /// Redirect IPv6, too.
    pub ipv6: bool,
    /// Say the rules on standard error and change nothing.
    pub simulate: bool,
}

impl Default for Redirection {
    fn default() -> Self {
        Self {
            incoming_proxy_port: port::PROXY_INBOUND,
            outgoing_proxy_port: port::PROXY_OUTBOUND,
            proxy_uid: port::PROXY_UID,
            proxy_gid: -1,
            ports_to_redirect: PortSet::default(),
            inbound_ports_to_ignore: PortSet::default(),
            outbound_ports_to_ignore: PortSet::default(),
            subnets_to_ignore: Vec::new(),
            ipv6: false,
            simulate: false,
        }
    }
}

impl Config {
    /// Reads the plugin's part.
    ///
    /// # Errors
    /// A field that has another form.
    pub fn read(config: &Value) -> Result<Self, Failure> {
        Self::deserialize(config).map_err(|error| {
            Failure::new(
                Code::InvalidConfig,
                format!("the plugin's entry in the network configuration is invalid: {error}"),
            )
        })
    }

    /// Whether decisions are said on standard error.
    pub fn talks(&self) -> bool {
        matches!(self.log_level.as_str(), "debug" | "info" | "trace")
    }
}

/// `[4190, "4567-4568"]`, as Linkerd's charts write them, or `"4190,4567-4568"`.
fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum One {
        Number(u16),
        Text(String),
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Ports {
        List(Vec<One>),
        Text(String),
        None(()),
    }
    let text = match Ports::deserialize(deserializer)? {
        Ports::None(()) => String::new(),
        Ports::Text(text) => text,
        Ports::List(list) => {
            let items: Vec<_> = list
                .into_iter()
                .map(|one| match one {
                    One::Number(number) => number.to_string(),
                    One::Text(text) => text,
                })
                .collect();
            items.join(",")
        }
    };
    PortSet::from_str(&text).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn reads_what_linkerds_chart_writes() {
        let config = Config::read(&json!({
            "name": "linkerd-cni", "type": "linkerd-cni", "log_level": "info",
            "policy": {"type": "k8s"},
            "kubernetes": {"kubeconfig": "/etc/cni/net.d/ZZZ-linkerd-cni-kubeconfig"},
            "linkerd": {
                "incoming-proxy-port": 4143, "outgoing-proxy-port": 4140, "proxy-uid": 2102, "proxy-gid": -1,
                "ports-to-redirect": [], "inbound-ports-to-ignore": ["4191", "4190", "4567-4568"],
                "outbound-ports-to-ignore": [4567], "simulate": false, "use-wait-flag": false, "iptables-mode": "nft",
                "ipv6": false,
            },
        }))
        .expect("valid");
        assert!(config.talks());
        assert_eq!(
            config.linkerd.inbound_ports_to_ignore.to_string(),
            "4190-4191,4567-4568"
        );
        assert_eq!(config.linkerd.outbound_ports_to_ignore.to_string(), "4567");
    }

    #[test]
    fn an_invalid_field_is_named() {
        let error = Config::read(&json!({"linkerd": {"proxy-uid": "root"}})).expect_err("refused");
        assert_eq!(error.code, Code::InvalidConfig);
        assert!(error.message.contains("root"), "{error}");
        Config::read(&json!({"linkerd": {"inbound-ports-to-ignore": ["http"]}})).expect_err("refused");
    }
}
