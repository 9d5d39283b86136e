//! The proxy's environment.

use heddle_mesh::env;
use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector};

use crate::{
    defaults::MeshIdentity,
    ports::ContainerPorts,
    setting::LogHttpHeaders,
    settings::Settings,
    sidecar::{END_ENTITY_DIR, POD_INFO_DIR, POD_LABELS_FILE, TOKEN_DIR, TOKEN_FILE},
};

/// Linkerd's names that crates/mesh does not list, because Heddle's own proxy has its own defaults for them.
mod linkerd {
    pub(super) const INBOUND_ACCEPT_KEEPALIVE: &str = "LINKERD2_PROXY_INBOUND_ACCEPT_KEEPALIVE";
    pub(super) const OUTBOUND_ACCEPT_KEEPALIVE: &str = "LINKERD2_PROXY_OUTBOUND_ACCEPT_KEEPALIVE";
    pub(super) const OUTBOUND_METRICS_HOSTNAME_LABELS: &str =
        "LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS";
}

/// Long enough to be never: what Linkerd writes when protocol detection shall wait.
const NO_DETECT_TIMEOUT: &str = "365d";
const DETECT_TIMEOUT: &str = "10s";
const KEEPALIVE: &str = "10000ms";

/// The proxy's environment, with what [`of_pod`] says still open; names that refer to others come after them.
pub(crate) fn of(settings: &Settings) -> Vec<EnvVar> {
    let Settings {
        control_namespace,
        cluster_domain,
        trust_domain,
        proxy: values,
        ..
    } = settings;
    let mut vars = Env(Vec::with_capacity(VARIABLES_EXPECTED));

    vars.field("_pod_name", "metadata.name");
    vars.field("_pod_ns", "metadata.namespace");
    vars.field("_pod_sa", "spec.serviceAccountName");
    vars.field("_pod_nodeName", "spec.nodeName");
    vars.field("_pod_uid", "metadata.uid");

    // Workers: a CPU request or limit says how many cores there are to use.
    let cpu = &values.resources.cpu;
    let cores = |quantity: &crate::Quantity| quantity.whole().max(1).to_string();
    vars.set(
        env::CORES_MIN,
        cpu.request.as_ref().map_or_else(|| "1".to_owned(), cores),
    );
    if let Some(limit) = &cpu.limit {
        vars.set(env::CORES_MAX, cores(limit));
    }
    if let Some(ratio) = cpu.ratio_limit {
        vars.set(env::CORES_MAX_RATIO, ratio.to_string());
    }

    // Logs. A level that would print requests comes with a directive that leaves their headers out, so that secrets
    // do not get into logs by accident; without need it would only cost time on every span.
    let verbose = ["debug", "trace"]
        .iter()
        .any(|level| values.log_level.to_ascii_lowercase().contains(level));
    let log = match values.log_http_headers {
        LogHttpHeaders::Off if verbose => format!("{},[{{headers}}]=off,[{{request}}]=off", values.log_level),
        LogHttpHeaders::Off | LogHttpHeaders::Insecure => values.log_level.clone(),
    };
    vars.set(env::LOG, log);
    vars.set(env::LOG_FORMAT, values.log_format.to_string());
    if let Some(format) = values.access_log {
        vars.set(env::ACCESS_LOG, format.to_string());
    }

    // The control plane.
    let address =
        |service: &str, port: u16| format!("{service}.{control_namespace}.svc.{cluster_domain}.:{port}");
    let identity = |account: &str| {
        format!("{account}.{control_namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}")
    };
    vars.set(
        env::DESTINATION_SVC_ADDR,
        address("linkerd-dst-headless", heddle_mesh::port::DESTINATION),
    );
    vars.set(env::DESTINATION_SVC_NAME, identity("linkerd-destination"));
    vars.set(
        env::DESTINATION_CONTEXT,
        r#"{"ns":"$(_pod_ns)","nodeName":"$(_pod_nodeName)","pod":"$(_pod_name)"}"#.to_owned(),
    );
    vars.set(
        env::DESTINATION_PROFILE_NETWORKS,
        settings.cluster_networks.join(","),
    );
    let suffixes = match values.enable_external_profiles {
        true => ".".to_owned(),
        false => format!("svc.{cluster_domain}."),
    };
    vars.set(env::DESTINATION_PROFILE_SUFFIXES, suffixes);
    vars.set(
        env::POLICY_SVC_ADDR,
        address("linkerd-policy", heddle_mesh::port::POLICY),
    );
    vars.set(env::POLICY_SVC_NAME, identity("linkerd-destination"));
    vars.set(
        env::POLICY_WORKLOAD,
        r#"{"ns":"$(_pod_ns)","pod":"$(_pod_name)"}"#.to_owned(),
    );
    vars.set(env::POLICY_CLUSTER_NETWORKS, settings.cluster_networks.join(","));
    vars.set(
        env::INBOUND_DEFAULT_POLICY,
        values.default_inbound_policy.to_string(),
    );
    let streams = &values.control_streams;
    vars.set(
        env::CONTROL_STREAM_INITIAL_TIMEOUT,
        streams.initial_timeout.to_string(),
    );
    vars.set(env::CONTROL_STREAM_IDLE_TIMEOUT, streams.idle_timeout.to_string());
    vars.set(env::CONTROL_STREAM_LIFETIME, streams.lifetime.to_string());

    // This proxy's identity.
    vars.set(
        env::IDENTITY_SVC_ADDR,
        address("linkerd-identity-headless", heddle_mesh::port::IDENTITY),
    );
    vars.set(env::IDENTITY_SVC_NAME, identity("linkerd-identity"));
    vars.set(
        env::IDENTITY_LOCAL_NAME,
        format!("$(_pod_sa).$(_pod_ns).serviceaccount.identity.{control_namespace}.{trust_domain}"),
    );
    vars.set(env::IDENTITY_DIR, END_ENTITY_DIR.to_owned());
    vars.set(env::IDENTITY_TOKEN_FILE, format!("{TOKEN_DIR}/{TOKEN_FILE}"));
    vars.set(env::IDENTITY_TRUST_ANCHORS, String::new());

    // Listeners.
    let p = &values.ports;
    let (any, loopback) = match values.disable_ipv6 {
        true => ("0.0.0.0", format!("127.0.0.1:{}", p.outbound)),
        false => ("[::]", format!("127.0.0.1:{0},[::1]:{0}", p.outbound)),
    };
    vars.set(env::OUTBOUND_LISTEN_ADDR, format!("127.0.0.1:{}", p.outbound));
    vars.set(env::OUTBOUND_LISTEN_ADDRS, loopback);
    vars.set(env::INBOUND_LISTEN_ADDR, format!("{any}:{}", p.inbound));
    vars.set(env::CONTROL_LISTEN_ADDR, format!("{any}:{}", p.control));
    vars.set(env::ADMIN_LISTEN_ADDR, format!("{any}:{}", p.admin));

    // The application's ports.
    vars.field(env::INBOUND_IPS, "status.podIPs");
    for (name, value) in of_ports(settings, &ContainerPorts::default()) {
        vars.set(name, value);
    }

    // Times.
    let detect = |off: bool| if off { NO_DETECT_TIMEOUT } else { DETECT_TIMEOUT }.to_owned();
    vars.set(
        env::OUTBOUND_DETECT_TIMEOUT,
        detect(values.disable_outbound_protocol_detect_timeout),
    );
    vars.set(
        env::INBOUND_DETECT_TIMEOUT,
        detect(values.disable_inbound_protocol_detect_timeout),
    );
    vars.set(
        env::OUTBOUND_CONNECT_TIMEOUT,
        values.outbound_connect_timeout.to_string(),
    );
    vars.set(
        env::INBOUND_CONNECT_TIMEOUT,
        values.inbound_connect_timeout.to_string(),
    );
    vars.set(
        env::OUTBOUND_DISCOVERY_IDLE_TIMEOUT,
        values.outbound_discovery_cache_unused_timeout.to_string(),
    );
    vars.set(
        env::INBOUND_DISCOVERY_IDLE_TIMEOUT,
        values.inbound_discovery_cache_unused_timeout.to_string(),
    );
    vars.set(linkerd::INBOUND_ACCEPT_KEEPALIVE, KEEPALIVE.to_owned());
    vars.set(linkerd::OUTBOUND_ACCEPT_KEEPALIVE, KEEPALIVE.to_owned());
    if let Some(grace) = values.shutdown_grace_period {
        vars.set(env::SHUTDOWN_GRACE_PERIOD, grace.to_string());
    }
    if values.enable_shutdown_endpoint {
        vars.set(env::SHUTDOWN_ENDPOINT_ENABLED, "true".to_owned());
    }

    // Modes.
    if values.metrics_hostname_labels {
        vars.set(linkerd::OUTBOUND_METRICS_HOSTNAME_LABELS, "true".to_owned());
    }
    if settings.ingress {
        vars.set(env::INGRESS_MODE, "true".to_owned());
    }
    if settings.gateway {
        vars.set(env::INBOUND_GATEWAY_SUFFIXES, format!("svc.{cluster_domain}."));
    }

    if values.tracing.enabled {
        tracing(&mut vars, settings);
    }

    values
        .additional_env
        .iter()
        .cloned()
        .for_each(|var| vars.put(var));
    vars.0
}

