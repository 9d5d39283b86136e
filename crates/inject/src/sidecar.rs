//! The containers and volumes that make a pod meshed, as Kubernetes objects.
//!
//! A pure function of the settings, the pod's ports and the trust anchors. Names, ports, mounts and environment are
//! Linkerd's, so that its control plane, its tools and its own proxy find what they expect.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use heddle_mesh::port;
use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, ContainerPort, DownwardAPIVolumeFile, DownwardAPIVolumeSource,
        EmptyDirVolumeSource, ExecAction, HTTPGetAction, Lifecycle, LifecycleHandler, ObjectFieldSelector,
        Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecurityContext,
        ServiceAccountTokenProjection, SleepAction, Volume, VolumeMount, VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity as K8sQuantity, util::intstr::IntOrString},
};

use crate::{
    defaults::{DebugImage, Image, NetworkValidator, Resources},
    environment,
    ports::ContainerPorts,
    quantity::Quantity,
    settings::Settings,
};

pub(crate) const TOKEN_VOLUME: &str = "linkerd-identity-token";
pub(crate) const TOKEN_DIR: &str = "/var/run/secrets/tokens";
pub(crate) const TOKEN_FILE: &str = "linkerd-identity-token";
pub(crate) const END_ENTITY_VOLUME: &str = "linkerd-identity-end-entity";
pub(crate) const END_ENTITY_DIR: &str = "/var/run/linkerd/identity/end-entity";
pub(crate) const POD_INFO_VOLUME: &str = "linkerd-podinfo";
pub(crate) const POD_INFO_DIR: &str = "/var/run/linkerd/podinfo";
pub(crate) const POD_LABELS_FILE: &str = "labels";
/// Addresses that no pod has: connecting to them shows whether connections are redirected. Linkerd's.
const NOWHERE: &str = "1.1.1.1:20001";
const NOWHERE_IPV6: &str = "[fd00::1]:20001";
/// The user without rights.
const NOBODY: i64 = 65_534;
/// A token lives a day, as Linkerd's; the kubelet renews it at four fifths.
const TOKEN_SECONDS: i64 = 86_400;

/// What a pod is given, apart from what its own containers and the trust anchors decide.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Sidecar {
    /// The init container that comes before the proxy.
    pub(crate) first: Container,
    /// The proxy, to be completed by [`environment::complete`].
    pub(crate) proxy: Container,
    /// The container with tools, where it is asked for.
    pub(crate) debug: Option<Container>,
    pub(crate) volumes: Vec<Volume>,
}

impl Sidecar {
    pub(crate) fn of(settings: &Settings) -> Self {
        Self {
            first: first(settings),
            proxy: proxy(settings),
            debug: debug(settings),
            volumes: volumes(settings),
        }
    }

    /// Makes it the sidecar of a pod.
    pub(crate) fn complete(&mut self, settings: &Settings, ports: &ContainerPorts, trust_anchors_pem: &str) {
        let vars = self.proxy.env.as_mut().expect("a proxy has an environment");
        environment::complete(vars, settings, ports, trust_anchors_pem);
    }
}

/// The init container that comes before the proxy: it redirects the pod's traffic, or checks that a CNI plugin did.
fn first(settings: &Settings) -> Container {
    match &settings.validator {
        None => init(settings),
        Some(values) => validator(settings, values),
    }
}

