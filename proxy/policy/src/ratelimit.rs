//! Rate limits of a server: the generic cell rate algorithm, one cell for all requests and one per client.
//!
//! A cell is one atomic number, which all workers share: the limits hold for the proxy as a whole. Whoever serves a
//! connection looks its client's cell up once; counting a request takes no lock.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{
            AtomicU64,
            Ordering::{AcqRel, Acquire},
        },
    },
    time::{Duration, Instant},
};

use ahash::AHashMap;
use heddle_mesh::PeerId;
use linkerd2_proxy_api::inbound as proto;

use crate::{Invalid, Meta};

/// Clients remembered at once; beyond it those without a connection are forgotten, and the rest share a cell.
pub const CLIENTS_MAX: usize = 10_000;

/// The limits of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// The policy resource.
    pub meta: Meta,
    /// Requests per second of all clients together.
    pub total: Option<u32>,
    /// Requests per second of each client.
    pub identity: Option<u32>,
    /// Limits of particular clients, in place of `identity`.
    pub overrides: AHashMap<PeerId, u32>,
}

/// Which limit refused a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RateLimited {
    /// The limit of all clients together.
    #[error("the server's total rate limit is exceeded")]
    Total,
    /// The client's own limit.
    #[error("the client's rate limit is exceeded")]
    Client,
}

/// The cells of one server, whatever its limits are now.
#[derive(Debug)]
pub struct Cells {
    epoch: Instant,
    total: Cell,
    /// Clients without an identity, and those beyond [`CLIENTS_MAX`].
    unnamed: Arc<Cell>,
    clients: Mutex<AHashMap<PeerId, Arc<Cell>>>,
}

/// When the next request is due that comes at the limit's rate (the "theoretical arrival time"), in nanoseconds since the
/// cells were made.
#[derive(Debug, Default)]
pub struct Cell(AtomicU64);

impl Default for Cells {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            total: Cell::default(),
            unnamed: Arc::default(),
            clients: Mutex::default(),
        }
    }
}

impl Cells {
    /// The client's cell; hold it as long as its connection lives.
    pub fn client(&self, client: Option<&PeerId>) -> Arc<Cell> {
        let Some(client) = client else {
            return self.unnamed.clone();
        };
        // The map is whole after a panic, too.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cell) = clients.get(client) {
            return cell.clone();
        }
        if clients.len() >= CLIENTS_MAX {
            clients.retain(|_, cell| Arc::strong_count(cell) > 1);
        }
        if clients.len() >= CLIENTS_MAX {
            return self.unnamed.clone();
        }
        clients.entry(client.clone()).or_default().clone()
    }

    /// Counts one request of the client whose cell this is, or refuses it. A refused request uses up nothing.
    pub fn admit(
        &self,
        limit: &RateLimit,
        client: Option<&PeerId>,
        cell: &Cell,
        now: Instant,
    ) -> Result<(), RateLimited> {
        let now = now.saturating_duration_since(self.epoch);
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX / 2);
        let rate = client
            .and_then(|id| limit.overrides.get(id).copied())
            .or(limit.identity);
        if let Some(total) = limit.total
            && next(self.total.0.load(Acquire), total, now).is_none()
        {
            return Err(RateLimited::Total);
        }
        if let Some(rate) = rate
            && !cell.take(rate, now)
        {
            return Err(RateLimited::Client);
        }
        if let Some(total) = limit.total
            && !self.total.take(total, now)
        {
            // Another worker was faster by a moment.
            if let Some(rate) = rate {
                cell.give_back(rate);
            }
            return Err(RateLimited::Total);
        }
        Ok(())
    }
}

impl Cell {
    fn take(&self, per_second: u32, now: u64) -> bool {
        self.0
            .fetch_update(AcqRel, Acquire, |due| next(due, per_second, now))
            .is_ok()
    }

