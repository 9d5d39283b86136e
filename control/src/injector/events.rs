//! Events on workloads: that their pods are injected, or why not.
//!
//! Off the path of admissions: a bounded queue, dropped from when full, and one Event for the same thing in five
//! minutes, however many replicas a workload has.

use std::{collections::HashMap, sync::Arc, time::Duration};

use heddle_inject::Owner;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::mpsc, time::Instant};
use tracing::warn;

use super::owners::Owners;
use crate::webhook::said;

/// A burst of admissions: some hundred workloads that roll at once.
const QUEUE_CAPACITY: usize = 512;
const SAID_MAX: usize = 4096;
const SAY_AGAIN: Duration = Duration::from_secs(5 * 60);
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);
/// The API server refuses longer notes.
const NOTE_BYTES_MAX: usize = 1024;

/// What happened to a workload's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Happening {
    pub(super) namespace: String,
    pub(super) owner: Owner,
    pub(super) reason: Reason,
    pub(super) note: String,
}

/// An Event's reason: Linkerd's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Reason {
    Injected,
    /// Someone does not want it.
    Skipped,
    /// Someone wants it, and it cannot be had.
    SkippedThoughAsked,
}

/// Where admissions leave their events.
#[derive(Clone, Debug)]
pub(super) struct Sink {
    queue: mpsc::Sender<Happening>,
    dropped: Counter,
}

/// Records them.
pub(super) struct Worker {
    queue: mpsc::Receiver<Happening>,
    dropped: Counter,
    recorder: Recorder,
    owners: Arc<Owners>,
}

/// The two ends of the queue.
pub(super) fn channel(client: Client, owners: Arc<Owners>, dropped: Counter) -> (Sink, Worker) {
    let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
    let recorder = Recorder::new(
        client,
        Reporter {
            controller: "linkerd-proxy-injector".to_owned(),
            instance: None,
        },
    );
    let worker = Worker {
        queue: receiver,
        dropped: dropped.clone(),
        recorder,
        owners,
    };
    (
        Sink {
            queue: sender,
            dropped,
        },
        worker,
    )
}

impl Sink {
    /// Never waits.
    pub(super) fn record(&self, happening: Happening) {
        if self.queue.try_send(happening).is_err() {
            self.dropped.inc();
        }
    }
}

impl Worker {
    /// Runs until all sinks are gone.
    pub(super) async fn run(mut self) {
        let mut said: HashMap<Happening, Instant> = HashMap::new();
        while let Some(happening) = self.queue.recv().await {
            let now = Instant::now();
            if said.get(&happening).is_some_and(|at| now < *at + SAY_AGAIN) {
                continue;
            }
            if said.len() >= SAID_MAX {
                said.retain(|_, at| now < *at + SAY_AGAIN);
            }
            if said.len() >= SAID_MAX {
                self.dropped.inc();
                continue;
            }
            said.insert(happening.clone(), now);
            self.publish(happening).await;
        }
    }

    async fn publish(&self, happening: Happening) {
        let Happening {
            namespace,
            owner,
            reason,
            mut note,
        } = happening;
        while note.len() > NOTE_BYTES_MAX {
            note.pop();
        }
        let (type_, name) = match reason {
            Reason::Injected => (EventType::Normal, "Injected"),
            Reason::Skipped => (EventType::Normal, "InjectionSkipped"),
            Reason::SkippedThoughAsked => (EventType::Warning, "InjectionSkipped"),
        };
        let event = Event {
            type_,
            reason: name.to_owned(),
            note: Some(note),
            action: "Inject".to_owned(),
            secondary: None,
        };
        let reference = self.owners.reference(&namespace, &owner).await;
        let problem =
            match tokio::time::timeout(PUBLISH_TIMEOUT, self.recorder.publish(&event, &reference)).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => said(&error),
                Err(_) => format!("no answer within {} s", PUBLISH_TIMEOUT.as_secs()),
            };
        self.dropped.inc();
        warn!(
            namespace,
            owner = owner.name,
            reason = name,
            error = problem,
            "Failed to record an Event"
        );
    }
}
