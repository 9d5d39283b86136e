//! A real Kubernetes on this machine: a whole single-node cluster in a network namespace of its own, or etcd and an
//! API server alone.
//!
//! A cluster is known by its name. [`Cluster::up`] brings it to life or repairs what died of it; [`Cluster::down`]
//! removes every trace, whatever was killed before. Several clusters run side by side. The processes outlive the
//! one that started them.

mod address;
mod bootstrap;
mod cgroup;
mod control_plane;
mod layout;
mod network;
mod node;
mod pki;
mod process;
mod record;
mod start;
mod sysctl;
mod teardown;

use std::ffi::OsStr;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use address::{CLUSTERS_MAX, Cidr, Slot};
pub use teardown::Removed;

use crate::progress::Progress;
use crate::tools::{Program, Tools};
use crate::{command, host};
use layout::Layout;
use process::Daemon;
use record::{Record, lock, lock_now};

/// How much of a cluster there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Everything: nodes, pods, Services, DNS. Needs root.
    Full,
    /// etcd and the API server on loopback. Objects can be stored and watched; nothing acts on them. Needs no root.
    #[serde(rename = "api")]
    ApiServerOnly,
}

/// What cluster to bring up.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Its name: a DNS label.
    pub name: String,
    pub mode: Mode,
    /// Suffix of Service names.
    pub cluster_domain: String,
    /// Where to tell what happens.
    pub progress: Progress,
}

impl ClusterOptions {
    /// A silent cluster with the usual domain.
    pub fn new(name: impl Into<String>, mode: Mode) -> Self {
        Self {
            name: name.into(),
            mode,
            cluster_domain: "cluster.local".into(),
            progress: Progress::Silent,
        }
    }

    /// The same, telling what happens.
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }
}

/// A cluster that is up.
#[derive(Debug, Clone)]
pub struct Cluster {
    layout: Layout,
    record: Record,
}

/// How often a cluster on loopback tries other ports when someone took those that were free a moment before.
const PORT_ATTEMPTS: usize = 3;

impl Cluster {
    /// Brings the cluster up, or repairs it, and waits until it is usable. Idempotent.
    pub async fn up(options: ClusterOptions) -> Result<Self> {
        let layout = Layout::new(&options.name)?;
        check_host(&options)?;
        let programs = if options.mode == Mode::Full {
            Program::NODE
        } else {
            Program::API
        };
        let progress = options.progress;
        let tools = blocking(move || Tools::ensure(programs, progress)).await?;
        fs::create_dir_all(layout.clusters()).with_context(|| {
            format!(
                "failed to make {}: is HEDDLE_STATE writable?",
                layout.clusters().display()
            )
        })?;
        let _lock = lock(layout.lock(), progress).await?;
        let mut attempt = 1;
        loop {
            let result = Self::up_locked(&layout, &options, &tools).await;
            match result {
                Err(error) if attempt < PORT_ATTEMPTS && lost_its_port(&options, &error) => {
                    attempt += 1;
                    let layout = layout.clone();
                    blocking(move || teardown::remove(&layout)).await?;
                }
                result => {
                    return result.with_context(|| format!("cluster {} did not come up", layout.name()));
                }
            }
        }
    }

    async fn up_locked(layout: &Layout, options: &ClusterOptions, tools: &Tools) -> Result<Self> {
        let progress = options.progress;
        let mut known = Record::read(layout)?;
        if known.as_ref().is_some_and(|record| record.mode == Mode::Full) && !network::exists(layout) {
            // The machine was started anew: what the state folder says of containers is no longer true.
            let step = progress.step("Removing what an earlier boot left behind");
            let stale = layout.clone();
            blocking(move || teardown::remove(&stale)).await?;
            step.done();
            known = None;
        }
        let record = match known {
            Some(record) if record.mode != options.mode => bail!(
                "cluster {} exists with another mode ({}); hint: take it down first",
                layout.name(),
                if record.mode == Mode::Full { "full" } else { "api" }
            ),
            Some(record) => record,
            None => {
                let checked = layout.clone();
                blocking(move || process::check_owner(&checked)).await?;
                Record::assign(layout, options).await?
            }
        };
        let cluster = Self {
            layout: layout.clone(),
            record,
        };
        let prepared = cluster.clone();
        blocking(move || prepared.prepare()).await?;
        let step = progress.step("Starting etcd and the API server");
        cluster.start_api(tools, &step).await?;
        step.done();
        if options.mode == Mode::Full {
            let step = progress.step("Starting the controllers and the node");
            cluster.start_node(tools, &step).await?;
            step.done();
        }
        Ok(cluster)
    }

