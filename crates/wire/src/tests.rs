//! Round trips, readers that know nothing of the extension, and what is refused.

use std::{num::NonZeroU32, time::Duration};

use linkerd2_proxy_api::{
    http_route::ResponseHeaderModifier,
    outbound::{Backend, GrpcRoute, HttpRoute, ProxyProtocol, grpc_route, http_route, proxy_protocol},
};

use super::*;
use crate::message::{
    BalancerMessage, ExtensionMessage, GrpcMatchMessage, HashMessage, MirrorMessage, PathMessage,
    PersistenceMessage, RewriteMessage, RuleMessage,
};

fn policy(kind: proxy_protocol::Kind) -> OutboundPolicy {
    OutboundPolicy {
        protocol: Some(ProxyProtocol { kind: Some(kind) }),
        metadata: None,
    }
}

/// One route with two rules, each with one backend.
fn http() -> OutboundPolicy {
    use http_route::{Distribution, RouteBackend, Rule, distribution};
    let first = distribution::FirstAvailable {
        backends: vec![RouteBackend::default()],
    };
    let rule = Rule {
        backends: Some(Distribution {
            kind: Some(distribution::Kind::FirstAvailable(first)),
        }),
        ..Rule::default()
    };
    let route = HttpRoute {
        rules: vec![rule.clone(), rule],
        ..HttpRoute::default()
    };
    policy(proxy_protocol::Kind::Http1(proxy_protocol::Http1 {
        routes: vec![route],
        failure_accrual: None,
    }))
}

/// One route with one rule, without backends, with one match.
fn grpc() -> OutboundPolicy {
    let rule = grpc_route::Rule {
        matches: vec![Default::default()],
        ..grpc_route::Rule::default()
    };
    let route = GrpcRoute {
        rules: vec![rule],
        ..GrpcRoute::default()
    };
    policy(proxy_protocol::Kind::Grpc(proxy_protocol::Grpc {
        routes: vec![route],
        failure_accrual: None,
    }))
}

fn session() -> Persistence {
    Persistence {
        carrier: Carrier::Cookie,
        name: "session".into(),
        idle_timeout: Some(Duration::from_secs(60)),
        absolute_timeout: Some(Duration::from_secs(3600)),
        permanent: true,
    }
}

fn full() -> Extension {
    let mirror = Mirror {
        backend: Backend::default(),
        numerator: 1,
        denominator: NonZeroU32::new(100).expect("not zero"),
    };
    let rule = RuleExtension {
        rewrite: Some(Rewrite {
            host: Some("example.com".into()),
            path: Some(PathRewrite::Prefix("/v2".into())),
        }),
        mirrors: vec![mirror],
        session: Some(session()),
        ..RuleExtension::of(0, 1, None)
    };
    let backend = RuleExtension {
        rewrite: Some(Rewrite {
            host: None,
            path: Some(PathRewrite::Full("/".into())),
        }),
        ..RuleExtension::of(0, 1, Some(0))
    };
    let limits = Limits {
        connections: NonZeroU32::new(10),
        pending_requests: NonZeroU32::new(1),
        ..Limits::default()
    };
    let balancer = |path: &str, affinity| Balancer {
        path: path.into(),
        affinity,
        limits,
    };
    Extension {
        rules: vec![rule, backend],
        balancers: vec![
            balancer("a", Some(Affinity::Persist(session()))),
            balancer("b", Some(Affinity::Hash(HashKey::Source))),
            balancer(
                "c",
                Some(Affinity::Hash(HashKey::Named(Carrier::Header, "x-user".into()))),
            ),
            balancer("d", None),
        ],
    }
}

