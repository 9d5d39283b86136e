//! A try that its time limit ends is a failure of its endpoint, as much as an answer that says so: without it an
//! endpoint that answers no packet would never rest. A try that the client gives up says nothing.

use std::rc::Rc;

use heddle_proxy_policy::{breaker::Pass, outbound::FailureAccrual};
use tokio::time::Instant;

use super::clock::Clock;
use crate::balance::{Answer, Balancer, Endpoint};

/// A try that is under way. Dropped because its time is over, it counts against the endpoint.
pub(super) struct Attempt<'p> {
    balancer: &'p Balancer,
    endpoint: Rc<Endpoint>,
    pass: Pass,
    accrual: Option<&'p FailureAccrual>,
    clock: Option<&'p Clock>,
    since: Option<Instant>,
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
        }
    }

    /// It has come to its own end.
    pub(super) fn over(mut self) {
        self.clock = None;
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if let (Some(clock), Some(since)) = (self.clock, self.since)
            && clock.blames(since)
        {
            self.balancer
                .judge(&self.endpoint, self.pass, Answer::FAILED, self.accrual);
        }
    }
}
