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
mod sysctl;
mod teardown;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::Api;
use serde::{Deserialize, Serialize};

pub use address::{CLUSTERS_MAX, Cidr, Slot};
pub use teardown::Removed;

use crate::progress::{Progress, Step};
use crate::tools::{Program, Tools};
use crate::wait::{self, Look};
use crate::{command, host, image};
use control_plane::{ControlPlane, Ports};
use layout::Layout;
use process::Daemon;

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
        Self { name: name.into(), mode, cluster_domain: "cluster.local".into(), progress: Progress::Silent }
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

/// What was decided when the cluster was first brought up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    mode: Mode,
    slot: Slot,
    ports: Ports,
    cluster_domain: String,
}

/// Longest wait for the API server. It takes about four seconds on an idle machine, and much more beside a build.
const API_READY_LIMIT: Duration = Duration::from_secs(180);

/// Longest wait for the node, which pulls nothing: seconds on an idle machine.
const NODE_READY_LIMIT: Duration = Duration::from_secs(180);

/// How often a cluster on loopback tries other ports when someone took those that were free a moment before.
const PORT_ATTEMPTS: usize = 3;

impl Cluster {
    /// Brings the cluster up, or repairs it, and waits until it is usable. Idempotent.
    pub async fn up(options: ClusterOptions) -> Result<Self> {
        let layout = Layout::new(&options.name)?;
        check_host(&options)?;
        let programs = if options.mode == Mode::Full { Program::NODE } else { Program::API };
        let progress = options.progress;
        let tools = blocking(move || Tools::ensure(programs, progress)).await?;
        fs::create_dir_all(layout.clusters())
            .with_context(|| format!("failed to make {}: is HEDDLE_STATE writable?", layout.clusters().display()))?;
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
                result => return result.with_context(|| format!("cluster {} did not come up", layout.name())),
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
            None => Record::assign(layout, options).await?,
        };
        let cluster = Self { layout: layout.clone(), record };
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
        let record = record.with_context(|| format!("there is no cluster {name}; hint: cargo xtask up --name {name}"))?;
        Ok(Self { layout, record })
    }

    /// Removes the cluster with every process, mount, cgroup and namespace of it. Succeeds if there is none.
    pub async fn down(name: &str) -> Result<Removed> {
        let layout = Layout::new(name)?;
        if !layout.clusters().exists() {
            fs::create_dir_all(layout.clusters())
                .with_context(|| format!("failed to make {}", layout.clusters().display()))?;
        }
        let _lock = lock(layout.lock(), Progress::Silent).await?;
        blocking(move || teardown::remove(&layout)).await.with_context(|| format!("failed to remove cluster {name}"))
    }

    /// Names of all clusters that have left any state on this machine.
    pub fn names() -> Vec<String> {
        let entries = fs::read_dir(layout::clusters_dir()).into_iter().flatten().flatten();
        let namespaces = fs::read_dir("/run/netns").into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.extend(namespaces.filter_map(|entry| Some(entry.file_name().to_str()?.strip_prefix(layout::PREFIX)?.to_owned())));
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
        Ok(Tools::ensure(&[Program::Kubectl], Progress::Silent)?.path(Program::Kubectl).to_path_buf())
    }

    /// A command that will run in the node's network namespace, for instance to capture packets.
    pub fn exec_in_netns(&self, program: impl AsRef<OsStr>) -> Command {
        network::command_in(&self.layout, program)
    }

    /// Loads images from a tar as `docker save` writes it, so that pods can use them without a registry.
    pub async fn load_image(&self, tar: &Path) -> Result<()> {
        if self.record.mode != Mode::Full {
            bail!("cluster {} has no node to load {} into", self.name(), tar.display());
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

    /// What must exist before the first process starts.
    fn prepare(&self) -> Result<()> {
        let (layout, slot) = (&self.layout, self.record.slot);
        let full = self.record.mode == Mode::Full;
        let node = full.then(|| (layout.name(), slot.node()));
        let mut server_ips = vec![Ipv4Addr::LOCALHOST, slot.kubernetes_service()];
        if full {
            sysctl::remember(layout.clusters());
            network::ensure(layout, slot)?;
            cgroup::ensure(layout)?;
            server_ips.push(slot.node());
        }
        let names = pki::Names { server_ips: &server_ips, node, cluster_domain: &self.record.cluster_domain };
        pki::ensure(layout, &names)?;
        pki::write_kubeconfigs(layout, &self.server_url(), node.map(|(name, _)| name))?;
        fs::create_dir_all(layout.at("log")).with_context(|| format!("failed to make {}", layout.at("log").display()))
    }

    async fn start_api(&self, tools: &Tools, step: &Step) -> Result<()> {
        let control_plane = self.control_plane(tools);
        let daemons = vec![control_plane.etcd(), control_plane.apiserver()?];
        self.start(&daemons).await?;
        step.detail("waiting for /readyz");
        let client = self.client().await?;
        self.wait_for("the API server", API_READY_LIMIT, &daemons, || {
            let client = client.clone();
            async move {
                let request = http_get("/readyz");
                client.request_text(request).await.map(drop).map_err(|error| anyhow!(error))
            }
        })
        .await
    }

    async fn start_node(&self, tools: &Tools, step: &Step) -> Result<()> {
        let control_plane = self.control_plane(tools);
        let node = self.node(tools);
        let controllers = vec![control_plane.controller_manager(), control_plane.scheduler(), node.containerd()?];
        self.start(&controllers).await?;
        let client = self.client().await?;
        bootstrap::apply(&client, self.record.slot).await?;
        step.detail("waiting for containerd");
        let layout = self.layout.clone();
        self.wait_for("containerd", NODE_READY_LIMIT, &controllers, || {
            let layout = layout.clone();
            blocking(move || command::run(ctr(&layout)?.arg("version")).map(drop))
        })
        .await?;
        self.load_pause_image().await?;
        let mut daemons = vec![node.kubelet()?, node.kube_proxy(), node.coredns()?];
        self.start(&daemons).await?;
        daemons.extend(controllers);
        step.detail("waiting for the node");
        let nodes: Api<Node> = Api::all(client.clone());
        self.wait_for("the node to be Ready", NODE_READY_LIMIT, &daemons, || node_ready(nodes.clone(), self.name())).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        self.wait_for("the default service account", NODE_READY_LIMIT, &daemons, || async {
            accounts.get("default").await.map(drop).map_err(|error| anyhow!(error))
        })
        .await?;
        step.detail("waiting for DNS");
        let ready = format!("{}:8181", self.record.slot.node());
        self.wait_for("the DNS server", NODE_READY_LIMIT, &daemons, || dns_ready(ready.clone())).await
    }

    async fn start(&self, daemons: &[Daemon]) -> Result<()> {
        let (layout, daemons) = (self.layout.clone(), daemons.to_vec());
        blocking(move || daemons.iter().try_for_each(|daemon| daemon.ensure(&layout))).await
    }

    /// Waits for `check`, but no longer than the processes that must make it true live.
    async fn wait_for<F, Fut>(&self, what: &str, limit: Duration, daemons: &[Daemon], mut check: F) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let waited = wait::until(what, limit, || {
            let check = check();
            async move {
                let Err(error) = check.await else { return Look::Done(()) };
                match daemons.iter().try_for_each(|daemon| daemon.check(&self.layout)) {
                    Err(dead) => Look::Never(format!("{dead:#}")),
                    Ok(()) => Look::NotYet(format!("{error:#}")),
                }
            }
        });
        waited.await.map_err(|error| {
            let logs = daemons.iter().map(|daemon| format!("\n{}:\n{}", daemon.name, daemon.log_tail(&self.layout)));
            let logs: String = if error.impossible { String::new() } else { logs.collect() };
            anyhow!("{error}{logs}")
        })
    }

    async fn load_pause_image(&self) -> Result<()> {
        let layout = self.layout.clone();
        let listed = blocking(move || {
            command::run(ctr(&layout)?.args(["images", "list", "-q", &format!("name=={}", image::PAUSE_IMAGE)]))
        });
        if listed.await?.trim().is_empty() {
            let tar = blocking(image::pause_tar).await?;
            self.load_image(&tar).await?;
        }
        Ok(())
    }

    fn control_plane<'a>(&'a self, tools: &'a Tools) -> ControlPlane<'a> {
        let Record { mode, slot, ports, cluster_domain } = &self.record;
        let with_node = *mode == Mode::Full;
        ControlPlane { layout: &self.layout, tools, slot: *slot, ports: *ports, cluster_domain, with_node }
    }

    fn node<'a>(&'a self, tools: &'a Tools) -> node::Node<'a> {
        let Record { slot, cluster_domain, .. } = &self.record;
        node::Node { layout: &self.layout, tools, slot: *slot, cluster_domain }
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
        let removed = std::thread::spawn(move || teardown::remove(&layout)).join();
        if let Ok(Err(error)) = removed {
            eprintln!("failed to remove cluster {}: {error:#}", self.0.name());
        }
    }
}

