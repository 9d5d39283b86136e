//! One mesh: takes what its source has, makes the cluster so, and keeps it so.
//!
//! The worker sleeps until something happened: a new revision, a change of an object that was applied, of a workload or
//! pod, of the Mesh object itself, or the end of a pause after a failure. Then it makes one pass. It holds no state that
//! is not in Git or in the cluster, but for caches and pauses: killed at any point, its successor ends in the same state.

mod apply;
mod report;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use heddle_inject::ProxyDefaults;
use heddle_k8s::mesh::MeshSpec;
use k8s_openapi::jiff::Timestamp;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};
use tracing::{error, info, warn};

use super::{
    Book,
    drift::{Drift, Mark},
    fleet::FleetCache,
    follow::{self, Followed, Sighting},
};
use crate::{
    cluster::{Cluster, ClusterError},
    object::ObjectId,
    plan,
    profile::{self, Bundled},
    render::{self, Rendered},
    rollout::Progress,
    status::{Events, State},
};

/// Changes that come in this span are one pass.
const DEBOUNCE: Duration = Duration::from_millis(15);
/// A pass that failed is tried again after at least this long, then twice as long, and so on.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// How soon the injector is asked again whether it serves the new settings.
const PROBE_RETRY: Duration = Duration::from_secs(1);

/// What all workers share.
#[derive(Clone)]
pub struct Shared {
    pub cluster: Cluster,
    pub fleet: Arc<FleetCache>,
    pub bundled: Arc<Bundled>,
    pub cache_dir: PathBuf,
    /// The reconciler's own namespace, for the Secrets of sources.
    pub namespace: String,
    /// Whether stages wait for each other.
    pub wait: bool,
    /// Asks all sources at once.
    pub trigger: watch::Receiver<u64>,
}

/// What a worker is told: by a Mesh object, or by flags.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub name: String,
    pub spec: MeshSpec,
    pub generation: i64,
    pub requested_at: Option<String>,
    /// By flags: the worker makes the Mesh object itself, named after the profile.
    pub by_flags: bool,
}

/// A revision's render.
struct Desired {
    revision: String,
    rendered: Arc<Rendered>,
    digests: BTreeMap<ObjectId, String>,
    defaults: Option<ProxyDefaults>,
    seen: Instant,
    started: Timestamp,
}

/// Runs a mesh until dropped. `ready` says whether it is as Git wants it.
pub async fn work(shared: Shared, mut told: watch::Receiver<Told>, ready: watch::Sender<bool>) {
    let first = told.borrow_and_update().clone();
    let mut worker = Worker::new(shared, first, ready);
    worker.shared.fleet.clone().ready().await;
    loop {
        let restart = worker.run(&mut told).await;
        if !restart {
            return;
        }
    }
}

struct Worker {
    shared: Shared,
    told: Told,
    ready: watch::Sender<bool>,
    book: Option<Book>,
    events: Option<Events>,
    drift: Drift,
    /// The revision that is applied, and one that could not be yet.
    current: Option<Arc<Desired>>,
    candidate: Option<Arc<Desired>>,
    /// The revision that is no valid profile, and why.
    invalid: Option<(String, &'static str, String)>,
    /// Objects that are as desired: digest of the desired form, mark of the live one.
    clean: BTreeMap<ObjectId, (String, Mark)>,
    /// Objects that others hold fields of.
    conflicts: BTreeMap<ObjectId, String>,
    inventory_checked: bool,
    settled: bool,
    failures: u32,
    retry_at: Option<Instant>,
    progress: Progress,
    restarting: BTreeMap<ObjectId, Instant>,
    halted: Option<String>,
    /// The last failure in the log, which is not logged again.
    said: Option<String>,
    last_handled: Option<String>,
    applied_at_once: BTreeSet<String>,
}

impl Worker {
    fn new(shared: Shared, told: Told, ready: watch::Sender<bool>) -> Self {
        Self {
            drift: Drift::new(&told.name),
            shared,
            told,
            ready,
            book: None,
            events: None,
            current: None,
            candidate: None,
            invalid: None,
            clean: BTreeMap::new(),
            conflicts: BTreeMap::new(),
            inventory_checked: false,
            settled: false,
            failures: 0,
            retry_at: None,
            progress: Progress::default(),
            restarting: BTreeMap::new(),
            halted: None,
            said: None,
            last_handled: None,
            applied_at_once: BTreeSet::new(),
        }
    }

