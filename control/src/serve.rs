//! The destination and policy services as a process: watches, own certificate, listeners, shutdown.

use std::{path::Path, time::Duration};

use anyhow::Context as _;
use heddle_control_index::{
    Cluster,
    watcher::{Synced, Watchers},
};
use heddle_daemon::{Admin, process, report, signal};
use heddle_tls::{
    CertMetrics, CertifyLoop, Revocations, Store, TrustBundle,
    revocation::fetch::RevocationLoop,
    roots::{self, RootsFile},
    serve::{self, Limits, Server},
};
use prometheus_client::registry::Registry;
use tokio::{sync::watch, task::JoinSet};
use tonic::service::Routes;
use tracing::{error, info, warn};

use crate::{
    args::{Common, IdentityArgs, Listen, Plan},
    external_workload, grpc,
    lease::{self, Elector},
    metrics::{self, GrpcMetrics},
    status, validate, watches,
};

const DRAIN_GRACE: Duration = Duration::from_secs(15);
const ROOTS_RETRY: Duration = Duration::from_secs(2);
const SYNC_POLL: Duration = Duration::from_millis(50);
/// Clients spread over replicas anew this often; Linkerd's proxies end their streams after an hour themselves.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60 * 60);

/// Runs the planned services until told to stop.
pub(crate) async fn run(common: Common, plan: Plan) -> anyhow::Result<()> {
    let shutdown = signal::shutdown().context("failed to install signal handlers")?;
    let client = common.client().await?;
    let cluster = Cluster::new(plan.config(&common));
    let mut registry = Registry::default();
    process::register(&mut registry);
    let grpc_metrics = GrpcMetrics::register(&mut registry);
    metrics::register_index(&mut registry, cluster.clone());
    let mut watchers = Watchers::new(client.clone(), cluster.clone(), &mut registry);
    watches::common(&mut watchers);
    if plan.destination.is_some() {
        watches::destination(&mut watchers);
    }
    if plan.policy.is_some() {
        watches::policy(&mut watchers);
    }
    let mut tasks = JoinSet::new();
    let store = match plan.listeners().any(|listen| listen.tls.is_some()) {
        true => Some(certify(&common, &plan.identity, &mut registry, &mut tasks).await?),
        false => {
            warn!("Serving on loopback alone, without TLS: no other pod can reach this process");
            None
        }
    };

    let validating = match plan.admission_addr {
        None => None,
        Some(addr) => {
            let (cluster, drain) = (cluster.clone(), shutdown.watch());
            let started = validate::start(addr, &common, &client, cluster, &mut registry, drain, &mut tasks);
            Some(started.await?)
        }
    };

    let synced = watchers.synced();
    let leases = lease::Metrics::register(&mut registry);
    let elect = |name, tasks: &mut JoinSet<()>| {
        let (elector, leadership) = Elector::new(client.clone(), &common.control_namespace, name, &leases);
        tasks.spawn(elector.run(shutdown.watch()));
        leadership
    };
    if plan.destination.is_some() {
        let leadership = elect(external_workload::LEASE, &mut tasks);
        let controller = external_workload::Controller::new(client.clone(), leadership, &mut registry);
        tasks.spawn(controller.run());
    }
    if plan.policy.is_some() {
        let leadership = elect(status::LEASE, &mut tasks);
        let metrics = status::Metrics::register(&mut registry);
        let writer = status::Writer::new(client.clone(), cluster.clone(), leadership, metrics);
        let synced = synced.clone();
        tasks.spawn(async move {
            // Judged before the index is complete, what exists would be called missing.
            wait_for(&synced).await;
            writer.run().await;
        });
    }
    let revocation = plan.identity.identity_revocation;
    let lists = store.as_ref().filter(|_| revocation).map(Store::revocations);
    let (certificate, judging, sync) = (store.as_ref().map(Store::ready), lists.clone(), synced.clone());
    let ready = move || {
        sync.is_synced()
            && certificate.as_ref().is_none_or(|ready| ready.borrow().is_ready())
            && judging.as_ref().is_none_or(|lists| !lists.borrow().is_empty())
            && validating.as_ref().is_none_or(validate::Validating::is_ready)
    };
    let admin = Admin::new(plan.admin_addr, registry).ready(ready);
    let admin = admin.spawn().await.context("failed to start the admin server")?;

    let mut services = Vec::new();
    if let Some(listen) = plan.destination {
        services.push((
            listen,
            Routes::new(grpc::destination(cluster.clone(), grpc_metrics.clone())),
        ));
    }
    if let Some(listen) = plan.policy {
        let (inbound, outbound) = grpc::policy(cluster.clone(), grpc_metrics.clone());
        services.push((listen, Routes::new(inbound).add_service(outbound)));
    }
    let (drain, trigger) = (shutdown.watch(), shutdown.trigger());
    tasks.spawn(async move {
        let release = drain.signaled().await;
        // Streams end with their values, so that their clients go to another replica at once.
        cluster.close();
        drop(release);
    });
    let drain = shutdown.watch();
    let serving = tokio::spawn(async move {
        let listening = async {
            // Asked before the index is complete, the services would deny what exists.
            wait_for(&synced).await;
            listen_all(services, store, lists, drain).await
        };
        tokio::select! {
            served = listening => if let Err(error) = served {
                error!(error = %report::chain(error.as_ref()), "Not serving");
                trigger.fire();
            },
            () = watchers.ended() => {
                error!("The cluster is no longer watched");
                trigger.fire();
            }
        }
    });
    shutdown.drain(DRAIN_GRACE).await;
    serving.abort();
    admin.abort();
    Ok(())
}

