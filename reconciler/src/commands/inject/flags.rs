//! The flags that become annotations: Linkerd's names.

use heddle_mesh::annotation;

use crate::cli::Failure;

/// What the proxies of the manifests shall be like; what is not given is the mesh's default.
#[derive(Debug, Default, clap::Args)]
pub(super) struct ProxyFlags {
    /// Inject as an ingress.
    #[arg(long)]
    ingress: bool,
    /// Add a container with tools to look at the pod's traffic.
    #[arg(long)]
    enable_debug_sidecar: bool,
    /// How long the kernel remembers half-closed connections; makes the init container privileged.
    #[arg(long, value_name = "DURATION")]
    close_wait_timeout: Option<String>,
    /// Run the proxy as a native sidecar, or as a plain container.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    native_sidecar: Option<bool>,
    /// How long a plain sidecar keeps serving after the pod was told to end.
    #[arg(long, value_name = "SECONDS")]
    wait_before_exit_seconds: Option<u32>,
    /// Inbound ports on which only meshed clients are served.
    #[arg(long, value_name = "PORTS")]
    require_identity_on_inbound_ports: Option<String>,
    /// Ports whose bytes are not looked into; on Services and Namespaces, too.
    #[arg(long, value_name = "PORTS")]
    pub(super) opaque_ports: Option<String>,
    /// Ports that bypass the proxy, inbound.
    #[arg(long, value_name = "PORTS")]
    skip_inbound_ports: Option<String>,
    /// Ports that bypass the proxy, outbound.
    #[arg(long, value_name = "PORTS")]
    skip_outbound_ports: Option<String>,
    /// Networks whose traffic to the pod bypasses the proxy.
    #[arg(long, value_name = "NETWORKS")]
    skip_subnets: Option<String>,
    /// The proxy's image, without a tag.
    #[arg(long, value_name = "IMAGE", conflicts_with = "registry")]
    proxy_image: Option<String>,
    /// The tag of the proxy's image.
    #[arg(long, value_name = "TAG")]
    proxy_version: Option<String>,
    /// The registry of the proxy's image.
    #[arg(long, value_name = "REGISTRY", env = "LINKERD_DOCKER_REGISTRY")]
    registry: Option<String>,
    /// When nodes pull the image: Always, IfNotPresent or Never.
    #[arg(long, value_name = "POLICY")]
    image_pull_policy: Option<String>,
    /// The proxy's port for inbound connections.
    #[arg(long, value_name = "PORT")]
    inbound_port: Option<u16>,
    /// The proxy's port for outbound connections.
    #[arg(long, value_name = "PORT")]
    outbound_port: Option<u16>,
    /// The proxy's port for tap.
    #[arg(long, value_name = "PORT")]
    control_port: Option<u16>,
    /// The proxy's port for probes and metrics.
    #[arg(long, value_name = "PORT")]
    admin_port: Option<u16>,
    /// The user that the proxy runs as.
    #[arg(long, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// The group that the proxy runs as.
    #[arg(long, value_name = "GID")]
    proxy_gid: Option<u32>,
    /// The proxy's log level.
    #[arg(long, value_name = "LEVEL")]
    proxy_log_level: Option<String>,
    /// A line per request: apache or json.
    #[arg(long, value_name = "FORMAT")]
    access_log: Option<String>,
    /// The proxy's CPU request.
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu_request: Option<String>,
    /// The proxy's CPU limit.
    #[arg(long, value_name = "QUANTITY")]
    proxy_cpu_limit: Option<String>,
    /// The proxy's memory request.
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory_request: Option<String>,
    /// The proxy's memory limit.
    #[arg(long, value_name = "QUANTITY")]
    proxy_memory_limit: Option<String>,
    /// Look names outside the cluster up in the destination service, too.
    #[arg(long)]
    enable_external_profiles: bool,
    /// Who may connect to ports that no Server selects.
    #[arg(long, value_name = "POLICY")]
    default_inbound_policy: Option<String>,
    /// How long the proxy may drain.
    #[arg(long, value_name = "DURATION")]
    shutdown_grace_period: Option<String>,
    /// Further annotations, such as config.linkerd.io/proxy-log-format=json; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
}

