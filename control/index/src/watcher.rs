//! Watches of an API server that feed a [`Cluster`]: one task for each kind.
//!
//! One object that cannot be read does not stop the others. A kind that the cluster does not have (its CRD is not
//! installed, yet) counts as a kind without objects, and is looked for again and again.

mod raw;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt as _;
use kube::{
    Api, Client, Resource,
    core::ApiResource,
    runtime::{WatchStreamExt as _, utils::Backoff, watcher, watcher::Event},
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use self::raw::Raw;
use crate::{Change, Cluster, Listing, ObjectKey, Reduced, Tracked};

/// How long a list request may take; the API server ends watches within this time, too.
const WATCH_SECS: u32 = 290;

/// How long a watch may be silent before it is taken for dead, for the client's configuration. API servers send a
/// bookmark about every minute when nothing else happens.
pub const SILENCE_MAX: Duration = Duration::from_secs(150);

/// Objects in one page of a list: bounds the memory that a relist takes.
const PAGE_SIZE: u32 = 100;

/// Events that are taken in at once when so many have come in.
const BATCH_MAX: usize = 256;

/// How often a kind that the cluster does not have is looked for.
const MISSING_POLL: Duration = Duration::from_secs(5);

/// The pause after a watch's first failure, and the longest after later ones.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_millis(1500);

/// Running watches. Dropping it ends them.
pub struct Watchers {
    client: Client,
    cluster: Cluster,
    tasks: JoinSet<()>,
    pending: Arc<AtomicUsize>,
    metrics: Metrics,
}

/// Whether all watches have their first list.
#[derive(Clone, Debug)]
pub struct Synced(Arc<AtomicUsize>);

#[derive(Clone, Debug, Default)]
struct Metrics {
    events: Family<Kind, Counter>,
    restarts: Family<Kind, Counter>,
    unreadable: Family<Kind, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    group: String,
    kind: String,
}

impl Watchers {
    /// No watches yet; their metrics go to `registry`.
    pub fn new(client: Client, cluster: Cluster, registry: &mut Registry) -> Self {
        let metrics = Metrics::default();
        let Metrics {
            events,
            restarts,
            unreadable,
        } = &metrics;
        registry.register("watch_events", "Watch events received", events.clone());
        registry.register(
            "watch_restarts",
            "Watches that began anew with a list",
            restarts.clone(),
        );
        registry.register(
            "watch_unreadable_objects",
            "Objects ignored because they could not be read",
            unreadable.clone(),
        );
        Self {
            client,
            cluster,
            tasks: JoinSet::new(),
            pending: Arc::new(AtomicUsize::new(0)),
            metrics,
        }
    }

    /// Whether all watches started so far have their first list.
    pub fn synced(&self) -> Synced {
        Synced(self.pending.clone())
    }

    /// Starts to watch a kind in all namespaces.
    pub fn watch<K>(&mut self)
    where
        K: Tracked + DeserializeOwned + Send + Sync + 'static,
    {
        self.pending.fetch_add(1, Ordering::AcqRel);
        let kind = Kind {
            group: K::group(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
        };
        let watch = Watch::<K> {
            cluster: self.cluster.clone(),
            pending: Some(self.pending.clone()),
            metrics: self.metrics.clone(),
            kind,
            list: Listing::default(),
            changes: Vec::new(),
            missing: false,
        };
        self.tasks.spawn(watch.run(self.client.clone()));
    }

    /// Waits until one of the watches ends, which only a bug makes it do.
    pub async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Err(error)) => warn!(%error, "A watch failed"),
            Some(Ok(())) => warn!("A watch ended"),
            None => std::future::pending().await,
        }
    }
}