#[test]
fn what_is_written_is_read() {
    assert_eq!(
        decode_policy(encode_policy(&http(), &full())),
        Ok((http(), full()))
    );
    let of_grpc = Extension {
        rules: vec![RuleExtension {
            response_headers: Some(ResponseHeaderModifier {
                remove: vec!["server".into()],
                ..ResponseHeaderModifier::default()
            }),
            grpc_matches: vec![GrpcMatchRegex {
                index: 0,
                service: Some("a.*".into()),
                method: None,
            }],
            ..RuleExtension::of(0, 0, None)
        }],
        ..Extension::default()
    };
    assert_eq!(
        decode_policy(encode_policy(&grpc(), &of_grpc)),
        Ok((grpc(), of_grpc))
    );
}

#[test]
fn other_proxies_skip_the_extension() {
    let bytes = encode_policy(&http(), &full());
    assert_eq!(OutboundPolicy::decode(bytes), Ok(http()));
}

#[test]
fn other_control_planes_send_none_and_an_empty_one_costs_nothing() {
    let plain = http().encode_to_vec();
    assert_eq!(
        decode_policy(plain.as_slice()),
        Ok((http(), Extension::default()))
    );
    assert_eq!(encode_policy(&http(), &Extension::default()), plain);
}

/// Protobuf merges messages that are written one after the other, so the extension may be appended to cached bytes.
#[test]
fn the_extension_may_follow_the_policys_bytes() {
    let extension = encode_policy(&OutboundPolicy::default(), &full());
    let bytes = [http().encode_to_vec().as_slice(), &extension].concat();
    assert_eq!(decode_policy(bytes.as_slice()), Ok((http(), full())));
}

#[test]
fn lookups_find_what_is_meant() {
    let extension = full();
    let host = |backend| {
        let rewrite = extension.rule(0, 1, backend)?.rewrite.as_ref()?;
        Some(rewrite.host.is_some())
    };
    assert_eq!((host(None), host(Some(0))), (Some(true), Some(false)));
    assert_eq!(extension.rule(0, 0, None), None);
    assert!(extension.balancer("d").is_some() && extension.balancer("e").is_none());
}

fn rule(change: impl FnOnce(&mut RuleMessage)) -> ExtensionMessage {
    let mut rule = RuleMessage::default();
    change(&mut rule);
    ExtensionMessage {
        rules: vec![rule],
        balancers: vec![],
    }
}

fn balancer(change: impl FnOnce(&mut BalancerMessage)) -> ExtensionMessage {
    let mut balancer = BalancerMessage {
        path: "p".into(),
        ..BalancerMessage::default()
    };
    change(&mut balancer);
    ExtensionMessage {
        rules: vec![],
        balancers: vec![balancer],
    }
}

fn rewrite(host: Option<&str>, path: Option<PathMessage>) -> ExtensionMessage {
    rule(|rule| {
        rule.rewrite = Some(RewriteMessage {
            host: host.map(Into::into),
            path,
        });
    })
}

fn mirror(numerator: u32, denominator: u32, backend: Option<Backend>) -> ExtensionMessage {
    rule(|rule| {
        rule.mirrors = vec![MirrorMessage {
            backend,
            numerator,
            denominator,
        }];
    })
}

fn persistence(change: impl FnOnce(&mut PersistenceMessage)) -> ExtensionMessage {
    let mut session = PersistenceMessage {
        name: "s".into(),
        ..PersistenceMessage::default()
    };
    change(&mut session);
    rule(|rule| rule.session = Some(session))
}

fn hash(key: i32, name: &str) -> ExtensionMessage {
    balancer(|one| {
        one.affinity = Some(message::AffinityMessage::Hash(HashMessage {
            key,
            name: name.into(),
        }));
    })
}

fn refused(policy: &OutboundPolicy, extension: ExtensionMessage) -> bool {
    decode::extension(extension, policy).is_err()
}

