//! Requests on kept connections until the proxy ends them: which of them were not answered?

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest that a connection is used; one that has not ended by then was not drained.
const LIMIT: Duration = Duration::from_secs(20);

#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Drained {
    pub(crate) answered: u64,
    /// Sent, but not answered.
    pub(crate) lost: u64,
    /// Connections that ended as they should: told by the answer before.
    pub(crate) told: u64,
}

pub(super) async fn load(address: SocketAddr, connections: usize) -> anyhow::Result<Drained> {
    let using = (0..connections).map(|_| until_told(address));
    let all = futures_util::future::join_all(using).await;
    Ok(all.into_iter().fold(Drained::default(), |sum, one| Drained {
        answered: sum.answered + one.answered,
        lost: sum.lost + one.lost,
        told: sum.told + one.told,
    }))
}

/// A client as they should be: it makes a new connection when an answer says that this one ends, and is done when none
/// is taken any more.
async fn until_told(address: SocketAddr) -> Drained {
    let mut drained = Drained::default();
    let began = Instant::now();
    while let Ok(Ok(mut tcp)) = timeout(ANSWER_LIMIT, TcpStream::connect(address)).await {
        let _ = tcp.set_nodelay(true);
        loop {
            if began.elapsed() > LIMIT {
                return drained;
            }
            match timeout(ANSWER_LIMIT, request(&mut tcp, address)).await {
                Ok(Some(answer)) => {
                    drained.answered += 1;
                    if answer.closes {
                        drained.told += 1;
                        break;
                    }
                }
                _ => {
                    drained.lost += 1;
                    break;
                }
            }
        }
    }
    drained
}

struct Answer {
    closes: bool,
}

async fn request(tcp: &mut TcpStream, address: SocketAddr) -> Option<Answer> {
    let request = format!("GET / HTTP/1.1\r\nhost: {address}\r\n\r\n");
    tcp.write_all(request.as_bytes()).await.ok()?;
    let mut received = Vec::with_capacity(1024);
    while !received.ends_with(&[b'x'; 100]) {
        if tcp.read_buf(&mut received).await.ok()? == 0 {
            return None;
        }
    }
    let head = String::from_utf8_lossy(&received).to_ascii_lowercase();
    head.starts_with("http/1.1 200").then(|| Answer {
        closes: head.contains("connection: close"),
    })
}
