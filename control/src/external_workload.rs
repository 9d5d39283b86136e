//! EndpointSlices of ExternalWorkloads: what Kubernetes itself does for pods, as Linkerd's destination controller does it.
//!
//! In go ExternalWorkloads, the Services that select them and the slices that are there; out go slices. Only the replica
//! that holds the Lease watches and writes; Services are watched only while there are ExternalWorkloads, since most
//! clusters have none.

mod cache;
mod plan;

use std::{collections::BTreeMap, time::Duration};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use heddle_control_index::watcher::is_served;
use heddle_daemon::report;
use heddle_k8s::external_workload::ExternalWorkload;
use k8s_openapi::api::{core::v1::Service, discovery::v1::EndpointSlice};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
    registry::Registry,
};
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, warn};

use self::{
    cache::{Cache, ServiceKey},
    plan::{Change, LABEL_MANAGED_BY, MANAGED_BY},
};
use crate::lease::{Leadership, WriteError};

/// The Lease; Linkerd's.
pub(crate) const LEASE: &str = "linkerd-destination-endpoint-write";

const PAGE_SIZE: u32 = 500;
/// How often a cluster without the kind is asked whether it has got it.
const MISSING_POLL: Duration = Duration::from_secs(15);
/// What comes in together is written together.
const SETTLE: Duration = Duration::from_millis(100);
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Far beyond any wait for something to do.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Writes slices.
pub(crate) struct Controller {
    client: Client,
    leadership: Leadership,
    writes: Family<Label, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    verb: &'static str,
    result: &'static str,
}

/// What is to be done, and when again what could not be.
#[derive(Debug, Default)]
struct Work {
    /// When each Service is to be looked at, and how long it waited last.
    due: BTreeMap<ServiceKey, (Instant, Duration)>,
}

