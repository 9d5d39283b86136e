//! `heddle diagnostics controller-metrics` and `proxy-metrics`: what the programs tell Prometheus, pod by pod.

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use futures_util::{StreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::Client;

use crate::{
    cli::{Failure, Global, Outcome},
    commands::{connect, resource},
    forward::{self, ForwardError},
};

/// Pods that are asked at the same time.
const CONCURRENCY_MAX: usize = 8;
/// Labels whose values tell of names and addresses.
const OBFUSCATED: [&str; 12] = [
    "authority",
    "client_id",
    "server_id",
    "target_addr",
    "target_ip",
    "sni",
    "hostname",
    "backend_name",
    "parent_name",
    "route_name",
    "srv_name",
    "authz_name",
];

#[derive(Debug, clap::Args)]
pub(super) struct ControllerArgs {
    /// Give up on a pod after so long
    #[arg(short, long, default_value = "30s", value_name = "DURATION", value_parser = heddle_mesh::duration::parse)]
    wait: Duration,
}

#[derive(Debug, clap::Args)]
pub(super) struct ProxyArgs {
    /// KIND/NAME of a workload or pod, such as deploy/web; without one, every pod of the namespace
    resource: Option<String>,
    /// The namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Replace values of labels that tell of names and addresses
    #[arg(long)]
    obfuscate: bool,
}

pub(super) fn controller(global: &Global, args: ControllerArgs) -> Outcome {
    crate::commands::block_on(async {
        let cluster = connect(global).await?;
        let selector = heddle_mesh::label::CONTROL_PLANE_COMPONENT;
        let pods = forward::pods(&cluster.client, Some(&global.linkerd_namespace), selector).await?;
        let ports = |pod: &Pod| -> Vec<(String, u16)> {
            forward::containers(pod)
                .filter_map(|container| {
                    Some((
                        container.name.clone(),
                        forward::port_of(container, |name| name.starts_with("admin"))?,
                    ))
                })
                .collect()
        };
        print(&cluster.client, pods, ports, args.wait, false).await
    })
}

pub(super) fn proxy(global: &Global, args: ProxyArgs) -> Outcome {
    crate::commands::block_on(async {
        let cluster = connect(global).await?;
        let pods = match &args.resource {
            Some(name) => resource::pods(&cluster, &args.namespace, name).await?,
            None => forward::pods(&cluster.client, Some(&args.namespace), "").await?,
        };
        let ports = |pod: &Pod| -> Vec<(String, u16)> {
            forward::containers(pod)
                .filter(|container| container.name == heddle_mesh::port::PROXY_CONTAINER)
                .filter_map(|container| {
                    let port =
                        forward::port_of(container, |name| name == heddle_mesh::port::PROXY_ADMIN_NAME)?;
                    Some((container.name.clone(), port))
                })
                .collect()
        };
        let pods: Vec<_> = pods.into_iter().filter(|pod| !ports(pod).is_empty()).collect();
        print(
            &cluster.client,
            pods,
            ports,
            Duration::from_secs(30),
            args.obfuscate,
        )
        .await
    })
}

/// Exits 1 when a pod did not answer.
async fn print(
    client: &Client,
    pods: Vec<Pod>,
    ports: impl Fn(&Pod) -> Vec<(String, u16)>,
    wait: Duration,
    obfuscate: bool,
) -> Outcome {
    if pods.is_empty() {
        return Err(Failure::message("no such pods").hint("see `kubectl get pods`, -n and -L"));
    }
    let count = pods.len();
    let asked = pods.iter().enumerate().flat_map(|(index, pod)| {
        let ports = ports(pod).into_iter();
        ports.map(move |(container, port)| (index, pod, container, port))
    });
    let mut answers = stream::iter(asked)
        .map(|(index, pod, container, port)| async move {
            let answer = tokio::time::timeout(wait, forward::get(client, pod, port, "/metrics")).await;
            let answer = answer.unwrap_or_else(|_| {
                Err(ForwardError::Stream {
                    pod: forward::display(pod),
                    port,
                    source: std::io::ErrorKind::TimedOut.into(),
                })
            });
            (index, pod, container, answer)
        })
        .buffered(CONCURRENCY_MAX);
    let mut failed = false;
    let mut seen = Seen::default();
    while let Some((index, pod, container, answer)) = answers.next().await {
        let mut text = String::new();
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        let name = if obfuscate {
            seen.alias("pod", name)
        } else {
            name.to_owned()
        };
        let _ = write!(
            text,
            "#\n# POD {name} ({} of {count})\n# CONTAINER {container}\n#\n",
            index + 1
        );
        match answer {
            Ok(metrics) if obfuscate => seen.obfuscate(&metrics, &mut text),
            Ok(metrics) => text.push_str(&metrics),
            Err(error) => {
                failed = true;
                let _ = writeln!(text, "# ERROR {}", crate::cli::chain(&error));
            }
        }
        crate::cli::print(&text)?;
    }
    Ok(u8::from(failed))
}

/// Values that were replaced: equal ones get equal aliases, so that series can still be told apart and joined.
#[derive(Default)]
struct Seen(BTreeMap<String, usize>);

impl Seen {
    fn alias(&mut self, label: &str, value: &str) -> String {
        let next = self.0.len() + 1;
        let number = *self.0.entry(value.to_owned()).or_insert(next);
        format!("{label}-{number}")
    }

    fn obfuscate(&mut self, metrics: &str, out: &mut String) {
        for line in metrics.lines() {
            let labels = match line.starts_with('#') {
                true => None,
                false => line.split_once('{').and_then(|(name, rest)| {
                    let (labels, value) = rest.rsplit_once('}')?;
                    Some((name, labels, value))
                }),
            };
            let Some((name, labels, value)) = labels else {
                let _ = writeln!(out, "{line}");
                continue;
            };
            let _ = write!(out, "{name}{{");
            let mut separator = "";
            for (label, text) in split(labels) {
                let secret = OBFUSCATED.contains(&label)
                    || label.starts_with("dst_")
                    || label.ends_with("_namespace")
                    || label.ends_with("_id");
                let text = if secret && !text.is_empty() {
                    self.alias(label, text)
                } else {
                    text.to_owned()
                };
                let _ = write!(out, "{separator}{label}=\"{text}\"");
                separator = ",";
            }
            let _ = writeln!(out, "}}{value}");
        }
    }
}

/// Labels of the text format: `name="value",…`, where a value may hold escaped quotes.
fn split(mut labels: &str) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    while let Some((name, rest)) = labels.split_once("=\"") {
        let mut escaped = false;
        let end = rest.find(|character| {
            let ends = character == '"' && !escaped;
            escaped = character == '\\' && !escaped;
            ends
        });
        let Some(end) = end else { break };
        found.push((name.trim_start_matches(','), &rest[..end]));
        labels = &rest[end + 1..];
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obfuscated_values_stay_joinable() {
        let text = "# HELP a b\na{authority=\"web.a:80\",tls=\"true\"} 1\nb{dst_pod=\"web.a:80\",error=\"a \\\"b\\\"\"} 2\nc 3\n";
        let mut out = String::new();
        Seen::default().obfuscate(text, &mut out);
        assert_eq!(
            out,
            "# HELP a b\na{authority=\"authority-1\",tls=\"true\"} 1\nb{dst_pod=\"dst_pod-1\",error=\"a \\\"b\\\"\"} 2\nc 3\n"
        );
    }
}
