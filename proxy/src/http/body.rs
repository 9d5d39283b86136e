//! Bodies on their way through, without boxes.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::{
    grpc_status,
    replay::{Kept, Replay, ReplayBody},
};
use crate::{
    balance::InFlight,
    http1::{Http1Body, Http1Error},
    metrics::{
        http::{End, HttpHandles},
        route::RouteTracker,
    },
};

/// A body that could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error(transparent)]
    H2(#[from] h2::Error),
    #[error(transparent)]
    Http1(#[from] Box<Http1Error>),
    #[error("the response took longer than its policy allows")]
    Timeout,
    #[error("another try of the request has begun")]
    Superseded,
}

/// A request's body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// From the client, as it comes.
    Incoming(Incoming),
    /// From the client, and kept so that it can be sent again.
    Replay(ReplayBody),
    /// Kept as a whole: a copy of another's.
    Kept(Kept),
    /// None.
    Empty,
}

/// How a body can be sent more than once.
#[derive(Debug)]
pub(crate) enum Repeatable {
    Empty,
    Kept(Kept),
    Replay(Replay),
}

impl RequestBody {
    /// Keeps up to `kept_bytes_max` of the body for another try.
    pub(crate) fn repeatable(self, kept_bytes_max: usize) -> Repeatable {
        match self {
            body if body.is_end_stream() => Repeatable::Empty,
            Self::Empty => Repeatable::Empty,
            Self::Kept(body) => Repeatable::Kept(body),
            Self::Incoming(body) => Repeatable::Replay(Replay::new(body, kept_bytes_max)),
            Self::Replay(body) => Repeatable::Replay(body.shared()),
        }
    }
}

impl Repeatable {
    /// The body for the next try.
    pub(crate) fn body(&self) -> RequestBody {
        match self {
            Self::Empty => RequestBody::Empty,
            Self::Kept(body) => RequestBody::Kept(body.clone()),
            Self::Replay(replay) => RequestBody::Replay(replay.attempt()),
        }
    }

    /// The whole body, if it has come to its end and was kept.
    pub(crate) fn whole(&self) -> Option<Kept> {
        match self {
            Self::Empty => Some(Kept::default()),
            Self::Kept(body) => Some(body.clone()),
            Self::Replay(replay) => replay.whole(),
        }
    }

    pub(crate) fn can_repeat(&self) -> bool {
        match self {
            Self::Empty | Self::Kept(_) => true,
            Self::Replay(replay) => replay.can_repeat(),
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Replay(body) => body.poll_next(cx),
            Self::Kept(body) => Poll::Ready(body.next().map(Ok)),
            Self::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Incoming(body) => body.is_end_stream(),
            Self::Replay(body) => body.is_ended(),
            Self::Kept(body) => body.is_ended(),
            Self::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Incoming(body) => body.size_hint(),
            Self::Replay(body) => body.hint(),
            Self::Kept(body) => body.hint(),
            Self::Empty => SizeHint::with_exact(0),
        }
    }
}

/// A response's body, with what is to be done when it ends.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    source: Source,
    tracker: Option<Tracker>,
    deadline: Option<Pin<Box<tokio::time::Sleep>>>,
}

#[derive(Debug)]
enum Source {
    Full(Option<Bytes>),
    Hyper(Incoming),
    Http1(Http1Body),
    Http2 { stream: h2::RecvStream, data_done: bool },
}

impl ResponseBody {
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(crate) fn full(data: Bytes) -> Self {
        let data = Some(data).filter(|data| !data.is_empty());
        Self {
            source: Source::Full(data),
            tracker: None,
            deadline: None,
        }
    }

    pub(crate) fn hyper(body: Incoming) -> Self {
        Self {
            source: Source::Hyper(body),
            tracker: None,
            deadline: None,
        }
    }

    pub(crate) fn http1(body: Http1Body) -> Self {
        Self {
            source: Source::Http1(body),
            tracker: None,
            deadline: None,
        }
    }

    pub(crate) fn http2(stream: h2::RecvStream) -> Self {
        Self {
            source: Source::Http2 {
                stream,
                data_done: false,
            },
            tracker: None,
            deadline: None,
        }
    }

