//! etcd, the API server and what decides about objects: the controller manager and the scheduler.

use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::address::Slot;
use super::layout::Layout;
use super::pki;
use super::process::Daemon;
use crate::tools::{Program, Tools};

/// Ports of a cluster; in a namespace of its own they are always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Ports {
    pub(super) api: u16,
    pub(super) etcd_client: u16,
    pub(super) etcd_peer: u16,
}

impl Ports {
    /// In a network namespace of the cluster's own.
    pub(super) const OWN_NAMESPACE: Self = Self {
        api: 6443,
        etcd_client: 2379,
        etcd_peer: 2380,
    };

    /// Ports of the host's loopback that are free now.
    pub(super) fn free() -> Result<Self> {
        // All are bound at once, so that they differ.
        let bind = || {
            std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                .context("failed to find a free loopback port")
        };
        let listeners = [bind()?, bind()?, bind()?];
        let port = |index: usize| {
            listeners[index]
                .local_addr()
                .map(|addr| addr.port())
                .context("failed to read a port")
        };
        Ok(Self {
            api: port(0)?,
            etcd_client: port(1)?,
            etcd_peer: port(2)?,
        })
    }
}

/// The parts of a control plane's command lines that differ between clusters.
pub(super) struct ControlPlane<'a> {
    pub(super) layout: &'a Layout,
    pub(super) tools: &'a Tools,
    pub(super) slot: Slot,
    pub(super) ports: Ports,
    pub(super) cluster_domain: &'a str,
    /// With a node, everything lives in the cluster's own network namespace; without one, on the host's loopback.
    pub(super) with_node: bool,
}

