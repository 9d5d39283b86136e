//! From commit to applied objects: the real `heddle run`, a real Git server and a real API server.
//!
//! A repository of 200 objects; one of them changes per commit. The clock starts when the push has returned, and stops
//! when a watch sees the changed object. `--trigger` tells the reconciler of the push, as a Git forge's webhook does;
//! without it the reconciler polls. The peer is Flux, where its controllers are built; until then its published and
//! measured figures stand in docs/benchmarks.md, and this bench says so.

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures_util::{StreamExt as _, TryStreamExt as _};
use heddle_tests_harness::{
    audit::AuditLog,
    cluster::{Cluster, ClusterOptions, Mode},
    command,
    git::{GitServer, GitServerOptions, Repository},
    progress::Progress,
    wait::{self, Look},
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, WatchEvent, WatchParams},
    core::GroupVersionKind,
};

use crate::record::Record;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many commits are measured.
    #[arg(long, default_value_t = 20)]
    commits: usize,
    /// How many objects the repository has.
    #[arg(long, default_value_t = 200)]
    objects: usize,
    /// The reconciler under test.
    #[arg(long, default_value = "target/image/heddle")]
    heddle: PathBuf,
}

const CLUSTER: &str = "heddle-bench";
const NAMESPACE: &str = "bench";
const ADMIN: &str = "127.0.0.1:19995";

/// A child process that is killed when dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Already ended is as good as killed.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) async fn run(options: Options) -> Result<Vec<Record>> {
    let Options {
        commits,
        objects,
        heddle,
    } = options;
    eprintln!(
        "The peer flux is left out: its controllers are not built by this project yet (docs/benchmarks.md has figures measured elsewhere)."
    );
    Cluster::down(CLUSTER).await?;
    let cluster =
        Cluster::up(ClusterOptions::new(CLUSTER, Mode::ApiServerOnly).with_progress(Progress::Shown)).await?;
    let outcome = measure(&cluster, commits, objects, &heddle).await;
    Cluster::down(CLUSTER).await?;
    outcome
}

async fn measure(cluster: &Cluster, commits: usize, objects: usize, heddle: &PathBuf) -> Result<Vec<Record>> {
    let server = GitServer::start(GitServerOptions::on(cluster.host_ip())).await?;
    let repository = server.create("mesh")?;
    let mut files: Vec<(String, String)> = (0..objects).map(|n| (path(n), object(n, "0"))).collect();
    files.push((
        "clusters/bench/mesh.yaml".into(),
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshProfile\nmetadata: {name: bench}\nspec:\n  extends: []\n  policies: [./policies]\n".into(),
    ));
    let files: Vec<(&str, &str)> = files
        .iter()
        .map(|(path, text)| (path.as_str(), text.as_str()))
        .collect();
    let first = repository.commit("All objects", &files)?;

    let client = cluster.client().await?;
    command::run(cluster.kubectl()?.args(["create", "namespace", NAMESPACE]))?;
    let crds = command::run(Command::new(heddle).args(["install", "--crds"]))?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), crds)?;
    command::run(
        cluster
            .kubectl()?
            .args(["apply", "--server-side", "-f"])
            .arg(file.path()),
    )?;
    command::run(cluster.kubectl()?.args([
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ]))?;

    let cache = tempfile::tempdir()?;
    let started = Instant::now();
    let child = Command::new(heddle)
        .args([
            "run",
            "--repo",
            &server.url(&repository),
            "--ref",
            "main",
            "--path",
            "clusters/bench",
        ])
        .args([
            "--interval",
            "60s",
            "--admin-addr",
            ADMIN,
            "--log-level",
            "warn",
            "--cache-dir",
        ])
        .arg(cache.path())
        .env("KUBECONFIG", cluster.kubeconfig_path())
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| {
            format!(
                "cannot start {}: build it with `cargo build --profile image -p heddle-reconciler`",
                heddle.display()
            )
        })?;
    let running = Running(child);
    wait_applied(&client, &first).await?;
    let first_apply = started.elapsed().as_secs_f64();

    let mut to_applied = Vec::new();
    let mut to_ready = Vec::new();
    for round in 1..=commits {
        let changed = round % objects;
        let (applied, ready) = one_commit(&client, &repository, changed, round).await?;
        eprintln!(
            "commit {round}/{commits}: applied after {:.0} ms, ready after {:.0} ms",
            applied * 1e3,
            ready * 1e3
        );
        to_applied.push(applied);
        to_ready.push(ready);
    }

    let audit = AuditLog::from_now(cluster.audit_log_path())?;
    let noop = repository.commit("Nothing for the mesh", &[("README.md", "not under the path\n")])?;
    trigger().await?;
    wait_applied(&client, &noop).await?;
    let written = audit.writes()?;
    // That there is a new revision is told once, in the status and by an Event; nothing else may be written.
    let object_writes = written
        .iter()
        .filter(|write| write.user_agent.starts_with("heddle") && !write.is_dry_run())
        .filter(|write| !write.uri.contains("/status") && !write.uri.contains("/events"))
        .count();
    let rss = crate::proxy::resident_bytes(running.0.id())?;
    Ok(vec![
        Record::alone(
            "reconcile",
            format!("commit_to_applied_p50_1_of_{objects}"),
            "s",
            &to_applied,
        ),
        Record::alone(
            "reconcile",
            format!("commit_to_ready_p50_1_of_{objects}"),
            "s",
            &to_ready,
        ),
        Record::alone("reconcile", format!("first_apply_{objects}"), "s", &[first_apply]),
        Record::alone("reconcile", "noop_writes", "1", &[object_writes as f64]),
        Record::alone("reconcile", "idle_rss_bytes", "B", &[rss]),
    ])
}

