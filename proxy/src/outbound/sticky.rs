//! The backend of a request, and whether it must go to a certain endpoint.

use std::{
    net::IpAddr,
    rc::Rc,
    time::{SystemTime, UNIX_EPOCH},
};

use heddle_proxy_policy::{
    affinity::{self, Session},
    outbound::{Affinity, HashKey, OutboundRule, Persistence, RouteBackend},
};
use http::HeaderMap;

use super::target::Policy;
use crate::{
    balance::{Balancer, Layer, Terms, Wish},
    http::ProxyError,
};

/// What was chosen for a request.
#[derive(Debug)]
pub(super) struct Chosen<'p> {
    pub(super) backend: &'p RouteBackend,
    pub(super) balancer: &'p Rc<Balancer>,
    pub(super) terms: Terms,
    pub(super) sticky: Option<Sticky<'p>>,
}

/// A session, as the request carried it.
#[derive(Debug)]
pub(super) struct Sticky<'p> {
    how: &'p Persistence,
    session: Option<Session>,
    now: u64,
}

impl<'p> Chosen<'p> {
    pub(super) fn new(
        policy: &'p Policy,
        rule: &'p OutboundRule,
        headers: &HeaderMap,
        client: IpAddr,
    ) -> Result<Self, ProxyError> {
        let by_rule = rule.session.as_ref().map(|how| Sticky::new(how, headers));
        let endpoint = by_rule.as_ref().and_then(Sticky::endpoint);
        let (backend, balancer) = policy.choose(&rule.distribution, endpoint)?;
        let (wish, sticky) = match (by_rule, &backend.backend.affinity) {
            (Some(sticky), _) => (sticky.wish(), Some(sticky)),
            (None, Some(Affinity::Persist(how))) => {
                let sticky = Sticky::new(how, headers);
                (sticky.wish(), Some(sticky))
            }
            (None, Some(Affinity::Hash(key))) => (hashed(key, Some(headers), client), None),
            (None, None) => (Wish::Any, None),
        };
        let (limits, failfast) = (backend.backend.limits, backend.backend.failfast_timeout);
        Ok(Self {
            backend,
            balancer,
            terms: Terms {
                layer: Layer::Http,
                wish,
                limits,
                failfast,
            },
            sticky,
        })
    }
}

/// Where the value of a key leads. Connections of bytes have no headers.
pub(super) fn hashed(key: &HashKey, headers: Option<&HeaderMap>, client: IpAddr) -> Wish {
    let value = match key {
        HashKey::Source => return Wish::Key(affinity::key(client.to_string().as_bytes())),
        HashKey::Named(carrier, name) => headers.and_then(|headers| affinity::value(headers, *carrier, name)),
    };
    value.map_or(Wish::Any, |value| Wish::Key(affinity::key(value.as_bytes())))
}

impl<'p> Sticky<'p> {
    fn new(how: &'p Persistence, headers: &HeaderMap) -> Self {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_secs();
        Self {
            how,
            session: Session::of(headers, how, now),
            now,
        }
    }

    fn endpoint(&self) -> Option<u64> {
        self.session.map(|session| session.endpoint())
    }

    fn wish(&self) -> Wish {
        self.endpoint().map_or(Wish::Any, Wish::Endpoint)
    }

    /// Tells the client in the answer where its session leads.
    pub(super) fn tell(&self, endpoint: u64, headers: &mut HeaderMap) {
        Session::tell(self.session, endpoint, self.how, self.now, headers);
    }
}
