//! Load on one arm: closed loops by wrk for saturation, an open loop of our own for tails.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use rustix::event::{PollFd, PollFlags, Timespec};

use super::arms::{Arm, Arms, Way};
use crate::netns::Netns;

pub(crate) struct Load {
    /// Answered requests per second.
    pub(crate) rate: f64,
    /// How long the measurement lasted.
    pub(crate) seconds: f64,
    /// Seconds.
    pub(crate) p50: f64,
    /// Seconds.
    pub(crate) p99: f64,
}

/// Keeps `connections` busy for `seconds`, each with one request at a time, from CPU 0.
pub(crate) fn closed(arms: &Arms, arm: Arm, connections: usize, seconds: u32) -> anyhow::Result<Load> {
    let address = Arms::address(arm, Way::Http).with_context(|| format!("{arm} carries no HTTP"))?;
    closed_at(arms.netns(arm), address, connections, seconds).with_context(|| arm.to_string())
}

/// The same at an address.
pub(crate) fn closed_at(
    netns: &Netns,
    address: SocketAddr,
    connections: usize,
    seconds: u32,
) -> anyhow::Result<Load> {
    let url = format!("http://{address}/");
    let output = netns.run(&[
        "taskset",
        "-c",
        "0",
        "wrk",
        "-t1",
        "--latency",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
        &url,
    ])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(line) = text
        .lines()
        .find(|line| line.contains("Socket errors") || line.contains("Non-2xx"))
    {
        bail!("{}", line.trim());
    }
    let after = |label: &str| {
        text.lines()
            .find_map(|line| line.trim().strip_prefix(label))
            .map(str::trim)
    };
    let missing = || format!("wrk printed something unexpected:\n{text}");
    let rate: f64 = after("Requests/sec:")
        .and_then(|rate| rate.parse().ok())
        .with_context(missing)?;
    if rate < 1.0 {
        bail!("no request was answered:\n{text}");
    }
    Ok(Load {
        rate,
        seconds: f64::from(seconds),
        p50: after("50%").and_then(duration).with_context(missing)?,
        p99: after("99%").and_then(duration).with_context(missing)?,
    })
}

/// wrk's durations: `65.00us`, `1.20ms`, `2.00s`.
fn duration(text: &str) -> Option<f64> {
    let (number, scale) = if let Some(number) = text.strip_suffix("us") {
        (number, 1e-6)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1e-3)
    } else {
        (text.strip_suffix('s')?, 1.0)
    };
    number.parse::<f64>().ok().map(|number| number * scale)
}

/// Connections of the open loop; a request whose time has come while all are busy waits, and its wait counts.
const OPEN_CONNECTIONS: usize = 32;

/// Sends `rate` requests per second on an absolute schedule and measures each from its intended time. All must succeed.
pub(crate) fn open(arms: &Arms, arm: Arm, rate: f64, seconds: u32) -> anyhow::Result<OpenLoop> {
    let address = Arms::address(arm, Way::Http).with_context(|| format!("{arm} carries no HTTP"))?;
    let open = open_at(arms.netns(arm), address, rate, seconds, OPEN_CONNECTIONS)?;
    if open.failed > 0 {
        bail!("{arm}: {} requests failed", open.failed);
    }
    Ok(open)
}

/// The same at an address; failures are counted.
pub(crate) fn open_at(
    netns: &Netns,
    address: SocketAddr,
    rate: f64,
    seconds: u32,
    connections: usize,
) -> anyhow::Result<OpenLoop> {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("paths are UTF-8")?;
    let output = netns.run(&[
        "taskset",
        "-c",
        "0",
        own,
        "open-loop",
        "--address",
        &address.to_string(),
        "--rate",
        &rate.to_string(),
        "--seconds",
        &seconds.to_string(),
        "--connections",
        &connections.to_string(),
    ])?;
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!(
            "the open loop printed {}",
            String::from_utf8_lossy(&output.stdout)
        )
    })
}

#[derive(clap::Args)]
pub(crate) struct OpenOptions {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    rate: f64,
    #[arg(long)]
    seconds: u64,
    #[arg(long, default_value_t = OPEN_CONNECTIONS)]
    connections: usize,
}

#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct OpenLoop {
    /// Good answers per second.
    pub(crate) rate: f64,
    /// Seconds.
    pub(crate) p50: f64,
    /// Seconds.
    pub(crate) p99: f64,
    /// Other answers, and none.
    pub(crate) failed: u64,
}

struct Connection {
    stream: TcpStream,
    /// When the request under way should have been sent; none when idle.
    intended: Option<Instant>,
    received: Vec<u8>,
}

