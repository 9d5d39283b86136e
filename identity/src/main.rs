//! The program `heddle-identity`: flags, then the parts of the library put together.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use arc_swap::{ArcSwap, ArcSwapOption};
use clap::Parser;
use heddle_daemon::{Admin, log, process, report, signal};
use heddle_identity::{
    event,
    issuer::Validity,
    limit::{self, Rates},
    lists::{ListKeeper, ListService},
    metrics::Metrics,
    own::Own,
    served::Served,
    service::{Service, Settings},
    token::Reviews,
    watch::Keeper,
};
use heddle_mesh::{CONTROL_NAMESPACE, Identity, ServiceAccountRef, SpiffeId, TrustDomain, duration};
use heddle_tls::{
    CertMetrics, Store, TrustBundle,
    roots::{self, RootsError},
    serve::{self, Limits, Server},
};
use prometheus_client::registry::Registry;
use tokio::time::Instant;
use tracing::{error, warn};

/// The service account that the identity service runs as; part of its own identity.
const SERVICE_ACCOUNT: &str = "linkerd-identity";
const DRAIN_GRACE: Duration = Duration::from_secs(10);
const ROOTS_RETRY: Duration = Duration::from_secs(2);
const ROOTS_WAIT: Duration = Duration::from_secs(15);
/// Proxies come once in many hours and hold no streams: a connection is 50 kB for nothing once it has had its answer. All of
/// these together are less than the smallest limit of memory in the profiles.
const CONNECTIONS_MAX: usize = 3072;
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(15 * 60);
const STREAMS_MAX: u32 = 128;
/// More than the wait for a turn and the review together, and than what proxies wait.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// Signs certificates for the service accounts of meshed pods.
#[derive(Debug, Parser)]
#[command(name = "heddle-identity", version)]
struct Args {
    /// Address of the gRPC service
    #[arg(long, env = "HEDDLE_LISTEN_ADDR", default_value = "0.0.0.0:8080")]
    listen_addr: SocketAddr,
    /// Address of a second gRPC listener without TLS, on loopback only; off when absent
    #[arg(long, env = "HEDDLE_LOOPBACK_ADDR", value_parser = loopback)]
    loopback_addr: Option<SocketAddr>,
    /// Address of /live, /ready and /metrics
    #[arg(long, env = "HEDDLE_ADMIN_ADDR", default_value = "0.0.0.0:9990")]
    admin_addr: SocketAddr,
    /// Folder of the issuer: tls.crt and tls.key, or crt.pem and key.pem; read again when it changes
    #[arg(
        long,
        env = "HEDDLE_ISSUER_DIR",
        default_value = "/var/run/linkerd/identity/issuer"
    )]
    issuer_dir: PathBuf,
    /// File of the trust anchors (PEM); read again when it changes
    #[arg(
        long,
        env = "HEDDLE_TRUST_ROOTS",
        default_value = "/var/run/linkerd/identity/trust-roots/ca-bundle.crt"
    )]
    trust_roots: PathBuf,
    /// File of revoked serial numbers and identities, one a line; read again when it changes, signed and served to
    /// proxies. Without it nothing is revoked
    #[arg(long, env = "HEDDLE_REVOCATIONS")]
    revocations: Option<PathBuf>,
    /// How long certificates are valid
    #[arg(long, env = "HEDDLE_ISSUANCE_LIFETIME", default_value = "24h", value_parser = lifetime)]
    issuance_lifetime: Duration,
    /// Certificates begin this much before they are issued, for peers whose clocks are late
    #[arg(long, env = "HEDDLE_CLOCK_SKEW_ALLOWANCE", default_value = "20s", value_parser = clock_skew)]
    clock_skew_allowance: Duration,
    /// Leaves carry their SPIFFE ID, spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/NAME, as a URI beside the DNS name
    #[arg(long, env = "HEDDLE_SPIFFE_IDS", default_value_t = false, action = clap::ArgAction::Set)]
    spiffe_ids: bool,
    /// Takes only tokens that are bound to a pod, as the kubelet mounts them
    #[arg(long, env = "HEDDLE_REQUIRE_POD_TOKENS", default_value_t = false, action = clap::ArgAction::Set)]
    require_pod_tokens: bool,
    /// Certificates that one pod may have within a minute; more requests are answered with ResourceExhausted
    #[arg(long, env = "HEDDLE_POD_REQUESTS_PER_MINUTE", default_value_t = limit::POD_PER_MINUTE)]
    pod_requests_per_minute: NonZeroU32,
    /// Certificates that all pods of one service account may have within a minute
    #[arg(long, env = "HEDDLE_IDENTITY_REQUESTS_PER_MINUTE", default_value_t = limit::IDENTITY_PER_MINUTE)]
    identity_requests_per_minute: NonZeroU32,
    /// The mesh's trust domain
    #[arg(long, env = "HEDDLE_IDENTITY_TRUST_DOMAIN", default_value = "cluster.local")]
    identity_trust_domain: TrustDomain,
    /// The cluster's DNS domain
    #[arg(long, env = "HEDDLE_CLUSTER_DOMAIN", default_value = "cluster.local")]
    cluster_domain: String,
    /// Namespace of the control plane
    #[arg(long, env = "HEDDLE_CONTROL_NAMESPACE", default_value = CONTROL_NAMESPACE)]
    control_namespace: String,
    /// Log level, in the syntax of RUST_LOG
    #[arg(long, env = "HEDDLE_LOG_LEVEL", default_value = "info")]
    log_level: String,
    /// Log format: plain or json
    #[arg(long, env = "HEDDLE_LOG_FORMAT", default_value = "plain")]
    log_format: log::Format,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(error) = log::init(&args.log_level, args.log_format) {
        eprintln!("heddle-identity: --log-level: {}", report::chain(&error));
        return ExitCode::from(2);
    }
    process::raise_file_limit();
    // One thread: it signs thousands of certificates a second, and two would spend more on waking each other than they
    // gain.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "Failed to start");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(error = %report::chain(error.as_ref()), "Failed");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let Args {
        listen_addr,
        loopback_addr,
        admin_addr,
        issuer_dir,
        trust_roots,
        revocations,
        issuance_lifetime,
        clock_skew_allowance,
        spiffe_ids,
        require_pod_tokens,
        pod_requests_per_minute,
        identity_requests_per_minute,
        identity_trust_domain,
        cluster_domain: _,
        control_namespace,
        log_level: _,
        log_format: _,
    } = args;
    let mut shutdown = signal::shutdown().context("failed to install signal handlers")?;
    let account = ServiceAccountRef {
        namespace: control_namespace.clone(),
        name: SERVICE_ACCOUNT.to_owned(),
    };
    let name = Identity::for_service_account(&account, &control_namespace, &identity_trust_domain)
        .context("--control-namespace and --identity-trust-domain make no valid identity")?;
    let config = kube_config()
        .await
        .context("failed to configure the Kubernetes client")?;
    let reviews = Reviews::new(&config).context("failed to configure token reviews")?;
    let client = kube::Client::try_from(config).context("failed to make the Kubernetes client")?;
    let validity = Validity {
        lifetime: issuance_lifetime,
        clock_skew: clock_skew_allowance,
    };

    let roots = tokio::select! {
        roots = first_roots(&trust_roots) => roots.context("there are no trust anchors")?,
        () = shutdown.requested() => return Ok(()),
    };
    let (store, key) = Store::new(name, roots).context("failed to set up TLS")?;
    let issuer = Arc::new(ArcSwapOption::empty());
    let (events, queue) = event::queue();
    let mut registry = Registry::default();
    process::register(&mut registry);
    let metrics = Metrics::register(&mut registry, Arc::clone(&issuer), store.clone(), &events);
    let cert_metrics = CertMetrics::register(&mut registry);

    let ready = store.ready();
    let admin = Admin::new(admin_addr, registry).ready(move || ready.borrow().is_ready());
    let admin = admin.spawn().await.context("failed to start the admin server")?;

    let spiffe = spiffe_ids.then(|| SpiffeId::for_service_account(&account, &identity_trust_domain));
    let own = Own::new(store.clone(), key, validity, cert_metrics).spiffe(spiffe);
    let keeper = Keeper::new(issuer_dir, trust_roots, own, Arc::clone(&issuer), events.clone());
    let keeper = tokio::spawn(keeper.run(issuance_lifetime));
    let posting = tokio::spawn(queue.post(client, control_namespace.clone()));

    let settings = Settings {
        control_namespace,
        trust_domain: identity_trust_domain,
        validity,
        spiffe: spiffe_ids,
        rates: Rates {
            pod: pod_requests_per_minute,
            identity: identity_requests_per_minute,
        },
    };
    let reviews = reviews.require_pod(require_pod_tokens);
    let revoked = Arc::new(ArcSwap::default());
    let lists = revocations.map(|path| {
        let lifetimes = (issuance_lifetime, clock_skew_allowance);
        ListKeeper::new(
            path,
            lifetimes,
            Arc::clone(&issuer),
            Arc::clone(&revoked),
            events.clone(),
        )
    });
    if let Some(lists) = &lists {
        // Without the list nobody could be refused who must be.
        lists
            .load()
            .context("there is no list of revocations (--revocations)")?;
    }
    let service = Service::new(settings, issuer, reviews, metrics, events)
        .revoked(revoked)
        .into_server();
    let published = lists.as_ref().map(|lists| ListService::new(lists.published()));
    let lists = lists.map(|lists| tokio::spawn(lists.run()));
    let limits = Limits {
        connections_max: CONNECTIONS_MAX,
        streams_max: STREAMS_MAX,
        request_timeout: Some(REQUEST_TIMEOUT),
        connection_age_max: Some(CONNECTION_AGE_MAX),
        ..Limits::default()
    };
    let server = Server::only(Served::new(service, published))
        .short_answers()
        .limits(limits);
    let listener = serve::bind(listen_addr)
        .await
        .context("failed to start the gRPC service")?;
    let mut serving = tokio::task::JoinSet::new();
    if let Some(addr) = loopback_addr {
        let listener = serve::bind(addr)
            .await
            .context("failed to start the loopback gRPC service")?;
        let (server, watch) = (server.clone(), shutdown.watch());
        serving.spawn(async move {
            if let Err(error) = server.serve_plaintext(listener, watch).await {
                error!(%error, "Not serving on loopback");
            }
        });
    }
    serving.spawn(server.serve_tls(listener, store, shutdown.watch()));

    let trigger = shutdown.trigger();
    // A keeper that ended has panicked: better to start over than to hand out certificates of a stale issuer.
    let guard = tokio::spawn(async move {
        let ended = keeper.await;
        error!(panicked = ended.is_err(), "The issuer is no longer watched");
        trigger.fire();
    });
    shutdown.drain(DRAIN_GRACE).await;
    guard.abort();
    posting.abort();
    if let Some(lists) = lists {
        lists.abort();
    }
    admin.abort();
    Ok(())
}

