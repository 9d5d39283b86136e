//! A client's HTTP connection: requests in, responses out, until it ends, drains or its client is too slow.

mod http1;

use std::{cell::Cell, convert::Infallible, rc::Rc};

use http::{HeaderValue, Request, Response, header};
use hyper::{
    server::conn::http2,
    service::{HttpService, service_fn},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tracing::debug;

use super::{
    LocalExec, ResponseBody,
    frugal::Frugal,
    incoming::{Incoming, Pace},
    windows::Windows,
};
use crate::{
    config::Http2Config,
    io::{Io, Traffic},
    worker::Worker,
};

/// A request's head of more than this is refused.
const HEAD_BYTES_MAX: usize = 64 * 1024;
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

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    Http1,
    Http2,
}

/// What is known of an HTTP/1 connection between its requests.
#[derive(Debug)]
struct ConnState {
    traffic: Traffic,
    in_flight: Cell<u32>,
    /// Bytes read when the last request ended, or when none has begun yet.
    idle_at: Cell<u64>,
    /// A request has begun since this was last looked at.
    recent: Cell<bool>,
    /// Of the request whose body is being read.
    pace: Pace,
}

/// A request whose response has not ended yet.
#[derive(Debug)]
pub(super) struct Busy(Rc<ConnState>);

/// Serves a connection; `handle` never fails, because errors become responses.
pub(crate) async fn serve<H, F>(
    worker: Rc<Worker>,
    drain: drain::Watch,
    io: Io,
    version: HttpVersion,
    http2: Http2Config,
    handle: H,
) where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    // On the heap, so that one protocol need not have room for the other.
    match version {
        HttpVersion::Http1 => {
            let state = Rc::new(ConnState::new(io.traffic()));
            let service = http1_service(&state, handle, move || worker.draining.get());
            Box::pin(http1::serve(io, service, &state, drain)).await;
        }
        HttpVersion::Http2 => {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                // hyper moves what is returned here into a task, more than once on the way.
                let responding = Box::pin(handle(request.map(Incoming::new)));
                async move { Ok::<_, Infallible>(responding.await) }
            });
            Box::pin(serve_http2(io, service, http2, drain)).await;
        }
    }
}

/// Calls `handle`, and keeps account of the connection's requests.
fn http1_service<H, F>(
    state: &Rc<ConnState>,
    handle: H,
    is_draining: impl Fn() -> bool + Clone + 'static,
) -> impl HttpService<hyper::body::Incoming, ResBody = ResponseBody, Error = Infallible>
where
    H: Fn(Request<Incoming>) -> F + 'static,
    F: Future<Output = Response<ResponseBody>> + 'static,
{
    let state = state.clone();
    service_fn(move |request: Request<hyper::body::Incoming>| {
        let busy = Busy::new(&state);
        let body = |body| Incoming::paced(body, &state.pace, state.traffic.read());
        // hyper keeps room for this as long as it has the connection: on the heap, it takes some only while a request is
        // under way.
        let responding = Box::pin(handle(request.map(body)));
        let is_draining = is_draining.clone();
        async move {
            let mut response = responding.await;
            if is_draining() {
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| body.holding(busy)))
        }
    })
}

async fn serve_http2<S>(io: Io, service: S, config: Http2Config, drain: drain::Watch)
where
    S: HttpService<hyper::body::Incoming, ResBody = ResponseBody, Error = Infallible>,
    S::Future: 'static,
{
    let windows = Windows::far();
    let meshed = io.is_meshed();
    let (send_buffer, streams_max) = match !meshed && config.streams_max <= STRANGER_STREAMS_MAX {
        true => windows.of_stranger(config.streams_max),
        false => (windows.send_buffer(), config.streams_max),
    };
    let (io, reset_streams_max) = match meshed {
        true => (Frugal::peer(io), MESHED_RESET_STREAMS_MAX),
        false => (Frugal::server(io, streams_max), RESET_STREAMS_MAX),
    };
    let connection = http2::Builder::new(LocalExec)
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .initial_stream_window_size(windows.stream())
        .initial_connection_window_size(windows.connection())
        .max_frame_size(FRAME_BYTES_MAX)
        .max_send_buf_size(send_buffer)
        .max_concurrent_streams(streams_max)
        .max_header_list_size(HEAD_BYTES_MAX as u32)
        .max_pending_accept_reset_streams(reset_streams_max)
        .keep_alive_interval(config.ping_interval)
        .keep_alive_timeout(config.ping_timeout)
        .serve_connection(TokioIo::new(io), service);
    let mut connection = std::pin::pin!(connection);
    let mut drained = std::pin::pin!(drain.signaled());
    let mut held = None;
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

impl ConnState {
    fn new(traffic: Traffic) -> Self {
        Self {
            in_flight: Cell::new(0),
            idle_at: Cell::new(traffic.read()),
            recent: Cell::new(true),
            pace: Pace::default(),
            traffic,
        }
    }

    /// Whether there is nothing to do: all requests are over, and nothing has come since.
    fn is_idle(&self) -> bool {
        self.in_flight.get() == 0
            && self.pace.is_over()
            && self.traffic.is_flushed()
            && self.traffic.read() == self.idle_at.get()
    }

    /// A request's head has begun to come, and nothing else is going on.
    fn has_begun(&self) -> bool {
        self.in_flight.get() == 0 && self.traffic.read() > self.idle_at.get()
    }
}

impl Busy {
    fn new(state: &Rc<ConnState>) -> Self {
        state.in_flight.set(state.in_flight.get() + 1);
        state.recent.set(true);
        Self(state.clone())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Self(state) = self;
        state.in_flight.set(state.in_flight.get() - 1);
        state.idle_at.set(state.traffic.read());
    }
}
