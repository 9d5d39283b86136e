//! The commands, one file each: flags, and how the pipeline's stages are put together. What they print on stdout is
//! data; everything else goes to stderr.

pub mod apply;
pub mod authz;
pub mod check;
pub mod completion;
pub mod diagnostics;
pub mod identity;
pub mod inject;
pub mod install;
pub mod install_cni;
pub mod plan;
pub mod render;
pub mod resource;
pub mod run;
pub mod status;
pub mod uninject;
pub mod values;
pub mod version;

use crate::{
    cli::{Failure, Global},
    cluster::{Cluster, ClusterError},
    metrics::Metrics,
};

/// Connects by the global flags.
///
/// # Errors
/// No configuration, or no answer.
pub async fn connect(global: &Global) -> Result<Cluster, Failure> {
    connect_with(global, Metrics::default()).await
}

/// As [`connect`], counting into the given metrics.
///
/// # Errors
/// No configuration, or no answer.
pub async fn connect_with(global: &Global, metrics: Metrics) -> Result<Cluster, Failure> {
    Ok(Cluster::connect(global.kubeconfig.as_deref(), global.context.as_deref(), metrics).await?)
}

/// Runs a command's asynchronous part.
///
/// # Errors
/// The command's own, or no threads.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?
        .block_on(future)
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self {
            hint: error.hint(),
            error: error.into(),
            code: 2,
        }
    }
}
