//! CRDs of other projects, from the Go modules that publish them, through Go's module cache.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams};
use serde::Deserialize;
use serde_json::Value;

use crate::command::run_within;
use crate::wait::{self, Look};

const GATEWAY_API: &str = "sigs.k8s.io/gateway-api@v1.6.3";
const CERT_MANAGER: &str = "github.com/cert-manager/cert-manager@v1.21.2";
const PROMETHEUS_OPERATOR: &str = "github.com/prometheus-operator/prometheus-operator@v0.85.0";

/// Fetching a module that the cache lacks.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);

/// How long the API server may take to serve a new kind.
const ESTABLISHED_LIMIT: Duration = Duration::from_secs(30);

/// Gateway API, standard channel.
pub fn gateway_api() -> Result<Vec<Value>> {
    from_folder(GATEWAY_API, "config/crd/standard")
}

/// Gateway API, experimental channel (a superset of the standard one).
pub fn gateway_api_experimental() -> Result<Vec<Value>> {
    from_folder(GATEWAY_API, "config/crd/experimental")
}

/// cert-manager: certificates, requests, issuers, and ACME's orders and challenges.
pub fn cert_manager() -> Result<Vec<Value>> {
    from_folder(CERT_MANAGER, "deploy/crds")
}

/// The Prometheus operator's PodMonitor and ServiceMonitor.
pub fn prometheus_operator() -> Result<Vec<Value>> {
    let all = from_folder(PROMETHEUS_OPERATOR, "example/prometheus-operator-crd")?;
    let wanted = [
        "podmonitors.monitoring.coreos.com",
        "servicemonitors.monitoring.coreos.com",
    ];
    Ok(all
        .into_iter()
        .filter(|crd| wanted.contains(&name(crd)))
        .collect())
}

/// Applies CRDs and waits until the API server serves them.
pub async fn apply(client: &kube::Client, crds: &[Value]) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let params = PatchParams::apply("heddle-tests").force();
    for crd in crds {
        let name = name(crd);
        api.patch(name, &params, &Patch::Apply(crd))
            .await
            .with_context(|| format!("failed to apply CRD {name}"))?;
    }
    for crd in crds {
        let name = name(crd);
        wait::until(format!("CRD {name} to be established"), ESTABLISHED_LIMIT, || {
            established(&api, name)
        })
        .await?;
    }
    Ok(())
}

async fn established(api: &Api<CustomResourceDefinition>, name: &str) -> Look<()> {
    let crd = match api.get(name).await {
        Ok(crd) => crd,
        Err(error) => return Look::NotYet(error.to_string()),
    };
    let conditions = crd
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    if conditions
        .iter()
        .any(|condition| condition.type_ == "Established" && condition.status == "True")
    {
        return Look::Done(());
    }
    let shown = conditions
        .iter()
        .map(|condition| format!("{}={}", condition.type_, condition.status));
    Look::NotYet(format!("conditions: {}", shown.collect::<Vec<_>>().join(", ")))
}

/// All CRDs in the YAML files of a module's folder.
fn from_folder(module: &str, folder: &str) -> Result<Vec<Value>> {
    let folder = download(module)?.join(folder);
    let entries =
        std::fs::read_dir(&folder).with_context(|| format!("failed to list {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut crds = Vec::new();
    for file in files {
        crds.extend(
            documents(&file)?
                .into_iter()
                .filter(|object| object["kind"] == "CustomResourceDefinition"),
        );
    }
    if crds.is_empty() {
        bail!("{module} has no CRDs in {}", folder.display());
    }
    Ok(crds)
}

fn documents(file: &Path) -> Result<Vec<Value>> {
    let shown = || format!("failed to read {}", file.display());
    let text = std::fs::read_to_string(file).with_context(shown)?;
    serde_yaml::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).with_context(shown))
        .collect()
}

/// The folder of a module in Go's cache, fetched if it is not there.
fn download(module: &str) -> Result<PathBuf> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Downloaded {
        dir: PathBuf,
    }
    // Outside any module: the versions are those named here, whatever a go.mod around this process says.
    let mut go = Command::new("go");
    go.args(["mod", "download", "-json", module])
        .current_dir(std::env::temp_dir())
        .env("GOWORK", "off");
    let answer = run_within(&mut go, DOWNLOAD_LIMIT)
        .with_context(|| format!("failed to fetch the Go module {module}"))?;
    let downloaded: Downloaded = serde_json::from_str(&answer)
        .with_context(|| format!("failed to understand what go says of {module}"))?;
    Ok(downloaded.dir)
}

fn name(crd: &Value) -> &str {
    crd["metadata"]["name"].as_str().unwrap_or_default()
}
