//! When an endpoint that fails gets no more requests, and how it comes back.
//!
//! An open breaker lets all requests through. One that has seen too many failures is shut for a time; then it lets one
//! request through, and its answer decides: the breaker opens, or is shut again for longer. What was sent before it
//! was shut says nothing new, whenever its answer comes. As Linkerd's.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

use crate::{balance::Successes, outbound::FailureAccrual};

/// A probe that has not been answered for so long, a stream that goes on and on for one, keeps no other from being sent.
const PROBE_PATIENCE: Duration = Duration::from_secs(10);

/// The breaker of one endpoint.
#[derive(Debug)]
pub struct Breaker {
    state: State,
    /// How often it was shut; by this an answer is known that was asked for before.
    spell: u32,
    probes: u32,
    failures_in_a_row: u32,
    successes: Successes,
    /// When the endpoint wants to be asked again.
    asked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Open,
    Shut {
        until: Instant,
        /// So often without a success in between.
        times: u32,
    },
    Probing {
        probe: NonZeroU32,
        since: Instant,
        times: u32,
    },
}

/// That a request was let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    spell: u32,
    probe: Option<NonZeroU32>,
}

/// What came of a request, as far as it tells of the endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The endpoint could not do what it should.
    pub failed: bool,
    /// It says that it has too much to do. That lowers its share of successes, and is no failure otherwise.
    pub overloaded: bool,
    /// How long it wants to be left alone.
    pub retry_after: Option<Duration>,
}

/// What became of the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    None,
    /// It lets all requests through again.
    Opened,
    /// It lets none through.
    Shut,
}

impl Answer {
    /// There was none, or none that could be used.
    pub const FAILED: Self = Self {
        failed: true,
        overloaded: false,
        retry_after: None,
    };
}

impl Pass {
    /// Whether its request is the one whose answer decides.
    pub fn is_probe(self) -> bool {
        self.probe.is_some()
    }
}

impl Breaker {
    /// An open one.
    pub fn new(now: Instant) -> Self {
        Self {
            state: State::Open,
            spell: 0,
            probes: 0,
            failures_in_a_row: 0,
            successes: Successes::new(now),
            asked: None,
        }
    }

    /// Whether a request would be let through.
    pub fn admits(&self, now: Instant) -> bool {
        self.admits_at().is_none_or(|at| at <= now)
    }

    /// Whether it is shut, and the rest is not over.
    pub fn rests(&self, now: Instant) -> bool {
        matches!(self.state, State::Shut { until, .. } if until > now)
    }

    /// When it lets a request through, if not at any time.
    pub fn admits_at(&self) -> Option<Instant> {
        match self.state {
            State::Open => None,
            State::Shut { until, .. } => Some(until),
            State::Probing { since, .. } => Some(since + PROBE_PATIENCE),
        }
    }

    /// Whether an endpoint behind it may be counted on: a probe may fail.
    pub fn is_open(&self) -> bool {
        matches!(self.state, State::Open)
    }

    /// Lets a request through that it admits.
    pub fn pass(&mut self, now: Instant) -> Pass {
        let times = match self.state {
            State::Open => return self.pass_by(),
            State::Shut { times, .. } | State::Probing { times, .. } => times,
        };
        self.probes = self.probes.wrapping_add(1);
        let probe = NonZeroU32::new(self.probes).unwrap_or(NonZeroU32::MIN);
        self.state = State::Probing {
            probe,
            since: now,
            times,
        };
        Pass {
            spell: self.spell,
            probe: Some(probe),
        }
    }

    /// Lets through what is not judged, and so can be no probe.
    pub fn pass_by(&self) -> Pass {
        Pass {
            spell: self.spell,
            probe: None,
        }
    }

    /// Takes in that nothing more comes of a request. When it was a probe of which nothing became known the next request
    /// is one; says whether that is so.
    pub fn over(&mut self, pass: Pass, now: Instant) -> bool {
        match self.state {
            State::Probing { probe, times, .. } if Some(probe) == pass.probe => {
                self.state = State::Shut { until: now, times };
                true
            }
            _ => false,
        }
    }

