//! `heddle version`: this program's, and the control plane's when a cluster answers.

use serde_json::Value;

use crate::{
    cli::{Global, Outcome},
    commands::connect,
    object::ObjectId,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print only the number.
    #[arg(long)]
    short: bool,
    /// Do not ask the cluster.
    #[arg(long)]
    client: bool,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let Args { short, client } = args;
    let mut text = if short {
        format!("{}\n", heddle_mesh::VERSION)
    } else {
        format!("Client version: {}\n", heddle_mesh::VERSION)
    };
    if !client {
        // As Linkerd's: a cluster that does not answer makes the server's version unavailable, not the command fail.
        let server = super::block_on(async { server(global).await.map_or(Ok(None), Ok) })?
            .unwrap_or_else(|| "unavailable".to_owned());
        text.push_str(&if short {
            format!("{server}\n")
        } else {
            format!("Server version: {server}\n")
        });
    }
    crate::cli::print(&text)?;
    Ok(0)
}

/// The tag of the destination's image.
async fn server(global: &Global) -> Result<Option<String>, crate::cli::Failure> {
    let cluster = connect(global).await?;
    let id = ObjectId::new(
        "apps",
        "Deployment",
        &global.linkerd_namespace,
        "linkerd-destination",
    );
    let Some(kind) = cluster.kind_of(&id).await else {
        return Ok(None);
    };
    let live = cluster.get(&kind, &id).await?;
    let image = live
        .as_ref()
        .and_then(|live| live.pointer("/spec/template/spec/containers/0/image"))
        .and_then(Value::as_str);
    Ok(image
        .and_then(|image| image.rsplit_once(':'))
        .map(|(_, tag)| tag.to_owned()))
}
