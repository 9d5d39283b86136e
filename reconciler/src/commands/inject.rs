//! `heddle inject FILE`: asks for the proxy in manifests, as Linkerd's does. Without --manual only the annotation is
//! added, and the injector does the rest; with it the sidecar itself is written into the pod templates.

use std::{io::Read as _, path::PathBuf};

use heddle_inject::{Decision, Namespace, Owner, ProxyDefaults};
use heddle_mesh::annotation;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

use crate::{
    cli::{Failure, Global, Outcome, say},
    cluster::Cluster,
    commands::connect,
    fault::Fault,
    identity,
    object::{self, ObjectId},
    profile, render,
    source::memory::MemoryTree,
    yaml,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifests; - for stdin.
    file: String,
    /// Write the sidecar itself instead of asking the injector for it.
    #[arg(long)]
    manual: bool,
    /// With --manual: take the settings from the bundled profile, not from the cluster.
    #[arg(long, requires = "manual")]
    ignore_cluster: bool,
    /// With --ignore-cluster: PEM of the mesh's trust anchors.
    #[arg(long, value_name = "FILE")]
    identity_trust_anchors_file: Option<PathBuf>,
    /// Inject as an ingress.
    #[arg(long)]
    ingress: bool,
    /// Further annotations, such as config.linkerd.io/proxy-log-level=debug; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    annotation: Vec<String>,
    /// Ports that bypass the proxy, inbound.
    #[arg(long, value_name = "PORTS")]
    skip_inbound_ports: Option<String>,
    /// Ports that bypass the proxy, outbound.
    #[arg(long, value_name = "PORTS")]
    skip_outbound_ports: Option<String>,
    /// Ports whose bytes are not looked into.
    #[arg(long, value_name = "PORTS")]
    opaque_ports: Option<String>,
    /// The proxy's log level.
    #[arg(long, value_name = "LEVEL")]
    proxy_log_level: Option<String>,
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
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let text = read(&args.file)?;
    let annotations = annotations(&args)?;
    let manual = if args.manual {
        Some(settings(global, &args)?)
    } else {
        None
    };
    let documents = yaml::parse_documents(&text)
        .map_err(|error| Fault::new(&args.file, format!("invalid YAML: {}", error.message)).at(error.place))
        .map_err(crate::fault::Faults::from)?;
    let mut out = String::new();
    for document in documents {
        let mut value = document.value;
        inject(&mut value, &annotations, manual.as_ref());
        out.push_str("---\n");
        out.push_str(&yaml::print(&value));
    }
    crate::cli::print(&out)?;
    Ok(0)
}

fn read(file: &str) -> Result<String, Failure> {
    if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    std::fs::read_to_string(file).map_err(|error| Failure::message(format!("{file} cannot be read: {error}")))
}

fn annotations(args: &Args) -> Result<Vec<(String, String)>, Failure> {
    let mode = if args.ingress { "ingress" } else { "enabled" };
    let mut annotations = vec![(annotation::INJECT.to_owned(), mode.to_owned())];
    let named = [
        ("skip-inbound-ports", &args.skip_inbound_ports),
        ("skip-outbound-ports", &args.skip_outbound_ports),
        ("opaque-ports", &args.opaque_ports),
        ("proxy-log-level", &args.proxy_log_level),
        ("proxy-cpu-request", &args.proxy_cpu_request),
        ("proxy-cpu-limit", &args.proxy_cpu_limit),
        ("proxy-memory-request", &args.proxy_memory_request),
        ("proxy-memory-limit", &args.proxy_memory_limit),
    ];
    for (name, value) in named {
        if let Some(value) = value {
            annotations.push((format!("{}{name}", annotation::CONFIG_PREFIX), value.clone()));
        }
    }
    for text in &args.annotation {
        let (key, value) = text
            .split_once('=')
            .ok_or_else(|| Failure::message(format!("--annotation {text}: expected key=value")))?;
        annotations.push((key.to_owned(), value.to_owned()));
    }
    Ok(annotations)
}

/// What a manual injection needs.
struct Manual {
    defaults: ProxyDefaults,
    trust_anchors_pem: String,
}

fn settings(global: &Global, args: &Args) -> Result<Manual, Failure> {
    let failed = |error: heddle_inject::ConfigError| {
        Failure::message(format!(
            "linkerd-config is not understood: {}",
            crate::cli::chain(&error)
        ))
    };
    if !args.ignore_cluster {
        return super::block_on(async {
            let cluster = connect(global).await?;
            let config = config_map(&cluster, global, "linkerd-config", heddle_inject::CONFIG_KEY).await?;
            let roots =
                config_map(&cluster, global, identity::TRUST_ROOTS, identity::TRUST_ROOTS_KEY).await?;
            Ok(Manual {
                defaults: ProxyDefaults::from_yaml(&config).map_err(failed)?,
                trust_anchors_pem: roots,
            })
        });
    }
    let file = args.identity_trust_anchors_file.as_ref().ok_or_else(|| {
        Failure::message("--ignore-cluster needs --identity-trust-anchors-file")
            .hint("without trust anchors a proxy trusts nobody")
    })?;
    let trust_anchors_pem = std::fs::read_to_string(file)
        .map_err(|error| Failure::message(format!("{} cannot be read: {error}", file.display())))?;
    let tree = MemoryTree::new([(
        "mesh.yaml",
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshProfile\nmetadata: {name: default}\nspec: {extends: [core]}\n",
    )]);
    let rendered = render::render(&profile::load(&tree, "", &global.bundled()?, &[])?)?;
    let defaults = crate::plan::defaults(&rendered)
        .ok_or_else(|| Failure::message("the bundled profile has no injection settings"))?;
    Ok(Manual {
        defaults,
        trust_anchors_pem,
    })
}

