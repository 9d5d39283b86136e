//! What the proxy API has no place for, as Heddle's extension.

use std::{collections::BTreeMap, num::NonZeroU32};

use heddle_control_core::{
    balance,
    outbound::{Backend, BackendTarget, Distribution, Mirror, OutboundPolicy, OutboundProtocol, Routes},
    route::{Filter, GrpcMatch, HttpMatch, PathModifier, Rewrite},
};
use heddle_wire::{
    Affinity, Balancer, Carrier, Extension, GrpcMatchRegex, HashKey, Limits, PathRewrite, Persistence,
    RuleExtension,
};

use super::{backend, encode};

/// Balancers by path: the same service may be a backend many times, and says the same each time.
type Balancers = BTreeMap<String, Balancer>;

pub(super) fn of(policy: &OutboundPolicy) -> Extension {
    let mut balancers = Balancers::new();
    let rules = match &policy.protocol {
        OutboundProtocol::Detect { http, opaque, .. } => {
            balancers_of(&opaque.backends, &mut balancers);
            rules(http, &mut balancers)
        }
        OutboundProtocol::Http1(http) | OutboundProtocol::Http2(http) => rules(http, &mut balancers),
        OutboundProtocol::Grpc(grpc) => rules(grpc, &mut balancers),
        OutboundProtocol::Tls(routes) => {
            for one in routes {
                balancers_of(&one.route.backends, &mut balancers);
            }
            Vec::new()
        }
        OutboundProtocol::Opaque(routes) => {
            for route in routes {
                balancers_of(&route.backends, &mut balancers);
            }
            Vec::new()
        }
    };
    Extension {
        rules,
        balancers: balancers.into_values().collect(),
    }
}

/// What differs between HTTP and gRPC.
trait Extended {
    const HAS_RESPONSE_HEADERS: bool;

    fn regex(&self, index: usize) -> Option<GrpcMatchRegex>;
}

impl Extended for HttpMatch {
    /// The API has a filter of its own for them.
    const HAS_RESPONSE_HEADERS: bool = false;

    fn regex(&self, _: usize) -> Option<GrpcMatchRegex> {
        None
    }
}

impl Extended for GrpcMatch {
    const HAS_RESPONSE_HEADERS: bool = true;

    fn regex(&self, index: usize) -> Option<GrpcMatchRegex> {
        self.regex.then(|| GrpcMatchRegex {
            index,
            service: self.service.clone(),
            method: self.method.clone(),
        })
    }
}

fn rules<M: Extended>(routes: &Routes<M>, balancers: &mut Balancers) -> Vec<RuleExtension> {
    let mut all = Vec::new();
    for (route_index, route) in routes.routes.iter().enumerate() {
        for (rule_index, rule) in route.rules.iter().enumerate() {
            let mut own = RuleExtension::of(route_index, rule_index, None);
            extend::<M>(&mut own, &rule.filters, &rule.mirrors);
            own.session = rule.session.as_ref().map(persistence);
            let matches = rule.matches.iter().enumerate();
            own.grpc_matches = matches.filter_map(|(index, one)| one.regex(index)).collect();
            all.push(own);
            for (backend_index, backend) in rule.backends.backends().enumerate() {
                let mut own = RuleExtension::of(route_index, rule_index, Some(backend_index));
                extend::<M>(&mut own, &backend.filters, &backend.mirrors);
                all.push(own);
            }
            balancers_of(&rule.backends, balancers);
            let mirrored = rule
                .mirrors
                .iter()
                .chain(rule.backends.backends().flat_map(|one| &one.mirrors));
            mirrored.for_each(|mirror| balancer_of(&mirror.backend, balancers));
        }
    }
    all.retain(|one| !one.is_empty());
    all
}

fn extend<M: Extended>(extension: &mut RuleExtension, filters: &[Filter], mirrors: &[Mirror]) {
    for filter in filters {
        match filter {
            Filter::Rewrite(one) => extension.rewrite = Some(rewrite(one)),
            Filter::ResponseHeaders(headers) if M::HAS_RESPONSE_HEADERS => {
                extension.response_headers = Some(encode::response_headers(headers));
            }
            _ => {}
        }
    }
    extension.mirrors = mirrors.iter().filter_map(mirror).collect();
}

fn rewrite(rewrite: &Rewrite) -> heddle_wire::Rewrite {
    let Rewrite { host, path } = rewrite;
    heddle_wire::Rewrite {
        host: host.clone(),
        path: path.as_ref().map(|path| match path {
            PathModifier::Full(path) => PathRewrite::Full(path.clone()),
            PathModifier::Prefix(prefix) => PathRewrite::Prefix(prefix.clone()),
        }),
    }
}

/// `None` for a share of nothing in particular, which the index does not let through.
fn mirror(mirror: &Mirror) -> Option<heddle_wire::Mirror> {
    let Mirror {
        backend: target,
        share: (numerator, denominator),
    } = mirror;
    Some(heddle_wire::Mirror {
        backend: backend(target),
        numerator: *numerator,
        denominator: NonZeroU32::new(*denominator)?,
    })
}

fn balancers_of(backends: &Distribution, balancers: &mut Balancers) {
    backends
        .backends()
        .for_each(|backend| balancer_of(backend, balancers));
}

fn balancer_of(backend: &Backend, balancers: &mut Balancers) {
    let BackendTarget::Balance(path) = &backend.target else {
        return;
    };
    if backend.limits.is_unlimited() && backend.affinity.is_none() {
        return;
    }
    let balance::Limits {
        connections,
        requests,
        pending_requests,
        endpoint_connections,
        endpoint_requests,
    } = backend.limits;
    let limit = |limit: Option<u32>| limit.and_then(NonZeroU32::new);
    let balancer = Balancer {
        path: path.clone(),
        affinity: backend.affinity.as_ref().map(affinity),
        limits: Limits {
            connections: limit(connections),
            requests: limit(requests),
            pending_requests: limit(pending_requests),
            endpoint_connections: limit(endpoint_connections),
            endpoint_requests: limit(endpoint_requests),
        },
    };
    balancers.insert(path.clone(), balancer);
}

fn affinity(affinity: &balance::Affinity) -> Affinity {
    match affinity {
        balance::Affinity::Persist(session) => Affinity::Persist(persistence(session)),
        balance::Affinity::Hash(balance::HashKey::Source) => Affinity::Hash(HashKey::Source),
        balance::Affinity::Hash(balance::HashKey::Named(carried, name)) => {
            Affinity::Hash(HashKey::Named(carrier(*carried), name.clone()))
        }
    }
}

fn carrier(carrier: balance::Carrier) -> Carrier {
    match carrier {
        balance::Carrier::Cookie => Carrier::Cookie,
        balance::Carrier::Header => Carrier::Header,
    }
}

fn persistence(session: &balance::Persistence) -> Persistence {
    let balance::Persistence {
        carrier: carried,
        name,
        idle_timeout,
        absolute_timeout,
        permanent,
    } = session;
    Persistence {
        carrier: carrier(*carried),
        name: name.clone(),
        idle_timeout: *idle_timeout,
        absolute_timeout: *absolute_timeout,
        permanent: *permanent,
    }
}
