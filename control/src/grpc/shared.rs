//! Encoded updates that many streams share: each is encoded once for all clients that see it alike.
//!
//! A stream asks for the messages that lead from the value it was told last to the newest one, as seen by its class of
//! clients. Values are known by their addresses. A `Weak` keeps an address from being used again while it is
//! remembered, but keeps nothing of the value.

use std::{
    collections::VecDeque,
    hash::Hash,
    sync::{Arc, OnceLock, Weak},
};

use ahash::AHashMap;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;

use super::frame::Frames;

/// All that is remembered, in bytes. Streams that are told something together ask within moments, so what is older may
/// go: this is a service of 1,800 endpoints, told whole to three zones.
const BYTES_MAX: usize = 1024 * 1024;

/// Updates remembered, so that many small ones do not add up either.
const UPDATES_MAX: usize = 2048;

/// Updates from one `V` to the next, for clients of class `C`.
#[derive(Debug)]
pub(super) struct Shared<V, C> {
    updates: Mutex<Updates<V, C>>,
    encoded: Counter,
}

#[derive(Debug)]
struct Updates<V, C> {
    by_key: AHashMap<Key<C>, Update<V>>,
    /// Oldest first.
    order: VecDeque<Key<C>>,
    bytes: usize,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key<C> {
    from: usize,
    to: usize,
    class: C,
}

#[derive(Debug)]
struct Update<V> {
    _from: Option<Weak<V>>,
    _to: Weak<V>,
    frames: Arc<OnceLock<Frames>>,
    bytes: usize,
}

impl<V, C: Clone + Eq + Hash> Shared<V, C> {
    /// Nothing yet; `encoded` counts what is encoded.
    pub(super) fn new(encoded: Counter) -> Self {
        Self {
            updates: Mutex::new(Updates {
                by_key: AHashMap::new(),
                order: VecDeque::new(),
                bytes: 0,
            }),
            encoded,
        }
    }

    /// The messages from `from` (nothing, at first) to `to` for clients of `class`: `encode` makes them unless they are
    /// remembered.
    pub(super) fn update(
        &self,
        from: Option<&Arc<V>>,
        to: &Arc<V>,
        class: C,
        encode: impl FnOnce() -> Vec<Bytes>,
    ) -> Frames {
        let key = Key {
            from: from.map_or(0, address),
            to: address(to),
            class,
        };
        let cell = self.updates.lock().cell(&key, from, to);
        let mut size = None;
        // Outside the lock: only those who wait for these very messages wait.
        let frames = cell.get_or_init(|| {
            let frames = encode();
            self.encoded.inc_by(frames.len() as u64);
            size = Some(frames.iter().map(Bytes::len).sum());
            frames.into()
        });
        if let Some(size) = size {
            self.updates.lock().grew(&key, size);
        }
        frames.clone()
    }
}

impl<V, C: Clone + Eq + Hash> Updates<V, C> {
    fn cell(&mut self, key: &Key<C>, from: Option<&Arc<V>>, to: &Arc<V>) -> Arc<OnceLock<Frames>> {
        if let Some(update) = self.by_key.get(key) {
            return update.frames.clone();
        }
        while self.order.len() >= UPDATES_MAX {
            self.forget_oldest();
        }
        let update = Update {
            _from: from.map(Arc::downgrade),
            _to: Arc::downgrade(to),
            frames: Arc::default(),
            bytes: 0,
        };
        let frames = update.frames.clone();
        self.by_key.insert(key.clone(), update);
        self.order.push_back(key.clone());
        frames
    }

    fn grew(&mut self, key: &Key<C>, bytes: usize) {
        // It may have been forgotten in the meantime.
        if let Some(update) = self.by_key.get_mut(key) {
            update.bytes = bytes;
            self.bytes += bytes;
        }
        while self.bytes > BYTES_MAX && !self.order.is_empty() {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let oldest = self.order.pop_front().and_then(|key| self.by_key.remove(&key));
        if let Some(update) = oldest {
            self.bytes -= update.bytes;
        }
    }
}

fn address<V>(value: &Arc<V>) -> usize {
    Arc::as_ptr(value).addr()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(
        shared: &Shared<u32, &'static str>,
        from: Option<&Arc<u32>>,
        to: &Arc<u32>,
        class: &'static str,
    ) -> Frames {
        shared.update(from, to, class, || {
            vec![Bytes::from(format!(
                "{:?} to {to} for {class}",
                from.map(|from| **from)
            ))]
        })
    }

    #[test]
    fn an_update_is_encoded_once_for_each_class() {
        let counter = Counter::default();
        let shared = Shared::new(counter.clone());
        let (one, two) = (Arc::new(1), Arc::new(2));
        for _ in 0..1000 {
            assert_eq!(text(&shared, None, &one, "a")[0], "None to 1 for a");
            assert_eq!(text(&shared, Some(&one), &two, "a")[0], "Some(1) to 2 for a");
            assert_eq!(text(&shared, Some(&one), &two, "b")[0], "Some(1) to 2 for b");
        }
        assert_eq!(counter.get(), 3);
        let bytes = text(&shared, None, &one, "a");
        assert_eq!(
            bytes[0].as_ptr(),
            text(&shared, None, &one, "a")[0].as_ptr(),
            "no copies"
        );
    }

    #[test]
    fn a_value_is_never_taken_for_one_that_is_gone() {
        let shared = Shared::new(Counter::default());
        for number in 0..10_000 {
            let value = Arc::new(number);
            let expected = format!("None to {number} for a");
            assert_eq!(text(&shared, None, &value, "a")[0], expected);
        }
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let counter = Counter::default();
        let shared = Shared::<u32, ()>::new(counter.clone());
        let values: Vec<_> = (0..100).map(Arc::new).collect();
        for value in &values {
            shared.update(None, value, (), || vec![vec![0; BYTES_MAX / 10].into()]);
        }
        let updates = shared.updates.lock();
        assert!(
            updates.bytes <= BYTES_MAX && updates.by_key.len() <= 10,
            "{} bytes",
            updates.bytes
        );
        assert_eq!((updates.order.len(), counter.get()), (updates.by_key.len(), 100));
    }
}
