use heddle_tls::CHAIN_MAX;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose,
    SignatureAlgorithm,
};
use rustls_pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{
    load::{CERTS_MAX, FILE_BYTES_MAX, subject_key_id},
    *,
};
use crate::csr;

const NAME: &str = "web.payments.serviceaccount.identity.linkerd.cluster.local";
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const VALIDITY: Validity = Validity {
    lifetime: DAY,
    clock_skew: Duration::from_secs(20),
};

type Ca = CertifiedIssuer<'static, KeyPair>;

fn ca_params(name: &str, expires: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, "Heddle");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = (SystemTime::now() - DAY).into();
    params.not_after = expires.into();
    params
}

fn mk_root(name: &str) -> Ca {
    let key = KeyPair::generate().expect("a key");
    Ca::self_signed(ca_params(name, SystemTime::now() + 100 * DAY), key).expect("a root")
}

fn mk_issuer(root: &Ca, params: CertificateParams, algorithm: &'static SignatureAlgorithm) -> Ca {
    Ca::signed_by(params, KeyPair::generate_for(algorithm).expect("a key"), root).expect("an issuer")
}

fn issuer_of(root: &Ca) -> Ca {
    mk_issuer(
        root,
        ca_params("issuer", SystemTime::now() + 10 * DAY),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    )
}

fn write(dir: &Path, crt: &str, key: &str) {
    std::fs::write(dir.join("tls.crt"), crt).expect("writes");
    std::fs::write(dir.join("tls.key"), key).expect("writes");
}

fn load(crt: &str, key: &str) -> Result<Issuer, LoadError> {
    let dir = tempfile::tempdir().expect("a folder");
    write(dir.path(), crt, key);
    Issuer::load(dir.path())
}

fn bundle(root: &Ca) -> TrustBundle {
    TrustBundle::from_pem(&root.pem()).expect("a bundle")
}

fn identity() -> Identity {
    NAME.parse().expect("a name")
}

fn request() -> ValidCsr {
    let key = heddle_tls::CertifyKey::generate(&identity()).expect("a key");
    csr::parse(key.csr_der())
        .expect("well-formed")
        .for_identity(&identity(), None)
        .expect("valid")
}

fn pem(label: &str, der: &[u8]) -> String {
    let body = base64(der);
    format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
}

/// Enough of base64 for a test.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word =
            chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for place in 0..4 {
            let sextet = ALPHABET[(word >> (18 - 6 * place)) as usize & 63];
            text.push(if place <= chunk.len() { sextet as char } else { '=' });
        }
    }
    text
}

#[test]
fn a_leaf_has_the_name_the_usages_and_the_identifiers() {
    let root = mk_root("root");
    let ca = issuer_of(&root);
    let issuer = load(&ca.pem(), &ca.key().serialize_pem()).expect("loads");
    let now = SystemTime::now();
    let issued = issuer.sign(&request(), VALIDITY, now).expect("signs");
    let (rest, leaf) = X509Certificate::from_der(&issued.leaf).expect("parses");
    assert!(rest.is_empty());

    let names = leaf.subject_alternative_name().expect("readable").expect("there");
    assert!(names.critical && leaf.subject().iter().next().is_none());
    assert_eq!(names.value.general_names, [GeneralName::DNSName(NAME)]);
    let usage = leaf.key_usage().expect("readable").expect("there");
    assert!(usage.critical && usage.value.flags == 1, "{:?}", usage.value);
    let extended = leaf.extended_key_usage().expect("readable").expect("there").value;
    assert!(extended.server_auth && extended.client_auth && !extended.any && extended.other.is_empty());
    assert!(!leaf.is_ca());

    let (_, parent) = X509Certificate::from_der(ca.der()).expect("parses");
    assert_eq!(leaf.issuer().as_raw(), parent.subject().as_raw());
    let mut identifiers = 0;
    for extension in leaf.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                identifiers += 1;
                let id = id.key_identifier.as_ref().expect("an identifier").0;
                assert_eq!(id, subject_key_id(&parent));
            }
            ParsedExtension::SubjectKeyIdentifier(id) => {
                identifiers += 1;
                assert_eq!(id.0, key_id(&leaf.public_key().subject_public_key.data));
            }
            _ => {}
        }
    }
    assert_eq!(identifiers, 2);

    let unix = |time: SystemTime| {
        time.duration_since(SystemTime::UNIX_EPOCH)
            .expect("later")
            .as_secs() as i64
    };
    assert_eq!(leaf.validity().not_before.timestamp(), unix(now) - 20);
    assert_eq!(leaf.validity().not_after.timestamp(), unix(now + DAY));
    assert_eq!(unix(issued.expires), unix(now + DAY));
    assert_eq!(issued.chain.to_vec(), [ca.der().clone()]);
}

