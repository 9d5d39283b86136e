//! `heddle run`: the controller. Without --repo it follows the `Mesh` objects of the cluster; with it, one source.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use heddle_daemon::{
    admin::{self, Admin},
    log, process, signal,
};
use heddle_k8s::mesh::{DirectorySource, GitRef, GitSource, MeshSpec, SecretRef, Source};
use tokio::sync::watch;

use crate::{
    cli::{Failure, Global, Outcome},
    commands::{
        connect_with,
        render::{Location, default_cache_dir},
    },
    metrics::Metrics,
    reconcile::{
        controller,
        fleet::FleetCache,
        worker::{Shared, Told},
    },
    source::git,
};

/// How long workers may take to end: what they were doing is begun anew by the next process.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Follow this source instead of Mesh objects: an http(s) URL, a bare repository, or a folder.
    #[arg(long, value_name = "PATH|URL")]
    repo: Option<String>,
    /// The branch, tag or commit to follow.
    #[arg(long = "ref", value_name = "REF", default_value = "HEAD", requires = "repo")]
    reference: String,
    /// The profile's folder or file in the source.
    #[arg(long, value_name = "PATH", default_value = ".", requires = "repo")]
    path: String,
    /// How often the source is asked.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = heddle_mesh::duration::parse)]
    interval: Duration,
    /// How long one revision may take to become ready.
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = heddle_mesh::duration::parse)]
    timeout: Duration,
    /// A Secret in the reconciler's namespace with username and password, or bearerToken, and optionally ca.crt.
    #[arg(long, value_name = "NAME", requires = "repo")]
    secret: Option<String>,
    /// Keep objects that left the profile.
    #[arg(long, requires = "repo")]
    no_prune: bool,
    /// Do not let a stage wait until the one before is ready.
    #[arg(long)]
    no_wait: bool,
    /// Keeps fetched repositories.
    #[arg(long, value_name = "DIR", env = "HEDDLE_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// The reconciler's own namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = heddle_mesh::RECONCILER_NAMESPACE)]
    namespace: String,
    /// Serves /live, /ready, /metrics and POST /reconcile.
    #[arg(long, default_value = "127.0.0.1:9991")]
    admin_addr: SocketAddr,
    /// RUST_LOG syntax.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    log_level: String,
    #[arg(long, default_value = "plain", value_parser = ["plain", "json"])]
    log_format: String,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let format = args
        .log_format
        .parse()
        .map_err(|error: log::UnknownFormat| Failure::message(error.to_string()))?;
    // The client logs each refusal as an error, dry runs among them; what matters of it is said here.
    log::init(
        &format!("{},kube_client::client::builder=off", args.log_level),
        format,
    )
    .map_err(|error| Failure::message(crate::cli::chain(&error)))?;
    let bundled = Arc::new(global.bundled()?);
    super::block_on(async {
        let mut registry = prometheus_client::registry::Registry::default();
        let metrics = Metrics::default();
        metrics.register(&mut registry);
        process::register(&mut registry);
        let (ready, ready_receiver) = watch::channel(false);
        let (trigger, trigger_receiver) = watch::channel(0_u64);
        let trigger = Arc::new(trigger);
        let route = trigger.clone();
        let admin = Admin::new(args.admin_addr, registry)
            .ready(move || *ready_receiver.borrow())
            .routes(move |parts| {
                if parts.uri.path() != "/reconcile" {
                    return None;
                }
                if parts.method != http::Method::POST {
                    return Some(admin::text(http::StatusCode::METHOD_NOT_ALLOWED, "use POST\n"));
                }
                route.send_modify(|count| *count += 1);
                Some(admin::text(http::StatusCode::ACCEPTED, "asking the source now\n"))
            });
        let _admin = admin
            .spawn()
            .await
            .map_err(|error| Failure::message(crate::cli::chain(&error)))?;
        let cluster = connect_with(global, metrics).await?;
        let shared = Shared {
            fleet: FleetCache::start(&cluster.client),
            cluster,
            bundled,
            cache_dir: args.cache_dir.clone().unwrap_or_else(default_cache_dir),
            namespace: args.namespace.clone(),
            wait: !args.no_wait,
            trigger: trigger_receiver,
        };
        let shutdown = signal::shutdown()?;
        let work = match told(&args)? {
            Some(told) => {
                // A mesh that is not as Git wants it is no reason to restart this program.
                let (mesh_ready, _) = watch::channel(false);
                ready.send_replace(true);
                tokio::spawn(controller::run_flags(shared, told, mesh_ready))
            }
            None => tokio::spawn(controller::run(shared, ready)),
        };
        tokio::select! {
            // Workers need no farewell: whatever they were doing, the next process does again.
            _ = shutdown.drain(DRAIN_TIMEOUT) => Ok(()),
            ended = work => Err(Failure::message(format!("the loop ended: {ended:?}"))),
        }
    })?;
    Ok(0)
}

fn told(args: &Args) -> Result<Option<Told>, Failure> {
    let Some(repo) = &args.repo else { return Ok(None) };
    let mut source = source(repo, &args.reference)?;
    if let (Some(git), Some(name)) = (&mut source.git, &args.secret) {
        git.secret_ref = Some(SecretRef { name: name.clone() });
    }
    let spec = MeshSpec {
        source,
        path: args.path.clone(),
        interval: args.interval,
        timeout: args.timeout,
        suspend: false,
        prune: !args.no_prune,
    };
    Ok(Some(Told {
        name: "heddle".into(),
        spec,
        generation: 0,
        requested_at: None,
        by_flags: true,
    }))
}

/// What a location is as a Mesh's source.
fn source(repo: &str, reference: &str) -> Result<Source, Failure> {
    if git::is_url(repo) {
        return Ok(git_source(repo.to_owned(), reference));
    }
    let path = std::path::Path::new(repo);
    let absolute = path
        .canonicalize()
        .map_err(|error| Failure::message(format!("{repo} cannot be read: {error}")))?;
    let text = absolute.display().to_string();
    if git::is_bare(&absolute) {
        return Ok(git_source(text, reference));
    }
    if reference != "HEAD" && absolute.join(".git").exists() {
        return Ok(git_source(text, reference));
    }
    Ok(Source {
        directory: Some(DirectorySource { path: text }),
        ..Source::default()
    })
}

fn git_source(url: String, reference: &str) -> Source {
    let hex = reference.len() == 40 && reference.chars().all(|char| char.is_ascii_hexdigit());
    let reference = match reference {
        "HEAD" => None,
        id if hex => Some(GitRef {
            commit: Some(id.to_owned()),
            ..GitRef::default()
        }),
        name => Some(match name.strip_prefix("refs/tags/") {
            Some(tag) => GitRef {
                tag: Some(tag.to_owned()),
                ..GitRef::default()
            },
            None => GitRef {
                branch: Some(name.trim_start_matches("refs/heads/").to_owned()),
                ..GitRef::default()
            },
        }),
    };
    Source {
        git: Some(GitSource {
            url,
            reference,
            secret_ref: None,
        }),
        ..Source::default()
    }
}

/// The source of a command's location.
///
/// # Errors
/// A path that cannot be read.
pub fn source_of(location: &Location) -> Result<Source, Failure> {
    source(&location.repo, location.rev.as_deref().unwrap_or("HEAD"))
}
