//! Who may do what.

use crate::{
    apps::{serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::{Options, Pod},
    policies::{authz, endpoint, http_rule, identity, outbound_detect, path, server},
};

#[test]
fn requests_are_authorized_by_identity_and_judged_anew_when_the_policy_changes() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, server(vec![authz(Some(&["client"]))]));
    let (client, server_pod) = pair(&network, &script);
    let stranger = Pod::start(&network, &script, "stranger");
    let outside = network.namespace();
    let ask = |pod: &Pod| {
        pod.namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply").status })
    };
    assert_eq!(ask(&client), 200);
    assert_eq!(ask(&stranger), 403);
    let addr = server_pod.addr(8080);
    assert_eq!(
        outside.block_on(move || async move { try_get(addr, "/").await.expect("a reply").status }),
        403
    );
    let (client_id, stranger_id) = (identity("client"), identity("stranger"));
    let denied = [
        ("client_id", stranger_id.as_str()),
        ("srv_name", "web"),
        ("route_name", "default"),
    ];
    assert_eq!(
        server_pod.metric("inbound_http_authz_deny_total", &denied),
        Some(1.0)
    );

    script.set_inbound("server", 8080, server(vec![authz(Some(&["stranger"]))]));
    eventually("the policies change places", || {
        (ask(&client) == 403 && ask(&stranger) == 200).then_some(())
    });
    assert!(
        server_pod
            .metric("inbound_http_authz_deny_total", &[("client_id", &client_id)])
            .is_some()
    );

    // A broken message never opens a port.
    let mut broken = server(vec![authz(None)]);
    broken.protocol = None;
    script.set_inbound("server", 8080, broken);
    eventually("nobody is let in", || {
        (ask(&client) == 403 && ask(&stranger) == 403).then_some(())
    });
}

#[test]
fn a_rate_limit_holds_for_the_whole_proxy() {
    if !can_run() {
        return;
    }
    use linkerd2_proxy_api::inbound::{
        HttpLocalRateLimit, http_local_rate_limit::Limit, proxy_protocol::Kind,
    };
    let (network, script) = (Network::new(), Script::new());
    let mut limited = server(vec![authz(None)]);
    if let Some(Kind::Detect(detect)) = limited.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
        detect.http_local_rate_limit = Some(HttpLocalRateLimit {
            metadata: crate::policies::default_meta("slow"),
            total: None,
            identity: Some(Limit {
                requests_per_second: 1,
            }),
            overrides: Vec::new(),
        });
    }
    script.set_inbound("server", 8080, limited);
    // Two workers; the client's connections are spread over both.
    let (_client, pod) = pair(&network, &script);
    let (outside, addr) = (network.namespace(), pod.addr(8080));
    let (statuses, took) = outside.block_on(move || async move {
        let started = std::time::Instant::now();
        let asked = (0..30).map(|_| async move { try_get(addr, "/").await.expect("a reply").status });
        (futures_util::future::join_all(asked).await, started.elapsed())
    });
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!(
        statuses.iter().all(|status| matches!(status, 200 | 429)),
        "{statuses:?}"
    );
    // One at once, and one more for each second that it took.
    let most = 1 + usize::try_from(took.as_secs()).expect("small");
    assert!((1..=most).contains(&served), "{served} in {took:?}");
    let labels = [("srv_name", "web"), ("ratelimit_scope", "identity")];
    assert!(
        pod.metric("inbound_http_local_ratelimit_total", &labels)
            .is_some()
    );
}

#[test]
fn the_default_policy_holds_without_a_control_plane() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let options = Options {
        env: vec![
            ("INBOUND_DEFAULT_POLICY", "deny".to_owned()),
            // Nothing answers here.
            ("POLICY_SVC_ADDR", "127.0.0.1:1".to_owned()),
        ],
    };
    let denying = Pod::start_with(&network, &script, "server", options);
    serve_http(&denying.namespace, 8080, "server");
    script.set_endpoints(
        &path("web"),
        vec![endpoint(denying.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start(&network, &script, "client");
    let reply = client
        .namespace
        .block_on(|| async { try_get(service(), "/").await.expect("a reply") });
    assert_eq!(reply.status, 403);
    assert_eq!(reply.headers["l5d-proxy-error"], "unauthorized");
    let labels = [("srv_kind", "default"), ("srv_name", "deny")];
    assert_eq!(
        denying.metric("inbound_http_authz_deny_total", &labels),
        Some(1.0)
    );
}
