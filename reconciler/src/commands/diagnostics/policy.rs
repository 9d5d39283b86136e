//! `heddle diagnostics policy RESOURCE PORT`: a pod's inbound policy, or a service's outbound policy.

use std::num::NonZeroU16;

use linkerd2_proxy_api::{
    inbound::{PortSpec, inbound_server_policies_client::InboundServerPoliciesClient},
    outbound::{TrafficSpec, outbound_policies_client::OutboundPoliciesClient, traffic_spec::Target},
};
use serde_json::json;

use super::{Asking, Form, message::ToJson as _, refused};
use crate::{
    cli::{Failure, Global, Outcome},
    commands::{connect, resource},
    forward::ControlPlane,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// pod/NAME for what it lets in, service/NAME for how clients reach it
    resource: String,
    /// The port
    port: NonZeroU16,
    #[command(flatten)]
    asking: Asking,
    /// The resource's namespace
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// The form of the output
    #[arg(short, long, value_enum, default_value = "yaml")]
    output: Form,
}

pub(super) fn run(global: &Global, args: Args) -> Outcome {
    let (kind, name) = resource::split(&args.resource)?;
    let inbound = match kind {
        "po" | "pod" | "pods" => true,
        "svc" | "service" | "services" => false,
        other => {
            return Err(Failure::message(format!(
                "`{other}` has no policy of its own: expected pod/NAME or service/NAME"
            )));
        }
    };
    crate::commands::block_on(async {
        let cluster = connect(global).await?;
        let control = ControlPlane::find(cluster.client.clone(), &global.linkerd_namespace).await?;
        let channel = control
            .channel("policy", args.asking.destination_pod.as_deref())
            .await?;
        let failed = |status: tonic::Status| refused(&format!("{} {}", args.resource, args.port), &status);
        let port = u32::from(args.port.get());
        let workload = |value| args.asking.token.clone().unwrap_or(value);
        let value = if inbound {
            let request = PortSpec {
                workload: workload(json!({"ns": args.namespace, "pod": name}).to_string()),
                port,
            };
            let answer = InboundServerPoliciesClient::new(channel).get_port(request).await;
            answer.map_err(failed)?.into_inner().to_json()
        } else {
            let domain = &control.defaults.cluster_domain;
            let request = TrafficSpec {
                source_workload: workload(json!({"ns": args.namespace, "pod": "heddle"}).to_string()),
                target: Some(Target::Authority(format!(
                    "{name}.{}.svc.{domain}:{port}",
                    args.namespace
                ))),
            };
            let answer = OutboundPoliciesClient::new(channel).get(request).await;
            answer.map_err(failed)?.into_inner().to_json()
        };
        args.output.print(&value)?;
        Ok(0)
    })
}
