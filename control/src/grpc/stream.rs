//! Streams that follow a watch channel: each message is made of the newest value when the client is ready for it.
//!
//! A client that reads slowly skips values; it is never cut off, and nothing queues up for it but the messages of one
//! step.

use std::{collections::VecDeque, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use heddle_control_core::discover::Watched;
use tokio::sync::watch;
use tonic::Status;

use crate::metrics::OpenStream;

/// A stream of messages to a client.
pub(super) type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

struct Follow<V, T, F> {
    values: Watched<V>,
    closed: watch::Receiver<bool>,
    open: OpenStream,
    step: F,
    begun: bool,
    pending: VecDeque<T>,
}

/// Makes messages of a value's changes with `step`, beginning with its present state, until the value is gone for good
/// or the process ends.
pub(super) fn follow<V, T>(
    values: Watched<V>,
    closed: watch::Receiver<bool>,
    open: OpenStream,
    step: impl FnMut(&Arc<V>) -> VecDeque<T> + Send + 'static,
) -> Messages<T>
where
    V: Send + Sync + 'static,
    T: Send + 'static,
{
    let state = Follow {
        values,
        closed,
        open,
        step,
        begun: false,
        pending: VecDeque::new(),
    };
    Box::pin(stream::unfold(state, |mut state| async move {
        loop {
            if let Some(message) = state.pending.pop_front() {
                state.open.sent();
                return Some((Ok(message), state));
            }
            if state.begun {
                tokio::select! {
                    changed = state.values.changed() => changed.ok()?,
                    _ = state.closed.wait_for(|closed| *closed) => return None,
                }
            }
            state.begun = true;
            let value = state.values.borrow_and_update().clone();
            state.pending = (state.step)(&value);
        }
    }))
}
