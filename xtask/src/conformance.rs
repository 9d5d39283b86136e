//! `cargo xtask conformance`: the Gateway API mesh conformance suite on a cluster of its own.

use std::time::Instant;

use anyhow::{Context as _, Result};
use heddle_tests_cluster::{conformance, heddle::Heddle, kubectl::Kubectl};
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode},
    crds, host, image,
    progress::Progress,
    tools::{Program, Tools},
    workspace_root,
};

use crate::{images, lint, packages};

/// The report that is kept, below the workspace.
const REPORT: &str = "docs/conformance/gateway-api-v1.6.3.yaml";

/// Run the Gateway API mesh conformance suite on a whole Kubernetes, with Heddle installed by a profile.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster that is made for it.
    #[arg(long, default_value = "heddle-conformance")]
    cluster: String,
    /// Leave the cluster running afterwards, and use it again if it is there.
    #[arg(long)]
    keep: bool,
    /// Passed to the suite, after `--`: `-run-test MeshBasic`. The report is then compared with none.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments {
        cluster: name,
        keep,
        rest,
    } = arguments;
    let start = Instant::now();
    packages::ensure(host::CLUSTER_PACKAGES, Progress::Shown)?;
    packages::ensure(host::BUILD_PACKAGES, Progress::Shown)?;
    let wanted: Vec<Program> = Program::CONFORMANCE
        .iter()
        .copied()
        .chain([Program::Kubectl])
        .collect();
    let tools = tokio::task::spawn_blocking(move || Tools::ensure(&wanted, Progress::Shown)).await??;
    lint::cargo(&["build", "--workspace", "--bins"])?;
    if !keep {
        Cluster::down(&name).await?;
    }
    let cluster = Cluster::up(ClusterOptions::new(&name, Mode::Full).with_progress(Progress::Shown)).await?;
    let outcome = show(&cluster, &tools, &rest).await;
    if keep {
        eprintln!("The cluster {name} stays: `cargo xtask down --name {name}` removes it.");
    } else {
        Cluster::down(&name).await?;
    }
    outcome?;
    eprintln!(
        "The conformance suite passed in {:.0} s.",
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn show(cluster: &Cluster, tools: &Tools, rest: &[String]) -> Result<()> {
    images::build_and_load(
        "dev",
        images::Target::Cluster(cluster.clone()),
        &["heddle", "control", "identity", "proxy"].map(str::to_owned),
    )
    .await?;
    let step = Progress::Shown.step("Loading the suite's workload and the Gateway API");
    let folder = tempfile::tempdir().context("failed to make a temporary folder for an image")?;
    cluster
        .load_image(&image::echo_tar(tools, folder.path())?)
        .await?;
    crds::apply(&cluster.client().await?, &crds::gateway_api_experimental()?).await?;
    step.done();
    let target = lint::target_dir();
    let kubeconfig = cluster.kubeconfig_path();
    let kubectl = Kubectl::new(tools.path(Program::Kubectl), &kubeconfig);
    let step = Progress::Shown.step("Installing Heddle by a profile");
    conformance::install(&kubectl, &Heddle::new(target.join("debug/heddle"), &kubeconfig))?;
    step.done();
    let step = Progress::Shown.step("Running the suite");
    let report = conformance::run(conformance::Run {
        program: tools.path(Program::Conformance),
        kubeconfig: &kubeconfig,
        folder: &target.join("conformance"),
        arguments: rest,
    })
    .await?;
    step.done();
    if rest.is_empty() {
        conformance::compare(&report, &workspace_root().join(REPORT))?;
    }
    Ok(())
}
