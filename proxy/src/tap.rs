//! Taps: who may look at the pod's requests says which ones, and gets an event when such a request begins, when its
//! response begins and when that ends.
//!
//! A tap is asked for on the control port (`Tap.Observe`), by the one identity that the environment names. Events go
//! through a bounded queue: an observer that does not keep up loses events, and slows no request down. What is observed
//! is the way to an endpoint, or to the application once the policy has let the request in.

mod event;
mod matching;
mod server;

use std::{
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
};

use http::Request;
use linkerd2_proxy_api::tap as proto;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::{http::headers, metrics::family::Counter, observe::Direction};
pub(crate) use event::Tapped;
use matching::{Match, Seen};
pub(crate) use server::serve;

/// Observers at a time.
const TAPS_MAX: usize = 8;
/// Events of one tap that wait to be sent. Linkerd's.
const EVENTS_MAX: usize = 400;

/// All taps.
#[derive(Debug)]
pub(crate) struct Taps {
    taps: Mutex<Vec<Weak<Tap>>>,
    /// How many there may be; read for each request.
    count: AtomicUsize,
    next_base: AtomicU32,
    dropped: Arc<Counter>,
}

/// What one observer asked for. The observer's stream holds it: without it the tap is over.
#[derive(Debug)]
struct Tap {
    base: u32,
    wanted: Match,
    /// Whether headers are wanted, too.
    headers: bool,
    limit: u64,
    taken: AtomicU64,
    events: mpsc::Sender<proto::TapEvent>,
}

/// From where to where a request goes.
#[derive(Debug)]
pub(crate) struct Way<'w> {
    pub source: SocketAddr,
    /// `true`, or why there is no TLS.
    pub source_tls: &'w str,
    pub source_id: Option<&'w str>,
    pub destination: SocketAddr,
    pub destination_tls: &'w str,
    pub destination_id: Option<&'w str>,
    /// What discovery says of the destination.
    pub labels: &'w [(String, String)],
    pub route: Option<&'w str>,
}

impl Taps {
    pub(crate) fn new(dropped: Arc<Counter>) -> Arc<Self> {
        Arc::new(Self {
            taps: Mutex::default(),
            count: AtomicUsize::new(0),
            // Those of one process differ from those of the next.
            next_base: AtomicU32::new(rand::random()),
            dropped,
        })
    }

    /// Whether anybody looks.
    pub(crate) fn are_any(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    /// `None` when there are as many taps as may be.
    fn add(
        &self,
        wanted: Match,
        limit: u32,
        headers: bool,
    ) -> Option<(Arc<Tap>, mpsc::Receiver<proto::TapEvent>)> {
        let (events, queue) = mpsc::channel(EVENTS_MAX);
        let tap = Arc::new(Tap {
            base: self.next_base.fetch_add(1, Relaxed),
            wanted,
            headers,
            limit: limit.into(),
            taken: AtomicU64::new(0),
            events,
        });
        let mut taps = self.taps.lock();
        taps.retain(|tap| tap.strong_count() > 0);
        if taps.len() >= TAPS_MAX {
            return None;
        }
        taps.push(Arc::downgrade(&tap));
        self.count.store(taps.len(), Relaxed);
        Some((tap, queue))
    }

    /// The taps that want this request; each has been told of it.
    pub(crate) fn request<B>(
        &self,
        direction: Direction,
        request: &Request<B>,
        way: &Way<'_>,
    ) -> Vec<Tapped> {
        let live: Vec<Arc<Tap>> = {
            let mut taps = self.taps.lock();
            taps.retain(|tap| tap.strong_count() > 0);
            self.count.store(taps.len(), Relaxed);
            taps.iter().filter_map(Weak::upgrade).collect()
        };
        let authority = headers::authority(request).unwrap_or_default();
        let seen = Seen {
            way,
            method: request.method(),
            scheme: request.uri().scheme(),
            authority,
            path: request.uri().path(),
        };
        live.iter()
            .filter(|tap| tap.wanted.matches(&seen))
            .filter_map(|tap| {
                let stream = tap.take()?;
                Tapped::begin(tap, stream, self.dropped.clone(), direction, request, &seen)
            })
            .collect()
    }
}

impl Tap {
    /// The number of the next request, as long as there may be one more.
    fn take(&self) -> Option<u64> {
        let stream = self.taken.fetch_add(1, Relaxed);
        (stream < self.limit).then_some(stream)
    }

    fn is_done(&self) -> bool {
        self.taken.load(Relaxed) >= self.limit
    }
}