/// Proves that connections to nowhere arrive at the proxy's outbound port.
fn validator(settings: &Settings, values: &NetworkValidator) -> Container {
    let (nowhere, any) = match settings.proxy.disable_ipv6 {
        true => (NOWHERE, IpAddr::from(Ipv4Addr::UNSPECIFIED)),
        false => (NOWHERE_IPV6, IpAddr::from(Ipv6Addr::UNSPECIFIED)),
    };
    let NetworkValidator {
        log_level,
        log_format,
        connect_addr,
        listen_addr,
        timeout,
    } = values;
    let connect = connect_addr.map_or_else(|| nowhere.to_owned(), |addr| addr.to_string());
    let listen = listen_addr.unwrap_or_else(|| (any, settings.proxy.ports.outbound).into());
    let args = [
        ("--log-format", log_format.to_string()),
        ("--log-level", log_level.clone()),
        ("--connect-addr", connect),
        ("--listen-addr", listen.to_string()),
        ("--timeout", timeout.to_string()),
    ];
    Container {
        name: port::NETWORK_VALIDATOR_CONTAINER.to_owned(),
        command: Some(vec!["/heddle-init".to_owned(), "validate".to_owned()]),
        args: Some(
            args.into_iter()
                .flat_map(|(flag, value)| [flag.to_owned(), value])
                .collect(),
        ),
        resources: resources(&settings.init.resources),
        security_context: Some(SecurityContext {
            run_as_group: Some(NOBODY),
            run_as_user: Some(NOBODY),
            ..unprivileged()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..container(&settings.init_image)
    }
}

/// The container with tools, where it is asked for. It has no probes: its image may be any.
fn debug(settings: &Settings) -> Option<Container> {
    let DebugImage {
        name,
        version,
        pull_policy,
    } = &settings.debug_image;
    let image = Image {
        name: name.clone(),
        version: version.clone(),
        pull_policy: pull_policy.unwrap_or(settings.proxy.image.pull_policy),
    };
    settings.debug.then(|| Container {
        name: port::DEBUG_CONTAINER.to_owned(),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..container(&image)
    })
}

/// The init container that redirects the pod's traffic.
fn init(settings: &Settings) -> Container {
    let ports = &settings.proxy.ports;
    let ranges = |set: &heddle_mesh::PortSet| set.to_string();
    let mut ignored_inbound = format!("{},{}", ports.control, ports.admin);
    if !settings.init.ignore_inbound_ports.0.is_empty() {
        ignored_inbound = format!(
            "{ignored_inbound},{}",
            ranges(&settings.init.ignore_inbound_ports.0)
        );
    }
    let mut args = vec![
        "--incoming-proxy-port".to_owned(),
        ports.inbound.to_string(),
        "--outgoing-proxy-port".to_owned(),
        ports.outbound.to_string(),
        "--proxy-uid".to_owned(),
        settings.proxy.uid.to_string(),
    ];
    if let Some(gid) = settings.proxy.gid {
        args.extend(["--proxy-gid".to_owned(), gid.to_string()]);
    }
    args.extend(["--inbound-ports-to-ignore".to_owned(), ignored_inbound]);
    if !settings.init.ignore_outbound_ports.0.is_empty() {
        args.extend([
            "--outbound-ports-to-ignore".to_owned(),
            ranges(&settings.init.ignore_outbound_ports.0),
        ]);
    }
    if !settings.init.skip_subnets.is_empty() {
        args.extend([
            "--subnets-to-ignore".to_owned(),
            settings.init.skip_subnets.join(","),
        ]);
    }
    args.push(format!("--ipv6={}", !settings.proxy.disable_ipv6));
    // The kernel's settings are read-only to containers without privileges.
    let privileged = settings.init.close_wait_timeout.is_some();
    if let Some(timeout) = settings.init.close_wait_timeout {
        args.extend([
            "--timeout-close-wait-secs".to_owned(),
            timeout.0.as_secs().to_string(),
        ]);
    }
    Container {
        name: port::INIT_CONTAINER.to_owned(),
        command: Some(vec!["/heddle-init".to_owned()]),
        args: Some(args),
        resources: resources(&settings.init.resources),
        security_context: Some(SecurityContext {
            // The API server refuses privileges that may not be used.
            allow_privilege_escalation: Some(privileged),
            capabilities: Some(Capabilities {
                add: Some(vec!["NET_ADMIN".to_owned(), "NET_RAW".to_owned()]),
                drop: Some(vec!["ALL".to_owned()]),
            }),
            privileged: Some(privileged),
            run_as_group: Some(0),
            run_as_non_root: Some(false),
            run_as_user: Some(0),
            ..unprivileged()
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        ..container(&settings.init_image)
    }
}

/// The proxy.
fn proxy(settings: &Settings) -> Container {
    let values = &settings.proxy;
    let named = |name: &str, number: u16| ContainerPort {
        container_port: number.into(),
        name: Some(name.to_owned()),
        protocol: Some("TCP".to_owned()),
        ..ContainerPort::default()
    };
    let native = values.native_sidecar;
    let gated = native && values.await_ready;
    let mut mounts = vec![
        mount(END_ENTITY_VOLUME, END_ENTITY_DIR),
        mount(TOKEN_VOLUME, TOKEN_DIR),
    ];
    if values.tracing.enabled {
        mounts.push(mount(POD_INFO_VOLUME, POD_INFO_DIR));
    }
    Container {
        name: port::PROXY_CONTAINER.to_owned(),
        env: Some(environment::of(settings)),
        lifecycle: if native { None } else { classic_lifecycle(settings) },
        liveness_probe: Some(Probe {
            initial_delay_seconds: Some(10),
            ..probe("/live", values.ports.admin)
        }),
        ports: Some(vec![
            named(port::PROXY_INBOUND_NAME, values.ports.inbound),
            named(port::PROXY_ADMIN_NAME, values.ports.admin),
        ]),
        // The startup probe has waited already where there is one.
        readiness_probe: Some(Probe {
            initial_delay_seconds: (!gated).then_some(2),
            ..probe("/ready", values.ports.admin)
        }),
        resources: resources(&values.resources),
        restart_policy: native.then(|| "Always".to_owned()),
        security_context: Some(SecurityContext {
            run_as_group: values.gid.map(i64::from),
            run_as_user: Some(values.uid.into()),
            ..unprivileged()
        }),
        // A native sidecar that must be ready first holds the pod's other containers back by its startup probe.
        startup_probe: gated.then(|| Probe {
            failure_threshold: Some(120),
            period_seconds: Some(1),
            ..probe("/ready", values.ports.admin)
        }),
        termination_message_policy: Some("FallbackToLogsOnError".to_owned()),
        volume_mounts: Some(mounts),
        ..container(&values.image)
    }
}

/// The volumes that the proxy mounts.
fn volumes(settings: &Settings) -> Vec<Volume> {
    let token = ServiceAccountTokenProjection {
        audience: Some(heddle_mesh::IDENTITY_TOKEN_AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: TOKEN_FILE.to_owned(),
    };
    let mut volumes = vec![
        Volume {
            name: END_ENTITY_VOLUME.to_owned(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: Some("Memory".to_owned()),
                size_limit: None,
            }),
            ..Volume::default()
        },
        // The pod's own token volume is of no use: its audience is the API server, and
        // automountServiceAccountToken: false may leave it out.
        Volume {
            name: TOKEN_VOLUME.to_owned(),
            projected: Some(ProjectedVolumeSource {
                sources: Some(vec![VolumeProjection {
                    service_account_token: Some(token),
                    ..VolumeProjection::default()
                }]),
                ..ProjectedVolumeSource::default()
            }),
            ..Volume::default()
        },
    ];
    if settings.proxy.tracing.enabled {
        let labels = DownwardAPIVolumeFile {
            field_ref: Some(ObjectFieldSelector {
                field_path: "metadata.labels".to_owned(),
                ..ObjectFieldSelector::default()
            }),
            path: POD_LABELS_FILE.to_owned(),
            ..DownwardAPIVolumeFile::default()
        };
        volumes.push(Volume {
            name: POD_INFO_VOLUME.to_owned(),
            downward_api: Some(DownwardAPIVolumeSource {
                items: Some(vec![labels]),
                ..DownwardAPIVolumeSource::default()
            }),
            ..Volume::default()
        });
    }
    volumes
}

/// A plain sidecar is the first container, and the kubelet starts the next one when its postStart hook returns: this
/// is how applications wait for the proxy. The image has no shell, so the hook runs a program of its own.
fn classic_lifecycle(settings: &Settings) -> Option<Lifecycle> {
    let values = &settings.proxy;
    let exec = |command: Vec<String>| LifecycleHandler {
        exec: Some(ExecAction {
            command: Some(command),
        }),
        ..LifecycleHandler::default()
    };
    let wait = values.await_ready.then(|| {
        let admin = values.ports.admin.to_string();
        exec(
            ["/heddle-init", "await", "--port", &admin, "--timeout", "2m"]
                .map(str::to_owned)
                .to_vec(),
        )
    });
    let seconds = values.wait_before_exit_seconds;
    let sleep = (seconds > 0).then(|| LifecycleHandler {
        sleep: Some(SleepAction {
            seconds: seconds.into(),
        }),
        ..LifecycleHandler::default()
    });
    (wait.is_some() || sleep.is_some()).then(|| Lifecycle {
        post_start: wait,
        pre_stop: sleep,
        ..Lifecycle::default()
    })
}

fn container(image: &Image) -> Container {
    Container {
        image: Some(image.reference()),
        image_pull_policy: Some(image.pull_policy.to_string()),
        ..Container::default()
    }
}

fn probe(path: &str, admin: u16) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.to_owned()),
            port: IntOrString::Int(admin.into()),
            ..HTTPGetAction::default()
        }),
        timeout_seconds: Some(1),
        ..Probe::default()
    }
}

