//! What the README promises, on a whole Kubernetes.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_cluster::{
    FIRST_COMMIT, PAYMENTS, PLAIN_TEXT, SECRET_TEXT, capture, metrics, story, workloads,
};
use heddle_tests_harness::audit::{AuditLog, Write};
use serde_json::Value;

use crate::{ask, jobs, stage::Stage};

const MINUTES: Duration = Duration::from_secs(240);

/// One test, because each part begins where the one before has ended, as a user's day does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_commit_becomes_a_running_mesh() -> Result<()> {
    let stage = Stage::take().await?;
    stage.kubectl.apply(PAYMENTS)?;
    for (namespace, deployment) in [
        ("payments", "payments-api"),
        ("payments", "checkout"),
        ("legacy", "batch"),
    ] {
        stage.kubectl.rollout_status(namespace, deployment)?;
    }
    ensure!(
        workloads::pods(&stage.kubectl, "payments")?
            .iter()
            .all(|pod| !pod.meshed),
        "nothing is meshed yet"
    );

    let commit = stage.repository.commit(&FIRST_COMMIT, "A mesh for payments")?;
    story::install_reconciler(&stage.kubectl, &stage.heddle)?;
    story::point_at(&stage.kubectl, &stage.repository.url())?;
    story::wait_applied(&stage.kubectl, &commit, MINUTES).await?;
    story::wait_all_meshed(&stage.kubectl, "payments", MINUTES).await?;

    status_names_the_commit(&stage, &commit)?;
    traffic_is_mutual_tls(&stage).await?;
    unmeshed_stay_unmeshed(&stage)?;
    nothing_changed_writes_nothing(&stage).await?;
    plan_is_what_run_does(&stage).await?;
    edits_by_hand_are_repaired(&stage).await?;
    denied_is_denied(&stage).await?;
    jobs::complete(&stage).await?;
    ask::the_control_plane(&stage)?;
    ask::the_proxies(&stage)?;
    Ok(())
}

fn status_names_the_commit(stage: &Stage, commit: &str) -> Result<()> {
    let table = stage.heddle.stdout(&["status"])?;
    ensure!(
        table.contains(commit),
        "heddle status does not name {commit}:\n{table}"
    );
    let json: Value = serde_json::from_str(&stage.heddle.stdout(&["status", "-o", "json"])?)?;
    ensure!(
        json.to_string().contains(commit),
        "heddle status -o json does not name {commit}: {json}"
    );
    Ok(())
}

async fn traffic_is_mutual_tls(stage: &Stage) -> Result<()> {
    story::wait_traffic(&stage.kubectl, Duration::from_secs(60))?;
    let bytes = capture::between_pods(&stage.cluster, Duration::from_secs(4))?;
    ensure!(
        capture::contains(&bytes, PLAIN_TEXT),
        "the capture shows no plaintext at all: it has seen nothing"
    );
    ensure!(
        !capture::contains(&bytes, SECRET_TEXT),
        "the meshed client's text crossed the network in plaintext"
    );
    Ok(())
}

fn unmeshed_stay_unmeshed(stage: &Stage) -> Result<()> {
    ensure!(
        workloads::pods(&stage.kubectl, "legacy")?
            .iter()
            .all(|pod| !pod.meshed),
        "a pod of `legacy` was injected"
    );
    for namespace in ["linkerd", "heddle-system"] {
        let pods = workloads::pods(&stage.kubectl, namespace)?;
        ensure!(
            !pods.is_empty() && pods.iter().all(|pod| !pod.meshed),
            "a pod of {namespace} was injected: {pods:?}"
        );
    }
    Ok(())
}

/// Must show 4: reconciling an unchanged commit makes no write, by the API server's own audit log.
async fn nothing_changed_writes_nothing(stage: &Stage) -> Result<()> {
    // Whatever the rollout still had to report is reported once nothing is being rolled out any more.
    let settled = settle(stage).await?;
    tokio::time::sleep(IDLE).await;
    let after = heddle_writes(stage)?;
    ensure!(
        after.len() == settled,
        "an unchanged commit (interval 1 s) was written: {:#?}",
        &after[settled..]
    );
    Ok(())
}

/// How long nothing must be written; several of the Mesh's intervals. This is the thing observed, not a wait for it.
const IDLE: Duration = Duration::from_secs(8);