impl ProxyFlags {
    /// The annotations that ask for what the flags say.
    pub(super) fn annotations(&self) -> Result<Vec<(String, String)>, Failure> {
        let Self {
            ingress,
            enable_debug_sidecar,
            close_wait_timeout,
            native_sidecar,
            wait_before_exit_seconds,
            require_identity_on_inbound_ports,
            opaque_ports,
            skip_inbound_ports,
            skip_outbound_ports,
            skip_subnets,
            proxy_image,
            proxy_version,
            registry,
            image_pull_policy,
            inbound_port,
            outbound_port,
            control_port,
            admin_port,
            proxy_uid,
            proxy_gid,
            proxy_log_level,
            access_log,
            proxy_cpu_request,
            proxy_cpu_limit,
            proxy_memory_request,
            proxy_memory_limit,
            enable_external_profiles,
            default_inbound_policy,
            shutdown_grace_period,
            annotation: further,
        } = self;
        fn text(value: &Option<impl ToString>) -> Option<String> {
            value.as_ref().map(ToString::to_string)
        }
        let set = |flag: &bool| flag.then(|| "true".to_owned());
        let of_registry = registry
            .as_ref()
            .map(|registry| format!("{}/proxy", registry.trim_end_matches('/')));
        let named = [
            ("enable-debug-sidecar", set(enable_debug_sidecar)),
            ("close-wait-timeout", text(close_wait_timeout)),
            ("proxy-enable-native-sidecar", text(native_sidecar)),
            (
                "proxy-require-identity-inbound-ports",
                text(require_identity_on_inbound_ports),
            ),
            ("opaque-ports", text(opaque_ports)),
            ("skip-inbound-ports", text(skip_inbound_ports)),
            ("skip-outbound-ports", text(skip_outbound_ports)),
            ("skip-subnets", text(skip_subnets)),
            ("proxy-image", text(proxy_image).or(of_registry)),
            ("proxy-version", text(proxy_version)),
            ("image-pull-policy", text(image_pull_policy)),
            ("inbound-port", text(inbound_port)),
            ("outbound-port", text(outbound_port)),
            ("control-port", text(control_port)),
            ("admin-port", text(admin_port)),
            ("proxy-uid", text(proxy_uid)),
            ("proxy-gid", text(proxy_gid)),
            ("proxy-log-level", text(proxy_log_level)),
            ("access-log", text(access_log)),
            ("proxy-cpu-request", text(proxy_cpu_request)),
            ("proxy-cpu-limit", text(proxy_cpu_limit)),
            ("proxy-memory-request", text(proxy_memory_request)),
            ("proxy-memory-limit", text(proxy_memory_limit)),
            ("enable-external-profiles", set(enable_external_profiles)),
            ("default-inbound-policy", text(default_inbound_policy)),
            ("shutdown-grace-period", text(shutdown_grace_period)),
        ];
        let mode = if *ingress { "ingress" } else { "enabled" };
        let mut annotations = vec![(annotation::INJECT.to_owned(), mode.to_owned())];
        annotations.extend(
            named
                .into_iter()
                .filter_map(|(name, value)| Some((format!("{}{name}", annotation::CONFIG_PREFIX), value?))),
        );
        if let Some(seconds) = wait_before_exit_seconds {
            let name = format!(
                "{}proxy-wait-before-exit-seconds",
                annotation::CONFIG_ALPHA_PREFIX
            );
            annotations.push((name, seconds.to_string()));
        }
        for text in further {
            let (key, value) = text
                .split_once('=')
                .ok_or_else(|| Failure::message(format!("--annotation {text}: expected key=value")))?;
            annotations.push((key.to_owned(), value.to_owned()));
        }
        Ok(annotations)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use heddle_inject::{Decision, Namespace, ProxyDefaults};
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        flags: ProxyFlags,
    }

    /// Every flag is an annotation that the injector knows: none is left without effect or found invalid.
    #[test]
    fn every_flag_is_understood_by_the_injector() {
        let cli = Cli::parse_from([
            "inject",
            "--enable-debug-sidecar",
            "--close-wait-timeout=30s",
            "--native-sidecar=false",
            "--wait-before-exit-seconds=5",
            "--require-identity-on-inbound-ports=8080",
            "--opaque-ports=3306",
            "--skip-inbound-ports=22",
            "--skip-outbound-ports=25",
            "--skip-subnets=10.0.0.0/8",
            "--registry=example.com/mesh/",
            "--proxy-version=1",
            "--image-pull-policy=Always",
            "--inbound-port=1143",
            "--outbound-port=1140",
            "--control-port=1190",
            "--admin-port=1191",
            "--proxy-uid=1000",
            "--proxy-gid=1000",
            "--proxy-log-level=debug",
            "--access-log=json",
            "--proxy-cpu-request=1",
            "--proxy-cpu-limit=2",
            "--proxy-memory-request=10Mi",
            "--proxy-memory-limit=20Mi",
            "--enable-external-profiles",
            "--default-inbound-policy=deny",
            "--shutdown-grace-period=1m",
            "--annotation=config.linkerd.io/proxy-log-format=json",
        ]);
        let annotations = cli.flags.annotations().expect("annotations");
        assert_eq!(annotations.len(), 29);
        let annotations: std::collections::BTreeMap<_, _> = annotations.into_iter().collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"annotations": annotations}, "spec": {"containers": [{"name": "app"}]},
        }))
        .expect("a pod");
        let none = Default::default();
        let namespace = Namespace {
            name: "payments",
            annotations: &none,
            labels: &none,
        };
        match heddle_inject::decide(&ProxyDefaults::default(), &namespace, &pod, None) {
            Decision::Inject(injection) => {
                assert_eq!(injection.warnings(), [] as [String; 0]);
                let (_, proxy) = injection.containers("");
                assert_eq!(proxy.image.as_deref(), Some("example.com/mesh/proxy:1"));
            }
            Decision::Skip(reason) => panic!("{reason}"),
        }
    }
}
