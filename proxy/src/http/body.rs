//! Bodies on their way through, without boxes.

mod request;

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    grpc_status,
    limit::{Deadline, Limit},
    live::Live,
    serve::Busy,
    tracker::{Cut, Tracker},
};
use crate::{
    http1::{Http1Body, Http1Error},
    metrics::{http::End, route::RouteTracker, stream::Stream},
    observe::Observed,
};

pub(crate) use request::{ClientBody, Repeatable, RequestBody, Sent};

/// A body that could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Hyper(#[from] hyper::Error),
    #[error(transparent)]
    H2(#[from] h2::Error),
    #[error(transparent)]
    Http1(#[from] Box<Http1Error>),
    #[error("the response took longer than its policy allows ({0})")]
    Timeout(Limit),
    #[error("neither side sent anything for longer than its policy allows")]
    Idle,
    #[error("another try of the request has begun")]
    Superseded,
    #[error("the policy no longer allows the request")]
    Forbidden,
}

impl BodyError {
    /// The HTTP/2 error that it came with.
    fn h2_reason(&self) -> Option<h2::Reason> {
        match self {
            Self::H2(error) => error.reason(),
            _ => None,
        }
    }

    /// How metrics tell of it.
    pub(crate) fn cut(&self) -> Cut {
        let stream = match self {
            Self::Timeout(limit) => limit.stream_label(),
            Self::Idle => Limit::Idle.stream_label(),
            Self::H2(error) => h2_label(error),
            Self::Hyper(_) | Self::Http1(_) => "IO",
            Self::Superseded | Self::Forbidden => "UNKNOWN",
        };
        let class = match self {
            Self::H2(error) => h2_class(error),
            _ => "unclassified",
        };
        Cut {
            stream,
            class: Some(class),
        }
    }
}

/// Linkerd's class of a response that an HTTP/2 error ended.
pub(super) fn h2_class(error: &h2::Error) -> &'static str {
    match error.reason() {
        Some(h2::Reason::NO_ERROR) => "h2(NO_ERROR)",
        Some(h2::Reason::PROTOCOL_ERROR) => "h2(PROTOCOL_ERROR)",
        Some(h2::Reason::INTERNAL_ERROR) => "h2(INTERNAL_ERROR)",
        Some(h2::Reason::FLOW_CONTROL_ERROR) => "h2(FLOW_CONTROL_ERROR)",
        Some(h2::Reason::SETTINGS_TIMEOUT) => "h2(SETTINGS_TIMEOUT)",
        Some(h2::Reason::STREAM_CLOSED) => "h2(STREAM_CLOSED)",
        Some(h2::Reason::FRAME_SIZE_ERROR) => "h2(FRAME_SIZE_ERROR)",
        Some(h2::Reason::REFUSED_STREAM) => "h2(REFUSED_STREAM)",
        Some(h2::Reason::CANCEL) => "h2(CANCEL)",
        Some(h2::Reason::COMPRESSION_ERROR) => "h2(COMPRESSION_ERROR)",
        Some(h2::Reason::CONNECT_ERROR) => "h2(CONNECT_ERROR)",
        Some(h2::Reason::ENHANCE_YOUR_CALM) => "h2(ENHANCE_YOUR_CALM)",
        Some(h2::Reason::INADEQUATE_SECURITY) => "h2(INADEQUATE_SECURITY)",
        Some(h2::Reason::HTTP_1_1_REQUIRED) => "h2(HTTP_1_1_REQUIRED)",
        Some(_) | None => "unclassified",
    }
}

/// Linkerd's word for an HTTP/2 error in the metrics of routes.
pub(super) fn h2_label(error: &h2::Error) -> &'static str {
    match error.reason() {
        Some(h2::Reason::CANCEL) if error.is_reset() => "CANCEL",
        Some(h2::Reason::REFUSED_STREAM) if error.is_reset() => "REFUSED",
        Some(h2::Reason::ENHANCE_YOUR_CALM) if error.is_reset() => "ENHANCE_YOUR_CALM",
        _ if error.is_reset() => "RESET",
        _ if error.is_go_away() => "GO_AWAY",
        _ if error.is_io() => "IO",
        _ => "UNKNOWN",
    }
}

/// When either side of a stream last moved. Shared by both.
#[derive(Clone, Debug)]
pub(crate) struct Activity {
    limit: Duration,
    last: Rc<Cell<Instant>>,
}

