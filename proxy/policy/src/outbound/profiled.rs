//! A policy under a destination profile. Linkerd's precedence: a ServiceProfile with routes or targets comes before
//! all HTTP routes of the policy, targets before its opaque routes too, and an address that the profile calls opaque is
//! opaque whatever the policy says.

use std::sync::Arc;

use super::{
    Backend, BackendKind, ClientPolicy, Distribution, FAILFAST_DEFAULT, Http, Limits, Opaque, OpaqueVerdict,
    OutboundRule, Protocol, RETRIES_MAX, RETRY_BODY_BYTES_MAX, Retry, RetryConditions, RouteBackend,
    Timeouts,
};
use crate::{
    Meta, Profile,
    balance::{EwmaParams, Weights},
    profile::{ProfileRoute, RouteProfile},
    route::{RequestMatch, Route, Rule},
};

impl ClientPolicy {
    /// The policy with what the profile of the address says. `port` is the service's.
    #[must_use]
    pub fn under(self: &Arc<Self>, profile: &Profile, port: u16) -> Arc<Self> {
        let routed = profile.has_routes_or_targets();
        if !profile.opaque && !routed {
            return self.clone();
        }
        let service = profile
            .fully_qualified_name
            .as_ref()
            .map(|name| format!("{name}:{port}"));
        let split = service.as_ref().filter(|_| !profile.targets.is_empty());
        let opaque = |own: &Opaque| match split {
            Some(service) => Opaque {
                meta: own.meta.clone(),
                verdict: OpaqueVerdict::To(distribution(service, profile)),
            },
            None => own.clone(),
        };
        if profile.opaque {
            let own = match (&self.protocol, &service) {
                (Protocol::Detect { opaque, .. } | Protocol::Opaque(opaque), _) => opaque.clone(),
                (Protocol::Tls(_), _) => return self.clone(),
                // Its policy says that it speaks HTTP, and has no route for bytes.
                (Protocol::Http1(_) | Protocol::Http2(_) | Protocol::Grpc(_), Some(service)) => Opaque {
                    meta: self.parent.clone(),
                    verdict: OpaqueVerdict::To(distribution(service, profile)),
                },
                (Protocol::Http1(_) | Protocol::Http2(_) | Protocol::Grpc(_), None) => return self.clone(),
            };
            return Arc::new(Self {
                parent: self.parent.clone(),
                protocol: Protocol::Opaque(opaque(&own)),
            });
        }
        let Some(service) = &service else {
            return self.clone();
        };
        let http = || routes(service, profile);
        let protocol = match &self.protocol {
            Protocol::Detect {
                timeout, opaque: own, ..
            } => Protocol::Detect {
                timeout: *timeout,
                http1: http(),
                http2: http(),
                opaque: opaque(own),
            },
            Protocol::Http1(_) => Protocol::Http1(http()),
            Protocol::Http2(_) => Protocol::Http2(http()),
            Protocol::Grpc(_) => Protocol::Grpc(http()),
            Protocol::Opaque(own) => Protocol::Opaque(opaque(own)),
            Protocol::Tls(routes) => Protocol::Tls(routes.clone()),
        };
        Arc::new(Self {
            parent: self.parent.clone(),
            protocol,
        })
    }
}

/// The profile's routes, and a last one for requests that none of them fits.
fn routes(service: &str, profile: &Profile) -> Http {
    let distribution = distribution(service, profile);
    let rule = |route: Option<&ProfileRoute>| {
        let condition = route.map(|route| RequestMatch {
            condition: Some(route.condition.clone()),
            ..RequestMatch::default()
        });
        let of_route = Arc::new(RouteProfile {
            service: service.to_owned(),
            labels: route.map(|route| route.labels.clone()).unwrap_or_default(),
            classes: route.map(|route| route.classes.clone()).unwrap_or_default(),
        });
        let retry = route.filter(|route| route.is_retryable).map(|_| Retry {
            max_retries: RETRIES_MAX,
            max_request_bytes: RETRY_BODY_BYTES_MAX,
            conditions: RetryConditions::Failures(of_route.clone()),
            timeout: None,
            backoff: None,
            respect_retry_after: false,
            budget: profile.retry_budget.clone(),
        });
        Rule {
            matches: condition.into_iter().collect(),
            policy: OutboundRule {
                filters: Vec::new(),
                distribution: distribution.clone(),
                timeouts: Timeouts {
                    head: route.and_then(|route| route.timeout),
                    ..Timeouts::default()
                },
                retry,
                mirrors: Vec::new(),
                session: None,
                allow_l5d_headers: false,
                profile: Some(of_route),
            },
        }
    };
    Http {
        routes: vec![Route {
            meta: Meta::default_named("profile"),
            hosts: Vec::new(),
            rules: profile.routes.iter().map(Some).chain([None]).map(rule).collect(),
        }],
        failure_accrual: None,
    }
}

fn distribution(service: &str, profile: &Profile) -> Distribution {
    let backend = |path: &str| RouteBackend {
        backend: Arc::new(Backend {
            meta: Meta::default_named("service"),
            kind: BackendKind::Balance {
                path: path.to_owned(),
                ewma: EwmaParams::default(),
            },
            failfast_timeout: FAILFAST_DEFAULT,
            affinity: None,
            limits: Limits::default(),
        }),
        filters: Vec::new(),
        mirrors: Vec::new(),
    };
    if profile.targets.is_empty() {
        return Distribution::FirstAvailable(vec![backend(service)]);
    }
    let weights = Weights::new(profile.targets.iter().map(|target| target.weight));
    match weights.total() {
        0 => Distribution::Empty,
        _ => {
            let backends = profile.targets.iter().map(|target| backend(&target.path));
            Distribution::Split(backends.collect(), weights)
        }
    }
}
