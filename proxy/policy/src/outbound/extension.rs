//! What the wire's extension adds to a policy. The standard message has been read by then, and the wire has checked
//! that every index lies inside it.

use std::sync::Arc;

use heddle_wire::{Extension, GrpcMatchRegex, PolicyMessage, RuleExtension};

use super::{
    Backend, BackendKind, ClientPolicy, Distribution, Http, Mirror, Opaque, OpaqueVerdict, OutboundRule,
    Protocol,
};
use crate::{
    Invalid,
    filter::Filter,
    invalid::each,
    rewrite::Rewrite,
    route::{self, PathMatch, Rule},
};

impl TryFrom<PolicyMessage> for ClientPolicy {
    type Error = Invalid;

    fn try_from(message: PolicyMessage) -> Result<Self, Invalid> {
        let (policy, extension) = message
            .into_parts()
            .map_err(|error| Invalid::new("extension", error))?;
        let mut policy = Self::try_from(policy)?;
        if !extension.is_empty() {
            policy
                .protocol
                .extend(&extension)
                .map_err(|error| error.within("extension"))?;
        }
        Ok(policy)
    }
}

impl Protocol {
    fn extend(&mut self, extension: &Extension) -> Result<(), Invalid> {
        match self {
            Self::Detect {
                http1, http2, opaque, ..
            } => {
                extend_http(http1, extension)?;
                extend_http(http2, extension)?;
                extend_opaque(opaque, extension);
            }
            Self::Http1(http) | Self::Http2(http) | Self::Grpc(http) => extend_http(http, extension)?,
            Self::Opaque(opaque) => extend_opaque(opaque, extension),
            Self::Tls(routes) => {
                for route in routes {
                    extend_opaque(&mut route.opaque, extension);
                }
            }
        }
        Ok(())
    }
}

fn extend_http(http: &mut Http, extension: &Extension) -> Result<(), Invalid> {
    for one in &extension.rules {
        // The two versions of a detected protocol may hold different lists under another controller.
        let route = http.routes.get_mut(one.route);
        let Some(rule) = route.and_then(|route| route.rules.get_mut(one.rule)) else {
            continue;
        };
        let within = |error: Invalid| error.within(format!("routes[{}].rules[{}]", one.route, one.rule));
        match one.backend {
            None => extend_rule(rule, one).map_err(within)?,
            Some(backend) => {
                if let Some(backend) = backends_mut(&mut rule.policy.distribution).get_mut(backend) {
                    backend.filters.extend(filters(one).map_err(within)?);
                    backend.mirrors = mirrors(one).map_err(within)?;
                }
            }
        }
    }
    for rule in http.routes.iter_mut().flat_map(|route| &mut route.rules) {
        extend_distribution(&mut rule.policy.distribution, extension);
        for mirror in &mut rule.policy.mirrors {
            extend_backend(&mut mirror.backend, extension);
        }
    }
    Ok(())
}

fn extend_rule(rule: &mut Rule<OutboundRule>, one: &RuleExtension) -> Result<(), Invalid> {
    rule.policy.filters.extend(filters(one)?);
    rule.policy.mirrors = mirrors(one)?;
    rule.policy.session = one.session.clone();
    for GrpcMatchRegex {
        index,
        service,
        method,
    } in &one.grpc_matches
    {
        let compile = |field: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| route::whole_regex(field, text))
                .transpose()
        };
        if let Some(matched) = rule.matches.get_mut(*index) {
            matched.path = Some(PathMatch::RpcRegex {
                service: compile("grpc_matches.service", service)?,
                method: compile("grpc_matches.method", method)?,
            });
        }
    }
    Ok(())
}

fn filters(one: &RuleExtension) -> Result<Vec<Filter>, Invalid> {
    let rewrite = one
        .rewrite
        .clone()
        .map(|rewrite| Rewrite::try_from(rewrite).map(Filter::Rewrite));
    let headers = one.response_headers.clone().map(Filter::try_from);
    rewrite.into_iter().chain(headers).collect()
}

fn mirrors(one: &RuleExtension) -> Result<Vec<Mirror>, Invalid> {
    each("mirrors", one.mirrors.clone(), |mirror| {
        Ok(Mirror {
            backend: Arc::new(Backend::try_from(mirror.backend)?),
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        })
    })
}

fn extend_opaque(opaque: &mut Opaque, extension: &Extension) {
    if let OpaqueVerdict::To(distribution) = &mut opaque.verdict {
        extend_distribution(distribution, extension);
    }
}

fn extend_distribution(distribution: &mut Distribution, extension: &Extension) {
    for one in backends_mut(distribution) {
        extend_backend(&mut one.backend, extension);
        for mirror in &mut one.mirrors {
            extend_backend(&mut mirror.backend, extension);
        }
    }
}

fn extend_backend(backend: &mut Arc<Backend>, extension: &Extension) {
    let BackendKind::Balance { path, .. } = &backend.kind else {
        return;
    };
    if let Some(balancer) = extension.balancers.iter().find(|one| one.path == *path) {
        let backend = Arc::make_mut(backend);
        backend.affinity = balancer.affinity.clone();
        backend.limits = balancer.limits;
    }
}

fn backends_mut(distribution: &mut Distribution) -> &mut [super::RouteBackend] {
    match distribution {
        Distribution::Empty => &mut [],
        Distribution::FirstAvailable(backends)
        | Distribution::RandomAvailable(backends, _)
        | Distribution::Split(backends, _) => backends,
    }
}