impl Controller {
    pub(crate) fn new(client: Client, leadership: Leadership, registry: &mut Registry) -> Self {
        let writes = Family::default();
        registry.register(
            "external_workload_slice_writes",
            "Writes of ExternalWorkloads' EndpointSlices, by verb and result",
            Clone::clone(&writes),
        );
        Self {
            client,
            leadership,
            writes,
        }
    }

    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let mut leadership = self.leadership.clone();
        loop {
            leadership.leading().await;
            // A write that is under way when the Lease is lost ends by its permit's deadline, not in the middle.
            self.lead().await;
        }
    }

    /// Watches and writes while this replica leads.
    async fn lead(&self) {
        let mut leadership = self.leadership.clone();
        while !matches!(is_served::<ExternalWorkload>(&self.client).await, Ok(true)) {
            tokio::select! {
                () = leadership.lost() => return,
                () = sleep(MISSING_POLL) => {}
            }
        }
        let config = || watcher::Config::default().page_size(PAGE_SIZE);
        let ours = config().labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
        let mut workloads = watch::<ExternalWorkload>(&self.client, config());
        let mut slices = watch::<EndpointSlice>(&self.client, ours);
        let mut services: BoxStream<'static, watcher::Result<Event<Service>>> = stream::pending().boxed();
        let mut cache = Cache::default();
        let mut work = Work::default();
        loop {
            // The time to look again may be long past when the caches are not complete yet.
            let next = if cache.is_complete() {
                work.next()
            } else {
                Instant::now() + IDLE
            };
            tokio::select! {
                () = leadership.lost() => return,
                event = workloads.next() => match event {
                    Some(Ok(event)) => work.add(cache.workload(event)),
                    other => complain("ExternalWorkloads", other),
                },
                event = slices.next() => match event {
                    Some(Ok(event)) => work.add(cache.slice(event)),
                    other => complain("EndpointSlices", other),
                },
                event = services.next() => match event {
                    Some(Ok(event)) => work.add(cache.service(event)),
                    other => complain("Services", other),
                },
                () = sleep_until(next) => {
                    for (key, waited) in work.take_due() {
                        if let Err(error) = self.settle(&mut cache, &key).await {
                            if matches!(error, WriteError::NotLeading) {
                                return;
                            }
                            // 409: the slice is not as it was; its event is on its way.
                            if error.code() != Some(409) {
                                warn!(namespace = key.0, service = key.1, %error, "Failed to write an EndpointSlice");
                            }
                            work.again(key, waited);
                        }
                    }
                }
            }
            match (cache.needs_services(), cache.watches_services) {
                (true, false) => {
                    services = watch::<Service>(&self.client, config());
                    cache.watches_services = true;
                }
                (false, true) => {
                    services = stream::pending().boxed();
                    cache.forget_services();
                }
                _ => {}
            }
        }
    }

    /// Makes a Service's slices what they should be.
    async fn settle(&self, cache: &mut Cache, (namespace, name): &ServiceKey) -> Result<(), WriteError> {
        let api: Api<EndpointSlice> = Api::namespaced(self.client.clone(), namespace);
        let params = PostParams {
            field_manager: Some(MANAGED_BY.to_owned()),
            ..PostParams::default()
        };
        for change in cache.plan(namespace, name) {
            let permit = self.leadership.permit().await?;
            // What was answered is known at once: the next plan must not wait for the watch to say it.
            let (verb, result) = match change {
                Change::Create(slice) => {
                    let written = permit.write(api.create(&params, &slice)).await;
                    ("create", written.map(|slice| cache.wrote(slice)))
                }
                Change::Update(slice) => {
                    let written = permit
                        .write(api.replace(&slice.name_any(), &params, &slice))
                        .await;
                    ("update", written.map(|slice| cache.wrote(slice)))
                }
                Change::Delete(slice) => {
                    let written = permit.write(api.delete(&slice, &DeleteParams::default())).await;
                    let gone = matches!(&written, Err(error) if error.code() == Some(404));
                    let written = if gone { Ok(()) } else { written.map(|_| ()) };
                    ("delete", written.map(|()| cache.deleted(namespace, &slice)))
                }
            };
            let word = match &result {
                Ok(()) => "done",
                Err(error) if error.code() == Some(409) => "conflict",
                Err(_) => "failed",
            };
            self.writes.get_or_create(&Label { verb, result: word }).inc();
            debug!(
                namespace,
                service = name,
                verb,
                result = word,
                "Wrote an EndpointSlice of ExternalWorkloads"
            );
            result?;
        }
        Ok(())
    }
}

fn watch<K>(client: &Client, config: watcher::Config) -> BoxStream<'static, watcher::Result<Event<K>>>
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + 'static,
{
    watcher(Api::<K>::all(client.clone()), config)
        .default_backoff()
        .boxed()
}

fn complain<T>(what: &str, event: Option<watcher::Result<T>>) {
    if let Some(Err(error)) = event {
        warn!(error = %report::chain(&error), "Failed to watch {what}: the watch begins anew");
    }
}

impl Work {
    fn add(&mut self, keys: Vec<ServiceKey>) {
        let at = Instant::now() + SETTLE;
        for key in keys {
            // What is waiting already does not wait longer.
            self.due.entry(key).or_insert((at, Duration::ZERO));
        }
    }

    fn again(&mut self, key: ServiceKey, waited: Duration) {
        let delay = (waited * 2).clamp(RETRY_MIN, RETRY_MAX);
        self.due.insert(key, (Instant::now() + delay, delay));
    }

    fn next(&self) -> Instant {
        let next = self.due.values().map(|(at, _)| *at).min();
        next.unwrap_or_else(|| Instant::now() + IDLE)
    }

    fn take_due(&mut self) -> Vec<(ServiceKey, Duration)> {
        let now = Instant::now();
        let is_due = |_: &ServiceKey, (at, _): &mut (Instant, Duration)| *at <= now;
        let due = self.due.extract_if(.., is_due);
        due.map(|(key, (_, waited))| (key, waited)).collect()
    }
}
