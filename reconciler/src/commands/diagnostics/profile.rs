//! `heddle diagnostics profile ADDR`.

use linkerd2_proxy_api::destination::{GetDestination, destination_client::DestinationClient};

use super::{Asking, Form, message::ToJson as _, refused};
use crate::{
    cli::{Failure, Global, Outcome},
    commands::connect,
    forward::ControlPlane,
};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// IP:PORT of a service or pod, or NAME:PORT
    #[arg(value_name = "ADDR")]
    addr: String,
    #[command(flatten)]
    asking: Asking,
    /// The form of the output
    #[arg(short, long, value_enum, default_value = "json")]
    output: Form,
}

pub(super) fn run(global: &Global, args: Args) -> Outcome {
    crate::commands::block_on(async {
        let cluster = connect(global).await?;
        let control = ControlPlane::find(cluster.client.clone(), &global.linkerd_namespace).await?;
        let channel = control
            .channel("destination", args.asking.destination_pod.as_deref())
            .await?;
        let request = GetDestination {
            scheme: String::new(),
            path: args.addr.clone(),
            context_token: args.asking.token.unwrap_or_default(),
        };
        let failed = |status: tonic::Status| refused(&args.addr, &status);
        let mut profiles = DestinationClient::new(channel)
            .get_profile(request)
            .await
            .map_err(failed)?
            .into_inner();
        let profile =
            profiles.message().await.map_err(failed)?.ok_or_else(|| {
                Failure::message(format!("{}: the stream ended without a profile", args.addr))
            })?;
        args.output.print(&profile.to_json())?;
        Ok(0)
    })
}
