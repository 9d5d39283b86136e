//! The proxy's settings, from `LINKERD2_PROXY_*` variables: the interface between the injector and the proxy.
//!
//! In goes a view of the environment; out comes a [`Config`] or the list of all variables that are wrong. Nothing else
//! in the proxy reads the environment.

mod parse;
mod unused;

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, time::Duration};

use heddle_mesh::{Identity, PortSet, env};
use heddle_proxy_policy::{DefaultPolicy, balance::Backoff};
use heddle_tls::{ControlAddr, TrustBundle};
use ipnet::IpNet;

use crate::{access_log, dst::Suffixes, logging};
use parse::Parser;
pub(crate) use parse::{EnvError, ProcessEnv, Vars};

/// Where the control plane's trust bundle is mounted, when it is; it is followed there. The environment's anchors hold
/// until it is read, and for pods without the mount.
const TRUST_ROOTS_FILE: &str = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt";

/// All settings.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub admin: AdminConfig,
    pub control: ControlConfig,
    pub identity: IdentityConfig,
    pub inbound: InboundConfig,
    pub outbound: OutboundConfig,
    pub log: LogConfig,
    pub telemetry: TelemetryConfig,
    /// Worker threads.
    pub workers: usize,
    /// How long draining may take.
    pub shutdown_grace: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct AdminConfig {
    pub listen: SocketAddr,
    pub shutdown_endpoint: bool,
    /// Series without traffic for this long are forgotten.
    pub metrics_retain_idle: Duration,
}

/// A service of the control plane.
#[derive(Clone, Debug)]
pub(crate) struct ControlService {
    pub addr: ControlAddr,
    pub name: Identity,
}

#[derive(Clone, Debug)]
pub(crate) struct ControlConfig {
    pub destination: ControlService,
    pub policy: ControlService,
    pub identity: ControlService,
    /// Tells the policy service which workload this is.
    pub workload: String,
    /// Tells the destination service about the client.
    pub destination_context: String,
    /// Addresses outside are not looked up as destinations.
    pub profile_networks: Option<Vec<IpNet>>,
    /// Nor are names outside of these.
    pub profile_suffixes: Suffixes,
    streams: StreamLimits,
}

impl ControlConfig {
    /// The bounds of a service's streams. Controllers' own proxies find theirs on loopback, where connections do not grow
    /// stale.
    pub(crate) fn streams(&self, service: &ControlService) -> StreamLimits {
        match service.addr.is_loopback() {
            true => StreamLimits::default(),
            false => self.streams,
        }
    }
}

/// Bounds of streams from the control plane.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StreamLimits {
    pub initial_timeout: Option<Duration>,
    pub idle_timeout: Option<Duration>,
    pub lifetime: Option<Duration>,
}

#[derive(Clone, Debug)]
pub(crate) struct IdentityConfig {
    pub local_name: Identity,
    pub roots: TrustBundle,
    pub roots_file: PathBuf,
    pub token_file: PathBuf,
    /// Whether peers' certificates are judged by the identity service's revocation lists.
    pub revocation: bool,
    /// How often it is asked for them.
    pub revocation_interval: Duration,
    pub min_refresh: Duration,
    pub max_refresh: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct InboundConfig {
    pub listen: SocketAddr,
    pub ips: Vec<std::net::IpAddr>,
    /// Policies of these are fetched at start.
    pub ports: PortSet,
    pub opaque_ports: PortSet,
    pub default_policy: DefaultPolicy,
    pub cluster_networks: Vec<IpNet>,
    pub detect_timeout: Duration,
    pub connect_timeout: Duration,
    pub discovery_idle: Duration,
    pub http2: Http2Config,
    pub pool: PoolConfig,
    /// Names that peers may reach through this proxy; none: it is no gateway.
    pub gateway_suffixes: Suffixes,
}

/// HTTP/2 connections of clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Http2Config {
    /// Requests at a time on one connection.
    pub streams_max: u32,
    /// How often a client is asked whether it is still there, and how long it may take to answer.
    pub ping_interval: Duration,
    pub ping_timeout: Duration,
}

impl Http2Config {
    #[must_use]
    pub(crate) fn at_most(mut self, streams_max: u32) -> Self {
        self.streams_max = self.streams_max.min(streams_max);
        self
    }
}

