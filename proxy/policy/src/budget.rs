//! A budget for retries: how much load they may add to what a service gets anyway.

use std::{
    fmt,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use linkerd2_proxy_api::destination as proto;

use crate::{Invalid, invalid::duration};

/// Parts of the time that requests count for; the oldest is forgotten as a whole.
const SLOTS: usize = 10;
/// What one retry costs, in the units that are counted.
const RETRY_COST: i64 = 1_000;
/// Linkerd's bounds.
const RATIO_MAX: f32 = 1_000.0;
const TTL_MIN: Duration = Duration::from_secs(1);
const TTL_MAX: Duration = Duration::from_secs(60);

/// A budget that all requests to a service fill and all its retries spend.
pub struct RetryBudget {
    /// What a request adds.
    deposit: i64,
    /// What may be spent though nobody has added it, within the window.
    reserve: i64,
    slot_time: Duration,
    window: Mutex<Window>,
}

#[derive(Debug)]
struct Window {
    /// What was added, less what was spent, by the slot in which it happened.
    slots: [i64; SLOTS],
    now: usize,
    /// When the slot of now began; none before the first use.
    began: Option<Instant>,
}

impl RetryBudget {
    /// A budget of `ratio` retries per request, and of `min_per_second` whatever the requests, over a window of `ttl`.
    pub fn new(ratio: f32, min_per_second: u32, ttl: Duration) -> Self {
        // A product of bounded numbers: no more than 1000 retries a request.
        let deposit = (f64::from(ratio) * RETRY_COST as f64) as i64;
        let reserve = i64::from(min_per_second).saturating_mul(ttl.as_secs().cast_signed());
        Self {
            deposit,
            reserve: reserve.saturating_mul(RETRY_COST),
            slot_time: ttl / SLOTS as u32,
            window: Mutex::new(Window {
                slots: [0; SLOTS],
                now: 0,
                began: None,
            }),
        }
    }

    /// Counts a request.
    pub fn deposit(&self, now: Instant) {
        let mut window = self.window(now);
        let slot = window.now;
        window.slots[slot] = window.slots[slot].saturating_add(self.deposit);
    }

    /// Takes what one retry costs, if it is there.
    pub fn withdraw(&self, now: Instant) -> bool {
        let mut window = self.window(now);
        let sum = window
            .slots
            .iter()
            .fold(self.reserve, |sum, slot| sum.saturating_add(*slot));
        if sum < RETRY_COST {
            return false;
        }
        let slot = window.now;
        window.slots[slot] -= RETRY_COST;
        true
    }

    /// The window with its slots at `now`.
    fn window(&self, now: Instant) -> MutexGuard<'_, Window> {
        // Numbers are whole after a panic, too.
        let mut window = self
            .window
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        let began = *window.began.get_or_insert(now);
        let passed = now.saturating_duration_since(began).as_nanos() / self.slot_time.as_nanos().max(1);
        let passed = u32::try_from(passed).unwrap_or(u32::MAX);
        for _ in 0..passed.min(SLOTS as u32) {
            window.now = (window.now + 1) % SLOTS;
            let slot = window.now;
            window.slots[slot] = 0;
        }
        if passed > 0 {
            window.began = Some(
                began
                    .checked_add(self.slot_time.saturating_mul(passed))
                    .unwrap_or(now),
            );
        }
        window
    }
}

/// Linkerd's for ServiceProfiles that say none: a fifth more, and ten a second.
impl Default for RetryBudget {
    fn default() -> Self {
        Self::new(0.2, 10, Duration::from_secs(10))
    }
}

impl TryFrom<proto::RetryBudget> for RetryBudget {
    type Error = Invalid;

    fn try_from(budget: proto::RetryBudget) -> Result<Self, Invalid> {
        let proto::RetryBudget {
            retry_ratio,
            min_retries_per_second,
            ttl,
        } = budget;
        if !(0.0..=RATIO_MAX).contains(&retry_ratio) {
            return Err(Invalid::new("retry_budget.retry_ratio", "must be 0 to 1000"));
        }
        let field = "retry_budget.ttl";
        let ttl = duration(field, ttl.ok_or_else(|| Invalid::missing(field))?)?;
        if !(TTL_MIN..=TTL_MAX).contains(&ttl) {
            return Err(Invalid::new(field, "must be 1s to 60s"));
        }
        Ok(Self::new(retry_ratio, min_retries_per_second, ttl))
    }
}

impl fmt::Debug for RetryBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryBudget")
            .field("deposit", &self.deposit)
            .field("reserve", &self.reserve)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retries(budget: &RetryBudget, now: Instant) -> usize {
        (0..1_000).take_while(|_| budget.withdraw(now)).count()
    }

    #[test]
    fn retries_are_a_share_of_requests_beyond_the_reserve() {
        let start = Instant::now();
        let budget = RetryBudget::new(0.2, 1, Duration::from_secs(10));
        assert_eq!(retries(&budget, start), 10, "the reserve of the window");
        for _ in 0..50 {
            budget.deposit(start);
        }
        assert_eq!(retries(&budget, start), 10, "a fifth of the requests");
        let later = start + Duration::from_secs(11);
        assert_eq!(retries(&budget, later), 10, "what was long ago does not count");
    }

    #[test]
    fn without_reserve_and_requests_there_are_no_retries() {
        let start = Instant::now();
        let budget = RetryBudget::new(0.5, 0, Duration::from_secs(10));
        assert_eq!(retries(&budget, start), 0);
        budget.deposit(start);
        assert_eq!(retries(&budget, start), 0);
        budget.deposit(start + Duration::from_secs(5));
        assert_eq!(retries(&budget, start + Duration::from_secs(5)), 1);
        budget.deposit(start);
        budget.deposit(start);
        assert_eq!(retries(&budget, start + Duration::from_secs(3600)), 0);
    }
}
