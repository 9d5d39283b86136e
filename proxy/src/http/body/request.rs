//! A request's body: the client's as it comes, or kept so that it can be sent again.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::Instant;

use super::{
    super::{
        incoming::Incoming,
        replay::{Kept, Replay, ReplayBody},
    },
    Activity, BodyError,
};
use crate::metrics::stream::StreamHandles;

/// A client's body, whose pieces are counted.
#[derive(Debug)]
pub(crate) struct ClientBody {
    body: Incoming,
    counter: Option<Rc<StreamHandles>>,
    activity: Option<Activity>,
    sent: Option<Sent>,
}

/// When all of a client's request was there. Shared by the body and who waits for its end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sent(Rc<Cell<Option<Instant>>>);

impl Sent {
    pub(crate) fn at(&self) -> Option<Instant> {
        self.0.get()
    }

    /// It is there as of now.
    pub(crate) fn now(&self) {
        self.0.set(Some(Instant::now()));
    }
}

impl ClientBody {
    pub(crate) fn new(body: Incoming, counter: Option<Rc<StreamHandles>>) -> Self {
        Self {
            body,
            counter,
            activity: None,
            sent: None,
        }
    }

    /// Notes there when it has come to its end.
    #[must_use]
    pub(crate) fn noting_end(mut self, sent: Option<Sent>) -> Self {
        self.sent = sent;
        self.note_end(false);
        self
    }

    fn note_end(&mut self, over: bool) {
        if let Some(sent) = self.sent.take_if(|_| over || self.body.is_end_stream()) {
            sent.now();
        }
    }

    /// Notes there when it moves.
    #[must_use]
    pub(crate) fn noting(mut self, activity: Option<Activity>) -> Self {
        self.activity = activity;
        self
    }
}

impl Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.body).poll_frame(cx);
        if let (Poll::Ready(_), Some(activity)) = (&polled, &this.activity) {
            activity.moved();
        }
        if let (Poll::Ready(Some(Ok(frame))), Some(counter)) = (&polled, &this.counter)
            && let Some(data) = frame.data_ref()
        {
            counter.request_frame(data.len());
        }
        if let Poll::Ready(frame) = &polled {
            this.note_end(!matches!(frame, Some(Ok(frame)) if frame.is_data()));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A request's body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    /// From the client, as it comes.
    Incoming(ClientBody),
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
