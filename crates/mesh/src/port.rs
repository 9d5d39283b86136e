//! Ports of the proxy and the control plane, and the names that container ports carry.

/// The proxy's outbound listener, on loopback.
pub const PROXY_OUTBOUND: u16 = 4140;
/// The proxy's inbound listener.
pub const PROXY_INBOUND: u16 = 4143;
/// The proxy's control (tap) listener.
pub const PROXY_CONTROL: u16 = 4190;
/// The proxy's admin server: `/live`, `/ready`, `/metrics`.
pub const PROXY_ADMIN: u16 = 4191;
/// The identity service.
pub const IDENTITY: u16 = 8080;
/// The destination service.
pub const DESTINATION: u16 = 8086;
/// The policy service.
pub const POLICY: u16 = 8090;
/// The injector's webhook in its pod (its Service listens on 443).
pub const INJECTOR: u16 = 8443;

/// Name of the container port of the proxy's inbound listener.
pub const PROXY_INBOUND_NAME: &str = "linkerd-proxy";
/// Name of the container port of the proxy's admin server; the seed's PodMonitor scrapes it.
pub const PROXY_ADMIN_NAME: &str = "linkerd-admin";

/// The proxy's container in an injected pod. The destination service finds the proxy's settings by it.
pub const PROXY_CONTAINER: &str = "linkerd-proxy";
/// The init container that redirects a pod's traffic to the proxy.
pub const INIT_CONTAINER: &str = "linkerd-init";
/// The init container that checks, in its place, that a CNI plugin redirects a pod's traffic.
pub const NETWORK_VALIDATOR_CONTAINER: &str = "linkerd-network-validator";
/// The container with tools that `config.linkerd.io/enable-debug-sidecar` adds.
pub const DEBUG_CONTAINER: &str = "linkerd-debug";

/// The user that the proxy runs as; its own traffic is not redirected.
pub const PROXY_UID: u32 = 2102;
/// The user that the control plane's programs run as.
pub const CONTROLLER_UID: u32 = 2103;

/// Ports opaque by default: SMTP (25, 587), MySQL, Galera (4444), PostgreSQL, Redis, Elasticsearch, Memcached. Linkerd's list.
pub const DEFAULT_OPAQUE: [u16; 8] = [25, 587, 3306, 4444, 5432, 6379, 9300, 11211];
/// Ports that bypass the proxy by default in both directions (Galera's replication). Linkerd's list.
pub const DEFAULT_SKIPPED: [u16; 2] = [4567, 4568];
