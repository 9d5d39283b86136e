//! CNI mode on a whole Kubernetes: the installer, the plugin under the real container runtime, and the repair of pods
//! that lost the race against it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_cluster::{PAYMENTS, kubectl::Kubectl, story, workloads};
use heddle_tests_harness::wait::{self, Look};
use serde_json::Value;

use crate::stage::Stage;

const MINUTES: Duration = Duration::from_secs(180);
const SECONDS: Duration = Duration::from_secs(60);

/// The node's folders, as they were before. Dropped, the network configuration is that again, whatever has happened.
struct Node {
    conf: PathBuf,
    original: Vec<u8>,
    net_dir: PathBuf,
    bin_dir: PathBuf,
}

impl Node {
    fn of(stage: &Stage) -> Result<Self> {
        let net_dir = stage.cluster.cni_net_dir();
        let conf = fs::read_dir(&net_dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "conflist"))
            .context("the node has a network configuration")?;
        let node = Self {
            original: fs::read(&conf)?,
            conf,
            net_dir,
            bin_dir: stage.cluster.cni_bin_dir(),
        };
        ensure!(
            !node.has_plugin()?,
            "an earlier test left the plugin in {}",
            node.conf.display()
        );
        Ok(node)
    }

    fn has_plugin(&self) -> Result<bool> {
        let document: Value = serde_json::from_slice(&fs::read(&self.conf)?)?;
        let last = document["plugins"].as_array().and_then(|plugins| plugins.last());
        Ok(last.is_some_and(|plugin| plugin["type"] == "linkerd-cni"))
    }

    async fn wait_plugin(&self, expected: bool) -> Result<()> {
        let what = format!(
            "the plugin to be {} {}",
            ["out of", "in"][usize::from(expected)],
            self.conf.display()
        );
        wait::until(what, SECONDS, || async {
            match self.has_plugin() {
                Ok(found) if found == expected => Look::Done(()),
                found => Look::NotYet(format!("{found:?}")),
            }
        })
        .await?;
        Ok(())
    }

    /// As the other plugin's own installer would, at its next start.
    fn write_anew(&self) -> Result<()> {
        let temporary = self.net_dir.join(".new");
        fs::write(&temporary, &self.original)?;
        Ok(fs::rename(&temporary, &self.conf)?)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.has_plugin().unwrap_or(true) {
            let _ = self.write_anew();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cni_plugin_redirects_pods_and_those_it_missed_are_repaired() -> Result<()> {
    let stage = Stage::take().await?;
    let node = Node::of(&stage)?;
    install(&stage, &node)?;
    node.wait_plugin(true).await?;

    // Their namespace asks for injection before they are there, so that all pods are meshed from the start.
    let namespace = ["namespace", "payments"];
    stage.kubectl.run(&[&["create"], &namespace[..]].concat())?;
    stage
        .kubectl
        .run(&[&["annotate"], &namespace[..], &["linkerd.io/inject=enabled"]].concat())?;
    stage.kubectl.apply(PAYMENTS)?;
    story::wait_all_meshed(&stage.kubectl, "payments", MINUTES).await?;
    needs_no_capability(&stage.kubectl)?;
    let traffic = story::wait_traffic(&stage.kubectl, SECONDS)?;
    ensure!(!traffic.inbound.is_empty(), "{traffic:#?}");

    node.write_anew()?;
    node.wait_plugin(true).await?;
    kill_installer(&stage)?;
    node.write_anew()?;
    node.wait_plugin(true).await?;

    missed_pods_are_repaired(&stage, &node).await?;

    let daemonset = ["daemonset", "linkerd-cni", "-n", "linkerd-cni", "--wait=false"];
    stage.kubectl.run(&[&["delete"], &daemonset[..]].concat())?;
    node.wait_plugin(false).await?;
    Ok(())
}

fn install(stage: &Stage, node: &Node) -> Result<()> {
    let Stage { kubectl, heddle, .. } = stage;
    let (net_dir, bin_dir) = (node.net_dir.display(), node.bin_dir.display());
    kubectl.apply(&heddle.stdout(&[
        "install-cni",
        &format!("--dest-cni-net-dir={net_dir}"),
        &format!("--dest-cni-bin-dir={bin_dir}"),
    ])?)?;
    kubectl.apply(&heddle.stdout(&["install", "--crds"])?)?;
    let mesh = heddle.stdout(&[
        "install",
        "--linkerd-cni-enabled",
        "--set",
        "networkValidator.timeout=2s",
    ])?;
    kubectl.apply(&mesh)?;
    let ended = heddle.run(&["check", "--wait", "120s"])?;
    ensure!(
        ended.code == Some(0),
        "heddle check: {}{}",
        ended.stdout,
        ended.stderr
    );
    ensure!(ended.stdout.contains("linkerd-cni-plugin"), "{}", ended.stdout);
    Ok(())
}

/// What CNI mode is for: no container of a meshed pod may change its network.
fn needs_no_capability(kubectl: &Kubectl) -> Result<()> {
    let pods = kubectl.get(&["pods", "-n", "payments"])?;
    let text = pods["items"].to_string();
    ensure!(!text.contains("NET_ADMIN"), "a pod has NET_ADMIN: {text}");
    ensure!(
        !text.contains("\"linkerd-init\""),
        "a pod has linkerd-init: {text}"
    );
    ensure!(
        text.contains("\"linkerd-network-validator\""),
        "no pod has a validator: {text}"
    );
    Ok(())
}

/// As the kernel does when memory is short: nothing is cleaned up. The kubelet starts it again.
fn kill_installer(stage: &Stage) -> Result<()> {
    let ours = |process: &Path| -> Option<bool> {
        let command = fs::read(process.join("cmdline")).ok()?;
        let cgroup = fs::read_to_string(process.join("cgroup")).ok()?;
        let named = command.starts_with(b"/heddle-cni\0install\0");
        Some(named && cgroup.contains(&format!("/heddle-cluster-{}/", stage.cluster.name())))
    };
    let processes = fs::read_dir("/proc")?.filter_map(|entry| Some(entry.ok()?.path()));
    let found: Vec<_> = processes.filter(|process| ours(process) == Some(true)).collect();
    let [process] = found.as_slice() else {
        anyhow::bail!("expected one installer in this cluster, found {found:?}");
    };
    let pid = process.file_name().context("a process has a number")?;
    let status = Command::new("kill").arg("-9").arg(pid).status()?;
    ensure!(status.success(), "kill -9 failed");
    Ok(())
}

async fn missed_pods_are_repaired(stage: &Stage, node: &Node) -> Result<()> {
    let kubectl = &stage.kubectl;
    let select = |selector: &str| {
        let patch = format!(r#"{{"spec":{{"template":{{"spec":{{"nodeSelector":{selector}}}}}}}}}"#);
        kubectl
            .run(&[
                "patch",
                "daemonset/linkerd-cni",
                "-n",
                "linkerd-cni",
                "--type=merge",
                "-p",
                &patch,
            ])
            .map(drop)
    };
    select(r#"{"heddle.dev/no-such-node":"true"}"#)?;
    node.wait_plugin(false).await?;
    wait::until("program and kubeconfig to be gone", SECONDS, || async {
        let left = [
            node.bin_dir.join("linkerd-cni"),
            node.net_dir.join("ZZZ-linkerd-cni-kubeconfig"),
        ]
        .map(|path| path.exists());
        match left {
            [false, false] => Look::Done(()),
            left => Look::NotYet(format!("{left:?}")),
        }
    })
    .await?;

    let before = workloads::pods(kubectl, "payments")?;
    let checkout = |pods: &[workloads::Pod]| pods.iter().find(|pod| pod.app == "checkout").cloned();
    let old = checkout(&before).context("checkout has a pod")?;
    kubectl.run(&["delete", "pod", &old.name, "-n", "payments", "--wait=false"])?;
    wait::until(
        "a pod without redirection to be deleted, and its Event",
        SECONDS,
        || async {
            match kubectl.get(&["events.events.k8s.io", "-n", "payments"]) {
                Ok(list) => {
                    let items = list["items"].as_array().cloned().unwrap_or_default();
                    let repaired = items.iter().any(|event| {
                        let about = event["regarding"]["name"].as_str().unwrap_or_default();
                        event["reason"] == "LinkerdCNINotConfigured" && about.starts_with("checkout-")
                    });
                    if repaired {
                        Look::Done(())
                    } else {
                        Look::NotYet(format!("{} Events", items.len()))
                    }
                }
                Err(error) => Look::NotYet(error.to_string()),
            }
        },
    )
    .await?;

    select(r#"{"heddle.dev/no-such-node":null}"#)?;
    node.wait_plugin(true).await?;
    wait::until("checkout to run redirected", MINUTES, || async {
        match workloads::pods(kubectl, "payments").map(|pods| checkout(&pods)) {
            Ok(Some(pod)) if pod.meshed && pod.ready && pod.uid != old.uid => Look::Done(()),
            seen => Look::NotYet(format!("{seen:?}")),
        }
    })
    .await?;
    Ok(())
}
