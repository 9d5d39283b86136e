//! A request body that can be sent again: what passes is kept, up to a limit.

use std::{
    cell::RefCell,
    collections::VecDeque,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

use super::body::{BodyError, ClientBody};

/// The body that all tries share.
#[derive(Clone, Debug)]
pub(crate) struct Replay(Rc<RefCell<State>>);

/// One try's view of the body. Beginning another ends it.
#[derive(Debug)]
pub(crate) struct ReplayBody {
    shared: Replay,
    attempt: u32,
    next: usize,
    done: bool,
}

/// A whole body that was kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    data: VecDeque<Bytes>,
    trailers: Option<HeaderMap>,
}

impl Kept {
    pub(super) fn next(&mut self) -> Option<Frame<Bytes>> {
        let data = self.data.pop_front().map(Frame::data);
        data.or_else(|| self.trailers.take().map(Frame::trailers))
    }

    pub(super) fn is_ended(&self) -> bool {
        self.data.is_empty() && self.trailers.is_none()
    }

    pub(super) fn hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.iter().map(|data| data.len() as u64).sum())
    }
}

#[derive(Debug)]
struct State {
    source: ClientBody,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    kept_bytes_max: usize,
    trailers: Option<HeaderMap>,
    source_ended: bool,
    /// More has passed than is kept: no other try is possible.
    overflowed: bool,
    attempt: u32,
}

impl Replay {
    pub(crate) fn new(source: ClientBody, kept_bytes_max: usize) -> Self {
        // A body that says its length beforehand need not be kept in vain.
        let overflowed = source.size_hint().lower() > kept_bytes_max as u64;
        let source_ended = source.is_end_stream();
        Self(Rc::new(RefCell::new(State {
            source,
            kept: Vec::new(),
            kept_bytes: 0,
            kept_bytes_max,
            trailers: None,
            source_ended,
            overflowed,
            attempt: 0,
        })))
    }

    /// Whether the body can be sent from its beginning.
    pub(crate) fn can_repeat(&self) -> bool {
        !self.0.borrow().overflowed
    }

    /// The body, if it has come to its end and all of it was kept.
    pub(super) fn whole(&self) -> Option<Kept> {
        let state = self.0.borrow();
        (state.source_ended && !state.overflowed).then(|| Kept {
            data: state.kept.clone().into(),
            trailers: state.trailers.clone(),
        })
    }

    /// The body for the next try.
    pub(crate) fn attempt(&self) -> ReplayBody {
        let mut state = self.0.borrow_mut();
        state.attempt += 1;
        ReplayBody {
            shared: self.clone(),
            attempt: state.attempt,
            next: 0,
            done: false,
        }
    }
}

impl ReplayBody {
    /// The body that this is one try of.
    pub(crate) fn shared(&self) -> Replay {
        self.shared.clone()
    }

    pub(super) fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut state = self.shared.0.borrow_mut();
        let state = &mut *state;
        if self.done {
            return Poll::Ready(None);
        }
        if state.attempt != self.attempt {
            self.done = true;
            return Poll::Ready(Some(Err(BodyError::Superseded)));
        }
        if let Some(kept) = state.kept.get(self.next) {
            self.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(kept.clone()))));
        }
        if state.source_ended {
            self.done = true;
            return Poll::Ready(
                state
                    .trailers
                    .clone()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            );
        }
        match ready!(Pin::new(&mut state.source).poll_frame(cx)) {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => {
                    if !state.overflowed && state.kept_bytes + data.len() <= state.kept_bytes_max {
                        state.kept_bytes += data.len();
                        state.kept.push(data.clone());
                        self.next += 1;
                    } else {
                        state.overflowed = true;
                        state.kept = Vec::new();
                        self.next = 0;
                    }
                    state.source_ended = state.source.is_end_stream();
                    Poll::Ready(Some(Ok(Frame::data(data))))
                }
                Err(frame) => {
                    state.source_ended = true;
                    state.trailers = frame.trailers_ref().cloned();
                    self.done = true;
                    Poll::Ready(Some(Ok(frame)))
                }
            },
            Some(Err(error)) => Poll::Ready(Some(Err(error.into()))),
            None => {
                state.source_ended = true;
                self.done = true;
                Poll::Ready(None)
            }
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        let state = self.shared.0.borrow();
        self.done || (state.source_ended && state.trailers.is_none() && self.next >= state.kept.len())
    }

    pub(super) fn hint(&self) -> SizeHint {
        let state = self.shared.0.borrow();
        let rest: usize = state.kept.iter().skip(self.next).map(Bytes::len).sum();
        let mut hint = state.source.size_hint();
        if state.source_ended {
            hint = SizeHint::with_exact(0);
        }
        let rest = rest as u64;
        let mut all = SizeHint::new();
        if let Some(upper) = hint.upper() {
            all.set_upper(upper + rest);
        }
        all.set_lower((hint.lower() + rest).min(all.upper().unwrap_or(u64::MAX)));
        all
    }
}
