//! Turns at the Kubernetes API: how many reviews run at a time, and whose.
//!
//! Reviews that answer take some milliseconds. One that hangs must not cost others their turn, so after
//! [`SLOW_AFTER`] a review gives its place in the fast lane back and goes on in a wide slow lane. And no address has
//! more than a share of the places, so that one source of hung reviews delays itself alone.

use std::{
    collections::HashMap,
    future::Future,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError},
    time::{Instant, timeout, timeout_at},
};

/// Reviews at a time that may yet answer soon: what an API server serves with ease.
pub const FAST_MAX: usize = 128;
/// Reviews at a time that take long. Each is a connection and some kilobytes.
pub const SLOW_MAX: usize = 512;
/// Places of one address. A network may hide many pods behind one; at 5 ms a review this is still 12,800 a second.
pub const ADDRESS_MAX: usize = 64;
/// A review that takes longer is likely to hang.
pub const SLOW_AFTER: Duration = Duration::from_millis(250);
/// How long a request waits for its turn; with a review's own deadline, less than the 15 s that proxies wait.
pub const TURN_TIMEOUT: Duration = Duration::from_secs(8);
/// Requests that wait; more are told to come back.
const WAITING_MAX: usize = 20_000;

/// Gives turns.
#[derive(Debug)]
pub struct Turns {
    fast: Arc<Semaphore>,
    slow: Arc<Semaphore>,
    waiting: Semaphore,
    /// Addresses that have a request here, and how many; the last one takes the entry away.
    addresses: Mutex<HashMap<IpAddr, Address>>,
}

#[derive(Debug)]
struct Address {
    places: Arc<Semaphore>,
    requests: usize,
}

/// No turn in time.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many requests: try again later")]
pub struct Busy;

/// Counts a request of an address for as long as it is here.
struct Visit<'a> {
    turns: &'a Turns,
    address: IpAddr,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            fast: Arc::new(Semaphore::new(FAST_MAX)),
            slow: Arc::new(Semaphore::new(SLOW_MAX)),
            waiting: Semaphore::new(WAITING_MAX),
            addresses: Mutex::default(),
        }
    }
}

impl Turns {
    /// Runs `review` when it is its turn; `from` is who asks for it.
    ///
    /// # Errors
    /// There was no turn within [`TURN_TIMEOUT`], or too many wait already.
    pub async fn run<F: Future>(&self, from: Option<IpAddr>, review: F) -> Result<F::Output, Busy> {
        let visit = from.map(|address| self.visit(address));
        let (fast, _place) = {
            let _waiting = match self.waiting.try_acquire() {
                Ok(waiting) => waiting,
                Err(TryAcquireError::NoPermits | TryAcquireError::Closed) => return Err(Busy),
            };
            let deadline = Instant::now() + TURN_TIMEOUT;
            // First the address' own places: who waits for those must not hold one of all.
            let place = match &visit {
                Some((_, places)) => Some(acquire(places, deadline).await?),
                None => None,
            };
            (acquire(&self.fast, deadline).await?, place)
        };
        let mut review = std::pin::pin!(review);
        if let Ok(done) = timeout(SLOW_AFTER, review.as_mut()).await {
            return Ok(done);
        }
        // With no room in the slow lane either, the review keeps its place: the API must not be asked without bound.
        let _place = match Arc::clone(&self.slow).try_acquire_owned() {
            Ok(slow) => {
                drop(fast);
                slow
            }
            Err(_) => fast,
        };
        Ok(review.await)
    }

    fn visit(&self, address: IpAddr) -> (Visit<'_>, Arc<Semaphore>) {
        let mut addresses = self.lock();
        let entry = addresses.entry(address).or_insert_with(|| Address {
            places: Arc::new(Semaphore::new(ADDRESS_MAX)),
            requests: 0,
        });
        entry.requests += 1;
        let places = Arc::clone(&entry.places);
        (Visit { turns: self, address }, places)
    }

    /// A panic cannot leave the map half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, Address>> {
        self.addresses
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        let mut addresses = self.turns.lock();
        if let Some(entry) = addresses.get_mut(&self.address) {
            entry.requests -= 1;
            if entry.requests == 0 {
                addresses.remove(&self.address);
            }
        }
    }
}

async fn acquire(places: &Arc<Semaphore>, deadline: Instant) -> Result<OwnedSemaphorePermit, Busy> {
    match timeout_at(deadline, Arc::clone(places).acquire_owned()).await {
        Ok(place) => Ok(place.expect("the semaphore is never closed")),
        Err(_) => Err(Busy),
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::task::{JoinSet, yield_now};

    use super::*;

    fn ip(last: u8) -> Option<IpAddr> {
        Some(IpAddr::from([10, 0, 0, last]))
    }

    /// Fills `count` turns of `from` with reviews that hang.
    async fn hang(turns: &Arc<Turns>, count: usize, from: impl Fn(usize) -> Option<IpAddr>) -> JoinSet<()> {
        let mut hung = JoinSet::new();
        let before = hung_now(turns);
        for n in 0..count {
            let (turns, from) = (Arc::clone(turns), from(n));
            hung.spawn(async move {
                let _ = turns.run(from, pending::<()>()).await;
            });
        }
        while hung_now(turns) < before + count {
            yield_now().await;
        }
        hung
    }

    fn hung_now(turns: &Turns) -> usize {
        FAST_MAX - turns.fast.available_permits() + SLOW_MAX - turns.slow.available_permits()
    }

    #[tokio::test(start_paused = true)]
    async fn hung_reviews_make_room_for_others() {
        let turns = Arc::new(Turns::default());
        let _hung = hang(&turns, FAST_MAX, |n| ip(n as u8)).await;
        let began = Instant::now();
        assert_eq!(turns.run(ip(200), ready(7)).await, Ok(7));
        assert!(
            began.elapsed() <= SLOW_AFTER + Duration::from_millis(2),
            "the fast lane was not given back: {:?}",
            began.elapsed()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn one_address_delays_itself_alone() {
        let turns = Arc::new(Turns::default());
        let _hung = hang(&turns, ADDRESS_MAX, |_| ip(1)).await;
        let began = Instant::now();
        assert_eq!(turns.run(ip(2), ready(7)).await, Ok(7));
        assert_eq!(turns.run(None, ready(7)).await, Ok(7));
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(turns.run(ip(1), ready(7)).await, Err(Busy));
    }

    #[tokio::test(start_paused = true)]
    async fn with_both_lanes_full_a_request_is_told_to_come_back() {
        let turns = Arc::new(Turns::default());
        let mut hung = Vec::new();
        for round in 0..5 {
            let from = move |n: usize| Some(IpAddr::from([10, round, 0, n as u8]));
            hung.push(hang(&turns, FAST_MAX, from).await);
            tokio::time::advance(SLOW_AFTER).await;
            yield_now().await;
        }
        assert_eq!(turns.run(ip(1), ready(7)).await, Err(Busy));
        for mut reviews in hung {
            reviews.shutdown().await;
        }
        assert_eq!(turns.run(ip(1), ready(7)).await, Ok(7));
        assert!(turns.lock().is_empty(), "an address is remembered for nothing");
    }
}
