//! Places for connections: bounded, and taken back from who does not use them.
//!
//! Each connection costs memory, whether or not anything is asked on it. When all places are taken, a newcomer gets that of
//! the connection that has been without a request for longest; who has only just come is spared, and so is who waits for
//! an answer, for as long as a request may take. So connections that are kept for nothing, or to do harm, keep nobody out.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};

/// A newcomer has so long to ask for something: the wait for a handshake's turn when thousands come at once. Who connects
/// has given up by then.
const SPARED: Duration = Duration::from_secs(5);

/// Gives places.
#[derive(Debug)]
pub(super) struct Places {
    places_max: usize,
    /// How long a request makes its connection safe; without end where there is none.
    request_timeout: Option<Duration>,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    holders: HashMap<u64, Holder>,
    /// Who may be cut, and from when on.
    order: BTreeSet<(Instant, u64)>,
    /// Cut, and not yet gone.
    leaving: usize,
}

#[derive(Debug)]
struct Holder {
    cut: Arc<Notify>,
    requests: usize,
    /// Where it is in the order; `None` while it is safe, or has been cut.
    from: Option<Instant>,
    leaving: bool,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    id: u64,
    cut: Arc<Notify>,
}

/// A request on a connection, until its answer has been taken.
#[derive(Debug)]
pub(super) struct Busy {
    places: Arc<Places>,
    id: u64,
}

impl Places {
    pub(super) fn new(places_max: usize, request_timeout: Option<Duration>) -> Arc<Self> {
        Arc::new(Self {
            places_max: places_max.max(1),
            request_timeout,
            state: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// Waits for a place; one at a time. Cancel-safe: who has been cut for this goes, and its place is the next one's.
    pub(super) async fn take(self: &Arc<Self>) -> Place {
        loop {
            let wait = {
                let mut state = self.lock();
                if state.holders.len() < self.places_max {
                    return self.give(&mut state);
                }
                let now = Instant::now();
                match state.order.first().copied() {
                    // Somebody is on the way out already.
                    _ if state.leaving > 0 => None,
                    Some((from, id)) if from <= now => {
                        state.cut(id);
                        None
                    }
                    first => first.map(|(from, _)| from),
                }
            };
            match wait {
                Some(from) => tokio::select! {
                    () = self.changed.notified() => {}
                    () = sleep_until(from) => {}
                },
                None => self.changed.notified().await,
            }
        }
    }

    fn give(self: &Arc<Self>, state: &mut State) -> Place {
        let id = state.next;
        state.next += 1;
        let cut = Arc::new(Notify::new());
        let holder = Holder {
            cut: Arc::clone(&cut),
            requests: 0,
            from: None,
            leaving: false,
        };
        state.holders.insert(id, holder);
        state.may_be_cut(id, Some(Instant::now() + SPARED));
        Place {
            places: Arc::clone(self),
            id,
            cut,
        }
    }

    /// A panic cannot leave the state half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl State {
    fn may_be_cut(&mut self, id: u64, from: Option<Instant>) {
        let Some(holder) = self.holders.get_mut(&id) else {
            return;
        };
        if holder.leaving {
            return;
        }
        if let Some(before) = std::mem::replace(&mut holder.from, from) {
            self.order.remove(&(before, id));
        }
        if let Some(from) = from {
            self.order.insert((from, id));
        }
    }

    fn cut(&mut self, id: u64) {
        self.may_be_cut(id, None);
        if let Some(holder) = self.holders.get_mut(&id) {
            holder.leaving = true;
            holder.cut.notify_one();
            self.leaving += 1;
        }
    }
}

impl Place {
    /// Returns when the place is needed for another.
    pub(super) async fn needed(&self) {
        self.cut.notified().await;
    }

    /// A request begins.
    pub(super) fn busy(&self) -> Busy {
        let mut state = self.places.lock();
        let first = state.holders.get_mut(&self.id).is_some_and(|holder| {
            holder.requests += 1;
            holder.requests == 1
        });
        if first {
            let end = self.places.request_timeout.map(|limit| Instant::now() + limit);
            state.may_be_cut(self.id, end);
        }
        Busy {
            places: Arc::clone(&self.places),
            id: self.id,
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        let last = state.holders.get_mut(&self.id).is_some_and(|holder| {
            holder.requests -= 1;
            holder.requests == 0
        });
        if last {
            state.may_be_cut(self.id, Some(Instant::now()));
            drop(state);
            self.places.changed.notify_one();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.places.lock();
        state.may_be_cut(self.id, None);
        if let Some(Holder { leaving: true, .. }) = state.holders.remove(&self.id) {
            state.leaving -= 1;
        }
        drop(state);
        self.places.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const MOMENT: Duration = Duration::from_millis(1);

    async fn cut(place: &Place) -> bool {
        timeout(MOMENT, place.needed()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn a_newcomer_gets_the_place_of_who_has_been_idle_for_longest() {
        let places = Places::new(3, None);
        let (first, second, third) = (places.take().await, places.take().await, places.take().await);
        // All three have asked; the second had its answer first.
        let asked = [first.busy(), second.busy(), third.busy()];
        let [one, two, three] = asked;
        for busy in [two, one, three] {
            drop(busy);
            tokio::time::advance(MOMENT).await;
        }
        let newcomer = places.take();
        let mut newcomer = std::pin::pin!(newcomer);
        assert!(
            timeout(MOMENT, newcomer.as_mut()).await.is_err(),
            "nobody has gone yet"
        );
        assert!(cut(&second).await && !cut(&first).await && !cut(&third).await);
        drop(second);
        let _newcomer = newcomer.await;
        assert_eq!(places.lock().holders.len(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_an_answer_and_who_has_only_just_come_is_spared() {
        let places = Places::new(2, None);
        let asking = places.take().await;
        let busy = asking.busy();
        let silent = places.take().await;
        let began = Instant::now();
        let newcomer = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        silent.needed().await;
        assert!(began.elapsed() >= SPARED, "cut after {:?}", began.elapsed());
        drop(silent);
        let other = newcomer.await.expect("the task ends");
        let _other = other.busy();
        // Nobody can be cut now, until a request has ended.
        assert!(timeout(10 * SPARED, places.take()).await.is_err());
        drop(busy);
        assert!(
            timeout(MOMENT, places.take()).await.is_err(),
            "it has not gone yet"
        );
        assert!(cut(&asking).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_end_keeps_its_place_for_its_time_only() {
        let limit = Duration::from_secs(20);
        let places = Places::new(1, Some(limit));
        let stuck = places.take().await;
        let began = Instant::now();
        let _busy = stuck.busy();
        tokio::time::advance(limit / 2).await;
        // Another request on the same connection buys no more time.
        let _more = stuck.busy();
        let newcomer = tokio::spawn({
            let places = Arc::clone(&places);
            async move { places.take().await }
        });
        stuck.needed().await;
        assert!(began.elapsed() >= limit && began.elapsed() <= limit + 2 * MOMENT);
        drop(stuck);
        newcomer.await.expect("the task ends");
    }

    #[tokio::test(start_paused = true)]
    async fn one_newcomer_costs_one_place_however_often_it_is_woken() {
        let places = Places::new(2, None);
        let (first, second) = (places.take().await, places.take().await);
        drop((first.busy(), second.busy()));
        for _ in 0..5 {
            assert!(timeout(MOMENT, places.take()).await.is_err());
        }
        assert!(cut(&first).await && !cut(&second).await);
        drop(first);
        drop(places.take().await);
        assert_eq!(places.lock().leaving, 0);
        drop(second);
        let state = places.lock();
        assert!(state.holders.is_empty() && state.order.is_empty());
    }
}
