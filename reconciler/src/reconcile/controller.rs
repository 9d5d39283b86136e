//! Runs a worker for each `Mesh` object of the cluster, or for the one that flags describe.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use heddle_k8s::mesh::Mesh;
use heddle_mesh::annotation;
use kube::{
    Api, ResourceExt as _,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::{sync::watch, task::JoinSet};
use tracing::{info, warn};

use super::worker::{Shared, Told, work};

/// Asks for a pass now; Flux's own annotation, so that its tools work.
pub const REQUESTED_AT: &str = "reconcile.fluxcd.io/requestedAt";
/// How soon to look again for the CRD of `Mesh`.
const CRD_RETRY: Duration = Duration::from_secs(5);
/// How many meshes one reconciler runs: each has a Git clone and watches.
const MESHES_MAX: usize = 64;

/// Runs the mesh that flags describe, until dropped.
pub async fn run_flags(shared: Shared, told: Told, ready: watch::Sender<bool>) {
    let (_keep, receiver) = watch::channel(told);
    work(shared, receiver, ready).await;
}

struct Running {
    told: watch::Sender<Told>,
    ready: watch::Receiver<bool>,
    task: tokio::task::AbortHandle,
}

/// Watches `Mesh` objects until dropped. `watching` turns true when the first list has come in.
pub async fn run(shared: Shared, watching: watch::Sender<bool>) {
    let mut said = false;
    while shared.cluster.kind("heddle.dev/v1alpha1", "Mesh").await.is_none() {
        if !said {
            warn!(
                "The CRD meshes.heddle.dev is not installed; waiting for it (hint: heddle install --crds | kubectl apply -f -)"
            );
            said = true;
        }
        // Ready all the same: there is nothing to do yet, and nothing wrong with this program.
        watching.send_replace(true);
        tokio::time::sleep(CRD_RETRY).await;
        if let Err(error) = shared.cluster.refresh().await {
            warn!(error = %crate::cli::chain(&error), "The cluster does not answer");
        }
    }
    let api: Api<Mesh> = Api::all(shared.cluster.client.clone());
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(stream);
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    let mut listed = Vec::new();
    loop {
        let event = tokio::select! {
            event = stream.next() => event,
            Some(_) = tasks.join_next() => continue,
        };
        let Some(event) = event else { return };
        match event {
            Ok(watcher::Event::Apply(mesh)) => take(&shared, &mesh, &mut running, &mut tasks),
            Ok(watcher::Event::InitApply(mesh)) => {
                listed.push(mesh.name_any());
                take(&shared, &mesh, &mut running, &mut tasks);
            }
            Ok(watcher::Event::Delete(mesh)) => stop(&mesh.name_any(), &mut running),
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitDone) => {
                let gone: Vec<_> = running
                    .keys()
                    .filter(|name| !listed.contains(name))
                    .cloned()
                    .collect();
                gone.iter().for_each(|name| stop(name, &mut running));
                watching.send_replace(true);
            }
            Err(error) => {
                warn!(error = %crate::cli::chain(&error), "The watch of Mesh objects broke off; it is begun anew")
            }
        }
    }
}

fn take(shared: &Shared, mesh: &Mesh, running: &mut BTreeMap<String, Running>, tasks: &mut JoinSet<()>) {
    let name = mesh.name_any();
    if mesh.annotations().get(annotation::RECONCILE).map(String::as_str) == Some("disabled")
        || mesh.metadata.deletion_timestamp.is_some()
    {
        stop(&name, running);
        return;
    }
    let told = Told {
        name: name.clone(),
        spec: mesh.spec.clone(),
        generation: mesh.metadata.generation.unwrap_or(0),
        requested_at: mesh.annotations().get(REQUESTED_AT).cloned(),
        by_flags: false,
    };
    if let Some(worker) = running.get(&name).filter(|worker| !worker.task.is_finished()) {
        // A status of our own writing changes nothing that a worker is told.
        worker.told.send_if_modified(|old| {
            if *old == told {
                false
            } else {
                *old = told;
                true
            }
        });
        return;
    }
    if running.len() >= MESHES_MAX {
        warn!(
            mesh = name,
            limit = MESHES_MAX,
            "There are more Mesh objects than one reconciler runs; this one is left alone"
        );
        return;
    }
    info!(mesh = name, "Following a mesh");
    let (sender, receiver) = watch::channel(told);
    let (ready, ready_receiver) = watch::channel(false);
    let task = tasks.spawn(work(shared.clone(), receiver, ready));
    running.insert(
        name,
        Running {
            told: sender,
            ready: ready_receiver,
            task,
        },
    );
}

fn stop(name: &str, running: &mut BTreeMap<String, Running>) {
    if let Some(worker) = running.remove(name) {
        info!(
            mesh = name,
            was_ready = *worker.ready.borrow(),
            "No longer following a mesh; what it applied stays"
        );
        worker.task.abort();
    }
}