#[test]
fn a_leaf_carries_its_spiffe_id_when_it_should() {
    let root = mk_root("root");
    let issuer = load(&root.pem(), &root.key().serialize_pem()).expect("loads");
    let spiffe: heddle_mesh::SpiffeId = "spiffe://cluster.local/ns/payments/sa/web"
        .parse()
        .expect("an ID");
    let key = heddle_tls::CertifyKey::generate(&identity()).expect("a key");
    let csr = csr::parse(key.csr_der())
        .expect("well-formed")
        .for_identity(&identity(), Some(spiffe.clone()))
        .expect("valid");
    let issued = issuer.sign(&csr, VALIDITY, SystemTime::now()).expect("signs");
    let (_, leaf) = X509Certificate::from_der(&issued.leaf).expect("parses");
    let names = leaf.subject_alternative_name().expect("readable").expect("there");
    assert_eq!(
        names.value.general_names,
        [GeneralName::DNSName(NAME), GeneralName::URI(spiffe.as_str())]
    );
    let leaf = heddle_tls::LocalCredentials::new(&key, vec![CertificateDer::from(issued.leaf)])
        .expect("still the identity's");
    leaf.verify(&bundle(&root), SystemTime::now())
        .expect("leads to the root");
}

#[test]
fn serials_are_random_and_positive() {
    let root = mk_root("root");
    let ca = issuer_of(&root);
    let issuer = load(&ca.pem(), &ca.key().serialize_pem()).expect("loads");
    let csr = request();
    let mut serials = std::collections::BTreeSet::new();
    for _ in 0..50 {
        let leaf = issuer
            .sign(&csr, VALIDITY, SystemTime::now())
            .expect("signs")
            .leaf;
        let (_, leaf) = X509Certificate::from_der(&leaf).expect("parses");
        assert!(leaf.raw_serial().len() <= 17 && leaf.raw_serial()[0] & 0x80 == 0);
        serials.insert(leaf.raw_serial().to_vec());
    }
    assert_eq!(serials.len(), 50);
}

#[test]
fn a_leaf_never_outlives_the_chain() {
    let root = mk_root("root");
    let expires = SystemTime::now() + Duration::from_secs(3600);
    let middle = mk_issuer(
        &root,
        ca_params("middle", expires),
        &rcgen::PKCS_ECDSA_P256_SHA256,
    );
    let ca = issuer_of(&middle);
    let issuer = load(
        &format!("{}{}", ca.pem(), middle.pem()),
        &ca.key().serialize_pem(),
    )
    .expect("loads");
    let issued = issuer
        .sign(&request(), VALIDITY, SystemTime::now())
        .expect("signs");
    assert!(issued.expires <= expires && issued.expires > expires - Duration::from_secs(2));
    assert_eq!(issued.chain.to_vec(), [ca.der().clone(), middle.der().clone()]);
    issuer
        .check(&bundle(&root), &identity(), SystemTime::now())
        .expect("leads to the root over the middle");

    assert_eq!(
        issuer.sign(&request(), VALIDITY, expires).expect_err("over"),
        SignError::Expired
    );
    let early = SystemTime::now() - 2 * DAY;
    assert_eq!(
        issuer.sign(&request(), VALIDITY, early).expect_err("too early"),
        SignError::NotYetValid
    );
}

