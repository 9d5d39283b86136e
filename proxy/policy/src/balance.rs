//! Load-balancing arithmetic: peak EWMA latency, power of two choices, weighted choice.
//!
//! The load of an endpoint is its latency estimate times the requests it has in flight plus one. The estimate rises
//! at once to a latency above it (peak) and decays towards lower ones with the time since the last observation.

use std::time::{Duration, Instant};

/// Parameters of the latency estimate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EwmaParams {
    /// Estimate before the first observation.
    pub default_rtt: Duration,
    /// Time constant of the decay.
    pub decay: Duration,
    /// What an endpoint is charged that says it has too much to do.
    pub penalty: Option<Penalty>,
}

/// What an endpoint is charged that says it has too much to do: as if its latency were higher by that, decaying.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalty {
    /// The charge, unless the answer asks for another (`Retry-After`).
    pub charge: Duration,
    /// The most that an answer can ask for.
    pub max_retry_after: Duration,
    /// Time constant of the charge's decay.
    pub decay: Duration,
}

impl Default for EwmaParams {
    /// Linkerd's: 30 ms and 10 s, without a penalty.
    fn default() -> Self {
        Self {
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
            penalty: None,
        }
    }
}

/// A peak-sensitive, exponentially weighted moving average of latency.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    rtt_secs: f64,
    updated: Instant,
    decay_secs: f64,
    penalty: Option<Penalty>,
    charge_secs: f64,
    charged: Instant,
}

impl PeakEwma {
    /// An estimate without observations.
    pub fn new(params: EwmaParams, now: Instant) -> Self {
        Self {
            rtt_secs: params.default_rtt.as_secs_f64(),
            updated: now,
            // A zero decay would divide by zero; a nanosecond forgets everything at once, which is what it means.
            decay_secs: params.decay.as_secs_f64().max(1e-9),
            penalty: params.penalty,
            charge_secs: 0.0,
            charged: now,
        }
    }

    /// Goes on with other parameters; what was observed stays.
    pub fn set_params(&mut self, params: EwmaParams) {
        self.decay_secs = params.decay.as_secs_f64().max(1e-9);
        self.penalty = params.penalty;
    }

    /// Whether an endpoint is charged for having too much to do.
    pub fn has_penalty(&self) -> bool {
        self.penalty.is_some()
    }

    /// Takes in one observed latency.
    pub fn observe(&mut self, rtt: Duration, now: Instant) {
        let rtt_secs = rtt.as_secs_f64();
        if rtt_secs > self.rtt_secs {
            self.rtt_secs = rtt_secs;
        } else {
            let keep = self.keep(now);
            self.rtt_secs = self.rtt_secs * keep + rtt_secs * (1.0 - keep);
        }
        self.updated = now;
    }

    /// The estimate at `now`, times the requests in flight plus one. An endpoint that has not been used decays
    /// towards zero, so that one that was slow once is tried again.
    pub fn load(&self, pending: u32, now: Instant) -> f64 {
        (self.rtt_secs * self.keep(now) + self.charge(now)) * (f64::from(pending) + 1.0)
    }

    /// Charges the endpoint for an answer that says it has too much to do, for as long as that asks for.
    pub fn penalize(&mut self, retry_after: Option<Duration>, now: Instant) {
        let Some(penalty) = self.penalty else { return };
        let charge = retry_after.map_or(penalty.charge, |hint| hint.min(penalty.max_retry_after));
        self.charge_secs = self.charge(now).max(charge.as_secs_f64());
        self.charged = now;
    }

    fn charge(&self, now: Instant) -> f64 {
        let Some(penalty) = self.penalty.filter(|_| self.charge_secs > 0.0) else {
            return 0.0;
        };
        let elapsed = now.saturating_duration_since(self.charged).as_secs_f64();
        self.charge_secs * (-elapsed / penalty.decay.as_secs_f64().max(1e-9)).exp()
    }

    fn keep(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        (-elapsed / self.decay_secs).exp()
    }
}

/// When an endpoint's share of successes is too low.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SuccessRate {
    /// Below this share, between 0 and 1, it is.
    pub threshold: f64,
    /// Time constant by which older answers count less.
    pub decay: Duration,
    /// It is not judged by fewer answers than these.
    pub min_requests: u32,
}

/// An endpoint's recent share of successes, older answers counting exponentially less.
#[derive(Clone, Copy, Debug)]
pub struct Successes {
    share: f64,
    answers: u32,
    updated: Instant,
}

