//! Who endpoints and clients are: SPIFFE IDs, and certificates that are revoked.

use std::{net::SocketAddr, sync::Arc};

use linkerd2_proxy_api::destination::{TlsIdentity, WeightedAddr, tls_identity};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::{Http1, get, serve_greeting, serve_http_with, try_get},
    can_run,
    control::Script,
    eventually,
    http_traffic::service,
    net::Network,
    pod::{Options, Pod},
    policies::{endpoint, http_rule, outbound_detect, outbound_opaque, path},
};

pub(crate) const VM: &str = "spiffe://mesh.test/vm";

/// A workload outside the cluster, which must prove this ID.
pub(crate) fn workload(addr: SocketAddr, id: &str) -> WeightedAddr {
    use tls_identity::{DnsLikeIdentity, Strategy, UriLikeIdentity};
    WeightedAddr {
        tls_identity: Some(TlsIdentity {
            strategy: Some(Strategy::UriLikeIdentity(UriLikeIdentity { uri: id.to_owned() })),
            server_name: Some(DnsLikeIdentity {
                name: "vm.test".to_owned(),
            }),
        }),
        ..endpoint(addr.ip(), addr.port(), None, false)
    }
}

#[test]
fn a_workload_outside_is_verified_by_its_spiffe_id() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let vm = network.namespace();
    let addr = SocketAddr::from((vm.ip, 8080));
    serve_http_with(&vm, addr, "vm", Some(script.workload(VM)));
    script.set_endpoints(&path("web"), vec![workload(addr, VM)]);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start(&network, &script, "client");
    let ask = || {
        client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply") })
    };
    let reply = ask();
    assert_eq!((reply.status, reply.body.as_str()), (200, "vm"), "{reply:?}");
    let labels = [("direction", "outbound"), ("tls", "true"), ("server_id", VM)];
    assert_eq!(client.metric("request_total", &labels), Some(1.0));
    script.set_endpoints(&path("web"), vec![workload(addr, "spiffe://mesh.test/other")]);
    eventually("who proves another ID gets nothing", || {
        (ask().status == 503).then_some(())
    });
}

#[test]
fn a_revoked_certificate_ends_every_connection_of_its_holder() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let options = || Options {
        env: vec![
            ("IDENTITY_REVOCATION", "true".to_owned()),
            ("IDENTITY_REVOCATION_INTERVAL", "200ms".to_owned()),
        ],
    };
    let smtp: SocketAddr = ([10, 96, 0, 2], 25).into();
    let server = Pod::start_with(&network, &script, "server", options());
    crate::apps::serve_http(&server.namespace, 8080, "server");
    serve_greeting(&server.namespace, 8081);
    let ip = server.namespace.ip;
    script.set_endpoints(&path("web"), vec![endpoint(ip, 8080, Some("server"), false)]);
    script.set_endpoints(&path("smtp"), vec![endpoint(ip, 8081, Some("server"), true)]);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    script.set_outbound(smtp, outbound_opaque("smtp"));
    let client = Pod::start_with(&network, &script, "client", options());

    let script_too = Arc::new(script.clone());
    client.namespace.block_on(move || async move {
        assert_eq!(try_get(service(), "/").await.expect("a reply").status, 200);
        // An upgraded connection, and one of bytes.
        let mut connection = Http1::connect(service()).await.expect("connects");
        let mut request = get("/upgrade");
        let headers = request.headers_mut();
        headers.insert("connection", http::HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", http::HeaderValue::from_static("reverse"));
        let response = connection.raw(request).await.expect("a reply");
        let upgraded = hyper::upgrade::on(response).await.expect("upgraded");
        let mut upgraded = hyper_util::rt::TokioIo::new(upgraded);
        upgraded.write_all(b"abcd").await.expect("writes");
        let mut bytes = [0; 4];
        upgraded.read_exact(&mut bytes).await.expect("reads");
        assert_eq!(&bytes, b"dcba");
        let mut greeted = TcpStream::connect(smtp).await.expect("connects");
        greeted.read_exact(&mut [0; 11]).await.expect("a greeting");

        script_too.revoke("server");
        for (what, ended) in [
            ("upgraded", timeout(DEADLINE, upgraded.read(&mut bytes)).await),
            ("bytes", timeout(DEADLINE, greeted.read(&mut bytes)).await),
        ] {
            let read = ended.unwrap_or_else(|_| panic!("{what}: not ended in time"));
            assert!(matches!(read, Ok(0) | Err(_)), "{what}: {read:?}");
        }
    });
    eventually("the pooled connection is not used either", || {
        let status = client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply").status });
        (status == 503).then_some(())
    });
    let ended = [("error", "unauthorized")];
    assert!(
        client
            .metric("outbound_tcp_errors_total", &ended)
            .is_some_and(|count| count >= 3.0)
    );
}

#[test]
fn a_revoked_client_is_cut_off_by_the_server() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    // Only the server looks at revocation here: what ends the connection is its side.
    let options = Options {
        env: vec![
            ("IDENTITY_REVOCATION", "true".to_owned()),
            ("IDENTITY_REVOCATION_INTERVAL", "200ms".to_owned()),
        ],
    };
    let server = Pod::start_with(&network, &script, "server", options);
    crate::apps::serve_http(&server.namespace, 8080, "server");
    let one = endpoint(server.namespace.ip, 8080, Some("server"), false);
    script.set_endpoints(&path("web"), vec![one]);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start(&network, &script, "client");
    let script_too = script.clone();
    client.namespace.block_on(move || async move {
        let mut connection = Http1::connect(service()).await.expect("connects");
        let mut request = get("/upgrade");
        let headers = request.headers_mut();
        headers.insert("connection", http::HeaderValue::from_static("upgrade"));
        headers.insert("upgrade", http::HeaderValue::from_static("reverse"));
        let response = connection.raw(request).await.expect("a reply");
        let upgraded = hyper::upgrade::on(response).await.expect("upgraded");
        let mut upgraded = hyper_util::rt::TokioIo::new(upgraded);
        script_too.revoke("client");
        let read = timeout(DEADLINE, upgraded.read(&mut [0; 4]))
            .await
            .expect("ended in time");
        assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
    });
    let ended = [("error", "unauthorized")];
    eventually("it is counted", || {
        server.metric("inbound_tcp_errors_total", &ended)
    });
    let status = client
        .namespace
        .block_on(|| async { try_get(service(), "/").await.expect("a reply").status });
    assert!(status >= 502, "{status}");
}
