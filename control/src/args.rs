//! Flags, and what they mean together.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context as _;
use heddle_control_core::DefaultPolicy;
use heddle_control_index::{Config, watcher::SILENCE_MAX};
use heddle_daemon::log;
use heddle_mesh::{CONTROL_NAMESPACE, Identity, PortSet, ServiceAccountRef, TrustDomain, port};
use heddle_tls::ControlAddr;
use ipnet::IpNet;

/// Flags of all subcommands.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Common {
    /// Log level, in the syntax of RUST_LOG
    #[arg(long, global = true, env = "HEDDLE_LOG_LEVEL", default_value = "info")]
    pub(crate) log_level: String,
    /// Log format: plain or json
    #[arg(long, global = true, env = "HEDDLE_LOG_FORMAT", default_value = "plain")]
    pub(crate) log_format: log::Format,
    /// The cluster's DNS domain
    #[arg(
        long,
        global = true,
        env = "HEDDLE_CLUSTER_DOMAIN",
        default_value = "cluster.local"
    )]
    pub(crate) cluster_domain: String,
    /// The mesh's trust domain
    #[arg(
        long,
        global = true,
        env = "HEDDLE_IDENTITY_TRUST_DOMAIN",
        default_value = "cluster.local"
    )]
    pub(crate) identity_trust_domain: TrustDomain,
    /// Namespace of the control plane
    #[arg(long, global = true, env = "HEDDLE_CONTROL_NAMESPACE", default_value = CONTROL_NAMESPACE)]
    pub(crate) control_namespace: String,
    /// Kubernetes configuration to use outside a cluster; absent: that of KUBECONFIG, the home folder or the pod
    #[arg(long, global = true, env = "HEDDLE_KUBECONFIG")]
    pub(crate) kubeconfig: Option<PathBuf>,
}

/// Flags of `destination`.
#[derive(Debug, clap::Args)]
pub(crate) struct Destination {
    /// Address of the gRPC service; absent, with --loopback-addr given: loopback alone is served, without an identity
    #[arg(
        long,
        env = "HEDDLE_LISTEN_ADDR",
        default_value_if("loopback_addr", clap::builder::ArgPredicate::IsPresent, None),
        default_value = "0.0.0.0:8086"
    )]
    listen_addr: Option<SocketAddr>,
    /// Address of a gRPC listener without TLS, on loopback only; off when absent
    #[arg(long, env = "HEDDLE_LOOPBACK_ADDR", value_parser = loopback)]
    loopback_addr: Option<SocketAddr>,
    /// Address of /live, /ready and /metrics
    #[arg(long, env = "HEDDLE_ADMIN_ADDR", default_value = "0.0.0.0:9996")]
    admin_addr: SocketAddr,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    settings: Settings,
}

/// Flags of `policy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Policy {
    /// Address of the gRPC service; absent, with --loopback-addr given: loopback alone is served, without an identity
    #[arg(
        long,
        env = "HEDDLE_LISTEN_ADDR",
        default_value_if("loopback_addr", clap::builder::ArgPredicate::IsPresent, None),
        default_value = "0.0.0.0:8090"
    )]
    listen_addr: Option<SocketAddr>,
    /// Address of a gRPC listener without TLS, on loopback only; off when absent
    #[arg(long, env = "HEDDLE_LOOPBACK_ADDR", value_parser = loopback)]
    loopback_addr: Option<SocketAddr>,
    /// Address of the validating webhook; absent, with --loopback-addr given: there is none
    #[arg(
        long,
        env = "HEDDLE_ADMISSION_ADDR",
        default_value_if("loopback_addr", clap::builder::ArgPredicate::IsPresent, None),
        default_value = "0.0.0.0:9443"
    )]
    admission_addr: Option<SocketAddr>,
    /// Address of /live, /ready and /metrics
    #[arg(long, env = "HEDDLE_ADMIN_ADDR", default_value = "0.0.0.0:9990")]
    admin_addr: SocketAddr,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    settings: Settings,
}

