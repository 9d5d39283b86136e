//! `cargo xtask demo`: the README's story on a real Kubernetes, told step by step with times.
//!
//! The steps are functions of `heddle-tests-cluster`; the cluster tests assert what is told here.

mod narrate;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_cluster::{
    FIRST_COMMIT, PAYMENTS, PLAIN_TEXT, SECRET_TEXT, capture, heddle::Heddle, kubectl::Kubectl,
    repository::MeshRepository, story, workloads,
};
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode},
    host,
    progress::Progress,
    tools::{Program, Tools},
};

use crate::{images, lint, packages};
use narrate::Narrator;

/// The cluster that the demo starts, unless KUBECONFIG names one.
const CLUSTER: &str = "heddle";

/// Show it all in one go, told as a story.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// End after the story instead of leaving everything running until Ctrl-C.
    #[arg(long)]
    once: bool,
    /// Build the programs with the image profile (slow to build, fast to run) instead of dev.
    #[arg(long)]
    release: bool,
}

/// Where the story plays: a cluster, and the repository that it watches.
struct Stage {
    kubectl: Kubectl,
    heddle: Heddle,
    repository: MeshRepository,
    /// The embedded cluster; none with KUBECONFIG.
    embedded: Option<Cluster>,
}

pub(crate) async fn run(arguments: Arguments) -> Result<()> {
    let Arguments { once, release } = arguments;
    let mut tell = Narrator::new();
    let stage = prepare(&mut tell, release).await?;
    commit_becomes_mesh(&mut tell, &stage).await?;
    look_at_the_traffic(&mut tell, &stage)?;
    second_commit(&mut tell, &stage).await?;
    drift(&mut tell, &stage).await?;
    tell.chapter("That was Heddle");
    tell.say(&format!(
        "Look around: export KUBECONFIG={}",
        stage.kubectl.kubeconfig().display()
    ));
    tell.say(&format!(
        "Commit to the mesh repository: git clone {}",
        stage.repository.url()
    ));
    if stage.embedded.is_some() {
        tell.say(&format!("Remove the cluster: cargo xtask down --name {CLUSTER}"));
    }
    if !once {
        tell.say("The repository is served until you press Ctrl-C; the cluster stays.");
        tokio::signal::ctrl_c().await?;
    }
    Ok(())
}

async fn prepare(tell: &mut Narrator, release: bool) -> Result<Stage> {
    tell.chapter("A Kubernetes, and two workloads that know nothing of a mesh");
    let profile = if release { "image" } else { "dev" };
    let given = std::env::var_os("KUBECONFIG")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from);
    packages::ensure(host::BUILD_PACKAGES, Progress::Shown)?;
    lint::cargo(&["build", "--workspace", "--bins", "--profile", profile])?;
    let (kubeconfig, embedded) = match given {
        Some(path) => {
            tell.say(&format!("Using the cluster of KUBECONFIG ({}). Its nodes must be able to pull the images of `cargo xtask images`.", path.display()));
            (path, None)
        }
        None => {
            packages::ensure(host::CLUSTER_PACKAGES, Progress::Shown)?;
            let cluster =
                Cluster::up(ClusterOptions::new(CLUSTER, Mode::Full).with_progress(Progress::Shown)).await?;
            images::build_and_load(profile, images::Target::Cluster(cluster.clone()), &[]).await?;
            (cluster.kubeconfig_path(), Some(cluster))
        }
    };
    let tools = Tools::ensure(&[Program::Kubectl], Progress::Shown)?;
    let kubectl = Kubectl::new(tools.path(Program::Kubectl), &kubeconfig);
    let folder = if release { "image" } else { "debug" };
    let target = lint::target_dir();
    let heddle = Heddle::new(target.join(folder).join("heddle"), &kubeconfig);
    let repository = MeshRepository::serve(embedded.as_ref()).await?;
    tell.step(
        "Deploying payments-api, checkout (calls it 20 times a second) and, in another namespace, batch",
    );
    story::reset(&kubectl)?;
    kubectl.apply(PAYMENTS)?;
    for (namespace, deployment) in [
        ("payments", "payments-api"),
        ("payments", "checkout"),
        ("legacy", "batch"),
    ] {
        kubectl.rollout_status(namespace, deployment)?;
    }
    tell.done();
    Ok(Stage {
        kubectl,
        heddle,
        repository,
        embedded,
    })
}

