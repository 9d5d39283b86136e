//! Keys that are followed while someone watches, and for a while after.

use std::{fmt::Debug, future::Future, hash::Hash, sync::Arc, time::Duration};

use ahash::AHashMap;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::watch, time::sleep};

/// One channel per key.
pub(super) struct Cache<K, V> {
    entries: Arc<Mutex<AHashMap<K, Arc<watch::Sender<V>>>>>,
    entries_max: usize,
    idle_timeout: Duration,
}

/// Too many keys are followed at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {entries_max} keys are followed at once")]
pub(crate) struct Full {
    entries_max: usize,
}

impl<K, V> Cache<K, V>
where
    K: Clone + Debug + Eq + Hash + Send + 'static,
    V: Send + Sync + 'static,
{
    pub(super) fn new(entries_max: usize, idle_timeout: Duration) -> Self {
        Self {
            entries: Arc::default(),
            entries_max,
            idle_timeout,
        }
    }

    /// The key's channel. If it is new, `follow` is started to publish to it.
    pub(super) fn watch<F, Fut>(
        &self,
        runtime: &Handle,
        key: K,
        initial: impl FnOnce() -> V,
        follow: F,
    ) -> Result<watch::Receiver<V>, Full>
    where
        F: FnOnce(Arc<watch::Sender<V>>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let mut entries = self.entries.lock();
        if let Some(publish) = entries.get(&key) {
            return Ok(publish.subscribe());
        }
        if entries.len() >= self.entries_max {
            return Err(Full {
                entries_max: self.entries_max,
            });
        }
        let publish = Arc::new(watch::Sender::new(initial()));
        let watch = publish.subscribe();
        entries.insert(key.clone(), publish.clone());
        drop(entries);
        let following = follow(publish.clone());
        let idle = forget_when_idle(self.entries.clone(), key, publish, self.idle_timeout);
        runtime.spawn(async move {
            tokio::select! {
                () = idle => {}
                // A follower that has ended leaves its last word in place until the key is idle.
                () = async { following.await; std::future::pending().await } => {}
            }
        });
        Ok(watch)
    }
}

/// Returns when nobody has watched the key for `idle_timeout`; the key is gone then.
async fn forget_when_idle<K: Eq + Hash, V>(
    entries: Arc<Mutex<AHashMap<K, Arc<watch::Sender<V>>>>>,
    key: K,
    publish: Arc<watch::Sender<V>>,
    idle_timeout: Duration,
) {
    loop {
        publish.closed().await;
        sleep(idle_timeout).await;
        // Subscribing takes the same lock, so that nobody can come in between.
        let mut entries = entries.lock();
        if publish.receiver_count() == 0 {
            entries.remove(&key);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_followed_once_and_forgotten_when_idle() {
        let idle = Duration::from_secs(5);
        let cache: Cache<u8, u32> = Cache::new(1, idle);
        let runtime = Handle::current();
        let follow = |publish: Arc<watch::Sender<u32>>| async move {
            publish.send_modify(|value| *value += 1);
        };
        let mut one = cache.watch(&runtime, 1, || 0, follow).expect("room");
        one.changed().await.expect("followed");
        let two = cache.watch(&runtime, 1, || 0, follow).expect("the same key");
        assert_eq!(*two.borrow(), 1);
        assert!(cache.watch(&runtime, 2, || 0, follow).is_err(), "full");

        drop((one, two));
        tokio::time::sleep(idle / 2).await;
        let again = cache.watch(&runtime, 1, || 0, follow).expect("still there");
        tokio::time::sleep(idle * 2).await;
        assert_eq!(*again.borrow(), 1, "not followed a second time");
        drop(again);
        tokio::time::sleep(idle * 2).await;
        assert!(
            cache.watch(&runtime, 2, || 0, follow).is_ok(),
            "the old key is gone"
        );
    }
}
