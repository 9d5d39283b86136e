use std::time::{Duration, SystemTime};

use heddle_tls::{
    CertifyKey, LeafError, LocalCredentials, TrustBundle, TrustError, peer_identity, roots::RootsFile,
};
use rcgen::SanType;
use tokio::time::timeout;

use crate::support::{DAY, DEADLINE, bundle, credentials, dns, identity, mk_ca, mk_store, sign};

#[test]
fn bundles_are_taken_whole_or_not_at_all() {
    let (one, two) = (mk_ca("one"), mk_ca("two"));
    let both = bundle(&[&one, &two]);
    assert_eq!(both.certs(), [one.der().clone(), two.der().clone()]);
    assert_eq!(bundle(&[&one, &two, &one]), both);
    // Keys and remarks between the certificates are passed over.
    let text = format!("# roots\n{}{}", one.pem(), one.key().serialize_pem());
    assert_eq!(TrustBundle::from_pem(&text).expect("a bundle"), bundle(&[&one]));

    assert!(matches!(TrustBundle::from_pem(""), Err(TrustError::Empty)));
    assert!(matches!(
        TrustBundle::from_pem(&one.key().serialize_pem()),
        Err(TrustError::Empty)
    ));
    let cut = format!("{}-----BEGIN CERTIFICATE-----\nAAAA\n", one.pem());
    assert!(matches!(
        TrustBundle::from_pem(&cut),
        Err(TrustError::Pem { number: 2, .. })
    ));
    let wrong = format!(
        "{}-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        one.pem()
    );
    assert!(matches!(
        TrustBundle::from_pem(&wrong),
        Err(TrustError::Certificate { number: 2, .. })
    ));
    assert!(matches!(
        TrustBundle::from_pem(&"x".repeat(2 << 20)),
        Err(TrustError::TooLarge(_))
    ));
}

#[test]
fn the_request_has_one_name_and_no_subject() {
    let key = CertifyKey::generate(&identity("web")).expect("a key");
    let csr =
        rcgen::CertificateSigningRequestParams::from_der(&key.csr_der().into()).expect("a signed request");
    assert_eq!(csr.params.subject_alt_names, [dns(identity("web").as_str())]);
    assert!(csr.params.distinguished_name.iter().next().is_none());
    assert!(!format!("{key:?}").contains("PrivateKey"));
}

#[test]
fn only_the_single_dns_name_is_an_identity() {
    let ca = mk_ca("root");
    let key = CertifyKey::generate(&identity("web")).expect("a key");
    let seen = |names: Vec<SanType>| {
        let leaf = sign(&ca, key.csr_der(), |params| params.subject_alt_names = names);
        peer_identity(&[leaf.into()])
    };
    let uri = SanType::URI("spiffe://x/y".try_into().expect("ASCII"));
    assert_eq!(seen(vec![dns("Web.example")]), "web.example".parse().ok());
    assert_eq!(seen(vec![dns("a.example"), dns("b.example")]), None);
    assert_eq!(seen(vec![uri.clone()]), None);
    assert_eq!(seen(vec![uri, dns("a.example")]), "a.example".parse().ok());
    assert_eq!(seen(vec![dns("*.example")]), None);
    assert_eq!(seen(vec![]), None);
    assert_eq!(peer_identity(&[]), None);
    assert_eq!(peer_identity(&[vec![0x30, 0].into()]), None);
}

#[test]
fn a_leaf_that_peers_would_refuse_is_not_taken() {
    let (ca, other) = (mk_ca("root"), mk_ca("other"));
    let (store, key) = mk_store("web", &[&ca]);
    store.set_leaf(credentials(&ca, &key)).expect("taken");
    let held = store.credentials().expect("a leaf").chain().to_vec();

    assert!(matches!(
        store.set_leaf(credentials(&other, &key)),
        Err(LeafError::Untrusted { .. })
    ));
    let (_, stranger) = mk_store("db", &[&ca]);
    assert!(matches!(
        store.set_leaf(credentials(&ca, &stranger)),
        Err(LeafError::Name { .. })
    ));
    let expired = sign(&ca, key.csr_der(), |params| {
        params.not_before = (SystemTime::now() - 2 * DAY).into();
        params.not_after = (SystemTime::now() - DAY).into();
    });
    let expired = LocalCredentials::new(&key, vec![expired.into()]).expect("well-formed");
    assert!(matches!(
        store.set_leaf(expired),
        Err(LeafError::Untrusted { .. })
    ));
    let one_sided = sign(&ca, key.csr_der(), |params| {
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    });
    let one_sided = LocalCredentials::new(&key, vec![one_sided.into()]).expect("well-formed");
    assert!(matches!(
        store.set_leaf(one_sided),
        Err(LeafError::Untrusted { .. })
    ));
    assert_eq!(store.credentials().expect("a leaf").chain(), held);
}

