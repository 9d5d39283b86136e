//! The injector: a webhook that puts proxies into pods.
//!
//! In go AdmissionReviews, namespaces (watched), the settings and the trust anchors (files); out come JSON patches.
//! `heddle_inject::decide` decides; this module serves it. It keeps its own serving certificate and tells the API
//! server what to trust. It never knows endpoints or policies.

mod admit;
mod ca_bundle;
mod certificate;
mod events;
mod files;
mod metrics;
mod owners;
mod review;
mod secret;
mod server;

#[cfg(test)]
mod tests;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::ArcSwap;
use futures_util::StreamExt as _;
use heddle_daemon::{Admin, process, report, signal};
use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tracing::{error, warn};

use self::{
    admit::Admission, certificate::Serving, files::Files, metrics::Metrics, owners::Owners, server::Server,
};
use crate::args::Common;

/// Flags of the injector.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Address of the webhook
    #[arg(long, env = "HEDDLE_INJECTOR_LISTEN_ADDR", default_value = "0.0.0.0:8443")]
    listen_addr: SocketAddr,
    /// Address of /live, /ready and /metrics
    #[arg(long, env = "HEDDLE_INJECTOR_ADMIN_ADDR", default_value = "0.0.0.0:9995")]
    admin_addr: SocketAddr,
    /// File with the injection settings: key `values` of ConfigMap linkerd-config; read again when it changes
    #[arg(
        long,
        env = "HEDDLE_INJECTOR_CONFIG_FILE",
        default_value = "/var/run/linkerd/config/values"
    )]
    config_file: PathBuf,
    /// File of the trust anchors (PEM) that pods are given; read again when it changes
    #[arg(
        long,
        env = "HEDDLE_TRUST_ROOTS",
        default_value = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt"
    )]
    trust_roots: PathBuf,
    /// Service by which the API server reaches the webhook
    #[arg(
        long,
        env = "HEDDLE_INJECTOR_SERVICE",
        default_value = "linkerd-proxy-injector"
    )]
    service: String,
    /// Secret that the replicas share their serving certificate in
    #[arg(
        long,
        env = "HEDDLE_INJECTOR_SECRET",
        default_value = "linkerd-proxy-injector-k8s-tls"
    )]
    secret: String,
    /// MutatingWebhookConfiguration to keep the caBundle of
    #[arg(
        long,
        env = "HEDDLE_INJECTOR_WEBHOOK_CONFIGURATION",
        default_value = "linkerd-proxy-injector-webhook-config"
    )]
    webhook_configuration: String,
}

/// Longer than the server itself lingers and drains.
const DRAIN_GRACE: Duration = Duration::from_secs(15);
const SETTINGS_RETRY: Duration = Duration::from_secs(2);

/// Runs until told to stop.
pub(crate) async fn run(args: Args, common: Common) -> anyhow::Result<()> {
    let Args {
        listen_addr,
        admin_addr,
        config_file,
        trust_roots,
        service,
        secret,
        webhook_configuration,
    } = args;
    let shutdown = signal::shutdown().context("failed to install signal handlers")?;
    let client = common.client().await?;
    let mut registry = Registry::default();
    process::register(&mut registry);
    let metrics = Metrics::register(&mut registry);
    let files = Files {
        config: config_file,
        trust_roots,
    };

    let ready = Ready::default();
    let probe = ready.clone();
    let admin = Admin::new(admin_addr, registry).ready(move || probe.is_ready());
    let admin = admin.spawn().await.context("failed to start the admin server")?;
    let listener = TcpListener::bind(listen_addr).await;
    let listener = listener.with_context(|| format!("failed to listen on {listen_addr}"))?;

    let parts = Parts {
        client,
        control_namespace: common.control_namespace,
        cluster_domain: common.cluster_domain,
        service,
        secret,
        webhook_configuration,
    };
    let (drain, trigger) = (shutdown.watch(), shutdown.trigger());
    let serving = tokio::spawn(async move {
        let settings = first_settings(&files).await;
        let mut tasks = JoinSet::new();
        let server = parts.start(files, settings, metrics, &ready, &mut tasks);
        tokio::select! {
            () = server.run(listener, drain) => {}
            // All of them run for ever.
            ended = tasks.join_next() => {
                let problem = ended.and_then(Result::err).map(|error| report::chain(&error));
                error!(error = problem, "A part of the injector has ended");
                trigger.fire();
            }
        }
    });
    shutdown.drain(DRAIN_GRACE).await;
    serving.abort();
    admin.abort();
    Ok(())
}

/// Without settings nothing can be injected, so wait for them: the trust anchors' ConfigMap may come a moment later.
async fn first_settings(files: &Files) -> files::Settings {
    let mut complained = None;
    loop {
        match files.load() {
            Ok(settings) => return settings,
            Err(error) => {
                let text = report::chain(&error);
                if complained.as_ref() != Some(&text) {
                    error!(error = %text, "Waiting for the settings");
                    complained = Some(text);
                }
                tokio::time::sleep(SETTINGS_RETRY).await;
            }
        }
    }
}