    /// A cluster that is up already, by name.
    pub fn attach(name: &str) -> Result<Self> {
        let layout = Layout::new(name)?;
        let record = Record::read(&layout)?;
        let record = record
            .with_context(|| format!("there is no cluster {name}; hint: cargo xtask up --name {name}"))?;
        Ok(Self { layout, record })
    }

    /// Removes the cluster with every process, mount, cgroup and namespace of it. Succeeds if there is none.
    pub async fn down(name: &str) -> Result<Removed> {
        let layout = Layout::new(name)?;
        if !layout.clusters().exists() {
            fs::create_dir_all(layout.clusters())
                .with_context(|| format!("failed to make {}", layout.clusters().display()))?;
        }
        blocking(move || remove(&layout)).await
    }

    /// Names of all clusters that have left any state on this machine.
    pub fn names() -> Vec<String> {
        let entries = fs::read_dir(layout::clusters_dir())
            .into_iter()
            .flatten()
            .flatten();
        let mut names: Vec<String> = entries
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        // Namespaces whose state folder was removed by hand; none of them can be another user's.
        if host::is_root() {
            let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
            let namespaces = namespaces.map(|entry| entry.file_name().to_string_lossy().into_owned());
            names.extend(namespaces.filter_map(|name| Some(name.strip_prefix(layout::PREFIX)?.to_owned())));
        }
        names.retain(|name| Layout::new(name).is_ok());
        names.sort();
        names.dedup();
        names
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.layout.name()
    }

    pub fn mode(&self) -> Mode {
        self.record.mode
    }

    /// The administrator's kubeconfig, good for the host.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.layout.kubeconfig()
    }

    /// One JSON line for every write to the API server (leases left out): who, what, which object, which answer.
    pub fn audit_log_path(&self) -> PathBuf {
        self.layout.audit_log()
    }

    /// Everything the cluster keeps, logs of its programs in `log/`.
    pub fn state_dir(&self) -> PathBuf {
        self.layout.state()
    }

    /// The node's folder of network configurations.
    pub fn cni_net_dir(&self) -> PathBuf {
        self.layout.cni_net_dir()
    }

    /// The node's own folder of CNI plugins.
    pub fn cni_bin_dir(&self) -> PathBuf {
        self.layout.cni_bin_dir()
    }

    /// URL of the API server, from the host and from within.
    pub fn server_url(&self) -> String {
        match self.record.mode {
            Mode::Full => format!("https://{}:{}", self.record.slot.node(), self.record.ports.api),
            Mode::ApiServerOnly => format!("https://127.0.0.1:{}", self.record.ports.api),
        }
    }

    /// An address of the host that the cluster's pods reach.
    pub fn host_ip(&self) -> Ipv4Addr {
        match self.record.mode {
            Mode::Full => self.record.slot.host(),
            Mode::ApiServerOnly => Ipv4Addr::LOCALHOST,
        }
    }

    /// Which addresses the cluster uses.
    pub fn slot(&self) -> Slot {
        self.record.slot
    }

    /// A client with all rights.
    pub async fn client(&self) -> Result<kube::Client> {
        client_from(&self.kubeconfig_path()).await
    }

    /// A `kubectl` command for this cluster.
    pub fn kubectl(&self) -> Result<Command> {
        let mut command = Command::new(self.kubectl_path()?);
        command.env("KUBECONFIG", self.kubeconfig_path());
        Ok(command)
    }

    /// Where `kubectl` is.
    pub fn kubectl_path(&self) -> Result<PathBuf> {
        Ok(Tools::ensure(&[Program::Kubectl], Progress::Silent)?
            .path(Program::Kubectl)
            .to_path_buf())
    }

    /// A command that will run in the node's network namespace, for instance to capture packets.
    pub fn exec_in_netns(&self, program: impl AsRef<OsStr>) -> Command {
        network::command_in(&self.layout, program)
    }

    /// Loads images from a tar as `docker save` writes it, so that pods can use them without a registry.
    pub async fn load_image(&self, tar: &Path) -> Result<()> {
        if self.record.mode != Mode::Full {
            bail!(
                "cluster {} has no node to load {} into",
                self.name(),
                tar.display()
            );
        }
        let (layout, tar) = (self.layout.clone(), tar.to_path_buf());
        blocking(move || {
            let mut ctr = ctr(&layout)?;
            command::run(ctr.args(["images", "import", "--local"]).arg(&tar)).map(drop)
        })
        .await
        .with_context(|| format!("failed to load an image into cluster {}", self.name()))
    }

    /// Runs `certmanager`, the certificate controllers of the real cert-manager, against this cluster's API server.
    /// Its CRDs are applied first. It needs no node, and goes away with the cluster.
    pub async fn start_cert_manager(&self) -> Result<()> {
        let tools = blocking(|| Tools::ensure(&[Program::CertManager], Progress::Silent)).await?;
        let client = self.client().await?;
        let crds = blocking(crate::crds::cert_manager).await?;
        crate::crds::apply(&client, &crds).await?;
        let kubeconfig = self.kubeconfig_path();
        let daemon = Daemon {
            name: "cert-manager",
            program: tools.path(Program::CertManager).to_path_buf(),
            args: vec![format!("--kubeconfig={}", kubeconfig.display())],
            files: vec![kubeconfig],
            in_netns: self.record.mode == Mode::Full,
        };
        let layout = self.layout.clone();
        blocking(move || daemon.ensure(&layout)).await
    }
}