async fn config_map(cluster: &Cluster, global: &Global, name: &str, key: &str) -> Result<String, Failure> {
    let id = ObjectId::new("", "ConfigMap", &global.linkerd_namespace, name);
    let live = match cluster.kind("v1", "ConfigMap").await {
        Some(kind) => cluster.get(&kind, &id).await?,
        None => None,
    };
    let text = live
        .as_ref()
        .and_then(|live| object::text_at(live, &["data", key]))
        .map(str::to_owned);
    text.ok_or_else(|| {
        Failure::message(format!("{id} has no `{key}`"))
            .hint("install the control plane first, or give --ignore-cluster")
    })
}

/// The pod template of a workload, by kind; `None` for what runs no pods.
fn template_path(kind: &str) -> Option<&'static [&'static str]> {
    match kind {
        "Pod" => Some(&[]),
        "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            Some(&["spec", "template"])
        }
        "CronJob" => Some(&["spec", "jobTemplate", "spec", "template"]),
        _ => None,
    }
}

fn inject(value: &mut Value, annotations: &[(String, String)], manual: Option<&Manual>) {
    let kind = object::text_at(value, &["kind"]).unwrap_or_default().to_owned();
    let name = object::text_at(value, &["metadata", "name"])
        .unwrap_or_default()
        .to_owned();
    let said = format!("{} \"{name}\"", kind.to_lowercase());
    if kind == "List" {
        for item in value
            .get_mut("items")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            inject(item, annotations, manual);
        }
        return;
    }
    let path: Vec<&str> = match template_path(&kind) {
        Some(path) => path.to_vec(),
        // A namespace's annotation is inherited by all of its pods.
        None if kind == "Namespace" && manual.is_none() => Vec::new(),
        None => {
            say(&format!("{said} skipped"));
            return;
        }
    };
    let namespace = object::text_at(value, &["metadata", "namespace"])
        .unwrap_or("default")
        .to_owned();
    let meta: Vec<&str> = path.iter().copied().chain(["metadata", "annotations"]).collect();
    let Some(map) = object::map_mut(value, &meta) else {
        say(&format!("{said} skipped: {} is no map", meta.join(".")));
        return;
    };
    map.extend(
        annotations
            .iter()
            .map(|(key, value)| (key.clone(), value.as_str().into())),
    );
    let Some(manual) = manual else {
        say(&format!("{said} annotated"));
        return;
    };
    match inject_manually(value, &path, &namespace, &kind, &name, manual) {
        Ok(()) => say(&format!("{said} injected")),
        Err(reason) => say(&format!("{said} skipped: {reason}")),
    }
}

fn inject_manually(
    value: &mut Value,
    path: &[&str],
    namespace: &str,
    kind: &str,
    name: &str,
    manual: &Manual,
) -> Result<(), String> {
    let template = path
        .iter()
        .try_fold(value, |value, key| value.get_mut(*key))
        .ok_or("it has no pod template")?;
    let typed: PodTemplateSpec = serde_json::from_value(template.clone())
        .map_err(|error| format!("its pod template is not understood: {error}"))?;
    let pod = heddle_inject::pod_of_template(&typed);
    let (none, labels) = (Default::default(), Default::default());
    let namespace = Namespace {
        name: namespace,
        annotations: &none,
        labels: &labels,
    };
    let owner = Owner {
        api_version: "apps/v1".into(),
        kind: kind.to_owned(),
        name: name.to_owned(),
    };
    let injection = match heddle_inject::decide(&manual.defaults, &namespace, &pod, Some(&owner)) {
        Decision::Inject(injection) => injection,
        Decision::Skip(reason) => return Err(reason.to_string()),
    };
    let mut injected = serde_json::to_value(&pod).map_err(|error| error.to_string())?;
    json_patch::patch(&mut injected, &injection.patch(&manual.trust_anchors_pem))
        .map_err(|error| error.to_string())?;
    for key in ["metadata", "spec"] {
        template[key] = injected[key].take();
    }
    // An injected pod asks for no further injection.
    if let Some(map) = object::map_mut(template, &["metadata", "annotations"]) {
        map.insert(annotation::INJECT.to_owned(), "disabled".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn mk_deployment() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "payments"},
            "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "app"}]}}},
        })
    }

    #[test]
    fn the_pod_template_is_annotated() {
        let mut value = mk_deployment();
        inject(
            &mut value,
            &[("linkerd.io/inject".into(), "enabled".into())],
            None,
        );
        assert_eq!(
            value["spec"]["template"]["metadata"]["annotations"],
            json!({"linkerd.io/inject": "enabled"})
        );
        assert!(value["metadata"].get("annotations").is_none());
        let mut service = json!({"kind": "Service", "metadata": {"name": "x"}});
        inject(
            &mut service,
            &[("linkerd.io/inject".into(), "enabled".into())],
            None,
        );
        assert_eq!(service, json!({"kind": "Service", "metadata": {"name": "x"}}));
    }

    #[test]
    fn manual_injection_writes_the_sidecar() {
        let manual = Manual {
            defaults: ProxyDefaults::from_yaml("{}").unwrap(),
            trust_anchors_pem: "PEM".into(),
        };
        let mut value = mk_deployment();
        inject(
            &mut value,
            &[("linkerd.io/inject".into(), "enabled".into())],
            Some(&manual),
        );
        let names: Vec<_> = value["spec"]["template"]["spec"]["initContainers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| c["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["linkerd-init", "linkerd-proxy"]);
    }
}