async fn listen_all(
    services: Vec<(Listen, Routes)>,
    store: Option<Store>,
    lists: Option<watch::Receiver<Revocations>>,
    drain: heddle_daemon::Watch,
) -> anyhow::Result<()> {
    let mut serving = JoinSet::new();
    for (Listen { tls, loopback }, routes) in services {
        let limits = Limits {
            connection_age_max: Some(CONNECTION_AGE_MAX),
            ..Limits::default()
        };
        let server = Server::new(routes).limits(limits);
        if let Some(addr) = loopback {
            let listener = serve::bind(addr)
                .await
                .context("failed to start the loopback gRPC service")?;
            let (server, drain) = (server.clone(), drain.clone());
            serving.spawn(async move {
                if let Err(error) = server.serve_plaintext(listener, drain).await {
                    error!(%error, "Not serving on loopback");
                }
            });
        }
        if let (Some(addr), Some(store)) = (tls, &store) {
            let listener = serve::bind(addr)
                .await
                .context("failed to start the gRPC service")?;
            let (store, drain, lists) = (store.clone(), drain.clone(), lists.clone());
            serving.spawn(async move {
                // Who cannot tell what is revoked lets nobody in.
                if let Some(mut lists) = lists
                    && lists.wait_for(|lists| !lists.is_empty()).await.is_err()
                {
                    return;
                }
                server.serve_tls(listener, store, drain).await;
            });
        }
    }
    drop(drain);
    while serving.join_next().await.is_some() {}
    Ok(())
}

async fn wait_for(synced: &Synced) {
    while !synced.is_synced() {
        tokio::time::sleep(SYNC_POLL).await;
    }
    info!("Synced with the cluster");
}

/// Starts to obtain this process' certificate, and keeps it and the trust anchors fresh.
async fn certify(
    common: &Common,
    args: &IdentityArgs,
    registry: &mut Registry,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Store> {
    let IdentityArgs {
        identity_addr,
        identity_service_account,
        identity_token_file,
        identity_revocation,
        trust_roots,
        service_account,
    } = args;
    let name = common.identity(service_account)?;
    let server_name = common.identity(identity_service_account)?;
    let (store, key) = Store::new(name, first_roots(trust_roots).await).context("failed to set up TLS")?;
    if *identity_revocation {
        let follow = RevocationLoop::new(store.clone(), identity_addr.clone(), server_name.clone());
        tasks.spawn(follow.run());
    }
    let certify = CertifyLoop::new(
        store.clone(),
        key,
        identity_addr.clone(),
        server_name,
        identity_token_file,
    );
    tasks.spawn(certify.metrics(CertMetrics::register(registry)).run());
    tasks.spawn(RootsFile::new(trust_roots).run(store.clone()));
    Ok(store)
}

/// Without trust anchors nobody can be trusted, so wait for them; the volume's file may come a moment later.
async fn first_roots(path: &Path) -> TrustBundle {
    let mut complaint = None;
    loop {
        match roots::load(path) {
            Ok(roots) => return roots,
            Err(error) => {
                let text = report::chain(&error);
                if complaint.as_ref() != Some(&text) {
                    warn!(error = %text, "Waiting for trust anchors");
                    complaint = Some(text);
                }
                tokio::time::sleep(ROOTS_RETRY).await;
            }
        }
    }
}
