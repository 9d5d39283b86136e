//! Which of several replicas writes: the one that holds a Lease (coordination.k8s.io), as Kubernetes' own controllers do
//! it, so that anything else that keeps to a Lease of the same name takes its turn, too.
//!
//! Clocks are not compared: a Lease counts as expired when it has not changed for its duration, as seen from here. Each
//! write takes a [`Permit`], which is not given beyond two thirds of that, so that a replica that has lost touch has
//! stopped writing before another begins.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use heddle_daemon::report;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tracing::{debug, info, warn};

use crate::webhook::said;

/// Linkerd's.
const DURATION: Duration = Duration::from_secs(30);
const RENEW_AFTER: Duration = Duration::from_secs(10);
/// How long after it began a renewal permits writes; a third of the duration is left to those that are under way.
const VALID: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Writes at a time.
const WRITES_MAX: u32 = 4;

/// Keeps a Lease, or waits for it.
pub(crate) struct Elector {
    api: Api<Lease>,
    name: &'static str,
    holder: String,
    until: watch::Sender<Option<Instant>>,
    writing: Arc<Semaphore>,
    seen: Seen,
    complaint: Option<String>,
    leader: Gauge,
    transitions: Counter,
}

/// Whether this replica writes. Clones tell of the same Lease.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    until: watch::Receiver<Option<Instant>>,
    writing: Arc<Semaphore>,
}

/// One write, now.
pub(crate) struct Permit {
    until: Instant,
    _one: OwnedSemaphorePermit,
}

/// Why a write was not made, or not answered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("another replica writes")]
    NotLeading,
    #[error("no answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    #[error("{}", said(.0))]
    Api(Box<kube::Error>),
}

/// The metrics of all Leases.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    leader: Family<Label, Gauge>,
    transitions: Family<Label, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Label {
    lease: &'static str,
}

/// A Lease, and since when it has been as it is.
#[derive(Clone, Debug)]
struct Seen {
    lease: Option<Lease>,
    since: Instant,
}

/// What to do about a Lease.
#[derive(Debug, PartialEq)]
enum Action {
    Create,
    Take,
    Renew,
    WaitUntil(Instant),
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { leader, transitions } = &metrics;
        registry.register(
            "lease_leader",
            "Whether this replica holds the Lease",
            leader.clone(),
        );
        registry.register(
            "lease_transitions",
            "How often this replica has obtained or lost the Lease",
            transitions.clone(),
        );
        metrics
    }
}

impl Elector {
    pub(crate) fn new(
        client: Client,
        namespace: &str,
        name: &'static str,
        metrics: &Metrics,
    ) -> (Self, Leadership) {
        let (until, receiver) = watch::channel(None);
        let writing = Arc::new(Semaphore::new(WRITES_MAX as usize));
        let label = Label { lease: name };
        let elector = Self {
            api: Api::namespaced(client, namespace),
            name,
            holder: holder(),
            until,
            writing: writing.clone(),
            seen: Seen {
                lease: None,
                since: Instant::now(),
            },
            complaint: None,
            leader: metrics.leader.get_or_create(&label).clone(),
            transitions: metrics.transitions.get_or_create(&label).clone(),
        };
        let leadership = Leadership {
            until: receiver,
            writing,
        };
        (elector, leadership)
    }