    /// Takes in what came of a request. `others` is how many other endpoints are ready, and `unit` is drawn from 0..1.
    pub fn judge(
        &mut self,
        pass: Pass,
        answer: Answer,
        accrual: &FailureAccrual,
        others: impl FnOnce() -> usize,
        unit: impl FnOnce() -> f64,
        now: Instant,
    ) -> Turn {
        if pass.spell != self.spell {
            return Turn::None;
        }
        if accrual.respect_retry_after
            && let Some(wanted) = answer.retry_after
        {
            let wanted = wanted.clamp(accrual.backoff.min, accrual.backoff.max);
            self.asked = Some(now + wanted);
        }
        let lowers_share = answer.failed || answer.overloaded;
        let does_well = !match accrual.success_rate {
            Some(_) => lowers_share,
            None => answer.failed,
        };
        let times = match self.state {
            State::Shut { .. } => return Turn::None,
            State::Probing { .. } if does_well => {
                self.open(now);
                return Turn::Opened;
            }
            State::Probing { times, .. } => times,
            State::Open => {
                if !self.has_enough(answer.failed, does_well, accrual, now) {
                    return Turn::None;
                }
                0
            }
        };
        if others() < accrual.min_ready_endpoints as usize {
            // It is one of those that are to stay in use, however badly it does.
            return match self.state {
                State::Open => Turn::None,
                _ => {
                    self.open(now);
                    Turn::Opened
                }
            };
        }
        let times = times.saturating_add(1);
        let rests = now + accrual.backoff.after(times, unit());
        let until = self.asked.take().map_or(rests, |asked| asked.max(rests));
        self.state = State::Shut { until, times };
        self.spell = self.spell.wrapping_add(1);
        Turn::Shut
    }

    /// Counts an answer; says whether there have been too many failures.
    fn has_enough(&mut self, failed: bool, does_well: bool, accrual: &FailureAccrual, now: Instant) -> bool {
        self.failures_in_a_row = match failed {
            true => self.failures_in_a_row.saturating_add(1),
            false => 0,
        };
        let too_few = accrual
            .success_rate
            .as_ref()
            .is_some_and(|rate| self.successes.observe(does_well, rate, now));
        too_few || (accrual.max_failures > 0 && self.failures_in_a_row >= accrual.max_failures)
    }

    /// It begins anew: judged by what it does from now on.
    fn open(&mut self, now: Instant) {
        self.state = State::Open;
        self.failures_in_a_row = 0;
        self.successes = Successes::new(now);
        self.asked = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Backoff, SuccessRate};

    const SECOND: Duration = Duration::from_secs(1);
    const OK: Answer = Answer {
        failed: false,
        overloaded: false,
        retry_after: None,
    };
    const BUSY: Answer = Answer {
        overloaded: true,
        ..OK
    };

    /// Three failures in a row, and a rest from one second on.
    fn in_a_row() -> FailureAccrual {
        FailureAccrual {
            max_failures: 3,
            success_rate: None,
            backoff: Backoff {
                min: SECOND,
                max: 60 * SECOND,
                jitter_ratio: 0.0,
            },
            respect_retry_after: false,
            min_ready_endpoints: 0,
        }
    }

    fn by_share() -> FailureAccrual {
        FailureAccrual {
            max_failures: 0,
            success_rate: Some(SuccessRate {
                threshold: 0.8,
                decay: 10 * SECOND,
                min_requests: 5,
            }),
            ..in_a_row()
        }
    }

    struct Story {
        breaker: Breaker,
        accrual: FailureAccrual,
        now: Instant,
    }

    impl Story {
        fn new(accrual: FailureAccrual) -> Self {
            let now = Instant::now();
            Self {
                breaker: Breaker::new(now),
                accrual,
                now,
            }
        }

        fn answer(&mut self, pass: Pass, answer: Answer) -> Turn {
            let Self {
                breaker,
                accrual,
                now,
            } = self;
            breaker.judge(pass, answer, accrual, || 1, || 0.0, *now)
        }

        fn ask(&mut self, answer: Answer) -> Turn {
            let pass = self.breaker.pass(self.now);
            self.answer(pass, answer)
        }

        fn shut(&mut self) {
            let turns = (0..100).map(|_| self.ask(Answer::FAILED));
            assert!(turns.into_iter().any(|turn| turn == Turn::Shut));
        }

        fn rests(&self) -> Duration {
            let until = self.breaker.admits_at().expect("it rests");
            until.saturating_duration_since(self.now)
        }
    }