#[test]
fn what_it_signs_leads_to_its_root_and_no_other() {
    let (root, other) = (mk_root("root"), mk_root("other"));
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let ca = mk_issuer(&root, ca_params("issuer", SystemTime::now() + DAY), algorithm);
        let issuer = load(&ca.pem(), &ca.key().serialize_pem()).expect("loads");
        issuer
            .check(&bundle(&root), &identity(), SystemTime::now())
            .expect("valid");
        let error = issuer
            .check(&bundle(&other), &identity(), SystemTime::now())
            .expect_err("another root");
        assert!(
            matches!(error, InvalidIssuer::Untrusted(webpki::Error::UnknownIssuer)),
            "{error:?}"
        );
        let error = issuer
            .check(&bundle(&root), &identity(), SystemTime::now() + 2 * DAY)
            .expect_err("expired");
        assert!(
            matches!(error, InvalidIssuer::Sign(SignError::Expired)),
            "{error:?}"
        );
    }
}

#[test]
fn a_self_signed_issuer_is_its_own_root_and_is_not_sent() {
    let root = mk_root("root.linkerd.cluster.local");
    let issuer = load(&root.pem(), &root.key().serialize_pem()).expect("loads");
    issuer
        .check(&bundle(&root), &identity(), SystemTime::now())
        .expect("valid");
    assert!(
        issuer
            .sign(&request(), VALIDITY, SystemTime::now())
            .expect("signs")
            .chain
            .is_empty()
    );
}

#[test]
fn constraints_of_the_chain_are_found_out() {
    let root = mk_root("root");
    let mut params = ca_params("issuer", SystemTime::now() + DAY);
    params.name_constraints = Some(rcgen::NameConstraints {
        permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".into())],
        excluded_subtrees: vec![],
    });
    let ca = mk_issuer(&root, params, &rcgen::PKCS_ECDSA_P256_SHA256);
    let issuer = load(&ca.pem(), &ca.key().serialize_pem()).expect("loads");
    let error = issuer
        .check(&bundle(&root), &identity(), SystemTime::now())
        .expect_err("constrained");
    assert!(
        matches!(
            error,
            InvalidIssuer::Untrusted(webpki::Error::NameConstraintViolation)
        ),
        "{error:?}"
    );
}

#[test]
fn subjects_are_copied_byte_for_byte() {
    // Two organisational units and an e-mail: what a parser that builds names anew would change.
    let root = mk_root("root");
    let mut params = ca_params("Zertifizierungsstelle Köln", SystemTime::now() + DAY);
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, "b");
    params.distinguished_name.push(DnType::CountryName, "DE");
    let ca = mk_issuer(&root, params, &rcgen::PKCS_ECDSA_P256_SHA256);
    let issuer = load(&ca.pem(), &ca.key().serialize_pem()).expect("loads");
    issuer
        .check(&bundle(&root), &identity(), SystemTime::now())
        .expect("valid");
}

#[test]
fn keys_load_from_sec1_as_from_pkcs8() {
    let root = mk_root("root");
    for algorithm in [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let ca = mk_issuer(&root, ca_params("issuer", SystemTime::now() + DAY), algorithm);
        // PKCS #8 wraps SEC 1 in an OCTET STRING: SEQUENCE { INTEGER, SEQUENCE { .. }, OCTET STRING { SEC 1 } .. }
        let pkcs8 = ca.key().serialize_der();
        let (_, outer) = x509_parser::der_parser::der::parse_der_sequence(&pkcs8).expect("PKCS #8");
        let sec1 = outer.as_sequence().expect("a sequence")[2]
            .as_slice()
            .expect("an octet string")
            .to_vec();
        let key = pem("EC PRIVATE KEY", &sec1);
        let issuer = load(&ca.pem(), &key).expect("loads");
        issuer
            .check(&bundle(&root), &identity(), SystemTime::now())
            .expect("valid");
        // openssl writes the curve in a block of its own before the key.
        let key = format!(
            "{}{key}",
            pem("EC PARAMETERS", &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7])
        );
        load(&ca.pem(), &key).expect("loads");
    }
}

#[test]
fn linkerds_older_file_names_are_read() {
    let root = mk_root("root");
    let dir = tempfile::tempdir().expect("a folder");
    std::fs::write(dir.path().join("crt.pem"), root.pem()).expect("writes");
    assert!(matches!(Issuer::load(dir.path()), Err(LoadError::NotFound(_))));
    std::fs::write(dir.path().join("key.pem"), root.key().serialize_pem()).expect("writes");
    Issuer::load(dir.path()).expect("loads");
}

