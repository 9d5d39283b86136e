//! Checked values become messages.

use std::num::NonZeroU32;

use crate::{
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

pub(crate) fn extension(extension: &Extension) -> ExtensionMessage {
    let Extension { rules, balancers } = extension;
    ExtensionMessage {
        rules: rules.iter().map(rule).collect(),
        balancers: balancers.iter().map(balancer).collect(),
    }
}

/// No list is that long; if one were, the reader would refuse the index.
fn index(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn rule(extension: &RuleExtension) -> RuleMessage {
    let RuleExtension {
        route,
        rule,
        backend,
        rewrite: url,
        mirrors,
        session,
        response_headers,
        grpc_matches,
    } = extension;
    RuleMessage {
        route: index(*route),
        rule: index(*rule),
        backend: backend.map(index),
        rewrite: url.as_ref().map(rewrite),
        mirrors: mirrors.iter().map(mirror).collect(),
        session: session.as_ref().map(persistence),
        response_headers: response_headers.clone(),
        grpc_matches: grpc_matches.iter().map(grpc_match).collect(),
    }
}

fn rewrite(rewrite: &Rewrite) -> RewriteMessage {
    let Rewrite { host, path } = rewrite;
    RewriteMessage {
        host: host.clone(),
        path: path.as_ref().map(|path| match path {
            PathRewrite::Full(path) => PathMessage::Full(path.clone()),
            PathRewrite::Prefix(prefix) => PathMessage::Prefix(prefix.clone()),
        }),
    }
}

fn mirror(mirror: &Mirror) -> MirrorMessage {
    let Mirror {
        backend,
        numerator,
        denominator,
    } = mirror;
    MirrorMessage {
        backend: Some(backend.clone()),
        numerator: *numerator,
        denominator: denominator.get(),
    }
}

fn grpc_match(regex: &GrpcMatchRegex) -> GrpcMatchMessage {
    let GrpcMatchRegex {
        index: number,
        service,
        method,
    } = regex;
    GrpcMatchMessage {
        index: index(*number),
        service: service.clone(),
        method: method.clone(),
    }
}

fn balancer(balancer: &Balancer) -> BalancerMessage {
    let Balancer {
        path,
        affinity,
        limits,
    } = balancer;
    BalancerMessage {
        path: path.clone(),
        affinity: affinity.as_ref().map(|affinity| match affinity {
            Affinity::Persist(session) => AffinityMessage::Persistence(persistence(session)),
            Affinity::Hash(key) => AffinityMessage::Hash(hash(key)),
        }),
        limits: (*limits != Limits::default()).then(|| self::limits(limits)),
    }
}

fn persistence(session: &Persistence) -> PersistenceMessage {
    let Persistence {
        carrier,
        name,
        idle_timeout,
        absolute_timeout,
        permanent,
    } = session;
    // No timeout is longer than the 316 thousand years that the message can hold.
    let duration = |duration: Option<std::time::Duration>| duration.and_then(|one| one.try_into().ok());
    PersistenceMessage {
        carrier: match carrier {
            Carrier::Cookie => CarrierMessage::Cookie,
            Carrier::Header => CarrierMessage::Header,
        }
        .into(),
        name: name.clone(),
        idle_timeout: duration(*idle_timeout),
        absolute_timeout: duration(*absolute_timeout),
        permanent: *permanent,
    }
}

fn hash(key: &HashKey) -> HashMessage {
    let (key, name) = match key {
        HashKey::Source => (HashKeyMessage::Source, String::new()),
        HashKey::Named(Carrier::Cookie, name) => (HashKeyMessage::Cookie, name.clone()),
        HashKey::Named(Carrier::Header, name) => (HashKeyMessage::Header, name.clone()),
    };
    HashMessage {
        key: key.into(),
        name,
    }
}

fn limits(limits: &Limits) -> LimitsMessage {
    let Limits {
        connections,
        requests,
        pending_requests,
        endpoint_connections,
        endpoint_requests,
    } = *limits;
    let number = |limit: Option<NonZeroU32>| limit.map_or(0, NonZeroU32::get);
    LimitsMessage {
        connections: number(connections),
        requests: number(requests),
        pending_requests: number(pending_requests),
        endpoint_connections: number(endpoint_connections),
        endpoint_requests: number(endpoint_requests),
    }
}
