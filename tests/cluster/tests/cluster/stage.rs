//! What the tests stand on: the shared whole cluster, and the built `heddle`.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use heddle_tests_cluster::{heddle::Heddle, kubectl::Kubectl, repository::MeshRepository, story};
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode},
    progress::Progress,
    tools::{Program, Tools},
};
use tokio::sync::{Mutex, MutexGuard};

/// Held by the test whose turn on the whole cluster it is.
static WHOLE_CLUSTER: Mutex<()> = Mutex::const_new(());

/// The whole cluster, empty of Heddle, and a repository that it reaches.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) kubectl: Kubectl,
    pub(crate) heddle: Heddle,
    pub(crate) repository: MeshRepository,
    _turn: MutexGuard<'static, ()>,
}

impl Stage {
    pub(crate) async fn take() -> Result<Self> {
        let turn = WHOLE_CLUSTER.lock().await;
        let cluster = match std::env::var("HEDDLE_TEST_CLUSTER") {
            Ok(name) => Cluster::attach(&name)?,
            Err(_) => {
                Cluster::up(ClusterOptions::new("heddle-test", Mode::Full).with_progress(Progress::Shown))
                    .await?
            }
        };
        let kubectl = kubectl(&cluster)?;
        let heddle = Heddle::new(program("heddle")?, kubectl.kubeconfig());
        story::reset(&kubectl)?;
        let repository = MeshRepository::serve(Some(&cluster)).await?;
        Ok(Self {
            cluster,
            kubectl,
            heddle,
            repository,
            _turn: turn,
        })
    }
}

/// kubectl for a cluster.
pub(crate) fn kubectl(cluster: &Cluster) -> Result<Kubectl> {
    let tools = Tools::ensure(&[Program::Kubectl], Progress::Silent)?;
    Ok(Kubectl::new(
        tools.path(Program::Kubectl),
        cluster.kubeconfig_path(),
    ))
}

/// A program of this workspace, beside which Cargo has put the tests.
pub(crate) fn program(name: &str) -> Result<PathBuf> {
    let tests = std::env::current_exe()?;
    let folder = tests
        .parent()
        .and_then(|deps| deps.parent())
        .context("test programs lie in target/PROFILE/deps")?;
    let path = folder.join(name);
    anyhow::ensure!(
        path.exists(),
        "{} is not built: run `cargo build --workspace --bins` first",
        path.display()
    );
    Ok(path)
}
