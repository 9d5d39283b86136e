//! A request's body as the client's connection gives it out, and whether it comes at a bearable pace.
//!
//! A client that announces a length over HTTP/1 has the body at hand: one that lets us wait for it, byte by byte,
//! holds a connection here and one at the application for nothing. Bodies without a length, and all of HTTP/2, are
//! streams that may rest for as long as they like; there a connection costs little and is shared.

use std::{
    cell::Cell,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::headers;

/// A body may be waited for this long, and longer the more of it has come.
const GRACE: Duration = Duration::from_secs(10);
/// Bytes that earn a second. Telephone lines were faster.
const BYTES_PER_SECOND: u64 = 240;

/// A request's body.
#[derive(Debug)]
pub(crate) struct Incoming {
    body: hyper::body::Incoming,
    pace: Option<Paced>,
}

/// A body whose pace is kept.
#[derive(Debug)]
struct Paced {
    pace: Pace,
    /// The connection's next request may have begun before this body is dropped.
    number: u64,
}

/// How much and how fast the body of a connection's current request comes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace(Rc<State>);

#[derive(Debug, Default)]
struct State {
    /// Of the request, among the connection's.
    number: Cell<u64>,
    /// There may be more of the body on the connection.
    unread: Cell<bool>,
    /// Someone wants more of the body, and there is none: the client is slow, not the next hop.
    waits: Cell<bool>,
    waited: Cell<Duration>,
    /// The bytes that the connection had read when the body began.
    from: Cell<u64>,
}

impl Incoming {
    pub(crate) fn new(body: hyper::body::Incoming) -> Self {
        Self { body, pace: None }
    }

    /// A body whose pace is kept, if it has a length.
    pub(crate) fn paced(body: hyper::body::Incoming, pace: &Pace, bytes_read: u64) -> Self {
        let has_length = body.size_hint().exact().is_some_and(|length| length > 0);
        let number = pace.begin(bytes_read, !body.is_end_stream());
        let pace = has_length.then(|| Paced {
            pace: pace.clone(),
            number,
        });
        Self { body, pace }
    }
}

impl Pace {
    fn begin(&self, bytes_read: u64, unread: bool) -> u64 {
        let number = self.0.number.get() + 1;
        self.0.number.set(number);
        self.0.unread.set(unread);
        self.0.waits.set(false);
        self.0.waited.set(Duration::ZERO);
        self.0.from.set(bytes_read);
        number
    }

    /// Whether the body is known to have come to its end: only one that has a length is.
    pub(crate) fn is_over(&self) -> bool {
        !self.0.unread.get()
    }

    /// Looks at the body after `interval`, when the connection has read so many bytes.
    pub(crate) fn is_too_slow(&self, interval: Duration, bytes_read: u64) -> bool {
        let State {
            number: _,
            unread: _,
            waits,
            waited,
            from,
        } = &*self.0;
        if !waits.get() {
            return false;
        }
        waited.set(waited.get() + interval);
        let earned = bytes_read.saturating_sub(from.get()) / BYTES_PER_SECOND;
        waited.get() > GRACE + Duration::from_secs(earned)
    }
}

impl Paced {
    /// The connection's state, while its request is this one.
    fn state(&self) -> Option<&State> {
        let state = &*self.pace.0;
        (state.number.get() == self.number).then_some(state)
    }
}

impl Body for Incoming {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let mut polled = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            headers::clean_trailers(trailers);
        }
        if let Some(state) = self.pace.as_ref().and_then(Paced::state) {
            state.waits.set(polled.is_pending());
            if self.body.is_end_stream() {
                state.unread.set(false);
            }
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

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some(state) = self.pace.as_ref().and_then(Paced::state) {
            state.waits.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_lets_us_wait_is_too_slow() {
        let (pace, tick) = (Pace::default(), Duration::from_secs(10));
        pace.begin(1_000, true);
        assert!(
            !pace.is_too_slow(tick, 1_000)
                && !pace.is_too_slow(tick, 1_000)
                && !pace.is_too_slow(tick, 1_000)
        );
        pace.0.waits.set(true);
        assert!(!pace.is_too_slow(tick, 1_000), "the first seconds are free");
        assert!(pace.is_too_slow(tick, 1_000 + 20), "a byte a second");
        pace.begin(0, true);
        pace.0.waits.set(true);
        let uploaded = 1 << 20;
        assert!((0..100).all(|_| !pace.is_too_slow(tick, uploaded)), "it may rest");
    }
}
