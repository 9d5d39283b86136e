use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    io::{Prefixed, Socket},
    metrics::{
        Metrics,
        family::{Counter, Family},
        labels::Labels,
        tcp::TcpHandles,
    },
};

/// Enough to be spliced, and more than all sockets' buffers hold.
const BYTES: usize = 8 << 20;

async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let (one, other) = tokio::join!(TcpStream::connect(addr), listener.accept());
    (one.expect("it listens"), other.expect("it was made").0)
}

struct Copied {
    metrics: Arc<Metrics>,
    client: TcpStream,
    server: TcpStream,
    copying: tokio::task::JoinHandle<io::Result<()>>,
}

/// A client and a server with a copy between them; what was read ahead of the client is `ahead`.
async fn copied() -> Copied {
    let metrics = Arc::new(Metrics::default());
    let handles = |peer: &str| TcpHandles::new(&metrics, &Labels::default().with("peer", peer));
    let (client, one) = sockets().await;
    let (two, server) = sockets().await;
    let io = |tcp, peer| Io::new(Socket::Plain(Prefixed::new(tcp)), handles(peer).open());
    let (mut one, mut two) = (io(one, "src"), io(two, "dst"));
    let copying = tokio::spawn(async move { copy(&mut one, &mut two).await });
    Copied {
        metrics,
        client,
        server,
        copying,
    }
}

fn pattern(salt: usize) -> Vec<u8> {
    (0..BYTES).map(|at| ((at / 7) ^ salt) as u8).collect()
}

#[tokio::test]
async fn bytes_pass_unchanged_both_ways_and_are_counted() {
    let Copied {
        metrics,
        client,
        server,
        copying,
    } = copied().await;
    let exchange = |tcp: TcpStream, salt| async move {
        let (mut read, mut write) = tcp.into_split();
        let sent = tokio::spawn(async move {
            write
                .write_all(&pattern(salt))
                .await
                .expect("the other side reads");
            write.shutdown().await.expect("it is open");
        });
        let mut received = Vec::new();
        read.read_to_end(&mut received).await.expect("it ends well");
        sent.await.expect("it does not panic");
        received
    };
    let (at_client, at_server) = tokio::join!(exchange(client, 1), exchange(server, 2));
    assert!(at_server == pattern(1) && at_client == pattern(2));
    copying.await.expect("no panic").expect("no error");
    for peer in ["src", "dst"] {
        let labels = Labels::default().with("peer", peer);
        let count = |family: &Family<Counter>| family.get(&labels).get();
        let read = count(&metrics.tcp_read_bytes_total);
        assert_eq!(
            (read, count(&metrics.tcp_write_bytes_total)),
            (BYTES as u64, BYTES as u64)
        );
    }
}

#[tokio::test]
async fn an_end_is_passed_on_while_the_other_way_goes_on() {
    let Copied {
        mut client,
        mut server,
        copying,
        ..
    } = copied().await;
    client.write_all(b"question").await.expect("it is open");
    client.shutdown().await.expect("it is open");
    let mut question = String::new();
    server
        .read_to_string(&mut question)
        .await
        .expect("the end is passed on");
    assert_eq!(question, "question");
    for part in ["long ", "answer"] {
        server.write_all(part.as_bytes()).await.expect("it is open");
        let mut received = vec![0; part.len()];
        client.read_exact(&mut received).await.expect("it comes at once");
        assert_eq!(received, part.as_bytes());
    }
    drop(server);
    copying.await.expect("no panic").expect("no error");
}

#[tokio::test]
async fn a_client_that_goes_away_ends_the_other_side() {
    let Copied {
        mut client,
        mut server,
        copying,
        ..
    } = copied().await;
    client.write_all(b"hello").await.expect("it is open");
    let mut hello = [0; 5];
    server.read_exact(&mut hello).await.expect("it comes");
    // Bytes that nobody reads make the close a reset.
    server.write_all(b"unread").await.expect("it is open");
    client.readable().await.expect("it comes");
    drop(client);
    let mut rest = Vec::new();
    let _ = server.read_to_end(&mut rest).await;
    drop(server);
    assert!(copying.await.expect("no panic").is_err());
}

/// Every idle connection holds one of these for its life.
#[test]
fn a_copy_is_small() {
    assert!(size_of::<Direction>() <= 96, "{}", size_of::<Direction>());
}