    #[test]
    fn failures_that_come_late_do_not_lengthen_the_rest() {
        let mut story = Story::new(in_a_row());
        let passes: Vec<_> = (0..20).map(|_| story.breaker.pass(story.now)).collect();
        let turns: Vec<_> = passes
            .iter()
            .map(|pass| story.answer(*pass, Answer::FAILED))
            .collect();
        assert_eq!(turns.iter().filter(|turn| **turn == Turn::Shut).count(), 1);
        assert_eq!(story.rests(), SECOND);
        story.now += SECOND;
        let probe = story.breaker.pass(story.now);
        assert_eq!(story.answer(passes[19], OK), Turn::None, "it is not the probe");
        assert_eq!(story.answer(probe, Answer::FAILED), Turn::Shut);
        assert_eq!(story.rests(), 2 * SECOND);
    }

    #[test]
    fn after_a_rest_one_request_decides() {
        for accrual in [in_a_row(), by_share()] {
            let mut story = Story::new(accrual);
            story.shut();
            assert!(!story.breaker.admits(story.now));
            for seconds in [1, 2, 4] {
                assert_eq!(story.rests(), seconds * SECOND);
                story.now += seconds * SECOND;
                assert!(story.breaker.admits(story.now));
                let probe = story.breaker.pass(story.now);
                assert!(
                    probe.is_probe() && !story.breaker.admits(story.now),
                    "one at a time"
                );
                assert_eq!(story.answer(probe, Answer::FAILED), Turn::Shut);
            }
            story.now += 8 * SECOND;
            assert_eq!(story.ask(OK), Turn::Opened);
            assert!(story.breaker.is_open());
            story.shut();
            assert_eq!(story.rests(), SECOND, "the rests begin anew");
        }
    }

    #[test]
    fn a_probe_of_which_nothing_becomes_known_makes_room_for_another() {
        let mut story = Story::new(in_a_row());
        story.shut();
        story.now += SECOND;
        let first = story.breaker.pass(story.now);
        assert!(story.breaker.over(first, story.now));
        let second = story.breaker.pass(story.now);
        assert!(second.is_probe());
        assert!(!story.breaker.over(first, story.now), "it is another's turn");
        assert!(!story.breaker.admits(story.now));
        story.now += PROBE_PATIENCE;
        let third = story.breaker.pass(story.now);
        assert!(third.is_probe(), "the second takes too long");
        assert_eq!(story.answer(second, OK), Turn::Opened, "but comes in time");
        assert!(!story.breaker.over(third, story.now));
        assert!(!story.breaker.pass(story.now).is_probe());
    }

    #[test]
    fn too_much_to_do_lowers_the_share_of_successes_alone() {
        let mut story = Story::new(in_a_row());
        assert!((0..100).all(|_| story.ask(BUSY) == Turn::None));
        assert_eq!(story.ask(Answer::FAILED), Turn::None);
        assert_eq!(story.ask(Answer::FAILED), Turn::None);
        assert_eq!(story.ask(BUSY), Turn::None, "no failure in a row");
        assert_eq!(story.ask(Answer::FAILED), Turn::None);
        let mut story = Story::new(by_share());
        assert!((0..100).any(|_| story.ask(BUSY) == Turn::Shut));
        story.now += SECOND;
        assert_eq!(story.ask(BUSY), Turn::Shut, "a probe, too");
    }

    #[test]
    fn what_an_endpoint_asks_for_is_the_least_it_gets() {
        let asks = |seconds: u32| Answer {
            retry_after: Some(seconds * SECOND),
            ..Answer::FAILED
        };
        let mut accrual = in_a_row();
        accrual.max_failures = 1;
        let mut story = Story::new(accrual);
        story.ask(asks(30));
        assert_eq!(story.rests(), SECOND, "the policy does not listen");
        accrual.respect_retry_after = true;
        let mut story = Story::new(accrual);
        for (asked, rest) in [(30, 30), (1, 2), (500, 60)] {
            story.ask(asks(asked));
            assert_eq!(story.rests(), rest * SECOND, "{asked}");
            story.now += rest * SECOND;
        }
    }

    #[test]
    fn the_last_endpoints_stay_in_use() {
        let mut story = Story::new(in_a_row());
        story.shut();
        story.now += SECOND;
        story.accrual.min_ready_endpoints = 2;
        assert_eq!(story.ask(Answer::FAILED), Turn::Opened);
        assert!((0..10).all(|_| story.ask(Answer::FAILED) == Turn::None));
    }
}
