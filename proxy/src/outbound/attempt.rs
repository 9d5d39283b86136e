//! A try that its time limit ends is a failure of its endpoint, as much as an answer that says so: without it an
//! endpoint that answers no packet would never rest. A try that the client gives up says nothing.

use std::rc::Rc;

use heddle_proxy_policy::outbound::FailureAccrual;
use http::StatusCode;
use tokio::time::Instant;

use crate::{
    balance::{Answer, Balancer, Endpoint},
    http::{
        ProxyError,
        body::Activity,
        limit::{Deadline, Limit},
    },
    metrics::{
        http::{End, HttpHandles},
        stream::Stream,
    },
};

/// A try that is under way. Dropped after its time, it counts against the endpoint.
pub(super) struct Attempt<'p> {
    balancer: &'p Balancer,
    endpoint: Rc<Endpoint>,
    accrual: Option<&'p FailureAccrual>,
    patience: &'p Patience<'p>,
    sent: Option<Sent>,
    over: bool,
}

/// How long a try is waited for.
#[derive(Debug, Default)]
pub(super) struct Patience<'p> {
    pub until: Option<Deadline>,
    pub activity: Option<&'p Activity>,
}

/// What counts a request that was sent, and has no answer yet.
pub(super) struct Sent {
    pub handles: Rc<HttpHandles>,
    pub stream: Option<Stream>,
    pub started: Instant,
}

impl<'p> Attempt<'p> {
    pub(super) fn begin(
        balancer: &'p Balancer,
        endpoint: &Rc<Endpoint>,
        accrual: Option<&'p FailureAccrual>,
        patience: &'p Patience<'p>,
    ) -> Self {
        Self {
            balancer,
            endpoint: endpoint.clone(),
            accrual,
            patience,
            sent: None,
            over: false,
        }
    }

    /// When its time passes, that is counted as well.
    pub(super) fn counting(mut self, sent: Sent) -> Self {
        self.sent = Some(sent);
        self
    }

    /// It has come to its own end.
    pub(super) fn over(mut self) -> Option<Sent> {
        self.over = true;
        self.sent.take()
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let Some(limit) = self.patience.passed() else {
            return;
        };
        // A stream that stands still may be the client's own fault.
        if limit != Limit::Idle {
            self.balancer.judge(&self.endpoint, Answer::FAILED, self.accrual);
        }
        if let Some(sent) = self.sent.take() {
            sent.failed(limit.stream_label(), (None, End::Failed(limit.class())));
        }
    }
}

impl Patience<'_> {
    /// The limit that has passed, if one has.
    fn passed(&self) -> Option<Limit> {
        match self.until {
            Some(until) if until.has_passed() => Some(until.limit),
            _ => self
                .activity
                .is_some_and(Activity::is_over)
                .then_some(Limit::Idle),
        }
    }
}

impl Sent {
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