    /// Tells `tracker` of the end. A body that has ended already tells it at once.
    #[must_use]
    pub(crate) fn tracked(mut self, mut tracker: Tracker) -> Self {
        if self.is_end_stream() {
            tracker.ended();
        } else {
            self.tracker = Some(tracker);
        }
        self
    }

    /// Tells a route's tracker of the end as well. `headers` are the response's.
    pub(crate) fn also_tracked(&mut self, headers: &HeaderMap, mut route: RouteTracker) {
        match &mut self.tracker {
            Some(tracker) => tracker.routes.push(route),
            // It has ended already, or is the proxy's own.
            None => route.ended(grpc_status(headers)),
        }
    }

    /// Fails when it has not ended by then.
    #[must_use]
    pub(crate) fn deadline(mut self, deadline: Option<Instant>) -> Self {
        self.deadline = deadline.map(|at| Box::pin(tokio::time::sleep_until(at)));
        self
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Full(data) => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Http2 { stream, data_done } => {
                if !*data_done {
                    match ready!(stream.poll_data(cx)) {
                        Some(Ok(data)) => {
                            // The client's connection takes it from here; its own flow control holds us back.
                            stream.flow_control().release_capacity(data.len())?;
                            return Poll::Ready(Some(Ok(Frame::data(data))));
                        }
                        Some(Err(error)) => return Poll::Ready(Some(Err(error.into()))),
                        None => *data_done = true,
                    }
                }
                match ready!(stream.poll_trailers(cx)) {
                    Ok(trailers) => Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers)))),
                    Err(error) => Poll::Ready(Some(Err(error.into()))),
                }
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = this.source.poll_frame(cx);
        match &polled {
            Poll::Pending => {
                if let Some(deadline) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    this.deadline = None;
                    this.tracker = None;
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(tracker) = &mut this.tracker {
                    if let Some(status) = frame.trailers_ref().and_then(grpc_status) {
                        tracker.grpc_status = Some(status);
                    }
                    if this.source.is_end_stream() {
                        tracker.ended();
                        this.tracker = None;
                    }
                }
            }
            Poll::Ready(None) => {
                if let Some(mut tracker) = this.tracker.take() {
                    tracker.ended();
                }
            }
            // Dropping it counts the failure.
            Poll::Ready(Some(Err(_))) => this.tracker = None,
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Full(data) => SizeHint::with_exact(data.as_ref().map_or(0, |data| data.len() as u64)),
            Source::Hyper(body) => body.size_hint(),
            Source::Http1(body) => body.size_hint(),
            Source::Http2 { .. } => SizeHint::default(),
        }
    }
}

impl Source {
    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(data) => data.is_none(),
            Self::Hyper(body) => body.is_end_stream(),
            Self::Http1(body) => body.is_end_stream(),
            Self::Http2 { stream, .. } => stream.is_end_stream(),
        }
    }
}

/// What is done when a response ends: it is counted, and its endpoint has one request less in flight.
#[derive(Debug)]
pub(crate) struct Tracker {
    handles: Rc<HttpHandles>,
    status: StatusCode,
    grpc_status: Option<u32>,
    started: Instant,
    ended: bool,
    /// What else counts the response; dropping them counts a failure.
    routes: Vec<RouteTracker>,
    /// The endpoint is busy with the request until then.
    _in_flight: Option<InFlight>,
}

impl Tracker {
    pub(crate) fn new(
        handles: Rc<HttpHandles>,
        status: StatusCode,
        headers: &HeaderMap,
        started: Instant,
        in_flight: Option<InFlight>,
    ) -> Self {
        let grpc_status = grpc_status(headers);
        Self {
            handles,
            status,
            grpc_status,
            started,
            ended: false,
            routes: Vec::new(),
            _in_flight: in_flight,
        }
    }

    fn ended(&mut self) {
        if !self.ended {
            self.ended = true;
            let end = self.grpc_status.map_or(End::Http, End::Grpc);
            self.handles.response(self.status, end, self.started);
            for route in &mut self.routes {
                route.ended(self.grpc_status);
            }
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        if !self.ended {
            self.handles.response(self.status, End::Failed, self.started);
        }
    }
}
