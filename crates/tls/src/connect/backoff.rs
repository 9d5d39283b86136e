//! Waiting between attempts: longer each time, never in step with others.

use std::time::Duration;

/// Doubles from a minimum to a maximum; each wait is drawn from the upper half, so that clients that failed together
/// do not come back together.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    wait_min: Duration,
    wait_max: Duration,
    next: Duration,
}

impl Backoff {
    pub(crate) fn new(wait_min: Duration, wait_max: Duration) -> Self {
        Self {
            wait_min,
            wait_max,
            next: wait_min,
        }
    }

    pub(crate) fn reset(&mut self) {
        self.next = self.wait_min;
    }

    pub(crate) fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = wait.saturating_mul(2).min(self.wait_max);
        wait.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_its_maximum_and_starts_over() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(100), ms(300));
        for upper in [100, 200, 300, 300] {
            let wait = backoff.wait();
            assert!(
                wait >= ms(upper) / 2 && wait <= ms(upper),
                "{wait:?} for {upper} ms"
            );
        }
        backoff.reset();
        assert!(backoff.wait() <= ms(100));
    }
}
