//! Fan-out of the control plane: the real programs with a real API server, and simulated proxies that hold the streams
//! that real ones hold, each over connections of its own with mutual TLS.
//!
//! 500 services with 10,000 endpoints in three zones; all proxies follow the first service, and two others each. The
//! clock of a change starts before it is written to the API server and stops when a proxy has read it. The simulator
//! shares the machine's cores with what is measured; its CPU time is not counted.

mod call;
mod check;
mod fleet;
mod world;

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::{
    audit::AuditLog,
    cluster::{Cluster, ClusterOptions, Mode},
    progress::Progress,
};
use linkerd2_proxy_api::destination::GetDestination;
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit, test_kill_process};
use tokio::time::sleep;

use self::{
    call::{Call, Connector, Messages},
    fleet::{Fleet, STREAMS, Services},
    world::{ENDPOINTS_PER_SERVICE, NAMESPACE, Size, World},
};
use crate::{
    plane::Plane,
    record::{Record, median, quantile},
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many proxies are simulated, one number after the other.
    #[arg(long, value_delimiter = ',', default_values_t = [1000, 5000])]
    proxies: Vec<usize>,
    /// How many changes are timed.
    #[arg(long, default_value_t = 20)]
    changes: usize,
    /// How many pods there are; as many as proxies are simulated at most by default.
    #[arg(long)]
    pods: Option<usize>,
    /// How many services there are, with 20 endpoints each.
    #[arg(long, default_value_t = 500)]
    services: usize,
    /// Where the programs under test are.
    #[arg(long, default_value = "target/image")]
    binaries: PathBuf,
    /// Leaves the cluster with its objects for the next run.
    #[arg(long)]
    keep: bool,
}

const BENCH: &str = "fanout";
const CLUSTER: &str = "heddle-bench-fanout";
const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// More are never needed.
const FILES_MAX: u64 = 65_536;
/// Open files besides the two connections of each proxy.
const FILES_BESIDES: u64 = 1000;
/// Far longer than anything that goes well takes.
const LIMIT: Duration = Duration::from_secs(120);
/// Memory and writes are looked at after this long without work.
const REST: Duration = Duration::from_secs(5);

pub(crate) async fn run(options: Options) -> Result<Vec<Record>> {
    let proxies = options.proxies.iter().copied().max().unwrap_or_default();
    ensure!(
        proxies >= 100,
        "--proxies: at least 100, so that one of them is slow"
    );
    raise_files_max(proxies)?;
    if !options.keep {
        Cluster::down(CLUSTER).await?;
    }
    let cluster =
        Cluster::up(ClusterOptions::new(CLUSTER, Mode::ApiServerOnly).with_progress(Progress::Shown)).await?;
    let outcome = measure(&cluster, &options).await;
    if !options.keep {
        Cluster::down(CLUSTER).await?;
    }
    outcome
}

/// Raises this process' limit of open files as far as it may; programs that are started inherit it.
fn raise_files_max(proxies: usize) -> Result<()> {
    let now = getrlimit(Resource::Nofile);
    let current = now.maximum.map_or(FILES_MAX, |maximum| maximum.min(FILES_MAX));
    let needed = (proxies * 2) as u64 + FILES_BESIDES;
    ensure!(
        current >= needed,
        "{proxies} proxies need {needed} open files, and the hard limit is {current}: raise it with `ulimit -Hn`"
    );
    let wanted = Rlimit {
        current: Some(current),
        maximum: now.maximum,
    };
    setrlimit(Resource::Nofile, wanted)
        .with_context(|| format!("cannot raise the limit of open files to {current}"))
}

/// Resident memory of the four programs, in bytes.
struct Resident {
    identity: f64,
    destination: f64,
    policy: f64,
    injector: f64,
    /// Destination's without the pages of files.
    destination_anonymous: f64,
}