/// Sets what a pod's own containers and the trust anchors decide; what the mesh adds or sets by name stays as it is.
pub(crate) fn complete(
    vars: &mut [EnvVar],
    settings: &Settings,
    ports: &ContainerPorts,
    trust_anchors_pem: &str,
) {
    let [inbound, opaque] = of_ports(settings, ports);
    let anchors = (env::IDENTITY_TRUST_ANCHORS, trust_anchors_pem.to_owned());
    for (name, value) in [inbound, opaque, anchors] {
        let additional = &settings.proxy.additional_env;
        let open = vars.iter_mut().find(|var| var.name == name);
        if let Some(var) = open.filter(|_| !additional.iter().any(|var| var.name == name)) {
            var.value = Some(value);
        }
    }
}

/// What the application's ports decide.
fn of_ports(settings: &Settings, ports: &ContainerPorts) -> [(&'static str, String); 2] {
    let inbound = ports.with(&settings.pod_inbound_ports);
    [
        (
            env::INBOUND_PORTS,
            inbound.iter().map(u16::to_string).collect::<Vec<_>>().join(","),
        ),
        (
            env::INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION,
            settings.proxy.opaque_ports.to_string(),
        ),
    ]
}

/// Where spans go and what they say about the pod. Values with `$(…)` are filled in by the kubelet.
fn tracing(vars: &mut Env, settings: &Settings) {
    let Settings {
        control_namespace,
        trust_domain,
        ..
    } = settings;
    let values = &settings.proxy.tracing;
    let MeshIdentity {
        service_account_name,
        namespace,
    } = &values.collector.mesh_identity;
    let attributes = [
        ("k8s.container.name", heddle_mesh::port::PROXY_CONTAINER),
        ("k8s.namespace.name", "$(_pod_ns)"),
        ("k8s.node.name", "$(_pod_nodeName)"),
        ("k8s.pod.name", "$(_pod_name)"),
        ("k8s.pod.uid", "$(_pod_uid)"),
    ];
    vars.set(env::TRACE_COLLECTOR_SVC_ADDR, values.collector.endpoint.clone());
    vars.set(
        env::TRACE_COLLECTOR_SVC_NAME,
        format!(
            "{service_account_name}.{namespace}.serviceaccount.identity.{control_namespace}.{trust_domain}"
        ),
    );
    vars.set(env::TRACE_SERVICE_NAME, values.trace_service_name.clone());
    vars.set(
        env::TRACE_ATTRIBUTES_PATH,
        format!("{POD_INFO_DIR}/{POD_LABELS_FILE}"),
    );
    // The mesh's own attributes come first, so that its settings may say otherwise.
    let labels = values.labels.iter().map(|(key, value)| (&key[..], &value[..]));
    let lines: Vec<String> = attributes
        .into_iter()
        .filter(|(key, _)| !values.labels.contains_key(*key))
        .chain(labels)
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    vars.set(env::TRACE_EXTRA_ATTRIBUTES, lines.join("\n"));
    let annotated = &settings.span_attributes;
    let known = attributes
        .into_iter()
        .filter(|(key, _)| !annotated.contains_key(*key))
        .map(|(key, value)| format!("{key}={value}"));
    let given = annotated
        .iter()
        .map(|(key, value)| format!("{key}={}", percent_encoded(value)));
    let pairs: Vec<String> = known.chain(given).collect();
    vars.set(env::OTEL_RESOURCE_ATTRIBUTES, pairs.join(","));
}

/// As the W3C's baggage wants values. A `$` is encoded, too, so that a pod's author cannot refer to variables here.
fn percent_encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len());
    for byte in value.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' | b':' => {
                text.push(char::from(byte));
            }
            _ => text.push_str(&format!("%{byte:02X}")),
        }
    }
    text
}

/// Most pods have a few less.
const VARIABLES_EXPECTED: usize = 64;

/// Variables in order.
struct Env(Vec<EnvVar>);

impl Env {
    /// A name that is there already takes the first one's place, so that references to it still resolve.
    fn put(&mut self, var: EnvVar) {
        match self.0.iter_mut().find(|known| known.name == var.name) {
            Some(known) => *known = var,
            None => self.0.push(var),
        }
    }

    fn set(&mut self, name: &str, value: String) {
        self.0.push(EnvVar {
            name: name.to_owned(),
            value: Some(value),
            value_from: None,
        });
    }

    fn field(&mut self, name: &str, path: &str) {
        let selector = ObjectFieldSelector {
            api_version: None,
            field_path: path.to_owned(),
        };
        let source = EnvVarSource {
            field_ref: Some(selector),
            ..EnvVarSource::default()
        };
        self.0.push(EnvVar {
            name: name.to_owned(),
            value: None,
            value_from: Some(source),
        });
    }
}
