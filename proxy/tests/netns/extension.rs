//! What the wire's extension asks for: rewrites, mirrors, sessions, hashing, limits.

use std::{collections::BTreeSet, num::NonZeroU32};

use bytes::Bytes;
use heddle_wire::{
    Affinity, Balancer, Carrier, Extension, HashKey, Limits, Mirror, PathRewrite, Persistence, Rewrite,
    RuleExtension,
};
use http::Request;
use http_body_util::Full;

use crate::{
    apps::{Http1, Reply, get, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::Pod,
    policies::{backend, endpoint, http_rule, outbound_detect, path},
};

fn rule() -> RuleExtension {
    RuleExtension::of(0, 0, None)
}

fn extend(script: &Script, rules: Vec<RuleExtension>, balancers: Vec<Balancer>) {
    let policy = outbound_detect("web", http_rule("web"));
    script.set_extended(service(), policy, &Extension { rules, balancers });
}

/// A client pod and three pods behind the service.
fn three(network: &Network, script: &Script) -> (Pod, [Pod; 3]) {
    let names = ["one", "two", "three"];
    let servers = names.map(|name| {
        let pod = Pod::start(network, script, name);
        serve_http(&pod.namespace, 8080, name);
        pod
    });
    let endpoints = servers.iter().zip(names);
    let endpoints = endpoints.map(|(pod, name)| endpoint(pod.namespace.ip, 8080, Some(name), false));
    script.set_endpoints(&path("web"), endpoints.collect());
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    (Pod::start(network, script, "client"), servers)
}

fn ask(client: &Pod, header: Option<(&'static str, String)>) -> Reply {
    client.namespace.block_on(move || async move {
        let mut request = get("/");
        if let Some((name, value)) = header {
            request
                .headers_mut()
                .insert(name, value.parse().expect("a value"));
        }
        let mut connection = Http1::connect(service()).await.expect("connects");
        connection.send(request).await.expect("a reply")
    })
}

#[test]
fn urls_are_rewritten_and_requests_mirrored() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    let shadow = Pod::start(&network, &script, "shadow");
    serve_http(&shadow.namespace, 8080, "shadow");
    script.set_endpoints(
        &path("shadow"),
        vec![endpoint(shadow.namespace.ip, 8080, Some("shadow"), false)],
    );
    let rewritten = RuleExtension {
        rewrite: Some(Rewrite {
            host: Some("new.test".into()),
            path: Some(PathRewrite::Full("/echo".into())),
        }),
        mirrors: vec![Mirror {
            backend: backend("shadow"),
            numerator: 1,
            denominator: NonZeroU32::MIN,
        }],
        ..rule()
    };
    extend(&script, vec![rewritten], Vec::new());
    let reply = client.namespace.block_on(|| async {
        let request = Request::post("/old?a=b")
            .header("host", "web.test")
            .body(Full::new(Bytes::from_static(b"body")))
            .expect("valid");
        let mut connection = Http1::connect(service()).await.expect("connects");
        connection.send(request).await.expect("a reply")
    });
    assert_eq!((reply.status, reply.body.as_str()), (200, "body"), "{reply:?}");
    assert_eq!(reply.headers["seen-host"], "new.test");
    assert_eq!(reply.headers["seen-uri"], "/echo?a=b");
    let copied = [("direction", "inbound"), ("status_code", "200")];
    eventually("the copy with its body, and the copy without", || {
        let one = shadow.metric("response_total", &copied) == Some(1.0);
        one.then_some(())
    });
    ask(&client, None);
    eventually("a request without a body is copied, too", || {
        (shadow.metric("response_total", &copied) == Some(2.0)).then_some(())
    });
    // A mirror that does not answer changes nothing.
    script.set_endpoints(&path("shadow"), Vec::new());
    assert_eq!(ask(&client, None).status, 200);
}

#[test]
fn a_session_stays_with_its_endpoint() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, servers) = three(&network, &script);
    let session = RuleExtension {
        session: Some(Persistence {
            carrier: Carrier::Cookie,
            name: "session".into(),
            idle_timeout: None,
            absolute_timeout: None,
            permanent: false,
        }),
        ..rule()
    };
    extend(&script, vec![session], Vec::new());
    let first = eventually("the policy is known", || {
        let reply = ask(&client, None);
        reply.headers.contains_key("set-cookie").then_some(reply)
    });
    let cookie = first.headers["set-cookie"].to_str().expect("text");
    let cookie = cookie.split(';').next().expect("a pair").to_owned();
    for _ in 0..20 {
        let reply = ask(&client, Some(("cookie", cookie.clone())));
        assert_eq!(reply.body, first.body);
        assert!(!reply.headers.contains_key("set-cookie"), "{reply:?}");
    }
    let others: BTreeSet<_> = (0..40).map(|_| ask(&client, None).body).collect();
    assert!(
        others.len() > 1,
        "without a session requests are spread: {others:?}"
    );
    // Its endpoint goes: the session begins anew with another.
    let names = ["one", "two", "three"];
    let left = servers.iter().zip(names).filter(|(_, name)| *name != first.body);
    let left = left.map(|(pod, name)| endpoint(pod.namespace.ip, 8080, Some(name), false));
    script.set_endpoints(&path("web"), left.collect());
    let moved = eventually("the session moves", || {
        let reply = ask(&client, Some(("cookie", cookie.clone())));
        (reply.body != first.body).then_some(reply)
    });
    assert!(
        moved.status == 200 && moved.headers.contains_key("set-cookie"),
        "{moved:?}"
    );
}

