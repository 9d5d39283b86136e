//! Messages become checked values, or errors.

use std::{collections::HashSet, num::NonZeroU32, time::Duration};

use linkerd2_proxy_api::{
    http_route::ResponseHeaderModifier,
    outbound::{OutboundPolicy, grpc_route, http_route, proxy_protocol::Kind},
};

use crate::{
    check::{LIST_MAX, MIRRORS_MAX, WireError, host, invalid, list, name, path, text},
    extension::{
        Affinity, Balancer, Carrier, Extension, GrpcMatchRegex, HashKey, Limits, Mirror, PathRewrite,
        Persistence, Rewrite, RuleExtension,
    },
    message::{
        AffinityMessage, BalancerMessage, CarrierMessage, ExtensionMessage, GrpcMatchMessage, HashKeyMessage,
        HashMessage, LimitsMessage, MirrorMessage, PathMessage, PersistenceMessage, RewriteMessage,
        RuleMessage,
    },
};

pub(crate) fn extension(message: ExtensionMessage, policy: &OutboundPolicy) -> Result<Extension, WireError> {
    let ExtensionMessage { rules, balancers } = message;
    list("rules", &rules, LIST_MAX)?;
    list("balancers", &balancers, LIST_MAX)?;
    let rules: Vec<_> = rules
        .into_iter()
        .map(|message| rule(message, policy))
        .collect::<Result<_, _>>()?;
    let mut named = HashSet::new();
    if !rules
        .iter()
        .all(|one| named.insert((one.route, one.rule, one.backend)))
    {
        return Err(invalid("rules", "each rule and backend at most once"));
    }
    let balancers: Vec<_> = balancers.into_iter().map(balancer).collect::<Result<_, _>>()?;
    let mut paths = HashSet::new();
    if !balancers.iter().all(|one| paths.insert(one.path.as_str())) {
        return Err(invalid("balancers", "each path at most once"));
    }
    Ok(Extension { rules, balancers })
}

/// What a rule of the policy has: numbers of backends and, of gRPC routes, of matches.
struct Rule {
    backends: usize,
    grpc_matches: Option<usize>,
}

fn find(policy: &OutboundPolicy, route: usize, rule: usize) -> Option<Rule> {
    let http = |routes: &[linkerd2_proxy_api::outbound::HttpRoute]| {
        let rule = routes.get(route)?.rules.get(rule)?;
        Some(Rule {
            backends: http_backends(rule),
            grpc_matches: None,
        })
    };
    match policy.protocol.as_ref()?.kind.as_ref()? {
        Kind::Detect(detect) => {
            let (one, two) = (detect.http1.as_ref()?, detect.http2.as_ref()?);
            http(&two.routes)?;
            http(&one.routes)
        }
        Kind::Http1(one) => http(&one.routes),
        Kind::Http2(two) => http(&two.routes),
        Kind::Grpc(grpc) => {
            let rule = grpc.routes.get(route)?.rules.get(rule)?;
            Some(Rule {
                backends: grpc_backends(rule),
                grpc_matches: Some(rule.matches.len()),
            })
        }
        Kind::Opaque(_) | Kind::Tls(_) => None,
    }
}

fn http_backends(rule: &http_route::Rule) -> usize {
    use http_route::distribution::Kind;
    match rule.backends.as_ref().and_then(|one| one.kind.as_ref()) {
        Some(Kind::FirstAvailable(first)) => first.backends.len(),
        Some(Kind::RandomAvailable(random)) => random.backends.len(),
        Some(Kind::Empty(_)) | None => 0,
    }
}

fn grpc_backends(rule: &grpc_route::Rule) -> usize {
    use grpc_route::distribution::Kind;
    match rule.backends.as_ref().and_then(|one| one.kind.as_ref()) {
        Some(Kind::FirstAvailable(first)) => first.backends.len(),
        Some(Kind::RandomAvailable(random)) => random.backends.len(),
        Some(Kind::Empty(_)) | None => 0,
    }
}

/// An index below `len`.
fn index(field: &'static str, index: u32, len: usize) -> Result<usize, WireError> {
    match usize::try_from(index) {
        Ok(index) if index < len => Ok(index),
        _ => Err(invalid(field, "an index inside the policy")),
    }
}

fn rule(message: RuleMessage, policy: &OutboundPolicy) -> Result<RuleExtension, WireError> {
    let RuleMessage {
        route,
        rule,
        backend,
        rewrite: url,
        mirrors,
        session,
        response_headers,
        grpc_matches,
    } = message;
    let (route, rule) = (
        index("rules.route", route, LIST_MAX)?,
        index("rules.rule", rule, LIST_MAX)?,
    );
    let Some(found) = find(policy, route, rule) else {
        return Err(invalid("rules.route", "an index inside the policy"));
    };
    let backend = backend
        .map(|backend| index("rules.backend", backend, found.backends))
        .transpose()?;
    list("rules.mirrors", &mirrors, MIRRORS_MAX)?;
    if backend.is_some() && (session.is_some() || !grpc_matches.is_empty()) {
        return Err(invalid("rules.backend", "neither session nor matches beside it"));
    }
    if found.grpc_matches.is_none() && (response_headers.is_some() || !grpc_matches.is_empty()) {
        return Err(invalid("rules", "what is for gRPC on gRPC routes only"));
    }
    if let Some(modifier) = &response_headers {
        headers(modifier)?;
    }
    let matches = found.grpc_matches.unwrap_or_default();
    list("rules.grpc_matches", &grpc_matches, matches)?;
    Ok(RuleExtension {
        route,
        rule,
        backend,
        rewrite: url.map(rewrite).transpose()?,
        mirrors: mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?,
        session: session.map(persistence).transpose()?,
        response_headers,
        grpc_matches: grpc_matches
            .into_iter()
            .map(|one| grpc_match(one, matches))
            .collect::<Result<_, _>>()?,
    })
}

