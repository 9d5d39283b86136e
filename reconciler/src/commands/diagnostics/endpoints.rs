//! `heddle diagnostics endpoints AUTHORITY…`.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use linkerd2_proxy_api::destination::{
    GetDestination, WeightedAddr, destination_client::DestinationClient, protocol_hint::Protocol,
    tls_identity::Strategy, update::Update,
};
use serde_json::{Value, json};
use tonic::transport::Channel;

use super::{Asking, message::ip, refused};
use crate::{
    cli::{Failure, Global, Outcome},
    commands::{connect, resource::table},
    forward::ControlPlane,
};

/// After the first update, the rest of a large service follows at once.
const QUIET: Duration = Duration::from_millis(250);
/// The destination service answers at once when it has synced.
const FIRST: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// SERVICE.NAMESPACE.svc.CLUSTER-DOMAIN:PORT; without a port, 80
    #[arg(required = true, value_name = "AUTHORITY")]
    authorities: Vec<String>,
    #[command(flatten)]
    asking: Asking,
    /// The form of the output
    #[arg(short, long, value_enum, default_value = "table")]
    output: Form,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Table,
    Json,
}

#[derive(Debug, PartialEq)]
struct Endpoint {
    namespace: String,
    service: String,
    ip: IpAddr,
    port: u32,
    pod: String,
    weight: u32,
    identity: Option<String>,
    protocol: Option<&'static str>,
    labels: BTreeMap<String, String>,
}

pub(super) fn run(global: &Global, args: Args) -> Outcome {
    crate::commands::block_on(async {
        let cluster = connect(global).await?;
        let control = ControlPlane::find(cluster.client.clone(), &global.linkerd_namespace).await?;
        let channel = control
            .channel("destination", args.asking.destination_pod.as_deref())
            .await?;
        let mut all = Vec::new();
        for authority in &args.authorities {
            let token = args.asking.token.clone().unwrap_or_default();
            all.extend(endpoints(DestinationClient::new(channel.clone()), authority, token).await?);
        }
        all.sort_by(|left, right| {
            (&left.namespace, &left.service, left.ip, left.port).cmp(&(
                &right.namespace,
                &right.service,
                right.ip,
                right.port,
            ))
        });
        let text = match args.output {
            Form::Json => format!("{:#}\n", all.iter().map(Endpoint::json).collect::<Value>()),
            Form::Table if all.is_empty() => {
                crate::cli::say("No endpoints.");
                String::new()
            }
            Form::Table => table(
                &["NAMESPACE", "IP", "PORT", "POD", "SERVICE"],
                all.iter().map(|endpoint| {
                    vec![
                        endpoint.namespace.clone(),
                        endpoint.ip.to_string(),
                        endpoint.port.to_string(),
                        endpoint.pod.clone(),
                        format!("{}.{}", endpoint.service, endpoint.namespace),
                    ]
                }),
            ),
        };
        crate::cli::print(&text)?;
        Ok(0)
    })
}

async fn endpoints(
    mut client: DestinationClient<Channel>,
    authority: &str,
    context_token: String,
) -> Result<Vec<Endpoint>, Failure> {
    let path = match authority.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => authority.to_owned(),
        _ => format!("{authority}:80"),
    };
    let request = GetDestination {
        scheme: "http:".to_owned(),
        path,
        context_token,
    };
    let failed = |status: tonic::Status| refused(authority, &status);
    let mut updates = client.get(request).await.map_err(failed)?.into_inner();
    let mut found: BTreeMap<(IpAddr, u32), Endpoint> = BTreeMap::new();
    let mut wait = FIRST;
    loop {
        let update = match tokio::time::timeout(wait, updates.message()).await {
            Ok(update) => update.map_err(failed)?.and_then(|update| update.update),
            Err(_) if wait == QUIET => break,
            Err(_) => {
                return Err(Failure::message(format!(
                    "{authority}: the destination service said nothing for {} s",
                    FIRST.as_secs()
                ))
                .hint("see its logs: kubectl logs -n linkerd deploy/linkerd-destination destination"));
            }
        };
        wait = QUIET;
        match update {
            Some(Update::Add(set)) => {
                for addr in set.addrs {
                    if let Some(endpoint) = Endpoint::new(addr, &set.metric_labels) {
                        found.insert((endpoint.ip, endpoint.port), endpoint);
                    }
                }
            }
            Some(Update::Remove(set)) => {
                for addr in set.addrs {
                    if let Some(ip) = addr.ip.as_ref().and_then(ip) {
                        found.remove(&(ip, addr.port));
                    }
                }
            }
            Some(Update::NoEndpoints(none)) if !none.exists => {
                return Err(Failure::message(format!("{authority}: there is no such service")));
            }
            Some(Update::NoEndpoints(_)) => found.clear(),
            None => break,
        }
    }
    Ok(found.into_values().collect())
}

impl Endpoint {
    fn new(addr: WeightedAddr, set: &std::collections::HashMap<String, String>) -> Option<Self> {
        let tcp = addr.addr?;
        let labels: BTreeMap<_, _> = addr.metric_labels.into_iter().collect();
        let label = |name: &str| {
            labels
                .get(name)
                .or_else(|| set.get(name))
                .cloned()
                .unwrap_or_default()
        };
        let identity = addr
            .tls_identity
            .and_then(|tls| tls.strategy)
            .map(|strategy| match strategy {
                Strategy::DnsLikeIdentity(dns) => dns.name,
                Strategy::UriLikeIdentity(uri) => uri.uri,
            });
        let protocol = addr
            .protocol_hint
            .and_then(|hint| hint.protocol)
            .map(|protocol| match protocol {
                Protocol::H2(_) => "h2",
                Protocol::Opaque(_) => "opaque",
            });
        Some(Self {
            namespace: label("namespace"),
            service: label("service"),
            ip: tcp.ip.as_ref().and_then(ip)?,
            port: tcp.port,
            pod: label("pod"),
            weight: addr.weight,
            identity,
            protocol,
            labels,
        })
    }

    fn json(&self) -> Value {
        json!({
            "namespace": self.namespace,
            "service": self.service,
            "ip": self.ip,
            "port": self.port,
            "pod": self.pod,
            "weight": self.weight,
            "tls_identity": self.identity,
            "protocol": self.protocol,
            "labels": self.labels,
        })
    }
}