/// Without trust anchors nothing can be judged. The volume's file may come a moment later, so wait for it; but not for
/// so long that a broken one goes unnoticed.
async fn first_roots(path: &Path) -> Result<TrustBundle, RootsError> {
    let deadline = Instant::now() + ROOTS_WAIT;
    loop {
        match roots::load(path) {
            Err(error) if Instant::now() < deadline => {
                warn!(error = %report::chain(&error), "Waiting for trust anchors");
                tokio::time::sleep(ROOTS_RETRY).await;
            }
            loaded => return loaded,
        }
    }
}

fn loopback(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text.parse().map_err(|_| "expected IP:PORT".to_owned())?;
    if addr.ip().is_loopback() {
        Ok(addr)
    } else {
        Err("expected a loopback address".to_owned())
    }
}

fn lifetime(text: &str) -> Result<Duration, String> {
    const RANGE: std::ops::RangeInclusive<Duration> =
        Duration::from_secs(10)..=Duration::from_secs(366 * 24 * 60 * 60);
    let lifetime = duration::parse(text).map_err(|error| error.to_string())?;
    if RANGE.contains(&lifetime) {
        Ok(lifetime)
    } else {
        Err("expected 10s to 366d".to_owned())
    }
}

fn clock_skew(text: &str) -> Result<Duration, String> {
    let skew = duration::parse(text).map_err(|error| error.to_string())?;
    if skew <= Duration::from_secs(60 * 60) {
        Ok(skew)
    } else {
        Err("expected at most 1h".to_owned())
    }
}

/// How to reach the API server, under this program's name in the server's audit log.
async fn kube_config() -> anyhow::Result<kube::Config> {
    let mut config = kube::Config::infer().await?;
    let agent = http::HeaderValue::from_static(concat!("heddle-identity/", env!("CARGO_PKG_VERSION")));
    config.headers.push((http::header::USER_AGENT, agent));
    Ok(config)
}