impl Resident {
    async fn of(plane: &Plane) -> Result<Self> {
        sleep(REST).await;
        let resident = Self {
            identity: plane.identity.resident()?,
            destination: plane.destination.resident()?,
            policy: plane.policy.resident()?,
            injector: plane.injector.resident()?,
            destination_anonymous: plane.destination.anonymous()?,
        };
        let mb = |bytes: f64| bytes / 1e6;
        eprintln!(
            "Resident: identity {:.1} MB, destination {:.1} MB, policy {:.1} MB, injector {:.1} MB",
            mb(resident.identity),
            mb(resident.destination),
            mb(resident.policy),
            mb(resident.injector)
        );
        Ok(resident)
    }

    fn sum(&self) -> f64 {
        self.identity + self.destination + self.policy + self.injector
    }

    /// Of the two programs that hold streams.
    fn streams(&self) -> f64 {
        self.destination + self.policy
    }
}

fn alone(metric: impl Into<String>, unit: &'static str, samples: &[f64]) -> Record {
    Record::alone(BENCH, metric, unit, samples)
}

async fn measure(cluster: &Cluster, options: &Options) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    let size = Size {
        services: options.services,
        pods: options
            .pods
            .or(options.proxies.iter().copied().max())
            .unwrap_or_default(),
        endpoints: ENDPOINTS_PER_SERVICE,
    };
    let plane = Plane::start(cluster, LOOPBACK, &options.binaries).await?;
    let empty = Resident::of(&plane).await?;
    drop(plane);
    if !options.keep {
        records.push(alone("control_plane_rss_bytes", "B", &[empty.sum()]));
        for (name, bytes) in [
            ("identity", empty.identity),
            ("destination", empty.destination),
            ("policy", empty.policy),
            ("injector", empty.injector),
        ] {
            records.push(alone(format!("{name}_rss_bytes"), "B", &[bytes]));
        }
    }

    // As many services and streams with half the endpoints and pods: what is more after that belongs to endpoints and
    // their pods.
    let small = Size {
        pods: size.pods / 2,
        endpoints: ENDPOINTS_PER_SERVICE / 2,
        ..size
    };
    let half = match options.keep {
        true => None,
        false => Some(Followed::start(cluster, options, small).await?.resident),
    };
    let Followed {
        world,
        mut plane,
        connector,
        services,
        resident: full,
    } = Followed::start(cluster, options, size).await?;
    if let Some(half) = half {
        let per_10k = |bytes: f64, number: usize| bytes * 10_000.0 / number as f64;
        let (all, more) = (
            size.services * size.endpoints,
            size.services * (size.endpoints - small.endpoints),
        );
        let grown = per_10k(full.destination_anonymous - half.destination_anonymous, more);
        records.push(alone("endpoints_10k_bytes", "B", &[grown]));
        let from_nothing = per_10k(full.destination - empty.destination, all);
        records.push(alone("endpoints_10k_from_nothing_bytes", "B", &[from_nothing]));
        let pods = per_10k(full.policy - empty.policy, size.pods);
        records.push(alone("policy_pods_10k_bytes", "B", &[pods]));
    }
    for proxies in &options.proxies {
        eprintln!("{proxies} proxies");
        let round = Round {
            cluster,
            world: &world,
            connector: &connector,
            services,
            pods: size.pods,
            proxies: *proxies,
        };
        records.extend(round.run(&mut plane, options.changes).await?);
    }
    Ok(records)
}

/// A control plane that has just started in a cluster, after every service was followed once.
struct Followed {
    world: World,
    plane: Plane,
    connector: Connector,
    services: Services,
    /// While they were followed.
    resident: Resident,
}

impl Followed {
    async fn start(cluster: &Cluster, options: &Options, size: Size) -> Result<Self> {
        eprintln!("Writing {size:?}");
        let world = World::build(cluster.client().await?, size).await?;
        let plane = Plane::start(cluster, LOOPBACK, &options.binaries).await?;
        let connector = Connector::new(&plane.files)?;
        let services = Services {
            destination: plane.destination.addr,
            policy: plane.policy.addr,
        };
        let watched = watch_all(&connector, services, size).await?;
        let resident = Resident::of(&plane).await?;
        drop(watched);
        Ok(Self {
            world,
            plane,
            connector,
            services,
            resident,
        })
    }
}

