//! The clients of the benchmark, each a program of its own inside the client's namespace. What they found goes to stdout
//! as JSON.

mod attack;
mod bytes;
mod calls;
mod drain;
mod grpc;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Stdio},
    time::{Duration, Instant, SystemTime},
};

use anyhow::Context as _;
use serde::{Serialize, de::DeserializeOwned};

use crate::netns::Netns;

pub(crate) use self::calls::{Caller, Kind};
pub(super) use self::{
    attack::Attack,
    bytes::{Hold, Pulled},
    drain::Drained,
};

const READY_LIMIT: Duration = Duration::from_secs(20);

#[derive(clap::Args)]
pub(crate) struct ClientOptions {
    #[command(subcommand)]
    mode: Mode,
}

#[derive(clap::Subcommand)]
enum Mode {
    /// Opens connections, uses each once, and holds them until stdin ends.
    Hold {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        count: usize,
        /// A request on each instead of some bytes.
        #[arg(long)]
        http: bool,
    },
    /// Receives bytes on some connections at a time.
    Pull {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        bytes: u64,
        #[arg(long)]
        streams: u64,
    },
    /// Opens one connection after the other, some at a time.
    Connect {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        seconds: u64,
        #[arg(long)]
        parallel: usize,
    },
    /// gRPC calls, some at a time.
    Grpc {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        seconds: u64,
        #[arg(long)]
        connections: usize,
        #[arg(long)]
        streams: usize,
    },
    /// As many calls, one after another, as each line of stdin says.
    Calls {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        kind: Kind,
    },
    /// Attacks until it is killed.
    Attack {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        attack: Attack,
    },
    /// Asks an admin server until it is ready; prints when that was, in seconds since 1970.
    Ready {
        #[arg(long)]
        address: SocketAddr,
    },
    /// Requests on kept connections until these end; says which were not answered.
    Drain {
        #[arg(long)]
        address: SocketAddr,
        #[arg(long)]
        connections: usize,
    },
}

pub(crate) async fn run(options: ClientOptions) -> anyhow::Result<()> {
    heddle_daemon::process::raise_file_limit();
    match options.mode {
        Mode::Hold { address, count, http } => bytes::hold(address, count, http).await,
        Mode::Pull {
            address,
            bytes,
            streams,
        } => print(&bytes::pull(address, bytes, streams).await?),
        Mode::Connect {
            address,
            seconds,
            parallel,
        } => print(&bytes::connect(address, seconds, parallel).await?),
        Mode::Grpc {
            address,
            seconds,
            connections,
            streams,
        } => print(&grpc::load(address, seconds, connections, streams).await?),
        Mode::Calls { address, kind } => calls::serve(address, kind).await,
        Mode::Attack { address, attack } => attack::run(address, attack).await,
        Mode::Ready { address } => print(&ready(address)?),
        Mode::Drain { address, connections } => print(&drain::load(address, connections).await?),
    }
}

fn print(found: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(found)?);
    Ok(())
}

fn ready(address: SocketAddr) -> anyhow::Result<f64> {
    let deadline = Instant::now() + READY_LIMIT;
    while Instant::now() < deadline {
        let asked = TcpStream::connect(address).and_then(|mut tcp| {
            tcp.write_all(b"GET /ready HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")?;
            let mut answer = Vec::new();
            tcp.read_to_end(&mut answer)?;
            Ok(answer.starts_with(b"HTTP/1.1 200"))
        });
        if matches!(asked, Ok(true)) {
            return Ok(SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)?
                .as_secs_f64());
        }
        std::thread::park_timeout(Duration::from_micros(500));
    }
    anyhow::bail!("{address} is not ready after {READY_LIMIT:?}")
}

/// Starts a client on CPU 0.
pub(super) fn start(netns: &Netns, args: &[&str]) -> anyhow::Result<Child> {
    let mut command = netns.command("taskset");
    command
        .args(["-c", "0"])
        .arg(std::env::current_exe()?)
        .arg("client")
        .args(args)
        .stdout(Stdio::piped());
    command.spawn().context("cannot start a client")
}

/// An attack that goes on until it is ended.
pub(super) struct Attacker(Child);

impl Attacker {
    /// As the proxy's user, whose connections are not redirected: the client is outside the mesh.
    pub(super) fn start(netns: &Netns, address: SocketAddr, attack: Attack) -> anyhow::Result<Self> {
        let mut command = netns.command("taskset");
        command
            .args(["-c", "0", "setpriv"])
            .args(["--reuid=2102", "--regid=2102", "--clear-groups"])
            .arg(std::env::current_exe()?)
            .args(["client", "attack", "--address", &address.to_string()])
            .args(["--attack", &attack.name()]);
        command.spawn().map(Self).context("cannot start an attacker")
    }

    /// Fails when the attack has ended before.
    pub(super) fn end(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.0.try_wait()? {
            anyhow::bail!("the attacker has ended: {status}");
        }
        Ok(())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for a client's end.
pub(super) fn finish<T: DeserializeOwned>(client: Child) -> anyhow::Result<T> {
    let output = client.wait_with_output()?;
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("a client printed {}", String::from_utf8_lossy(&output.stdout)))
}

/// Runs a client to its end.
pub(super) fn ask<T: DeserializeOwned>(netns: &Netns, args: &[&str]) -> anyhow::Result<T> {
    finish(start(netns, args)?)
}
