//! Traffic of another cluster that comes in by a gateway.

use std::net::IpAddr;

use linkerd2_proxy_api::destination::{AuthorityOverride, WeightedAddr};

use crate::{
    apps::{self, Reply, serve_greeting},
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair, service},
    net::Network,
    pod::{Options, Pod},
    policies::{
        authz, endpoint, http_rule, identity, opaque_server, outbound_detect, outbound_opaque, path, server,
    },
    tcp_traffic::converse,
};

/// An endpoint of a mirrored service: the gateway, and what to ask it for.
fn mirrored(gateway: &Pod, account: &str, name: &str, opaque: bool) -> WeightedAddr {
    WeightedAddr {
        authority_override: Some(AuthorityOverride {
            authority_override: name.to_owned(),
        }),
        ..endpoint(IpAddr::from(gateway.namespace.ip), 4143, Some(account), opaque)
    }
}

fn ask(pod: &Pod, path: &'static str, headers: &[(&'static str, String)]) -> Reply {
    apps::ask(&pod.namespace, service(), "web-east.test", path, headers)
}

#[test]
fn a_gateway_passes_on_what_the_control_plane_knows_and_nothing_else() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    script.set_named(&path("web"), outbound_detect("web", http_rule("web")));
    let options = Options {
        env: vec![("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.".to_owned())],
    };
    let gateway = Pod::start_with(&network, &script, "gateway", options);
    script.set_outbound(service(), outbound_detect("web-east", http_rule("web-east")));
    let target = |pod: &Pod, account: &str, name: &str| {
        script.set_endpoints(&path("web-east"), vec![mirrored(pod, account, name, false)]);
    };
    target(&gateway, "gateway", &path("web"));
    let reply = eventually("the gateway is used", || {
        let reply = ask(&client, "/", &[]);
        (reply.status == 200 && reply.headers["seen-client-id"] == identity("gateway")).then_some(reply)
    });
    assert_eq!(reply.body, "server");
    assert_eq!(reply.headers["seen-host"], path("web").as_str());
    let forwarded = reply.headers["seen-forwarded"].to_str().expect("text").to_owned();
    assert!(
        forwarded.contains(&format!("by={}", identity("gateway"))),
        "{forwarded}"
    );
    assert!(
        forwarded.contains(&format!("for={}", identity("client"))),
        "{forwarded}"
    );
    let counted = [("direction", "inbound"), ("target_port", "4143")];
    assert!(gateway.metric("request_total", &counted).is_some());

    let looped = ask(&client, "/", &[("forwarded", forwarded)]);
    assert_eq!(looped.status, 508, "{looped:?}");
    target(&gateway, "gateway", "nobody.test.svc.cluster.local:80");
    eventually("an unknown service is not found", || {
        (ask(&client, "/", &[]).status == 404).then_some(())
    });
    // Neither is the gateway a relay to names outside of its suffixes.
    target(&gateway, "gateway", "elsewhere.test:80");
    eventually("another domain is not served", || {
        (ask(&client, "/", &[]).status >= 502).then_some(())
    });
    // Nor is every proxy a gateway.
    let plain = Pod::start(&network, &script, "plain");
    target(&plain, "plain", &path("web"));
    eventually("a sidecar is no gateway", || {
        let reply = ask(&client, "/", &[]);
        (reply.status >= 502).then_some(())
    });

    script.set_inbound("gateway", 4143, server(vec![authz(Some(&["nobody"]))]));
    target(&gateway, "gateway", &path("web"));
    eventually("the gateway's own policy judges its clients", || {
        (ask(&client, "/", &[]).status == 403).then_some(())
    });
}

#[test]
fn a_gateway_passes_on_bytes() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8081, opaque_server(vec![authz(Some(&["gateway"]))]));
    let pod = Pod::start(&network, &script, "server");
    serve_greeting(&pod.namespace, 8081);
    let one = endpoint(pod.namespace.ip, 8081, Some("server"), true);
    script.set_endpoints(&path("smtp"), vec![one]);
    script.set_named(&path("smtp"), outbound_opaque("smtp"));
    let options = Options {
        env: vec![("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.".to_owned())],
    };
    let gateway = Pod::start_with(&network, &script, "gateway", options);
    let one = mirrored(&gateway, "gateway", &path("smtp"), true);
    script.set_endpoints(&path("smtp-east"), vec![one]);
    script.set_outbound(service(), outbound_opaque("smtp-east"));
    let client = Pod::start(&network, &script, "client");
    let echoed = client
        .namespace
        .block_on(|| async { converse(service(), b"MAIL\r\n").await });
    assert_eq!(echoed.expect("no error"), b"MAIL\r\n");
}
