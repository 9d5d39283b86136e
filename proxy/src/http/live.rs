//! Requests under way, which the policy may forbid before they are over.
//!
//! All requests of a connection with one verdict share a [`Leave`]; whoever sees the policy change takes it back. A request that
//! waits notes its waker there: in steady state that takes neither memory nor a lock, and one that never waits does nothing.

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use heddle_proxy_policy::{Client, Meta, ServerPolicy};
use slab::Slab;

/// What lets a client's requests use a route, until it is taken back.
#[derive(Debug)]
pub(crate) struct Leave {
    client: Client,
    route: Meta,
    forbidden: Cell<bool>,
    waiting: RefCell<Slab<Waker>>,
}

/// A request under way.
#[derive(Debug)]
pub(crate) struct Live {
    leave: Rc<Leave>,
    /// Where its waker is, once it has waited.
    slot: Option<usize>,
}

/// The policy no longer allows the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Forbidden;

impl Leave {
    pub(crate) fn new(client: Client, route: Meta) -> Self {
        Self {
            client,
            route,
            forbidden: Cell::new(false),
            waiting: RefCell::default(),
        }
    }

    pub(crate) fn route(&self) -> &Meta {
        &self.route
    }

    pub(crate) fn is_forbidden(&self) -> bool {
        self.forbidden.get()
    }

    /// Whether the leave holds under a policy that has changed. One that does not is taken back, and never given again.
    pub(crate) fn holds(&self, policy: &ServerPolicy) -> bool {
        if !policy.still_allows(&self.client, &self.route) {
            self.forbidden.set(true);
            self.waiting
                .borrow()
                .iter()
                .for_each(|(_, waker)| waker.wake_by_ref());
        }
        !self.forbidden.get()
    }
}

impl Live {
    pub(crate) fn new(leave: &Rc<Leave>) -> Self {
        Self {
            leave: leave.clone(),
            slot: None,
        }
    }

    pub(crate) fn is_forbidden(&self) -> bool {
        self.leave.is_forbidden()
    }

    /// For a task that waits for something else, too.
    pub(crate) fn poll_forbidden(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.is_forbidden() {
            return Poll::Ready(());
        }
        let mut waiting = self.leave.waiting.borrow_mut();
        match self.slot {
            Some(slot) => waiting[slot].clone_from(cx.waker()),
            None => self.slot = Some(waiting.insert(cx.waker().clone())),
        }
        Poll::Pending
    }

    /// Waits for the future, as long as the request may go on.
    pub(crate) async fn wait<F: Future>(&mut self, mut future: Pin<&mut F>) -> Result<F::Output, Forbidden> {
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Ok(output)),
            Poll::Pending => self.poll_forbidden(cx).map(|()| Err(Forbidden)),
        })
        .await
    }

    /// Returns when it is forbidden, which may be never.
    pub(crate) async fn forbidden(&mut self) {
        poll_fn(|cx| self.poll_forbidden(cx)).await;
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.leave.waiting.borrow_mut().remove(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use heddle_proxy_policy::{ClientTls, inbound::DefaultPolicy};

    use super::*;

    #[tokio::test]
    async fn whoever_waits_learns_that_the_leave_is_taken_back() {
        let policy = |default: DefaultPolicy| default.policy(&[], std::time::Duration::from_secs(1), false);
        let client = Client {
            addr: [10, 0, 0, 1].into(),
            tls: ClientTls::None,
        };
        let route = Meta::default_named("default");
        let leave = Rc::new(Leave::new(client, route));
        let (mut first, mut second) = (Live::new(&leave), Live::new(&leave));
        assert_eq!(first.wait(pin!(async { 1 })).await, Ok(1));
        assert!(leave.holds(&policy(DefaultPolicy::AllUnauthenticated)));
        let taken_back = async {
            tokio::task::yield_now().await;
            assert_eq!(leave.waiting.borrow().len(), 2);
            assert!(!leave.holds(&policy(DefaultPolicy::AllAuthenticated)));
        };
        let nothing = pin!(std::future::pending::<()>());
        let ((), waited, ()) = tokio::join!(first.forbidden(), second.wait(nothing), taken_back);
        assert_eq!(waited, Err(Forbidden));
        // For good: who is let in again begins anew.
        assert!(!leave.holds(&policy(DefaultPolicy::AllUnauthenticated)));
        drop((first, second));
        assert!(leave.waiting.borrow().is_empty());
    }
}
