//! One watch channel per key, for the keys that somebody watches.

use std::{hash::Hash, sync::Arc};

use ahash::AHashMap;
use tokio::sync::watch;

/// Below this many channels nobody looks for forgotten ones.
const PRUNE_MIN: usize = 64;

/// Channels by key. Those whose receivers are all gone are dropped when the number has doubled, or when their value is
/// next due: so the table is at most twice as large as what is watched.
#[derive(Debug)]
pub(crate) struct Watches<K, V> {
    senders: AHashMap<K, watch::Sender<Arc<V>>>,
    prune_at: usize,
}

impl<K: Eq + Hash + Clone, V: PartialEq> Watches<K, V> {
    pub(crate) fn new() -> Self {
        Self {
            senders: AHashMap::new(),
            prune_at: PRUNE_MIN,
        }
    }

    /// The channel of `key`; `make` computes its first value when nobody watches it yet.
    pub(crate) fn subscribe(&mut self, key: &K, make: impl FnOnce() -> V) -> watch::Receiver<Arc<V>> {
        if let Some(sender) = self.senders.get(key) {
            return sender.subscribe();
        }
        if self.senders.len() >= self.prune_at {
            self.senders.retain(|_, sender| sender.receiver_count() > 0);
            self.prune_at = PRUNE_MIN.max(self.senders.len() * 2);
        }
        let (sender, receiver) = watch::channel(Arc::new(make()));
        self.senders.insert(key.clone(), sender);
        receiver
    }

    /// Computes the values of the keys that `affects` picks, and publishes those that differ. `None` closes a channel.
    pub(crate) fn refresh(&mut self, affects: impl Fn(&K) -> bool, make: impl Fn(&K, &V) -> Option<V>) {
        self.senders.retain(|key, sender| {
            if !affects(key) {
                return true;
            }
            if sender.receiver_count() == 0 {
                return false;
            }
            let old = sender.borrow().clone();
            let Some(new) = make(key, &old) else { return false };
            sender.send_if_modified(|value| {
                let differs = **value != new;
                if differs {
                    *value = Arc::new(new);
                }
                differs
            });
            true
        });
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