/// The end of a stream that stands still.
#[derive(Debug)]
struct Idle {
    activity: Activity,
    sleep: Pin<Box<tokio::time::Sleep>>,
}

impl Activity {
    /// Begins now.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            last: Rc::new(Cell::new(Instant::now())),
        }
    }

    fn moved(&self) {
        self.last.set(Instant::now());
    }

    fn ends(&self) -> Instant {
        self.last.get() + self.limit
    }

    pub(crate) fn is_over(&self) -> bool {
        self.ends() <= Instant::now()
    }

    /// Returns the limit when nothing has moved for so long.
    pub(crate) async fn idle(&self) -> Duration {
        while !self.is_over() {
            tokio::time::sleep_until(self.ends()).await;
        }
        self.limit
    }
}

impl Idle {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            let ends = self.activity.ends();
            if ends <= Instant::now() {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(ends);
        }
    }
}

/// A response's body, with what is to be done when it ends.
#[derive(Debug)]
pub(crate) struct ResponseBody {
    source: Source,
    tracker: Option<Tracker>,
    deadline: Option<(Pin<Box<tokio::time::Sleep>>, Limit)>,
    idle: Option<Box<Idle>>,
    /// It ends when the policy forbids the request.
    live: Option<Live>,
    /// Who else looks at the request; mostly nobody.
    observed: Option<Box<Observed>>,
    /// The client's connection is busy with the request until then.
    busy: Option<Busy>,
}

#[derive(Debug)]
enum Source {
    Full(Option<Bytes>),
    Hyper(hyper::body::Incoming),
    Http1(Http1Body),
    Http2 { stream: h2::RecvStream, data_done: bool },
    Peeked(Box<Peeked>),
}

/// A body whose next frame was looked at.
#[derive(Debug)]
struct Peeked {
    frame: Option<Result<Frame<Bytes>, BodyError>>,
    rest: Source,
}

impl ResponseBody {
    pub(crate) fn empty() -> Self {
        Self::full(Bytes::new())
    }

    pub(crate) fn full(data: Bytes) -> Self {
        Self::new(Source::Full(Some(data).filter(|data| !data.is_empty())))
    }

    pub(crate) fn hyper(body: hyper::body::Incoming) -> Self {
        Self::new(Source::Hyper(body))
    }

    pub(crate) fn http1(body: Http1Body) -> Self {
        Self::new(Source::Http1(body))
    }

    pub(crate) fn http2(stream: h2::RecvStream) -> Self {
        Self::new(Source::Http2 {
            stream,
            data_done: false,
        })
    }

    fn new(source: Source) -> Self {
        Self {
            source,
            tracker: None,
            deadline: None,
            idle: None,
            live: None,
            observed: None,
            busy: None,
        }
    }

    /// Holds that as long as there is more of the body.
    #[must_use]
    pub(super) fn holding(mut self, busy: Busy) -> Self {
        self.busy = Some(busy);
        self
    }

    /// Tells `tracker` of the end. A body that has ended already tells it at once.
    #[must_use]
    pub(crate) fn tracked(mut self, mut tracker: Tracker) -> Self {
        // A gateway's response has passed the outbound side, which counts it, too.
        tracker.inner = self.tracker.take().map(Box::new);
        if self.is_end_stream() {
            tracker.end(None);
        } else {
            self.tracker = Some(tracker);
        }
        self
    }

    /// Tells a route's tracker of the end as well.
    pub(crate) fn also_tracked(response: &mut Response<Self>, route: RouteTracker) {
        match &mut response.body_mut().tracker {
            Some(tracker) => tracker.routes.push(route),
            // It has ended already, or is the proxy's own.
            None => route.end(grpc_status(response.headers()).map_or(End::Http, End::Grpc)),
        }
    }

    /// Counts the end for `stream` as well.
    #[must_use]
    pub(crate) fn counted(mut self, stream: Stream, status: StatusCode, headers: &HeaderMap) -> Self {
        match &mut self.tracker {
            Some(tracker) => {
                tracker.streams.1 = Some(stream);
                self
            }
            None => {
                let mut tracker = Tracker::new(None, status, headers, stream.since, None);
                tracker.streams.1 = Some(stream);
                self.tracked(tracker)
            }
        }
    }

