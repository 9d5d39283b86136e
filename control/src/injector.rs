//! The injector: a webhook that puts proxies into pods.
//!
//! In go AdmissionReviews, namespaces (watched), the settings and the trust anchors (files); out come JSON patches.
//! `heddle_inject::decide` decides; this module serves it, by [`crate::webhook`]. It never knows endpoints or policies.

mod admit;
mod events;
mod files;
mod metrics;
mod owners;

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
use k8s_openapi::api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Namespace};
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, reflector, watcher},
};
use prometheus_client::registry::Registry;
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{error, warn};

use self::{admit::Admission, files::Files, metrics::Metrics, owners::Owners};
use crate::{
    args::Common,
    webhook::{Presence, Webhook, server::Server},
};

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

    let webhook = Webhook {
        manager: "heddle-injector",
        component: "proxy-injector",
        control_namespace: common.control_namespace,
        cluster_domain: common.cluster_domain,
        services: vec![service],
        secret,
        configurations: vec![webhook_configuration],
    };
    let parts = Parts { client, webhook };
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

/// How to reach the cluster, and how to be reached.
struct Parts {
    client: Client,
    webhook: Webhook,
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
    ) -> Server<Admission> {
        let Self { client, webhook } = self;
        let settings = Arc::new(ArcSwap::from_pointee(settings));
        tasks.spawn(files.follow(Arc::clone(&settings), metrics.settings_failures.clone()));

        let presence = webhook.keep::<MutatingWebhookConfiguration>(&client, tasks);
        let presenting = presence.presenting.clone();

        let (namespaces, writer) = reflector::store();
        tasks.spawn(follow_namespaces(client.clone(), writer));
        let synced = namespaces.clone();
        ready.begin(presence);
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

/// Whether the webhook may be asked.
#[derive(Clone, Debug, Default)]
struct Ready {
    namespaces: Arc<AtomicBool>,
    /// Known once the parts run.
    presence: Arc<OnceLock<Presence>>,
}

impl Ready {
    fn begin(&self, presence: Presence) {
        self.presence.set(presence).expect("parts are started once");
    }

    /// Namespaces are known, and API servers trust the certificate.
    fn is_ready(&self) -> bool {
        self.namespaces.load(Ordering::Acquire) && self.presence.get().is_some_and(Presence::is_ready)
    }
}
