//! Rate limits of a server: the generic cell rate algorithm, one cell for all requests and one per client.

use std::time::{Duration, Instant};

use ahash::AHashMap;
use heddle_mesh::Identity;
use linkerd2_proxy_api::inbound as proto;

use crate::{Invalid, Meta};

/// Clients remembered at once; beyond it those with spent state are forgotten first.
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
    pub overrides: AHashMap<Identity, u32>,
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

/// The state that goes with a [`RateLimit`].
#[derive(Debug, Default)]
pub struct Cells {
    total: Option<Instant>,
    clients: AHashMap<Option<Identity>, Instant>,
}

impl Cells {
    /// Counts one request, or refuses it. A refused request uses up nothing.
    pub fn admit(
        &mut self,
        limit: &RateLimit,
        client: Option<&Identity>,
        now: Instant,
    ) -> Result<(), RateLimited> {
        let total = match limit.total {
            Some(rate) => Some(next(self.total, rate, now).ok_or(RateLimited::Total)?),
            None => None,
        };
        let rate = client
            .and_then(|id| limit.overrides.get(id).copied())
            .or(limit.identity);
        if let Some(rate) = rate {
            let key = client.cloned();
            let next = next(self.clients.get(&key).copied(), rate, now).ok_or(RateLimited::Client)?;
            if self.clients.len() >= CLIENTS_MAX {
                self.clients.retain(|_, at| *at > now);
            }
            if self.clients.len() < CLIENTS_MAX {
                self.clients.insert(key, next);
            }
        }
        if total.is_some() {
            self.total = total;
        }
        Ok(())
    }
}

/// The cell's next theoretical arrival time, or `None` when the request comes too early. A burst of one second's worth is let through.
fn next(cell: Option<Instant>, per_second: u32, now: Instant) -> Option<Instant> {
    let interval = Duration::from_secs(1).checked_div(per_second)?;
    let next = cell.unwrap_or(now).max(now) + interval;
    (next <= now + Duration::from_secs(1)).then_some(next)
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

    #[test]
    fn each_client_has_its_own_limit_below_the_total() {
        let one: Identity = "one.test".parse().expect("a name");
        let two: Identity = "two.test".parse().expect("a name");
        let limit = RateLimit {
            meta: Meta::default_named("limit"),
            total: Some(5),
            identity: Some(2),
            overrides: [(two.clone(), 10)].into_iter().collect(),
        };
        let now = Instant::now();
        let mut cells = Cells::default();
        assert_eq!(
            [(); 3].map(|()| cells.admit(&limit, Some(&one), now)),
            [Ok(()), Ok(()), Err(RateLimited::Client)]
        );
        assert_eq!(
            [(); 3].map(|()| cells.admit(&limit, Some(&two), now)),
            [Ok(()); 3]
        );
        assert_eq!(cells.admit(&limit, Some(&two), now), Err(RateLimited::Total));
        assert_eq!(
            cells.admit(&limit, Some(&one), now + Duration::from_secs(1)),
            Ok(())
        );
    }
}
