//! The admin server: what it tells strangers, and what only the pod itself.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::Full;

use crate::{
    apps::{Http1, Reply},
    can_run,
    control::Script,
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::{endpoint, outbound_opaque, path},
};

/// Asks the admin server from a namespace.
fn ask(from: &Namespace, addr: SocketAddr, method: Method, path: &str, body: &str) -> Reply {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "admin");
    let body = Bytes::copy_from_slice(body.as_bytes());
    let request = request.body(Full::new(body)).expect("valid");
    from.block_on(move || async move {
        let mut connection = Http1::connect(addr).await.expect("connects");
        connection.send(request).await.expect("a reply")
    })
}

#[test]
fn the_admin_server_tells_strangers_nothing_and_obeys_only_the_pod() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let options = Options {
        env: vec![("SHUTDOWN_ENDPOINT_ENABLED", "true".to_owned())],
    };
    let mut pod = Pod::start_with(&network, &script, "server", options);
    let client = Pod::start(&network, &script, "client");
    let outside = network.namespace();
    let (local, remote) = (SocketAddr::from(([127, 0, 0, 1], 4191)), pod.addr(4191));
    for path in ["/live", "/ready", "/metrics"] {
        assert_eq!(ask(&outside, remote, Method::GET, path, "").status, 200, "{path}");
        assert_eq!(
            ask(&outside, remote, Method::POST, path, "").status,
            405,
            "{path}"
        );
    }
    let own = [
        (Method::GET, "/proxy-log-level"),
        (Method::PUT, "/proxy-log-level"),
        (Method::POST, "/shutdown"),
        (Method::GET, "/env.json"),
    ];
    for (method, path) in &own {
        let reply = ask(&outside, remote, method.clone(), path, "debug");
        assert_eq!(reply.status, 403, "{method} {path}");
    }
    // Who keeps connections open and says nothing keeps no probe out.
    let idle = outside.block_on(move || async move {
        let mut idle = Vec::new();
        for _ in 0..200 {
            let tcp = tokio::net::TcpStream::connect(remote).await.expect("connects");
            idle.push(tcp.into_std().expect("a socket"));
        }
        idle
    });
    assert_eq!(ask(&outside, remote, Method::GET, "/ready", "").status, 200);
    drop(idle);
    // Nor may a meshed peer by way of the proxy itself.
    let through: SocketAddr = ([10, 96, 0, 3], 4191).into();
    let admin = endpoint(pod.namespace.ip, 4191, Some("server"), true);
    script.set_endpoints(&path("admin"), vec![admin]);
    script.set_outbound(through, outbound_opaque("admin"));
    assert_eq!(
        ask(&client.namespace, through, Method::GET, "/ready", "").status,
        200
    );
    for (method, path) in &own {
        let reply = ask(&client.namespace, through, method.clone(), path, "debug");
        assert_eq!(reply.status, 403, "{method} {path}");
    }

    let level = || ask(&pod.namespace, local, Method::GET, "/proxy-log-level", "").body;
    let set = |filter: &str| ask(&pod.namespace, local, Method::PUT, "/proxy-log-level", filter).status;
    assert_eq!(set("warn,linkerd=debug"), 204);
    assert!(level().contains("heddle=debug"), "{}", level());
    let before = level();
    for wrong in ["linkerd=[", "\u{0}", "a=b=c"] {
        assert_eq!(set(wrong), 400, "{wrong:?}");
    }
    assert_eq!(level(), before, "what is wrong changes nothing");
    let env = ask(&pod.namespace, local, Method::GET, "/env.json", "");
    let env: serde_json::Value = serde_json::from_str(&env.body).expect("JSON");
    assert_eq!(env["LINKERD2_PROXY_POLICY_WORKLOAD"], "server");
    assert_eq!(
        ask(&pod.namespace, local, Method::GET, "/shutdown", "").status,
        405
    );
    assert_eq!(
        ask(&client.namespace, local, Method::POST, "/shutdown", "").status,
        404,
        "not enabled"
    );
    assert_eq!(
        ask(&pod.namespace, local, Method::GET, "/nothing", "").status,
        404
    );
    assert_eq!(
        ask(&pod.namespace, local, Method::POST, "/shutdown", "").status,
        200
    );
    assert_eq!(pod.exit_code(), Some(0));
}