impl Successes {
    /// None seen yet: a good endpoint, until it shows otherwise.
    pub fn new(now: Instant) -> Self {
        Self {
            share: 1.0,
            answers: 0,
            updated: now,
        }
    }

    /// Takes in one answer; says whether the share is too low now.
    pub fn observe(&mut self, success: bool, rate: &SuccessRate, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        // Answers that come at the same moment count as one each of `min_requests`, or none but the last would count.
        let keep = (-elapsed / rate.decay.as_secs_f64().max(1e-9)).exp();
        let keep = keep.min(1.0 - 1.0 / f64::from(rate.min_requests.max(1) + 1));
        self.share = self.share * keep + if success { 1.0 - keep } else { 0.0 };
        self.answers = self.answers.saturating_add(1);
        self.updated = now;
        self.answers >= rate.min_requests && self.share < rate.threshold
    }
}

/// Picks two distinct indexes below `len` from a random number; the same one twice when there is only one.
pub fn two_choices(len: usize, random: u64) -> Option<(usize, usize)> {
    match len {
        0 => None,
        1 => Some((0, 0)),
        _ => {
            let first = (random >> 32) as usize % len;
            // Among the other `len - 1`: an offset of 1..len can never come back to `first`.
            let offset = 1 + (random & 0xffff_ffff) as usize % (len - 1);
            Some((first, (first + offset) % len))
        }
    }
}

/// Cumulative weights, from which one draw takes an index with a probability proportional to its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights(Vec<u64>);

impl Weights {
    /// Weights in the order of what they weigh.
    pub fn new(weights: impl IntoIterator<Item = u32>) -> Self {
        let mut sum = 0u64;
        Self(
            weights
                .into_iter()
                .map(|weight| {
                    sum += u64::from(weight);
                    sum
                })
                .collect(),
        )
    }

    /// The sum of the weights.
    pub fn total(&self) -> u64 {
        self.0.last().copied().unwrap_or(0)
    }

    /// An index among those that are asked for, in the proportion of their weights; `None` when those weigh nothing.
    pub fn pick_among(&self, random: u64, is_asked_for: impl Fn(usize) -> bool) -> Option<usize> {
        let weight = |index: usize| match is_asked_for(index) {
            true => self.0[index] - index.checked_sub(1).map_or(0, |before| self.0[before]),
            false => 0,
        };
        let total = (0..self.0.len()).map(weight).sum();
        let mut left = random.checked_rem(total)?;
        (0..self.0.len()).find(|index| {
            let weight = weight(*index);
            let found = left < weight;
            left = left.saturating_sub(weight);
            found
        })
    }

    /// An index, or `None` when all weights are zero.
    pub fn pick(&self, random: u64) -> Option<usize> {
        if self.0.len() == 1 {
            return (self.total() > 0).then_some(0);
        }
        let draw = random.checked_rem(self.total())?;
        Some(self.0.partition_point(|&sum| sum <= draw))
    }
}

/// An exponential backoff with jitter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backoff {
    /// First pause.
    pub min: Duration,
    /// Longest pause, before jitter.
    pub max: Duration,
    /// Share of the pause that is added at random.
    pub jitter_ratio: f64,
}