impl ControlPlane<'_> {
    /// The storage.
    pub(super) fn etcd(&self) -> Daemon {
        let client = format!("http://127.0.0.1:{}", self.ports.etcd_client);
        let peer = format!("http://127.0.0.1:{}", self.ports.etcd_peer);
        let flags = flags([
            ("name", "default".into()),
            ("data-dir", self.path("etcd")),
            ("listen-client-urls", client.clone()),
            ("advertise-client-urls", client),
            ("listen-peer-urls", peer.clone()),
            ("initial-advertise-peer-urls", peer.clone()),
            ("initial-cluster", format!("default={peer}")),
            // Nothing here has to survive a power failure.
            ("unsafe-no-fsync", "true".into()),
            ("log-level", "warn".into()),
        ]);
        self.daemon("etcd", Program::Etcd, flags, None)
    }

    /// The API server.
    pub(super) fn apiserver(&self) -> Result<Daemon> {
        let audit_policy = self.layout.at("conf/audit-policy.yaml");
        write_yaml(&audit_policy, &audit_policy_object())?;
        let pki = |file: &str| self.path(&format!("pki/{file}"));
        let mut arguments = flags([
            (
                "etcd-servers",
                format!("http://127.0.0.1:{}", self.ports.etcd_client),
            ),
            ("secure-port", self.ports.api.to_string()),
            ("authorization-mode", "Node,RBAC".into()),
            ("allow-privileged", "true".into()),
            ("service-cluster-ip-range", self.slot.services().to_string()),
            ("client-ca-file", pki("ca.crt")),
            ("tls-cert-file", pki("apiserver.crt")),
            ("tls-private-key-file", pki("apiserver.key")),
            ("service-account-key-file", pki("sa.pub")),
            ("service-account-signing-key-file", pki("sa.key")),
            (
                "service-account-issuer",
                format!("https://kubernetes.default.svc.{}", self.cluster_domain),
            ),
            ("kubelet-client-certificate", pki("apiserver-kubelet-client.crt")),
            ("kubelet-client-key", pki("apiserver-kubelet-client.key")),
            // Else logs, exec and port-forward look the node's name up in DNS.
            ("kubelet-preferred-address-types", "InternalIP".into()),
            ("requestheader-client-ca-file", pki("front-proxy-ca.crt")),
            ("requestheader-allowed-names", "front-proxy-client".into()),
            ("requestheader-username-headers", "X-Remote-User".into()),
            ("requestheader-group-headers", "X-Remote-Group".into()),
            ("requestheader-extra-headers-prefix", "X-Remote-Extra-".into()),
            ("proxy-client-cert-file", pki("front-proxy-client.crt")),
            ("proxy-client-key-file", pki("front-proxy-client.key")),
            ("audit-policy-file", audit_policy.to_string_lossy().into_owned()),
            (
                "audit-log-path",
                self.layout.audit_log().to_string_lossy().into_owned(),
            ),
            // Written as it happens: a test that counts writes must not have to wait for a buffer.
            ("audit-log-mode", "blocking".into()),
        ]);
        if self.with_node {
            let node = self.slot.node();
            arguments.extend(flags([
                ("bind-address", "0.0.0.0".into()),
                ("advertise-address", node.to_string()),
            ]));
            arguments.extend(flags([("enable-admission-plugins", "NodeRestriction".into())]));
        } else {
            arguments.extend(flags([
                ("bind-address", "127.0.0.1".into()),
                ("advertise-address", "127.0.0.1".into()),
                // A loopback address cannot be an endpoint, and no pod is there to use it.
                ("endpoint-reconciler-type", "none".into()),
                // No controller makes service accounts here, without which no pod could be created.
                ("disable-admission-plugins", "ServiceAccount".into()),
            ]));
        }
        Ok(self.daemon(
            "kube-apiserver",
            Program::KubeApiserver,
            arguments,
            Some(audit_policy),
        ))
    }

    /// The controllers.
    pub(super) fn controller_manager(&self) -> Daemon {
        let kubeconfig = pki::kubeconfig(self.layout, "controller-manager");
        let pki = |file: &str| self.path(&format!("pki/{file}"));
        let flags = flags([
            ("kubeconfig", kubeconfig.to_string_lossy().into_owned()),
            ("bind-address", "127.0.0.1".into()),
            ("use-service-account-credentials", "true".into()),
            ("root-ca-file", pki("ca.crt")),
            ("service-account-private-key-file", pki("sa.key")),
            ("cluster-signing-cert-file", pki("ca.crt")),
            ("cluster-signing-key-file", pki("ca.key")),
            ("allocate-node-cidrs", "true".into()),
            ("cluster-cidr", self.slot.pods().to_string()),
            ("service-cluster-ip-range", self.slot.services().to_string()),
            ("leader-elect", "false".into()),
        ]);
        self.daemon(
            "kube-controller-manager",
            Program::KubeControllerManager,
            flags,
            Some(kubeconfig),
        )
    }

    /// The scheduler.
    pub(super) fn scheduler(&self) -> Daemon {
        let kubeconfig = pki::kubeconfig(self.layout, "scheduler");
        let flags = flags([
            ("kubeconfig", kubeconfig.to_string_lossy().into_owned()),
            ("bind-address", "127.0.0.1".into()),
            ("leader-elect", "false".into()),
        ]);
        self.daemon("kube-scheduler", Program::KubeScheduler, flags, Some(kubeconfig))
    }

    fn daemon(
        &self,
        name: &'static str,
        program: Program,
        args: Vec<String>,
        file: Option<PathBuf>,
    ) -> Daemon {
        let program = self.tools.path(program).to_path_buf();
        Daemon {
            name,
            program,
            args,
            files: file.into_iter().collect(),
            in_netns: self.with_node,
        }
    }

    fn path(&self, relative: &str) -> String {
        self.layout.at(relative).to_string_lossy().into_owned()
    }
}

/// Every write but those to leases, one line per request with who sent it.
fn audit_policy_object() -> serde_json::Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [
            {"level": "None", "verbs": ["get", "list", "watch"]},
            {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
            {"level": "Metadata"},
        ],
    })
}

/// Command line flags from names and values.
pub(super) fn flags<const N: usize>(flags: [(&str, String); N]) -> Vec<String> {
    flags
        .into_iter()
        .map(|(name, value)| format!("--{name}={value}"))
        .collect()
}

/// Writes `value` as YAML.
pub(super) fn write_yaml(path: &std::path::Path, value: &serde_json::Value) -> Result<()> {
    let shown = || format!("failed to write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(shown)?;
    }
    let text = serde_yaml::to_string(value).with_context(shown)?;
    fs::write(path, text).with_context(shown)
}
