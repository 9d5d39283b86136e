//! One mesh: takes what its source has, makes the cluster so, and keeps it so.
//!
//! The worker sleeps until something happened: a new revision, a change of an object that was applied, of a workload or
//! pod, of the Mesh object itself, or the end of a pause after a failure. Then it makes one pass. It holds no state that
//! is not in Git or in the cluster, but for caches and pauses: killed at any point, its successor ends in the same state.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use heddle_inject::ProxyDefaults;
use heddle_k8s::mesh::{MeshSpec, MeshStatus, Outcome};
use k8s_openapi::jiff::Timestamp;
use tokio::{sync::{watch, Notify}, task::AbortHandle, time::Instant};
use tracing::{error, info, warn};

use super::{drift::{self, Drift, Mark}, fleet::FleetCache, follow::{self, Followed, Sighting}, inventory_after, Book, Standing};
use crate::{
    cluster::{Cluster, ClusterError},
    execute::{self, ExecuteError, Options, Report, RestartError},
    object::{self, ObjectId},
    observe::Observed,
    pipeline, plan::{self, Action, Plan, Skip},
    profile::{self, Bundled},
    render::{self, Rendered},
    rollout::{self, Progress, Verdict},
    status::{self, Events, State},
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
            drift: Drift::new(&told.name), shared, told, ready, book: None, events: None, current: None, candidate: None,
            invalid: None, clean: BTreeMap::new(), conflicts: BTreeMap::new(), inventory_checked: false, settled: false, failures: 0,
            retry_at: None, progress: Progress::default(), restarting: BTreeMap::new(), halted: None, said: None, last_handled: None,
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
            let news = (sighting.snapshot.as_ref().map(|snapshot| snapshot.revision.clone()), sighting.failure.clone());
            let old_news = asked && known_news.as_ref() == Some(&news) && waiting_for_request.is_none();
            if old_news {
                // The source was asked and has nothing new; a pause after a failure goes on.
                continue;
            }
            known_news = Some(news);
            if let Some((request, _)) = waiting_for_request.take_if(|(_, attempts)| sighting.attempts > *attempts) {
                self.last_handled = Some(request);
            }
            // A newer revision pre-empts a pass that waits for the older one.
            let mut newer = sightings.clone();
            let known = sighting.snapshot.as_ref().map(|snapshot| snapshot.revision.clone());
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
        let handled = self.last_handled.as_ref().or(self.book.as_ref().and_then(|book| book.old.last_handled_reconcile_at.as_ref()));
        if let Some(requested) = self.told.requested_at.as_ref().filter(|requested| Some(*requested) != handled) {
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
        self.ready.send_if_modified(|ready| std::mem::replace(ready, is_ready) != is_ready);
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
            Err(error) => State::Failed { reason: "ClusterUnreachable", message: crate::cli::chain(&error) },
        };
        // What keeps a newer revision out is worse news than that the older one is well.
        let state = match (state, &self.invalid, &sighting.failure) {
            (State::Ready | State::Progressing { .. }, Some((_, reason, message)), _) => State::Stalled { reason, message: message.clone() },
            (State::Ready, None, Some((reason, message))) => State::Failed { reason, message: message.clone() },
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
        let Some(snapshot) = sighting.snapshot.clone() else { return };
        let revision = snapshot.revision.to_string();
        let known = [&self.candidate, &self.current].into_iter().flatten().any(|desired| desired.revision == revision)
            || self.invalid.as_ref().is_some_and(|(invalid, ..)| *invalid == revision);
        if known {
            // Back to what is applied: what failed in between is history.
            if self.current.as_ref().is_some_and(|current| current.revision == revision) {
                self.candidate = None;
                self.invalid = None;
            }
            return;
        }
        let begun = Instant::now();
        let (bundled, path) = (self.shared.bundled.clone(), self.told.spec.path.clone());
        let path = if self.told.spec.source.inline.is_some() { String::new() } else { path };
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
                let digests = rendered.objects.iter().map(|object| (object.id.clone(), object.digest())).collect();
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
                error!(revision, reason, error = message, "The revision is no valid profile; the last good one stays applied");
                self.candidate = None;
                self.invalid = Some((revision, reason, message));
            }
        }
    }

    /// Brings the cluster to the newest revision that it takes.
    async fn apply(&mut self) -> Result<State, ClusterError> {
        if let Some(desired) = self.candidate.clone() {
            // Nothing of the candidate counts as checked until its own pass has looked.
            self.settled = false;
            let state = self.apply_desired(&desired, true).await?;
            if !matches!(state, State::Failed { reason, .. } if reason != "Conflict") {
                self.current = Some(desired);
                self.candidate = None;
            }
            return Ok(state);
        }
        match self.current.clone() {
            Some(desired) => self.apply_desired(&desired, false).await,
            None => Ok(State::Ready),
        }
    }

    async fn apply_desired(&mut self, desired: &Desired, new: bool) -> Result<State, ClusterError> {
        let cluster = self.shared.cluster.clone();
        let begun = Instant::now();
        let dirty: BTreeSet<&ObjectId> = desired.digests.iter().filter(|(id, digest)| self.is_dirty(id, digest)).map(|(id, _)| id).collect();
        let inventory = match self.inventory_checked && !new {
            true => BTreeSet::new(),
            false => status::inventory(self.book.as_ref().map(|book| &book.old)),
        };
        if dirty.is_empty() && self.settled && !new {
            return Ok(self.state_of_conflicts());
        }
        let wish = pipeline::Wish { rendered: &desired.rendered, inventory: &inventory, prune: self.told.spec.prune, rollout: false };
        let (observed, plan) = pipeline::plan(&cluster, &wish, |object| dirty.contains(&object.id)).await?;
        cluster.metrics.stage("plan", begun.elapsed());
        let changes = plan.changes().count();
        let mut report = Report::default();
        let options = Options { wait: self.shared.wait, wait_for_all: !self.settled && self.shared.wait, timeout: self.told.spec.timeout };
        let spec = serde_json::to_value(&self.told.spec).unwrap_or_default();
        let by_flags = self.told.by_flags;
        if let Some(book) = &mut self.book {
            if by_flags {
                book.ensure(&cluster, &spec).await?;
            }
            book.promise(&cluster, &desired.rendered, &plan).await?;
        }
        let executing = Instant::now();
        let result = execute::execute(&cluster, &desired.rendered, &plan, options, &mut report).await;
        cluster.metrics.stage("execute", executing.elapsed());
        if let (Some(book), true) = (&mut self.book, by_flags) {
            book.ensure(&cluster, &spec).await?;
        }
        self.remember(desired, &observed, &plan, &report);
        self.drift.watch(&cluster, desired.rendered.objects.iter().filter(|object| !object.partial).map(|object| &object.id)).await;
        if !report.done.is_empty() {
            self.announce(desired, new, &plan, &report).await;
        }
        match result {
            Ok(()) => {
                self.said = None;
                self.inventory_checked = true;
                self.settled = true;
                if new && self.applied_at_once.insert(desired.revision.clone()) {
                    self.applied_at_once.retain(|revision| *revision == desired.revision);
                    cluster.metrics.applied(desired.seen.elapsed());
                    info!(revision = desired.revision, changes, took_ms = begun.elapsed().as_millis(), since_seen_ms = desired.seen.elapsed().as_millis(), "Applied");
                }
                Ok(self.state_of_conflicts())
            }
            Err(ExecuteError::Cluster(error)) => Err(error),
            Err(error) => {
                self.settled = false;
                let message = crate::cli::chain(&error);
                if self.said.as_ref() != Some(&message) {
                    error!(revision = desired.revision, reason = error.reason(), error = message, "The revision could not be applied; trying again");
                    self.said = Some(message.clone());
                }
                Ok(State::Failed { reason: error.reason(), message })
            }
        }
    }

    fn state_of_conflicts(&self) -> State {
        if self.conflicts.is_empty() {
            return State::Ready;
        }
        let texts: Vec<_> = self.conflicts.iter().map(|(id, text)| format!("{id}: {text}")).collect();
        State::Failed { reason: "Conflict", message: texts.join("; ") }
    }

    fn is_dirty(&self, id: &ObjectId, digest: &str) -> bool {
        let Some((clean, mark)) = self.clean.get(id) else { return true };
        if clean != digest {
            return true;
        }
        if let Some(seen) = self.partial_mark(id) {
            return seen != *mark;
        }
        match self.drift.mark(id) {
            // Not watched yet: what was seen last must do.
            None => false,
            Some(live) => live != Some(*mark),
        }
    }

    /// The mark of an object of which only annotations are ours: those annotations.
    fn partial_mark(&self, id: &ObjectId) -> Option<Mark> {
        let desired = self.candidate.as_ref().or(self.current.as_ref());
        let partial = desired.and_then(|desired| desired.rendered.get(id)).is_some_and(|object| object.partial);
        if !partial {
            return None;
        }
        let fleet = self.shared.fleet.annotations_of(id);
        Some(drift::of_annotations(fleet.as_ref()))
    }

    /// Notes which objects are as desired now.
    fn remember(&mut self, desired: &Desired, observed: &Observed, plan: &Plan, report: &Report) {
        let applied: BTreeMap<_, _> = report.applied.iter().map(|(id, object)| (id, object)).collect();
        for step in plan.steps.iter().filter(|step| desired.digests.contains_key(&step.id)) {
            let live = match &step.action {
                Action::Keep | Action::Skip(_) => observed.desired.get(&step.id).and_then(|seen| seen.live.as_ref()),
                _ => applied.get(&step.id).copied(),
            };
            match &step.action {
                Action::Skip(skip @ Skip::Conflict(_)) => {
                    self.conflicts.insert(step.id.clone(), skip.to_string());
                }
                _ => {
                    self.conflicts.remove(&step.id);
                }
            }
            let partial = desired.rendered.get(&step.id).is_some_and(|object| object.partial);
            let mark = match (live, partial) {
                (Some(live), false) => drift::of_object(live),
                (live, true) => drift::of_annotations(live.map(|live| annotations_of_object(&step.id, live)).as_ref()),
                // Left out, as long as its CRD is missing.
                (None, false) => continue,
            };
            self.clean.insert(step.id.clone(), (desired.digests[&step.id].clone(), mark));
        }
        self.clean.retain(|id, _| desired.digests.contains_key(id));
        self.conflicts.retain(|id, _| desired.digests.contains_key(id));
    }

    async fn announce(&self, desired: &Desired, new: bool, plan: &Plan, report: &Report) {
        let Some(events) = &self.events else { return };
        let what = status::describe(&report.done);
        if new {
            events.say(false, "Applied", "Apply", &format!("{}: {what}", desired.revision)).await;
            return;
        }
        for step in plan.steps.iter().filter(|step| matches!(step.action, Action::Revert { .. })) {
            info!(object = %step.id, "Repaired a change by hand");
        }
        events.say(false, "DriftRepaired", "Apply", &format!("the cluster differed from {}: {what}", desired.revision)).await;
    }

    /// Restarts the next wave, when there is one.
    async fn roll_out(&mut self) -> Result<State, ClusterError> {
        let Some((rendered, defaults)) = self.current.as_ref().and_then(|current| Some((current.rendered.clone(), current.defaults.clone()?))) else {
            return Ok(State::Ready);
        };
        let fleet = self.shared.fleet.fleet();
        let standing = Standing::of(&fleet, |workload| rollout::judge(&defaults, &fleet, workload));
        let now = Instant::now();
        let under_way: BTreeSet<ObjectId> = standing.restarting.iter().map(|workload| workload.id.clone()).collect();
        self.restarting.retain(|id, _| under_way.contains(id));
        for id in &under_way {
            self.restarting.entry(id.clone()).or_insert(now);
        }
        let late = self.restarting.iter().find(|(_, since)| now.duration_since(**since) >= rendered.rollout.timeout);
        if let Some((id, _)) = late {
            let message = format!("the rollout halts: {id} is not available {} s after its restart", rendered.rollout.timeout.as_secs());
            if self.halted.as_ref() != Some(&message) {
                error!(workload = %id, "The rollout halts: a restarted workload does not become available");
                self.halted = Some(message.clone());
            }
            return Ok(State::Failed { reason: "RolloutHalted", message });
        }
        self.halted = None;
        let mut waiting_for_injector = None;
        for workload in standing.next(&rendered, &mut self.progress) {
            let Verdict::Outdated { to, attempt } = rollout::judge(&defaults, &fleet, workload) else { continue };
            match execute::restart(&self.shared.cluster, workload, &to, attempt).await {
                Ok(()) => {
                    if let Some(events) = &self.events {
                        let left = standing.outdated.len() - 1;
                        events.say(false, "Restarted", "Rollout", &format!("{}: its pods carry another proxy than Git asks for ({left} more to go)", workload.id)).await;
                    }
                }
                Err(RestartError::Cluster(error)) => return Err(error),
                Err(error) => {
                    self.retry_at = Some(now + PROBE_RETRY);
                    waiting_for_injector = Some(error.to_string());
                    break;
                }
            }
        }
        if let Some(earliest) = self.restarting.values().min() {
            // Wake up to notice that one is late, should nothing else happen.
            let due = *earliest + rendered.rollout.timeout;
            self.retry_at = Some(self.retry_at.map_or(due, |at| at.min(due)));
        }
        let open = standing.outdated.len() + standing.restarting.len();
        if let Some(message) = waiting_for_injector {
            return Ok(State::Progressing { reason: "WaitingForInjector", message });
        }
        if open > 0 {
            let message = format!("{open} workloads do not carry the proxy that Git asks for yet");
            return Ok(State::Progressing { reason: "RollingOut", message });
        }
        if let Some((workload, hold)) = standing.held.first() {
            return Ok(State::Progressing { reason: "RolloutHeld", message: format!("{}: {hold}", workload.id) });
        }
        Ok(State::Ready)
    }

    /// Writes the status and says what people should know.
    async fn report(&mut self, sighting: &Sighting, state: &State) -> Result<(), ClusterError> {
        let now = Timestamp::now();
        let rollout = self.current.as_ref().and_then(|current| current.defaults.as_ref()).map(|defaults| {
            let fleet = self.shared.fleet.fleet();
            status::rollout_status(&fleet, |workload| rollout::judge(defaults, &fleet, workload))
        });
        let Some(book) = &mut self.book else { return Ok(()) };
        let mut new: MeshStatus = book.old.clone();
        if let Some(snapshot) = &sighting.snapshot {
            new.last_attempted_revision = Some(snapshot.revision.to_string());
        }
        if self.last_handled.is_some() {
            new.last_handled_reconcile_at.clone_from(&self.last_handled);
        }
        let applied = self.current.as_ref().filter(|_| self.settled && self.candidate.is_none());
        if let Some(current) = applied {
            new.last_applied_revision = Some(current.revision.clone());
            let plan = Plan { steps: Vec::new(), refusals: Vec::new() };
            let inventory = inventory_after(&current.rendered, &plan);
            let skipped = inventory.entries.iter().filter(|entry| ObjectId::from_inventory_key(&entry.id).is_some_and(|id| self.clean.contains_key(&id))).cloned().collect();
            new.inventory = Some(heddle_k8s::mesh::Inventory { entries: skipped });
            if new.rollout != rollout && rollout.is_some() {
                new.rollout = rollout;
            }
            if self.invalid.is_none() {
                status::note(&mut new, &current.revision, Outcome::Applied, None, current.started, now);
            }
        }
        let failed = match (state, &self.candidate, &self.invalid) {
            (_, _, Some((revision, _, message))) => Some((revision.clone(), message.clone(), now)),
            (State::Failed { message, .. }, Some(candidate), None) => Some((candidate.revision.clone(), message.clone(), candidate.started)),
            _ => None,
        };
        if let Some((revision, message, started)) = failed {
            status::note(&mut new, &revision, Outcome::Failed, Some(message), started, now);
        }
        let generation = if self.told.by_flags { book.generation } else { self.told.generation };
        let revision = new.last_applied_revision.clone();
        status::set_state(&mut new, generation, state, revision.as_deref(), now);
        let known = book.old.conditions.clone();
        book.write(&self.shared.cluster, new).await?;
        let changed = known.iter().map(|condition| &condition.message).ne(book.old.conditions.iter().map(|condition| &condition.message));
        let Some(events) = self.events.as_ref().filter(|_| changed) else { return Ok(()) };
        if let Some(old) = &sighting.rewritten_from {
            events.say(true, "HistoryRewritten", "Fetch", &format!("the branch was pushed by force: {old} is not among its ancestors; following the new history")).await;
            warn!(replaced = old, "The branch was pushed by force; following the new history");
        }
        match state {
            State::Failed { reason, message } | State::Stalled { reason, message } => events.say(true, reason, "Reconcile", message).await,
            State::Progressing { reason: reason @ ("RolloutHeld" | "RolloutHalted"), message } => events.say(true, reason, "Rollout", message).await,
            State::Ready => {
                if let Some(revision) = &book.old.last_applied_revision {
                    events.say(false, "ReconciliationSucceeded", "Reconcile", &format!("Applied revision: {revision}")).await;
                }
            }
            State::Progressing { .. } | State::Suspended => {}
        }
        Ok(())
    }
}

fn annotations_of_object(id: &ObjectId, live: &serde_json::Value) -> BTreeMap<String, String> {
    let path: &[&str] = if id.is("", "Namespace") { &["metadata", "annotations"] } else { &["spec", "template", "metadata", "annotations"] };
    object::string_map(object::at(live, path))
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
    let differs = |sighting: &Sighting| sighting.snapshot.as_ref().map(|snapshot| snapshot.revision.clone()) != known;
    if sightings.wait_for(differs).await.is_err() {
        std::future::pending::<()>().await;
    }
}