/// Apart by this much, two equal counts say that nothing was written between them; two decisions' counts, what was decided.
const BETWEEN_COUNTS: Duration = Duration::from_secs(3);

async fn settle(stage: &Stage) -> Result<usize> {
    let mut last = heddle_writes(stage)?.len();
    for _ in 0..20 {
        tokio::time::sleep(BETWEEN_COUNTS).await;
        let now = heddle_writes(stage)?.len();
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    anyhow::bail!("the reconciler has not come to rest in 60 s: {last} writes so far")
}

/// What the reconciler has written so far. Dry runs store nothing.
fn heddle_writes(stage: &Stage) -> Result<Vec<Write>> {
    let all = AuditLog::from_start(stage.cluster.audit_log_path()).writes()?;
    let own: Vec<_> = all.into_iter().filter(is_own).collect();
    ensure!(
        !own.is_empty(),
        "the audit log knows no write of the reconciler at all, so counting them proves nothing"
    );
    Ok(own)
}

/// Whether a write is the reconciler's, and one that stores something.
pub(crate) fn is_own(write: &Write) -> bool {
    write.user_agent.starts_with("heddle/") && !write.is_dry_run()
}

/// Must show 3: the plan of a second commit lists exactly what `run` then does; a second plan is empty.
async fn plan_is_what_run_does(stage: &Stage) -> Result<()> {
    let (path, text) = FIRST_COMMIT[0];
    let changed = text.replace(
        "{linkerd.io/inject: enabled}",
        "{linkerd.io/inject: enabled, config.linkerd.io/proxy-memory-limit: 250Mi}",
    );
    let folder = stage.repository.worktree(&[(path, &changed)])?;
    let arguments = [
        "plan",
        "--repo",
        folder.path().to_str().context("UTF-8")?,
        "--path",
        "clusters/production",
        "-o",
        "json",
    ];
    let ended = stage.heddle.run(&arguments)?;
    ensure!(
        ended.code == Some(1),
        "a plan with changes exits 1, not {:?}: {}",
        ended.code,
        ended.stderr
    );
    let plan: Value = serde_json::from_str(&ended.stdout).context("plan -o json prints JSON")?;
    let mut planned = steps(&plan)?;
    planned.sort();
    let expected = vec![
        "patch Namespace payments".to_owned(),
        "restart Deployment payments/checkout".to_owned(),
        "restart Deployment payments/payments-api".to_owned(),
    ];
    ensure!(planned == expected, "planned {planned:?}, expected {expected:?}");

    let before_writes = heddle_writes(stage)?.len();
    let before_pods = workloads::pods(&stage.kubectl, "payments")?;
    let commit = stage
        .repository
        .commit(&[(path, &changed)], "Give the proxies of payments 250 MiB")?;
    story::wait_applied(&stage.kubectl, &commit, MINUTES).await?;
    story::wait_replaced(&stage.kubectl, "payments", &before_pods, MINUTES).await?;
    settle(stage).await?;
    let mut done: Vec<String> = heddle_writes(stage)?[before_writes..]
        .iter()
        .filter(|write| !write.uri.contains("/events") && !write.uri.contains("/meshes/"))
        .map(|write| write.uri.split('?').next().unwrap_or_default().to_owned())
        .collect();
    done.sort();
    let expected = [
        "/api/v1/namespaces/payments",
        "/apis/apps/v1/namespaces/payments/deployments/checkout",
        "/apis/apps/v1/namespaces/payments/deployments/payments-api",
    ];
    ensure!(done == expected, "run wrote {done:?}, expected {expected:?}");

    let again = stage.heddle.run(&arguments[..5])?;
    ensure!(
        again.code == Some(0) && again.stdout.trim().is_empty(),
        "the plan of what is applied exits {:?} and prints {:?}, expected 0 and nothing",
        again.code,
        again.stdout
    );
    Ok(())
}

/// The plan's steps that change something, as `action Kind [namespace/]name`.
fn steps(plan: &Value) -> Result<Vec<String>> {
    let steps = plan["steps"]
        .as_array()
        .with_context(|| format!("a plan has steps: {plan}"))?;
    let line = |step: &Value| {
        let text = |key: &str| {
            step[key]
                .as_str()
                .or_else(|| step["object"][key].as_str())
                .unwrap_or_default()
                .to_owned()
        };
        let name = match text("namespace").as_str() {
            "" => text("name"),
            namespace => format!("{namespace}/{}", text("name")),
        };
        format!("{} {} {name}", text("action").to_lowercase(), text("kind"))
    };
    let quiet = ["keep", "skip"];
    Ok(steps
        .iter()
        .map(line)
        .filter(|line| !quiet.iter().any(|word| line.starts_with(word)))
        .collect())
}

async fn edits_by_hand_are_repaired(stage: &Stage) -> Result<()> {
    let deny = r#"{"spec":{"accessPolicy":"deny"}}"#;
    let kubectl = &stage.kubectl;
    kubectl.run(&[
        "patch",
        "server.policy.linkerd.io",
        "payments-api",
        "-n",
        "payments",
        "--type=merge",
        "-p",
        deny,
    ])?;
    story::wait_access_policy(kubectl, "all-unauthenticated", Duration::from_secs(30)).await?;
    kubectl.run(&[
        "delete",
        "server.policy.linkerd.io",
        "payments-api",
        "-n",
        "payments",
    ])?;
    story::wait_access_policy(kubectl, "all-unauthenticated", Duration::from_secs(30)).await
}

/// The policy of the reference (Server, AuthorizationPolicy, MeshTLSAuthentication), committed: checkout may, others may not.
async fn denied_is_denied(stage: &Stage) -> Result<()> {
    let policy = "\
apiVersion: policy.linkerd.io/v1beta3
kind: Server
metadata: {name: payments-api, namespace: payments}
spec:
  podSelector: {matchLabels: {app: payments-api}}
  port: 8080
  proxyProtocol: HTTP/1
---
apiVersion: policy.linkerd.io/v1beta3
kind: AuthorizationPolicy
metadata: {name: payments-api-allow-checkout, namespace: payments}
spec:
  targetRef: {group: policy.linkerd.io, kind: Server, name: payments-api}
  requiredAuthenticationRefs: [{group: policy.linkerd.io, kind: MeshTLSAuthentication, name: checkout-sa}]
---
apiVersion: policy.linkerd.io/v1beta3
kind: MeshTLSAuthentication
metadata: {name: checkout-sa, namespace: payments}
spec: {identities: [checkout.payments.serviceaccount.identity.linkerd.cluster.local]}
";
    let commit = stage.repository.commit(
        &[(FIRST_COMMIT[1].0, policy)],
        "Only checkout may call payments-api",
    )?;
    story::wait_applied(&stage.kubectl, &commit, MINUTES).await?;
    let outcome = heddle_tests_harness::wait::until_ok("checkout to be let in and batch to be refused", Duration::from_secs(60), || async {
        let before = decisions(stage)?;
        tokio::time::sleep(BETWEEN_COUNTS).await;
        let after = decisions(stage)?;
        let grown = |key: &str| after.get(key).unwrap_or(&0.0) - before.get(key).unwrap_or(&0.0);
        ensure!(
            grown("allowed") > 0.0 && grown("denied") > 0.0 && grown("plaintext allowed") == 0.0,
            "between two counts {:.0} requests of checkout were allowed, {:.0} requests denied, {:.0} of others allowed",
            grown("allowed"),
            grown("denied"),
            grown("plaintext allowed"),
        );
        Ok::<_, anyhow::Error>(())
    })
    .await;
    Ok(outcome?)
}

/// What the proxies of payments-api have decided so far. The kubelet's probes are let in without a certificate.
fn decisions(stage: &Stage) -> Result<BTreeMap<&'static str, f64>> {
    let mut sums = BTreeMap::new();
    for pod in workloads::pods(&stage.kubectl, "payments")?
        .iter()
        .filter(|pod| pod.app == "payments-api")
    {
        let series = metrics::scrape(&stage.kubectl, "payments", &pod.name)?;
        for one in &series {
            let key = match (one.name.as_str(), one.label("tls"), one.label("authz_name")) {
                ("inbound_http_authz_allow_total", "true", "payments-api-allow-checkout") => "allowed",
                ("inbound_http_authz_allow_total", tls, name)
                    if tls != "true" && name == "payments-api-allow-checkout" =>
                {
                    "plaintext allowed"
                }
                ("inbound_http_authz_deny_total", _, _) => "denied",
                _ => continue,
            };
            *sums.entry(key).or_default() += one.value;
        }
    }
    Ok(sums)
}
