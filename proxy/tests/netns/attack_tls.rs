//! Strange TLS: certificates that are many or large, hellos in pieces, names of someone else.

use std::{net::SocketAddr, sync::Arc};

use heddle_tls::rustls::{
    ClientConfig, RootCertStore, SignatureScheme,
    client::ResolvesClientCert,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName},
    sign::CertifiedKey,
};
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, IsCa, Issuer, KeyPair};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsConnector;

use crate::{
    DEADLINE,
    apps::get,
    attack::{Honest, assert_small},
    can_run,
    control::Script,
    http_traffic::{pair, service},
    net::Network,
    policies::{authz, identity, server},
};

/// A chain that leads to nobody, to be sent whatever the server asks for.
#[derive(Debug)]
struct Chain(Arc<CertifiedKey>);

impl ResolvesClientCert for Chain {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// So many certificates, each with so many bytes more than it needs; the leaf claims to be `client`.
fn chain(count: usize, ballast: usize) -> Arc<Chain> {
    let ballast = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![4; ballast]);
    let mut certs = Vec::new();
    let (mut issuer, mut leaf_key): (Option<Issuer<'static, KeyPair>>, Option<KeyPair>) = (None, None);
    for number in 0..count {
        let last = number + 1 == count;
        let names = if last {
            vec![identity("client")]
        } else {
            Vec::new()
        };
        let mut params = CertificateParams::new(names).expect("valid names");
        params.custom_extensions = vec![ballast.clone()];
        if !last {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().expect("a key");
        let cert = match &issuer {
            Some(issuer) => params.signed_by(&key, issuer),
            None => params.self_signed(&key),
        };
        certs.insert(
            0,
            CertificateDer::from(cert.expect("a certificate").der().to_vec()),
        );
        match last {
            true => leaf_key = Some(key),
            false => issuer = Some(Issuer::new(params, key)),
        }
    }
    let der = leaf_key.expect("there is a leaf").serialize_der();
    let provider = heddle_tls::provider();
    let key = provider
        .key_provider
        .load_private_key(PrivateKeyDer::try_from(der).expect("PKCS 8"))
        .expect("our own key");
    Arc::new(Chain(Arc::new(CertifiedKey::new(certs, key))))
}

fn config(script: &Script, chain: Option<Arc<Chain>>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let anchors = script.anchors().as_bytes();
    for cert in heddle_tls::rustls::pki_types::pem::PemObject::pem_slice_iter(anchors) {
        let cert: CertificateDer<'static> = cert.expect("our own root");
        roots.add(cert).expect("our own root");
    }
    let builder = ClientConfig::builder_with_provider(heddle_tls::provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.3")
        .with_root_certificates(roots);
    Arc::new(match chain {
        Some(chain) => builder.with_client_cert_resolver(chain),
        None => builder.with_no_client_auth(),
    })
}

/// Handshakes and sends a request. `None` when there was no reply.
async fn ask(config: Arc<ClientConfig>, addr: SocketAddr, name: String) -> Option<u16> {
    let exchange = async {
        let tcp = TcpStream::connect(addr).await.expect("connects");
        let name = ServerName::try_from(name).expect("a name");
        let tls = TlsConnector::from(config).connect(name, tcp).await.ok()?;
        let io = hyper_util::rt::TokioIo::new(tls);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        tokio::spawn(connection);
        let response = sender.send_request(get("/")).await.ok()?;
        Some(response.status().as_u16())
    };
    timeout(DEADLINE, exchange).await.expect("refused in time")
}

#[test]
fn chains_of_strangers_are_refused_before_they_cost() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, server(vec![authz(Some(&["client"]))]));
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let honest = Honest::start(&client.namespace, service(), 1, "/");
    honest.goes_on(5, "honest clients are answered");
    let (addr, before) = (server.addr(8080), server.memory_kib());
    // Nobody's; more than 5 certificates; more than 16 KiB; more than a handshake message may have.
    for (count, ballast) in [(1, 10), (6, 10), (5, 10_000), (2, 30_000)] {
        let config = config(&script, Some(chain(count, ballast)));
        for _ in 0..20 {
            let config = config.clone();
            let status = outside.block_on(move || ask(config, addr, identity("server")));
            assert_eq!(status, None, "{count} certificates, {ballast} bytes each");
        }
        honest.goes_on(5, "honest clients beside strangers' chains");
    }
    let handshakes = server.metric("inbound_tcp_errors_total", &[("error", "tls handshake")]);
    assert_eq!(handshakes, Some(80.0));
    assert_small(&server, before, "strangers' chains");
    assert_eq!(honest.finish().1, 0);
}

#[test]
fn no_server_name_and_no_lack_of_a_certificate_authorizes() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, server(vec![authz(Some(&["client"]))]));
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let (addr, plain) = (server.addr(8080), config(&script, None));
    // Our own name, but no certificate: the proxy ends the TLS and knows nobody.
    let asked = plain.clone();
    let nobody = outside.block_on(move || ask(asked, addr, identity("server")));
    assert_eq!(nobody, Some(403));
    // Any other name is for the application, which has no TLS; the identity that was asked for says nothing.
    for name in [
        identity("client"),
        "web.test".to_owned(),
        format!("{}.evil.test", identity("server")),
        "127.0.0.1".to_owned(),
    ] {
        let asked = plain.clone();
        assert_eq!(outside.block_on(move || ask(asked, addr, name)), None);
    }
    // A request's host says nothing either.
    let status = outside.block_on(move || async move {
        let tcp = TcpStream::connect(addr).await.expect("connects");
        let io = hyper_util::rt::TokioIo::new(tcp);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.expect("HTTP");
        tokio::spawn(connection);
        let mut request = get("/");
        let headers = request.headers_mut();
        headers.insert("host", identity("client").parse().expect("a host"));
        headers.insert("l5d-client-id", identity("client").parse().expect("a value"));
        sender
            .send_request(request)
            .await
            .expect("a reply")
            .status()
            .as_u16()
    });
    assert_eq!(status, 403);
    assert_eq!(
        server.metric("request_total", &[("direction", "inbound")]),
        None,
        "nothing reached the application"
    );
    drop(client);
}

