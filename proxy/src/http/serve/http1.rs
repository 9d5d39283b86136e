//! A client's HTTP/1 connection. While no request is under way it is but a socket: hyper's buffers, which are twice 8 KiB,
//! and all else that reads and writes messages, are there only from a request's first byte until a while after its
//! response.

use std::{convert::Infallible, pin::Pin, time::Duration};

use drain::ReleaseShutdown;
use hyper::{
    body::Incoming,
    server::conn::http1::{self, Parts},
    service::HttpService,
};
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing::debug;

use super::{ConnState, HEAD_BYTES_MAX, ResponseBody};
use crate::{
    http::strict::HEADERS_MAX,
    io::{Io, Prefixed},
};

/// A connection whose request nobody takes holds a few times this, and not hyper's buffer, which grows to what a head may be.
const READ_BYTES_MAX: usize = 16 * 1024;
/// How often a connection in use is looked at. One that is found idle twice rests.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// A head that has begun must be whole by then. Idle connections may stay.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// While draining, an HTTP/1 client may send one more request within this time and learn from its response that the
/// connection ends, rather than find it closed.
const DRAIN_LINGER: Duration = Duration::from_secs(3);

/// A connection on which nothing is going on.
struct Resting<S> {
    io: Prefixed<Io>,
    service: S,
}

/// The drain, as one connection sees it.
struct Drain<F> {
    signaled: F,
    /// What keeps the process from ending, and since when the client knows.
    begun: Option<(ReleaseShutdown, Instant)>,
}

/// Serves the connection until it ends.
pub(super) async fn serve<S>(io: Io, mut service: S, state: &ConnState, drain: drain::Watch)
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
{
    let mut drain = Drain {
        signaled: std::pin::pin!(drain.signaled()),
        begun: None,
    };
    let mut io = Prefixed::new(io.reading_at_most(READ_BYTES_MAX));
    let mut last = false;
    loop {
        let Some(resting) = Box::pin(requests(io, service, state, &mut drain, last)).await else {
            return;
        };
        Resting { io, service } = resting;
        // Bytes, an end or an error: whoever reads next will see.
        tokio::select! {
            _ = io.read_ahead() => {}
            () = drain.lingered() => last = true,
        }
    }
}

/// Serves requests until the connection rests, or ends (`None`); an idle one ends at once if it is to be the `last` time.
async fn requests<S, F>(
    io: Prefixed<Io>,
    service: S,
    state: &ConnState,
    drain: &mut Drain<F>,
    last: bool,
) -> Option<Resting<S>>
where
    S: HttpService<Incoming, ResBody = ResponseBody, Error = Infallible>,
    F: Future<Output = ReleaseShutdown> + Unpin,
{
    let mut connection = http1::Builder::new()
        .half_close(true)
        .auto_date_header(false)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades();
    if last {
        Pin::new(&mut connection).graceful_shutdown();
    }
    let mut look = interval_at(Instant::now() + LOOK_INTERVAL, LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    state.recent.set(true);
    // Since when a head has been coming, and how many bytes were there before it.
    let mut head: Option<(Instant, u64)> = None;
    loop {
        tokio::select! {
            result = &mut connection => {
                if let Err(error) = result {
                    debug!(%error, "HTTP/1 connection ended");
                }
                return None;
            }
            () = drain.lingered(), if state.in_flight.get() == 0 => {
                Pin::new(&mut connection).graceful_shutdown();
            }
            _ = look.tick() => {
                if state.pace.is_too_slow(LOOK_INTERVAL, state.traffic.read()) {
                    debug!("Closing a connection whose request's body comes too slowly");
                    return None;
                }
                let before = state.idle_at.get();
                head = match head {
                    _ if !state.has_begun() => None,
                    Some((since, same)) if same == before => Some((since, same)),
                    _ => Some((Instant::now(), before)),
                };
                if head.is_some_and(|(since, _)| since.elapsed() >= HEAD_TIMEOUT) {
                    debug!("Closing a connection whose request does not come to the end of its head");
                    return None;
                }
                if !state.recent.replace(false) && state.is_idle() {
                    break;
                }
            }
        }
    }
    let Parts {
        io,
        read_buf,
        service,
        ..
    } = connection.into_parts()?;
    // The beginning of a next request may have come with the last one.
    state
        .idle_at
        .set(state.traffic.read().saturating_sub(read_buf.len() as u64));
    Some(Resting {
        io: io.into_inner().reading_again(&read_buf),
        service,
    })
}

impl<F: Future<Output = ReleaseShutdown> + Unpin> Drain<F> {
    /// Returns when the drain has begun and the client has had its time to learn of it; then after the same time again.
    /// Cancel-safe.
    async fn lingered(&mut self) {
        let since = match &mut self.begun {
            Some((_, since)) => since,
            none => {
                let held = (&mut self.signaled).await;
                &mut none.insert((held, Instant::now())).1
            }
        };
        sleep_until(*since + DRAIN_LINGER).await;
        *since = Instant::now();
    }
}

#[cfg(test)]
mod tests;
