//! The simulated proxies: each has a connection to the destination service and one to the policy service, and the streams
//! that a real proxy opens for three services that it calls and one port that it serves.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Result, bail};
use bytes::Bytes;
use linkerd2_proxy_api::{
    destination::{GetDestination, Update, update},
    inbound::PortSpec,
    net::TcpAddress,
    outbound::{TrafficSpec, traffic_spec},
};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{sync::watch, task::JoinSet};

use super::{
    call::{Call, Connector, Messages},
    world::{self, NAMESPACE, World},
};

pub(crate) const GET: &str = "/io.linkerd.proxy.destination.Destination/Get";
pub(crate) const GET_PROFILE: &str = "/io.linkerd.proxy.destination.Destination/GetProfile";
pub(crate) const WATCH: &str = "/io.linkerd.proxy.outbound.OutboundPolicies/Watch";
pub(crate) const WATCH_PORT: &str = "/io.linkerd.proxy.inbound.InboundServerPolicies/WatchPort";

/// Streams of one proxy: six to the destination service, four to the policy service.
pub(crate) const STREAMS: usize = 10;

/// One in so many proxies is slow: it stops to read while told to.
const SLOW: usize = 100;

/// Where the services are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Services {
    pub(crate) destination: SocketAddr,
    pub(crate) policy: SocketAddr,
}

/// One stream, and everything that it was told.
pub(crate) struct Stream {
    pub(crate) call: Call,
    pub(crate) told: Mutex<Vec<Bytes>>,
    /// Whether it is one of those that all proxies have.
    shared: bool,
    slow: bool,
}

/// What all streams share.
#[derive(Default)]
struct Board {
    /// Streams that have had their first message.
    settled: AtomicUsize,
    ended: AtomicUsize,
    closing: AtomicBool,
    messages: AtomicUsize,
    event: Mutex<Option<Event>>,
    first_error: Mutex<Option<String>>,
}

/// A change that is under way to the shared streams.
struct Event {
    addr: Ipv4Addr,
    added: bool,
    begun: Instant,
    arrivals: Vec<Duration>,
}

/// Connected proxies; dropping it disconnects them.
pub(crate) struct Fleet {
    pub(crate) streams: Vec<Arc<Stream>>,
    board: Arc<Board>,
    paused: watch::Sender<bool>,
    _proxies: JoinSet<()>,
}

impl Fleet {
    /// Connects all proxies at once and waits until every stream has its first message.
    pub(crate) async fn connect(
        connector: &Connector,
        services: Services,
        world: &World,
        proxies: usize,
        limit: Duration,
    ) -> Result<Self> {
        let board = Arc::new(Board::default());
        let (paused, pause) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let mut streams = Vec::with_capacity(proxies * STREAMS);
        for number in 0..proxies {
            let (destination, policy) = calls(world, number);
            for (addr, calls) in [(services.destination, destination), (services.policy, policy)] {
                let mine: Vec<Arc<Stream>> = calls
                    .into_iter()
                    .enumerate()
                    .map(|(at, call)| {
                        Arc::new(Stream {
                            shared: call.path == GET && at == 0,
                            call,
                            told: Mutex::default(),
                            slow: number % SLOW == SLOW - 1,
                        })
                    })
                    .collect();
                streams.extend(mine.iter().cloned());
                let proxy = one(connector.clone(), addr, mine, board.clone(), pause.clone());
                tasks.spawn(proxy);
            }
        }
        let fleet = Self {
            streams,
            board,
            paused,
            _proxies: tasks,
        };
        let all = fleet.streams.len();
        fleet
            .wait("streams to have a first message", limit, |board| {
                let settled = board.settled.load(Ordering::Relaxed);
                (settled >= all).then_some(()).ok_or(settled)
            })
            .await?;
        Ok(fleet)
    }

