//! Follows a source: asks it each interval, or when told to, and publishes what it has.

use std::{path::PathBuf, sync::Arc, time::Duration};

use heddle_k8s::mesh::{GitRef, Source};
use serde_json::Value;
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tracing::{info, warn};

use crate::{
    cluster::Cluster,
    source::{
        self, Limits, Revision, Snapshot, SourceError, directory,
        git::{Access, Credentials, GitSource, Reference},
        memory::MemoryTree,
    },
};

/// A source that fails is asked again after at least this long, then twice as long, and so on.
const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(300);

/// The latest that is known of a source.
#[derive(Clone, Debug, Default)]
pub struct Sighting {
    /// The last good snapshot.
    pub snapshot: Option<Snapshot>,
    /// Why the last attempt failed, if it did: reason and message.
    pub failure: Option<(&'static str, String)>,
    /// When the snapshot was first asked for.
    pub seen: Option<Instant>,
    /// The commit that a forced push replaced.
    pub rewritten_from: Option<String>,
    /// Counts attempts that were asked for, so that a request can be seen to have been handled.
    pub attempts: u64,
}

/// What is followed.
#[derive(Clone)]
pub struct Followed {
    pub source: Source,
    pub path: String,
    pub interval: Duration,
    pub cache_dir: PathBuf,
    /// The profile's name for an inline profile.
    pub name: String,
    /// Where the Secret with the credentials is read, each time that the source is opened.
    pub cluster: Cluster,
    pub namespace: String,
}

/// An opened source.
enum Opened {
    Git(Box<GitSource>),
    Directory {
        folder: PathBuf,
        path: String,
        watcher: Option<notify::RecommendedWatcher>,
    },
    Inline(Snapshot),
}

/// Follows until dropped. `wake` asks for an attempt now.
pub async fn follow(followed: Followed, wake: Arc<Notify>, publish: watch::Sender<Sighting>) {
    let mut backoff = BACKOFF_MIN;
    let mut opened: Option<Opened> = None;
    loop {
        let begun = Instant::now();
        let result = match opened {
            Some(_) => Ok(Access::default()),
            None => access(&followed.cluster, &followed.source, &followed.namespace).await,
        };
        let result = match result {
            Ok(access) => {
                let (back, result) = attempt(opened.take(), &followed, access, &wake).await;
                opened = back;
                result
            }
            Err(reason) => Err(SourceError::Credentials { reason }),
        };
        if matches!(result, Err(SourceError::Unauthorized { .. })) {
            // The Secret may have changed since it was read.
            opened = None;
        }
        let failed = result.is_err();
        publish.send_modify(|sighting| {
            sighting.attempts += 1;
            match result {
                Ok(found) => {
                    sighting.failure = None;
                    if sighting.snapshot.as_ref().is_none_or(|old| old.revision != found.snapshot.revision) {
                        sighting.seen = Some(begun);
                        sighting.rewritten_from = found.rewritten_from;
                        info!(revision = %found.snapshot.revision, "Found a new revision");
                        sighting.snapshot = Some(found.snapshot);
                    }
                }
                Err(error) => {
                    let text = crate::cli::chain(&error);
                    if sighting.failure.as_ref().is_none_or(|(_, old)| *old != text) {
                        warn!(error = %text, reason = error.reason(), "The source has no new revision; the last good one stays applied");
                    }
                    sighting.failure = Some((error.reason(), text));
                }
            }
        });
        let pause = if failed {
            backoff.max(followed.interval.min(BACKOFF_MAX))
        } else {
            followed.interval
        };
        backoff = if failed {
            (backoff * 2).min(BACKOFF_MAX)
        } else {
            BACKOFF_MIN
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = wake.notified() => {}
        }
    }
}

struct Found {
    snapshot: Snapshot,
    rewritten_from: Option<String>,
}

/// Asks once, on a thread that may block.
async fn attempt(
    opened: Option<Opened>,
    followed: &Followed,
    access: Access,
    wake: &Arc<Notify>,
) -> (Option<Opened>, Result<Found, SourceError>) {
    let (followed, wake) = (followed.clone(), wake.clone());
    let task = tokio::task::spawn_blocking(move || {
        let mut opened = match opened {
            Some(opened) => opened,
            None => match open(&followed, access, &wake) {
                Ok(opened) => opened,
                Err(error) => return (None, Err(error)),
            },
        };
        let result = ask(&mut opened);
        (Some(opened), result)
    });
    match task.await {
        Ok(done) => done,
        Err(error) => {
            let reason = format!("the attempt broke off: {error}");
            (
                None,
                Err(SourceError::Location {
                    location: "the source".into(),
                    reason,
                }),
            )
        }
    }
}

fn open(followed: &Followed, access: Access, wake: &Arc<Notify>) -> Result<Opened, SourceError> {
    let Source {
        git,
        directory,
        inline,
    } = &followed.source;
    if let Some(git) = git {
        let reference = reference(git.reference.as_ref());
        let source = GitSource::open(
            &git.url,
            reference,
            access,
            &followed.cache_dir,
            Limits::default(),
        )?;
        return Ok(Opened::Git(Box::new(source)));
    }
    if let Some(directory) = directory {
        let folder = PathBuf::from(&directory.path);
        return Ok(Opened::Directory {
            watcher: watch_folder(&folder, wake),
            folder,
            path: source::clean_path(&followed.path)?,
        });
    }
    if let Some(inline) = inline {
        return Ok(Opened::Inline(inline_snapshot(&followed.name, inline)));
    }
    Err(SourceError::Location {
        location: "spec.source".into(),
        reason: "one of git, directory and inline must be given".into(),
    })
}

/// What a Mesh's ref means.
pub fn reference(reference: Option<&GitRef>) -> Reference {
    match reference {
        Some(GitRef {
            branch: Some(name), ..
        }) => Reference::Branch(name.clone()),
        Some(GitRef { tag: Some(name), .. }) => Reference::Tag(name.clone()),
        Some(GitRef { commit: Some(id), .. }) => Reference::Commit(id.clone()),
        _ => Reference::Head,
    }
}

/// The kernel may lose or merge events, so this only shortens the wait; the interval stays.
fn watch_folder(folder: &std::path::Path, wake: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
    use notify::Watcher as _;
    let wake = wake.clone();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            wake.notify_one();
        }
    })
    .ok()?;
    watcher.watch(folder, notify::RecursiveMode::Recursive).ok()?;
    Some(watcher)
}

