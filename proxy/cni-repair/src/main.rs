//! `heddle-cni-repair`: deletes pods of its own node whose network was made without the CNI plugin.

use std::{net::SocketAddr, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Parser;
use heddle_daemon::{Admin, log, process, report, signal};
use heddle_proxy_cni_repair::{Metrics, Repair, run};
use prometheus_client::registry::Registry;
use tracing::{error, info};

/// Deletes pods of one node whose validator found that they are not redirected to their proxy.
#[derive(Debug, Parser)]
#[command(name = "heddle-cni-repair", version)]
struct Args {
    /// The node whose pods are looked at.
    #[arg(long, env = "LINKERD_CNI_REPAIR_CONTROLLER_NODE_NAME")]
    node_name: String,
    /// The name of this pod, for Events.
    #[arg(long, env = "LINKERD_CNI_REPAIR_CONTROLLER_POD_NAME")]
    pod_name: Option<String>,
    /// Where /live, /ready and /metrics are served.
    #[arg(long, default_value = "0.0.0.0:9990")]
    admin_addr: SocketAddr,
    /// Log filter, in the syntax of RUST_LOG.
    #[arg(long, env = "LINKERD_CNI_REPAIR_CONTROLLER_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Form of a log line: plain or json.
    #[arg(long, env = "LINKERD_CNI_REPAIR_CONTROLLER_LOG_FORMAT", default_value_t)]
    log_format: log::Format,
}

/// What is in flight is one deletion, which may as well be repeated.
const GRACE: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = log::init(&args.log_level, args.log_format) {
        eprintln!("heddle-cni-repair: --log-level: {}", report::chain(&error));
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "Failed to start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(serve(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %report::chain(error.as_ref()), "Failed");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let Args {
        node_name,
        pod_name,
        admin_addr,
        log_level: _,
        log_format: _,
    } = args;
    // Being installed already is fine: there is only one in this program.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let shutdown = signal::shutdown().context("failed to take signals")?;
    let client = kube::Client::try_default()
        .await
        .context("failed to reach the API server")?;
    let mut registry = Registry::default();
    process::register(&mut registry);
    let metrics = Metrics::register(&mut registry);
    let _admin = Admin::new(admin_addr, registry).spawn().await?;
    info!(node = %node_name, "Watching pods");
    let repair = Repair {
        client,
        node: node_name,
        instance: pod_name,
        metrics,
    };
    tokio::select! {
        () = run(repair) => anyhow::bail!("the watch of pods ended"),
        _ = shutdown.drain(GRACE) => Ok(()),
    }
}
