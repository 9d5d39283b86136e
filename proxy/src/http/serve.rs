//! A client's HTTP connection: requests in, responses out, until it ends, drains or its client is too slow.

use std::{cell::Cell, convert::Infallible, rc::Rc, time::Duration};

use http::{HeaderValue, Request, Response, header};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::time::{Instant, interval_at};
use tracing::debug;

use super::{
    LocalExec, ResponseBody,
    frugal::Frugal,
    incoming::{Incoming, Pace},
    strict::HEADERS_MAX,
};
use crate::{
    io::{Io, ReadCount},
    upstream::{CONNECTION_WINDOW_BYTES, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES},
    worker::Worker,
};

/// A request's head of more than this is refused.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// A head that has begun must be whole between one and two of these later. Idle connections may stay.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests at a time on one HTTP/2 connection: a peer's proxy has all of its clients' on one, an application what it
/// likes.
pub(crate) const STREAMS_MAX: u32 = 4_096;
/// Of a client that nobody vouches for.
pub(crate) const STRANGER_STREAMS_MAX: u32 = 256;
/// Streams that a client opened and reset before we took them: CVE-2023-44487.
const RESET_STREAMS_MAX: usize = 64;
/// The same of a peer's proxy: when one of its clients goes away, all streams of that client are reset at once, and
/// the others' must not end with them. It holds its own clients to the number above.
const MESHED_RESET_STREAMS_MAX: usize = STREAMS_MAX as usize;
const FRAME_BYTES_MAX: u32 = 64 * 1024;
/// A meshed peer that does not answer pings is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// While draining, an HTTP/1 client may send one more request within this time and learn from its response that the
/// connection ends, rather than find it closed.
const DRAIN_LINGER: Duration = Duration::from_secs(3);

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

/// What is known of a connection between its requests.
#[derive(Debug, Default)]
pub(crate) struct ConnState {
    in_flight: Cell<u32>,
    /// Bytes read when the last request ended, or when none has begun yet.
    idle_at: Cell<u64>,
    /// Of the request whose body is being read.
    pace: Pace,
}

/// Serves a connection; `handle` never fails, because errors become responses.
pub(crate) async fn serve<H, F>(
    worker: Rc<Worker>,
    drain: drain::Watch,
    io: Io,
    version: HttpVersion,
    streams_max: u32,
    handle: H,
) where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let bytes_read = io.bytes_read();
    let state = Rc::new(ConnState::default());
    let service = {
        let (worker, state, bytes_read) = (worker.clone(), state.clone(), bytes_read.clone());
        service_fn(move |request: Request<hyper::body::Incoming>| {
            state.in_flight.set(state.in_flight.get() + 1);
            let busy = Busy {
                state: state.clone(),
                bytes_read: bytes_read.clone(),
            };
            // hyper keeps room for this as long as the connection is open: on the heap, it takes some only while a request
            // is under way.
            let responding = Box::pin(handle(request.map(|body| match version {
                HttpVersion::Http1 => Incoming::paced(body, &state.pace, bytes_read.get()),
                HttpVersion::Http2 => Incoming::new(body),
            })));
            let worker = worker.clone();
            async move {
                let mut response = responding.await;
                if worker.draining.get() && version == HttpVersion::Http1 {
                    response
                        .headers_mut()
                        .insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                drop(busy);
                Ok::<_, Infallible>(response)
            }
        })
    };
    let meshed = io.is_meshed();
    let reset_streams_max = if meshed {
        MESHED_RESET_STREAMS_MAX
    } else {
        RESET_STREAMS_MAX
    };
    let mut drained = std::pin::pin!(drain.signaled());
    let mut held = None;
    match version {
        HttpVersion::Http1 => {
            let connection = http1::Builder::new()
                .half_close(true)
                .auto_date_header(false)
                .max_buf_size(HEAD_BYTES_MAX)
                .max_headers(HEADERS_MAX)
                .serve_connection(TokioIo::new(io), service)
                .with_upgrades();
            let mut connection = std::pin::pin!(connection);
            let mut slow = interval_at(Instant::now() + HEAD_TIMEOUT, HEAD_TIMEOUT);
            let mut suspect = None;
            let mut linger = std::pin::pin!(tokio::time::sleep(DRAIN_LINGER));
            loop {
                tokio::select! {
                    result = connection.as_mut() => {
                        if let Err(error) = result {
                            debug!(%error, "HTTP/1 connection ended");
                        }
                        break;
                    }
                    release = &mut drained, if held.is_none() => {
                        held = Some(release);
                        linger.as_mut().reset(Instant::now() + DRAIN_LINGER);
                    }
                    () = &mut linger, if held.is_some() && state.in_flight.get() == 0 => {
                        connection.as_mut().graceful_shutdown();
                        linger.as_mut().reset(Instant::now() + DRAIN_LINGER);
                    }
                    _ = slow.tick() => {
                        if state.pace.is_too_slow(HEAD_TIMEOUT, bytes_read.get()) {
                            debug!("Closing a connection whose request's body comes too slowly");
                            break;
                        }
                        let begun = state.in_flight.get() == 0 && bytes_read.get() > state.idle_at.get();
                        let now = begun.then(|| state.idle_at.get());
                        if now.is_some() && now == suspect {
                            debug!("Closing a connection whose request does not come to the end of its head");
                            break;
                        }
                        suspect = now;
                    }
                }
            }
        }
        HttpVersion::Http2 => {
            let connection = http2::Builder::new(LocalExec)
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .initial_stream_window_size(STREAM_WINDOW_BYTES)
                .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
                .max_frame_size(FRAME_BYTES_MAX)
                .max_send_buf_size(SEND_BUFFER_BYTES)
                .max_concurrent_streams(streams_max)
                .max_header_list_size(HEAD_BYTES_MAX as u32)
                .max_pending_accept_reset_streams(reset_streams_max)
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .serve_connection(
                    TokioIo::new(if meshed {
                        Frugal::peer(io)
                    } else {
                        Frugal::server(io)
                    }),
                    service,
                );
            let mut connection = std::pin::pin!(connection);
            loop {
                tokio::select! {
                    result = connection.as_mut() => {
                        if let Err(error) = result {
                            debug!(%error, "HTTP/2 connection ended");
                        }
                        break;
                    }
                    release = &mut drained, if held.is_none() => {
                        held = Some(release);
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}

/// A request that its response's head has not ended yet.
struct Busy {
    state: Rc<ConnState>,
    bytes_read: ReadCount,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.in_flight.set(self.state.in_flight.get() - 1);
        self.state.idle_at.set(self.bytes_read.get());
    }
}
