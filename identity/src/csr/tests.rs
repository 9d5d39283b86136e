use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SignatureAlgorithm};

use super::*;

const NAME: &str = "web.payments.serviceaccount.identity.linkerd.cluster.local";

fn identity() -> Identity {
    NAME.parse().expect("a name")
}

fn mk_csr(sans: Vec<SanType>, common_name: Option<&str>, algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
    let key = KeyPair::generate_for(algorithm).expect("a key");
    mk_csr_with(sans, common_name, &key)
}

fn mk_csr_with(sans: Vec<SanType>, common_name: Option<&str>, key: &KeyPair) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    if let Some(name) = common_name {
        params.distinguished_name.push(DnType::CommonName, name);
    }
    params.subject_alt_names = sans;
    params.serialize_request(key).expect("a request").der().to_vec()
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(name.try_into().expect("ASCII"))
}

fn p256(sans: Vec<SanType>, common_name: Option<&str>) -> Vec<u8> {
    mk_csr(sans, common_name, &rcgen::PKCS_ECDSA_P256_SHA256)
}

fn mismatch(der: &[u8]) -> MismatchError {
    parse(der)
        .expect("well-formed")
        .for_identity(&identity(), None)
        .expect_err("must be refused")
}

#[test]
fn the_request_that_proxies_send_is_valid() {
    let csr = parse(&p256(vec![dns(NAME)], None))
        .expect("well-formed")
        .for_identity(&identity(), None)
        .expect("valid");
    assert_eq!(csr.identity(), &identity());
    let csr = parse(&p256(vec![dns(NAME)], Some(NAME)))
        .expect("well-formed")
        .for_identity(&identity(), None);
    csr.expect("an equal common name is fine");
}

#[test]
fn keys_of_other_good_kinds_are_taken() {
    for algorithm in [
        &rcgen::PKCS_ECDSA_P384_SHA384,
        &rcgen::PKCS_ED25519,
        &rcgen::PKCS_RSA_SHA256,
    ] {
        let der = mk_csr(vec![dns(NAME)], None, algorithm);
        parse(&der)
            .expect("taken")
            .for_identity(&identity(), None)
            .expect("valid");
    }
}

#[test]
fn weak_and_unusual_keys_are_refused() {
    let der = mk_csr(vec![dns(NAME)], None, &rcgen::PKCS_ECDSA_P521_SHA512);
    assert_eq!(parse(&der).expect_err("P-521 is not taken"), CsrError::Algorithm);
}

#[test]
fn two_names_are_refused() {
    let der = p256(vec![dns(NAME), dns("other.example")], None);
    assert_eq!(
        mismatch(&der),
        MismatchError::DnsNames {
            found: 2,
            expected: identity()
        }
    );
    let der = p256(vec![dns(NAME), dns(NAME)], None);
    assert_eq!(
        mismatch(&der),
        MismatchError::DnsNames {
            found: 2,
            expected: identity()
        }
    );
}

#[test]
fn no_name_is_refused() {
    assert_eq!(
        mismatch(&p256(vec![], None)),
        MismatchError::DnsNames {
            found: 0,
            expected: identity()
        }
    );
    assert_eq!(
        mismatch(&p256(vec![], Some(NAME))),
        MismatchError::DnsNames {
            found: 0,
            expected: identity()
        }
    );
}

#[test]
fn the_name_of_another_is_refused() {
    let found = Text("db.payments.serviceaccount.identity.linkerd.cluster.local".into());
    let der = p256(vec![dns(&found.0)], None);
    assert_eq!(
        mismatch(&der),
        MismatchError::DnsName {
            found,
            expected: identity()
        }
    );
    let der = p256(
        vec![dns("*.payments.serviceaccount.identity.linkerd.cluster.local")],
        None,
    );
    assert!(matches!(mismatch(&der), MismatchError::DnsName { .. }));
}

#[test]
fn names_of_other_kinds_are_refused() {
    let uri = SanType::URI(
        "spiffe://cluster.local/ns/payments/sa/web"
            .try_into()
            .expect("ASCII"),
    );
    let mail = SanType::Rfc822Name("web@example.org".try_into().expect("ASCII"));
    let ip = SanType::IpAddress([127, 0, 0, 1].into());
    for (name, kind) in [(uri, "URI"), (mail, "e-mail"), (ip, "IP address")] {
        assert_eq!(
            mismatch(&p256(vec![dns(NAME), name.clone()], None)),
            MismatchError::OtherName(kind)
        );
        assert_eq!(mismatch(&p256(vec![name], None)), MismatchError::OtherName(kind));
    }
}

#[test]
fn with_spiffe_the_matching_uri_is_taken_and_no_other() {
    let uri = |text: &str| SanType::URI(text.try_into().expect("ASCII"));
    let own: SpiffeId = "spiffe://cluster.local/ns/payments/sa/web"
        .parse()
        .expect("a SPIFFE ID");
    let valid = |sans| {
        parse(&p256(sans, None))
            .expect("well-formed")
            .for_identity(&identity(), Some(own.clone()))
    };
    for sans in [vec![dns(NAME)], vec![dns(NAME), uri(own.as_str())]] {
        assert_eq!(valid(sans).expect("valid").spiffe(), Some(&own));
    }
    for uris in [
        vec![uri("spiffe://cluster.local/ns/payments/sa/db")],
        vec![uri("spiffe://example.org/ns/payments/sa/web")],
        vec![uri("SPIFFE://cluster.local/ns/payments/sa/web")],
        vec![uri("https://cluster.local/")],
        vec![uri(own.as_str()), uri(own.as_str())],
    ] {
        let sans = std::iter::once(dns(NAME)).chain(uris).collect();
        let refused = valid(sans).expect_err("another URI");
        assert!(matches!(refused, MismatchError::Uri { .. }), "{refused}");
    }
    let nameless = valid(vec![uri(own.as_str())]).expect_err("no DNS name");
    assert!(
        matches!(nameless, MismatchError::DnsNames { found: 0, .. }),
        "{nameless}"
    );
}