/// Flags of `all`; the injector takes its own from the environment.
#[derive(Debug, clap::Args)]
pub(crate) struct All {
    /// Address of the destination service
    #[arg(long, env = "HEDDLE_DESTINATION_LISTEN_ADDR", default_value = "0.0.0.0:8086")]
    destination_listen_addr: SocketAddr,
    /// Address of the policy service
    #[arg(long, env = "HEDDLE_POLICY_LISTEN_ADDR", default_value = "0.0.0.0:8090")]
    policy_listen_addr: SocketAddr,
    /// Address of the validating webhook
    #[arg(long, env = "HEDDLE_ADMISSION_ADDR", default_value = "0.0.0.0:9443")]
    admission_addr: SocketAddr,
    /// Address of /live, /ready and /metrics
    #[arg(long, env = "HEDDLE_DESTINATION_ADMIN_ADDR", default_value = "0.0.0.0:9996")]
    admin_addr: SocketAddr,
    #[command(flatten)]
    identity: IdentityArgs,
    #[command(flatten)]
    settings: Settings,
}

/// How this process obtains its own certificate.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IdentityArgs {
    /// Address of the identity service
    #[arg(
        long,
        env = "HEDDLE_IDENTITY_ADDR",
        default_value = "linkerd-identity-headless.linkerd.svc.cluster.local.:8080"
    )]
    pub(crate) identity_addr: ControlAddr,
    /// Service account that the identity service runs as
    #[arg(
        long,
        env = "HEDDLE_IDENTITY_SERVICE_ACCOUNT",
        default_value = "linkerd-identity"
    )]
    pub(crate) identity_service_account: String,
    /// File of this process' service-account token for the identity service
    #[arg(
        long,
        env = "HEDDLE_IDENTITY_TOKEN_FILE",
        default_value = "/var/run/secrets/tokens/linkerd-identity-token"
    )]
    pub(crate) identity_token_file: PathBuf,
    /// Whether clients' certificates are judged by the identity service's revocation lists (its --revocations)
    #[arg(
        long,
        env = "HEDDLE_IDENTITY_REVOCATION",
        default_value_t = false,
        action = clap::ArgAction::Set
    )]
    pub(crate) identity_revocation: bool,
    /// File of the trust anchors (PEM); read again when it changes
    #[arg(
        long,
        env = "HEDDLE_TRUST_ROOTS",
        default_value = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt"
    )]
    pub(crate) trust_roots: PathBuf,
    /// Service account that this process runs as; part of its identity
    #[arg(long, env = "HEDDLE_SERVICE_ACCOUNT", default_value = "linkerd-destination")]
    pub(crate) service_account: String,
}

/// What proxies are told when no object says otherwise.
#[derive(Clone, Debug, clap::Args)]
struct Settings {
    /// Policy of inbound ports that no Server selects, unless an annotation says otherwise
    #[arg(long, env = "HEDDLE_DEFAULT_POLICY", default_value = "all-unauthenticated")]
    default_policy: DefaultPolicy,
    /// Networks that count as inside the cluster
    #[arg(
        long,
        env = "HEDDLE_CLUSTER_NETWORKS",
        value_delimiter = ',',
        default_value = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8"
    )]
    cluster_networks: Vec<IpNet>,
    /// The namespace whose EgressNetworks speak for clients of all namespaces
    #[arg(
        long,
        env = "HEDDLE_GLOBAL_EGRESS_NETWORK_NAMESPACE",
        default_value = "linkerd-egress"
    )]
    global_egress_network_namespace: String,
    /// Let requests set their own timeouts and retries with headers such as l5d-retry-http and l5d-timeout
    #[arg(long, env = "HEDDLE_ALLOW_L5D_REQUEST_HEADERS")]
    allow_l5d_request_headers: bool,
    /// Networks that the kubelet's probes come from
    #[arg(
        long,
        env = "HEDDLE_PROBE_NETWORKS",
        value_delimiter = ',',
        default_value = "0.0.0.0/0,::/0"
    )]
    probe_networks: Vec<IpNet>,
    /// Ports that are opaque unless an annotation says otherwise
    #[arg(long, env = "HEDDLE_DEFAULT_OPAQUE_PORTS", default_value_t = port::DEFAULT_OPAQUE.into_iter().collect())]
    default_opaque_ports: PortSet,
    /// Whether meshed pods are reached at their proxy's own port with a transport header
    #[arg(
        long,
        env = "HEDDLE_OUTBOUND_TRANSPORT_MODE",
        default_value = "transport-header"
    )]
    outbound_transport_mode: TransportMode,
    /// Let endpoints of a client's own zone weigh ten times as much for it as others
    #[arg(long, env = "HEDDLE_EXT_ENDPOINT_ZONE_WEIGHTS")]
    ext_endpoint_zone_weights: bool,
    /// Whether proxies carry IPv6 traffic; if not, IPv6 addresses are nobody's endpoints
    #[arg(
        long,
        env = "HEDDLE_ENABLE_IPV6",
        action = clap::ArgAction::Set,
        default_value_t = false
    )]
    enable_ipv6: bool,
}