#[test]
fn what_is_no_issuer_is_refused_by_name() {
    let root = mk_root("root");
    let (ca, other) = (issuer_of(&root), issuer_of(&root));
    let (crt, key) = (ca.pem(), ca.key().serialize_pem());
    let refusal = |crt: &str, key: &str| load(crt, key).expect_err("must be refused");

    assert!(matches!(
        refusal("", &key),
        LoadError::Pem {
            expected: "certificates",
            ..
        }
    ));
    assert!(matches!(refusal("hello", &key), LoadError::Pem { .. }));
    assert!(matches!(
        refusal(&crt, ""),
        LoadError::Pem {
            expected: "a private key",
            ..
        }
    ));
    assert!(matches!(
        refusal(&pem("CERTIFICATE", &[0x30, 0]), &key),
        LoadError::Certificate { number: 1, .. }
    ));
    let mixed = format!("{crt}{}", pem("CERTIFICATE", &[1, 2, 3]));
    assert!(matches!(
        refusal(&mixed, &key),
        LoadError::Certificate { number: 2, .. }
    ));
    assert!(matches!(
        refusal(&crt.repeat(CERTS_MAX + 1), &key),
        LoadError::CertsNumber(_)
    ));
    // A leaf comes before them, and peers take five in all.
    assert!(matches!(
        refusal(&crt.repeat(CHAIN_MAX), &key),
        LoadError::ChainLength { certs: 6, .. }
    ));
    assert!(matches!(
        refusal(&crt, &other.key().serialize_pem()),
        LoadError::KeyMismatch { .. }
    ));
    assert!(matches!(
        refusal(&crt, &pem("PRIVATE KEY", &[0x30, 3, 2, 1, 0])),
        LoadError::Key { .. }
    ));
    assert!(matches!(
        refusal(&"x".repeat(FILE_BYTES_MAX as usize + 1), &key),
        LoadError::TooLarge(_)
    ));

    let mut params = ca_params("leaf", SystemTime::now() + DAY);
    params.is_ca = IsCa::NoCa;
    let leaf = mk_issuer(&root, params, &rcgen::PKCS_ECDSA_P256_SHA256);
    assert!(matches!(
        refusal(&leaf.pem(), &leaf.key().serialize_pem()),
        LoadError::NotCa(_)
    ));
    let mut params = ca_params("no signer", SystemTime::now() + DAY);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let leaf = mk_issuer(&root, params, &rcgen::PKCS_ECDSA_P256_SHA256);
    assert!(matches!(
        refusal(&leaf.pem(), &leaf.key().serialize_pem()),
        LoadError::NotCa(_)
    ));
    let rsa = mk_issuer(
        &root,
        ca_params("rsa", SystemTime::now() + DAY),
        &rcgen::PKCS_RSA_SHA256,
    );
    let error = refusal(&rsa.pem(), &rsa.key().serialize_pem());
    assert!(matches!(error, LoadError::KeyKind(_)), "{error:?}");
    assert!(error.to_string().contains("ECDSA on P-256 or P-384"), "{error}");
}

#[test]
fn a_leaf_carries_the_requested_key() {
    let root = mk_root("root");
    let issuer = load(&root.pem(), &root.key().serialize_pem()).expect("loads");
    let key = heddle_tls::CertifyKey::generate(&identity()).expect("a key");
    let csr = csr::parse(key.csr_der())
        .expect("well-formed")
        .for_identity(&identity(), None)
        .expect("valid");
    let leaf = issuer
        .sign(&csr, VALIDITY, SystemTime::now())
        .expect("signs")
        .leaf;
    let leaf = heddle_tls::LocalCredentials::new(&key, vec![CertificateDer::from(leaf)])
        .expect("belongs to the key");
    leaf.verify(&bundle(&root), SystemTime::now())
        .expect("leads to the root");
    let other = heddle_tls::CertifyKey::generate(&identity()).expect("a key");
    heddle_tls::LocalCredentials::new(&other, leaf.chain().to_vec()).expect_err("for another key");
}