    /// Follows one source until the spec changes (`true`) or the mesh is gone (`false`).
    async fn run(&mut self, told: &mut watch::Receiver<Told>) -> bool {
        let wake = Arc::new(Notify::new());
        let (publish, mut sightings) = watch::channel(Sighting::default());
        let _follower = self.start_follower(&wake, publish);
        let mut fleet = self.shared.fleet.changes.clone();
        let mut trigger = self.shared.trigger.clone();
        let mut waiting_for_request: Option<(String, u64)> = None;
        self.request(&wake, sightings.borrow().attempts, &mut waiting_for_request);
        let mut known_news = None;
        loop {
            let drifted = self.drift.changed.clone();
            let retry = self.retry_at;
            let mut asked = false;
            tokio::select! {
                changed = sightings.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    asked = true;
                }
                () = drifted.notified() => tokio::time::sleep(DEBOUNCE).await,
                _ = fleet.changed() => tokio::time::sleep(DEBOUNCE).await,
                _ = trigger.changed() => { wake.notify_one(); continue }
                () = sleep_until(retry) => {}
                changed = told.changed() => {
                    if changed.is_err() {
                        return false;
                    }
                    let new = told.borrow_and_update().clone();
                    let same = new.spec.source == self.told.spec.source && new.spec.path == self.told.spec.path && new.spec.interval == self.told.spec.interval;
                    let resumed = self.told.spec.suspend && !new.spec.suspend;
                    self.told = new;
                    if !same || resumed {
                        self.candidate = None;
                        self.invalid = None;
                        self.settled = false;
                        return true;
                    }
                    self.request(&wake, sightings.borrow().attempts, &mut waiting_for_request);
                }
            }
            fleet.borrow_and_update();
            if self.told.spec.suspend {
                continue;
            }
            let sighting = sightings.borrow_and_update().clone();
            let news = (
                sighting
                    .snapshot
                    .as_ref()
                    .map(|snapshot| snapshot.revision.clone()),
                sighting.failure.clone(),
            );
            let old_news = asked && known_news.as_ref() == Some(&news) && waiting_for_request.is_none();
            if old_news {
                // The source was asked and has nothing new; a pause after a failure goes on.
                continue;
            }
            known_news = Some(news);
            if let Some((request, _)) =
                waiting_for_request.take_if(|(_, attempts)| sighting.attempts > *attempts)
            {
                self.last_handled = Some(request);
            }
            // A newer revision pre-empts a pass that waits for the older one.
            let mut newer = sightings.clone();
            let known = sighting
                .snapshot
                .as_ref()
                .map(|snapshot| snapshot.revision.clone());
            tokio::select! {
                biased;
                () = self.pass(&sighting) => {}
                () = newer_revision(&mut newer, known) => {
                    info!("A newer revision supersedes the one being applied");
                    self.settled = false;
                    known_news = None;
                    sightings.mark_changed();
                }
            }
        }
    }

    /// Notes a request by annotation and asks the source at once.
    fn request(&self, wake: &Notify, attempts: u64, waiting: &mut Option<(String, u64)>) {
        let handled = self.last_handled.as_ref().or(self
            .book
            .as_ref()
            .and_then(|book| book.old.last_handled_reconcile_at.as_ref()));
        if let Some(requested) = self
            .told
            .requested_at
            .as_ref()
            .filter(|requested| Some(*requested) != handled)
        {
            *waiting = Some((requested.clone(), attempts));
            wake.notify_one();
        }
    }

    fn start_follower(&mut self, wake: &Arc<Notify>, publish: watch::Sender<Sighting>) -> Follower {
        let spec = &self.told.spec;
        let followed = Followed {
            source: spec.source.clone(),
            path: spec.path.clone(),
            interval: spec.interval,
            cache_dir: self.shared.cache_dir.clone(),
            name: self.told.name.clone(),
            cluster: self.shared.cluster.clone(),
            namespace: self.shared.namespace.clone(),
        };
        Follower(tokio::spawn(follow::follow(followed, wake.clone(), publish)).abort_handle())
    }

    /// One pass; never fails, but notes and tries again.
    async fn pass(&mut self, sighting: &Sighting) {
        let begun = Instant::now();
        self.retry_at = None;
        let state = self.try_pass(sighting).await;
        let outcome = match &state {
            Ok(State::Ready) => "ready",
            Ok(State::Progressing { .. }) => "progressing",
            Ok(State::Suspended) => "suspended",
            Ok(State::Failed { .. } | State::Stalled { .. }) | Err(_) => "failed",
        };
        self.shared.cluster.metrics.reconciled(outcome, begun.elapsed());
        let is_ready = matches!(state, Ok(State::Ready));
        self.shared.cluster.metrics.ready(is_ready);
        self.ready
            .send_if_modified(|ready| std::mem::replace(ready, is_ready) != is_ready);
        match state {
            Ok(State::Failed { .. }) => self.retry_later(),
            Ok(_) => self.failures = 0,
            Err(error) => {
                warn!(mesh = self.told.name, error = %crate::cli::chain(&error), "The cluster does not answer; trying again");
                self.retry_later();
            }
        }
    }

