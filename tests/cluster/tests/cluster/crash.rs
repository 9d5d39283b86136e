//! Must show 5: kill -9 of the reconciler at any step of the first apply, then a restart, ends as an undisturbed run.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};
use heddle_tests_cluster::{FIRST_COMMIT, PAYMENTS, heddle::Running, story};
use heddle_tests_harness::audit::AuditLog;
use serde_json::Value;

use crate::{stage::Stage, story::is_own};

/// After how many of its own writes the reconciler is killed; the first apply makes about fifty.
const KILL_AFTER: [usize; 4] = [1, 9, 38, 47];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_step_it_ends_in_the_same_state() -> Result<()> {
    let stage = Stage::take().await?;
    let commit = stage.repository.commit(&FIRST_COMMIT, "A mesh for payments")?;
    let logs = tempfile::tempdir()?;
    let start = |name: &str| -> Result<Running> {
        let cache = logs.path().join("cache");
        let cache = cache.to_str().unwrap_or_default().to_owned();
        let url = stage.repository.url();
        let arguments = [
            "run",
            "--repo",
            &url,
            "--ref",
            "main",
            "--path",
            "clusters/production",
            "--interval",
            "1s",
            "--admin-addr",
            "127.0.0.1:19994",
            "--cache-dir",
            &cache,
        ];
        stage.heddle.start(&arguments, &logs.path().join(name))
    };

    begin(&stage)?;
    let undisturbed = start("undisturbed.log")?;
    finish(&stage, &commit, &undisturbed).await?;
    drop(undisturbed);
    let expected = state(&stage)?;
    ensure!(expected.len() > 20, "the mesh is more than {:?}", expected.keys());

    for kill_after in KILL_AFTER {
        begin(&stage)?;
        let audit = AuditLog::from_now(stage.cluster.audit_log_path())?;
        let mut first = start(&format!("killed-after-{kill_after}.log"))?;
        wait_writes(&audit, kill_after, &mut first)?;
        first.kill()?;
        let second = start(&format!("restarted-after-{kill_after}.log"))?;
        finish(&stage, &commit, &second).await?;
        drop(second);
        let actual = state(&stage)?;
        for key in expected.keys().chain(actual.keys()) {
            ensure!(
                expected.get(key) == actual.get(key),
                "killed after {kill_after} writes, {key} differs:\nundisturbed {:?}\nkilled      {:?}",
                expected.get(key).map(Value::to_string),
                actual.get(key).map(Value::to_string)
            );
        }
    }
    Ok(())
}

/// The cluster as before the first commit, with the workloads running.
fn begin(stage: &Stage) -> Result<()> {
    story::reset(&stage.kubectl)?;
    stage.kubectl.apply(PAYMENTS)?;
    let crds = stage.heddle.stdout(&["install", "--crds"])?;
    stage.kubectl.apply(&crds)?;
    stage.kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd/meshes.heddle.dev",
        "--timeout=60s",
    ])?;
    Ok(())
}

async fn finish(stage: &Stage, commit: &str, running: &Running) -> Result<()> {
    let applied = story::wait_applied(&stage.kubectl, commit, Duration::from_secs(240)).await;
    let meshed = story::wait_all_meshed(&stage.kubectl, "payments", Duration::from_secs(240)).await;
    match (applied, meshed) {
        (Ok(_), Ok(_)) => Ok(()),
        (Err(error), _) | (_, Err(error)) => bail!("{error:#}\nthe reconciler's log:\n{}", running.log()),
    }
}

/// Polls quickly: the kill should come at that write, not after the next ones.
fn wait_writes(audit: &AuditLog, count: usize, running: &mut Running) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    loop {
        let own = audit.writes()?.iter().filter(|write| is_own(write)).count();
        if own >= count {
            return Ok(());
        }
        if let Some(status) = running.ended()? {
            bail!("the reconciler ended by itself ({status}):\n{}", running.log());
        }
        ensure!(
            Instant::now() < deadline,
            "only {own} of {count} writes after two minutes:\n{}",
            running.log()
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Everything that Heddle manages, without what differs from one cluster life to the next.
fn state(stage: &Stage) -> Result<BTreeMap<String, Value>> {
    let mut objects = BTreeMap::new();
    let kinds = "customresourcedefinitions,namespaces,clusterroles,clusterrolebindings,roles,rolebindings,serviceaccounts,services,configmaps,deployments,mutatingwebhookconfigurations,validatingwebhookconfigurations,servers.policy.linkerd.io";
    let list = stage
        .kubectl
        .get(&[kinds, "-A", "-l", "app.kubernetes.io/managed-by=heddle"])?;
    for object in list["items"].as_array().into_iter().flatten() {
        let text = |pointer: &str| {
            object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let key = format!(
            "{} {}/{}",
            text("/kind"),
            text("/metadata/namespace"),
            text("/metadata/name")
        );
        let mut object = object.clone();
        strip(&mut object);
        objects.insert(key, object);
    }
    Ok(objects)
}

fn strip(object: &mut Value) {
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in [
            "uid",
            "resourceVersion",
            "creationTimestamp",
            "generation",
            "managedFields",
        ] {
            metadata.remove(key);
        }
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
            annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
        }
    }
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
    }
    // Addresses and certificates belong to one cluster's life.
    if let Some(spec) = object["spec"].as_object_mut() {
        for key in ["clusterIP", "clusterIPs"] {
            spec.remove(key);
        }
    }
    for webhook in object["webhooks"].as_array_mut().into_iter().flatten() {
        if let Some(config) = webhook["clientConfig"].as_object_mut() {
            config.remove("caBundle");
        }
    }
}
