//! The steps of the story and the states that they promise.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use heddle_tests_harness::wait::{self, Look};
use serde_json::Value;

use crate::{
    heddle::Heddle,
    kubectl::Kubectl,
    metrics::{self, Series},
    workloads::{self, Pod},
};

/// Name of the story's Mesh object.
pub const MESH: &str = "production";

/// Removes what an earlier story left, so that each begins alike: the Mesh, the mesh's namespaces, the workloads and
/// everything that Heddle manages.
pub fn reset(kubectl: &Kubectl) -> Result<()> {
    // The reconciler first: it would put the rest back.
    kubectl.run(&[
        "delete",
        "namespace",
        "heddle-system",
        "--ignore-not-found",
        "--timeout=120s",
    ])?;
    kubectl.run(&[
        "delete",
        "mutatingwebhookconfiguration,validatingwebhookconfiguration",
        "-l",
        MANAGED,
        "--ignore-not-found",
    ])?;
    kubectl.run(&[
        "delete",
        "namespace",
        "linkerd",
        "payments",
        "legacy",
        "--ignore-not-found",
        "--timeout=120s",
    ])?;
    // After the pods that it set up. Its installer takes the plugin away as it ends.
    kubectl.run(&[
        "delete",
        "namespace",
        "linkerd-cni",
        "--ignore-not-found",
        "--timeout=120s",
    ])?;
    for kind in ["clusterrolebinding", "clusterrole", "crd"] {
        kubectl.run(&[
            "delete",
            kind,
            "-l",
            MANAGED,
            "--ignore-not-found",
            "--timeout=120s",
        ])?;
    }
    Ok(())
}

const MANAGED: &str = "app.kubernetes.io/managed-by=heddle";

/// Puts the reconciler into the cluster, and nothing of the mesh: that comes from Git.
pub fn install_reconciler(kubectl: &Kubectl, heddle: &Heddle) -> Result<()> {
    kubectl.apply(&heddle.stdout(&["install", "--crds"])?)?;
    kubectl.apply(&heddle.stdout(&["install", "--reconciler"])?)?;
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd/meshes.heddle.dev",
        "--timeout=60s",
    ])?;
    kubectl.rollout_status("heddle-system", "heddle")
}

/// Creates the Mesh object.
pub fn point_at(kubectl: &Kubectl, url: &str) -> Result<()> {
    kubectl
        .apply(&format!(
            "apiVersion: heddle.dev/v1alpha1\nkind: Mesh\nmetadata: {{name: {MESH}}}\nspec:\n  source: {{git: {{url: \"{url}\", ref: {{branch: main}}}}}}\n  path: clusters/production\n  interval: 1s\n"
        ))
        .map(drop)
}

/// Waits until the Mesh is Ready at `commit`; returns what its Events said on the way.
pub async fn wait_applied(kubectl: &Kubectl, commit: &str, limit: Duration) -> Result<Vec<String>> {
    wait::until(format!("Mesh {MESH} to be Ready at {commit}"), limit, || async {
        let mesh = match kubectl.get(&["mesh.heddle.dev", MESH]) {
            Ok(mesh) => mesh,
            Err(error) => return Look::NotYet(error.to_string()),
        };
        let ready = condition(&mesh, "Ready");
        let applied = mesh["status"]["lastAppliedRevision"].as_str().unwrap_or_default();
        if applied.contains(commit) && ready.is_some_and(|ready| ready["status"] == "True") {
            return Look::Done(());
        }
        Look::NotYet(format!(
            "lastAppliedRevision is `{applied}`, conditions are {}",
            mesh["status"]["conditions"]
        ))
    })
    .await?;
    events(kubectl, MESH)
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    object["status"]["conditions"]
        .as_array()?
        .iter()
        .find(|condition| condition["type"] == kind)
}

/// Reasons and messages of the Events about the object called `name`, oldest first.
pub fn events(kubectl: &Kubectl, name: &str) -> Result<Vec<String>> {
    let selector = format!("involvedObject.name={name}");
    let list = kubectl.get(&[
        "events",
        "-A",
        "--field-selector",
        &selector,
        "--sort-by=.metadata.creationTimestamp",
    ])?;
    let text = |event: &Value| {
        format!(
            "{}: {}",
            event["reason"].as_str().unwrap_or_default(),
            event["message"].as_str().unwrap_or_default()
        )
    };
    Ok(list["items"].as_array().into_iter().flatten().map(text).collect())
}

/// Waits until every pod of `namespace` carries the proxy and is ready.
pub async fn wait_all_meshed(kubectl: &Kubectl, namespace: &str, limit: Duration) -> Result<Vec<Pod>> {
    let what = format!("every pod of {namespace} to be ready with its proxy");
    Ok(wait::until(what, limit, || async {
        match workloads::pods(kubectl, namespace) {
            Ok(pods) if !pods.is_empty() && pods.iter().all(|pod| pod.meshed && pod.ready) => {
                Look::Done(pods)
            }
            Ok(pods) => Look::NotYet(format!("{pods:?}")),
            Err(error) => Look::NotYet(error.to_string()),
        }
    })
    .await?)
}