    fn retry_later(&mut self) {
        let pause = (RETRY_MIN * 2_u32.saturating_pow(self.failures.min(10))).min(RETRY_MAX);
        self.failures += 1;
        self.retry_at = Some(Instant::now() + pause);
    }

    async fn try_pass(&mut self, sighting: &Sighting) -> Result<State, ClusterError> {
        self.take(sighting).await;
        let name = self.mesh_name();
        if self.book.as_ref().is_none_or(|book| book.name != name) {
            let book = Book::open(&self.shared.cluster, &name, None).await?;
            self.events = Some(Events::new(&self.shared.cluster, &name, book.uid.clone()));
            self.drift = Drift::new(&name);
            self.book = Some(book);
        }
        let state = match self.work_out().await {
            Ok(state) => state,
            Err(error) => State::Failed {
                reason: "ClusterUnreachable",
                message: crate::cli::chain(&error),
            },
        };
        // What keeps a newer revision out is worse news than that the older one is well.
        let state = match (state, &self.invalid, &sighting.failure) {
            (State::Ready | State::Progressing { .. }, Some((_, reason, message)), _) => State::Stalled {
                reason,
                message: message.clone(),
            },
            (State::Ready, None, Some((reason, message))) => State::Failed {
                reason,
                message: message.clone(),
            },
            (state, ..) => state,
        };
        self.report(sighting, &state).await?;
        Ok(state)
    }

    async fn work_out(&mut self) -> Result<State, ClusterError> {
        match self.apply().await? {
            State::Ready => self.roll_out().await,
            other => Ok(other),
        }
    }

    /// By flags, the mesh is named after its profile.
    fn mesh_name(&self) -> String {
        let desired = self.candidate.as_ref().or(self.current.as_ref());
        match desired.filter(|_| self.told.by_flags) {
            Some(desired) => desired.rendered.profile.clone(),
            None => self.told.name.clone(),
        }
    }

    /// Renders a new revision.
    async fn take(&mut self, sighting: &Sighting) {
        let Some(snapshot) = sighting.snapshot.clone() else {
            return;
        };
        let revision = snapshot.revision.to_string();
        let known = [&self.candidate, &self.current]
            .into_iter()
            .flatten()
            .any(|desired| desired.revision == revision)
            || self
                .invalid
                .as_ref()
                .is_some_and(|(invalid, ..)| *invalid == revision);
        if known {
            // Back to what is applied: what failed in between is history.
            if self
                .current
                .as_ref()
                .is_some_and(|current| current.revision == revision)
            {
                self.candidate = None;
                self.invalid = None;
            }
            return;
        }
        let begun = Instant::now();
        let (bundled, path) = (self.shared.bundled.clone(), self.told.spec.path.clone());
        let path = if self.told.spec.source.inline.is_some() {
            String::new()
        } else {
            path
        };
        let rendered = tokio::task::spawn_blocking(move || {
            let mesh = profile::load(snapshot.tree.as_ref(), &path, &bundled, &[]).map_err(|error| {
                let reason = match &error {
                    profile::ProfileError::Source(source) => source.reason(),
                    profile::ProfileError::Invalid(_) => "InvalidProfile",
                };
                (reason, crate::cli::chain(&error))
            })?;
            render::render(&mesh).map_err(|faults| ("RenderFailed", faults.to_string()))
        })
        .await
        .unwrap_or_else(|error| Err(("RenderFailed", format!("rendering broke off: {error}"))));
        self.shared.cluster.metrics.stage("render", begun.elapsed());
        match rendered {
            Ok(rendered) => {
                for note in &rendered.notes {
                    info!(note, "Note about the profile");
                }
                let digests = rendered
                    .objects
                    .iter()
                    .map(|object| (object.id.clone(), object.digest()))
                    .collect();
                let defaults = plan::defaults(&rendered);
                self.invalid = None;
                self.failures = 0;
                self.candidate = Some(Arc::new(Desired {
                    revision,
                    rendered: Arc::new(rendered),
                    digests,
                    defaults,
                    seen: sighting.seen.unwrap_or(begun),
                    started: Timestamp::now(),
                }));
            }
            Err((reason, message)) => {
                error!(
                    revision,
                    reason,
                    error = message,
                    "The revision is no valid profile; the last good one stays applied"
                );
                self.candidate = None;
                self.invalid = Some((revision, reason, message));
            }
        }
    }
}

/// Ends with the run that started it.
struct Follower(AbortHandle);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn newer_revision(sightings: &mut watch::Receiver<Sighting>, known: Option<crate::source::Revision>) {
    let differs = |sighting: &Sighting| {
        sighting
            .snapshot
            .as_ref()
            .map(|snapshot| snapshot.revision.clone())
            != known
    };
    if sightings.wait_for(differs).await.is_err() {
        std::future::pending::<()>().await;
    }
}
