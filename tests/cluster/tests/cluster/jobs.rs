//! Pods that come to an end: their first request passes, and the proxy does not keep them from ending.

use std::time::Duration;

use anyhow::{Result, ensure};
use heddle_tests_harness::wait::{self, Look};
use serde_json::{Value, json};

use crate::stage::Stage;

const LIMIT: Duration = Duration::from_secs(90);

/// Both kinds of sidecar, in the namespace that the story has meshed.
pub(crate) async fn complete(stage: &Stage) -> Result<()> {
    let plain = [
        ("config.beta.linkerd.io/proxy-enable-native-sidecar", "false"),
        ("config.linkerd.io/proxy-admin-shutdown", "enabled"),
    ];
    stage.kubectl.apply(&job("native", &[], &[]).to_string())?;
    let shutdown = ["--then-post", "http://127.0.0.1:4191/shutdown"];
    stage
        .kubectl
        .apply(&job("plain", &plain, &shutdown).to_string())?;
    for (name, proxy_is_in) in [("native", "initContainers"), ("plain", "containers")] {
        completes(stage, name, proxy_is_in).await?;
    }
    stage
        .kubectl
        .run(&["delete", "job", "-n", "payments", "native", "plain"])?;
    Ok(())
}

/// A Job whose one request must succeed, at once.
fn job(name: &str, annotations: &[(&str, &str)], more: &[&str]) -> Value {
    let annotations: serde_json::Map<String, Value> = annotations
        .iter()
        .map(|(name, value)| ((*name).to_owned(), json!(value)))
        .collect();
    let url = "http://payments-api.payments.svc.cluster.local:8080/charge";
    let arguments = [&["get", "--url", url], more].concat();
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "payments"},
        "spec": {
            // The first request passes, or the test fails.
            "backoffLimit": 0,
            "template": {
                "metadata": {"annotations": annotations},
                "spec": {
                    "serviceAccountName": "checkout",
                    "restartPolicy": "Never",
                    "containers": [{
                        "name": "app",
                        "image": "heddle.dev/test-http:0.1.0",
                        "imagePullPolicy": "Never",
                        "args": arguments,
                    }],
                },
            },
        },
    })
}

async fn completes(stage: &Stage, name: &str, proxy_is_in: &str) -> Result<()> {
    let pods = ["pods", "-n", "payments", "-l", &format!("job-name={name}")].map(ToOwned::to_owned);
    let pods = pods.each_ref().map(String::as_str);
    wait::until(format!("Job {name} to complete"), LIMIT, || async {
        let job = match stage.kubectl.get(&["job", "-n", "payments", name]) {
            Ok(job) => job,
            Err(error) => return Look::NotYet(error.to_string()),
        };
        let status = |kind: &str| {
            let conditions = job["status"]["conditions"].as_array();
            conditions
                .into_iter()
                .flatten()
                .any(|condition| condition["type"] == kind && condition["status"] == "True")
        };
        if status("Complete") {
            return Look::Done(());
        }
        let pods = stage.kubectl.get(&pods).unwrap_or_default();
        let statuses = pods.pointer("/items/0/status").cloned().unwrap_or_default();
        Look::NotYet(format!(
            "failed: {}, its pod's status: {statuses}",
            status("Failed")
        ))
    })
    .await?;
    let pods = stage.kubectl.get(&pods)?;
    let containers = pods.pointer(&format!("/items/0/spec/{proxy_is_in}"));
    let is_meshed = containers.and_then(Value::as_array).is_some_and(|all| {
        all.iter()
            .any(|one| one["name"] == heddle_mesh::port::PROXY_CONTAINER)
    });
    ensure!(is_meshed, "the proxy is not among the {proxy_is_in} of {pods}");
    Ok(())
}
