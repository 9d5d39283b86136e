//! One watch channel per key, for the keys that somebody watches.

use std::{
    collections::VecDeque,
    hash::Hash,
    sync::{Arc, Weak},
};

use ahash::AHashMap;
use tokio::sync::watch;

/// Below this many channels nobody looks for forgotten ones.
const PRUNE_MIN: usize = 64;

/// With how many of the newest values a new one is compared. Pods of one workload are asked about and change together.
const RECENT: usize = 8;

/// Channels by key. Those whose receivers are all gone are dropped when the number has doubled, or when their value is
/// next due: so the table is at most twice as large as what is watched.
#[derive(Debug)]
pub(crate) struct Watches<K, V> {
    senders: AHashMap<K, watch::Sender<Arc<V>>>,
    prune_at: usize,
    recent: Recent<V>,
    closed: bool,
}

/// The newest values: those that come after and equal one of them share its memory, and what is encoded of it.
#[derive(Debug)]
struct Recent<V>(VecDeque<Weak<V>>);

impl<V: PartialEq> Recent<V> {
    fn share(&mut self, value: V) -> Arc<V> {
        let known = self
            .0
            .iter()
            .filter_map(Weak::upgrade)
            .find(|known| **known == value);
        known.unwrap_or_else(|| {
            let value = Arc::new(value);
            if self.0.len() >= RECENT {
                self.0.pop_front();
            }
            self.0.push_back(Arc::downgrade(&value));
            value
        })
    }
}

impl<K: Eq + Hash + Clone, V: PartialEq> Watches<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            senders: AHashMap::new(),
            prune_at: PRUNE_MIN,
            recent: Recent(VecDeque::new()),
            closed: false,
        }
    }

    /// The channel of `key`, if somebody watches it.
    pub(crate) fn find(&self, key: &K) -> Option<watch::Receiver<Arc<V>>> {
        self.senders.get(key).map(watch::Sender::subscribe)
    }

    /// The channel of `key`; `make` computes its first value when nobody watches it yet.
    pub(crate) fn subscribe(&mut self, key: &K, make: impl FnOnce() -> V) -> watch::Receiver<Arc<V>> {
        if let Some(receiver) = self.find(key) {
            return receiver;
        }
        if self.senders.len() >= self.prune_at {
            self.senders.retain(|_, sender| sender.receiver_count() > 0);
            self.prune_at = PRUNE_MIN.max(self.senders.len() * 2);
        }
        let (sender, receiver) = watch::channel(self.recent.share(make()));
        if !self.closed {
            self.senders.insert(key.clone(), sender);
        }
        receiver
    }

    /// Computes the values of the keys that `affects` picks, and publishes those that differ. `None` closes a channel.
    pub(crate) fn refresh(&mut self, affects: impl Fn(&K) -> bool, make: impl Fn(&K, &V) -> Option<V>) {
        let Self { senders, recent, .. } = self;
        senders.retain(|key, sender| {
            if !affects(key) {
                return true;
            }
            if sender.receiver_count() == 0 {
                return false;
            }
            let old = sender.borrow().clone();
            let Some(new) = make(key, &old) else { return false };
            if *old != new {
                sender.send_replace(recent.share(new));
            }
            true
        });
    }

    /// Closes all channels, and those that are asked for from now on after their first value.
    pub(crate) fn close(&mut self) {
        self.senders.clear();
        self.closed = true;
    }

    pub(crate) fn len(&self) -> usize {
        self.senders.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_changes_wake_a_watcher() {
        let mut watches = Watches::new();
        let mut rx = watches.subscribe(&"a", || 1);
        watches.refresh(|_| true, |_, _| Some(1));
        assert!(!rx.has_changed().expect("open"));
        watches.refresh(|_| true, |_, old| Some(old + 1));
        assert!(rx.has_changed().expect("open"));
        assert_eq!(**rx.borrow_and_update(), 2);
    }

    #[test]
    fn equal_values_share_their_memory() {
        let mut watches = Watches::new();
        let (a, b) = (watches.subscribe(&"a", || 1), watches.subscribe(&"b", || 1));
        assert!(Arc::ptr_eq(&a.borrow(), &b.borrow()));
        watches.refresh(|_| true, |_, _| Some(2));
        assert!(Arc::ptr_eq(&a.borrow(), &b.borrow()) && **a.borrow() == 2);
    }

    #[test]
    fn closed_channels_end_after_their_last_value() {
        let mut watches = Watches::new();
        let before = watches.subscribe(&"a", || 1);
        watches.close();
        let after = watches.subscribe(&"a", || 2);
        for (receiver, value) in [(before, 1), (after, 2)] {
            assert!(receiver.has_changed().is_err());
            assert_eq!(**receiver.borrow(), value);
        }
    }

    #[test]
    fn a_key_that_is_gone_closes_its_channel() {
        let mut watches = Watches::new();
        let rx = watches.subscribe(&"a", || 1);
        watches.refresh(|_| true, |_, _| None);
        assert!(rx.has_changed().is_err());
        assert_eq!(watches.len(), 0);
    }

    #[test]
    fn forgotten_channels_do_not_pile_up() {
        let mut watches = Watches::new();
        let kept = watches.subscribe(&0, || 0);
        for key in 1..10_000 {
            drop(watches.subscribe(&key, || key));
        }
        assert!(watches.len() <= PRUNE_MIN * 2, "{} channels", watches.len());
        assert!(kept.has_changed().is_ok(), "a watched channel stays");
    }
}
