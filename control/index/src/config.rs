//! Settings that answers depend on beside the cluster's objects.

use std::time::Duration;

use heddle_control_core::DefaultPolicy;
use heddle_mesh::{PortSet, TrustDomain, port};
use ipnet::IpNet;

/// Settings of the control plane.
#[derive(Clone, Debug)]
pub struct Config {
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The control plane's namespace.
    pub control_namespace: String,
    /// The mesh's trust domain.
    pub trust_domain: TrustDomain,
    /// Networks that count as inside the cluster.
    pub cluster_networks: Vec<IpNet>,
    /// Policy of ports that nothing more specific governs.
    pub default_policy: DefaultPolicy,
    /// Ports that are opaque unless an annotation says otherwise.
    pub opaque_ports: PortSet,
    /// Networks that the kubelet's probes come from.
    pub probe_networks: Vec<IpNet>,
    /// How long proxies wait for the first bytes of a connection to tell its protocol.
    pub detect_timeout: Duration,
    /// The namespace whose EgressNetworks speak for clients of all namespaces.
    pub global_egress_namespace: String,
    /// Whether proxies obey retry and timeout headers of the requests themselves (`l5d-retry-http` and the like).
    pub allow_l5d_request_headers: bool,
    /// Whether meshed endpoints are reached at their proxy's own port with a transport header.
    pub transport_header: bool,
    /// Whether endpoints of a client's own zone weigh more for it than others.
    pub zone_weights: bool,
    /// Whether proxies carry IPv6 traffic. If not, IPv6 addresses are nobody's endpoints.
    pub ipv6: bool,
}

impl Default for Config {
    /// What a mesh has when its profile says nothing.
    fn default() -> Self {
        let net = |text: &str| text.parse().expect("a constant network");
        let networks = [
            "10.0.0.0/8",
            "100.64.0.0/10",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "fd00::/8",
        ];
        Self {
            cluster_domain: "cluster.local".to_owned(),
            control_namespace: heddle_mesh::CONTROL_NAMESPACE.to_owned(),
            trust_domain: TrustDomain::default(),
            cluster_networks: networks.into_iter().map(net).collect(),
            default_policy: DefaultPolicy::Allow {
                authenticated_only: false,
                cluster_only: false,
            },
            opaque_ports: port::DEFAULT_OPAQUE.into_iter().collect(),
            probe_networks: vec![net("0.0.0.0/0"), net("::/0")],
            detect_timeout: Duration::from_secs(10),
            global_egress_namespace: "linkerd-egress".to_owned(),
            allow_l5d_request_headers: false,
            transport_header: true,
            zone_weights: false,
            ipv6: false,
        }
    }
}

impl Config {
    /// Whether an address is inside the cluster.
    pub(crate) fn is_in_cluster(&self, ip: std::net::IpAddr) -> bool {
        self.cluster_networks.iter().any(|net| net.contains(&ip))
    }

    /// The identity of a service account.
    pub(crate) fn identity(&self, namespace: &str, account: &str) -> String {
        let Self {
            control_namespace,
            trust_domain,
            ..
        } = self;
        format!("{account}.{namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}")
    }
}
