use std::time::{Duration, SystemTime};

use heddle_tls::{
    CHAIN_MAX, CertifyKey, LeafError, LocalCredentials, PeerLeaf, Revocations, Store, peer_identity,
    peer_spiffe_id, revocation::REVOKED_IDENTITIES_OID, rustls::pki_types::CertificateDer,
    store::RevocationRefused,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, RevokedCertParams, SanType, SerialNumber,
};

use crate::{
    handshake::between,
    support::{Ca, DAY, dns, identity, mk_ca, mk_certified, mk_store, sign},
};

pub(crate) fn mk_list(ca: &Ca, serials: &[u8], until: SystemTime) -> Revocations {
    let now = SystemTime::now();
    let revoked = |serial: &u8| RevokedCertParams {
        serial_number: SerialNumber::from(vec![*serial]),
        revocation_time: now.into(),
        reason_code: None,
        invalidity_date: None,
    };
    let params = CertificateRevocationListParams {
        this_update: (now - DAY).into(),
        next_update: until.into(),
        crl_number: SerialNumber::from(1u64),
        issuing_distribution_point: None,
        revoked_certs: serials.iter().map(revoked).collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let list = params.signed_by(ca).expect("a list");
    Revocations::from_pem(list.pem().expect("PEM").as_bytes()).expect("reads")
}

/// A certified store whose leaf has `serial`.
fn mk_numbered(name: &str, ca: &Ca, serial: u8) -> Store {
    let (store, key) = mk_store(name, &[ca]);
    let leaf = sign(ca, key.csr_der(), |params| {
        params.serial_number = Some(SerialNumber::from(vec![serial]));
        params.use_authority_key_identifier_extension = true;
    });
    let leaf = LocalCredentials::new(&key, vec![leaf.into()]).expect("ours");
    store.set_leaf(leaf).expect("trusted");
    store
}

fn later() -> SystemTime {
    SystemTime::now() + DAY
}

#[test]
fn a_revoked_leaf_is_refused_on_either_side_and_others_are_not() {
    let ca = mk_ca("root");
    let (web, db, cache) = (
        mk_numbered("web", &ca, 1),
        mk_numbered("db", &ca, 2),
        mk_numbered("cache", &ca, 3),
    );
    between(&db, &web).expect("nothing is revoked yet");
    for store in [&db, &cache] {
        assert!(store.set_revocations(mk_list(&ca, &[1], later())).expect("taken"));
    }
    let error = between(&db, &web).expect_err("the client is revoked");
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
    let error = between(&web, &db).expect_err("the server is revoked");
    assert!(format!("{error:?}").contains("Revoked"), "{error:?}");
    between(&db, &cache).expect("neither is revoked");
    let leaf = |store: &Store| PeerLeaf::of(store.credentials().expect("a leaf").chain()).expect("readable");
    let lists = db.revocations().borrow().clone();
    assert!(lists.revokes(&leaf(&web)) && !lists.revokes(&leaf(&cache)));
}

#[test]
fn a_list_that_grew_old_denies_everybody_of_its_issuer() {
    let (ca, other) = (mk_ca("root"), mk_ca("other"));
    let (web, db) = (mk_numbered("web", &ca, 1), mk_certified("db", &ca));
    let old = mk_list(&ca, &[], SystemTime::now() - Duration::from_secs(60));
    let refused = db
        .set_revocations(old.clone())
        .expect_err("would cut us off ourselves");
    assert!(matches!(refused, RevocationRefused::Unsound(_)), "{refused}");
    // It was good when it was taken, before there was a leaf, say.
    let (bare, _) = mk_store("bare", &[&ca]);
    bare.set_revocations(old).expect("taken");
    assert!(between(&web, &bare).is_err(), "the server cannot be judged");
    // A list of another issuer says nothing.
    db.set_revocations(mk_list(&other, &[1], later())).expect("taken");
    between(&db, &web).expect("there is no list of this issuer");
}

#[test]
fn a_list_of_a_pretender_is_not_taken() {
    let (ca, pretender) = (mk_ca("root"), mk_ca("root"));
    let db = mk_numbered("db", &ca, 2);
    db.set_revocations(mk_list(&pretender, &[2], later()))
        .map(drop)
        .or_else(|error| match error {
            RevocationRefused::Unsound(_) => Ok(()),
            other => Err(other),
        })
        .expect("refused, or without effect");
    let web = mk_numbered("web", &ca, 1);
    between(&db, &web).expect("the pretender revoked nobody");
}

#[test]
fn a_known_list_is_kept_until_it_is_over() {
    let (old, new) = (mk_ca("old"), mk_ca("new"));
    let now = SystemTime::now();
    let first = mk_list(&old, &[1], later());
    let second = mk_list(&new, &[2], later());
    let leaf = |ca: &Ca, serial| {
        let store = mk_numbered("web", ca, serial);
        PeerLeaf::of(store.credentials().expect("a leaf").chain()).expect("readable")
    };
    let both = second.clone().and_older(&first, now);
    assert!(both.revokes(&leaf(&old, 1)) && both.revokes(&leaf(&new, 2)));
    assert!(
        !both.revokes(&leaf(&new, 1)),
        "serial numbers are each issuer's own"
    );
    let over = second.clone().and_older(&first, later() + DAY);
    assert!(over == second);
    let newer = mk_list(&old, &[], later());
    assert!(
        !newer.clone().and_older(&first, now).revokes(&leaf(&old, 1)),
        "a newer list replaces"
    );
}

#[test]
fn what_is_no_list_is_refused() {
    for text in [
        "",
        "no PEM",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    ] {
        assert!(Revocations::from_pem(text.as_bytes()).is_err(), "{text:?}");
    }
    let ca = mk_ca("root");
    assert!(
        Revocations::from_pem(ca.pem().as_bytes()).is_err(),
        "a certificate is no list"
    );
    assert!(
        Revocations::from_pem(&vec![b'x'; 2 * 1024 * 1024]).is_err(),
        "too long"
    );
    assert_eq!(REVOKED_IDENTITIES_OID[0], 0x69, "an OID under 2.25");
}

/// Issuers in a row, and a leaf of the last.
fn mk_chain(name: &str, issuers: usize) -> (Ca, CertifyKey, Vec<CertificateDer<'static>>) {
    let root = mk_ca("root");
    let key = CertifyKey::generate(&identity(name)).expect("a key");
    let mut chain: Vec<Ca> = Vec::new();
    for number in 0..issuers {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("issuer {number}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pair = KeyPair::generate().expect("a key");
        let parent = chain.last().unwrap_or(&root);
        let issuer = CertifiedIssuer::signed_by(params, pair, parent).expect("an issuer");
        chain.push(issuer);
    }
    let leaf = sign(chain.last().unwrap_or(&root), key.csr_der(), |_| {});
    let mut certs = vec![leaf.into()];
    certs.extend(chain.iter().rev().map(|ca| ca.der().clone()));
    (root, key, certs)
}

#[test]
fn chains_are_bounded() {
    let (root, key, longest) = mk_chain("web", CHAIN_MAX - 1);
    let (web, _) = Store::new(identity("web"), crate::support::bundle(&[&root])).expect("a store");
    web.set_leaf(LocalCredentials::new(&key, longest).expect("ours"))
        .expect("trusted");
    let db = mk_certified("db", &root);
    between(&db, &web).expect("five certificates are taken");

    let (_, key, long) = mk_chain("web", CHAIN_MAX);
    let refused = LocalCredentials::new(&key, long).expect_err("six certificates");
    assert!(matches!(refused, LeafError::Length(6)), "{refused}");
    let (root, key, mut fat) = mk_chain("web", 1);
    let big = sign(&root, key.csr_der(), |params| {
        params.subject_alt_names.extend((0..300).map(|n| {
            let name = format!("{n}.{}", "x".repeat(50));
            SanType::DnsName(name.try_into().expect("ASCII"))
        }));
    });
    fat.push(big.into());
    let refused = LocalCredentials::new(&key, fat).expect_err("too many bytes");
    assert!(matches!(refused, LeafError::Bytes(_)), "{refused}");
}

/// The bound holds against peers that do not hold it themselves.
#[test]
fn a_peers_chain_is_bounded_before_it_is_verified() {
    use heddle_tls::rustls::{ClientConfig, RootCertStore, pki_types::PrivateKeyDer};
    let root = mk_ca("root");
    let db = mk_certified("db", &root);
    let pair = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec![identity("web").to_string()]).expect("parameters");
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&pair, &root).expect("a leaf");
    let mut roots = RootCertStore::empty();
    roots.add(root.der().clone()).expect("a root");
    let shown = |certs: usize| {
        let chain = std::iter::once(leaf.der().clone())
            .chain(std::iter::repeat_n(root.der().clone(), certs - 1))
            .collect();
        let key = PrivateKeyDer::try_from(pair.serialize_der()).expect("a key");
        let config = ClientConfig::builder_with_provider(heddle_tls::provider())
            .with_protocol_versions(&[&heddle_tls::rustls::version::TLS13])
            .expect("TLS 1.3")
            .with_root_certificates(roots.clone())
            .with_client_auth_cert(chain, key)
            .expect("a chain");
        crate::handshake::shake(db.server_config(), config.into(), db.name())
    };
    shown(CHAIN_MAX).expect("five certificates are taken");
    let error = shown(CHAIN_MAX + 1).expect_err("six certificates");
    assert!(error.to_string().contains("6 certificates"), "{error}");
}