#[test]
fn equal_values_go_to_the_same_endpoint() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _servers) = three(&network, &script);
    let hashed = Balancer {
        path: path("web"),
        affinity: Some(Affinity::Hash(HashKey::Named(Carrier::Header, "x-user".into()))),
        limits: Limits::default(),
    };
    extend(&script, Vec::new(), vec![hashed]);
    let of = |user: &str| ask(&client, Some(("x-user", user.to_owned()))).body;
    eventually("the policy is known", || {
        let all: BTreeSet<_> = (0..12).map(|_| of("alice")).collect();
        (all.len() == 1).then_some(())
    });
    let users: Vec<_> = (0..12).map(|number| format!("user-{number}")).collect();
    let first: Vec<_> = users.iter().map(|user| of(user)).collect();
    let again: Vec<_> = users.iter().map(|user| of(user)).collect();
    assert_eq!(first, again);
    assert!(
        first.iter().collect::<BTreeSet<_>>().len() > 1,
        "all users at one endpoint"
    );
}

/// What becomes of requests that are made at the same time, sorted.
fn at_once(client: &Pod, count: usize) -> Vec<u16> {
    client.namespace.block_on(move || async move {
        let requests = (0..count).map(|_| try_get(service(), "/slow"));
        let mut statuses: Vec<_> = futures_util::future::join_all(requests)
            .await
            .into_iter()
            .map(|reply| reply.expect("a reply").status)
            .collect();
        statuses.sort_unstable();
        statuses
    })
}

#[test]
fn limits_hold_requests_and_connections_back() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let limited = |limits| {
        vec![Balancer {
            path: path("web"),
            affinity: None,
            limits,
        }]
    };
    let one = NonZeroU32::new(1);
    let requests = Limits {
        requests: one,
        pending_requests: one,
        ..Limits::default()
    };
    extend(&script, Vec::new(), limited(requests));
    eventually("one is served, one waits, one is refused", || {
        (at_once(&client, 3) == [200, 200, 503]).then_some(())
    });
    // An unmeshed endpoint gets HTTP/1: a connection for each request under way.
    script.set_endpoints(
        &path("web"),
        vec![endpoint(server.namespace.ip, 8080, None, false)],
    );
    let connections = Limits {
        endpoint_connections: one,
        ..Limits::default()
    };
    extend(&script, Vec::new(), limited(connections));
    let open = [("direction", "outbound"), ("peer", "dst"), ("tls", "no_identity")];
    eventually("both are served over one connection", || {
        let opened = || client.metric("tcp_open_total", &open).unwrap_or(0.0);
        let before = opened();
        let statuses = at_once(&client, 2);
        (statuses == [200, 200] && opened() - before <= 1.0).then_some(())
    });
}
