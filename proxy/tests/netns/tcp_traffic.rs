//! Connections of bytes between pods.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::{
    DEADLINE,
    apps::serve_greeting,
    can_run,
    control::Script,
    eventually,
    http_traffic::service,
    net::Network,
    pod::Pod,
    policies::{
        authz, endpoint, http_rule, identity, opaque_server, outbound_detect, outbound_opaque, outbound_tls,
        path,
    },
};

const PORT: u16 = 8081;

fn pair(network: &Network, script: &Script) -> (Pod, Pod) {
    script.set_inbound("server", PORT, opaque_server(vec![authz(Some(&["client"]))]));
    let server = Pod::start(network, script, "server");
    serve_greeting(&server.namespace, PORT);
    script.set_endpoints(
        &path("smtp"),
        vec![endpoint(server.namespace.ip, PORT, Some("server"), true)],
    );
    script.set_outbound(service(), outbound_opaque("smtp"));
    let client = Pod::start(network, script, "client");
    (client, server)
}

/// Reads the greeting, sends, ends, and reads what comes back.
pub(crate) async fn converse(addr: SocketAddr, text: &[u8]) -> std::io::Result<Vec<u8>> {
    let conversation = async {
        let mut tcp = TcpStream::connect(addr).await?;
        let mut greeting = [0; 11];
        tcp.read_exact(&mut greeting).await?;
        assert_eq!(&greeting, b"220 hello\r\n");
        tcp.write_all(text).await?;
        tcp.shutdown().await?;
        let mut echoed = Vec::new();
        tcp.read_to_end(&mut echoed).await?;
        Ok(echoed)
    };
    timeout(DEADLINE, conversation).await.expect("in time")
}

#[test]
fn a_server_that_speaks_first_is_reached_over_mutual_tls() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let text = vec![b'x'; 1_000_000];
    let echoed = {
        let text = text.clone();
        client.namespace.block_on(move || async move {
            // The client's writing half ends while the server still answers.
            let mut tcp = TcpStream::connect(service()).await.expect("connects");
            let (mut read, mut write) = tcp.split();
            let mut greeting = [0; 11];
            read.read_exact(&mut greeting).await.expect("a greeting");
            let mut echoed = Vec::new();
            let both = async {
                tokio::try_join!(
                    async {
                        write.write_all(&text).await?;
                        write.shutdown().await
                    },
                    read.read_to_end(&mut echoed)
                )
            };
            timeout(DEADLINE, both).await.expect("in time").expect("no error");
            echoed
        })
    };
    assert_eq!(echoed.len(), text.len());
    let (client_id, server_id) = (identity("client"), identity("server"));
    let outbound = [
        ("direction", "outbound"),
        ("peer", "dst"),
        ("tls", "true"),
        ("server_id", server_id.as_str()),
    ];
    assert_eq!(client.metric("tcp_open_total", &outbound), Some(1.0));
    let inbound = [
        ("direction", "inbound"),
        ("peer", "src"),
        ("tls", "true"),
        ("client_id", client_id.as_str()),
    ];
    assert_eq!(server.metric("tcp_open_total", &inbound), Some(1.0));
    eventually("the connection is counted as closed", || {
        (server.metric("tcp_open_connections", &inbound) == Some(0.0)).then_some(())
    });
    assert!(
        server
            .metric("tcp_read_bytes_total", &inbound)
            .is_some_and(|bytes| bytes >= 1e6)
    );
    assert_eq!(
        server.metric("inbound_tcp_authz_allow_total", &[("client_id", &client_id)]),
        Some(1.0)
    );
}

#[test]
fn a_client_that_waits_is_opaque_after_the_detection_timeout() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    // Nobody has said that the port is opaque.
    let mut endpoint = endpoint(server.namespace.ip, PORT, Some("server"), false);
    endpoint.protocol_hint = None;
    script.set_endpoints(&path("smtp"), vec![endpoint]);
    script.set_inbound("server", PORT, crate::policies::server_for_everyone());
    let mut policy = outbound_detect("smtp", http_rule("smtp"));
    if let Some(linkerd2_proxy_api::outbound::proxy_protocol::Kind::Detect(detect)) = policy
        .protocol
        .as_mut()
        .and_then(|protocol| protocol.kind.as_mut())
    {
        detect.timeout = Some(prost_types::Duration {
            seconds: 0,
            nanos: 200_000_000,
        });
    }
    script.set_outbound(service(), policy);
    let echoed = client
        .namespace
        .block_on(|| async { converse(service(), b"MAIL\r\n").await.expect("no error") });
    assert_eq!(echoed, b"MAIL\r\n");
    let server_id = identity("server");
    assert_eq!(
        client.metric("tcp_open_total", &[("peer", "dst"), ("server_id", &server_id)]),
        Some(1.0)
    );
}