#[test]
fn names_that_disagree_are_no_name() {
    let ca = mk_ca("root");
    let key = CertifyKey::generate(&identity("web")).expect("a key");
    let seen = |uris: &[&str]| {
        let leaf = sign(&ca, key.csr_der(), |params| {
            params.subject_alt_names = vec![dns(identity("web").as_str())];
            let uris = uris
                .iter()
                .map(|uri| SanType::URI((*uri).try_into().expect("ASCII")));
            params.subject_alt_names.extend(uris);
        });
        let certs = [CertificateDer::from(leaf)];
        (
            peer_identity(&certs),
            peer_spiffe_id(&certs).map(|id| id.to_string()),
        )
    };
    let own = "spiffe://cluster.local/ns/test/sa/web";
    assert_eq!(seen(&[own]), (Some(identity("web")), Some(own.to_owned())));
    assert_eq!(seen(&[]), (Some(identity("web")), None));
    // Another authority's way to name workloads.
    let vm = "spiffe://root.linkerd.cluster.local/vm-1";
    assert_eq!(seen(&[vm]), (Some(identity("web")), Some(vm.to_owned())));
    let other = "spiffe://cluster.local/ns/test/sa/db";
    assert_eq!(seen(&[other]).0, None);
    assert_eq!(seen(&[own, own]), (None, None));
    assert_eq!(seen(&["https://cluster.local/web"]), (None, None));
}

#[tokio::test]
async fn a_connection_may_be_closed_on_one_side_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let ca = mk_ca("root");
    let (web, db) = (mk_certified("web", &ca), mk_certified("db", &ca));
    let (near, far) = tokio::io::duplex(4096);
    let acceptor = tokio_rustls::TlsAcceptor::from(db.server_config());
    let serve = tokio::spawn(async move {
        let mut tls = acceptor.accept(far).await.expect("shakes hands");
        let mut asked = String::new();
        // Ends with the peer's close_notify, not with the connection.
        tls.read_to_string(&mut asked).await.expect("reads to the end");
        tls.write_all(asked.to_uppercase().as_bytes())
            .await
            .expect("answers");
        tls.shutdown().await.expect("closes");
    });
    let name = db.name().as_str().to_owned().try_into().expect("a server name");
    let connector = tokio_rustls::TlsConnector::from(web.client_config());
    let mut tls = connector.connect(name, near).await.expect("shakes hands");
    tls.write_all(b"ping").await.expect("asks");
    tls.shutdown().await.expect("closes its side");
    let mut answer = String::new();
    tls.read_to_string(&mut answer).await.expect("still reads");
    assert_eq!(answer, "PING");
    serve.await.expect("ends");
}
