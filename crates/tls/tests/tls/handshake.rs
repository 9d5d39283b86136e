use std::sync::Arc;

use heddle_tls::{
    Identity, Store, peer_identity,
    rustls::{
        CipherSuite, ClientConfig, ClientConnection, Error, NamedGroup, ProtocolVersion, RootCertStore,
        ServerConfig, ServerConnection, pki_types::ServerName,
    },
};

use crate::support::{bundle, credentials, identity, mk_ca, mk_certified, mk_store};

/// A handshake in memory; returns both ends, or the first failure.
pub(crate) fn shake(
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    name: &Identity,
) -> Result<(ServerConnection, ClientConnection), Error> {
    let name = ServerName::try_from(name.as_str().to_owned()).expect("a server name");
    let mut client = ClientConnection::new(client, name)?;
    let mut server = ServerConnection::new(server)?;
    let mut wire = Vec::new();
    for _ in 0..8 {
        client.write_tls(&mut wire).expect("writes to memory");
        let mut sent = wire.as_slice();
        while !sent.is_empty() {
            server.read_tls(&mut sent).expect("reads from memory");
            server.process_new_packets()?;
        }
        wire.clear();
        server.write_tls(&mut wire).expect("writes to memory");
        let mut sent = wire.as_slice();
        while !sent.is_empty() {
            client.read_tls(&mut sent).expect("reads from memory");
            client.process_new_packets()?;
        }
        wire.clear();
        if !client.is_handshaking() && !server.is_handshaking() && !client.wants_write() {
            break;
        }
    }
    Ok((server, client))
}

pub(crate) fn between(server: &Store, client: &Store) -> Result<(ServerConnection, ClientConnection), Error> {
    shake(server.server_config(), client.client_config(), server.name())
}

#[test]
fn peers_see_each_other_by_the_preferred_algorithms() {
    let ca = mk_ca("root");
    let (web, db) = (mk_certified("web", &ca), mk_certified("db", &ca));
    let (server, client) = between(&db, &web).expect("shakes hands");
    assert_eq!(
        server.peer_certificates().and_then(peer_identity),
        Some(identity("web"))
    );
    assert_eq!(
        client.peer_certificates().and_then(peer_identity),
        Some(identity("db"))
    );
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    let suite = client.negotiated_cipher_suite().expect("negotiated").suite();
    assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
    let group = client.negotiated_key_exchange_group().expect("negotiated").name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    assert_eq!(client.tls13_tickets_received(), 0);
}

#[test]
fn sessions_are_never_resumed() {
    let ca = mk_ca("root");
    let (web, db) = (mk_certified("web", &ca), mk_certified("db", &ca));
    for _ in 0..2 {
        let (server, client) = between(&db, &web).expect("shakes hands");
        for kind in [server.handshake_kind(), client.handshake_kind()] {
            assert_eq!(kind, Some(heddle_tls::rustls::HandshakeKind::Full));
        }
    }
}

#[test]
fn without_a_leaf_a_server_refuses_and_a_client_is_nobody() {
    let ca = mk_ca("root");
    let (bare, _) = mk_store("bare", &[&ca]);
    let db = mk_certified("db", &ca);
    between(&bare, &db).expect_err("there is nothing to show");
    let (server, _) = between(&db, &bare).expect("shakes hands");
    assert!(server.peer_certificates().is_none());
}

#[test]
fn a_server_must_have_the_expected_name() {
    let ca = mk_ca("root");
    let (web, db) = (mk_certified("web", &ca), mk_certified("db", &ca));
    let error = shake(db.server_config(), web.client_config(), &identity("cache")).expect_err("another name");
    assert!(matches!(error, Error::InvalidCertificate(_)), "{error:?}");
}

#[test]
fn strangers_are_refused_on_either_side() {
    let (ours, theirs) = (mk_ca("ours"), mk_ca("theirs"));
    let db = mk_certified("db", &ours);
    let stranger = mk_certified("web", &theirs);
    between(&db, &stranger).expect_err("the client does not trust the server");
    // A client that trusts us but shows a stranger's certificate is refused, not taken as nobody.
    let gullible = mk_certified("web", &theirs);
    gullible.set_roots(bundle(&[&ours, &theirs])).expect("taken");
    between(&db, &gullible).expect_err("the server does not trust the client");
}

#[test]
fn tls_1_2_is_refused() {
    let ca = mk_ca("root");
    let db = mk_certified("db", &ca);
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a root");
    let old = ClientConfig::builder_with_provider(Arc::new(
        heddle_tls::rustls::crypto::aws_lc_rs::default_provider(),
    ))
    .with_protocol_versions(&[&heddle_tls::rustls::version::TLS12])
    .expect("TLS 1.2 is compiled in")
    .with_root_certificates(roots)
    .with_no_client_auth();
    shake(db.server_config(), Arc::new(old), db.name()).expect_err("too old");
}

#[test]
fn a_new_leaf_is_used_by_configurations_that_exist() {
    let ca = mk_ca("root");
    let (db, key) = mk_store("db", &[&ca]);
    let config = db.server_config();
    let web = mk_certified("web", &ca);
    shake(config.clone(), web.client_config(), db.name()).expect_err("no leaf yet");
    let mut seen = Vec::new();
    for _ in 0..2 {
        db.set_leaf(credentials(&ca, &key)).expect("taken");
        let (_, client) = shake(config.clone(), web.client_config(), db.name()).expect("shakes hands");
        seen.push(client.peer_certificates().expect("there")[0].clone());
    }
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn new_anchors_are_used_by_connections_from_then_on() {
    let (old, new) = (mk_ca("old"), mk_ca("new"));
    let db = mk_certified("db", &old);
    let web = mk_certified("web", &new);
    between(&db, &web).expect_err("strangers");
    assert!(db.set_roots(bundle(&[&old, &new])).expect("taken"));
    assert!(web.set_roots(bundle(&[&new, &old])).expect("taken"));
    assert!(
        !web.set_roots(bundle(&[&new, &old])).expect("taken"),
        "equal anchors change nothing"
    );
    between(&db, &web).expect("both are trusted");
    assert!(db.set_roots(bundle(&[&new])).expect("taken"));
    assert!(web.set_roots(bundle(&[&new])).expect("taken"));
    between(&db, &web).expect_err("the old root is forgotten");
}
