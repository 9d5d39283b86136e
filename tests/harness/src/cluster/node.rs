//! The node: containerd, the kubelet, kube-proxy, the pod network, and the cluster's DNS server beside them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::address::Slot;
use super::control_plane::{flags, write_yaml};
use super::layout::Layout;
use super::pki;
use super::process::Daemon;
use crate::host::CNI_BIN_DIR;
use crate::image::PAUSE_IMAGE;
use crate::tools::{Program, Tools};

/// Port of the kubelet, in the cluster's own network namespace.
const KUBELET_PORT: u16 = 10250;

/// Pods the node takes: what its /24 has addresses for, less a few.
const PODS_MAX: u16 = 240;

/// How often the kubelet looks at each pod even if nothing happened. It bounds how long a changed ConfigMap takes
/// to reach a volume: a minute by default, too long to wait for in a test.
const SYNC_INTERVAL: &str = "10s";

/// The parts of a node's command lines that differ between clusters.
pub(super) struct Node<'a> {
    pub(super) layout: &'a Layout,
    pub(super) tools: &'a Tools,
    pub(super) slot: Slot,
    pub(super) cluster_domain: &'a str,
}

impl Node<'_> {
    /// The container runtime.
    pub(super) fn containerd(&self) -> Result<Daemon> {
        let config = self.layout.at("conf/containerd.toml");
        let conf_dir = self.layout.cni_net_dir();
        let bin_dir = self.layout.cni_bin_dir();
        fs::create_dir_all(&bin_dir).with_context(|| format!("failed to make {}", bin_dir.display()))?;
        write(&config, &self.containerd_config())?;
        // The network is there before the runtime: without it the node is not ready.
        write_json(&conf_dir.join("10-heddle.conflist"), &self.cni_config())?;
        let sockets = self.layout.shim_sockets();
        fs::create_dir_all(&sockets).with_context(|| format!("failed to make {}", sockets.display()))?;
        let args = flags([
            ("config", config.to_string_lossy().into_owned()),
            ("log-level", "warn".into()),
        ]);
        Ok(self.daemon("containerd", Program::Containerd, args, vec![config]))
    }

    /// Where the runtime listens.
    pub(super) fn containerd_socket(&self) -> PathBuf {
        containerd_socket(self.layout)
    }

    fn containerd_config(&self) -> String {
        let shown = |path: PathBuf| format!("{:?}", path.to_string_lossy());
        let path = |relative: &str| shown(self.layout.at(relative));
        let socket = format!("{:?}", self.containerd_socket().to_string_lossy());
        let shim_sockets = format!("{:?}", self.layout.shim_sockets().to_string_lossy());
        format!(
            r#"version = 3
root = {root}
state = {state}

[grpc]
address = {socket}

[plugins."io.containerd.shim.v1.manager"]
socket_dir = {shim_sockets}

[plugins."io.containerd.cri.v1.images"]
snapshotter = "overlayfs"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{PAUSE_IMAGE}"

[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
disable_apparmor = true
# So that unmounting everything below the state folder leaves no namespace behind.
netns_mounts_under_state_dir = true

[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "runc"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = [{cni_bin}, "{CNI_BIN_DIR}"]
conf_dir = {cni}
# Else every pod leaves a file in a cache of the whole machine.
use_internal_loopback = true
"#,
            root = path("containerd/root"),
            state = path("containerd/state"),
            cni = shown(self.layout.cni_net_dir()),
            cni_bin = shown(self.layout.cni_bin_dir()),
        )
    }

    /// Each pod gets a veth pair whose other end is routed. No bridge: traffic between two pods of the node then
    /// passes the same rules as all other traffic, without bridge netfilter, which a kernel may lack.
    fn cni_config(&self) -> serde_json::Value {
        json!({
            "cniVersion": "1.0.0",
            "name": self.layout.cni_network(),
            "plugins": [
                {
                    "type": "ptp",
                    "ipMasq": false,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": self.layout.at("cni-addresses"),
                        "ranges": [[{"subnet": self.slot.node_pods().to_string()}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}},
            ],
        })
    }

    /// The kubelet.
    pub(super) fn kubelet(&self) -> Result<Daemon> {
        let resolv_conf = self.layout.at("conf/resolv.conf");
        // Pods with dnsPolicy Default get this: the cluster's own server, since nothing else can be reached.
        write(&resolv_conf, &format!("nameserver {}\n", self.slot.dns_service()))?;
        let config = self.layout.at("conf/kubelet.yaml");
        write_yaml(&config, &self.kubelet_config())?;
        let kubeconfig = pki::kubeconfig(self.layout, "kubelet");
        let args = flags([
            ("config", config.to_string_lossy().into_owned()),
            ("kubeconfig", kubeconfig.to_string_lossy().into_owned()),
            (
                "root-dir",
                self.layout.at("kubelet").to_string_lossy().into_owned(),
            ),
            (
                "cert-dir",
                self.layout.at("kubelet/pki").to_string_lossy().into_owned(),
            ),
            ("hostname-override", self.layout.name().to_owned()),
            ("node-ip", self.slot.node().to_string()),
        ]);
        Ok(self.daemon(
            "kubelet",
            Program::Kubelet,
            args,
            vec![config, kubeconfig, resolv_conf],
        ))
    }

    fn kubelet_config(&self) -> serde_json::Value {
        let path = |relative: &str| self.layout.at(relative);
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", self.containerd_socket().display()),
            "address": "0.0.0.0",
            "port": KUBELET_PORT,
            "healthzPort": 10248,
            "tlsCertFile": path("pki/kubelet-server.crt"),
            "tlsPrivateKeyFile": path("pki/kubelet-server.key"),
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": path("pki/ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [self.slot.dns_service().to_string()],
            "clusterDomain": self.cluster_domain,
            "resolvConf": path("conf/resolv.conf"),
            "podLogsDir": path("log/pods"),
            "volumePluginDir": path("kubelet/volume-plugins"),
            // From 1.35 on the kubelet refuses hosts with the first version of cgroups unless told otherwise.
            "failCgroupV1": false,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": format!("/{}", self.layout.cgroup()),
            "enforceNodeAllocatable": ["pods"],
            "failSwapOn": false,
            "localStorageCapacityIsolation": false,
            // A full disk is the developer's affair: nothing is evicted, and no image (there is no registry to get
            // it back from) is collected.
            "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
            "imageGCHighThresholdPercent": 100,
            "maxPods": PODS_MAX,
            "syncFrequency": SYNC_INTERVAL,
            "serializeImagePulls": false,
            // A benchmark sets its pods' congestion control; the network namespace it concerns is the pod's.
            "allowedUnsafeSysctls": ["net.core.*", "net.ipv4.*"],
        })
    }

    /// Services.
    pub(super) fn kube_proxy(&self) -> Daemon {
        let kubeconfig = pki::kubeconfig(self.layout, "kube-proxy");
        let args = flags([
            ("kubeconfig", kubeconfig.to_string_lossy().into_owned()),
            ("proxy-mode", "iptables".into()),
            ("cluster-cidr", self.slot.pods().to_string()),
            ("hostname-override", self.layout.name().to_owned()),
            // These settings belong to the host, not to a namespace.
            ("conntrack-max-per-core", "0".into()),
            // Endpoints change often in tests, and the rules are few.
            ("iptables-min-sync-period", "100ms".into()),
        ]);
        self.daemon("kube-proxy", Program::KubeProxy, args, vec![kubeconfig])
    }

    /// The cluster's DNS server, on the node's address.
    pub(super) fn coredns(&self) -> Result<Daemon> {
        let corefile = self.layout.at("conf/Corefile");
        let kubeconfig = pki::kubeconfig(self.layout, "coredns");
        let text = corefile_text(
            self.slot.node(),
            self.cluster_domain,
            &kubeconfig,
            self.layout.name(),
        );
        write(&corefile, &text)?;
        let args = vec!["-conf".to_owned(), corefile.to_string_lossy().into_owned()];
        Ok(self.daemon("coredns", Program::CoreDns, args, vec![corefile, kubeconfig]))
    }

    fn daemon(&self, name: &'static str, program: Program, args: Vec<String>, files: Vec<PathBuf>) -> Daemon {
        let program = self.tools.path(program).to_path_buf();
        Daemon {
            name,
            program,
            args,
            files,
            in_netns: true,
        }
    }
}

