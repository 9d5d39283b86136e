//! Names of the environment variables between the injector and the proxy: Linkerd's, so that either side can be
//! Linkerd's own. Durations are in [`crate::duration`]'s form, sets of ports in [`crate::PortSet`]'s.

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $suffix:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = concat!("LINKERD2_PROXY_", $suffix);)*
    };
}

names! {
    /// Address of the destination service, `host:port`.
    DESTINATION_SVC_ADDR = "DESTINATION_SVC_ADDR";
    /// Identity that the destination service must prove.
    DESTINATION_SVC_NAME = "DESTINATION_SVC_NAME";
    /// Opaque text about the client, handed to the destination service.
    DESTINATION_CONTEXT = "DESTINATION_CONTEXT";
    /// Networks whose addresses are looked up in the destination service.
    DESTINATION_PROFILE_NETWORKS = "DESTINATION_PROFILE_NETWORKS";
    /// DNS suffixes whose names are looked up in the destination service.
    DESTINATION_PROFILE_SUFFIXES = "DESTINATION_PROFILE_SUFFIXES";
    /// Address of the policy service, `host:port`.
    POLICY_SVC_ADDR = "POLICY_SVC_ADDR";
    /// Identity that the policy service must prove.
    POLICY_SVC_NAME = "POLICY_SVC_NAME";
    /// JSON that names this workload to the policy service.
    POLICY_WORKLOAD = "POLICY_WORKLOAD";
    /// Networks that count as inside the cluster for default policies.
    POLICY_CLUSTER_NETWORKS = "POLICY_CLUSTER_NETWORKS";
    /// Policy until, and unless, the policy service says otherwise.
    INBOUND_DEFAULT_POLICY = "INBOUND_DEFAULT_POLICY";
    /// Address of the identity service, `host:port`.
    IDENTITY_SVC_ADDR = "IDENTITY_SVC_ADDR";
    /// Identity that the identity service must prove.
    IDENTITY_SVC_NAME = "IDENTITY_SVC_NAME";
    /// Directory for identity state; Heddle's proxy keeps its key in memory and writes nothing there.
    IDENTITY_DIR = "IDENTITY_DIR";
    /// Trust anchors, PEM.
    IDENTITY_TRUST_ANCHORS = "IDENTITY_TRUST_ANCHORS";
    /// File with the service-account token.
    IDENTITY_TOKEN_FILE = "IDENTITY_TOKEN_FILE";
    /// This proxy's own identity.
    IDENTITY_LOCAL_NAME = "IDENTITY_LOCAL_NAME";
    /// Outbound listener; see also [`OUTBOUND_LISTEN_ADDRS`].
    OUTBOUND_LISTEN_ADDR = "OUTBOUND_LISTEN_ADDR";
    /// Outbound listeners, comma-separated, at most two.
    OUTBOUND_LISTEN_ADDRS = "OUTBOUND_LISTEN_ADDRS";
    /// DNS suffixes of the services that peers may reach through this proxy.
    INBOUND_GATEWAY_SUFFIXES = "INBOUND_GATEWAY_SUFFIXES";
    /// Whether requests say themselves which service they are for.
    INGRESS_MODE = "INGRESS_MODE";
    /// Inbound listener.
    INBOUND_LISTEN_ADDR = "INBOUND_LISTEN_ADDR";
    /// Control (tap) listener.
    CONTROL_LISTEN_ADDR = "CONTROL_LISTEN_ADDR";
    /// Admin listener.
    ADMIN_LISTEN_ADDR = "ADMIN_LISTEN_ADDR";
    /// The pod's own addresses.
    INBOUND_IPS = "INBOUND_IPS";
    /// Ports the pod's containers declare; policies for them are fetched at start.
    INBOUND_PORTS = "INBOUND_PORTS";
    /// Inbound ports whose bytes are not looked into.
    INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION = "INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION";
    /// How long to wait for a client's first bytes, outbound.
    OUTBOUND_DETECT_TIMEOUT = "OUTBOUND_DETECT_TIMEOUT";
    /// How long to wait for a client's first bytes, inbound.
    INBOUND_DETECT_TIMEOUT = "INBOUND_DETECT_TIMEOUT";
    /// How long a connection to a peer may take.
    OUTBOUND_CONNECT_TIMEOUT = "OUTBOUND_CONNECT_TIMEOUT";
    /// How long a connection to the local application may take.
    INBOUND_CONNECT_TIMEOUT = "INBOUND_CONNECT_TIMEOUT";
    /// How long an unused outbound discovery stays cached.
    OUTBOUND_DISCOVERY_IDLE_TIMEOUT = "OUTBOUND_DISCOVERY_IDLE_TIMEOUT";
    /// How long an unused inbound discovery stays cached.
    INBOUND_DISCOVERY_IDLE_TIMEOUT = "INBOUND_DISCOVERY_IDLE_TIMEOUT";
    /// How long draining may take after SIGTERM.
    SHUTDOWN_GRACE_PERIOD = "SHUTDOWN_GRACE_PERIOD";
    /// Whether `POST /shutdown` works.
    SHUTDOWN_ENDPOINT_ENABLED = "SHUTDOWN_ENDPOINT_ENABLED";
    /// Log filter.
    LOG = "LOG";
    /// `plain` or `json`.
    LOG_FORMAT = "LOG_FORMAT";
    /// `apache` or `json`: one line per inbound request on stderr.
    ACCESS_LOG = "ACCESS_LOG";
    /// Number of worker threads.
    CORES = "CORES";
    /// At least this many worker threads.
    CORES_MIN = "CORES_MIN";
    /// At most this many worker threads.
    CORES_MAX = "CORES_MAX";
    /// At most this share of the machine's cores.
    CORES_MAX_RATIO = "CORES_MAX_RATIO";
    /// File with attributes of all spans, a line each: the pod's labels.
    TRACE_ATTRIBUTES_PATH = "TRACE_ATTRIBUTES_PATH";
    /// The name that spans are found by.
    TRACE_SERVICE_NAME = "TRACE_SERVICE_NAME";
    /// More attributes of all spans, a line each.
    TRACE_EXTRA_ATTRIBUTES = "TRACE_EXTRA_ATTRIBUTES";
    /// Address of the span collector, `host:port`.
    TRACE_COLLECTOR_SVC_ADDR = "TRACE_COLLECTOR_SVC_ADDR";
    /// Identity that the span collector must prove.
    TRACE_COLLECTOR_SVC_NAME = "TRACE_COLLECTOR_SVC_NAME";
    /// Identity of those who may tap; without it nobody may.
    TAP_SVC_NAME = "TAP_SVC_NAME";
    /// First message of a control stream must come within this time.
    CONTROL_STREAM_INITIAL_TIMEOUT = "CONTROL_STREAM_INITIAL_TIMEOUT";
    /// A control stream silent for this long is opened anew.
    CONTROL_STREAM_IDLE_TIMEOUT = "CONTROL_STREAM_IDLE_TIMEOUT";
    /// A control stream is opened anew after this long.
    CONTROL_STREAM_LIFETIME = "CONTROL_STREAM_LIFETIME";
}

/// OpenTelemetry's own name: attributes of all spans, `key=value,…`, values percent-encoded.
pub const OTEL_RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
