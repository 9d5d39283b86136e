//! Resources as kubectl names them on a command line, and tables.

use std::collections::BTreeMap;

use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::core::Selector;

use crate::{
    cli::Failure,
    cluster::{Answer, Cluster},
    forward::{self, ForwardError},
    object::ObjectId,
};

/// Kinds that have pods: names, group and kind.
const KINDS: [(&[&str], &str, &str); 8] = [
    (&["po", "pod", "pods"], "", "Pod"),
    (&["deploy", "deployment", "deployments"], "apps", "Deployment"),
    (&["ds", "daemonset", "daemonsets"], "apps", "DaemonSet"),
    (&["sts", "statefulset", "statefulsets"], "apps", "StatefulSet"),
    (&["rs", "replicaset", "replicasets"], "apps", "ReplicaSet"),
    (
        &["rc", "replicationcontroller", "replicationcontrollers"],
        "",
        "ReplicationController",
    ),
    (&["job", "jobs"], "batch", "Job"),
    (&["svc", "service", "services"], "", "Service"),
];

/// Splits `KIND/NAME`.
///
/// # Errors
/// Another form.
pub fn split(resource: &str) -> Result<(&str, &str), Failure> {
    match resource.split_once('/') {
        Some((kind, name)) if !kind.is_empty() && !name.is_empty() && !name.contains('/') => Ok((kind, name)),
        _ => Err(Failure::message(format!(
            "`{resource}` names no resource: expected KIND/NAME, such as deploy/web"
        ))),
    }
}

/// The pods of a workload, or of a namespace with `ns/NAME`.
///
/// # Errors
/// An unknown kind, no such object, or what the API server says.
pub async fn pods(cluster: &Cluster, namespace: &str, resource: &str) -> Result<Vec<Pod>, Failure> {
    let (kind, name) = split(resource)?;
    if matches!(kind, "ns" | "namespace" | "namespaces") {
        return Ok(forward::pods(&cluster.client, Some(name), "").await?);
    }
    let Some((_, group, kind)) = KINDS.iter().find(|(names, ..)| names.contains(&kind)) else {
        let names: Vec<_> = KINDS.iter().map(|(names, ..)| names[0]).collect();
        return Err(Failure::message(format!(
            "`{kind}` has no pods: expected one of {}, ns",
            names.join(", ")
        )));
    };
    let id = ObjectId::new(group, kind, namespace, name);
    let missing =
        || Failure::message(format!("there is no {kind} {name} in namespace {namespace}")).hint("see -n");
    let known = cluster
        .kind_of(&id)
        .await
        .ok_or_else(|| Failure::message(format!("this cluster has no kind {kind}")))?;
    let object = cluster.get(&known, &id).await?.ok_or_else(missing)?;
    if *kind == "Pod" {
        let pod = serde_json::from_value(object)
            .map_err(|error| Failure::message(format!("pod {namespace}/{name} cannot be read: {error}")))?;
        return Ok(vec![pod]);
    }
    let selector = object
        .pointer("/spec/selector")
        .cloned()
        .ok_or_else(|| Failure::message(format!("{kind} {namespace}/{name} selects no pods")))?;
    let unreadable = |error: String| {
        Failure::message(format!(
            "{kind} {namespace}/{name}: spec.selector cannot be read: {error}"
        ))
    };
    let selector = match serde_json::from_value::<BTreeMap<String, String>>(selector.clone()) {
        // A Service's and a ReplicationController's.
        Ok(labels) => labels.into_iter().collect::<Selector>(),
        Err(_) => serde_json::from_value::<LabelSelector>(selector)
            .map_err(|error| unreadable(error.to_string()))?
            .try_into()
            .map_err(|error: kube::core::ParseExpressionError| unreadable(error.to_string()))?,
    };
    Ok(forward::pods(&cluster.client, Some(namespace), &selector.to_string()).await?)
}

/// Objects of one kind in a namespace; none when the cluster does not know the kind.
///
/// # Errors
/// What the API server says otherwise.
pub async fn list<K>(cluster: &Cluster, namespace: &str) -> Result<Vec<K>, Failure>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let api: kube::Api<K> = kube::Api::namespaced(cluster.client.clone(), namespace);
    match api.list(&kube::api::ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(error) if crate::cluster::status(&error).is_some_and(|status| status.code == 404) => {
            Ok(Vec::new())
        }
        Err(error) => Err(ForwardError::Request {
            action: format!("list {} in namespace {namespace}", K::plural(&())),
            source: Answer::from(error),
        }
        .into()),
    }
}

/// Columns as wide as their widest cell, two spaces apart; nothing follows the last.
pub fn table(header: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let mut lines = vec![header.iter().map(|&cell| cell.to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<_> = (0..header.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &lines {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["a".into(), "bcd".into()], vec!["long".into(), "e".into()]];
        assert_eq!(table(&["N", "M"], rows), "N     M\na     bcd\nlong  e\n");
    }

    #[test]
    fn a_resource_has_a_kind_and_a_name() {
        assert_eq!(split("deploy/web").unwrap(), ("deploy", "web"));
        for wrong in ["web", "/web", "deploy/", "a/b/c"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
    }
}
