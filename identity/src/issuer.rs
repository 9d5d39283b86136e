//! The issuer: its certificate, its chain and its key; signs leaves, and lists of revoked ones ([`list`]).
//!
//! Issuers have ECDSA keys on P-256 or P-384, as Linkerd's have; others are refused by name when they are loaded
//! ([`load`]).

pub mod list;
pub mod load;

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::AsDer,
    rand::{SecureRandom, SystemRandom},
    signature::{EcdsaKeyPair, KeyPair},
};
use heddle_mesh::{Identity, SpiffeId};
use heddle_tls::TrustBundle;
use rustls_pki_types::{CertificateDer, UnixTime};
use time::OffsetDateTime;

pub use load::{IssuerFiles, LoadError};

use crate::{
    csr::{KeyId, ValidCsr, key_id},
    der,
};

/// A leaf that is over before its owner can use it helps nobody.
const LIFE_MIN: Duration = Duration::from_secs(5);

const SUBJECT_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 14];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 15];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 17];
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 35];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 37];
const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

/// An issuer that can sign: certificate and key belong together.
pub struct Issuer {
    key: EcdsaKeyPair,
    /// AlgorithmIdentifier of its signatures.
    algorithm: &'static [u8],
    /// The subject's very bytes: every leaf's issuer.
    subject: Vec<u8>,
    key_id: Vec<u8>,
    /// What goes with a leaf: the issuer and what follows it, without self-signed certificates, which peers have as
    /// anchors or do not trust.
    chain: Arc<[CertificateDer<'static>]>,
    /// All certificates of the file: with the key, what makes two issuers equal.
    certs: Vec<CertificateDer<'static>>,
    /// Whether its certificate lets it sign revocation lists.
    signs_lists: bool,
    not_before: SystemTime,
    /// The earliest end among the chain's certificates.
    expires: SystemTime,
    rng: SystemRandom,
}

/// How long leaves are valid.
#[derive(Clone, Copy, Debug)]
pub struct Validity {
    /// From now on.
    pub lifetime: Duration,
    /// Leaves begin this much before now, for peers whose clocks are late.
    pub clock_skew: Duration,
}

/// A signed leaf.
#[derive(Debug)]
pub struct Issued {
    /// The leaf's serial number, big-endian without leading zeros: what a revocation names.
    pub serial: Vec<u8>,
    /// DER.
    pub leaf: Vec<u8>,
    /// What leads from the leaf to the anchors, nearest first.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// When the leaf ends to be valid.
    pub expires: SystemTime,
}

/// Why an issuer that was loaded must not be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidIssuer {
    /// It cannot sign a certificate for the identity service itself.
    #[error("it cannot sign a certificate")]
    Sign(#[from] SignError),
    /// What it signs is not valid for peers.
    #[error("certificates that it signs do not lead to the trust anchors")]
    Untrusted(#[source] webpki::Error),
}

/// Why a leaf was not signed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The issuer's chain is over, or nearly so.
    #[error("the issuer's certificate or its chain has expired")]
    Expired,
    /// The issuer's certificate is not valid yet.
    #[error("the issuer's certificate is not valid yet")]
    NotYetValid,
    /// The issuer's certificate does not let it sign revocation lists.
    #[error("the issuer's certificate does not have the usage `crl sign`")]
    NotForLists,
    /// A point in time that a certificate cannot hold.
    #[error("the time cannot be written in a certificate")]
    Time,
    /// No randomness, or the library refuses to sign.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl Issuer {
    /// Reads, parses and checks an issuer's files.
    ///
    /// # Errors
    /// They are no issuer's.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        IssuerFiles::read(dir)?.parse()
    }

    /// When the first certificate of the chain ends to be valid.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Whether both have the same certificates; then the keys are the same too.
    pub fn same(&self, other: &Self) -> bool {
        self.certs == other.certs
    }

