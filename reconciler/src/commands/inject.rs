//! `heddle inject FILE`: asks for the proxy in manifests, as Linkerd's does. Without --manual only annotations are
//! added, and the injector does the rest; with it the sidecar itself is written into the pod templates.
//!
//! Injecting what has been injected replaces the sidecar, so the command may be run again.

mod flags;
pub(super) mod input;
mod manifest;
pub(super) mod sidecar;

use std::path::PathBuf;

use heddle_inject::ProxyDefaults;

use self::{
    flags::ProxyFlags,
    input::Output,
    manifest::{Asked, Mode},
};
use crate::{
    cli::{Failure, Global, Outcome, say},
    cluster::Cluster,
    commands::connect,
    identity,
    object::{self, ObjectId},
    profile, render,
    source::memory::MemoryTree,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The manifests: a file, a folder with all that is below it, or - for stdin.
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
    #[command(flatten)]
    proxy: ProxyFlags,
    /// The form of what is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Yaml)]
    output: Output,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let mut documents = input::read(&args.file)?;
    let annotations = args.proxy.annotations()?;
    let asked = Asked {
        annotations,
        opaque_ports: args.proxy.opaque_ports.clone(),
    };
    let manual = match args.manual {
        true => Some(settings(global, &args)?),
        false => None,
    };
    let mode = manual.as_ref().map_or(Mode::Annotate, Mode::Write);
    let mut reports = Vec::new();
    for document in &mut documents {
        manifest::inject(document, &asked, &mode, &mut reports);
    }
    if !reports.iter().any(|report| report.done()) {
        say("no supported objects found");
    }
    for report in &reports {
        say(&report.to_string());
    }
    crate::cli::print(&args.output.print(&documents))?;
    Ok(0)
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
            let config = config_map(
                &cluster,
                global,
                heddle_inject::CONFIG_MAP,
                heddle_inject::CONFIG_KEY,
            )
            .await?;
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