    /// Runs until the drain, and gives the Lease back then.
    pub(crate) async fn run(mut self, drain: heddle_daemon::Watch) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher::watcher(self.api.clone(), only).default_backoff().boxed();
        let mut drained = std::pin::pin!(drain.signaled());
        let mut listed = false;
        let mut next = Instant::now();
        loop {
            tokio::select! {
                release = &mut drained => {
                    self.release().await;
                    drop(release);
                    return;
                }
                event = events.next() => match event {
                    Some(Ok(Event::Init)) => {
                        listed = false;
                        continue;
                    }
                    Some(Ok(Event::InitApply(lease) | Event::Apply(lease))) => self.saw(Some(lease)),
                    Some(Ok(Event::InitDone)) => listed = true,
                    Some(Ok(Event::Delete(_))) => self.saw(None),
                    // What matters is whether requests succeed, and those complain themselves.
                    Some(Err(error)) => debug!(lease = self.name, error = %report::chain(&error), "Failed to watch a Lease"),
                    None => {}
                },
                () = sleep_until(next) => {}
            }
            let until = *self.until.borrow();
            if until.is_some_and(|until| until <= Instant::now()) {
                self.stop("it could not be renewed in time");
            }
            if listed || until.is_some() {
                next = self.step().await;
            }
            if let Some(until) = *self.until.borrow() {
                next = next.min(until);
            }
        }
    }

    fn saw(&mut self, lease: Option<Lease>) {
        let version = |lease: &Option<Lease>| {
            lease
                .as_ref()
                .and_then(|lease| lease.metadata.resource_version.clone())
        };
        if version(&self.seen.lease) != version(&lease) {
            self.seen = Seen {
                lease,
                since: Instant::now(),
            };
        }
        let ours = self.seen.lease.as_ref().and_then(holder_of) == Some(&self.holder);
        if !ours && self.until.borrow().is_some() {
            self.stop("another replica took it");
        }
    }

    /// Does what is to be done now; returns when to look again at the latest.
    async fn step(&mut self) -> Instant {
        let began = Instant::now();
        let action = self.seen.action(&self.holder, began);
        let params = PostParams::default();
        let written = match action {
            Action::WaitUntil(at) => return at,
            Action::Create => {
                let lease = self.lease(None);
                timeout(REQUEST_TIMEOUT, self.api.create(&params, &lease)).await
            }
            Action::Take | Action::Renew => {
                let lease = self.lease(self.seen.lease.as_ref());
                timeout(REQUEST_TIMEOUT, self.api.replace(self.name, &params, &lease)).await
            }
        };
        match written {
            Ok(Ok(lease)) => {
                self.complaint = None;
                self.saw(Some(lease));
                self.lead(began + VALID);
                return began + RENEW_AFTER;
            }
            // Another was faster, or has deleted it: see how it is now.
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => {
                match timeout(REQUEST_TIMEOUT, self.api.get_opt(self.name)).await {
                    Ok(Ok(lease)) => self.saw(lease),
                    Ok(Err(error)) => self.complain(said(&error)),
                    Err(_) => self.complain("no answer in time".to_owned()),
                }
                // Also a namespace that is not there answers 404.
                if status.code == 404 {
                    self.complain(status.message.clone());
                }
            }
            Ok(Err(error)) => self.complain(said(&error)),
            Err(_) => self.complain("no answer in time".to_owned()),
        }
        Instant::now() + RETRY
    }

    fn lease(&self, old: Option<&Lease>) -> Lease {
        let now = MicroTime(Timestamp::now());
        let spec = old.and_then(|old| old.spec.clone()).unwrap_or_default();
        let renewal = spec.holder_identity.as_ref() == Some(&self.holder);
        let acquire_time = spec
            .acquire_time
            .filter(|_| renewal)
            .unwrap_or_else(|| now.clone());
        let transitions = spec.lease_transitions.unwrap_or_default();
        Lease {
            metadata: ObjectMeta {
                name: Some(self.name.to_owned()),
                // It makes the request fail when another has written since.
                ..old.map(|old| old.metadata.clone()).unwrap_or_default()
            },
            spec: Some(LeaseSpec {
                acquire_time: Some(acquire_time),
                renew_time: Some(now),
                holder_identity: Some(self.holder.clone()),
                lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
                lease_transitions: Some(transitions.saturating_add(i32::from(old.is_some() && !renewal))),
                ..LeaseSpec::default()
            }),
        }
    }

    fn lead(&mut self, until: Instant) {
        if self.until.send_replace(Some(until)).is_none() {
            self.leader.set(1);
            self.transitions.inc();
            info!(lease = self.name, "This replica writes");
        }
    }

    fn stop(&mut self, why: &str) {
        if self.until.send_replace(None).is_some() {
            self.leader.set(0);
            self.transitions.inc();
            info!(lease = self.name, why, "This replica no longer writes");
        }
    }

    /// Says the same thing once.
    fn complain(&mut self, problem: String) {
        if self.complaint.as_ref() != Some(&problem) {
            warn!(
                lease = self.name,
                error = problem,
                "Failed to obtain or renew a Lease"
            );
            self.complaint = Some(problem);
        }
    }

    /// Lets the next replica begin at once, after our last write.
    async fn release(&mut self) {
        if self.until.borrow().is_none() {
            return;
        }
        self.stop("shutting down");
        let _idle = timeout(REQUEST_TIMEOUT, self.writing.acquire_many(WRITES_MAX)).await;
        let mut lease = self.lease(self.seen.lease.as_ref());
        if let Some(spec) = &mut lease.spec {
            // As Kubernetes' own controllers leave it.
            spec.holder_identity = Some(String::new());
            spec.lease_duration_seconds = Some(1);
        }
        let params = PostParams::default();
        match timeout(REQUEST_TIMEOUT, self.api.replace(self.name, &params, &lease)).await {
            Ok(Ok(_)) => debug!(lease = self.name, "Gave a Lease back"),
            Ok(Err(error)) => warn!(
                lease = self.name,
                error = said(&error),
                "Failed to give a Lease back"
            ),
            Err(_) => warn!(lease = self.name, "Failed to give a Lease back in time"),
        }
    }
}

