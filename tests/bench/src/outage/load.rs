//! The load: requests at a fixed rate on kept connections, and as many each on a connection of its own, from inside the
//! client's namespace. Counts go to stdout, one JSON line ten times a second, so that whoever started it can look on.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::LIMIT;
use crate::netns::{Netns, Process};

#[derive(clap::Args)]
pub(crate) struct LoadOptions {
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    rate: u64,
}

/// What came of all requests so far.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    pub(crate) one: u64,
    pub(crate) two: u64,
    pub(crate) first_failure: Option<String>,
    /// Seconds.
    pub(crate) longest: f64,
}

/// A request that takes longer has failed.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Kept connections; the rate is shared among them.
const KEPT: u64 = 8;
const REPORTS: Duration = Duration::from_millis(100);

/// A load that runs.
pub(crate) struct Running {
    process: Process,
    counts: Arc<Mutex<Counts>>,
}

impl Running {
    pub(crate) fn start(netns: &Netns, target: &str, rate: u64) -> Result<Self> {
        let own = std::env::current_exe()?;
        let own = own.to_str().context("paths are UTF-8")?;
        let mut command = netns.command(own);
        command
            .args(["steady-load", "--target", target, "--rate", &rate.to_string()])
            .stdout(Stdio::piped());
        let mut process = Process::start("the load", &mut command)?;
        let output = process.child.stdout.take().context("piped")?;
        let counts = Arc::new(Mutex::new(Counts::default()));
        let newest = counts.clone();
        // Ends with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Ok(counts) = serde_json::from_str(&line) {
                    *newest.lock().unwrap_or_else(PoisonError::into_inner) = counts;
                }
            }
        });
        Ok(Self { process, counts })
    }

    pub(crate) fn counts(&self) -> Result<Counts> {
        Ok(self.counts.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Waits until so many answers were `text`.
    pub(crate) async fn wait_for(&self, text: &str, count: u64) -> Result<()> {
        let begun = Instant::now();
        loop {
            let counts = self.counts()?;
            let have = if text == "one" { counts.one } else { counts.two };
            if have >= count {
                return Ok(());
            }
            ensure!(begun.elapsed() < LIMIT, "no answer {text:?} in time: {counts:?}");
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// Ends the load; returns what came of all requests.
    pub(crate) fn finish(self) -> Result<Counts> {
        let counts = self.counts()?;
        drop(self.process);
        ensure!(counts.requests > 0, "there was no load");
        Ok(counts)
    }
}

/// The load itself; runs until killed.
pub(crate) async fn run_load(options: &LoadOptions) -> Result<()> {
    let LoadOptions { target, rate } = *options;
    let counts = Arc::new(Mutex::new(Counts::default()));
    let mut tasks = JoinSet::new();
    for _ in 0..KEPT {
        let (counts, every) = (counts.clone(), Duration::from_secs(KEPT) / u32::try_from(rate)?);
        tasks.spawn(async move {
            let mut kept = None;
            let mut ticks = interval(every);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            loop {
                ticks.tick().await;
                counted(&counts, request(target, &mut kept)).await;
            }
        });
    }
    let new = counts.clone();
    tasks.spawn(async move {
        let mut ticks = interval(Duration::from_secs(1) / u32::try_from(rate).unwrap_or(1));
        let mut requests = JoinSet::new();
        loop {
            ticks.tick().await;
            while requests.try_join_next().is_some() {}
            let counts = new.clone();
            requests.spawn(async move { counted(&counts, request(target, &mut None)).await });
        }
    });
    let mut reports = interval(REPORTS);
    loop {
        reports.tick().await;
        let now = counts.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut out = std::io::stdout().lock();
        writeln!(out, "{}", serde_json::to_string(&now)?)?;
        out.flush()?;
    }
}

async fn counted(counts: &Mutex<Counts>, request: impl Future<Output = Result<String>>) {
    let begun = Instant::now();
    let answer = timeout(REQUEST_LIMIT, request).await;
    let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
    counts.requests += 1;
    counts.longest = counts.longest.max(begun.elapsed().as_secs_f64());
    let failure = match answer {
        Ok(Ok(text)) if text == "one" => return counts.one += 1,
        Ok(Ok(text)) if text == "two" => return counts.two += 1,
        Ok(Ok(text)) => text,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "no answer in time".to_owned(),
    };
    counts.failed += 1;
    counts.first_failure.get_or_insert(failure);
}

/// One request, on the kept connection when there is one; returns the answer's body.
async fn request(target: SocketAddr, kept: &mut Option<TcpStream>) -> Result<String> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => TcpStream::connect(target).await.context("connect")?,
    };
    stream
        .write_all(format!("GET / HTTP/1.1\r\nhost: {target}\r\n\r\n").as_bytes())
        .await?;
    let mut received = Vec::new();
    loop {
        let mut buffer = [0; 2048];
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            bail!("the connection ended in the middle of an answer");
        }
        received.extend_from_slice(&buffer[..read]);
        let text = std::str::from_utf8(&received)?;
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        ensure!(
            head.starts_with("HTTP/1.1 200"),
            "{}",
            head.lines().next().unwrap_or_default()
        );
        let length: usize = head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .and_then(|(_, value)| value.trim().parse().ok())
            .context("an answer has no content-length")?;
        if body.len() >= length {
            let body = body.to_owned();
            *kept = Some(stream);
            return Ok(body);
        }
    }
}
