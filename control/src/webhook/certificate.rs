//! The webhook's serving certificate: made, checked and judged, as pure functions of their input and the time.
//!
//! Each certificate comes with a certificate authority of its own, whose key is forgotten once it has signed: what the
//! API server has to trust is one certificate, not a key that somebody could find. The bundle keeps the authority
//! before it, so that both certificates are trusted while replicas and API servers change over.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    client::{WebPkiServerVerifier, danger::ServerCertVerifier as _},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// A year, as Linkerd's; but renewed by itself.
pub(crate) const LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The API server's clock may be behind.
const BACKDATED: Duration = Duration::from_secs(5 * 60);
/// The newest authority and the one before: older ones have signed nothing that is still served.
const AUTHORITIES_MAX: usize = 2;

/// What the Secret holds, PEM.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Material {
    /// The authorities to trust, the newest first.
    pub(crate) ca_bundle: String,
    /// The serving certificate.
    pub(crate) certificate: String,
    /// Its key.
    pub(crate) key: String,
}

/// A certificate that can be served.
#[derive(Clone, Debug)]
pub(crate) struct Serving {
    /// For the listener.
    pub(crate) config: Arc<ServerConfig>,
    /// What the API server must trust, PEM.
    pub(crate) ca_bundle: String,
    /// When it ends.
    pub(crate) not_after: SystemTime,
    /// When two thirds of its life are over.
    pub(crate) renew_at: SystemTime,
}

/// Why a certificate cannot be made or served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CertificateError {
    #[error("failed to make a certificate")]
    Make(#[source] rcgen::Error),
    #[error("the certificate's time is out of range")]
    Time,
    #[error("`{part}` holds no PEM certificate")]
    NoCertificate { part: &'static str },
    #[error("`{part}` is not PEM")]
    Pem {
        part: &'static str,
        source: rustls::pki_types::pem::Error,
    },
    #[error("`{part}` is not an X.509 certificate: {problem}")]
    X509 { part: &'static str, problem: String },
    #[error("the certificate of `tls.crt` is not valid for {name} under the authorities of `ca.crt`")]
    Untrusted { name: String, source: rustls::Error },
    #[error("`tls.key` and `tls.crt` cannot be used together")]
    Unusable(#[source] rustls::Error),
}

/// Makes a certificate for `names` by a new authority that goes by `authority_name`; `previous` is the bundle that it
/// replaces.
pub(crate) fn issue(
    authority_name: &str,
    names: &[String],
    previous: Option<&str>,
    now: SystemTime,
) -> Result<Material, CertificateError> {
    let make = CertificateError::Make;
    let (not_before, not_after) = (date(now - BACKDATED)?, date(now + LIFETIME)?);
    let subject = |text: String| {
        let mut name = DistinguishedName::new();
        name.push(DnType::CommonName, text);
        name
    };

    let authority_key = KeyPair::generate().map_err(make)?;
    let mut authority = CertificateParams::new(Vec::new()).map_err(make)?;
    // A name of its own keeps verifiers from trying one authority's key on another's signature.
    let since_epoch = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| CertificateError::Time)?;
    authority.distinguished_name = subject(format!("{authority_name} {}", since_epoch.as_secs()));
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    (authority.not_before, authority.not_after) = (not_before, not_after);
    let authority_certificate = authority.self_signed(&authority_key).map_err(make)?;

    let key = KeyPair::generate().map_err(make)?;
    let mut leaf = CertificateParams::new(names.to_vec()).map_err(make)?;
    leaf.distinguished_name = subject(names.first().cloned().unwrap_or_default());
    leaf.is_ca = IsCa::ExplicitNoCa;
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    (leaf.not_before, leaf.not_after) = (not_before, not_after);
    let certificate = leaf
        .signed_by(&key, &Issuer::new(authority, authority_key))
        .map_err(make)?;

    let mut ca_bundle = authority_certificate.pem();
    for kept in previous
        .map(|bundle| still_valid(bundle, now))
        .unwrap_or_default()
    {
        ca_bundle.push_str(&kept);
    }
    Ok(Material {
        ca_bundle,
        certificate: certificate.pem(),
        key: key.serialize_pem(),
    })
}

/// Checks that `material` can be served as each of `names` now.
pub(crate) fn check(
    material: &Material,
    names: &[String],
    now: SystemTime,
) -> Result<Serving, CertificateError> {
    let authorities = certificates("ca.crt", &material.ca_bundle)?;
    let chain = certificates("tls.crt", &material.certificate)?;
    let [leaf, intermediates @ ..] = &chain[..] else {
        return Err(CertificateError::NoCertificate { part: "tls.crt" });
    };
    let key =
        PrivateKeyDer::from_pem_slice(material.key.as_bytes()).map_err(|source| CertificateError::Pem {
            part: "tls.key",
            source,
        })?;

    let mut roots = RootCertStore::empty();
    let untrusted = |name: &str, source| CertificateError::Untrusted {
        name: name.to_owned(),
        source,
    };
    let first = names.first().map_or("", String::as_str);
    for authority in authorities {
        roots.add(authority).map_err(|error| untrusted(first, error))?;
    }
    let since_epoch = now
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| CertificateError::Time)?;
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), heddle_tls::provider())
        .build()
        .map_err(|error| untrusted(first, rustls::Error::General(error.to_string())))?;
    for name in names {
        let server_name = ServerName::try_from(name.as_str()).map_err(|_| {
            untrusted(
                name,
                rustls::Error::General("the name is not a DNS name".to_owned()),
            )
        })?;
        let now = UnixTime::since_unix_epoch(since_epoch);
        verifier
            .verify_server_cert(leaf, intermediates, &server_name, &[], now)
            .map_err(|error| untrusted(name, error))?;
    }

    let (not_before, not_after) = validity("tls.crt", leaf)?;
    let life = not_after.duration_since(not_before).unwrap_or_default();
    let mut config = ServerConfig::builder_with_provider(heddle_tls::provider())
        .with_safe_default_protocol_versions()
        .map_err(CertificateError::Unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(CertificateError::Unusable)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    // API servers keep connections, not tickets.
    config.send_tls13_tickets = 0;
    Ok(Serving {
        config: Arc::new(config),
        ca_bundle: material.ca_bundle.clone(),
        not_after,
        renew_at: not_before + life / 3 * 2,
    })
}