/// Pushes one changed object; returns the seconds until a watch has seen it, and until the Mesh is Ready with it.
async fn one_commit(
    client: &Client,
    repository: &Repository,
    changed: usize,
    round: usize,
) -> Result<(f64, f64)> {
    let api = servers(client);
    let name = format!("server-{changed}");
    let current = api.get(&name).await?;
    let version = current
        .metadata
        .resource_version
        .context("live objects have a resource version")?;
    let params = WatchParams::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(60);
    let mut events = api.watch(&params, &version).await?.boxed();
    let commit = repository.commit(
        "One object",
        &[(&path(changed), &object(changed, &round.to_string()))],
    )?;
    let pushed = Instant::now();
    trigger().await?;
    loop {
        match events
            .try_next()
            .await?
            .context("the watch ended before the change was applied")?
        {
            WatchEvent::Modified(object) if round_of(&object) == round.to_string() => break,
            WatchEvent::Error(error) => bail!("the watch failed: {error}"),
            _ => {}
        }
    }
    let applied = pushed.elapsed().as_secs_f64();
    wait_applied(client, &commit).await?;
    Ok((applied, pushed.elapsed().as_secs_f64()))
}

fn round_of(object: &DynamicObject) -> String {
    object
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get("round").cloned())
        .unwrap_or_default()
}

fn path(n: usize) -> String {
    format!("clusters/bench/policies/server-{n}.yaml")
}

fn object(n: usize, round: &str) -> String {
    format!(
        "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: server-{n}, namespace: {NAMESPACE}, labels: {{round: \"{round}\"}}}}\nspec:\n  podSelector: {{matchLabels: {{app: app-{n}}}}}\n  port: 8080\n  proxyProtocol: HTTP/1\n"
    )
}

fn servers(client: &Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("policy.linkerd.io", "v1beta3", "Server");
    Api::namespaced_with(client.clone(), NAMESPACE, &ApiResource::from_gvk(&kind))
}

async fn wait_applied(client: &Client, commit: &str) -> Result<()> {
    let kind = GroupVersionKind::gvk("heddle.dev", "v1alpha1", "Mesh");
    let api: Api<DynamicObject> = Api::all_with(
        client.clone(),
        &ApiResource::from_gvk_with_plural(&kind, "meshes"),
    );
    wait::until(
        format!("Mesh bench to be Ready at {commit}"),
        Duration::from_secs(60),
        || async {
            match api.get("bench").await {
                Ok(mesh) if ready_at(&mesh, commit) => Look::Done(()),
                Ok(mesh) => Look::NotYet(mesh.data["status"]["conditions"].to_string()),
                Err(error) => Look::NotYet(error.to_string()),
            }
        },
    )
    .await?;
    Ok(())
}

fn ready_at(mesh: &DynamicObject, commit: &str) -> bool {
    let status = &mesh.data["status"];
    let applied = status["lastAppliedRevision"]
        .as_str()
        .is_some_and(|revision| revision.contains(commit));
    let ready = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Ready" && c["status"] == "True");
    applied && ready
}

/// Tells the reconciler that there is something new, as a forge's webhook does.
async fn trigger() -> Result<()> {
    let url = format!("http://{ADMIN}/reconcile");
    tokio::task::spawn_blocking(move || {
        command::run_args("curl", ["-fsS", "-m", "5", "-X", "POST", &url]).map(drop)
    })
    .await?
}