fn inline_snapshot(name: &str, spec: &serde_json::Map<String, Value>) -> Snapshot {
    let document = serde_json::json!({
        "apiVersion": "heddle.dev/v1alpha1", "kind": "MeshProfile", "metadata": {"name": name}, "spec": spec,
    });
    let text = crate::yaml::print(&document);
    let digest = format!("sha256:{}", crate::object::digest(text.as_bytes()));
    let tree = MemoryTree::new([("mesh.yaml", text.as_str())]);
    Snapshot {
        revision: Revision {
            name: "inline".into(),
            digest,
        },
        tree: Arc::new(tree),
    }
}

fn ask(opened: &mut Opened) -> Result<Found, SourceError> {
    match opened {
        Opened::Git(source) => {
            let fetched = source.fetch_blocking()?;
            Ok(Found {
                snapshot: fetched.snapshot,
                rewritten_from: fetched.rewritten_from,
            })
        }
        Opened::Directory {
            folder,
            path,
            watcher,
        } => {
            debug_assert!(
                watcher.is_some() || watcher.is_none(),
                "kept alive beside the folder"
            );
            Ok(Found {
                snapshot: directory::snapshot(folder, path, Limits::default())?,
                rewritten_from: None,
            })
        }
        Opened::Inline(snapshot) => Ok(Found {
            snapshot: snapshot.clone(),
            rewritten_from: None,
        }),
    }
}

/// Reads the credentials that a source names.
///
/// # Errors
/// A Secret that cannot be read or holds none of the known keys.
pub async fn access(cluster: &Cluster, source: &Source, namespace: &str) -> Result<Access, String> {
    use k8s_openapi::api::core::v1::Secret;
    let Some(reference) = source.git.as_ref().and_then(|git| git.secret_ref.as_ref()) else {
        return Ok(Access::default());
    };
    let api: kube::Api<Secret> = kube::Api::namespaced(cluster.client.clone(), namespace);
    let name = format!("Secret {namespace}/{}", reference.name);
    let secret = api
        .get(&reference.name)
        .await
        .map_err(|error| format!("{name} cannot be read: {}", crate::cli::chain(&error)))?;
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone())
            .ok()
            .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
    };
    let credentials = match (text("bearerToken"), text("username"), text("password")) {
        (Some(token), ..) => Some(Credentials::Bearer(token)),
        (None, Some(username), Some(password)) => Some(Credentials::Basic { username, password }),
        (None, None, None) if text("ca.crt").is_some() => None,
        _ => {
            return Err(format!(
                "{name} must hold username and password, or bearerToken, or ca.crt"
            ));
        }
    };
    Ok(Access {
        credentials,
        ca_pem: text("ca.crt"),
    })
}