/// The first certificate of a bundle: the authority of the certificate that goes with it.
pub(crate) fn newest_authority(ca_bundle: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::pem_slice_iter(ca_bundle.as_bytes()).next()?.ok()
}

/// Whether `bundle` holds `authority`.
pub(crate) fn trusts(bundle: &[u8], authority: &CertificateDer<'_>) -> bool {
    CertificateDer::pem_slice_iter(bundle)
        .flatten()
        .any(|known| known == *authority)
}

fn still_valid(bundle: &str, now: SystemTime) -> Vec<String> {
    let found = CertificateDer::pem_slice_iter(bundle.as_bytes()).flatten();
    let valid = found.filter(|der| validity("ca.crt", der).is_ok_and(|(_, not_after)| not_after > now));
    valid.take(AUTHORITIES_MAX - 1).map(|der| pem(&der)).collect()
}

fn pem(der: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    const LINE: usize = 64;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = "-----BEGIN CERTIFICATE-----\n".to_owned();
    for line in text.as_bytes().chunks(LINE) {
        pem.extend(line.iter().map(|byte| char::from(*byte)));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}

fn certificates(part: &'static str, text: &str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match found {
        Ok(list) if list.is_empty() => Err(CertificateError::NoCertificate { part }),
        Ok(list) => Ok(list),
        Err(source) => Err(CertificateError::Pem { part, source }),
    }
}

fn validity(
    part: &'static str,
    der: &CertificateDer<'_>,
) -> Result<(SystemTime, SystemTime), CertificateError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|error| CertificateError::X509 {
        part,
        problem: error.to_string(),
    })?;
    let validity = certificate.validity();
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).map_err(|_| CertificateError::Time)?;
        SystemTime::UNIX_EPOCH
            .checked_add(Duration::from_secs(seconds))
            .ok_or(CertificateError::Time)
    };
    Ok((
        time(validity.not_before.timestamp())?,
        time(validity.not_after.timestamp())?,
    ))
}

