//! Calls one after another on one connection, so that what each costs can be counted.

use std::{
    fmt,
    io::{BufRead as _, BufReader, Write as _},
    net::SocketAddr,
    process::{ChildStdin, ChildStdout, Stdio},
};

use anyhow::ensure;
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{super::app::ECHO, grpc};
use crate::netns::{Netns, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Http1,
    Grpc,
    Opaque,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Http1, Self::Grpc, Self::Opaque];
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Http1 => "http1",
            Self::Grpc => "grpc",
            Self::Opaque => "opaque",
        })
    }
}

pub(super) async fn serve(address: SocketAddr, kind: Kind) -> anyhow::Result<()> {
    let mut orders = tokio::io::BufReader::new(tokio::io::stdin()).lines();
    let mut tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let sender = match kind {
        Kind::Grpc => Some(grpc::connect(address).await?),
        Kind::Http1 | Kind::Opaque => None,
    };
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    let mut answer = Vec::new();
    while let Some(count) = orders.next_line().await? {
        for _ in 0..count.parse::<u64>()? {
            match (&sender, kind) {
                (Some(sender), _) => grpc::call(sender.clone(), address).await?,
                (None, Kind::Opaque) => {
                    tcp.write_all(&[ECHO; 100]).await?;
                    tcp.read_exact(&mut [0; 100]).await?;
                }
                (None, _) => {
                    tcp.write_all(request.as_bytes()).await?;
                    answer.clear();
                    while !answer.ends_with(&[b'x'; 100]) {
                        ensure!(tcp.read_buf(&mut answer).await? > 0, "no whole answer came");
                    }
                    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the answer was not 200");
                }
            }
        }
        println!("{count}");
    }
    Ok(())
}

/// A client that makes calls when it is told to.
pub(crate) struct Caller {
    orders: ChildStdin,
    done: BufReader<ChildStdout>,
    _process: Process,
}

impl Caller {
    pub(crate) fn new(netns: &Netns, address: SocketAddr, kind: Kind) -> anyhow::Result<Self> {
        let own = std::env::current_exe()?;
        let mut command = netns.command("taskset");
        command
            .args(["-c", "0"])
            .arg(own)
            .args(["client", "calls", "--address", &address.to_string()])
            .args(["--kind", &kind.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start(format!("{kind} calls"), &mut command)?;
        let pipes = (process.child.stdin.take(), process.child.stdout.take());
        let (Some(orders), Some(done)) = pipes else {
            unreachable!("both were asked for");
        };
        Ok(Self {
            orders,
            done: BufReader::new(done),
            _process: process,
        })
    }

    pub(crate) fn call(&mut self, count: u64) -> anyhow::Result<()> {
        writeln!(self.orders, "{count}")?;
        let mut line = String::new();
        self.done.read_line(&mut line)?;
        ensure!(line.trim().parse() == Ok(count), "a call failed");
        Ok(())
    }
}