fn mount(name: &str, path: &str) -> VolumeMount {
    VolumeMount {
        mount_path: path.to_owned(),
        name: name.to_owned(),
        ..VolumeMount::default()
    }
}

/// What Kubernetes' restricted profile for pods asks of a container, except for a user.
fn unprivileged() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities {
            drop: Some(vec!["ALL".to_owned()]),
            ..Capabilities::default()
        }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        seccomp_profile: Some(SeccompProfile {
            type_: "RuntimeDefault".to_owned(),
            ..SeccompProfile::default()
        }),
        ..SecurityContext::default()
    }
}

fn resources(resources: &Resources) -> Option<ResourceRequirements> {
    let Resources {
        cpu,
        memory,
        ephemeral_storage,
    } = resources;
    let map = |pairs: [(&str, &Option<Quantity>); 3]| {
        let given = pairs.into_iter().filter_map(|(name, quantity)| {
            Some((name.to_owned(), K8sQuantity(quantity.as_ref()?.to_string())))
        });
        Some(given.collect::<BTreeMap<_, _>>()).filter(|map| !map.is_empty())
    };
    let limits = map([
        ("cpu", &cpu.limit),
        ("memory", &memory.limit),
        ("ephemeral-storage", &ephemeral_storage.limit),
    ]);
    let requests = map([
        ("cpu", &cpu.request),
        ("memory", &memory.request),
        ("ephemeral-storage", &ephemeral_storage.request),
    ]);
    (limits.is_some() || requests.is_some()).then(|| ResourceRequirements {
        limits,
        requests,
        ..ResourceRequirements::default()
    })
}