impl Record {
    fn read(layout: &Layout) -> Result<Option<Self>> {
        let path = layout.record();
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.with_context(|| format!("failed to read {}", path.display()))?,
        };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).with_context(|| format!("failed to parse {}; hint: take the cluster down and up again", path.display()))
    }

    /// Decides on addresses and ports and writes them down, so that no other cluster takes them.
    async fn assign(layout: &Layout, options: &ClusterOptions) -> Result<Self> {
        let _lock = lock(layout.clusters().join(".slots.lock"), options.progress).await?;
        let (slot, ports) = match options.mode {
            Mode::Full => (free_slot(layout)?, Ports::OWN_NAMESPACE),
            Mode::ApiServerOnly => (Slot::FIRST, Ports::free()?),
        };
        let record = Self { mode: options.mode, slot, ports, cluster_domain: options.cluster_domain.clone() };
        let path = layout.record();
        let text = serde_json::to_string_pretty(&record).context("failed to write a cluster's record as JSON")?;
        fs::create_dir_all(layout.state()).with_context(|| format!("failed to make {}", layout.state().display()))?;
        // By rename, so that a record is whole or not there.
        let unfinished = path.with_extension("json.tmp");
        fs::write(&unfinished, text).with_context(|| format!("failed to write {}", unfinished.display()))?;
        fs::rename(&unfinished, &path).with_context(|| format!("failed to write {}", path.display()))?;
        Ok(record)
    }
}

