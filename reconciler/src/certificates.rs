//! Reads certificates for `heddle check`: whether they are valid, for how long, and who signed them. Pure.

use base64::Engine as _;
use serde_json::Value;
use time::OffsetDateTime;
use x509_parser::{certificate::X509Certificate, pem::Pem};

use crate::object;

/// Linkerd warns so long before an anchor ends.
const WARNING: time::Duration = time::Duration::days(60);

/// The certificates of a PEM text, as DER.
///
/// # Errors
/// A text that holds none, or something else.
pub fn parse(pem: &str) -> Result<Vec<Vec<u8>>, String> {
    let mut found = Vec::new();
    for block in Pem::iter_from_buffer(pem.as_bytes()) {
        let block = block.map_err(|error| format!("it is not PEM: {error}"))?;
        if block.label == "CERTIFICATE" {
            read(&block.contents)?;
            found.push(block.contents);
        }
    }
    if found.is_empty() {
        Err("it holds no certificate".to_owned())
    } else {
        Ok(found)
    }
}

fn read(der: &[u8]) -> Result<X509Certificate<'_>, String> {
    x509_parser::parse_x509_certificate(der)
        .map(|(_, certificate)| certificate)
        .map_err(|error| format!("a certificate is not understood: {error}"))
}

/// Checks the validity of all certificates; a warning when one ends soon.
///
/// # Errors
/// One that is not valid now.
pub fn judge(certificates: &[Vec<u8>], now: OffsetDateTime) -> Result<Option<String>, String> {
    let mut warning = None;
    for der in certificates {
        let certificate = read(der)?;
        let (subject, validity) = (certificate.subject().to_string(), certificate.validity());
        let (begin, end) = (
            validity.not_before.to_datetime(),
            validity.not_after.to_datetime(),
        );
        if now < begin {
            return Err(format!("{subject} is not valid before {begin}"));
        }
        if now >= end {
            return Err(format!("{subject} has expired on {end}"));
        }
        if end - now < WARNING {
            warning = Some(format!("{subject} expires on {end}"));
        }
    }
    Ok(warning)
}

/// Whether the first certificate of a chain is signed by one of the anchors, or by an intermediate that is.
///
/// # Errors
/// Nobody's signature, or an algorithm that is not checked here.
pub fn signed_by(chain: &[Vec<u8>], anchors: &[Vec<u8>]) -> Result<(), String> {
    let mut at = read(chain.first().ok_or("the chain is empty")?)?;
    for _ in 0..=chain.len() {
        let mut failure = None;
        for anchor in anchors {
            let anchor = read(anchor)?;
            if anchor.subject() == at.issuer() {
                match verify(&at, &anchor) {
                    Ok(()) => return Ok(()),
                    Err(error) => failure = Some(error),
                }
            }
        }
        let parent = chain
            .iter()
            .filter_map(|der| read(der).ok())
            .find(|parent| parent.subject() == at.issuer() && parent.subject() != at.subject());
        match parent {
            Some(parent) => {
                verify(&at, &parent)?;
                at = parent;
            }
            None => {
                return Err(failure.unwrap_or_else(|| {
                    format!(
                        "{} is issued by {}, which is no trust anchor",
                        at.subject(),
                        at.issuer()
                    )
                }));
            }
        }
    }
    Err("the chain goes in a circle".to_owned())
}

fn verify(certificate: &X509Certificate<'_>, by: &X509Certificate<'_>) -> Result<(), String> {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
        VerificationAlgorithm,
    };
    let oid = certificate.signature_algorithm.algorithm.to_id_string();
    let algorithm: &'static dyn VerificationAlgorithm = match oid.as_str() {
        "1.2.840.10045.4.3.2" => &ECDSA_P256_SHA256_ASN1,
        "1.2.840.10045.4.3.3" => &ECDSA_P384_SHA384_ASN1,
        "1.2.840.113549.1.1.11" => &RSA_PKCS1_2048_8192_SHA256,
        _ => {
            return Err(format!(
                "{} is signed with {oid}, which is not understood",
                certificate.subject()
            ));
        }
    };
    UnparsedPublicKey::new(algorithm, by.public_key().subject_public_key.data.as_ref())
        .verify(
            certificate.tbs_certificate.as_ref(),
            certificate.signature_value.data.as_ref(),
        )
        .map_err(|_| {
            format!(
                "the signature on {} is not by {}'s key",
                certificate.subject(),
                by.subject()
            )
        })
}

/// A text in a Secret's data.
pub fn secret_text(secret: &Value, key: &str) -> Option<String> {
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(object::text_at(secret, &["data", key])?)
        .ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::make;

    #[test]
    fn our_own_issuer_is_signed_by_our_anchor_and_by_no_other() {
        let now = OffsetDateTime::from_unix_timestamp(1_790_000_000).unwrap();
        let (ours, other) = (
            make("a.b", "linkerd", now).unwrap(),
            make("a.b", "linkerd", now).unwrap(),
        );
        let issuer = parse(&ours.issuer_pem).unwrap();
        assert_eq!(signed_by(&issuer, &parse(&ours.anchor_pem).unwrap()), Ok(()));
        let error = signed_by(&issuer, &parse(&other.anchor_pem).unwrap()).unwrap_err();
        assert!(error.contains("is not by"), "{error}");
        assert_eq!(judge(&issuer, now), Ok(None));
        assert!(judge(&issuer, now - time::Duration::days(1)).is_err());
        assert!(
            judge(&issuer, now + time::Duration::days(3600))
                .unwrap()
                .is_some()
        );
        assert!(
            judge(&issuer, now + time::Duration::days(4000))
                .unwrap_err()
                .contains("expired")
        );
    }
}
