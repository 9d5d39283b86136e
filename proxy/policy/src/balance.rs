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
}

impl Default for EwmaParams {
    /// Linkerd's: 30 ms and 10 s.
    fn default() -> Self {
        Self {
            default_rtt: Duration::from_millis(30),
            decay: Duration::from_secs(10),
        }
    }
}

/// A peak-sensitive, exponentially weighted moving average of latency.
#[derive(Clone, Copy, Debug)]
pub struct PeakEwma {
    rtt_secs: f64,
    updated: Instant,
    decay_secs: f64,
}

impl PeakEwma {
    /// An estimate without observations.
    pub fn new(params: EwmaParams, now: Instant) -> Self {
        Self {
            rtt_secs: params.default_rtt.as_secs_f64(),
            updated: now,
            // A zero decay would divide by zero; a nanosecond forgets everything at once, which is what it means.
            decay_secs: params.decay.as_secs_f64().max(1e-9),
        }
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
        self.rtt_secs * self.keep(now) * (f64::from(pending) + 1.0)
    }

    fn keep(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.updated).as_secs_f64();
        (-elapsed / self.decay_secs).exp()
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