/// Waits until none of `before` is left and the pods that came instead are meshed and ready.
pub async fn wait_replaced(
    kubectl: &Kubectl,
    namespace: &str,
    before: &[Pod],
    limit: Duration,
) -> Result<()> {
    let old: BTreeSet<&str> = before.iter().map(|pod| pod.uid.as_str()).collect();
    let what = format!("all pods of {namespace} to be replaced");
    wait::until(what, limit, || async {
        match workloads::pods(kubectl, namespace) {
            Ok(pods)
                if pods
                    .iter()
                    .all(|pod| pod.meshed && pod.ready && !old.contains(pod.uid.as_str())) =>
            {
                Look::Done(())
            }
            Ok(pods) => Look::NotYet(format!("{pods:?}")),
            Err(error) => Look::NotYet(error.to_string()),
        }
    })
    .await?;
    Ok(())
}

/// Waits until the Server of the story has this access policy again.
pub async fn wait_access_policy(kubectl: &Kubectl, expected: &str, limit: Duration) -> Result<()> {
    wait::until(
        format!("Server payments-api to say {expected} again"),
        limit,
        || async {
            match kubectl.get(&["server.policy.linkerd.io", "payments-api", "-n", "payments"]) {
                Ok(server) if server["spec"]["accessPolicy"] == expected => Look::Done(()),
                Ok(server) => Look::NotYet(format!("accessPolicy is {}", server["spec"]["accessPolicy"])),
                Err(error) => Look::NotYet(error.to_string()),
            }
        },
    )
    .await?;
    Ok(())
}

/// What the proxies on both sides count.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Requests that checkout's proxy sent over mutual TLS, with the identity that the server proved.
    pub outbound: Vec<Series>,
    /// Requests that payments-api's proxies received over mutual TLS, with the identity that the client proved.
    pub inbound: Vec<Series>,
    /// Requests that they received in plaintext.
    pub plaintext: Vec<Series>,
}

impl Traffic {
    /// One line a series, as a person would want to see it.
    pub fn lines(&self) -> Vec<String> {
        let line = |who: &str, series: &Series, keys: &[&str]| {
            let labels: Vec<String> = keys
                .iter()
                .map(|key| format!("{key}={:?}", series.label(key)))
                .collect();
            format!("{who}: {}{{{}}} {}", series.name, labels.join(","), series.value)
        };
        let outbound = self.outbound.iter().map(|one| {
            line(
                "checkout's proxy",
                one,
                &["direction", "tls", "server_id", "dst_service"],
            )
        });
        let inbound = self
            .inbound
            .iter()
            .map(|one| line("payments-api's proxy", one, &["direction", "tls", "client_id"]));
        let plaintext = self.plaintext.iter().map(|one| {
            line(
                "payments-api's proxy",
                one,
                &["direction", "tls", "no_tls_reason"],
            )
        });
        outbound.chain(inbound).chain(plaintext).collect()
    }
}

/// Waits until mutual TLS shows on both sides with the peer's identity, and the unmeshed client shows as plaintext.
pub fn wait_traffic(kubectl: &Kubectl, limit: Duration) -> Result<Traffic> {
    let deadline = Instant::now() + limit;
    loop {
        let traffic = traffic(kubectl)?;
        if !traffic.outbound.is_empty() && !traffic.inbound.is_empty() && !traffic.plaintext.is_empty() {
            return Ok(traffic);
        }
        if Instant::now() > deadline {
            bail!("after {} s the proxies still count {traffic:#?}", limit.as_secs());
        }
        std::thread::park_timeout(Duration::from_millis(500));
    }
}

fn traffic(kubectl: &Kubectl) -> Result<Traffic> {
    let mut traffic = Traffic::default();
    for pod in workloads::pods(kubectl, "payments")? {
        let series = metrics::scrape(kubectl, "payments", &pod.name)
            .with_context(|| format!("the proxy of {} does not answer", pod.name))?;
        let requests = series
            .into_iter()
            .filter(|one| one.name == "request_total" && one.value > 0.0);
        for one in requests {
            match (pod.app.as_str(), one.label("direction"), one.label("tls")) {
                ("checkout", "outbound", "true") if one.label("server_id") == identity("payments-api") => {
                    traffic.outbound.push(one);
                }
                ("payments-api", "inbound", "true") if one.label("client_id") == identity("checkout") => {
                    traffic.inbound.push(one);
                }
                // The kubelet's probes are plaintext too; what counts is that nothing plaintext shows as meshed.
                ("payments-api", "inbound", tls) if tls != "true" => traffic.plaintext.push(one),
                _ => {}
            }
        }
    }
    Ok(traffic)
}

fn identity(account: &str) -> String {
    format!("{account}.payments.serviceaccount.identity.linkerd.cluster.local")
}
