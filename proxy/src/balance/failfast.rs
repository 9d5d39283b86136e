//! Whether requests wait for an endpoint, or fail at once.
//!
//! Linkerd's states: a backend without a ready endpoint has its requests wait. When that has lasted for the time that the
//! policy gives, its gate shuts: they all fail, and so does each that comes, until an endpoint is ready.

use std::{cell::Cell, time::Duration};

use tokio::time::Instant;

/// The gate of one backend. Belongs to one worker.
#[derive(Debug, Default)]
pub(super) struct Failfast {
    /// Since a request found no endpoint.
    unready_since: Cell<Option<Instant>>,
    is_shut: Cell<bool>,
}

impl Failfast {
    /// Until when a request may wait that has found no endpoint.
    pub(super) fn unready(&self, timeout: Duration, now: Instant) -> Instant {
        let since = self.unready_since.get().unwrap_or(now);
        self.unready_since.set(Some(since));
        since + timeout
    }

    /// Whether a request that finds no endpoint fails without having waited.
    pub(super) fn is_over(&self, timeout: Duration, now: Instant) -> bool {
        self.unready_since
            .get()
            .is_some_and(|since| since + timeout <= now)
    }

    /// Whether the last that was known is that there is no endpoint.
    pub(super) fn is_unready(&self) -> bool {
        self.unready_since.get().is_some()
    }

    /// Requests fail from now on; says whether they did not before.
    pub(super) fn shut(&self) -> bool {
        !self.is_shut.replace(true)
    }

    /// There is an endpoint; says whether requests failed before.
    pub(super) fn ready(&self) -> bool {
        self.unready_since.set(None);
        self.is_shut.replace(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);

    #[test]
    fn an_outage_is_waited_for_once() {
        let (gate, start) = (Failfast::default(), Instant::now());
        assert!(!gate.is_over(TIMEOUT, start));
        assert_eq!(gate.unready(TIMEOUT, start), start + TIMEOUT);
        let later = start + Duration::from_secs(2);
        assert_eq!(gate.unready(TIMEOUT, later), start + TIMEOUT, "the same outage");
        let over = start + TIMEOUT;
        assert!(gate.is_over(TIMEOUT, over));
        assert!(gate.shut() && !gate.shut(), "it shuts once");
        assert!(gate.is_over(TIMEOUT, over + Duration::from_secs(3600)));
        assert!(gate.ready() && !gate.ready(), "it opens once");
        assert!(!gate.is_over(TIMEOUT, over) && !gate.is_unready());
        assert_eq!(gate.unready(TIMEOUT, over), over + TIMEOUT, "another outage");
    }
}
