//! The injector: the real `heddle-control injector` over TLS, beside a real API server.
//!
//! In go AdmissionReviews of pods of 1, 8 and 40 KiB, with owners, opt-outs and bad JSON among them, at a fixed rate:
//! each is due at its time on the clock, and its latency counts from then, so that a stall shows in all that come
//! after it. Most go over connections that stay open, as an API server's do; every tenth opens its own. Then a burst
//! of pods is created through the API server, whose webhook configuration fails them when the injector does. Linkerd's
//! figures are not measured here: docs/benchmarks.md names those that are published.

mod client;
mod corpus;
mod world;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    progress::Progress,
};

use self::{
    client::{Client, Connection, Reply},
    corpus::{Expected, Question},
    world::World,
};
use crate::record::{Record, median, quantile};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Admissions a second.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// Seconds of a block.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// How many blocks are measured.
    #[arg(long, default_value_t = 6)]
    blocks: usize,
    /// Pods of the burst.
    #[arg(long, default_value_t = 3_000)]
    burst: usize,
    /// The program under test.
    #[arg(long, default_value = "target/image/heddle-control")]
    control: PathBuf,
}

const CLUSTER: &str = "heddle-bench-injector";
/// API servers are few, and hold a connection each.
const KEPT_CONNECTIONS: usize = 4;
const NEW_CONNECTION_EVERY: usize = 10;
/// An API server's own bound of changes in flight.
const BURST_IN_FLIGHT: usize = 200;
const WARM_UP_SECONDS: u32 = 2;

pub(crate) async fn run(options: Options) -> Result<Vec<Record>> {
    let cluster = ClusterOptions::new(CLUSTER, Mode::ApiServerOnly).with_progress(Progress::Shown);
    let cluster = ScopedCluster::up(cluster).await?;
    let world = World::new(&cluster, &options.control).await?;
    let questions = Arc::new(corpus::questions(&world));
    let client = Arc::new(world.client().await?);

    let differing = identical(&client, &questions).await?;
    let mut kept = Vec::new();
    for _ in 0..KEPT_CONNECTIONS {
        kept.push(client.connect().await?);
    }
    let load = Load {
        client,
        kept,
        questions,
        rate: options.rate,
    };
    load.block(&world, WARM_UP_SECONDS).await?;
    let mut blocks = Vec::new();
    for number in 1..=options.blocks {
        let block = load.block(&world, options.seconds).await?;
        eprintln!(
            "block {number}/{}: p50 {:.2} ms, p99 {:.2} ms, {:.0} us of CPU each",
            options.blocks,
            quantile(&block.all(), 0.5) * 1e3,
            quantile(&block.all(), 0.99) * 1e3,
            block.cpu_seconds * 1e6
        );
        blocks.push(block);
    }
    let direct = load.burst(options.burst).await?;
    let resident = crate::proxy::resident_bytes(world.pid())?;
    let created = world.burst(options.burst, BURST_IN_FLIGHT).await?;

    let rate = options.rate;
    let of = |pick: &dyn Fn(&Block) -> f64| -> Vec<f64> { blocks.iter().map(pick).collect() };
    let alone = |metric: String, unit, samples: &[f64]| Record::alone("injector", metric, unit, samples);
    let burst = options.burst;
    let mut records = vec![
        alone(
            format!("admission_p50_{rate}rps"),
            "s",
            &of(&|block| quantile(&block.all(), 0.5)),
        ),
        alone(
            format!("admission_p99_{rate}rps"),
            "s",
            &of(&|block| quantile(&block.all(), 0.99)),
        ),
        alone(
            format!("admission_p99_{rate}rps_kept_connection"),
            "s",
            &of(&|block| quantile(&block.kept, 0.99)),
        ),
        alone(
            format!("admission_p99_{rate}rps_new_connection"),
            "s",
            &of(&|block| quantile(&block.new, 0.99)),
        ),
        alone(
            "admission_cpu_seconds".to_owned(),
            "s",
            &of(&|block| block.cpu_seconds),
        ),
        alone(
            "wrong_answers".to_owned(),
            "1",
            &[blocks.iter().map(|block| block.wrong as f64).sum()],
        ),
        alone("differing_answers".to_owned(), "1", &[differing as f64]),
        alone(
            format!("burst_{burst}_direct_failures"),
            "1",
            &[direct.failures as f64],
        ),
        alone(format!("burst_{burst}_direct_seconds"), "s", &[direct.seconds]),
        alone(
            format!("burst_{burst}_created_failures"),
            "1",
            &[created.failures as f64],
        ),
        alone(format!("burst_{burst}_created_seconds"), "s", &[created.seconds]),
        alone("resident_bytes".to_owned(), "By", &[resident]),
    ];
    let sizes: BTreeMap<&str, Vec<f64>> = blocks.iter().fold(BTreeMap::new(), |mut sizes, block| {
        for (name, samples) in &block.by_size {
            let p99 = quantile(samples, 0.99);
            sizes.entry(*name).or_insert_with(Vec::new).push(p99);
        }
        sizes
    });
    records.extend(
        sizes
            .iter()
            .map(|(name, samples)| alone(format!("admission_p99_{rate}rps_{name}"), "s", samples)),
    );
    ensure!(
        median(&of(&|block| block.kept.len() as f64)) > 0.0,
        "nothing was measured"
    );
    Ok(records)
}