#[test]
fn what_is_no_leaf_of_ours_is_refused() {
    let ca = mk_ca("root");
    let key = CertifyKey::generate(&identity("web")).expect("a key");
    let other = CertifyKey::generate(&identity("web")).expect("a key");
    let refusal = |chain: Vec<Vec<u8>>| {
        LocalCredentials::new(&key, chain.into_iter().map(Into::into).collect()).expect_err("refused")
    };
    let good = sign(&ca, key.csr_der(), |_| {});
    assert!(matches!(refusal(vec![]), LeafError::Length(0)));
    assert!(matches!(refusal(vec![good.clone(); 9]), LeafError::Length(9)));
    assert!(matches!(refusal(vec![vec![1, 2, 3]]), LeafError::Malformed));
    let mut longer = good;
    longer.push(0);
    assert!(matches!(refusal(vec![longer]), LeafError::Malformed));
    let named = sign(&ca, key.csr_der(), |params| {
        params.subject_alt_names = vec![dns("db.example")]
    });
    assert!(matches!(refusal(vec![named]), LeafError::Name { .. }));
    assert!(matches!(
        refusal(vec![sign(&ca, other.csr_der(), |_| {})]),
        LeafError::Key { .. }
    ));
}

#[tokio::test]
async fn anchors_follow_their_file_and_survive_a_broken_one() {
    let (one, two) = (mk_ca("one"), mk_ca("two"));
    let (store, _) = mk_store("web", &[&one]);
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ca-bundle.crt");
    std::fs::write(&path, "garbage").expect("writes");
    let following = RootsFile::new(&path)
        .poll_interval(Duration::from_millis(20))
        .run(store.clone());
    let following = tokio::spawn(following);
    let mut generation = store.roots_generation();
    assert!(
        timeout(Duration::from_millis(200), generation.changed())
            .await
            .is_err()
    );
    assert_eq!(store.roots(), bundle(&[&one]));
    std::fs::write(&path, format!("{}{}", one.pem(), two.pem())).expect("writes");
    timeout(DEADLINE, generation.changed())
        .await
        .expect("in time")
        .expect("lives");
    assert_eq!(store.roots().certs().len(), 2);
    following.abort();
}

#[tokio::test]
async fn a_file_is_read_before_anything_is_waited_for_and_may_come_late() {
    let (one, two) = (mk_ca("one"), mk_ca("two"));
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ca-bundle.crt");
    std::fs::write(&path, two.pem()).expect("writes");
    let (store, _) = mk_store("web", &[&one]);
    let file = RootsFile::new(&path).poll_interval(Duration::from_secs(3600));
    let following = tokio::spawn(file.run(store.clone()));
    tokio::task::yield_now().await;
    assert_eq!(store.roots(), bundle(&[&two]));
    following.abort();

    std::fs::remove_file(&path).expect("it is there");
    let (store, _) = mk_store("web", &[&one]);
    let file = RootsFile::new(&path).optional();
    let following = tokio::spawn(file.poll_interval(Duration::from_millis(20)).run(store.clone()));
    tokio::task::yield_now().await;
    assert_eq!(store.roots(), bundle(&[&one]));
    let mut generation = store.roots_generation();
    std::fs::write(&path, two.pem()).expect("writes");
    timeout(DEADLINE, generation.changed())
        .await
        .expect("in time")
        .expect("lives");
    assert_eq!(store.roots(), bundle(&[&two]));
    following.abort();
}
