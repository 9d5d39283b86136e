//! Pods of the story: which are there, which are meshed.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::kubectl::Kubectl;

/// A pod, as far as the story asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its unique id: another one means that the pod was replaced.
    pub uid: String,
    /// Its label `app`.
    pub app: String,
    /// Whether it carries the proxy.
    pub meshed: bool,
    /// Whether all its containers are ready.
    pub ready: bool,
    /// Its stamp, when it is meshed.
    pub stamp: Option<String>,
}

/// The pods of a namespace that are not on their way out.
pub fn pods(kubectl: &Kubectl, namespace: &str) -> Result<Vec<Pod>> {
    let list = kubectl.get(&["pods", "-n", namespace])?;
    let items = list["items"].as_array().context("a list has items")?;
    let alive =
        |pod: &&Value| pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] != "Failed";
    Ok(items.iter().filter(alive).map(pod).collect())
}

fn pod(pod: &Value) -> Pod {
    let text = |pointer: &str| {
        pod.pointer(pointer)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let containers = |path: &str| pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
    let proxy = containers("/spec/initContainers").chain(containers("/spec/containers"));
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    Pod {
        name: text("/metadata/name"),
        uid: text("/metadata/uid"),
        app: text("/metadata/labels/app"),
        meshed: proxy
            .into_iter()
            .any(|container| container["name"] == heddle_mesh::port::PROXY_CONTAINER),
        ready: conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True"),
        stamp: pod["metadata"]["annotations"][heddle_mesh::annotation::PROXY_STAMP]
            .as_str()
            .map(str::to_owned),
    }
}