impl Seen {
    fn action(&self, us: &str, now: Instant) -> Action {
        let Some(lease) = &self.lease else {
            return Action::Create;
        };
        let (after, action) = match holder_of(lease) {
            None => return Action::Take,
            Some(holder) if holder == us => (RENEW_AFTER, Action::Renew),
            Some(_) => {
                let secs = lease.spec.as_ref().and_then(|spec| spec.lease_duration_seconds);
                let duration = secs
                    .and_then(|secs| u64::try_from(secs).ok())
                    .map_or(DURATION, Duration::from_secs);
                (duration, Action::Take)
            }
        };
        match self.since + after {
            at if at <= now => action,
            at => Action::WaitUntil(at),
        }
    }
}

impl Leadership {
    /// Waits until this replica writes.
    pub(crate) async fn leading(&mut self) {
        let is_set = |until: &Option<Instant>| until.is_some_and(|until| until > Instant::now());
        if self.until.wait_for(is_set).await.is_err() {
            // Nobody keeps the Lease any more: the process is ending.
            std::future::pending::<()>().await;
        }
    }

    /// Waits until it no longer does.
    pub(crate) async fn lost(&mut self) {
        let _ = self.until.wait_for(Option::is_none).await;
    }

    /// A permit for one write; waits while as many are under way as may be.
    pub(crate) async fn permit(&self) -> Result<Permit, WriteError> {
        let one = self.writing.clone().acquire_owned().await;
        let one = one.map_err(|_| WriteError::NotLeading)?;
        match *self.until.borrow() {
            Some(until) if until > Instant::now() => Ok(Permit { until, _one: one }),
            _ => Err(WriteError::NotLeading),
        }
    }
}

impl Permit {
    /// Makes the write.
    pub(crate) async fn write<T>(
        self,
        request: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, WriteError> {
        let deadline = self.until.min(Instant::now() + REQUEST_TIMEOUT);
        match timeout_at(deadline, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(WriteError::Api(Box::new(error))),
            Err(_) => Err(WriteError::Timeout),
        }
    }
}

impl WriteError {
    /// The HTTP status of the API server's refusal.
    pub(crate) fn code(&self) -> Option<u16> {
        match self {
            Self::Api(error) => match &**error {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::NotLeading | Self::Timeout => None,
        }
    }
}

fn holder_of(lease: &Lease) -> Option<&String> {
    let spec = lease.spec.as_ref()?;
    spec.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

/// The host's name, and something random: a restarted process must not take itself for its predecessor.
fn holder() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}_{:016x}", host.trim(), rand::random::<u64>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: Option<&str>, since: Instant) -> Seen {
        let spec = LeaseSpec {
            holder_identity: holder.map(str::to_owned),
            lease_duration_seconds: Some(30),
            ..LeaseSpec::default()
        };
        let lease = Lease {
            spec: Some(spec),
            ..Lease::default()
        };
        Seen {
            lease: Some(lease),
            since,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_taken_when_free_or_unchanged_for_its_duration() {
        let since = Instant::now();
        let at = |secs| since + Duration::from_secs(secs);
        assert_eq!(seen(None, since).action("us", since), Action::Take);
        assert_eq!(seen(Some(""), since).action("us", since), Action::Take);
        let theirs = seen(Some("them"), since);
        assert_eq!(theirs.action("us", at(29)), Action::WaitUntil(at(30)));
        assert_eq!(theirs.action("us", at(30)), Action::Take);
        let ours = seen(Some("us"), since);
        assert_eq!(ours.action("us", at(9)), Action::WaitUntil(at(10)));
        assert_eq!(ours.action("us", at(10)), Action::Renew);
        let none = Seen { lease: None, since };
        assert_eq!(none.action("us", since), Action::Create);
    }

    #[tokio::test(start_paused = true)]
    async fn no_permit_outlives_the_last_renewal() {
        let (until, receiver) = watch::channel(Some(Instant::now() + VALID));
        let leadership = Leadership {
            until: receiver,
            writing: Arc::new(Semaphore::new(1)),
        };
        let permit = leadership.permit().await.expect("leading");
        tokio::time::advance(VALID - Duration::from_secs(1)).await;
        let hung = permit.write(std::future::pending::<kube::Result<()>>()).await;
        assert!(matches!(hung, Err(WriteError::Timeout)));
        assert!(
            matches!(leadership.permit().await, Err(WriteError::NotLeading)),
            "the time is over"
        );
        until.send_replace(Some(Instant::now() + VALID));
        assert!(leadership.permit().await.is_ok());
        until.send_replace(None);
        assert!(matches!(leadership.permit().await, Err(WriteError::NotLeading)));
    }
}