/// Bytes from anywhere: cut, extended, flipped and random. Nothing may panic, and what is signed cannot be changed; the
/// parser is lenient about the wrapping that is not.
#[test]
fn damaged_requests_never_panic_and_never_ask_for_more() {
    use rand::{Rng as _, SeedableRng as _};
    let good = p256(vec![dns(NAME)], None);
    let asked = parse(&good).expect("well-formed").spki;
    let mut rng = rand::rngs::StdRng::seed_from_u64(7);
    for length in 0..good.len() {
        assert!(parse(&good[..length]).is_err(), "cut to {length}");
    }
    for _ in 0..4_000 {
        let mut bytes = good.clone();
        for _ in 0..rng.random_range(1..4) {
            let place = rng.random_range(0..bytes.len());
            match rng.random_range(0..4) {
                0 => bytes[place] ^= 1 << rng.random_range(0..8),
                1 => bytes[place] = rng.random(),
                2 => drop(bytes.remove(place)),
                _ => bytes.insert(place, rng.random()),
            }
        }
        if bytes != good {
            let valid = parse(&bytes).ok().map(|csr| csr.for_identity(&identity(), None));
            assert!(
                valid.is_none_or(|valid| valid.is_ok_and(|csr| csr.spki == asked)),
                "{bytes:?}"
            );
        }
    }
    for _ in 0..2_000 {
        let bytes: Vec<u8> = (0..rng.random_range(0..600)).map(|_| rng.random()).collect();
        assert!(parse(&bytes).is_err());
    }
}

#[test]
fn another_common_name_is_refused() {
    let der = p256(vec![dns(NAME)], Some("admin"));
    let expected = MismatchError::CommonName {
        found: Text("admin".into()),
        expected: identity(),
    };
    assert_eq!(mismatch(&der), expected);
}

#[test]
fn any_changed_byte_of_what_is_signed_is_noticed() {
    let der = p256(vec![dns(NAME)], None);
    let (_, csr) = X509CertificationRequest::from_der(&der).expect("well-formed");
    let signed = csr.certification_request_info.raw;
    let start = der
        .windows(signed.len())
        .position(|window| window == signed)
        .expect("a part of it");
    for index in start..start + signed.len() {
        let mut changed = der.clone();
        changed[index] ^= 0x01;
        let valid = parse(&changed).is_ok_and(|csr| csr.for_identity(&identity(), None).is_ok());
        assert!(!valid, "byte {index} can be changed");
    }
}

#[test]
fn a_request_signed_by_another_key_is_refused() {
    let (one, two) = (p256(vec![dns(NAME)], None), p256(vec![dns(NAME)], None));
    // Both have the same layout up to the signature, whose length varies by a byte or two.
    let (_, first) = X509CertificationRequest::from_der(&one).expect("well-formed");
    let (_, second) = X509CertificationRequest::from_der(&two).expect("well-formed");
    let mut forged = Vec::new();
    crate::der::nest(&mut forged, crate::der::SEQUENCE, |out| {
        out.extend_from_slice(first.certification_request_info.raw);
        out.extend_from_slice(&[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2]);
        crate::der::bits(out, &second.signature_value.data);
    });
    assert_eq!(
        parse(&forged).expect_err("the signature is another's"),
        CsrError::Signature
    );
}

#[test]
fn what_is_no_request_is_refused() {
    assert_eq!(parse(&[]).expect_err("empty"), CsrError::Empty);
    assert_eq!(
        parse(&vec![0x30; CSR_BYTES_MAX + 1]).expect_err("huge"),
        CsrError::TooLarge(CSR_BYTES_MAX + 1)
    );
    assert_eq!(
        parse(b"-----BEGIN CERTIFICATE REQUEST-----").expect_err("PEM"),
        CsrError::Malformed
    );
    let mut der = p256(vec![dns(NAME)], None);
    der.push(0);
    assert_eq!(parse(&der).expect_err("trailing bytes"), CsrError::Malformed);
    for end in 0..der.len() - 1 {
        assert!(parse(&der[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn text_from_outside_is_escaped_and_short() {
    assert_eq!(Text("a\nb".into()).to_string(), "`a\\nb`");
    assert!(Text("x".repeat(10_000)).to_string().len() < 300);
}

/// Noise, and a good request with noise in it: never a panic, and what is accepted is for the asked name alone.
#[test]
fn fuzz_csr() {
    let good = p256(vec![dns(NAME)], None);
    let identity: Identity = NAME.parse().expect("a name");
    let input = bolero::check!().with_type::<(Vec<u8>, Vec<(u16, u8)>)>();
    input.for_each(|(noise, changes)| {
        let _ = parse(noise);
        let mut der = good.clone();
        for (at, byte) in changes {
            let at = usize::from(*at) % der.len();
            der[at] = *byte;
        }
        if let Ok(valid) = parse(&der).map(|csr| csr.for_identity(&identity, None))
            && let Ok(valid) = valid
        {
            assert_eq!(*valid.identity(), identity);
        }
    });
}

#[test]
fn fuzz_token() {
    use crate::token::Token;
    bolero::check!().for_each(|bytes: &[u8]| {
        if let Ok(token) = Token::parse(bytes) {
            assert!(token.secret().bytes().all(|byte| byte.is_ascii_graphic()) && !token.secret().is_empty());
        }
    });
}
