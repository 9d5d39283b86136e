//! The time limits of one try: by when its response must begin, and by when it must end.
//!
//! Linkerd's: the limit of the request counts from its beginning and for all tries together; those of the response and of
//! one try count from the moment the client's request is there as a whole, so that a slow client is not taken for a slow
//! endpoint.

use std::{cell::Cell, future::poll_fn, pin::pin, task::Poll, time::Duration};

use heddle_proxy_policy::outbound::Timeouts;
use tokio::time::{Instant, sleep_until};

use crate::http::{
    ProxyError,
    body::{Activity, Sent},
    limit::{Deadline, Limit},
};

/// Where no limit counts yet, this is looked at.
const FAR: Duration = Duration::from_secs(24 * 60 * 60);

/// The limits of one try.
#[derive(Debug)]
pub(super) struct Clock {
    /// When the request began, and when this try did.
    started: Instant,
    tried: Instant,
    timeouts: Timeouts,
    one_try: Option<Duration>,
    /// When the client's request was there as a whole.
    sent: Option<Sent>,
    /// The limit that has passed.
    passed: Cell<Option<(Limit, Duration)>>,
}

impl Clock {
    /// A try begins now.
    pub(super) fn new(
        started: Instant,
        timeouts: Timeouts,
        one_try: Option<Duration>,
        sent: Option<Sent>,
    ) -> Self {
        Self {
            started,
            tried: Instant::now(),
            timeouts,
            one_try,
            sent,
            passed: Cell::new(None),
        }
    }

    /// The response's head, if it comes in time, and neither side stands still for too long.
    pub(super) async fn bound<T>(
        &self,
        sending: impl Future<Output = Result<T, ProxyError>>,
        activity: Option<&Activity>,
    ) -> Result<T, ProxyError> {
        // Noted before what is under way is dropped, which asks for it.
        let idle = async {
            match activity {
                Some(activity) => self.pass(Limit::Idle, activity.idle().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            result = sending => result,
            error = self.late() => Err(error),
            error = idle => Err(error),
        }
    }

    /// Whether an endpoint that has had the request since then is to blame for the limit that has passed. One that got it
    /// shortly before may be as good as any.
    pub(super) fn blames(&self, since: Instant) -> bool {
        self.passed
            .get()
            .is_some_and(|(_, after)| since.elapsed() >= after / 2)
    }

    /// The limit that has passed, if one has.
    pub(super) fn passed(&self) -> Option<Limit> {
        self.passed.get().map(|(limit, _)| limit)
    }

    fn pass(&self, limit: Limit, after: Duration) -> ProxyError {
        self.passed.set(Some((limit, after)));
        ProxyError::Timeout { limit, after }
    }

    /// When the response, which has begun, must end.
    pub(super) fn ends_at(&self) -> Option<Deadline> {
        let Timeouts {
            request, response, ..
        } = self.timeouts;
        let request = Limit::Request.of(self.started, request);
        // The clock is asked only where it matters.
        let response = response.and_then(|_| {
            let sent = self.sent().unwrap_or_else(Instant::now);
            Limit::Response.of(sent, response)
        });
        Deadline::earliest([request, response])
    }

    async fn late(&self) -> ProxyError {
        let mut sleep = pin!(sleep_until(self.tried + FAR));
        // The request's end is seen by the task that sends it, which is this one: it looks here right after it.
        poll_fn(|cx| {
            let Some(Deadline { at, limit, after }) = self.next() else {
                return Poll::Pending;
            };
            if sleep.deadline() != at {
                sleep.as_mut().reset(at);
            }
            sleep.as_mut().poll(cx).map(|()| self.pass(limit, after))
        })
        .await
    }

    /// The limit that passes first, as far as is known by now. Of two at a time the one that ends the request.
    fn next(&self) -> Option<Deadline> {
        let whole = Limit::Request.of(self.started, self.timeouts.whole());
        let sent = self.sent();
        let of_sent = |limit: Limit, after| sent.and_then(|sent| limit.of(sent, after));
        let response = of_sent(Limit::Response, self.timeouts.response);
        Deadline::earliest([whole, response, of_sent(Limit::Try, self.one_try)])
    }

    /// When the request was there as a whole, for this try.
    fn sent(&self) -> Option<Instant> {
        let at = self.sent.as_ref()?.at()?;
        Some(at.max(self.tried))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn clock(timeouts: Timeouts, one_try: Option<Duration>, sent: &Sent) -> Clock {
        Clock::new(Instant::now(), timeouts, one_try, Some(sent.clone()))
    }

    /// When which limit passes, of a request that is there as a whole after `seconds`.
    async fn passes(timeouts: Timeouts, one_try: Option<Duration>, seconds: Option<u64>) -> (Limit, u64) {
        let (sent, start) = (Sent::default(), Instant::now());
        let clock = clock(timeouts, one_try, &sent);
        let sending = async {
            if let Some(seconds) = seconds {
                tokio::time::sleep(SECOND * u32::try_from(seconds).expect("few")).await;
                sent.now();
            }
            std::future::pending::<Result<(), ProxyError>>().await
        };
        match clock.bound(sending, None).await {
            Err(ProxyError::Timeout { limit, .. }) => (limit, start.elapsed().as_secs()),
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_has_its_time_from_the_requests_end() {
        let response = Timeouts {
            response: Some(5 * SECOND),
            ..Timeouts::default()
        };
        assert_eq!(passes(response, None, Some(0)).await, (Limit::Response, 5));
        assert_eq!(passes(response, None, Some(60)).await, (Limit::Response, 65));
        let both = Timeouts {
            request: Some(30 * SECOND),
            ..response
        };
        assert_eq!(passes(both, None, Some(3)).await, (Limit::Response, 8));
        assert_eq!(passes(both, None, Some(28)).await, (Limit::Request, 30));
        assert_eq!(passes(both, None, None).await, (Limit::Request, 30));
        assert_eq!(passes(both, Some(SECOND), Some(3)).await, (Limit::Try, 4));
        assert_eq!(
            passes(both, Some(2 * SECOND), Some(28)).await,
            (Limit::Request, 30)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_response_that_has_begun_must_end() {
        let timeouts = Timeouts {
            response: Some(5 * SECOND),
            request: Some(20 * SECOND),
            ..Timeouts::default()
        };
        let (sent, start) = (Sent::default(), Instant::now());
        let clock = clock(timeouts, None, &sent);
        tokio::time::advance(SECOND).await;
        assert_eq!(
            clock.ends_at().map(|end| end.at),
            Some(start + 6 * SECOND),
            "before the request's end"
        );
        sent.now();
        tokio::time::advance(SECOND).await;
        assert_eq!(clock.ends_at().map(|end| end.at), Some(start + 6 * SECOND));
        tokio::time::advance(17 * SECOND).await;
        let late = Clock::new(start, timeouts, None, Some(sent));
        assert_eq!(
            late.ends_at().map(|end| end.at),
            Some(start + 20 * SECOND),
            "a later try has its own"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn who_got_a_request_at_the_last_moment_is_not_to_blame() {
        let timeouts = Timeouts {
            request: Some(4 * SECOND),
            ..Timeouts::default()
        };
        let (sent, start) = (Sent::default(), Instant::now());
        let clock = clock(timeouts, None, &sent);
        assert!(!clock.blames(start));
        let sending = std::future::pending::<Result<(), ProxyError>>();
        assert!(clock.bound(sending, None).await.is_err());
        assert!(clock.blames(start));
        assert!(!clock.blames(start + 3 * SECOND));
    }
}
