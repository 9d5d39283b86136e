//! Puts the proxy together: the control runtime with identity, discovery and admin on the main thread, and the workers
//! on theirs.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use heddle_tls::{
    CertMetrics, CertifyLoop, ClientAuth, ControlChannel, Readiness, Store, StoreError,
    connect::ChannelOptions, revocation::fetch::RevocationLoop, roots::RootsFile,
};
use prometheus_client::registry::Registry;
use tokio::time::{Instant, interval};
use tracing::{error, info, warn};

use crate::{
    access_log::AccessLog,
    admin::{self, Admin},
    config::{Config, ControlService, TapConfig, TelemetryConfig},
    discovery::Discovery,
    listen::{BindError, Listeners},
    logging::LogHandle,
    metrics::{Metrics, control::CountedChannel, labels::Labels},
    observe::Observers,
    tap::{self, Taps},
    trace::export::Exporter,
    worker,
};

/// How often it is said that there is no certificate yet.
const IDENTITY_WARN_INTERVAL: Duration = Duration::from_secs(15);
/// The pod's labels; Kubernetes allows 256 KiB of annotations, and labels are short.
const LABELS_BYTES_MAX: u64 = 64 * 1024;
/// Spans are worth less than the memory that they would wait in.
const COLLECTOR_WAIT_TIMEOUT: Duration = Duration::from_secs(3);
/// How often idle series are looked for.
const EXPIRE_INTERVAL: Duration = Duration::from_secs(30);

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppError {
    #[error("failed to start the runtime")]
    Runtime(#[source] io::Error),
    #[error("failed to watch for signals")]
    Signals(#[source] io::Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error("failed to start the access log")]
    AccessLog(#[source] io::Error),
    #[error("failed to serve taps")]
    Tap(#[from] heddle_tls::serve::BindError),
    #[error("failed to prepare the identity")]
    Identity(#[from] StoreError),
}

/// Runs the proxy until it is told to end and has drained.
///
/// # Errors
/// It cannot start.
pub(crate) fn run(config: Config, log: LogHandle) -> Result<(), AppError> {
    // Every connection through the proxy takes two file descriptors.
    heddle_daemon::process::raise_file_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(AppError::Runtime)?;
    let result = runtime.block_on(control(Arc::new(config), log));
    // Workers hold connections that the grace period has not ended: they end with the process.
    runtime.shutdown_background();
    result
}

async fn control(config: Arc<Config>, log: LogHandle) -> Result<(), AppError> {
    let shutdown = heddle_daemon::signal::shutdown().map_err(AppError::Signals)?;
    let listeners = (0..config.workers)
        .map(|_| Listeners::bind(&config))
        .collect::<Result<Vec<_>, _>>()?;
    let metrics = Arc::new(Metrics::default());
    metrics.runtimes.add_current("control");
    let mut registry = Registry::default();
    let cert_metrics = CertMetrics::register(&mut registry);
    heddle_daemon::process::register(&mut registry);

    let (store, key) = Store::new(config.identity.local_name.clone(), config.identity.roots.clone())?;
    let ready = store.ready();
    let admin = Admin {
        config: config.clone(),
        metrics: metrics.clone(),
        registry,
        ready: ready.clone(),
        store: store.clone(),
        log,
        shutdown: shutdown.trigger(),
    };
    tokio::spawn(admin.bind().await?.serve());

    // First of all: a container that restarts may have older anchors in its environment than the identity service uses.
    let roots = RootsFile::new(&config.identity.roots_file).optional();
    tokio::spawn(roots.run(store.clone()));
    let ControlService { addr, name } = config.control.identity.clone();
    if config.identity.revocation {
        let follow = RevocationLoop::new(store.clone(), addr.clone(), name.clone())
            .poll_interval(config.identity.revocation_interval);
        tokio::spawn(follow.run());
    }
    let certify = CertifyLoop::new(store.clone(), key, addr, name, &config.identity.token_file)
        .metrics(cert_metrics)
        .refresh_bounds(config.identity.min_refresh, config.identity.max_refresh);
    tokio::spawn(certify.run());
    tokio::spawn(expire(metrics.clone(), config.admin.metrics_retain_idle));

    let observers = observers(&config, &metrics, &store, shutdown.watch()).await?;
    let channel = |service: &ControlService| {
        let ControlService { addr, name } = service;
        let channel = ControlChannel::new(addr.clone(), name.clone(), store.clone(), ClientAuth::Leaf);
        CountedChannel::new(channel, &metrics.control, addr, name)
    };
    let discovery = Discovery::new(
        config.clone(),
        channel(&config.control.destination),
        channel(&config.control.policy),
    );
    // Held for as long as the proxy runs, so that these are always followed.
    let ports: Vec<_> = config
        .inbound
        .ports
        .iter()
        .filter_map(|port| discovery.inbound(port).ok())
        .collect();

    let mut lists = store.revocations();
    let revocation = config.identity.revocation;
    let parts = worker::Parts {
        config: config.clone(),
        discovery,
        store,
        metrics,
        observers: observers.clone(),
        services: Arc::default(),
        drain: shutdown.watch(),
    };
    let started = Instant::now();
    let starting = tokio::spawn(async move {
        await_identity(ready).await;
        // Who cannot tell what is revoked lets nobody in.
        if revocation && lists.wait_for(|lists| !lists.is_empty()).await.is_err() {
            return;
        }
        info!(
            workers = listeners.len(),
            start_ms = started.elapsed().as_millis(),
            "Serving"
        );
        for (index, listeners) in listeners.into_iter().enumerate() {
            let parts = parts.clone();
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            if let Err(error) = thread.spawn(move || worker::run(parts, listeners)) {
                error!(%error, "Failed to start a worker thread");
            }
        }
    });
    tokio::pin!(starting);
    let drain = shutdown.drain(config.shutdown_grace);
    tokio::pin!(drain);
    tokio::select! {
        // Ended before it had an identity.
        _ = &mut drain => starting.abort(),
        result = &mut starting => {
            if let Err(error) = result {
                error!(%error, "Failed to start");
            }
            drain.await;
        }
    }
    drop(ports);
    if let Some(spans) = &observers.spans {
        spans.flush().await;
    }
    if let Some(log) = &observers.access_log {
        log.flush();
    }
    Ok(())
}

/// Starts what looks at requests, as far as it is asked for.
async fn observers(
    config: &Config,
    metrics: &Metrics,
    store: &Store,
    drain: drain::Watch,
) -> Result<Observers, AppError> {
    let TelemetryConfig {
        access_log,
        trace,
        tap,
        hostname_labels: _,
    } = &config.telemetry;
    let mut observers = Observers::default();
    if let Some(format) = access_log {
        let dropped = metrics.access_log_dropped_total.get(&Labels::default());
        observers.access_log = Some(AccessLog::start(*format, dropped).map_err(AppError::AccessLog)?);
    }
    if let Some(trace) = trace {
        let mut trace = trace.clone();
        if let Some(path) = &trace.attributes_path {
            match read_labels(path) {
                Ok(labels) => trace.add_labels(&labels),
                Err(error) => warn!(path = %path.display(), %error, "Spans do not tell the pod's labels"),
            }
        }
        let ControlService { addr, name } = trace.collector.clone();
        let options = ChannelOptions {
            wait_timeout: COLLECTOR_WAIT_TIMEOUT,
            ..ChannelOptions::default()
        };
        let channel = ControlChannel::with_options(addr, name, store.clone(), ClientAuth::Leaf, options);
        let (spans, exporter) = Exporter::new(channel, &trace.attributes, metrics);
        tokio::spawn(exporter.run());
        observers.spans = Some(spans);
    }
    if let Some(TapConfig { listen, observer }) = tap {
        let taps = Taps::new(metrics.tap_events_dropped_total.get(&Labels::default()));
        tap::serve(*listen, observer.clone(), taps.clone(), store.clone(), drain).await?;
        observers.taps = Some(taps);
    }
    Ok(observers)
}

/// The kubelet's file of the pod's labels.
fn read_labels(path: &Path) -> io::Result<String> {
    let mut labels = String::new();
    File::open(path)?
        .take(LABELS_BYTES_MAX)
        .read_to_string(&mut labels)?;
    Ok(labels)
}

/// Nothing is served before the proxy can prove who it is.
async fn await_identity(mut ready: tokio::sync::watch::Receiver<Readiness>) {
    loop {
        let certified = ready.wait_for(Readiness::is_ready);
        match tokio::time::timeout(IDENTITY_WARN_INTERVAL, certified).await {
            Ok(_) => return,
            Err(_) => warn!("Waiting for the first certificate from the identity service"),
        }
    }
}

async fn expire(metrics: Arc<Metrics>, retain: Duration) {
    let mut tick = interval(EXPIRE_INTERVAL);
    loop {
        tick.tick().await;
        metrics.expire(Instant::now(), retain);
    }
}
