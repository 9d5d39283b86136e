//! Clients of connections of bytes.

use std::{
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    process::{ChildStdin, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::super::app::{ECHO, POUR};
use crate::netns::{Netns, Process};

/// Connections that are being made at a time.
const OPENING: usize = 64;
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Pulled {
    pub(crate) count: u64,
    pub(crate) seconds: f64,
}

/// A connection on which one message has come back.
async fn used(address: SocketAddr, http: bool) -> anyhow::Result<TcpStream> {
    let using = async {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.set_nodelay(true)?;
        if !http {
            tcp.write_all(&[ECHO; 16]).await?;
            tcp.read_exact(&mut [0; 16]).await?;
            return Ok(tcp);
        }
        let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
        tcp.write_all(request.as_bytes()).await?;
        let mut received = Vec::new();
        // The application answers with a hundred of these.
        while !received.ends_with(&[b'x'; 100]) {
            ensure!(tcp.read_buf(&mut received).await? > 0, "no whole answer came");
        }
        ensure!(received.starts_with(b"HTTP/1.1 200"), "the answer was not 200");
        Ok(tcp)
    };
    timeout(ANSWER_LIMIT, using)
        .await
        .with_context(|| format!("{address} did not answer within {ANSWER_LIMIT:?}"))?
}

pub(super) async fn hold(address: SocketAddr, count: usize, http: bool) -> anyhow::Result<()> {
    let held: Vec<TcpStream> = stream::iter((0..count).map(|_| used(address, http)))
        .buffer_unordered(OPENING)
        .try_collect()
        .await?;
    println!("{}", held.len());
    tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await?;
    Ok(())
}

pub(super) async fn pull(address: SocketAddr, bytes: u64, streams: u64) -> anyhow::Result<Pulled> {
    let began = Instant::now();
    let each = bytes / streams;
    let pulling = (0..streams).map(|_| async move {
        let mut tcp = TcpStream::connect(address).await?;
        tcp.write_all(&[&[POUR][..], &each.to_be_bytes()].concat())
            .await?;
        let mut buffer = vec![0; 256 * 1024];
        let mut count = 0;
        loop {
            match timeout(ANSWER_LIMIT, tcp.read(&mut buffer)).await?? {
                0 => break,
                more => count += more as u64,
            }
        }
        ensure!(count == each, "{count} of {each} bytes came");
        Ok(count)
    });
    let counts = futures_util::future::try_join_all(pulling).await?;
    Ok(Pulled {
        count: counts.into_iter().sum(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

pub(super) async fn connect(address: SocketAddr, seconds: u64, parallel: usize) -> anyhow::Result<Pulled> {
    let (began, lasts) = (Instant::now(), Duration::from_secs(seconds));
    let connecting = (0..parallel).map(|_| async move {
        let mut count = 0;
        while began.elapsed() < lasts {
            let mut tcp = used(address, false).await?;
            // The end comes back, so that both sides have closed before the next.
            tcp.shutdown().await?;
            timeout(ANSWER_LIMIT, tcp.read(&mut [0])).await??;
            count += 1;
        }
        anyhow::Ok(count)
    });
    let counts = futures_util::future::try_join_all(connecting).await?;
    Ok(Pulled {
        count: counts.into_iter().sum(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// Connections that are held until this is dropped.
pub(crate) struct Hold {
    _stdin: ChildStdin,
    _process: Process,
}

impl Hold {
    pub(crate) fn new(netns: &Netns, address: SocketAddr, count: usize, http: bool) -> anyhow::Result<Self> {
        let mut command = netns.command("taskset");
        command
            .args(["-c", "0"])
            .arg(std::env::current_exe()?)
            .args(["client", "hold", "--address", &address.to_string()])
            .args(["--count", &count.to_string()])
            .args(http.then_some("--http"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut process = Process::start("idle connections", &mut command)?;
        let pipes = (process.child.stdin.take(), process.child.stdout.take());
        let (Some(stdin), Some(stdout)) = pipes else {
            unreachable!("both were asked for");
        };
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(
            line.trim().parse() == Ok(count),
            "{count} connections to {address} could not be made"
        );
        Ok(Self {
            _stdin: stdin,
            _process: process,
        })
    }
}