#[test]
fn connections_are_refused_and_ended_by_policy() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let addr = server.addr(PORT);
    let refused = outside.block_on(move || async move { converse(addr, b"x").await });
    assert!(refused.is_err(), "an unmeshed client was served: {refused:?}");
    assert!(
        server
            .metric("inbound_tcp_authz_deny_total", &[("tls", "no_identity")])
            .is_some()
    );

    let script_too = script.clone();
    let ended = client.namespace.block_on(move || async move {
        let mut tcp = TcpStream::connect(service()).await.expect("connects");
        let mut greeting = [0; 11];
        tcp.read_exact(&mut greeting).await.expect("a greeting");
        script_too.set_inbound("server", PORT, opaque_server(vec![authz(Some(&["nobody"]))]));
        let mut rest = Vec::new();
        timeout(DEADLINE, tcp.read_to_end(&mut rest))
            .await
            .expect("ended in time")
            .map(|_| rest)
    });
    assert!(ended.as_ref().map_or(true, Vec::is_empty), "{ended:?}");
    assert_eq!(
        server.metric("inbound_tcp_authz_terminate_total", &[("srv_name", "web")]),
        Some(1.0)
    );
}

/// What a TLS client sends first.
pub(crate) fn client_hello(name: &'static str) -> Vec<u8> {
    use heddle_tls::rustls::{ClientConfig, ClientConnection, RootCertStore, pki_types::ServerName};
    let config = ClientConfig::builder_with_provider(heddle_tls::provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name).expect("a name");
    let mut connection = ClientConnection::new(config.into(), name).expect("valid");
    let mut hello = Vec::new();
    connection.write_tls(&mut hello).expect("memory");
    hello
}

#[test]
fn tls_goes_by_its_server_name() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let pods = ["one", "two"].map(|name| {
        script.set_inbound(name, PORT, opaque_server(vec![authz(None)]));
        let pod = Pod::start(&network, &script, name);
        serve_greeting(&pod.namespace, PORT);
        let endpoint = endpoint(pod.namespace.ip, PORT, Some(name), true);
        script.set_endpoints(&path(name), vec![endpoint]);
        pod
    });
    script.set_outbound(
        service(),
        outbound_tls(&[("one.test", "one"), ("two.test", "two")]),
    );
    let client = Pod::start(&network, &script, "client");
    // The application says hello first; what it hears, and that its hello arrives whole, is the server's affair.
    let hello = |name: &'static str| {
        client.namespace.block_on(move || async move {
            let exchange = async {
                let mut tcp = TcpStream::connect(service()).await?;
                let hello = client_hello(name);
                tcp.write_all(&hello).await?;
                let mut greeting = [0; 11];
                tcp.read_exact(&mut greeting).await?;
                let mut echoed = vec![0; hello.len()];
                tcp.read_exact(&mut echoed).await?;
                std::io::Result::Ok(echoed == hello)
            };
            timeout(DEADLINE, exchange).await.expect("in time")
        })
    };
    let opened = |pod: &Pod| {
        let labels = [("direction", "inbound"), ("peer", "src"), ("tls", "true")];
        pod.metric("tcp_open_total", &labels).unwrap_or(0.0)
    };
    assert!(hello("two.test").expect("a reply"));
    assert!(hello("TWO.test").expect("a reply"), "names have no case");
    assert_eq!((opened(&pods[0]), opened(&pods[1])), (0.0, 2.0));
    assert!(hello("one.test").expect("a reply"));
    assert_eq!((opened(&pods[0]), opened(&pods[1])), (1.0, 2.0));
    assert!(hello("three.test").is_err(), "no route, no connection");
}