    async fn wait(
        &self,
        what: &str,
        limit: Duration,
        mut look: impl FnMut(&Board) -> std::result::Result<(), usize>,
    ) -> Result<()> {
        let begun = Instant::now();
        loop {
            let Err(count) = look(&self.board) else {
                return Ok(());
            };
            if begun.elapsed() > limit {
                let error = self.board.first_error.lock().clone().unwrap_or_default();
                let ended = self.board.ended.load(Ordering::Relaxed);
                bail!("gave up waiting for {what}: {count} have, {ended} have ended; first error: {error}");
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Says that a change begins now.
    pub(crate) fn expect(&self, addr: Ipv4Addr, added: bool) {
        *self.board.event.lock() = Some(Event {
            addr,
            added,
            begun: Instant::now(),
            arrivals: Vec::with_capacity(self.streams.len() / STREAMS),
        });
    }

    /// Waits until the change has reached `count` proxies; returns how long each took, in seconds.
    pub(crate) async fn arrivals(&self, count: usize, limit: Duration) -> Result<Vec<f64>> {
        self.wait("the change to arrive", limit, |board| {
            let event = board.event.lock();
            let arrived = event.as_ref().map_or(0, |event| event.arrivals.len());
            (arrived >= count).then_some(()).ok_or(arrived)
        })
        .await?;
        let event = self.board.event.lock().take();
        Ok(event
            .into_iter()
            .flat_map(|event| event.arrivals)
            .map(|arrival| arrival.as_secs_f64())
            .collect())
    }

    /// Makes the slow proxies stop to read, or go on.
    pub(crate) fn pause(&self, paused: bool) {
        self.paused.send_replace(paused);
    }

    /// Messages received so far.
    pub(crate) fn messages(&self) -> usize {
        self.board.messages.load(Ordering::Relaxed)
    }

    /// Streams that have ended so far, and why the first did.
    pub(crate) fn ended(&self) -> (usize, Option<String>) {
        let ended = self.board.ended.load(Ordering::Relaxed);
        (ended, self.board.first_error.lock().clone())
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.board.closing.store(true, Ordering::Relaxed);
    }
}

/// What a proxy asks of the destination service and of the policy service.
fn calls(world: &World, number: usize) -> (Vec<Call>, Vec<Call>) {
    let services = world.service_ips.len();
    // All call the first service, and two others each.
    let called = [
        0,
        1 + (number * 7) % (services - 1),
        1 + (number * 13 + 5) % (services - 1),
    ];
    let (pod, zone) = (world::pod(number), world::zone(number));
    let context = format!(
        r#"{{"ns":"{NAMESPACE}","nodeName":"{}","pod":"{pod}"}}"#,
        world::node(number)
    );
    let get = |path: String| GetDestination {
        scheme: String::new(),
        path,
        context_token: context.clone(),
    };
    let workload = format!(r#"{{"ns":"{NAMESPACE}","pod":"{pod}"}}"#);
    let mut destination = Vec::new();
    let mut policy = Vec::new();
    for service in called {
        let name = format!("{}.{NAMESPACE}.svc.cluster.local:80", world::service(service));
        let class = format!("{name} {zone}");
        destination.push(Call::new(GET, &class, &get(name)));
    }
    for service in called {
        let addr = SocketAddr::from((world.service_ips[service], 80));
        let class = format!("{addr} {zone}");
        destination.push(Call::new(GET_PROFILE, &class, &get(addr.to_string())));
        let target = traffic_spec::Target::Addr(TcpAddress::from(addr));
        let spec = TrafficSpec {
            source_workload: workload.clone(),
            target: Some(target),
        };
        policy.push(Call::new(WATCH, &addr.to_string(), &spec));
    }
    let port = PortSpec { workload, port: 8080 };
    policy.push(Call::new(WATCH_PORT, &pod, &port));
    (destination, policy)
}

/// One proxy's connection to one service.
async fn one(
    connector: Connector,
    addr: SocketAddr,
    streams: Vec<Arc<Stream>>,
    board: Arc<Board>,
    pause: watch::Receiver<bool>,
) {
    let (sender, driver) = match connector.connect(addr).await {
        Ok(connected) => connected,
        Err(error) => {
            board.ended.fetch_add(streams.len(), Ordering::Relaxed);
            board.first_error.lock().get_or_insert(format!("{error:#}"));
            return;
        }
    };
    let mut tasks = JoinSet::new();
    for stream in streams {
        let (sender, board, pause) = (sender.clone(), board.clone(), pause.clone());
        tasks.spawn(async move {
            let ended = follow(sender, &stream, &board, pause).await;
            if !board.closing.load(Ordering::Relaxed) {
                board.ended.fetch_add(1, Ordering::Relaxed);
                let why =
                    ended.map_or_else(|error| format!("{error:#}"), |()| "it ended in order".to_owned());
                let why = format!("{}: {why}", stream.call.path);
                board.first_error.lock().get_or_insert(why);
            }
        });
    }
    // Aborted with this task: the connection ends with its streams.
    let _driver = AbortOnDrop(driver);
    while tasks.join_next().await.is_some() {}
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn follow(
    sender: h2::client::SendRequest<Bytes>,
    stream: &Stream,
    board: &Board,
    mut pause: watch::Receiver<bool>,
) -> Result<()> {
    let mut messages = Messages::open(sender, &stream.call).await?;
    let mut first = true;
    loop {
        if stream.slow && !first {
            // Ends with the fleet.
            let _ = pause.wait_for(|paused| !paused).await;
        }
        let Some(message) = messages.next().await? else {
            return Ok(());
        };
        board.messages.fetch_add(1, Ordering::Relaxed);
        if std::mem::take(&mut first) {
            board.settled.fetch_add(1, Ordering::Relaxed);
        } else if stream.shared {
            board.arrived(&message);
        }
        stream.told.lock().push(message);
    }
}

impl Board {
    fn arrived(&self, message: &Bytes) {
        let now = Instant::now();
        let Ok(Update { update: Some(update) }) = Update::decode(message.clone()) else {
            return;
        };
        let (added, addrs): (bool, Vec<TcpAddress>) = match update {
            update::Update::Add(set) => (true, set.addrs.into_iter().filter_map(|one| one.addr).collect()),
            update::Update::Remove(set) => (false, set.addrs),
            update::Update::NoEndpoints(_) => return,
        };
        let mut event = self.event.lock();
        let Some(event) = event.as_mut().filter(|event| event.added == added) else {
            return;
        };
        let expected = TcpAddress::from(SocketAddr::from((event.addr, 8080)));
        if addrs.contains(&expected) {
            event.arrivals.push(now - event.begun);
        }
    }
}