    /// Shows what passes to those who look at the request. A body that has ended already is shown at once.
    #[must_use]
    pub(crate) fn observed(mut self, mut observed: Box<Observed>) -> Self {
        if let Some(inner) = self.observed.take() {
            observed.absorb(*inner);
        }
        if self.is_end_stream() {
            observed.ended();
        } else {
            self.observed = Some(observed);
        }
        self
    }

    /// Fails when it has not ended by then.
    #[must_use]
    pub(crate) fn deadline(mut self, deadline: Option<Deadline>) -> Self {
        self.deadline = deadline.map(|end| (Box::pin(tokio::time::sleep_until(end.at)), end.limit));
        self
    }

    /// Fails when neither side moves for too long.
    #[must_use]
    pub(crate) fn idle(mut self, activity: Option<Activity>) -> Self {
        self.idle = activity.map(|activity| {
            activity.moved();
            let sleep = Box::pin(tokio::time::sleep_until(activity.ends()));
            Box::new(Idle { activity, sleep })
        });
        self
    }

    /// Fails when the policy forbids the request.
    #[must_use]
    pub(crate) fn live(mut self, live: Live) -> Self {
        self.live = Some(live);
        self
    }

    /// The gRPC status, if trailers come next and within `patience`. What comes is still there to be read.
    pub(crate) async fn peek_grpc_status(&mut self, patience: Duration) -> Option<u32> {
        let next = std::future::poll_fn(|cx| self.source.poll_frame(cx));
        let frame = tokio::time::timeout(patience, next).await.ok()??;
        let trailers = frame.as_ref().ok().and_then(Frame::trailers_ref);
        let status = trailers.and_then(grpc_status);
        let rest = std::mem::replace(&mut self.source, Source::Full(None));
        self.source = Source::Peeked(Box::new(Peeked {
            frame: Some(frame),
            rest,
        }));
        status
    }

    fn fail(&mut self, error: &BodyError) {
        if let Some(mut tracker) = self.tracker.take() {
            tracker.end(Some(error.cut()));
        }
        if let Some(mut observed) = self.observed.take() {
            observed.failed(error.h2_reason());
        }
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Full(data) => Poll::Ready(data.take().map(|data| Ok(Frame::data(data)))),
            Self::Hyper(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
            Self::Http1(body) => Pin::new(body).poll_frame(cx),
            Self::Peeked(peeked) => match peeked.frame.take() {
                Some(frame) => Poll::Ready(Some(frame)),
                None => peeked.rest.poll_frame(cx),
            },
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
        let polled = match &this.live {
            Some(live) if live.is_forbidden() => Poll::Ready(Some(Err(BodyError::Forbidden))),
            _ => this.source.poll_frame(cx),
        };
        match &polled {
            Poll::Pending => {
                if let Some(live) = &mut this.live {
                    // It was asked above, and only this thread takes it back.
                    let _ = live.poll_forbidden(cx);
                }
                if let Some((deadline, limit)) = &mut this.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    let limit = *limit;
                    this.deadline = None;
                    this.fail(&BodyError::Timeout(limit));
                    return Poll::Ready(Some(Err(BodyError::Timeout(limit))));
                }
                if let Some(idle) = &mut this.idle
                    && idle.poll(cx).is_ready()
                {
                    this.idle = None;
                    this.fail(&BodyError::Idle);
                    return Poll::Ready(Some(Err(BodyError::Idle)));
                }
            }
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(idle) = &this.idle {
                    idle.activity.moved();
                }
                let ended = this.source.is_end_stream();
                if let Some(tracker) = &mut this.tracker {
                    tracker.frame(frame);
                    if ended {
                        tracker.end(None);
                        this.tracker = None;
                    }
                }
                if let Some(observed) = &mut this.observed {
                    observed.frame(frame);
                    if ended {
                        observed.ended();
                        this.observed = None;
                    }
                }
            }
            Poll::Ready(None) => {
                if let Some(mut tracker) = this.tracker.take() {
                    tracker.end(None);
                }
                if let Some(mut observed) = this.observed.take() {
                    observed.ended();
                }
            }
            Poll::Ready(Some(Err(error))) => this.fail(error),
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
            Source::Http2 { .. } | Source::Peeked(_) => SizeHint::default(),
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
            Self::Peeked(peeked) => peeked.frame.is_none() && peeked.rest.is_end_stream(),
        }
    }
}
