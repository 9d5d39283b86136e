//! Who is let in: the default policies, networks, names, and limits of requests.

use std::{process::Stdio, sync::Arc, time::Instant};

use heddle_tls::rustls::ClientConfig;
use hyper_util::rt::TokioIo;
use linkerd2_proxy_api::inbound::{
    HttpLocalRateLimit, Identity,
    http_local_rate_limit::{Limit, Override, r#override::ClientIdentities},
    proxy_protocol::Kind,
};

use crate::{
    apps::{connect_tls, get, send_on, serve_greeting, serve_http, try_get},
    can_run,
    control::Script,
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::{
        any_tls, anyone, authz, authz_from, default_meta, identities, identity, opaque_server, server,
    },
    tcp_traffic::converse,
};

/// What a client is answered: unmeshed, or with this TLS. `None`: nothing.
fn ask(from: &Namespace, pod: &Pod, port: u16, tls: Option<&Arc<ClientConfig>>) -> Option<u16> {
    let (addr, tls) = (pod.addr(port), tls.cloned());
    from.block_on(move || async move {
        let reply = match tls {
            None => try_get(addr, "/").await.ok()?,
            Some(config) => {
                let tls = connect_tls(addr, identity("server"), config).await.ok()?;
                send_on(TokioIo::new(tls), false, get("/")).await.ok()?
            }
        };
        Some(reply.status)
    })
}

#[test]
fn each_default_policy_holds_without_a_control_plane() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (inside, outside) = (network.namespace(), network.namespace());
    let meshed = script.client(&identity("client"), false);
    // Unmeshed and meshed from inside the cluster's networks, then from outside.
    for (policy, may) in [
        ("all-unauthenticated", [true, true, true, true]),
        ("all-authenticated", [false, true, false, true]),
        ("cluster-unauthenticated", [true, true, false, false]),
        ("cluster-authenticated", [false, true, false, false]),
        ("deny", [false, false, false, false]),
        ("audit", [true, true, true, true]),
    ] {
        let env = vec![
            ("INBOUND_DEFAULT_POLICY", policy.to_owned()),
            ("POLICY_CLUSTER_NETWORKS", format!("{}/32", inside.ip)),
            // Nothing answers here.
            ("POLICY_SVC_ADDR", "127.0.0.1:1".to_owned()),
        ];
        let pod = Pod::start_with(&network, &script, "server", Options { env });
        serve_http(&pod.namespace, 8080, "server");
        let clients = [
            (&inside, None),
            (&inside, Some(&meshed)),
            (&outside, None),
            (&outside, Some(&meshed)),
        ];
        let statuses = clients.map(|(from, tls)| ask(from, &pod, 8080, tls));
        let expected = may.map(|may| Some(if may { 200 } else { 403 }));
        assert_eq!(statuses, expected, "{policy}");
        let allowed = may.iter().filter(|may| **may).count();
        let labels = [
            ("authz_kind", "default"),
            ("authz_name", policy),
            ("srv_name", policy),
        ];
        let counted: f64 = ["true", "no_identity"]
            .iter()
            .filter_map(|tls| {
                let labels = [&labels[..], &[("tls", *tls)]].concat();
                pod.metric("inbound_http_authz_allow_total", &labels)
            })
            .sum();
        assert!(
            (counted - allowed as f64).abs() < 0.5,
            "{policy}: {counted} of {allowed}"
        );
    }
}

#[test]
fn what_audit_lets_in_is_told_but_not_by_strangers_at_will() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let audited = authz_from(&["0.0.0.0/0"], &[], "audit", anyone());
    script.set_inbound("server", 8080, server(vec![audited.clone()]));
    script.set_inbound("server", 8081, opaque_server(vec![audited]));
    let log = tempfile::NamedTempFile::new().expect("a temporary file");
    let output = [log.reopen().expect("our own file").into(), Stdio::null()];
    let started = Instant::now();
    let pod = Pod::start_logging(&network, &script, "server", output);
    serve_http(&pod.namespace, 8080, "server");
    serve_greeting(&pod.namespace, 8081);
    let (outside, addr) = (network.namespace(), pod.addr(8081));
    let client = format!("client={}", outside.ip);
    for _ in 0..20 {
        assert_eq!(ask(&outside, &pod, 8080, None), Some(200));
        let conversed = outside.block_on(move || async move { converse(addr, b"x").await });
        assert!(conversed.is_ok(), "{conversed:?}");
    }
    let lines = |level: &str| {
        let text = std::fs::read_to_string(log.path()).expect("our own file");
        let told = text
            .lines()
            .filter(|line| line.contains("Allowed by audit") && line.contains(&client));
        told.filter(|line| line.contains(level)).count()
    };
    crate::eventually("all is told to who wants to hear all", || {
        (lines("") >= 40).then_some(())
    });
    // Of each port and each of two workers: one at once, and one more for each second that it took.
    let most = 4 * (1 + usize::try_from(started.elapsed().as_secs()).expect("small"));
    assert!((2..=most).contains(&lines("INFO")), "{} of {most}", lines("INFO"));
}

/// The ports of one pod, each with one way to say who may.
const NETWORK: u16 = 8080;
const SUFFIX: u16 = 8081;
const ANY_TLS: u16 = 8082;

