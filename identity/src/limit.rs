//! How many certificates one pod, and one identity, may ask for: so that a pod in a loop, or one that is not its owner's
//! any more, costs the API server and the issuer little.
//!
//! The first request of a pod is never refused, however many pods start at once. What is counted is certain: tokens
//! that were reviewed, the pods and accounts that they proved. So nobody can use up another's share, and tokens that
//! are made up leave no trace. In go keys and times; this module never knows Kubernetes.

use std::{collections::HashMap, fmt, num::NonZeroU32, sync::Mutex, time::Duration};

use heddle_mesh::Identity;
use tokio::time::Instant;

use crate::token::{Account, Token, half_digest};

const MINUTE: Duration = Duration::from_secs(60);
/// A pod needs one certificate in many hours, and one more at each start of its proxy; a crash loop starts it some
/// times a minute.
pub const POD_PER_MINUTE: NonZeroU32 = NonZeroU32::new(20).expect("not zero");
/// All pods of one account may start at once, as large a Deployment as a cluster has.
pub const IDENTITY_PER_MINUTE: NonZeroU32 = NonZeroU32::new(12_000).expect("not zero");
/// Three entries per pod that was certified within the last minute: 15,000 pods, in 3 MiB.
const TABLE_CAPACITY: usize = 48 * 1024;

/// Requests a minute: so many at once, and so many again in each minute.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of one pod; of one token, where it is bound to no pod.
    pub pod: NonZeroU32,
    /// Of one service account, all its pods together.
    pub identity: NonZeroU32,
}

/// Counts requests. Bounded: what has not asked for a minute is forgotten.
#[derive(Debug)]
pub struct Limiter {
    rates: Rates,
    table: Mutex<Table>,
}

/// A request over its rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many certificate requests of {of}: at most {per_minute} a minute, try again in {retry_secs} s")]
pub struct Limited {
    of: Whose,
    per_minute: NonZeroU32,
    retry_secs: u64,
}

/// Whose rate it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Whose {
    Token,
    Pod { namespace: String, name: String },
    Identity(Identity),
}

/// For each key the time at which its share is whole again (the generic cell rate algorithm): one entry, no timers.
#[derive(Debug)]
struct Table {
    whole_at: HashMap<Key, Instant>,
    capacity: usize,
    sweep_after: Instant,
}

/// Half a SHA-256 of a name or a token: tokens are not kept, and keys have one size.
type Key = (Kind, [u8; 16]);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Token,
    Pod,
    Identity,
}

impl Limiter {
    /// Counts to `rates`.
    pub fn new(rates: Rates) -> Self {
        Self::with_capacity(rates, TABLE_CAPACITY)
    }

    fn with_capacity(rates: Rates, capacity: usize) -> Self {
        let table = Table {
            whole_at: HashMap::new(),
            capacity,
            sweep_after: Instant::now(),
        };
        Self {
            rates,
            table: Mutex::new(table),
        }
    }

    /// Before a review: refuses a token that was good, and has been used too often.
    ///
    /// # Errors
    /// It has.
    pub fn admit(&self, token: &Token, now: Instant) -> Result<(), Limited> {
        let key = (Kind::Token, *token.digest());
        let per_minute = self.rates.pod;
        self.lock().check(&key, per_minute, now).map_err(|wait| Limited {
            of: Whose::Token,
            per_minute,
            retry_secs: whole_secs(wait),
        })
    }

    /// After a review: counts the request of `account`, which `token` proved and which has `identity`.
    ///
    /// # Errors
    /// Its pod, or its service account, has asked too often; then nothing is counted.
    pub fn take(
        &self,
        token: &Token,
        account: &Account,
        identity: &Identity,
        now: Instant,
    ) -> Result<(), Limited> {
        let Rates { pod, identity: all } = self.rates;
        let token = (Kind::Token, *token.digest());
        let of_pod = account
            .pod
            .as_ref()
            .map(|bound| (Kind::Pod, half_digest(bound.uid.as_bytes())));
        let of_all = (Kind::Identity, half_digest(identity.as_str().as_bytes()));
        let mut table = self.lock();
        let limited = |of, per_minute, wait| Limited {
            of,
            per_minute,
            retry_secs: whole_secs(wait),
        };
        if let (Some(key), Some(bound)) = (&of_pod, &account.pod) {
            table.check(key, pod, now).map_err(|wait| {
                let of = Whose::Pod {
                    namespace: account.account.namespace.clone(),
                    name: bound.name.clone(),
                };
                limited(of, pod, wait)
            })?;
        }
        table
            .check(&token, pod, now)
            .map_err(|wait| limited(Whose::Token, pod, wait))?;
        table
            .check(&of_all, all, now)
            .map_err(|wait| limited(Whose::Identity(identity.clone()), all, wait))?;
        for (key, per_minute) in [(Some(token), pod), (of_pod, pod), (Some(of_all), all)] {
            if let Some(key) = key {
                table.count(key, per_minute, now);
            }
        }
        Ok(())
    }