/// See [`Settings::outbound_transport_mode`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum TransportMode {
    /// To the proxy's port, with a header that names the target's.
    TransportHeader,
    /// To the target's port.
    Transparent,
}

/// Where a service is served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Listen {
    /// With TLS.
    pub(crate) tls: Option<SocketAddr>,
    /// Without, on loopback.
    pub(crate) loopback: Option<SocketAddr>,
}

/// What to serve, and where.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) destination: Option<Listen>,
    pub(crate) policy: Option<Listen>,
    /// Of the validating webhook.
    pub(crate) admission_addr: Option<SocketAddr>,
    pub(crate) admin_addr: SocketAddr,
    pub(crate) identity: IdentityArgs,
    settings: Settings,
}

impl Destination {
    pub(crate) fn into_plan(self) -> Plan {
        let Self {
            listen_addr,
            loopback_addr,
            admin_addr,
            identity,
            settings,
        } = self;
        let listen = Listen {
            tls: listen_addr,
            loopback: loopback_addr,
        };
        Plan {
            destination: Some(listen),
            policy: None,
            admission_addr: None,
            admin_addr,
            identity,
            settings,
        }
    }
}

impl Policy {
    pub(crate) fn into_plan(self) -> Plan {
        let Self {
            listen_addr,
            loopback_addr,
            admission_addr,
            admin_addr,
            identity,
            settings,
        } = self;
        let listen = Listen {
            tls: listen_addr,
            loopback: loopback_addr,
        };
        Plan {
            destination: None,
            policy: Some(listen),
            admission_addr,
            admin_addr,
            identity,
            settings,
        }
    }
}

impl All {
    pub(crate) fn into_plan(self) -> Plan {
        let Self {
            destination_listen_addr,
            policy_listen_addr,
            admission_addr,
            admin_addr,
            identity,
            settings,
        } = self;
        let listen = |addr| {
            Some(Listen {
                tls: Some(addr),
                loopback: None,
            })
        };
        Plan {
            destination: listen(destination_listen_addr),
            policy: listen(policy_listen_addr),
            admission_addr: Some(admission_addr),
            admin_addr,
            identity,
            settings,
        }
    }
}

impl Plan {
    /// All listeners.
    pub(crate) fn listeners(&self) -> impl Iterator<Item = &Listen> {
        self.destination.iter().chain(&self.policy)
    }

    /// The index's settings.
    pub(crate) fn config(&self, common: &Common) -> Config {
        let Settings {
            default_policy,
            cluster_networks,
            global_egress_network_namespace,
            allow_l5d_request_headers,
            probe_networks,
            default_opaque_ports,
            outbound_transport_mode,
            ext_endpoint_zone_weights,
            enable_ipv6,
        } = self.settings.clone();
        Config {
            cluster_domain: common.cluster_domain.clone(),
            control_namespace: common.control_namespace.clone(),
            trust_domain: common.identity_trust_domain.clone(),
            cluster_networks,
            global_egress_namespace: global_egress_network_namespace,
            allow_l5d_request_headers,
            default_policy,
            opaque_ports: default_opaque_ports,
            probe_networks,
            transport_header: outbound_transport_mode == TransportMode::TransportHeader,
            zone_weights: ext_endpoint_zone_weights,
            ipv6: enable_ipv6,
            ..Config::default()
        }
    }
}

