//! Pings on an HTTP/2 connection whose other side says nothing: one that is gone, with nobody left to say so, is noticed.

use std::{cell::Cell, future::poll_fn, rc::Rc};

use h2::{Ping, PingPong};
use heddle_proxy_policy::endpoint::KeepAlive;
use tokio::time::{sleep, timeout};

use crate::io::Traffic;

/// How connections to an endpoint are looked after.
#[derive(Clone, Debug)]
pub(crate) struct Care {
    pub keep_alive: KeepAlive,
    /// What is under way to the endpoint.
    pub in_flight: Rc<Cell<u32>>,
}

impl Care {
    /// Returns when the other side is gone: it has not answered a ping in time, nor sent anything else.
    pub(super) async fn watch(&self, mut pings: PingPong, traffic: Traffic) {
        let KeepAlive {
            interval,
            timeout: patience,
            while_idle,
        } = self.keep_alive;
        let mut heard = traffic.read();
        loop {
            sleep(interval).await;
            let is_silent = std::mem::replace(&mut heard, traffic.read()) == heard;
            if !is_silent || !(while_idle || self.in_flight.get() > 0) {
                continue;
            }
            if pings.send_ping(Ping::opaque()).is_err() {
                return;
            }
            while timeout(patience, poll_fn(|cx| pings.poll_pong(cx)))
                .await
                .is_err()
            {
                // The answer may be behind much that is on its way.
                if std::mem::replace(&mut heard, traffic.read()) == heard {
                    return;
                }
            }
            heard = traffic.read();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
        time::Instant,
    };

    use super::*;

    const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0];

    fn care(while_idle: bool) -> Care {
        Care {
            keep_alive: KeepAlive {
                interval: Duration::from_secs(10),
                timeout: Duration::from_secs(3),
                while_idle,
            },
            in_flight: Rc::default(),
        }
    }

    /// A connection to a server that has sent its settings, and reads; how many pings it answers.
    async fn server(mut io: DuplexStream, answers: usize) {
        io.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0])
            .await
            .expect("settings");
        let (mut seen, mut answered) = (Vec::new(), 0);
        loop {
            let mut bytes = [0; 1024];
            let count = io.read(&mut bytes).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            seen.extend_from_slice(&bytes[..count]);
            while let Some(at) = seen.windows(PING.len()).position(|window| window == PING)
                && seen.len() >= at + 17
                && answered < answers
            {
                let mut pong = seen[at..at + 17].to_vec();
                pong[4] = 1;
                io.write_all(&pong).await.expect("a pong");
                seen.drain(..at + 17);
                answered += 1;
            }
        }
    }

    /// After how many seconds the other side is taken for gone, if it answers so many pings.
    async fn gone_after(care: Care, answers: usize) -> Option<u64> {
        let (ours, theirs) = duplex(4096);
        tokio::spawn(server(theirs, answers));
        let (sender, mut connection) = h2::client::handshake(ours).await.expect("a handshake");
        let sender: h2::client::SendRequest<Bytes> = sender;
        let pings = connection.ping_pong().expect("the first");
        let start = Instant::now();
        let watched = timeout(Duration::from_secs(100), care.watch(pings, Traffic::default()));
        let gone = tokio::select! {
            watched = watched => watched.is_ok(),
            _ = connection => panic!("the connection ended"),
        };
        drop(sender);
        gone.then(|| start.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_answer_a_ping_is_gone() {
        assert_eq!(gone_after(care(true), 0).await, Some(13));
        assert_eq!(gone_after(care(true), 2).await, Some(33));
        assert_eq!(gone_after(care(true), usize::MAX).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn an_idle_connection_is_pinged_only_when_the_endpoint_says_so() {
        assert_eq!(gone_after(care(false), 0).await, None);
        let busy = care(false);
        busy.in_flight.set(1);
        assert_eq!(gone_after(busy, 0).await, Some(13));
    }
}