/// Asks everything twice, on two connections: how many answers differ.
async fn identical(client: &Client, questions: &[Question]) -> Result<usize> {
    let (mut one, mut two) = (client.connect().await?, client.connect().await?);
    let mut differing = 0;
    for question in questions {
        let (a, b) = (one.ask(question).await?, two.ask(question).await?);
        if a.status != b.status || a.body != b.body {
            differing += 1;
        }
    }
    Ok(differing)
}

/// What a block found.
struct Block {
    kept: Vec<f64>,
    new: Vec<f64>,
    by_size: BTreeMap<&'static str, Vec<f64>>,
    cpu_seconds: f64,
    wrong: usize,
}

impl Block {
    fn all(&self) -> Vec<f64> {
        self.kept.iter().chain(&self.new).copied().collect()
    }
}

/// What a burst found.
pub(crate) struct Burst {
    pub(crate) failures: usize,
    pub(crate) seconds: f64,
}

struct Load {
    client: Arc<Client>,
    kept: Vec<Connection>,
    questions: Arc<Vec<Question>>,
    rate: u32,
}

impl Load {
    async fn block(&self, world: &World, seconds: u32) -> Result<Block> {
        let total = (self.rate * seconds) as usize;
        let period = Duration::from_secs(1) / self.rate;
        let cpu = crate::proxy::cpu_seconds(world.pid())?;
        let start = Instant::now() + Duration::from_millis(20);
        let mut tasks = Vec::with_capacity(total);
        for index in 0..total {
            let due =
                start + period * u32::try_from(index).context("a block has fewer than 2^32 admissions")?;
            tokio::time::sleep_until(due.into()).await;
            let questions = Arc::clone(&self.questions);
            let fresh = index % NEW_CONNECTION_EVERY == NEW_CONNECTION_EVERY - 1;
            let kept = self.kept[index % self.kept.len()].clone();
            let client = Arc::clone(&self.client);
            tasks.push(tokio::spawn(async move {
                let question = &questions[index % questions.len()];
                let reply = match fresh {
                    true => match client.connect().await {
                        Ok(mut connection) => connection.ask(question).await,
                        Err(error) => Err(error),
                    },
                    false => kept.clone().ask(question).await,
                };
                (
                    fresh,
                    question.size,
                    due.elapsed().as_secs_f64(),
                    is_right(question, &reply),
                )
            }));
        }
        let mut block = Block {
            kept: Vec::new(),
            new: Vec::new(),
            by_size: BTreeMap::new(),
            cpu_seconds: 0.0,
            wrong: 0,
        };
        for task in tasks {
            let (fresh, size, seconds, right) = task.await?;
            if fresh { &mut block.new } else { &mut block.kept }.push(seconds);
            block.by_size.entry(size).or_default().push(seconds);
            block.wrong += usize::from(!right);
        }
        block.cpu_seconds = (crate::proxy::cpu_seconds(world.pid())? - cpu) / total as f64;
        Ok(block)
    }

    /// As many as there may be in flight, until all are answered.
    async fn burst(&self, total: usize) -> Result<Burst> {
        let start = Instant::now();
        let failures = stream::iter(0..total)
            .map(|index| {
                let mut connection = self.kept[index % self.kept.len()].clone();
                let question = &self.questions[index % self.questions.len()];
                async move { is_right(question, &connection.ask(question).await) }
            })
            .buffer_unordered(BURST_IN_FLIGHT)
            .filter(|right| std::future::ready(!right))
            .count()
            .await;
        Ok(Burst {
            failures,
            seconds: start.elapsed().as_secs_f64(),
        })
    }
}

fn is_right(question: &Question, reply: &Result<Reply>) -> bool {
    let Ok(reply) = reply else { return false };
    let has_patch = reply.body.windows(11).any(|window| window == b"\"patchType\"");
    match question.expected {
        Expected::Injected => reply.status == 200 && has_patch,
        Expected::LeftAlone => reply.status == 200 && !has_patch,
        Expected::Refused => reply.status == 400,
    }
}
