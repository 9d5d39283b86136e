//! Servers that prove a SPIFFE ID, and are asked for by another name.

use std::{sync::Arc, time::SystemTime};

use heddle_tls::{
    PeerId, Store, peer_id, peer_identity, provider,
    rustls::{
        Error, ServerConfig,
        pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    },
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, SanType, SerialNumber};

use crate::{
    handshake::shake,
    revocation::mk_list,
    support::{Ca, DAY, dns, identity, mk_ca, mk_certified},
};

fn id(text: &str) -> PeerId {
    text.parse().expect("an ID")
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

/// What SPIRE, say, gives a virtual machine.
fn server(ca: &Ca, names: Vec<SanType>) -> Arc<ServerConfig> {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = names;
    params.serial_number = Some(SerialNumber::from(vec![7]));
    params.use_authority_key_identifier_extension = true;
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = (SystemTime::now() + DAY).into();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let cert = params.signed_by(&key, ca).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key);
    Arc::new(config.expect("they belong together"))
}

fn connect(client: &Store, server: Arc<ServerConfig>, expected: &str) -> Result<Option<PeerId>, Error> {
    let config = Arc::new(client.client_config_for(id(expected)));
    let (_, client) = shake(server, config, &identity("vm"))?;
    Ok(client.peer_certificates().and_then(peer_id))
}

#[test]
fn a_server_is_verified_by_its_spiffe_id() {
    let (ca, other) = (mk_ca("root"), mk_ca("other"));
    let web = mk_certified("web", &ca);
    let vm = "spiffe://mesh.test/vm";
    let seen = connect(&web, server(&ca, vec![uri(vm)]), vm).expect("it is the one");
    assert_eq!(seen, Some(id(vm)));
    for (names, why) in [
        (vec![uri("spiffe://mesh.test/other")], "another workload"),
        (vec![uri("spiffe://other.test/vm")], "another trust domain"),
        (vec![uri(vm), uri("spiffe://mesh.test/b")], "two IDs are none"),
        (vec![dns(identity("vm").as_str())], "a DNS name is no SPIFFE ID"),
        (vec![uri(vm), dns("vm.test")], "a DNS name comes first"),
    ] {
        assert!(connect(&web, server(&ca, names), vm).is_err(), "{why}");
    }
    assert!(
        connect(&web, server(&other, vec![uri(vm)]), vm).is_err(),
        "another root"
    );
}

#[test]
fn a_revoked_spiffe_certificate_is_refused() {
    let ca = mk_ca("root");
    let web = mk_certified("web", &ca);
    let vm = "spiffe://mesh.test/vm";
    let config = server(&ca, vec![uri(vm)]);
    connect(&web, config.clone(), vm).expect("nothing is revoked");
    web.set_revocations(mk_list(&ca, &[7], SystemTime::now() + DAY))
        .expect("taken");
    let error = connect(&web, config, vm).expect_err("revoked");
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
}

#[test]
fn a_dns_identity_holds_whatever_the_server_is_asked_for() {
    let ca = mk_ca("root");
    let (web, db) = (mk_certified("web", &ca), mk_certified("db", &ca));
    let shake = |expected: &str| {
        let config = Arc::new(web.client_config_for(identity(expected).into()));
        shake(db.server_config(), config, &identity("somebody"))
            .map(|(_, client)| client.peer_certificates().and_then(peer_identity))
    };
    assert_eq!(shake("db").expect("the one"), Some(identity("db")));
    assert!(shake("somebody").is_err());
}