/// Follows every service once, so that all endpoints are in use.
async fn watch_all(connector: &Connector, services: Services, size: Size) -> Result<Vec<Messages>> {
    let (sender, _driver) = connector.connect(services.destination).await?;
    let mut all = Vec::new();
    for number in 0..size.services {
        let request = GetDestination {
            path: format!("{}.{NAMESPACE}.svc.cluster.local:80", world::service(number)),
            ..GetDestination::default()
        };
        let call = Call::new(fleet::GET, "all", &request);
        let mut messages = Messages::open(sender.clone(), &call).await?;
        messages.next().await?.context("a service has an answer")?;
        all.push(messages);
    }
    Ok(all)
}

struct Round<'a> {
    cluster: &'a Cluster,
    world: &'a World,
    connector: &'a Connector,
    services: Services,
    pods: usize,
    proxies: usize,
}

impl Round<'_> {
    async fn run(&self, plane: &mut Plane, changes: usize) -> Result<Vec<Record>> {
        let n = self.proxies;
        let mut records = Vec::new();
        let before = Resident::of(plane).await?;
        let begun = Instant::now();
        let fleet = self.connect().await?;
        let connected = begun.elapsed().as_secs_f64();
        let audit = AuditLog::from_now(self.cluster.audit_log_path())?;
        let held = Resident::of(plane).await?;
        let per_stream = (held.streams() - before.streams()) / (n * STREAMS) as f64;
        eprintln!("Connected in {connected:.2} s; {per_stream:.0} B per idle stream");
        let suffix = if n == 5000 { String::new() } else { format!("_{n}") };
        records.push(alone(format!("idle_stream_bytes{suffix}"), "B", &[per_stream]));
        records.push(alone(format!("connect_{n}_seconds"), "s", &[connected]));
        records.extend(self.changes(plane, &fleet, changes).await?);

        let written = audit.writes()?;
        let ours = written
            .iter()
            .filter(|write| write.user_agent.starts_with("heddle-"));
        records.push(alone(format!("steady_writes_{n}"), "1", &[ours.count() as f64]));

        let compared = self.churn(&fleet).await?;
        eprintln!("{compared} streams know what fresh ones are told, after churn, faults and pauses");
        records.push(alone(format!("checked_streams_{n}"), "1", &[compared as f64]));
        drop(fleet);

        // Both programs die, and everyone comes back at once.
        plane.destination.kill()?;
        plane.policy.kill()?;
        let begun = Instant::now();
        tokio::try_join!(plane.destination.start(), plane.policy.start())?;
        let started = begun.elapsed().as_secs_f64();
        let cpu = plane.destination.cpu()? + plane.policy.cpu()?;
        let begun = Instant::now();
        let fleet = self.connect().await?;
        let settled = begun.elapsed().as_secs_f64();
        let cpu = plane.destination.cpu()? + plane.policy.cpu()? - cpu;
        eprintln!(
            "Started in {started:.2} s; all back in {settled:.2} s, {cpu:.2} CPU seconds of the programs"
        );
        records.push(alone("control_plane_start_seconds", "s", &[started]));
        records.push(alone(format!("reconnect_{n}_seconds"), "s", &[settled]));
        records.push(alone(format!("reconnect_{n}_cpu_seconds"), "s", &[cpu]));
        drop(fleet);
        Ok(records)
    }

    async fn connect(&self) -> Result<Fleet> {
        Fleet::connect(self.connector, self.services, self.world, self.proxies, LIMIT).await
    }

    /// Adds an endpoint to the service that all follow, and takes it away again; again and again.
    async fn changes(&self, plane: &Plane, fleet: &Fleet, changes: usize) -> Result<Vec<Record>> {
        let n = self.proxies;
        let (mut p50, mut p99, mut max) = (Vec::new(), Vec::new(), Vec::new());
        let encoded = plane.destination.metric("grpc_updates_encoded_total").await?;
        let (cpu, messages) = (plane.destination.cpu()?, fleet.messages());
        for change in 0..changes {
            let addr = Ipv4Addr::from(0x0ac8_0000 + (change / 2) as u32);
            let added = change % 2 == 0;
            fleet.expect(addr, added);
            self.world.extra(0, added.then_some(addr)).await?;
            let arrivals = fleet.arrivals(n, LIMIT).await?;
            p50.push(quantile(&arrivals, 0.5));
            p99.push(quantile(&arrivals, 0.99));
            max.push(quantile(&arrivals, 1.0));
        }
        let deliveries = (fleet.messages() - messages) as f64;
        let cpu = (plane.destination.cpu()? - cpu) / deliveries * 1e6;
        let encoded = plane.destination.metric("grpc_updates_encoded_total").await? - encoded;
        eprintln!(
            "A change reaches {n} proxies: p50 {:.0} ms, p99 {:.0} ms, last {:.0} ms (medians of {changes}; worst {:.0} ms); {cpu:.1} CPU seconds per million; {encoded:.0} messages encoded for {deliveries:.0}",
            median(&p50) * 1e3,
            median(&p99) * 1e3,
            median(&max) * 1e3,
            quantile(&max, 1.0) * 1e3,
        );
        Ok(vec![
            alone(format!("endpoint_to_{n}_p50"), "s", &p50),
            alone(format!("endpoint_to_{n}_p99"), "s", &p99),
            alone(format!("endpoint_to_{n}_max"), "s", &max),
            alone(format!("cpu_seconds_per_million_deliveries_{n}"), "s", &[cpu]),
            alone(format!("encoded_per_delivery_{n}"), "1", &[encoded / deliveries]),
        ])
    }

    /// Changes many objects while one proxy in a hundred does not read and the API server stops and dies; then compares
    /// what every stream was told with fresh answers.
    async fn churn(&self, fleet: &Fleet) -> Result<usize> {
        fleet.pause(true);
        let services = self.world.service_ips.len();
        for round in 0..4_usize {
            for at in 0..25 {
                let number = (round * 97 + at * 19) % services;
                self.world
                    .slice(number, 20 - (round + at) % 15, self.pods)
                    .await?;
                self.world.opaque(number, round % 2 == 0).await?;
                let protocol = if round % 2 == 0 { "HTTP/1" } else { "opaque" };
                self.world.server(at, protocol).await?;
                self.world
                    .extra(0, Some(Ipv4Addr::from(0x0ac9_0000 + (round * 25 + at) as u32)))
                    .await?;
            }
            let api = api_server(self.cluster)?;
            match round {
                // Watches stall, and go on.
                1 => {
                    kill_process(api, Signal::STOP)?;
                    sleep(Duration::from_secs(3)).await;
                    kill_process(api, Signal::CONT)?;
                }
                // Watches break, and the new server knows nothing of the past: everything is listed anew.
                2 => {
                    kill_process(api, Signal::KILL)?;
                    while test_kill_process(api).is_ok() {
                        sleep(Duration::from_millis(5)).await;
                    }
                    Cluster::up(ClusterOptions::new(CLUSTER, Mode::ApiServerOnly)).await?;
                }
                _ => {}
            }
        }
        fleet.pause(false);
        check::converged(fleet, self.connector, self.services, LIMIT).await
    }
}

/// The API server's process, which the harness started.
fn api_server(cluster: &Cluster) -> Result<Pid> {
    let file = cluster.state_dir().join("run/kube-apiserver.pid");
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    Pid::from_raw(text.trim().parse()?).context("a process has a number")
}