    fn give_back(&self, per_second: u32) {
        if let Some(interval) = interval(per_second) {
            // Always succeeds.
            let _ = self
                .0
                .fetch_update(AcqRel, Acquire, |due| Some(due.saturating_sub(interval)));
        }
    }
}

const SECOND: u64 = Duration::from_secs(1).as_nanos() as u64;

fn interval(per_second: u32) -> Option<u64> {
    SECOND.checked_div(per_second.into())
}

/// What a cell becomes by a request at `now`, or `None` when it comes too early. A burst of one second's worth is let through.
fn next(due: u64, per_second: u32, now: u64) -> Option<u64> {
    let next = due.max(now) + interval(per_second)?;
    (next <= now + SECOND).then_some(next)
}

impl TryFrom<proto::HttpLocalRateLimit> for RateLimit {
    type Error = Invalid;

    fn try_from(limit: proto::HttpLocalRateLimit) -> Result<Self, Invalid> {
        let proto::HttpLocalRateLimit {
            metadata,
            total,
            identity,
            overrides,
        } = limit;
        let mut by_client = AHashMap::new();
        for one in overrides {
            let rate = one
                .limit
                .ok_or_else(|| Invalid::missing("overrides.limit"))?
                .requests_per_second;
            for client in one.clients.map(|clients| clients.identities).unwrap_or_default() {
                let id = client
                    .name
                    .parse()
                    .map_err(|error| Invalid::new("overrides.clients", error))?;
                by_client.insert(id, rate);
            }
        }
        Ok(Self {
            meta: Meta::required("metadata", metadata)?,
            total: total.map(|limit| limit.requests_per_second),
            identity: identity.map(|limit| limit.requests_per_second),
            overrides: by_client,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(total: u32, identity: u32, overrides: &[(&PeerId, u32)]) -> RateLimit {
        RateLimit {
            meta: Meta::default_named("limit"),
            total: Some(total),
            identity: Some(identity),
            overrides: overrides
                .iter()
                .map(|(id, rate)| ((*id).clone(), *rate))
                .collect(),
        }
    }

    #[test]
    fn each_client_has_its_own_limit_below_the_total() {
        let one: PeerId = "one.test".parse().expect("a name");
        let two: PeerId = "two.test".parse().expect("a name");
        let limit = limit(5, 2, &[(&two, 10)]);
        let cells = Cells::default();
        let now = Instant::now();
        let admit = |id: &PeerId, now| cells.admit(&limit, Some(id), &cells.client(Some(id)), now);
        assert_eq!(
            [(); 3].map(|()| admit(&one, now)),
            [Ok(()), Ok(()), Err(RateLimited::Client)]
        );
        assert_eq!([(); 3].map(|()| admit(&two, now)), [Ok(()); 3]);
        assert_eq!(admit(&two, now), Err(RateLimited::Total));
        assert_eq!(admit(&one, now + Duration::from_secs(1)), Ok(()));
    }

    #[test]
    fn threads_share_the_limit() {
        let limit = limit(1_000, 100, &[]);
        let (cells, now) = (Cells::default(), Instant::now());
        let one: PeerId = "one.test".parse().expect("a name");
        let admitted: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let cell = cells.client(Some(&one));
                        (0..200)
                            .filter(|_| cells.admit(&limit, Some(&one), &cell, now).is_ok())
                            .count()
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("no panic"))
                .sum()
        });
        assert_eq!(admitted, 100);
    }

    #[test]
    fn clients_without_a_connection_are_forgotten_when_there_are_too_many() {
        let cells = Cells::default();
        let held: PeerId = "held.test".parse().expect("a name");
        let cell = cells.client(Some(&held));
        for number in 0..CLIENTS_MAX + 10 {
            let id: PeerId = format!("c{number}.test").parse().expect("a name");
            drop(cells.client(Some(&id)));
        }
        assert!(Arc::ptr_eq(&cell, &cells.client(Some(&held))));
        assert!(cells.clients.lock().expect("no panic").len() <= CLIENTS_MAX);
    }
}
