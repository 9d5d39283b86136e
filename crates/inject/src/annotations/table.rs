//! The table itself: a line per annotation.

use heddle_mesh::annotation;

use super::{Known, Reach, read};
use crate::{
    defaults::parse_networks,
    ports::ContainerPorts,
    setting::{AccessLog, InboundPolicy, LogFormat, LogHttpHeaders, PullPolicy},
    settings::Settings,
};

/// Every annotation that Heddle acts on. Those that Heddle only keeps for others (`proxy-require-identity-…` is
/// enforced by the policy service, which reads it from the pod) are checked here, too.
pub(super) static TABLE: &[Known] = {
    use Reach::{Both, Pod, PodOrNamespace};
    const fn known(
        name: &'static str,
        reach: Reach,
        apply: fn(&mut Settings, &str, &ContainerPorts) -> Result<(), String>,
    ) -> Known {
        Known { name, reach, apply }
    }
    macro_rules! set {
        ($($field:tt).+, $parse:expr) => {
            |settings, value, _| {
                settings.$($field).+ = $parse(value)?;
                Ok(())
            }
        };
    }
    &[
        // Images.
        known(
            "config.linkerd.io/proxy-image",
            PodOrNamespace,
            set!(proxy.image.name, |v| read::text(
                v,
                "an image's name without a tag"
            )),
        ),
        known(
            "config.linkerd.io/proxy-version",
            PodOrNamespace,
            set!(proxy.image.version, |v| read::text(v, "an image's tag")),
        ),
        known(
            "config.linkerd.io/image-pull-policy",
            PodOrNamespace,
            |settings, value, _| {
                let policy: PullPolicy = read::choice(value)?;
                settings.proxy.image.pull_policy = policy;
                settings.init_image.pull_policy = policy;
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/enable-debug-sidecar",
            PodOrNamespace,
            set!(debug, read::flag),
        ),
        known(
            "config.linkerd.io/debug-image",
            PodOrNamespace,
            set!(debug_image.name, |v| read::text(
                v,
                "an image's name without a tag"
            )),
        ),
        known(
            "config.linkerd.io/debug-image-version",
            PodOrNamespace,
            set!(debug_image.version, |v| read::text(v, "an image's tag")),
        ),
        known(
            "config.linkerd.io/debug-image-pull-policy",
            PodOrNamespace,
            |settings, value, _| {
                settings.debug_image.pull_policy = Some(read::choice::<PullPolicy>(value)?);
                Ok(())
            },
        ),
        // Ports.
        known(
            "config.linkerd.io/inbound-port",
            PodOrNamespace,
            set!(proxy.ports.inbound, read::port),
        ),
        known(
            "config.linkerd.io/outbound-port",
            PodOrNamespace,
            set!(proxy.ports.outbound, read::port),
        ),
        known(
            "config.linkerd.io/control-port",
            PodOrNamespace,
            set!(proxy.ports.control, read::port),
        ),
        known(
            "config.linkerd.io/admin-port",
            PodOrNamespace,
            set!(proxy.ports.admin, read::port),
        ),
        known(
            annotation::SKIP_INBOUND_PORTS,
            PodOrNamespace,
            set!(init.ignore_inbound_ports.0, read::ports),
        ),
        known(
            annotation::SKIP_OUTBOUND_PORTS,
            PodOrNamespace,
            set!(init.ignore_outbound_ports.0, read::ports),
        ),
        known(
            "config.linkerd.io/skip-subnets",
            PodOrNamespace,
            set!(init.skip_subnets, parse_networks),
        ),
        known(
            annotation::OPAQUE_PORTS,
            PodOrNamespace,
            |settings, value, ports| {
                let (opaque, unknown) = ports.resolve(value)?;
                settings.proxy.opaque_ports = opaque;
                settings.unknown_port_names = unknown;
                Ok(())
            },
        ),
        known(
            POD_INBOUND_PORTS,
            PodOrNamespace,
            set!(pod_inbound_ports, read::few_ports),
        ),
        known(
            "config.linkerd.io/proxy-require-identity-inbound-ports",
            PodOrNamespace,
            set!(proxy.require_identity_on_inbound_ports, read::ports),
        ),
        // Resources.
        known(
            "config.linkerd.io/proxy-cpu-request",
            PodOrNamespace,
            set!(proxy.resources.cpu.request, read::quantity),
        ),
        known(
            "config.linkerd.io/proxy-cpu-limit",
            PodOrNamespace,
            set!(proxy.resources.cpu.limit, read::quantity),
        ),
        known(
            "config.linkerd.io/proxy-cpu-ratio-limit",
            PodOrNamespace,
            |settings, value, _| {
                let ratio: Option<f64> = value.parse().ok().filter(|ratio| *ratio > 0.0 && *ratio <= 1.0);
                settings.proxy.resources.cpu.ratio_limit =
                    Some(ratio.ok_or("a number above 0 and at most 1")?);
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-memory-request",
            PodOrNamespace,
            set!(proxy.resources.memory.request, read::quantity),
        ),
        known(
            "config.linkerd.io/proxy-memory-limit",
            PodOrNamespace,
            set!(proxy.resources.memory.limit, read::quantity),
        ),
        known(
            "config.linkerd.io/proxy-ephemeral-storage-request",
            PodOrNamespace,
            set!(proxy.resources.ephemeral_storage.request, read::quantity),
        ),
        known(
            "config.linkerd.io/proxy-ephemeral-storage-limit",
            PodOrNamespace,
            set!(proxy.resources.ephemeral_storage.limit, read::quantity),
        ),
        // User.
        known(
            "config.linkerd.io/proxy-uid",
            PodOrNamespace,
            |settings, value, _| {
                let uid: Option<u32> = value.parse().ok().filter(|uid| (1..=MAX_ID).contains(uid));
                settings.proxy.uid =
                    uid.ok_or("a user id from 1 to 2147483647: the proxy's own, which is not redirected")?;
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-gid",
            PodOrNamespace,
            |settings, value, _| {
                let gid: Option<u32> = value.parse().ok().filter(|gid| *gid <= MAX_ID);
                settings.proxy.gid = Some(gid.ok_or("a group id from 0 to 2147483647")?);
                Ok(())
            },
        ),
        // Logs and metrics.
        known(
            "config.linkerd.io/proxy-log-level",
            PodOrNamespace,
            set!(proxy.log_level, |v| read::text(
                v,
                "a log filter, such as warn,heddle=debug"
            )),
        ),
        known(
            "config.linkerd.io/proxy-log-format",
            PodOrNamespace,
            set!(proxy.log_format, read::choice::<LogFormat>),
        ),
        known(
            "config.linkerd.io/proxy-log-http-headers",
            PodOrNamespace,
            set!(proxy.log_http_headers, read::choice::<LogHttpHeaders>),
        ),
        known(
            "config.linkerd.io/access-log",
            PodOrNamespace,
            |settings, value, _| {
                settings.proxy.access_log = match value {
                    "" | "none" => None,
                    other => Some(read::choice::<AccessLog>(other)?),
                };
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/proxy-metrics-hostname-labels",
            PodOrNamespace,
            set!(proxy.metrics_hostname_labels, read::flag),
        ),
        // Timeouts.
        known(
            "config.linkerd.io/proxy-outbound-connect-timeout",
            PodOrNamespace,
            set!(proxy.outbound_connect_timeout, read::timeout),
        ),
        known(
            "config.linkerd.io/proxy-inbound-connect-timeout",
            PodOrNamespace,
            set!(proxy.inbound_connect_timeout, read::timeout),
        ),
        known(
            "config.linkerd.io/proxy-outbound-discovery-cache-unused-timeout",
            PodOrNamespace,
            set!(proxy.outbound_discovery_cache_unused_timeout, read::timeout),
        ),
        known(
            "config.linkerd.io/proxy-inbound-discovery-cache-unused-timeout",
            PodOrNamespace,
            set!(proxy.inbound_discovery_cache_unused_timeout, read::timeout),
        ),
        known(
            "config.linkerd.io/proxy-disable-outbound-protocol-detect-timeout",
            PodOrNamespace,
            set!(proxy.disable_outbound_protocol_detect_timeout, read::flag),
        ),
        known(
            "config.linkerd.io/proxy-disable-inbound-protocol-detect-timeout",
            PodOrNamespace,
            set!(proxy.disable_inbound_protocol_detect_timeout, read::flag),
        ),
        known(
            "config.linkerd.io/shutdown-grace-period",
            PodOrNamespace,
            |settings, value, _| {
                settings.proxy.shutdown_grace_period = Some(read::timeout(value)?);
                Ok(())
            },
        ),
        known(
            "config.linkerd.io/close-wait-timeout",
            PodOrNamespace,
            |settings, value, _| {
                settings.init.close_wait_timeout = Some(read::go_duration(value)?);
                Ok(())
            },
        ),
        // Lifecycle. Linkerd's older names of the native-sidecar switch come first, so that its newer ones win.
        known(
            "config.alpha.linkerd.io/proxy-enable-native-sidecar",
            PodOrNamespace,
            set!(proxy.native_sidecar, read::flag),
        ),
        known(
            "config.beta.linkerd.io/proxy-enable-native-sidecar",
            PodOrNamespace,
            set!(proxy.native_sidecar, read::flag),
        ),
        known(
            "config.linkerd.io/proxy-enable-native-sidecar",
            PodOrNamespace,
            set!(proxy.native_sidecar, read::flag),
        ),
        known(
            "config.linkerd.io/proxy-await",
            PodOrNamespace,
            set!(proxy.await_ready, read::flag),
        ),
        known(
            "config.linkerd.io/proxy-admin-shutdown",
            PodOrNamespace,
            set!(proxy.enable_shutdown_endpoint, read::flag),
        ),
        known(
            "config.alpha.linkerd.io/proxy-wait-before-exit-seconds",
            PodOrNamespace,
            |settings, value, _| {
                let seconds: Option<u32> = value
                    .parse()
                    .ok()
                    .filter(|seconds| *seconds <= WAIT_BEFORE_EXIT_SECONDS_MAX);
                settings.proxy.wait_before_exit_seconds =
                    seconds.ok_or("a number of seconds from 0 to 3600")?;
                Ok(())
            },
        ),
        // Policy and the rest.
        known(
            annotation::DEFAULT_INBOUND_POLICY,
            PodOrNamespace,
            set!(proxy.default_inbound_policy, read::choice::<InboundPolicy>),
        ),
        known(
            "config.linkerd.io/enable-external-profiles",
            PodOrNamespace,
            set!(proxy.enable_external_profiles, read::flag),
        ),
        known("config.linkerd.io/enable-gateway", Pod, set!(gateway, read::flag)),
        known(
            "config.linkerd.io/proxy-additional-env",
            Both,
            |settings, value, _| {
                settings.proxy.additional_env.extend(read::additional_env(value)?);
                Ok(())
            },
        ),
    ]
};

/// Ports that containers listen on without declaring them. Linkerd overwrites what a user gives; here it is added to
/// what the pod declares.
const POD_INBOUND_PORTS: &str = "config.linkerd.io/pod-inbound-ports";

/// Kubernetes' own bound for user and group ids.
const MAX_ID: u32 = i32::MAX as u32;
/// A pod that waits longer than an hour to end is a mistake.
const WAIT_BEFORE_EXIT_SECONDS_MAX: u32 = 3_600;