/// A cluster that goes down when it goes out of scope, for tests.
#[derive(Debug)]
pub struct ScopedCluster(Cluster);

impl ScopedCluster {
    /// As [`Cluster::up`].
    pub async fn up(options: ClusterOptions) -> Result<Self> {
        Cluster::up(options).await.map(Self)
    }
}

impl std::ops::Deref for ScopedCluster {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.0
    }
}

impl Drop for ScopedCluster {
    fn drop(&mut self) {
        // In a thread of its own: a test's runtime may have only one.
        let layout = self.0.layout.clone();
        let removed = std::thread::spawn(move || remove(&layout)).join();
        if let Ok(Err(error)) = removed {
            eprintln!("failed to remove cluster {}: {error:#}", self.0.name());
        }
    }
}

fn check_host(options: &ClusterOptions) -> Result<()> {
    if options.mode != Mode::Full {
        return Ok(());
    }
    if !host::is_root() {
        bail!(
            "a whole cluster needs root (network namespaces, mounts, cgroups); \
             hint: run as root, or use the mode `api` (etcd and API server only)"
        );
    }
    let missing = host::missing(host::CLUSTER_PACKAGES);
    if !missing.is_empty() {
        let list: Vec<String> = missing
            .iter()
            .map(|package| format!("{} ({})", package.name, package.purpose))
            .collect();
        bail!(
            "the cluster needs these packages: {}; hint: `cargo xtask up` installs them on Debian and Ubuntu",
            list.join(", ")
        );
    }
    Ok(())
}

fn lost_its_port(options: &ClusterOptions, error: &anyhow::Error) -> bool {
    options.mode == Mode::ApiServerOnly && format!("{error:#}").contains("address already in use")
}

/// Removes the cluster under its lock.
fn remove(layout: &Layout) -> Result<Removed> {
    let remove = || -> Result<Removed> {
        let lock = lock_now(&layout.lock(), Progress::Silent)?;
        let removed = teardown::remove(layout)?;
        // While it is held: whoever waits for it notices and makes a new one.
        fs::remove_file(layout.lock())
            .with_context(|| format!("failed to remove {}", layout.lock().display()))?;
        drop(lock);
        Ok(removed)
    };
    remove().with_context(|| format!("failed to remove cluster {}", layout.name()))
}

/// A client for the cluster that `kubeconfig` names.
pub async fn client_from(kubeconfig: &Path) -> Result<kube::Client> {
    // Both installing it twice and another one being installed are fine: there is only one in this workspace.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let shown = || format!("failed to read {}", kubeconfig.display());
    let config = kube::config::Kubeconfig::read_from(kubeconfig).with_context(shown)?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default())
        .await
        .with_context(shown)?;
    kube::Client::try_from(config).with_context(shown)
}

fn ctr(layout: &Layout) -> Result<Command> {
    let tools = Tools::ensure(&[Program::Ctr], Progress::Silent)?;
    let mut command = Command::new(tools.path(Program::Ctr));
    command
        .arg("--address")
        .arg(node::containerd_socket(layout))
        .args(["--namespace", "k8s.io"]);
    Ok(command)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .context("a blocking task panicked or was cancelled")?
}