    /// Checks what peers will: signs a leaf for `own` and verifies it with the trust anchors, as a server's and as a
    /// client's. So constraints of names, usages and path lengths anywhere in the chain are found out.
    ///
    /// # Errors
    /// Peers would refuse leaves of this issuer.
    pub fn check(&self, roots: &TrustBundle, own: &Identity, now: SystemTime) -> Result<(), InvalidIssuer> {
        // The leaf has the issuer's own public key, and is thrown away: no key needs to be made for it.
        let spki = AsDer::<aws_lc_rs::encoding::PublicKeyX509Der<'_>>::as_der(self.key.public_key())
            .map_err(|_| SignError::Crypto)?;
        let key_id = key_id(self.key.public_key().as_ref());
        let validity = Validity {
            lifetime: Duration::from_secs(60),
            clock_skew: Duration::ZERO,
        };
        let probe = self.sign_parts((own, None), spki.as_ref(), &key_id, validity, now)?;
        let leaf = CertificateDer::from(probe.leaf);
        let leaf = webpki::EndEntityCert::try_from(&leaf).map_err(InvalidIssuer::Untrusted)?;
        let time = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default());
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            let anchors = &roots.anchors().roots;
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                anchors,
                &probe.chain,
                time,
                usage,
                None,
                None,
            )
            .map_err(InvalidIssuer::Untrusted)?;
        }
        Ok(())
    }

    /// Signs a leaf for a checked request. It never outlives the issuer's chain.
    ///
    /// # Errors
    /// The issuer is not valid at `now`, or the library fails.
    pub fn sign(&self, csr: &ValidCsr, validity: Validity, now: SystemTime) -> Result<Issued, SignError> {
        let names = (csr.identity(), csr.spiffe());
        self.sign_parts(names, csr.spki(), csr.key_id(), validity, now)
    }

    fn sign_parts(
        &self,
        names: (&Identity, Option<&SpiffeId>),
        spki: &[u8],
        key_id: &KeyId,
        validity: Validity,
        now: SystemTime,
    ) -> Result<Issued, SignError> {
        let Validity { lifetime, clock_skew } = validity;
        if now + clock_skew < self.not_before {
            return Err(SignError::NotYetValid);
        }
        let expires = whole_seconds((now + lifetime).min(self.expires));
        if expires < now + LIFE_MIN.min(lifetime / 2) {
            return Err(SignError::Expired);
        }
        let (not_before, not_after) = (date_time(now - clock_skew)?, date_time(expires)?);
        let mut serial = [0; 16];
        self.rng.fill(&mut serial).map_err(|_| SignError::Crypto)?;
        // No leading zero, so that a serial is written the same everywhere.
        serial[0] |= 0x40;

        let mut tbs = Vec::with_capacity(640);
        der::nest(&mut tbs, der::SEQUENCE, |out| {
            // Version 3.
            out.extend_from_slice(&[0xa0, 3, der::INTEGER, 1, 2]);
            der::positive(out, &serial);
            out.extend_from_slice(self.algorithm);
            out.extend_from_slice(&self.subject);
            der::nest(out, der::SEQUENCE, |out| {
                der::time(out, not_before);
                der::time(out, not_after);
            });
            // The subject is empty, since a common name has 64 characters at most; the name is the alternative one,
            // which is therefore critical (RFC 5280 §4.2.1.6).
            der::nest(out, der::SEQUENCE, |_| {});
            out.extend_from_slice(spki);
            der::nest(out, 0xa3, |out| {
                der::nest(out, der::SEQUENCE, |out| self.extensions(out, names, key_id));
            });
        });
        Ok(Issued {
            serial: serial.to_vec(),
            leaf: self.signed(&tbs)?,
            chain: Arc::clone(&self.chain),
            expires,
        })
    }

    /// What X.509 puts around all that is signed: the content, the algorithm, the signature.
    fn signed(&self, tbs: &[u8]) -> Result<Vec<u8>, SignError> {
        let signature = self.key.sign(&self.rng, tbs).map_err(|_| SignError::Crypto)?;
        let mut out = Vec::with_capacity(tbs.len() + 128);
        der::nest(&mut out, der::SEQUENCE, |out| {
            out.extend_from_slice(tbs);
            out.extend_from_slice(self.algorithm);
            der::bits(out, signature.as_ref());
        });
        Ok(out)
    }

    fn extensions(
        &self,
        out: &mut Vec<u8>,
        (identity, spiffe): (&Identity, Option<&SpiffeId>),
        key_id: &KeyId,
    ) {
        // digitalSignature: bit 0 of one byte with seven unused bits.
        der::extension(out, KEY_USAGE, true, |out| {
            der::value(out, der::BIT_STRING, &[7, 0x80])
        });
        der::extension(out, EXTENDED_KEY_USAGE, false, |out| {
            der::nest(out, der::SEQUENCE, |out| {
                der::value(out, der::OID, SERVER_AUTH);
                der::value(out, der::OID, CLIENT_AUTH);
            });
        });
        der::extension(out, SUBJECT_KEY_IDENTIFIER, false, |out| {
            der::value(out, der::OCTET_STRING, key_id)
        });
        der::extension(out, AUTHORITY_KEY_IDENTIFIER, false, |out| {
            der::nest(out, der::SEQUENCE, |out| der::value(out, 0x80, &self.key_id));
        });
        der::extension(out, SUBJECT_ALT_NAME, true, |out| {
            der::nest(out, der::SEQUENCE, |out| {
                der::value(out, 0x82, identity.as_str().as_bytes());
                if let Some(spiffe) = spiffe {
                    der::value(out, 0x86, spiffe.as_str().as_bytes());
                }
            });
        });
    }
}

/// Certificates count in whole seconds, and what is told of them must not be more.
fn whole_seconds(at: SystemTime) -> SystemTime {
    let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    SystemTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs())
}

fn date_time(at: SystemTime) -> Result<OffsetDateTime, SignError> {
    let seconds = at
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_err(|_| SignError::Time)?
        .as_secs();
    let seconds = i64::try_from(seconds).map_err(|_| SignError::Time)?;
    OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| SignError::Time)
}

/// Never prints the key.
impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