impl Backoff {
    /// The pause after `failures` failures in a row (at least one), with `unit` drawn from 0..1.
    pub fn after(&self, failures: u32, unit: f64) -> Duration {
        let doubled = self
            .min
            .saturating_mul(1u32 << failures.saturating_sub(1).min(30));
        let base = doubled.min(self.max);
        base + base.mul_f64((self.jitter_ratio * unit).clamp(0.0, 16.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn latency_rises_at_once_and_decays_slowly() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(
            EwmaParams {
                default_rtt: 10 * MS,
                decay: Duration::from_secs(1),
                penalty: None,
            },
            start,
        );
        ewma.observe(100 * MS, start);
        assert!((ewma.load(0, start) - 0.1).abs() < 1e-9);
        ewma.observe(10 * MS, start + Duration::from_secs(1));
        let expected = 0.1 * (-1f64).exp() + 0.01 * (1.0 - (-1f64).exp());
        assert!((ewma.load(0, start + Duration::from_secs(1)) - expected).abs() < 1e-9);
        assert!(ewma.load(3, start + Duration::from_secs(1)) > ewma.load(2, start + Duration::from_secs(1)));
    }

    #[test]
    fn a_busy_endpoint_is_charged_and_forgiven() {
        let start = Instant::now();
        let penalty = Penalty {
            charge: Duration::from_secs(5),
            max_retry_after: Duration::from_secs(20),
            decay: Duration::from_secs(10),
        };
        let params = EwmaParams {
            penalty: Some(penalty),
            ..EwmaParams::default()
        };
        let mut ewma = PeakEwma::new(params, start);
        let before = ewma.load(0, start);
        ewma.penalize(None, start);
        assert!((ewma.load(0, start) - before - 5.0).abs() < 1e-9);
        ewma.penalize(Some(Duration::from_secs(3600)), start);
        assert!(
            (ewma.load(0, start) - before - 20.0).abs() < 1e-9,
            "no more than the policy lets it ask for"
        );
        assert!(ewma.load(0, start + Duration::from_secs(200)) < 1e-3);
        let mut plain = PeakEwma::new(EwmaParams::default(), start);
        plain.penalize(None, start);
        assert!((plain.load(0, start) - before).abs() < 1e-9);
    }

    #[test]
    fn an_estimate_goes_on_with_other_parameters() {
        let start = Instant::now();
        let mut ewma = PeakEwma::new(EwmaParams::default(), start);
        ewma.observe(100 * MS, start);
        ewma.set_params(EwmaParams {
            decay: Duration::from_secs(1),
            ..EwmaParams::default()
        });
        let later = start + Duration::from_secs(1);
        assert!((ewma.load(0, later) - 0.1 * (-1f64).exp()).abs() < 1e-9);
    }

    #[test]
    fn a_low_share_of_successes_shows_after_enough_answers() {
        let start = Instant::now();
        let rate = SuccessRate {
            threshold: 0.8,
            decay: Duration::from_secs(10),
            min_requests: 5,
        };
        let mut successes = Successes::new(start);
        let trips: Vec<_> = (0..5u32)
            .map(|n| successes.observe(false, &rate, start + n * MS))
            .collect();
        assert_eq!(
            trips,
            [false, false, false, false, true],
            "never before the fifth answer"
        );
        let mut good = Successes::new(start);
        assert!(
            (0..1000u32).all(|n| !good.observe(n % 20 != 0, &rate, start + n * 10 * MS)),
            "95 % is enough"
        );
        let mut bad = Successes::new(start);
        assert!(
            (0..1000u32).any(|n| bad.observe(n % 2 != 0, &rate, start + n * 10 * MS)),
            "half is not"
        );
    }

    #[test]
    fn choices_are_distinct_and_reach_every_index() {
        assert_eq!(two_choices(0, 7), None);
        assert_eq!(two_choices(1, 7), Some((0, 0)));
        let mut seen = [0u32; 5];
        for random in (0..10_000u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) {
            let (one, two) = two_choices(5, random).expect("five to choose from");
            assert_ne!(one, two);
            seen[one] += 1;
            seen[two] += 1;
        }
        assert!(
            seen.iter().all(|&count| (3_500..4_500).contains(&count)),
            "{seen:?}"
        );
    }

    #[test]
    fn weights_are_kept_and_zero_is_never_picked() {
        let weights = Weights::new([1, 0, 3]);
        let picks: Vec<_> = (0..4).map(|draw| weights.pick(draw)).collect();
        assert_eq!(picks, [Some(0), Some(2), Some(2), Some(2)]);
        assert_eq!(Weights::new([0, 0]).pick(9), None);
        assert_eq!(Weights::new([]).pick(9), None);
        assert_eq!(Weights::new([0]).pick(9), None);
    }

    #[test]
    fn what_is_not_asked_for_leaves_its_share_to_the_others() {
        let weights = Weights::new([1, 5, 0, 3]);
        let picks: Vec<_> = (0..4)
            .map(|draw| weights.pick_among(draw, |index| index != 1))
            .collect();
        assert_eq!(picks, [Some(0), Some(3), Some(3), Some(3)]);
        assert_eq!(weights.pick_among(9, |index| index == 2), None);
        assert_eq!(weights.pick_among(9, |_| false), None);
    }

    #[test]
    fn backoff_doubles_up_to_its_maximum() {
        let backoff = Backoff {
            min: 100 * MS,
            max: Duration::from_secs(1),
            jitter_ratio: 0.5,
        };
        assert_eq!(backoff.after(1, 0.0), 100 * MS);
        assert_eq!(backoff.after(3, 0.0), 400 * MS);
        assert_eq!(backoff.after(u32::MAX, 0.0), Duration::from_secs(1));
        assert_eq!(backoff.after(1, 1.0), 150 * MS);
    }
}