fn date(time: SystemTime) -> Result<time::OffsetDateTime, CertificateError> {
    let since_epoch = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| CertificateError::Time)?;
    let seconds = i64::try_from(since_epoch.as_secs()).map_err(|_| CertificateError::Time)?;
    time::OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| CertificateError::Time)
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key must not get into logs.
        f.debug_struct("Material")
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "linkerd-proxy-injector.linkerd.svc";

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn mk_material(previous: Option<&str>, now: SystemTime) -> Material {
        issue("test webhook CA", &[NAME.to_owned()], previous, now).expect("can be made")
    }

    fn check(material: &Material, name: &str, now: SystemTime) -> Result<Serving, CertificateError> {
        super::check(material, &[name.to_owned()], now)
    }

    #[test]
    fn what_is_made_can_be_served_until_it_ends() {
        let material = mk_material(None, now());
        let serving = check(&material, NAME, now()).expect("valid");
        assert!(serving.renew_at > now() + LIFETIME / 2 && serving.renew_at < now() + LIFETIME * 3 / 4);
        assert!(matches!(
            check(&material, NAME, now() + LIFETIME + Duration::from_secs(1)),
            Err(CertificateError::Untrusted { .. })
        ));
        assert!(matches!(
            check(&material, "other.linkerd.svc", now()),
            Err(CertificateError::Untrusted { .. })
        ));
    }

    #[test]
    fn a_rotation_keeps_the_authority_before_it_and_no_more() {
        let first = mk_material(None, now());
        let later = now() + LIFETIME / 3 * 2;
        let second = mk_material(Some(&first.ca_bundle), later);
        let authority = newest_authority(&first.ca_bundle).expect("one");
        assert!(trusts(second.ca_bundle.as_bytes(), &authority));
        // Whichever of the two is served, the new bundle trusts it.
        let overlap = Material {
            ca_bundle: second.ca_bundle.clone(),
            ..first.clone()
        };
        check(&overlap, NAME, later).expect("the old certificate under the new bundle");
        check(&second, NAME, later).expect("the new one");

        let third = mk_material(Some(&second.ca_bundle), later + LIFETIME / 3 * 2);
        assert!(
            !trusts(third.ca_bundle.as_bytes(), &authority),
            "two rotations later it is gone"
        );
        assert_eq!(
            certificates("ca.crt", &third.ca_bundle).expect("a bundle").len(),
            2
        );
        let expired = mk_material(Some(&first.ca_bundle), now() + LIFETIME * 2);
        assert_eq!(
            certificates("ca.crt", &expired.ca_bundle)
                .expect("a bundle")
                .len(),
            1
        );
    }

    #[test]
    fn refuses_what_does_not_belong_together() {
        let (one, two) = (mk_material(None, now()), mk_material(None, now()));
        let mixed = Material {
            key: two.key.clone(),
            ..one.clone()
        };
        assert!(matches!(
            check(&mixed, NAME, now()),
            Err(CertificateError::Unusable(_))
        ));
        let mixed = Material {
            ca_bundle: two.ca_bundle.clone(),
            ..one.clone()
        };
        assert!(matches!(
            check(&mixed, NAME, now()),
            Err(CertificateError::Untrusted { .. })
        ));
        for part in [
            "",
            "nonsense",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            check(
                &Material {
                    certificate: part.to_owned(),
                    ..one.clone()
                },
                NAME,
                now(),
            )
            .expect_err("refused");
            check(
                &Material {
                    ca_bundle: part.to_owned(),
                    ..one.clone()
                },
                NAME,
                now(),
            )
            .expect_err("refused");
            check(
                &Material {
                    key: part.to_owned(),
                    ..one.clone()
                },
                NAME,
                now(),
            )
            .expect_err("refused");
        }
    }
}