fn headers(modifier: &ResponseHeaderModifier) -> Result<(), WireError> {
    const FIELD: &str = "rules.response_headers";
    let ResponseHeaderModifier { add, set, remove } = modifier;
    let given = || add.iter().chain(set).flat_map(|one| &one.headers);
    if given().count() + remove.len() > LIST_MAX {
        return Err(invalid(FIELD, "fewer headers"));
    }
    for header in given() {
        name(FIELD, header.name.clone())?;
        http::HeaderValue::from_bytes(&header.value).map_err(|_| invalid(FIELD, "values of headers"))?;
    }
    remove
        .iter()
        .try_for_each(|one| name(FIELD, one.clone()).map(drop))
}

fn rewrite(message: RewriteMessage) -> Result<Rewrite, WireError> {
    let RewriteMessage {
        host: name,
        path: change,
    } = message;
    let path = change.map(|change| match change {
        PathMessage::Full(full) => path("rules.rewrite.path.full", full).map(PathRewrite::Full),
        PathMessage::Prefix(prefix) => path("rules.rewrite.path.prefix", prefix).map(PathRewrite::Prefix),
    });
    Ok(Rewrite {
        host: name.map(|name| host("rules.rewrite.host", name)).transpose()?,
        path: path.transpose()?,
    })
}

fn mirror(message: MirrorMessage) -> Result<Mirror, WireError> {
    let MirrorMessage {
        backend,
        numerator,
        denominator,
    } = message;
    let denominator = NonZeroU32::new(denominator).filter(|denominator| numerator <= denominator.get());
    Ok(Mirror {
        backend: backend.ok_or_else(|| invalid("rules.mirrors.backend", "a backend"))?,
        numerator,
        denominator: denominator
            .ok_or_else(|| invalid("rules.mirrors.denominator", "a share from 0 to 1"))?,
    })
}

fn grpc_match(message: GrpcMatchMessage, matches: usize) -> Result<GrpcMatchRegex, WireError> {
    let GrpcMatchMessage {
        index: number,
        service,
        method,
    } = message;
    let expression = |expression: Option<String>| {
        expression
            .map(|expression| text("rules.grpc_matches", expression))
            .transpose()
    };
    Ok(GrpcMatchRegex {
        index: index("rules.grpc_matches.index", number, matches)?,
        service: expression(service)?,
        method: expression(method)?,
    })
}

fn balancer(message: BalancerMessage) -> Result<Balancer, WireError> {
    let BalancerMessage {
        path,
        affinity,
        limits,
    } = message;
    let affinity = affinity.map(|affinity| match affinity {
        AffinityMessage::Persistence(session) => persistence(session).map(Affinity::Persist),
        AffinityMessage::Hash(key) => hash(key).map(Affinity::Hash),
    });
    Ok(Balancer {
        path: text("balancers.path", path)?,
        affinity: affinity.transpose()?,
        limits: limits.map(self::limits).unwrap_or_default(),
    })
}

fn persistence(message: PersistenceMessage) -> Result<Persistence, WireError> {
    let PersistenceMessage {
        carrier,
        name: session,
        idle_timeout,
        absolute_timeout,
        permanent,
    } = message;
    let timeout = |field, timeout: Option<prost_types::Duration>| {
        let Some(timeout) = timeout else { return Ok(None) };
        match Duration::try_from(timeout) {
            Ok(timeout) if !timeout.is_zero() => Ok(Some(timeout)),
            _ => Err(invalid(field, "a duration of more than zero")),
        }
    };
    let absolute_timeout = timeout("persistence.absolute_timeout", absolute_timeout)?;
    if permanent && absolute_timeout.is_none() {
        return Err(invalid("persistence.permanent", "an absolute timeout beside it"));
    }
    Ok(Persistence {
        carrier: match CarrierMessage::try_from(carrier) {
            Ok(CarrierMessage::Cookie) => Carrier::Cookie,
            Ok(CarrierMessage::Header) => Carrier::Header,
            Err(_) => return Err(invalid("persistence.carrier", "a cookie or header")),
        },
        name: name("persistence.name", session)?,
        idle_timeout: timeout("persistence.idle_timeout", idle_timeout)?,
        absolute_timeout,
        permanent,
    })
}

fn hash(message: HashMessage) -> Result<HashKey, WireError> {
    let HashMessage { key, name: hashed } = message;
    let named = |carrier| name("hash.name", hashed).map(|name| HashKey::Named(carrier, name));
    match HashKeyMessage::try_from(key) {
        Ok(HashKeyMessage::Source) => Ok(HashKey::Source),
        Ok(HashKeyMessage::Cookie) => named(Carrier::Cookie),
        Ok(HashKeyMessage::Header) => named(Carrier::Header),
        Err(_) => Err(invalid("hash.key", "a source, cookie or header")),
    }
}

fn limits(message: LimitsMessage) -> Limits {
    let LimitsMessage {
        connections,
        requests,
        pending_requests,
        endpoint_connections,
        endpoint_requests,
    } = message;
    Limits {
        connections: NonZeroU32::new(connections),
        requests: NonZeroU32::new(requests),
        pending_requests: NonZeroU32::new(pending_requests),
        endpoint_connections: NonZeroU32::new(endpoint_connections),
        endpoint_requests: NonZeroU32::new(endpoint_requests),
    }
}
