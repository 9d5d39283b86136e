//! Pods that wait for their repair, each until its time: a node-wide rate, and longer and longer pauses for a
//! controller whose pods keep failing. Pure: time comes in.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

/// A node has a few hundred pods.
const PODS_MAX: usize = 1024;
const CONTROLLERS_MAX: usize = 1024;
/// At most so many repairs a second on one node, whatever has happened to it.
const INTERVAL: Duration = Duration::from_millis(500);
/// The pause after a controller's first repair; it doubles with each further one.
const PAUSE_MIN: Duration = Duration::from_secs(5);
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A controller that needed no repair for so long begins anew.
const FORGET: Duration = Duration::from_secs(900);

/// What waits.
#[derive(Debug, Default)]
pub struct Queue {
    /// By pod uid.
    pods: HashMap<String, Due>,
    controllers: HashMap<String, Repaired>,
    /// No repair before this.
    next: Option<Instant>,
}

/// A pod to be repaired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// Its uid: another pod of the same name is another pod.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its controller's uid.
    pub controller: String,
}

#[derive(Clone, Copy, Debug)]
struct Repaired {
    last: Instant,
    pause: Duration,
}

impl Queue {
    /// Adds a pod, unless it waits already. False: there are too many.
    pub fn add(&mut self, pod: Due) -> bool {
        if self.pods.len() >= PODS_MAX && !self.pods.contains_key(&pod.uid) {
            return false;
        }
        self.pods.insert(pod.uid.clone(), pod);
        true
    }

    /// Forgets a pod that is gone or well.
    pub fn remove(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// Forgets all pods: the list of pods begins anew.
    pub fn clear(&mut self) {
        self.pods.clear();
    }

    /// When the next pod's time comes; None: nothing waits.
    pub fn next(&self) -> Option<Instant> {
        let first = self.pods.values().map(|pod| self.time_of(pod)).min()?;
        // Never is now: what has no earlier time is due at once.
        Some(
            first
                .into_iter()
                .chain(self.next)
                .max()
                .unwrap_or_else(Instant::now),
        )
    }

    /// Takes a pod whose time has come.
    pub fn take(&mut self, now: Instant) -> Option<Due> {
        if self.next.is_some_and(|next| next > now) {
            return None;
        }
        let due = self
            .pods
            .values()
            .filter(|pod| self.time_of(pod).is_none_or(|time| time <= now));
        let uid = due.min_by_key(|pod| (self.time_of(pod), &pod.uid))?.uid.clone();
        let pod = self.pods.remove(&uid)?;
        self.next = Some(now + INTERVAL);
        self.note(&pod.controller, now);
        Some(pod)
    }

    fn time_of(&self, pod: &Due) -> Option<Instant> {
        let repaired = self.controllers.get(&pod.controller)?;
        Some(repaired.last + repaired.pause)
    }

    fn note(&mut self, controller: &str, now: Instant) {
        self.controllers
            .retain(|_, repaired| now - repaired.last < FORGET);
        let pause = match self.controllers.get(controller) {
            Some(repaired) => (repaired.pause * 2).min(PAUSE_MAX),
            None => PAUSE_MIN,
        };
        if self.controllers.len() >= CONTROLLERS_MAX && !self.controllers.contains_key(controller) {
            // The one repaired longest ago is the likeliest to be well.
            let oldest = self.controllers.iter().min_by_key(|(_, repaired)| repaired.last);
            if let Some(oldest) = oldest.map(|(uid, _)| uid.clone()) {
                self.controllers.remove(&oldest);
            }
        }
        self.controllers
            .insert(controller.to_owned(), Repaired { last: now, pause });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_due(uid: &str, controller: &str) -> Due {
        Due {
            uid: uid.into(),
            namespace: "payments".into(),
            name: format!("web-{uid}"),
            controller: controller.into(),
        }
    }

    #[test]
    fn a_burst_is_repaired_one_by_one() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        assert_eq!(queue.next(), None);
        for uid in ["a", "b", "c"] {
            assert!(queue.add(mk_due(uid, uid)));
        }
        let mut now = start;
        for uid in ["a", "b", "c"] {
            assert_eq!(queue.take(now), Some(mk_due(uid, uid)));
            assert_eq!(queue.take(now), None, "not two at once");
            now += INTERVAL;
        }
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn a_controller_whose_pods_keep_failing_waits_longer_and_longer() {
        let (mut queue, start) = (Queue::default(), Instant::now());
        queue.add(mk_due("a", "rs"));
        assert!(queue.take(start).is_some());
        let mut now = start;
        let mut pauses = Vec::new();
        for uid in ["b", "c", "d", "e", "f", "g", "h", "i"] {
            queue.add(mk_due(uid, "rs"));
            let next = queue.next().expect("one waits");
            assert_eq!(queue.take(next - Duration::from_millis(1)), None);
            assert!(queue.take(next).is_some());
            pauses.push((next - now).as_secs());
            now = next;
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
        queue.add(mk_due("j", "other"));
        assert!(queue.take(now + INTERVAL).is_some(), "others do not wait for it");
        // The one that waits and is then gone is forgotten.
        queue.add(mk_due("k", "rs"));
        queue.remove("k");
        assert_eq!(queue.next(), None);
    }

    #[test]
    fn it_is_bounded() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        for number in 0..PODS_MAX {
            assert!(queue.add(mk_due(&number.to_string(), &number.to_string())));
        }
        assert!(!queue.add(mk_due("more", "more")));
        assert!(queue.add(mk_due("1", "1")), "known already");
        while queue.take(now).is_some() {
            now += INTERVAL;
        }
        assert!(queue.controllers.len() <= CONTROLLERS_MAX);
    }
}
