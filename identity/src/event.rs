//! Kubernetes Events: what an operator sees with `kubectl describe`. They are told to a bounded queue and posted at a
//! bounded rate by a task of their own; what does not fit is counted and dropped, so that no reply ever waits for one.

use std::time::{Duration, SystemTime};

use heddle_mesh::ServiceAccountRef;
use k8s_openapi::{
    api::core::v1::{Event as KubeEvent, EventSource, ObjectReference},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::mpsc, time::timeout};
use tracing::debug;

use crate::token::Account;

const QUEUE_CAPACITY: usize = 256;
/// Ten a second: a cluster that restarts as a whole must not flood its API with Events.
const POST_INTERVAL: Duration = Duration::from_millis(100);
const POST_TIMEOUT: Duration = Duration::from_secs(5);
/// The API's own bound.
const NOTE_BYTES_MAX: usize = 1024;
const COMPONENT: &str = "linkerd-identity";

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A new issuer is in use.
    IssuerUpdated,
    /// A new issuer cannot be read; the old one stays.
    IssuerUpdateSkipped,
    /// An issuer's certificates would be refused by peers; the old one stays.
    IssuerValidationFailed,
    /// The revocations cannot be read or signed; the old ones stay.
    RevocationUpdateSkipped,
    /// A leaf was signed.
    IssuedLeafCertificate,
}

/// What it happened to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The identity service's own Deployment.
    Service,
    /// The service account that got a leaf.
    Account(Account),
}

/// An Event to be posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub reason: Reason,
    /// What it happened to.
    pub subject: Subject,
    /// A sentence for people.
    pub note: String,
}

/// Where Events are told. Cheap to clone; telling never waits.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Event>,
    dropped: Counter,
}

/// The other end: posts Events, or hands them to a test.
#[derive(Debug)]
pub struct Queue(mpsc::Receiver<Event>);

/// A bounded queue of Events.
pub fn queue() -> (Events, Queue) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    (
        Events {
            queue: sender,
            dropped: Counter::default(),
        },
        Queue(receiver),
    )
}

impl Events {
    /// Tells an Event; drops it when the queue is full.
    pub fn tell(&self, reason: Reason, subject: Subject, note: String) {
        self.tell_with(|| Event {
            reason,
            subject,
            note,
        });
    }

    /// As [`Events::tell`], for Events that are many: one that is dropped is not even written.
    pub fn tell_with(&self, event: impl FnOnce() -> Event) {
        match self.queue.try_reserve() {
            Ok(place) => place.send(event()),
            Err(_) => drop(self.dropped.inc()),
        }
    }

    /// Counts what was dropped.
    pub fn dropped(&self) -> Counter {
        self.dropped.clone()
    }
}

impl Queue {
    /// The next Event, if one is waiting.
    pub fn try_next(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }

    /// Posts Events until all senders are gone. An Event that cannot be posted is logged and forgotten.
    pub async fn post(mut self, client: Client, control_namespace: String) {
        while let Some(event) = self.0.recv().await {
            let kube_event = to_kube(event, &control_namespace, SystemTime::now());
            let namespace = kube_event.metadata.namespace.clone().unwrap_or_default();
            let api = Api::<KubeEvent>::namespaced(client.clone(), &namespace);
            match timeout(POST_TIMEOUT, api.create(&PostParams::default(), &kube_event)).await {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => debug!(%error, "Failed to post an Event"),
                Err(_) => debug!("Posting an Event took too long"),
            }
            tokio::time::sleep(POST_INTERVAL).await;
        }
    }
}

fn to_kube(event: Event, control_namespace: &str, now: SystemTime) -> KubeEvent {
    let Event {
        reason,
        subject,
        mut note,
    } = event;
    let object = match subject {
        Subject::Service => ObjectReference {
            api_version: Some("apps/v1".into()),
            kind: Some("Deployment".into()),
            name: Some(COMPONENT.into()),
            namespace: Some(control_namespace.to_owned()),
            ..ObjectReference::default()
        },
        Subject::Account(Account {
            account: ServiceAccountRef { namespace, name },
            uid,
            pod: _,
        }) => ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("ServiceAccount".into()),
            name: Some(name),
            namespace: Some(namespace),
            uid,
            ..ObjectReference::default()
        },
    };
    let name: String = object
        .name
        .iter()
        .flat_map(|name| name.chars())
        .take(200)
        .collect();
    let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let at = Timestamp::try_from(now).map(Time).ok();
    let end = (0..=NOTE_BYTES_MAX.min(note.len()))
        .rev()
        .find(|end| note.is_char_boundary(*end))
        .unwrap_or(0);
    note.truncate(end);
    KubeEvent {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:016x}", since_epoch.as_nanos() as u64)),
            namespace: object.namespace.clone(),
            ..ObjectMeta::default()
        },
        involved_object: object,
        reason: Some(format!("{reason:?}")),
        type_: Some(if reason.is_warning() { "Warning" } else { "Normal" }.into()),
        message: Some(note),
        count: Some(1),
        first_timestamp: at.clone(),
        last_timestamp: at,
        source: Some(EventSource {
            component: Some(COMPONENT.into()),
            host: None,
        }),
        reporting_component: Some(COMPONENT.into()),
        ..KubeEvent::default()
    }
}

impl Reason {
    fn is_warning(self) -> bool {
        matches!(
            self,
            Self::IssuerUpdateSkipped | Self::IssuerValidationFailed | Self::RevocationUpdateSkipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account() -> Account {
        let account = ServiceAccountRef {
            namespace: "payments".into(),
            name: "web".into(),
        };
        Account {
            account,
            uid: Some("1-2".into()),
            pod: None,
        }
    }

    #[test]
    fn a_leaf_is_told_on_its_service_account() {
        let event = Event {
            reason: Reason::IssuedLeafCertificate,
            subject: Subject::Account(account()),
            note: "é".repeat(NOTE_BYTES_MAX),
        };
        let event = to_kube(
            event,
            "linkerd",
            SystemTime::UNIX_EPOCH + Duration::from_nanos(255),
        );
        assert_eq!(event.metadata.name.as_deref(), Some("web.00000000000000ff"));
        assert_eq!(event.metadata.namespace.as_deref(), Some("payments"));
        assert_eq!(event.involved_object.uid.as_deref(), Some("1-2"));
        assert_eq!(event.reason.as_deref(), Some("IssuedLeafCertificate"));
        assert_eq!(event.type_.as_deref(), Some("Normal"));
        assert_eq!(event.message.map(|message| message.len()), Some(NOTE_BYTES_MAX));
    }

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let (events, mut queue) = queue();
        for _ in 0..QUEUE_CAPACITY + 3 {
            events.tell(Reason::IssuerUpdated, Subject::Service, String::new());
        }
        assert_eq!(events.dropped().get(), 3);
        assert_eq!(std::iter::from_fn(|| queue.try_next()).count(), QUEUE_CAPACITY);
    }
}