/// The DNS server's configuration. Two servers on one address, since within one the order of plugins is fixed.
fn corefile_text(
    node: std::net::Ipv4Addr,
    domain: &str,
    kubeconfig: &std::path::Path,
    cluster: &str,
) -> String {
    let kubeconfig = kubeconfig.display();
    format!(
        r"{domain}:53 in-addr.arpa:53 ip6.arpa:53 {{
    bind {node}
    errors
    ready {node}:8181
    kubernetes {domain} in-addr.arpa ip6.arpa {{
        kubeconfig {kubeconfig} {cluster}
        pods insecure
        ttl 5
    }}
}}

# Nothing outside the cluster can be reached, so nothing outside it has a name.
.:53 {{
    bind {node}
    errors
    template ANY ANY {{
        rcode NXDOMAIN
    }}
}}
"
    )
}

/// Where a cluster's container runtime listens.
pub(super) fn containerd_socket(layout: &Layout) -> PathBuf {
    layout.at("containerd/containerd.sock")
}

fn write(path: &std::path::Path, text: &str) -> Result<()> {
    let shown = || format!("failed to write {}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(shown)?;
    }
    fs::write(path, text).with_context(shown)
}

fn write_json(path: &std::path::Path, value: &serde_json::Value) -> Result<()> {
    write(path, &format!("{value:#}\n"))
}
