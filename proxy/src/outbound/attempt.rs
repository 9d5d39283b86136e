//! What becomes of one try of a request.

use std::rc::Rc;

use heddle_proxy_policy::{breaker::Pass, outbound::FailureAccrual};
use http::StatusCode;
use tokio::time::Instant;

use super::clock::Clock;
use crate::{
    balance::{Answer, Balancer, Endpoint},
    http::{ProxyError, limit::Limit},
    metrics::{
        http::{End, HttpHandles},
        stream::Stream,
    },
};

/// A try that is under way. Dropped because its time is over, it counts against the endpoint.
pub(super) struct Attempt<'p> {
    balancer: &'p Balancer,
    endpoint: Rc<Endpoint>,
    pass: Pass,
    accrual: Option<&'p FailureAccrual>,
    clock: Option<&'p Clock>,
    since: Option<Instant>,
    unanswered: Option<Unanswered>,
}

/// What counts a request that was sent, and has no answer yet.
pub(super) struct Unanswered {
    pub handles: Rc<HttpHandles>,
    pub stream: Option<Stream>,
    pub started: Instant,
}

impl<'p> Attempt<'p> {
    pub(super) fn begin(
        balancer: &'p Balancer,
        endpoint: &Rc<Endpoint>,
        pass: Pass,
        accrual: Option<&'p FailureAccrual>,
        clock: Option<&'p Clock>,
    ) -> Self {
        Self {
            balancer,
            endpoint: endpoint.clone(),
            pass,
            accrual,
            clock,
            since: clock.map(|_| Instant::now()),
            unanswered: None,
        }
    }

    /// When its time passes, that is counted as well.
    pub(super) fn counting(mut self, unanswered: Unanswered) -> Self {
        self.unanswered = Some(unanswered);
        self
    }

    /// It has come to its own end.
    pub(super) fn over(mut self) -> Option<Unanswered> {
        self.clock = None;
        self.unanswered.take()
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        let Some((clock, limit)) = self.clock.and_then(|clock| Some((clock, clock.passed()?))) else {
            return;
        };
        // A stream that stands still may be the client's own fault.
        if limit != Limit::Idle && self.since.is_some_and(|since| clock.blames(since)) {
            self.balancer
                .judge(&self.endpoint, self.pass, Answer::FAILED, self.accrual);
        }
        if let Some(unanswered) = self.unanswered.take() {
            unanswered.failed(limit.stream_label(), (None, End::Failed(limit.class())));
        }
    }
}

impl Unanswered {
    /// Counts that there is no answer.
    pub(super) fn refused(self, error: &ProxyError, http1: bool) {
        self.failed(error.stream_label(), error.end(http1));
    }

    fn failed(self, stream_label: &'static str, (status, end): (Option<StatusCode>, End)) {
        if let Some(stream) = self.stream {
            stream.failed(stream_label);
        }
        self.handles.response(status, end, self.started);
    }
}
