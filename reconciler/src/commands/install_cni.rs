//! `heddle install-cni`: the CNI plugin's manifests on stdout. It comes before the mesh whose pods it redirects:
//! `heddle install-cni | kubectl apply -f -`, then `heddle install --linkerd-cni-enabled`. A mesh that lives in Git
//! extends the profile `cni` and needs neither.

use heddle_mesh::label;
use serde_json::json;

use crate::{
    cli::{Global, Outcome},
    commands::values::parse_set,
    object::{self, Object},
    profile, render,
    source::memory::MemoryTree,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The namespace of the plugin's DaemonSets.
    #[arg(long, value_name = "NAMESPACE", default_value = "linkerd-cni")]
    cni_namespace: String,
    /// The container runtime's folder of network configurations, on the nodes.
    #[arg(long, value_name = "DIR")]
    dest_cni_net_dir: Option<String>,
    /// The container runtime's folder of CNI plugins, on the nodes.
    #[arg(long, value_name = "DIR")]
    dest_cni_bin_dir: Option<String>,
    /// Log filter; the plugin says on info what it decided about each pod.
    #[arg(long, value_name = "LEVEL")]
    cni_log_level: Option<String>,
    /// Inbound ports that are redirected; none given, all are.
    #[arg(long, value_name = "PORTS")]
    redirect_ports: Option<String>,
    /// Inbound ports that bypass the proxy.
    #[arg(long, value_name = "PORTS")]
    skip_inbound_ports: Option<String>,
    /// Outbound ports that bypass the proxy.
    #[arg(long, value_name = "PORTS")]
    skip_outbound_ports: Option<String>,
    /// The user that proxies run as.
    #[arg(long, value_name = "UID")]
    proxy_uid: Option<u32>,
    /// The group that proxies run as.
    #[arg(long, value_name = "GID")]
    proxy_gid: Option<u32>,
    /// Registry and path before the image's name.
    #[arg(long, value_name = "REGISTRY", env = "LINKERD_DOCKER_REGISTRY")]
    registry: Option<String>,
    /// The image's tag.
    #[arg(long, value_name = "TAG")]
    linkerd_version: Option<String>,
    /// The pods' priority class.
    #[arg(long, value_name = "NAME")]
    priority_class_name: Option<String>,
    /// A value of the profile, such as cni.privileged=true; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let Args {
        cni_namespace,
        dest_cni_net_dir,
        dest_cni_bin_dir,
        cni_log_level,
        redirect_ports,
        skip_inbound_ports,
        skip_outbound_ports,
        proxy_uid,
        proxy_gid,
        registry,
        linkerd_version,
        priority_class_name,
        set,
    } = args;
    let mut overrides = vec![json!({"linkerdNamespace": global.linkerd_namespace})];
    let mut give = |path: &[&str], value: Option<serde_json::Value>| {
        let nest = |value, key: &&str| json!({ *key: value });
        overrides.extend(value.map(|value| path.iter().rev().fold(value, nest)));
    };
    give(&["cni", "namespace"], Some(cni_namespace.into()));
    give(&["cni", "destCNINetDir"], dest_cni_net_dir.map(Into::into));
    give(&["cni", "destCNIBinDir"], dest_cni_bin_dir.map(Into::into));
    give(&["cni", "logLevel"], cni_log_level.map(Into::into));
    give(&["cni", "portsToRedirect"], redirect_ports.map(Into::into));
    give(&["cni", "priorityClassName"], priority_class_name.map(Into::into));
    give(
        &["proxyInit", "ignoreInboundPorts"],
        skip_inbound_ports.map(Into::into),
    );
    give(
        &["proxyInit", "ignoreOutboundPorts"],
        skip_outbound_ports.map(Into::into),
    );
    give(&["proxy", "uid"], proxy_uid.map(Into::into));
    give(&["proxy", "gid"], proxy_gid.map(Into::into));
    give(&["image", "registry"], registry.map(Into::into));
    give(&["image", "version"], linkerd_version.map(Into::into));
    for text in &set {
        overrides.push(parse_set(text)?);
    }
    let text = "apiVersion: heddle.dev/v1alpha1\nkind: MeshProfile\nmetadata: {name: default}\nspec: {extends: [cni]}\n";
    let mesh = profile::load(
        &MemoryTree::new([("mesh.yaml", text)]),
        "",
        &global.bundled()?,
        &overrides,
    )?;
    crate::cli::print(&render::render(&mesh)?.to_yaml(is_cni))?;
    Ok(0)
}

fn is_cni(object: &Object) -> bool {
    object::text_at(&object.body, &["metadata", "labels", label::CNI_RESOURCE]).is_some()
}