/// Names of things in the cluster, and how to reach it.
struct Parts {
    client: Client,
    control_namespace: String,
    cluster_domain: String,
    service: String,
    secret: String,
    webhook_configuration: String,
}

impl Parts {
    /// Starts what runs beside the server, as tasks that never end.
    fn start(
        self,
        files: Files,
        settings: files::Settings,
        metrics: Metrics,
        ready: &Ready,
        tasks: &mut JoinSet<()>,
    ) -> Server {
        let Self {
            client,
            control_namespace,
            cluster_domain,
            service,
            secret,
            webhook_configuration,
        } = self;
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        tasks.spawn(files.follow(Arc::clone(&settings), metrics.settings_failures.clone()));

        let host = format!("{service}.{control_namespace}.svc");
        let names = vec![host.clone(), format!("{host}.{cluster_domain}")];
        let (keeper, newest) = secret::Keeper::new(
            Api::namespaced(client.clone(), &control_namespace),
            &secret,
            names,
        );
        tasks.spawn(keeper.run());
        let (presented, presenting) = watch::channel(None);
        let (state, bundle) = watch::channel(ca_bundle::State::Unknown);
        let keeper = ca_bundle::Keeper {
            api: Api::all(client.clone()),
            name: webhook_configuration,
            service: (service, control_namespace),
            newest,
            presented,
            state,
            catch_up: ca_bundle::API_SERVERS_CATCH_UP,
        };
        tasks.spawn(keeper.run());

        let (namespaces, writer) = reflector::store();
        tasks.spawn(follow_namespaces(client.clone(), writer));
        let synced = namespaces.clone();
        ready.begin(presenting.clone(), bundle);
        let ready = ready.clone();
        tasks.spawn(async move {
            if synced.wait_until_ready().await.is_ok() {
                ready.namespaces.store(true, Ordering::Release);
            }
            std::future::pending().await
        });

        let owners = Arc::new(Owners::new(client.clone()));
        let (events, worker) = events::channel(
            client.clone(),
            Arc::clone(&owners),
            metrics.events_dropped.clone(),
        );
        tasks.spawn(async move {
            worker.run().await;
            std::future::pending().await
        });
        let admission = Admission {
            settings,
            namespaces,
            client,
            owners,
            events,
            metrics,
        };
        Server::new(Arc::new(admission), presenting)
    }
}

async fn follow_namespaces(client: Client, writer: reflector::store::Writer<Namespace>) {
    let events = watcher(Api::<Namespace>::all(client), watcher::Config::default())
        .modify(|namespace| {
            // Nothing of it is read but labels and annotations.
            namespace.metadata.managed_fields = None;
            (namespace.spec, namespace.status) = (None, None);
        })
        .default_backoff()
        .reflect(writer);
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        if let Err(error) = event {
            warn!(error = %report::chain(&error), "Failed to watch namespaces");
        }
    }
}

/// What the API server said: the client's own text repeats it with the whole status.
fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        other => report::chain(other),
    }
}

/// Whether the webhook may be asked.
#[derive(Clone, Debug, Default)]
struct Ready {
    namespaces: Arc<AtomicBool>,
    /// Once the bundle was in place, an edit by hand is mended in a moment and no reason to send requests elsewhere.
    bundle_seen: Arc<AtomicBool>,
    watched: Arc<OnceLock<Watched>>,
}

/// What is known once the parts run.
#[derive(Debug)]
struct Watched {
    presenting: watch::Receiver<Option<Arc<Serving>>>,
    bundle: watch::Receiver<ca_bundle::State>,
}

impl Ready {
    fn begin(
        &self,
        presenting: watch::Receiver<Option<Arc<Serving>>>,
        bundle: watch::Receiver<ca_bundle::State>,
    ) {
        self.watched
            .set(Watched { presenting, bundle })
            .expect("parts are started once");
    }

    /// Namespaces are known, a certificate is presented, and the API server trusts it, if there is a configuration
    /// that makes it ask: that one may well be applied only when the injector is ready.
    fn is_ready(&self) -> bool {
        let Some(Watched { presenting, bundle }) = self.watched.get() else {
            return false;
        };
        let in_place = match *bundle.borrow() {
            ca_bundle::State::InPlace | ca_bundle::State::Absent => true,
            ca_bundle::State::Differs => self.bundle_seen.load(Ordering::Acquire),
            ca_bundle::State::Unknown => false,
        };
        let ready = in_place && presenting.borrow().is_some() && self.namespaces.load(Ordering::Acquire);
        if ready {
            self.bundle_seen.store(true, Ordering::Release);
        }
        ready
    }
}