impl Common {
    /// A client of the API server.
    pub(crate) async fn client(&self) -> anyhow::Result<kube::Client> {
        let context = "failed to configure the Kubernetes client";
        let mut config = match &self.kubeconfig {
            None => kube::Config::infer().await.context(context)?,
            Some(path) => {
                let file = kube::config::Kubeconfig::read_from(path)
                    .with_context(|| format!("failed to read {}", path.display()))?;
                let config =
                    kube::Config::from_custom_kubeconfig(file, &kube::config::KubeConfigOptions::default())
                        .await;
                config.with_context(|| format!("{} cannot be used", path.display()))?
            }
        };
        // A connection that a firewall forgot would leave the index as it is for minutes more.
        config.read_timeout = Some(SILENCE_MAX);
        // The API server's audit log and metrics then tell this program's requests from all others.
        let agent = http::HeaderValue::from_static(concat!("heddle-control/", env!("CARGO_PKG_VERSION")));
        config.headers.push((http::header::USER_AGENT, agent));
        kube::Client::try_from(config).context(context)
    }

    /// The identity of a service account of the control plane.
    pub(crate) fn identity(&self, service_account: &str) -> anyhow::Result<Identity> {
        let account = ServiceAccountRef {
            namespace: self.control_namespace.clone(),
            name: service_account.to_owned(),
        };
        Identity::for_service_account(&account, &self.control_namespace, &self.identity_trust_domain)
            .with_context(|| {
                format!(
                    "service account {service_account} of {} has no valid identity",
                    self.control_namespace
                )
            })
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text.parse().map_err(|_| "expected IP:PORT".to_owned())?;
    if addr.ip().is_loopback() {
        Ok(addr)
    } else {
        Err("expected a loopback address".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        destination: Destination,
    }

    fn listen(flags: &[&str]) -> Listen {
        let words = ["destination"].iter().chain(flags);
        Cli::parse_from(words)
            .destination
            .into_plan()
            .destination
            .expect("the destination service is planned")
    }

    fn addr(text: &str) -> Option<SocketAddr> {
        text.parse().ok()
    }

    #[test]
    fn tls_is_served_unless_loopback_alone_is_asked_for() {
        let Listen { tls, loopback } = listen(&[]);
        assert_eq!((tls, loopback), (addr("0.0.0.0:8086"), None));
        let Listen { tls, loopback } = listen(&["--loopback-addr=127.0.0.1:1"]);
        assert_eq!((tls, loopback), (None, addr("127.0.0.1:1")));
        let Listen { tls, loopback } = listen(&["--loopback-addr=127.0.0.1:1", "--listen-addr=0.0.0.0:2"]);
        assert_eq!((tls, loopback), (addr("0.0.0.0:2"), addr("127.0.0.1:1")));
    }

    #[test]
    fn plaintext_is_for_loopback_only() {
        assert!(Cli::try_parse_from(["destination", "--loopback-addr=0.0.0.0:1"]).is_err());
    }

    #[test]
    fn settings_reach_the_index_and_wrong_ones_do_not() {
        let flags = [
            "destination",
            "--default-policy=deny",
            "--cluster-networks=10.0.0.0/8,fd00::/8",
            "--default-opaque-ports=25,9000-9001",
            "--global-egress-network-namespace=egress",
            "--allow-l5d-request-headers",
            "--ext-endpoint-zone-weights",
        ];
        let plan = Cli::parse_from(flags).destination.into_plan();
        let common = Common {
            log_level: String::new(),
            log_format: log::Format::Plain,
            cluster_domain: "c.test".into(),
            identity_trust_domain: TrustDomain::default(),
            control_namespace: "mesh".into(),
            kubeconfig: None,
        };
        let config = plan.config(&common);
        assert_eq!(
            (config.default_policy, config.cluster_networks.len()),
            (DefaultPolicy::Deny, 2)
        );
        assert!(config.global_egress_namespace == "egress" && config.allow_l5d_request_headers);
        assert!(config.opaque_ports.contains(9001) && !config.opaque_ports.contains(3306));
        assert_eq!(
            (config.cluster_domain.as_str(), config.control_namespace.as_str()),
            ("c.test", "mesh")
        );
        assert!(config.transport_header && config.zone_weights);
        for wrong in [
            "--default-policy=open",
            "--cluster-networks=10.0.0.0/33",
            "--default-opaque-ports=web",
            "--outbound-transport-mode=x",
        ] {
            assert!(
                Cli::try_parse_from(["destination", wrong]).is_err(),
                "{wrong} was taken"
            );
        }
    }
}
