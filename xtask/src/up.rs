//! `cargo xtask up`: bring a cluster up, or repair it.

use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;
use heddle_tests_harness::cluster::{Cluster, ClusterOptions, Mode};
use heddle_tests_harness::progress::Progress;
use heddle_tests_harness::tools::{Program, Tools};
use heddle_tests_harness::{crds, host};

use crate::packages;

/// Bring up a Kubernetes cluster on this machine; does nothing if it is up.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// The cluster's name; several run side by side.
    #[arg(long, default_value = "heddle")]
    name: String,
    /// How much of a cluster.
    #[arg(long, value_enum, default_value_t = ModeArgument::Full)]
    mode: ModeArgument,
    /// Apply other projects' CRDs.
    #[arg(long, value_enum, value_delimiter = ',')]
    crds: Vec<CrdsArgument>,
    /// Run the real cert-manager's controllers beside the cluster, with its CRDs.
    #[arg(long)]
    cert_manager: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum CrdsArgument {
    /// Gateway API, standard channel.
    GatewayApi,
    /// Gateway API, experimental channel.
    GatewayApiExperimental,
    /// Certificates and issuers.
    CertManager,
    /// PodMonitor and ServiceMonitor.
    PrometheusOperator,
}

impl CrdsArgument {
    fn load(self) -> Result<Vec<serde_json::Value>> {
        match self {
            Self::GatewayApi => crds::gateway_api(),
            Self::GatewayApiExperimental => crds::gateway_api_experimental(),
            Self::CertManager => crds::cert_manager(),
            Self::PrometheusOperator => crds::prometheus_operator(),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum ModeArgument {
    /// Everything: a node, pods, Services, DNS. Needs root.
    Full,
    /// etcd and the API server alone.
    Api,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments {
        name,
        mode,
        crds: wanted,
        cert_manager,
    } = arguments;
    let start = Instant::now();
    let mode = match mode {
        ModeArgument::Full => {
            packages::ensure(host::CLUSTER_PACKAGES, Progress::Shown)?;
            Mode::Full
        }
        ModeArgument::Api => Mode::ApiServerOnly,
    };
    let cluster = Cluster::up(ClusterOptions::new(name, mode).with_progress(Progress::Shown)).await?;
    for wanted in wanted {
        let name = wanted
            .to_possible_value()
            .map(|value| value.get_name().to_owned())
            .unwrap_or_default();
        let step = Progress::Shown.step(format!("Applying the CRDs of {name}"));
        let objects = tokio::task::spawn_blocking(move || wanted.load()).await??;
        crds::apply(&cluster.client().await?, &objects).await?;
        step.done();
    }
    if cert_manager {
        // Its first build takes minutes and should be seen.
        tokio::task::spawn_blocking(|| Tools::ensure(&[Program::CertManager], Progress::Shown)).await??;
        let step = Progress::Shown.step("Starting cert-manager");
        cluster.start_cert_manager().await?;
        step.done();
    }
    eprintln!(
        "Cluster {} is up after {:.1} s. To use it:",
        cluster.name(),
        start.elapsed().as_secs_f64()
    );
    println!("export KUBECONFIG={}", cluster.kubeconfig_path().display());
    eprintln!(
        "with {}; its logs are in {}.",
        cluster.kubectl_path()?.display(),
        cluster.state_dir().join("log").display()
    );
    Ok(())
}