#[test]
fn networks_and_names_mean_what_they_say() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (one, other) = (network.namespace(), network.namespace());
    let except = format!("{}/32", other.ip);
    let all = ["0.0.0.0/0"];
    let authorizations = [
        (
            NETWORK,
            authz_from(&["10.77.0.0/16"], &[&except], "net", anyone()),
        ),
        (
            SUFFIX,
            authz_from(&all, &[], "suffix", identities(&[], &[&["good", "test"]])),
        ),
        (ANY_TLS, authz_from(&all, &[], "tls", any_tls())),
    ];
    for (port, authorization) in authorizations {
        script.set_inbound("server", port, server(vec![authorization]));
    }
    let pod = Pod::start(&network, &script, "server");
    for port in [NETWORK, SUFFIX, ANY_TLS] {
        serve_http(&pod.namespace, port, "server");
    }
    let (named, nobody) = (script.client("a.good.test", false), script.anonymous(false));
    for tls in [None, Some(&named)] {
        assert_eq!(ask(&one, &pod, NETWORK, tls), Some(200));
        assert_eq!(ask(&other, &pod, NETWORK, tls), Some(403), "the exception");
    }
    assert_eq!(ask(&one, &pod, ANY_TLS, None), Some(403));
    for tls in [&named, &nobody] {
        assert_eq!(ask(&one, &pod, ANY_TLS, Some(tls)), Some(200));
    }
    for tls in [None, Some(&nobody)] {
        assert_eq!(ask(&one, &pod, SUFFIX, tls), Some(403), "no name");
    }
    for name in ["a.good.test", "b.a.good.test", "A.Good.TEST"] {
        assert_eq!(
            ask(&one, &pod, SUFFIX, Some(&script.client(name, false))),
            Some(200),
            "{name}"
        );
    }
    for name in [
        "good.test",
        "evil-good.test",
        "a.evil-good.test",
        "evilgood.test",
        "a.goodxtest",
        "a.good.test.evil",
        "good.test.a.evil",
        "a.good.tests",
    ] {
        assert_eq!(
            ask(&one, &pod, SUFFIX, Some(&script.client(name, false))),
            Some(403),
            "{name}"
        );
    }
    // A name with the root's dot is no name of a certificate; whatever it is taken for, it opens nothing to others.
    let dotted = script.client("evil-good.test.", false);
    assert_ne!(ask(&one, &pod, SUFFIX, Some(&dotted)), Some(200));
}

/// Limits of all clients together, and of each.
const TOTAL: u16 = 8080;
const EACH: u16 = 8081;

#[test]
fn rate_limits_hold_in_total_and_by_identity() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let limit = |requests_per_second| Some(Limit { requests_per_second });
    let policy = |limit: HttpLocalRateLimit| {
        let mut limited = server(vec![authz(None)]);
        if let Some(Kind::Detect(detect)) = limited.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
            detect.http_local_rate_limit = Some(limit);
        }
        limited
    };
    let total = HttpLocalRateLimit {
        metadata: default_meta("total"),
        total: limit(1),
        ..Default::default()
    };
    let vip = Override {
        limit: limit(1_000),
        clients: Some(ClientIdentities {
            identities: vec![Identity {
                name: identity("vip"),
            }],
        }),
    };
    let each = HttpLocalRateLimit {
        metadata: default_meta("each"),
        identity: limit(1),
        overrides: vec![vip],
        ..Default::default()
    };
    script.set_inbound("server", TOTAL, policy(total));
    script.set_inbound("server", EACH, policy(each));
    let pod = Pod::start(&network, &script, "server");
    serve_http(&pod.namespace, TOTAL, "server");
    serve_http(&pod.namespace, EACH, "server");
    let outside = network.namespace();
    let config = |account: &str| script.client(&identity(account), false);
    let (vip, one, two) = (config("vip"), config("one"), config("two"));
    let served = |port: u16, clients: &[&Arc<ClientConfig>]| {
        let started = Instant::now();
        let asked = (0..6).flat_map(|_| clients.iter());
        let statuses: Vec<_> = asked
            .map(|tls| ask(&outside, &pod, port, Some(tls)).expect("a reply"))
            .collect();
        assert!(
            statuses.iter().all(|status| matches!(status, 200 | 429)),
            "{statuses:?}"
        );
        let served = statuses.iter().filter(|status| **status == 200).count();
        // One at once, and one more for each second that it took.
        (
            served,
            1 + usize::try_from(started.elapsed().as_secs()).expect("small"),
        )
    };
    let (all, most) = served(TOTAL, &[&one, &two, &vip]);
    assert!((1..=most).contains(&all), "{all} of {most}");
    let (ones, most) = served(EACH, &[&one]);
    assert!((1..=most).contains(&ones), "{ones} of {most}");
    assert!(
        served(EACH, &[&two]).0 >= 1,
        "another client has a limit of its own"
    );
    assert_eq!(served(EACH, &[&vip]).0, 6, "the override");
    for (port, scope) in [(TOTAL, "total"), (EACH, "identity")] {
        let labels = [("srv_port", port.to_string()), ("scope", scope.to_owned())];
        let labels: Vec<_> = labels
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        assert!(
            pod.metric("inbound_http_local_ratelimit_total", &labels)
                .is_some(),
            "{scope}"
        );
    }
}