impl Synced {
    /// Whether they have.
    pub fn is_synced(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

/// One watch.
struct Watch<K: Tracked> {
    cluster: Cluster,
    kind: Kind,
    /// Taken when the first list is complete.
    pending: Option<Arc<AtomicUsize>>,
    metrics: Metrics,
    /// The objects of a list that is still coming in.
    list: Listing<K>,
    /// Changes that have come in together and are not handed over yet; at most a batch.
    changes: Vec<Change<K>>,
    missing: bool,
}

impl<K> Watch<K>
where
    K: Tracked + DeserializeOwned + Send + Sync + 'static,
{
    async fn run(mut self, client: Client) {
        let api: Api<Raw> = Api::all_with(client.clone(), &ApiResource::erase::<K>(&()));
        loop {
            self.wait_for_kind(&client).await;
            let config = watcher::Config::default()
                .timeout(WATCH_SECS)
                .page_size(PAGE_SIZE);
            let mut events = watcher::watcher(api.clone(), config)
                .backoff(Pause::default())
                .ready_chunks(BATCH_MAX)
                .boxed();
            'watch: while let Some(batch) = events.next().await {
                for event in batch {
                    match event {
                        Ok(event) => self.event(event),
                        Err(error) if is_missing(&error) => break 'watch,
                        Err(error) => {
                            let Kind { group, kind } = &self.kind;
                            warn!(group, kind, error = %chain(&error), "A watch failed: it begins anew");
                        }
                    }
                }
                self.flush();
            }
            self.flush();
            // Discovery and the kind itself may disagree for a moment while a CRD comes or goes.
            tokio::time::sleep(MISSING_POLL).await;
        }
    }

    /// Hands over the changes that have come in.
    fn flush(&mut self) {
        if !self.changes.is_empty() {
            self.cluster.apply_all(std::mem::take(&mut self.changes));
        }
    }

    /// Waits until the cluster has the kind. When discovery itself fails, the watch will say why.
    async fn wait_for_kind(&mut self, client: &Client) {
        while matches!(is_served::<K>(client).await, Ok(false)) {
            if !self.missing {
                let Kind { group, kind } = &self.kind;
                warn!(
                    group,
                    kind, "The cluster does not have this kind: going on without until it does"
                );
                self.missing = true;
                self.cluster.reset::<K>(&[]);
                self.ready();
            }
            tokio::time::sleep(MISSING_POLL).await;
        }
    }

    fn event(&mut self, event: Event<Raw>) {
        self.metrics.events.get_or_create(&self.kind).inc();
        match event {
            Event::Init => {
                self.metrics.restarts.get_or_create(&self.kind).inc();
                self.flush();
                self.list = Listing::default();
            }
            Event::InitApply(object) => match self.readable(&object) {
                Some(object) => self.list.push(object),
                None => self.list.keep(ObjectKey::of(&object)),
            },
            Event::InitDone => {
                if std::mem::take(&mut self.missing) {
                    let Kind { group, kind } = &self.kind;
                    info!(group, kind, "Found a kind that the cluster did not have before");
                }
                self.cluster.replace(std::mem::take(&mut self.list));
                self.ready();
            }
            Event::Apply(object) => {
                if let Some(object) = self.readable(&object) {
                    self.changes.push(Change::Applied(object));
                }
            }
            // A deletion needs the object's name alone.
            Event::Delete(object) => self.changes.push(Change::Deleted(ObjectKey::of(&object))),
        }
    }

    /// What is known of an object stays as it was when a change makes it unreadable.
    fn readable(&self, object: &Raw) -> Option<Reduced<K>> {
        match object.read::<K>() {
            Ok(object) => Some(self.cluster.reduce(&object)),
            Err(error) => {
                self.metrics.unreadable.get_or_create(&self.kind).inc();
                let ObjectKey { namespace, name } = ObjectKey::of(object);
                warn!(group = self.kind.group, kind = self.kind.kind, %namespace, %name, %error, "Ignored an object that cannot be read");
                None
            }
        }
    }

    fn ready(&mut self) {
        if let Some(pending) = self.pending.take() {
            pending.fetch_sub(1, Ordering::AcqRel);
            debug!(group = self.kind.group, kind = self.kind.kind, "Synced");
        }
    }
}

/// How long a watch that failed waits before it begins anew: never so long that a proxy would miss much after the API
/// server has recovered, and at random, so that not all watches of all replicas come back at once.
#[derive(Debug, Default)]
struct Pause {
    failures: u32,
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(8)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        Some(pause.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.5..=1.0)))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// Whether the cluster has a kind; kinds of Kubernetes' own core always are there.
///
/// Asked by discovery, because a watch that is refused costs an error in the client's log each time.
///
/// # Errors
/// The API server does not tell.
pub async fn is_served<K: Resource<DynamicType = ()>>(client: &Client) -> kube::Result<bool> {
    let group = K::group(&());
    if group.is_empty() {
        return Ok(true);
    }
    let groups = client.list_api_groups().await?;
    let version = K::version(&());
    let served = groups
        .groups
        .iter()
        .any(|one| one.name == group && one.versions.iter().any(|v| v.version == version));
    if !served {
        return Ok(false);
    }
    let plural = K::plural(&());
    let resources = client.list_api_group_resources(&K::api_version(&())).await?;
    Ok(resources.resources.iter().any(|resource| resource.name == plural))
}

/// Whether the API server says that there is no such kind.
fn is_missing(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code == 404,
        watcher::Error::WatchError(status) => status.code == 404,
        _ => false,
    }
}

/// kube's errors print their source themselves; whatever they leave out is added.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
