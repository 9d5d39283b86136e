//! `heddle status`: what is applied, whether it is ready, and how many workloads carry the proxy.

use std::{fmt::Write as _, time::Duration};

use heddle_k8s::mesh::Mesh;
use kube::{Api, ResourceExt as _, api::ListParams};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    cli::{Failure, Global, Outcome},
    cluster::ClusterError,
    commands::{connect, resource},
    yaml,
};

/// How often `--wait` looks.
const POLL: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this mesh.
    name: Option<String>,
    /// The form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Wait so long until it is ready; exits 1 when it is not.
    #[arg(long, value_name = "DURATION", value_parser = heddle_mesh::duration::parse)]
    wait: Option<Duration>,
    /// With --wait: until this commit (or its beginning) is applied.
    #[arg(long, value_name = "COMMIT", requires = "wait")]
    revision: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Table,
    Json,
    Yaml,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    super::block_on(async {
        let cluster = connect(global).await?;
        let api: Api<Mesh> = Api::all(cluster.client.clone());
        let deadline = Instant::now() + args.wait.unwrap_or_default();
        let meshes = loop {
            let mut meshes = list(&api).await?;
            if let Some(name) = &args.name {
                meshes.retain(|mesh| mesh.name_any() == *name);
                if meshes.is_empty() && args.wait.is_none() {
                    return Err(Failure::message(format!("there is no Mesh `{name}`"))
                        .hint("see `heddle status` for all"));
                }
            }
            let done =
                !meshes.is_empty() && meshes.iter().all(|mesh| is_done(mesh, args.revision.as_deref()));
            if args.wait.is_none() || done || Instant::now() >= deadline {
                break meshes;
            }
            tokio::time::sleep(POLL).await;
        };
        let text = match args.output {
            Format::Table => table(&meshes),
            Format::Json => format!("{:#}\n", json(&meshes)),
            Format::Yaml => yaml::print(&json(&meshes)),
        };
        crate::cli::print(&text)?;
        let done = !meshes.is_empty() && meshes.iter().all(|mesh| is_done(mesh, args.revision.as_deref()));
        Ok(u8::from(args.wait.is_some() && !done))
    })
}

async fn list(api: &Api<Mesh>) -> Result<Vec<Mesh>, Failure> {
    match api.list(&ListParams::default()).await {
        Ok(list) => Ok(list.items),
        Err(error) if crate::cluster::status(&error).is_some_and(|status| status.code == 404) => {
            Ok(Vec::new())
        }
        Err(source) => Err(ClusterError::Request {
            verb: "list",
            object: "Mesh objects".into(),
            source: source.into(),
        }
        .into()),
    }
}

fn ready(mesh: &Mesh) -> Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition> {
    mesh.status
        .as_ref()?
        .conditions
        .iter()
        .find(|condition| condition.type_ == heddle_k8s::mesh::CONDITION_READY)
}

fn is_done(mesh: &Mesh, revision: Option<&str>) -> bool {
    let applied = mesh
        .status
        .as_ref()
        .and_then(|status| status.last_applied_revision.as_deref())
        .unwrap_or_default();
    let commit = applied.rsplit_once(':').map_or(applied, |(_, commit)| commit);
    ready(mesh).is_some_and(|condition| condition.status == "True")
        && revision.is_none_or(|wanted| commit.starts_with(wanted) || applied == wanted)
}

fn table(meshes: &[Mesh]) -> String {
    if meshes.is_empty() {
        return "No mesh. Commit a profile and run `heddle run`, or `heddle apply`.\n".to_owned();
    }
    let rows = meshes.iter().map(|mesh| {
        let status = mesh.status.clone().unwrap_or_default();
        let (state, message) = ready(mesh).map_or(("Unknown", "nobody has looked at it yet"), |condition| {
            (condition.status.as_str(), condition.message.as_str())
        });
        let rollout = status.rollout.map_or_else(
            || "-".to_owned(),
            |rollout| format!("{}/{}", rollout.updated, rollout.desired),
        );
        let applied = status.last_applied_revision.unwrap_or_else(|| "-".to_owned());
        let message = if mesh.spec.suspend {
            format!("suspended; {message}")
        } else {
            message.to_owned()
        };
        let message = message.replace('\n', " | ");
        vec![mesh.name_any(), state.to_owned(), applied, rollout, message]
    });
    let mut text = resource::table(&["NAME", "READY", "APPLIED", "WORKLOADS", "STATUS"], rows);
    for mesh in meshes {
        let pending = mesh
            .status
            .as_ref()
            .and_then(|status| status.rollout.as_ref())
            .map(|rollout| rollout.pending.as_slice())
            .unwrap_or_default();
        for workload in pending {
            let _ = writeln!(text, "pending: {workload}");
        }
    }
    text
}

fn json(meshes: &[Mesh]) -> serde_json::Value {
    let items: Vec<_> = meshes
        .iter()
        .map(|mesh| {
            let status = mesh.status.clone().unwrap_or_default();
            json!({
                "name": mesh.name_any(),
                "ready": ready(mesh).map(|condition| condition.status.clone()),
                "suspended": mesh.spec.suspend,
                "appliedRevision": status.last_applied_revision,
                "attemptedRevision": status.last_attempted_revision,
                "conditions": status.conditions,
                "workloads": status.rollout,
                "objects": status.inventory.map(|inventory| inventory.entries.len()),
                "history": status.history,
            })
        })
        .collect();
    json!({ "meshes": items })
}