/// A proxy between a TLS client and the proxy under test, which cuts what the client sends first.
async fn cut_hello(config: Arc<ClientConfig>, addr: SocketAddr, name: String, record: usize) -> Option<u16> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
        .await
        .expect("a port");
    let between = listener.local_addr().expect("it is bound");
    let cutting = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.expect("the client comes");
        let mut server = TcpStream::connect(addr).await.expect("connects");
        server.set_nodelay(true).expect("a socket");
        let mut head = [0; 5];
        client.read_exact(&mut head).await.expect("a record");
        let mut hello = vec![0; u16::from_be_bytes([head[3], head[4]]).into()];
        client.read_exact(&mut hello).await.expect("a hello");
        for piece in hello.chunks(record) {
            let length = u16::try_from(piece.len()).expect("small").to_be_bytes();
            let bytes = [&[22, 3, 1, length[0], length[1]], piece].concat();
            // Each byte in a packet of its own at first.
            if server.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    let status = ask(config, between, name).await;
    cutting.abort();
    status
}

#[test]
fn hellos_in_pieces_are_read_and_stalled_handshakes_end() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = pair(&network, &script);
    let outside = network.namespace();
    let (addr, plain) = (server.addr(8080), config(&script, None));
    for record in [1, 10, 500] {
        let asked = plain.clone();
        let status = outside.block_on(move || cut_hello(asked, addr, identity("server"), record));
        assert_eq!(status, Some(200), "in records of {record}");
    }
    // A whole hello, and then nothing: many at a time.
    let honest = Honest::start(&client.namespace, service(), 1, "/");
    honest.goes_on(5, "honest clients are answered");
    let (before, files) = (server.memory_kib(), server.open_files());
    let stalled = outside.thread(move || {
        crate::net::runtime().block_on(async move {
            let mut config = heddle_tls::rustls::ClientConnection::new(
                plain,
                ServerName::try_from(identity("server")).expect("a name"),
            )
            .expect("a client");
            let mut hello = Vec::new();
            config.write_tls(&mut hello).expect("memory takes all");
            let hello = Arc::new(hello);
            let stalled: Vec<_> = (0..200)
                .map(|_| {
                    let hello = hello.clone();
                    tokio::spawn(async move {
                        let mut tcp = TcpStream::connect(addr).await.expect("connects");
                        tcp.write_all(&hello).await.expect("small");
                        let mut sink = vec![0; 4096];
                        // The server's flight comes, and then the end.
                        let until_closed =
                            async { while tcp.read(&mut sink).await.is_ok_and(|count| count > 0) {} };
                        timeout(DEADLINE, until_closed).await.expect("closed in time");
                    })
                })
                .collect();
            for one in stalled {
                one.await.expect("closed");
            }
        });
    });
    honest.goes_on(50, "honest clients beside stalled handshakes");
    stalled.join().expect("all are closed");
    let timeouts = server.metric("inbound_tcp_errors_total", &[("error", "tls handshake timeout")]);
    assert_eq!(timeouts, Some(200.0));
    crate::eventually("their file descriptors are closed", || {
        (server.open_files() <= files + 10).then_some(())
    });
    assert_small(&server, before, "stalled handshakes");
    assert_eq!(honest.finish().1, 0);
}