/// The open loop itself, one thread over non-blocking sockets: timers of async runtimes tick in milliseconds.
pub(crate) fn run_open(options: &OpenOptions) -> anyhow::Result<OpenLoop> {
    let OpenOptions {
        address,
        rate,
        seconds,
        connections,
    } = *options;
    if !(1.0..=1e6).contains(&rate) {
        bail!("--rate must be from 1 to 1000000 requests per second, not {rate}");
    }
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut connections = (0..connections)
        .map(|_| Connection::new(address))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut idle: VecDeque<usize> = (0..connections.len()).collect();
    let mut latency = Histogram::<u64>::new_with_bounds(1, 60_000_000_000, 3)?;
    let (start, gap) = (Instant::now(), Duration::from_secs_f64(1.0 / rate));
    let warm_up = Duration::from_millis(500);
    let (end, mut next) = (start + warm_up + Duration::from_secs(seconds), start);
    // What is answered counts by when it is, also when it has waited; a latency counts from the intended time.
    let (mut answered, mut failed) = (0u64, 0u64);
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        while next <= now
            && let Some(index) = idle.pop_front()
        {
            let connection = &mut connections[index];
            // One that the other side has closed meanwhile is found out by reading from it.
            let _ = connection.stream.write_all(request.as_bytes());
            connection.intended = Some(next);
            next += gap;
        }
        let wait = if idle.is_empty() {
            Duration::from_millis(100)
        } else {
            next.saturating_duration_since(Instant::now())
        };
        let timeout = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(wait.min(Duration::from_millis(100)).subsec_nanos()),
        };
        let ready: Vec<usize> = {
            let mut fds: Vec<_> = connections
                .iter()
                .map(|c| PollFd::from_borrowed_fd(c.stream.as_fd(), PollFlags::IN))
                .collect();
            match rustix::event::poll(&mut fds, Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error).context("cannot wait for answers"),
            }
            fds.iter()
                .enumerate()
                .filter(|(_, fd)| !fd.revents().is_empty())
                .map(|(index, _)| index)
                .collect()
        };
        for index in ready {
            let connection = &mut connections[index];
            let received = receive(connection)?;
            if matches!(received, Received::Part) {
                continue;
            }
            let done = Instant::now();
            let intended = connection.intended.take();
            if matches!(received, Received::Closed) {
                *connection = Connection::new(address)?;
            }
            // An idle connection may end.
            let Some(intended) = intended else { continue };
            idle.push_back(index);
            if done < start + warm_up {
                continue;
            }
            match received {
                Received::Good => answered += 1,
                _ => failed += 1,
            }
            if matches!(received, Received::Good) && intended >= start + warm_up {
                latency.record((done - intended).as_nanos().try_into().unwrap_or(u64::MAX).max(1))?;
            }
        }
    }
    if answered == 0 {
        bail!("{address}: no request was answered");
    }
    let at = |quantile: f64| latency.value_at_quantile(quantile) as f64 / 1e9;
    Ok(OpenLoop {
        rate: answered as f64 / seconds as f64,
        p50: at(0.5),
        p99: at(0.99),
        failed,
    })
}

impl Connection {
    fn new(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            intended: None,
            received: Vec::with_capacity(4096),
        })
    }
}

enum Received {
    Part,
    Good,
    Bad,
    Closed,
}

/// Reads what has come.
fn receive(connection: &mut Connection) -> anyhow::Result<Received> {
    let mut buffer = [0u8; 4096];
    match connection.stream.read(&mut buffer) {
        Ok(0) => return Ok(Received::Closed),
        Ok(n) => connection.received.extend_from_slice(&buffer[..n]),
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(Received::Part),
        Err(_) => return Ok(Received::Closed),
    }
    let received = &connection.received;
    let Some(head) = received.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(Received::Part);
    };
    let text = std::str::from_utf8(&received[..head]).context("an answer's head is not text")?;
    let good = text.starts_with("HTTP/1.1 200");
    let length: usize = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok())
        .context("an answer has no content-length")?;
    if received.len() < head + 4 + length {
        return Ok(Received::Part);
    }
    connection.received.clear();
    Ok(if good { Received::Good } else { Received::Bad })
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn reads_durations_as_wrk_prints_them() {
        assert_eq!(duration("65.00us"), Some(65.0 * 1e-6));
        assert_eq!(duration("1.20ms"), Some(1.2 * 1e-3));
        assert_eq!(duration("2.00s"), Some(2.0));
        assert_eq!(duration("fast"), None);
    }
}