/// Idle HTTP/1 connections to one address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PoolConfig {
    /// Of one worker.
    pub idle_max: usize,
    pub idle_timeout: Duration,
}

#[derive(Clone, Debug)]
pub(crate) struct OutboundConfig {
    pub listen: Vec<SocketAddr>,
    /// Whether requests say themselves which service they are for (`l5d-dst-override`).
    pub ingress: bool,
    /// Whether applications are told what went wrong (`l5d-proxy-error`). What an ingress answers goes to strangers.
    pub informational_headers: bool,
    pub detect_timeout: Duration,
    pub connect_timeout: Duration,
    pub discovery_idle: Duration,
    /// How long endpoints rest after failed connections.
    pub connect_backoff: Backoff,
    pub http2: Http2Config,
    pub pool: PoolConfig,
}

#[derive(Clone, Debug)]
pub(crate) struct LogConfig {
    pub filter: String,
    pub json: bool,
}

/// What is told of requests besides metrics.
#[derive(Clone, Debug)]
pub(crate) struct TelemetryConfig {
    /// None: no access log.
    pub access_log: Option<access_log::Format>,
    /// None: trace contexts pass as they are.
    pub trace: Option<TraceConfig>,
    /// None: nobody may tap.
    pub tap: Option<TapConfig>,
    /// Whether metrics of outbound routes tell the host that was asked for.
    pub hostname_labels: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct TraceConfig {
    pub collector: ControlService,
    /// What all spans say.
    pub attributes: BTreeMap<String, String>,
    /// A file with more of it: the pod's labels.
    pub attributes_path: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub(crate) struct TapConfig {
    pub listen: SocketAddr,
    /// Who may tap.
    pub observer: Identity,
}

/// Linkerd's.
const CONNECT_BACKOFF: Backoff = Backoff {
    min: Duration::from_millis(100),
    max: Duration::from_secs(60),
    jitter_ratio: 0.1,
};

/// Networks of clusters when none are given: Linkerd's.
const CLUSTER_NETWORKS: &str = "10.0.0.0/8,100.64.0.0/10,172.16.0.0/12,192.168.0.0/16,fd00::/8";

impl Config {
    /// Reads all settings. Every variable is looked at, so that one start shows all mistakes.
    ///
    /// # Errors
    /// The variables that are missing or wrong.
    pub(crate) fn from_env(vars: &dyn Vars) -> Result<Self, Vec<EnvError>> {
        let mut p = Parser::new(vars);
        let ms = Duration::from_millis;
        let secs = Duration::from_secs;
        let socket = |text: &str| text.parse::<SocketAddr>().map_err(|error| error.to_string());

        let control = p.control();
        let roots = p.required(env::IDENTITY_TRUST_ANCHORS, |text| {
            TrustBundle::from_pem(text).map_err(|error| heddle_daemon::report::chain(&error))
        });
        let local_name = p.identity_name();
        let token_file = p.required(env::IDENTITY_TOKEN_FILE, |text| Ok(PathBuf::from(text)));
        // Linkerd's wrapper keeps its key here. Required for parity, but nothing is ever written there.
        let _ = p.required(env::IDENTITY_DIR, |text| Ok(PathBuf::from(text)));
        let min_refresh = p.duration("LINKERD2_PROXY_IDENTITY_MIN_REFRESH", secs(10));
        let max_refresh = p.duration("LINKERD2_PROXY_IDENTITY_MAX_REFRESH", secs(24 * 3600));
        let roots_file = p
            .optional("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS_FILE", |text| {
                Ok(PathBuf::from(text))
            })
            .unwrap_or_else(|| PathBuf::from(TRUST_ROOTS_FILE));

        // Heddle's own: the identity service must serve lists (its --revocations).
        let revocation = p.flag("LINKERD2_PROXY_IDENTITY_REVOCATION");
        let revocation_interval = p.duration("LINKERD2_PROXY_IDENTITY_REVOCATION_INTERVAL", secs(30));

        let cluster_networks = p
            .optional(env::POLICY_CLUSTER_NETWORKS, parse::networks)
            .unwrap_or_else(|| {
                parse::networks(CLUSTER_NETWORKS).expect("the default networks are well formed")
            });
        let workers = p.workers(std::thread::available_parallelism().map_or(1, usize::from));
        let inbound = InboundConfig {
            listen: p
                .optional(env::INBOUND_LISTEN_ADDR, socket)
                .unwrap_or(([0, 0, 0, 0], 4143).into()),
            ips: p.optional(env::INBOUND_IPS, parse::ips).unwrap_or_default(),
            ports: p.ports(env::INBOUND_PORTS),
            opaque_ports: p.ports(env::INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION),
            default_policy: p
                .optional(env::INBOUND_DEFAULT_POLICY, |text| {
                    text.parse::<DefaultPolicy>().map_err(|error| error.to_string())
                })
                .unwrap_or(DefaultPolicy::AllUnauthenticated),
            cluster_networks,
            detect_timeout: p.duration(env::INBOUND_DETECT_TIMEOUT, secs(10)),
            connect_timeout: p.duration(env::INBOUND_CONNECT_TIMEOUT, ms(300)),
            discovery_idle: p.duration(env::INBOUND_DISCOVERY_IDLE_TIMEOUT, secs(90)),
            http2: p.http2("INBOUND"),
            // Linkerd's name of the number has no direction.
            pool: p.pool("INBOUND", "MAX_IDLE_CONNS_PER_ENDPOINT", workers),
            gateway_suffixes: p
                .optional(env::INBOUND_GATEWAY_SUFFIXES, str::parse)
                .unwrap_or_default(),
        };
        let ingress = p.flag(env::INGRESS_MODE);
        let outbound = OutboundConfig {
            listen: p.outbound_listen(),
            ingress,
            informational_headers: !p
                .optional_flag("LINKERD2_PROXY_OUTBOUND_DISABLE_INFORMATIONAL_HEADERS")
                .unwrap_or(ingress),
            detect_timeout: p.duration(env::OUTBOUND_DETECT_TIMEOUT, secs(10)),
            connect_timeout: p.duration(env::OUTBOUND_CONNECT_TIMEOUT, secs(1)),
            discovery_idle: p.duration(env::OUTBOUND_DISCOVERY_IDLE_TIMEOUT, secs(5)),
            connect_backoff: p.backoff("OUTBOUND_CONNECT").unwrap_or(CONNECT_BACKOFF),
            http2: p.http2("OUTBOUND"),
            pool: p.pool("OUTBOUND", "OUTBOUND_MAX_IDLE_CONNS_PER_ENDPOINT", workers),
        };
        let admin = AdminConfig {
            listen: p
                .optional(env::ADMIN_LISTEN_ADDR, socket)
                .unwrap_or(([127, 0, 0, 1], 4191).into()),
            shutdown_endpoint: p.flag(env::SHUTDOWN_ENDPOINT_ENABLED),
            metrics_retain_idle: p.duration("LINKERD2_PROXY_METRICS_RETAIN_IDLE", secs(600)),
        };
        let telemetry = p.telemetry();
        let log = LogConfig {
            filter: p
                .optional(env::LOG, |text| {
                    let filter = logging::check(text).map(|()| text.to_owned());
                    filter.map_err(|error| heddle_daemon::report::chain(&error))
                })
                .unwrap_or_else(|| "warn,linkerd=info".to_owned()),
            json: p
                .optional(env::LOG_FORMAT, |text| match text.to_ascii_lowercase().as_str() {
                    "plain" => Ok(false),
                    "json" => Ok(true),
                    _ => Err("expected `plain` or `json`".to_owned()),
                })
                .unwrap_or(false),
        };
        unused::check(&mut p);
        let shutdown_grace = p.duration(env::SHUTDOWN_GRACE_PERIOD, secs(120));

        let errors = p.finish();
        match (control, roots, local_name, token_file) {
            (Some(control), Some(roots), Some(local_name), Some(token_file)) if errors.is_empty() => {
                Ok(Self {
                    admin,
                    control,
                    identity: IdentityConfig {
                        local_name,
                        roots,
                        roots_file,
                        token_file,
                        revocation,
                        revocation_interval,
                        min_refresh,
                        max_refresh,
                    },
                    inbound,
                    outbound,
                    log,
                    telemetry,
                    workers,
                    shutdown_grace,
                })
            }
            _ => Err(errors),
        }
    }
}

#[cfg(test)]
mod tests;