async fn commit_becomes_mesh(tell: &mut Narrator, stage: &Stage) -> Result<()> {
    let Stage {
        kubectl,
        heddle,
        repository,
        ..
    } = stage;
    tell.chapter("A commit becomes a mesh");
    tell.file("clusters/production/mesh.yaml", FIRST_COMMIT[0].1);
    let commit = repository.commit(&FIRST_COMMIT, "A mesh for payments")?;
    tell.say(&format!("Committed {commit} and pushed to {}.", repository.url()));
    tell.step("Installing the reconciler: its CRD, its service account, one Deployment");
    story::install_reconciler(kubectl, heddle)?;
    tell.done();
    tell.step("Pointing a Mesh object at the repository, and waiting until it is Ready");
    story::point_at(kubectl, &repository.url())?;
    for line in story::wait_applied(kubectl, &commit, Duration::from_secs(240)).await? {
        tell.detail(&line);
    }
    tell.done();
    tell.step("Waiting until every pod of payments has been rolled out with the proxy");
    story::wait_all_meshed(kubectl, "payments", Duration::from_secs(240)).await?;
    tell.done();
    for pod in workloads::pods(kubectl, "payments")? {
        tell.detail(&format!("{} has the proxy: {}", pod.name, pod.meshed));
    }
    tell.command("heddle status", &heddle.stdout(&["status"])?);
    ensure!(
        heddle.stdout(&["status"])?.contains(&commit),
        "heddle status does not name commit {commit}"
    );
    Ok(())
}

fn look_at_the_traffic(tell: &mut Narrator, stage: &Stage) -> Result<()> {
    let Stage {
        kubectl, embedded, ..
    } = stage;
    tell.chapter("Requests flow over mutual TLS");
    tell.step("Asking the proxies on both sides, until they have seen meshed and unmeshed requests");
    let seen = story::wait_traffic(kubectl, Duration::from_secs(60))?;
    tell.done();
    for line in seen.lines() {
        tell.detail(&line);
    }
    if let Some(cluster) = embedded {
        tell.step("Capturing five seconds of packets between the pods");
        let bytes = capture::between_pods(cluster, Duration::from_secs(5))?;
        tell.done();
        ensure!(
            !capture::contains(&bytes, SECRET_TEXT),
            "the capture shows the meshed client's text {SECRET_TEXT:?}"
        );
        ensure!(
            capture::contains(&bytes, PLAIN_TEXT),
            "the capture does not even show the unmeshed client's text"
        );
        tell.detail(&format!("{} bytes captured", bytes.len()));
        tell.detail(&format!("the meshed client's `{SECRET_TEXT}` is nowhere in them"));
        tell.detail(&format!(
            "the unmeshed client's `{PLAIN_TEXT}` is: plaintext, and shown as such above"
        ));
    }
    Ok(())
}

async fn second_commit(tell: &mut Narrator, stage: &Stage) -> Result<()> {
    let Stage {
        kubectl,
        heddle,
        repository,
        ..
    } = stage;
    tell.chapter("A second commit changes an annotation");
    let (path, text) = FIRST_COMMIT[0];
    let changed = text.replace(
        "{linkerd.io/inject: enabled}",
        "{linkerd.io/inject: enabled, config.linkerd.io/proxy-memory-limit: 250Mi}",
    );
    ensure!(changed != text, "the first commit has no annotation to change");
    let clone = repository.worktree(&[(path, &changed)])?;
    let folder = clone.path().to_str().context("paths are UTF-8")?;
    let plan = heddle.run(&["plan", "--repo", folder, "--path", "clusters/production"])?;
    ensure!(
        plan.code == Some(1),
        "heddle plan ended with {:?}, expected 1: {}",
        plan.code,
        plan.stderr
    );
    tell.command("heddle plan --repo . --path clusters/production", &plan.stdout);
    let before = workloads::pods(kubectl, "payments")?;
    let commit = repository.commit(&[(path, &changed)], "Give the proxies of payments 250 MiB")?;
    tell.step(&format!("Pushed {commit}; waiting for the rollout"));
    story::wait_applied(kubectl, &commit, Duration::from_secs(120)).await?;
    story::wait_replaced(kubectl, "payments", &before, Duration::from_secs(180)).await?;
    tell.done();
    let again = heddle.run(&["plan", "--repo", folder, "--path", "clusters/production"])?;
    ensure!(
        again.code == Some(0) && again.stdout.trim().is_empty(),
        "a second plan is not empty: {}",
        again.stdout
    );
    tell.detail("the same plan again prints nothing and exits 0");
    Ok(())
}

async fn drift(tell: &mut Narrator, stage: &Stage) -> Result<()> {
    let Stage { kubectl, .. } = stage;
    tell.chapter("Somebody edits an object by hand");
    let patch = r#"{"spec":{"accessPolicy":"deny"}}"#;
    kubectl.run(&[
        "patch",
        "server.policy.linkerd.io",
        "payments-api",
        "-n",
        "payments",
        "--type=merge",
        "-p",
        patch,
    ])?;
    tell.say(&format!("kubectl patch server payments-api: {patch}"));
    tell.step("Waiting for the repair");
    story::wait_access_policy(kubectl, "all-unauthenticated", Duration::from_secs(60)).await?;
    tell.done();
    Ok(())
}