/// The lowest slot that no cluster has and whose link network the host does not use.
fn free_slot(layout: &Layout) -> Result<Slot> {
    let mut taken = Vec::new();
    for name in Cluster::names() {
        if let Some(record) = Record::read(&Layout::new(&name)?)? {
            taken.extend((record.mode == Mode::Full && name != layout.name()).then_some(record.slot));
        }
    }
    // Clusters of another state folder, and whoever else uses these addresses.
    let shown = command::run_args("ip", ["-4", "-oneline", "address", "show"])?;
    let used: Vec<Ipv4Addr> = shown
        .lines()
        .filter_map(|line| line.split_whitespace().nth(3)?.split('/').next()?.parse().ok())
        .collect();
    let slot = Slot::lowest_free(|slot| {
        taken.contains(&slot) || used.iter().any(|address| slot.link().contains(*address))
    });
    slot.with_context(|| format!("all {CLUSTERS_MAX} address ranges are taken; hint: cargo xtask down --name NAME"))
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
        let list: Vec<String> = missing.iter().map(|package| format!("{} ({})", package.name, package.purpose)).collect();
        bail!("the cluster needs these packages: {}; hint: `cargo xtask up` installs them on Debian and Ubuntu", list.join(", "));
    }
    Ok(())
}

fn lost_its_port(options: &ClusterOptions, error: &anyhow::Error) -> bool {
    options.mode == Mode::ApiServerOnly && format!("{error:#}").contains("address already in use")
}

async fn node_ready(nodes: Api<Node>, name: &str) -> Result<()> {
    let node = nodes.get(name).await?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let ready = conditions.into_iter().find(|condition| condition.type_ == "Ready").context("the node has no Ready condition")?;
    if ready.status != "True" {
        bail!("the node is not ready: {}", ready.message.unwrap_or_default());
    }
    Ok(())
}

/// The DNS server's own readiness page says 200 once it has seen all Services.
async fn dns_ready(address: String) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(&address).await.context("the DNS server does not listen yet")?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    if answer.ends_with(b" 200") { Ok(()) } else { bail!("the DNS server is not ready: {}", String::from_utf8_lossy(&answer)) }
}

fn http_get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path).body(Vec::new()).expect("a constant path makes a valid request")
}

/// A client for the cluster that `kubeconfig` names.
pub async fn client_from(kubeconfig: &Path) -> Result<kube::Client> {
    // Both installing it twice and another one being installed are fine: there is only one in this workspace.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let shown = || format!("failed to read {}", kubeconfig.display());
    let config = kube::config::Kubeconfig::read_from(kubeconfig).with_context(shown)?;
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.with_context(shown)?;
    kube::Client::try_from(config).with_context(shown)
}

fn ctr(layout: &Layout) -> Result<Command> {
    let tools = Tools::ensure(&[Program::Ctr], Progress::Silent)?;
    let mut command = Command::new(tools.path(Program::Ctr));
    command.arg("--address").arg(node::containerd_socket(layout)).args(["--namespace", "k8s.io"]);
    Ok(command)
}

/// Waits for the lock on `path`; it is held until the file is dropped, or the process ends.
async fn lock(path: PathBuf, progress: Progress) -> Result<File> {
    blocking(move || {
        let shown = || format!("failed to lock {}", path.display());
        let file = File::options().create(true).truncate(false).write(true).open(&path).with_context(shown)?;
        if file.try_lock().is_err() {
            progress.say(format!("Another process holds {}: waiting for it.", path.display()));
            file.lock().with_context(shown)?;
        }
        Ok(file)
    })
    .await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(work).await.context("a blocking task panicked or was cancelled")?
}