#[test]
fn nothing_is_believed_unchecked() {
    let zero = prost_types::Duration::default();
    let negative = prost_types::Duration {
        seconds: -1,
        nanos: 0,
    };
    let bad = [
        ("route", rule(|rule| rule.route = 1)),
        ("route", rule(|rule| rule.route = u32::MAX)),
        ("rule", rule(|rule| rule.rule = 2)),
        ("backend", rule(|rule| rule.backend = Some(1))),
        (
            "gRPC on HTTP",
            rule(|rule| rule.response_headers = Some(Default::default())),
        ),
        (
            "gRPC on HTTP",
            rule(|rule| rule.grpc_matches = vec![Default::default()]),
        ),
        ("session of a backend", {
            let mut extension = persistence(|_| {});
            extension.rules[0].backend = Some(0);
            extension
        }),
        (
            "twice",
            ExtensionMessage {
                rules: vec![RuleMessage::default(); 2],
                balancers: vec![],
            },
        ),
        ("host", rewrite(Some(""), None)),
        ("host", rewrite(Some("a b"), None)),
        ("host", rewrite(Some("a:80"), None)),
        ("host", rewrite(Some(&"a".repeat(3000)), None)),
        ("path", rewrite(None, Some(PathMessage::Full("v2".into())))),
        ("path", rewrite(None, Some(PathMessage::Prefix("/v2?x".into())))),
        ("path", rewrite(None, Some(PathMessage::Prefix("/\n".into())))),
        ("share", mirror(2, 1, Some(Backend::default()))),
        ("share", mirror(0, 0, Some(Backend::default()))),
        ("mirror's backend", mirror(1, 1, None)),
        (
            "mirrors",
            rule(|rule| rule.mirrors = vec![MirrorMessage::default(); 17]),
        ),
        ("name", persistence(|session| session.name = "a b".into())),
        ("carrier", persistence(|session| session.carrier = 7)),
        (
            "timeout",
            persistence(|session| session.idle_timeout = Some(zero)),
        ),
        (
            "timeout",
            persistence(|session| session.absolute_timeout = Some(negative)),
        ),
        ("permanent", persistence(|session| session.permanent = true)),
        ("balancer", balancer(|one| one.path = String::new())),
        ("hash", hash(9, "x")),
        ("hash", hash(1, "")),
        ("balancers", {
            let mut extension = balancer(|_| {});
            extension.balancers = vec![extension.balancers[0].clone(); 2];
            extension
        }),
        ("too many", {
            let mut extension = balancer(|_| {});
            extension.balancers = vec![extension.balancers[0].clone(); 5000];
            extension
        }),
    ];
    for (what, extension) in bad {
        assert!(refused(&http(), extension.clone()), "{what}: {extension:?}");
    }
    let matches = |index| {
        rule(|rule| {
            rule.grpc_matches = vec![GrpcMatchMessage {
                index,
                service: Some("a".into()),
                method: None,
            }];
        })
    };
    assert!(refused(&grpc(), matches(1)), "no such match");
    assert!(!refused(&grpc(), matches(0)));
    assert!(refused(&OutboundPolicy::default(), matches(0)), "no policy");
}

#[test]
fn noise_is_an_error_and_no_panic() {
    let good = encode_policy(&http(), &full()).to_vec();
    for at in 0..good.len() {
        for byte in [0, 0x7f, 0xff, good[at].wrapping_add(1)] {
            let mut bytes = good.clone();
            bytes[at] = byte;
            if let Ok((policy, extension)) = decode_policy(bytes.as_slice()) {
                assert_eq!(
                    decode_policy(encode_policy(&policy, &extension)),
                    Ok((policy, extension))
                );
            }
            let _ = decode_policy(&good[..at]);
        }
    }
}

#[test]
fn fuzz_policy_message() {
    let good = encode_policy(&http(), &full()).to_vec();
    let input = bolero::check!().with_type::<(Vec<u8>, Vec<(u16, u8)>)>();
    input.for_each(|(noise, changes)| {
        let _ = decode_policy(noise.as_slice());
        let mut bytes = good.clone();
        for (at, byte) in changes {
            let at = usize::from(*at) % bytes.len();
            bytes[at] = *byte;
        }
        if let Ok((policy, extension)) = decode_policy(bytes.as_slice()) {
            assert_eq!(
                decode_policy(encode_policy(&policy, &extension)),
                Ok((policy, extension))
            );
        }
    });
}