    /// A panic cannot leave the table half changed, so a poisoned lock is as good as another.
    fn lock(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Table {
    /// How long until one more is allowed, as an error.
    fn check(&self, key: &Key, per_minute: NonZeroU32, now: Instant) -> Result<(), Duration> {
        let used = self
            .whole_at
            .get(key)
            .map_or(Duration::ZERO, |at| at.saturating_duration_since(now));
        let over = (used + MINUTE / per_minute.get()).saturating_sub(MINUTE);
        if over.is_zero() { Ok(()) } else { Err(over) }
    }

    fn count(&mut self, key: Key, per_minute: NonZeroU32, now: Instant) {
        let step = MINUTE / per_minute.get();
        if let Some(at) = self.whole_at.get_mut(&key) {
            *at = (*at).max(now) + step;
            return;
        }
        if self.whole_at.len() >= self.capacity && now >= self.sweep_after {
            self.whole_at.retain(|_, at| *at > now);
            self.sweep_after = now + Duration::from_secs(1);
        }
        // More than fit within a minute are not one pod's doing: they are not counted rather than refused.
        if self.whole_at.len() < self.capacity {
            self.whole_at.insert(key, now + step);
        }
    }
}

fn whole_secs(wait: Duration) -> u64 {
    wait.as_secs() + u64::from(wait.subsec_nanos() > 0)
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("this token"),
            Self::Pod { namespace, name } => write!(f, "pod {namespace}/{name}"),
            Self::Identity(identity) => write!(f, "{identity}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use heddle_mesh::{ServiceAccountRef, TrustDomain};

    use super::*;
    use crate::token::BoundPod;

    fn token(text: &str) -> Token {
        Token::parse(text.as_bytes()).expect("a token")
    }

    fn account(pod: Option<&str>) -> Account {
        Account {
            account: ServiceAccountRef {
                namespace: "payments".into(),
                name: "web".into(),
            },
            uid: None,
            pod: pod.map(|name| BoundPod {
                name: name.into(),
                uid: format!("uid-of-{name}"),
            }),
        }
    }

    fn identity() -> Identity {
        Identity::for_service_account(&account(None).account, "linkerd", &TrustDomain::default())
            .expect("a name")
    }

    fn limiter(pod: u32, identity: u32) -> Limiter {
        let rate = |n| NonZeroU32::new(n).expect("not zero");
        Limiter::new(Rates {
            pod: rate(pod),
            identity: rate(identity),
        })
    }

    #[test]
    fn a_pod_has_its_share_and_then_its_rate() {
        let limiter = limiter(3, 1000);
        let start = Instant::now();
        // Each request has another token: the pod is what is counted.
        let take = |n: u32, secs| {
            let now = start + Duration::from_secs(secs);
            limiter.take(
                &token(&format!("t{n}")),
                &account(Some("web-1")),
                &identity(),
                now,
            )
        };
        for n in 0..3 {
            take(n, 0).expect("within the share");
        }
        let text = take(3, 1).expect_err("over").to_string();
        assert_eq!(
            text,
            "too many certificate requests of pod payments/web-1: at most 3 a minute, try again in 19 s"
        );
        take(4, 20).expect("a third of a minute later there is one more");
        take(5, 20).expect_err("and only one");
        limiter
            .take(&token("t9"), &account(Some("web-2")), &identity(), start)
            .expect("another pod is not concerned");
    }

    #[test]
    fn a_token_that_is_used_up_is_refused_before_its_review() {
        let limiter = limiter(2, 1000);
        let now = Instant::now();
        let (worn, fresh) = (token("worn"), token("fresh"));
        for _ in 0..2 {
            limiter.admit(&worn, now).expect("not yet used up");
            limiter
                .take(&worn, &account(None), &identity(), now)
                .expect("within the share");
        }
        assert!(limiter.admit(&worn, now).is_err());
        limiter.admit(&fresh, now).expect("another token");
        limiter
            .admit(&worn, now + Duration::from_secs(30))
            .expect("half a minute later there is one more");
    }

    #[test]
    fn all_pods_of_an_account_share_its_rate() {
        let limiter = limiter(10, 100);
        let now = Instant::now();
        let take = |n: u32| {
            let pod = format!("web-{n}");
            limiter.take(&token(&pod), &account(Some(&pod)), &identity(), now)
        };
        for n in 0..100 {
            take(n).expect("within the share");
        }
        let text = take(100).expect_err("over").to_string();
        assert!(text.contains("web.payments.serviceaccount"), "{text}");
    }

    #[test]
    fn a_restart_of_5000_pods_is_within_the_defaults() {
        let limiter = Limiter::new(Rates {
            pod: POD_PER_MINUTE,
            identity: IDENTITY_PER_MINUTE,
        });
        let now = Instant::now();
        for n in 0..5000 {
            let pod = format!("web-{n}");
            let token = token(&pod);
            limiter.admit(&token, now).expect("a first request");
            limiter
                .take(&token, &account(Some(&pod)), &identity(), now)
                .expect("a first request");
        }
    }

    #[test]
    fn the_table_is_bounded_and_forgets_who_is_whole_again() {
        let one = NonZeroU32::new(1).expect("not zero");
        let limiter = Limiter::with_capacity(
            Rates {
                pod: one,
                identity: IDENTITY_PER_MINUTE,
            },
            8,
        );
        let start = Instant::now();
        let take = |n: u32, now| {
            let pod = format!("web-{n}");
            limiter.take(&token(&pod), &account(Some(&pod)), &identity(), now)
        };
        for n in 0..100 {
            take(n, start).expect("a first request is never refused");
        }
        assert!(limiter.lock().whole_at.len() <= 8);
        take(0, start).expect_err("who was counted is still known");
        let later = start + Duration::from_secs(61);
        take(200, later).expect("a first request");
        take(200, later).expect_err("there is room to count again");
    }
}
