//! The issuer: its certificate, its chain and its key, from the files of a mounted Secret; signs leaves.
//!
//! Issuers have ECDSA keys on P-256 or P-384, as Linkerd's have.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::AsDer,
    rand::{SecureRandom, SystemRandom},
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use heddle_mesh::Identity;
use heddle_tls::TrustBundle;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem, pem::PemObject};
use time::OffsetDateTime;
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, oid_registry as oids, prelude::FromDer,
};

use crate::{
    csr::{KeyId, ValidCsr, key_id},
    der,
};

/// The names of Kubernetes' own TLS Secrets, then Linkerd's older ones.
const FILES: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("crt.pem", "key.pem")];
const FILE_BYTES_MAX: u64 = 256 * 1024;
const CHAIN_MAX: usize = 6;
/// A leaf that is over before its owner can use it helps nobody.
const LIFE_MIN: Duration = Duration::from_secs(5);

const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
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
    /// DER.
    pub leaf: Vec<u8>,
    /// What leads from the leaf to the anchors, nearest first.
    pub chain: Arc<[CertificateDer<'static>]>,
    /// When the leaf ends to be valid.
    pub expires: SystemTime,
}

/// The files of an issuer, as read.
#[derive(Clone, PartialEq, Eq)]
pub struct IssuerFiles {
    crt_path: PathBuf,
    crt: Vec<u8>,
    key_path: PathBuf,
    key: Vec<u8>,
}

/// Why there is no issuer.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// None of the pairs of files is there.
    #[error("no issuer in {dir}: expected tls.crt and tls.key, or crt.pem and key.pem", dir = .0.display())]
    NotFound(PathBuf),
    /// A file is not readable.
    #[error("failed to read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file is far too long.
    #[error("{path} has more than {FILE_BYTES_MAX} bytes", path = .0.display())]
    TooLarge(PathBuf),
    /// Not PEM, or without what is expected.
    #[error("{path}: expected {expected} in PEM", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What should be there.
        expected: &'static str,
        /// What the parser said.
        source: pem::Error,
    },
    /// A chain that is too long.
    #[error("{path}: more than {CHAIN_MAX} certificates", path = .0.display())]
    ChainLength(PathBuf),
    /// A certificate that cannot be read.
    #[error("{path}: certificate {number} is not a valid X.509 certificate", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Counted from one.
        number: usize,
    },
    /// A certificate that may not issue others.
    #[error("{path}: the first certificate is not a CA's that may sign certificates (basic constraints, key usage)", path = .0.display())]
    NotCa(PathBuf),
    /// A key that is not taken.
    #[error("{path}: the issuer's key is not ECDSA on P-256 or P-384", path = .0.display())]
    KeyKind(PathBuf),
    /// The key does not load.
    #[error("{path}: not a private key of the certificate's kind", path = .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: aws_lc_rs::error::KeyRejected,
    },
    /// Two files that do not belong together.
    #[error("{key} is not the key of the certificate in {crt}", key = .key.display(), crt = .crt.display())]
    KeyMismatch {
        /// The key's file.
        key: PathBuf,
        /// The certificate's file.
        crt: PathBuf,
    },
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
    /// A point in time that a certificate cannot hold.
    #[error("the time cannot be written in a certificate")]
    Time,
    /// No randomness, or the library refuses to sign.
    #[error("the cryptographic library failed")]
    Crypto,
}

impl IssuerFiles {
    /// Reads the issuer's files from a mounted Secret.
    ///
    /// # Errors
    /// They are not there, not readable, or too long.
    pub fn read(dir: &Path) -> Result<Self, LoadError> {
        // A volume that is swapped in between takes its old files away: the second look finds the new ones.
        Self::read_version(dir).or_else(|_| Self::read_version(dir))
    }

    /// Reads both files from one version of the volume: `..data` is what Kubernetes swaps.
    fn read_version(dir: &Path) -> Result<Self, LoadError> {
        let version = std::fs::canonicalize(dir.join("..data")).unwrap_or_else(|_| dir.into());
        let there = |name: &str| version.join(name).exists();
        let (crt, key) = FILES
            .into_iter()
            .find(|(crt, key)| there(crt) && there(key))
            .ok_or_else(|| LoadError::NotFound(dir.into()))?;
        let read = |name: &str| {
            let path = dir.join(name);
            read(&version.join(name), &path).map(|bytes| (path, bytes))
        };
        let ((crt_path, crt), (key_path, key)) = (read(crt)?, read(key)?);
        Ok(Self {
            crt_path,
            crt,
            key_path,
            key,
        })
    }

    /// Parses the files and checks that they belong together.
    ///
    /// # Errors
    /// They do not, or are not an issuer's.
    pub fn parse(&self) -> Result<Issuer, LoadError> {
        let certs = self.certs()?;
        let parsed = |number: usize| {
            let error = || LoadError::Certificate {
                path: self.crt_path.clone(),
                number,
            };
            let (rest, cert) = X509Certificate::from_der(&certs[number - 1]).map_err(|_| error())?;
            if rest.is_empty() { Ok(cert) } else { Err(error()) }
        };
        let ca = parsed(1)?;
        if !may_sign(&ca) {
            return Err(LoadError::NotCa(self.crt_path.clone()));
        }
        let (key, algorithm) = self.key(&ca)?;
        let mut chain = Vec::new();
        let mut expires = system_time(ca.validity().not_after.timestamp());
        for number in 1..=certs.len() {
            let cert = parsed(number)?;
            expires = expires.min(system_time(cert.validity().not_after.timestamp()));
            if cert.subject().as_raw() != cert.issuer().as_raw() {
                chain.push(certs[number - 1].clone());
            }
        }
        Ok(Issuer {
            key,
            algorithm,
            subject: ca.subject().as_raw().to_vec(),
            key_id: subject_key_id(&ca),
            chain: chain.into(),
            not_before: system_time(ca.validity().not_before.timestamp()),
            expires,
            rng: SystemRandom::new(),
            certs: certs.clone(),
        })
    }

    fn certs(&self) -> Result<Vec<CertificateDer<'static>>, LoadError> {
        let error = |source| LoadError::Pem {
            path: self.crt_path.clone(),
            expected: "certificates",
            source,
        };
        let mut certs = Vec::new();
        for cert in CertificateDer::pem_slice_iter(&self.crt) {
            if certs.len() == CHAIN_MAX {
                return Err(LoadError::ChainLength(self.crt_path.clone()));
            }
            certs.push(cert.map_err(error)?);
        }
        if certs.is_empty() {
            Err(error(pem::Error::NoItemsFound))
        } else {
            Ok(certs)
        }
    }

    fn key(&self, ca: &X509Certificate<'_>) -> Result<(EcdsaKeyPair, &'static [u8]), LoadError> {
        let spki = ca.public_key();
        let curve = spki
            .algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok());
        let (signing, algorithm) = match curve {
            Some(curve) if curve == oids::OID_EC_P256 => (&ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_SHA256),
            Some(curve) if curve == oids::OID_NIST_EC_P384 => (&ECDSA_P384_SHA384_ASN1_SIGNING, ECDSA_SHA384),
            _ => return Err(LoadError::KeyKind(self.crt_path.clone())),
        };
        let der = PrivateKeyDer::from_pem_slice(&self.key).map_err(|source| LoadError::Pem {
            path: self.key_path.clone(),
            expected: "a private key",
            source,
        })?;
        // PKCS #8 as Kubernetes tools write it, or SEC 1 as cert-manager and openssl do.
        let der = match &der {
            PrivateKeyDer::Pkcs8(der) => der.secret_pkcs8_der(),
            PrivateKeyDer::Sec1(der) => der.secret_sec1_der(),
            _ => return Err(LoadError::KeyKind(self.key_path.clone())),
        };
        let key = EcdsaKeyPair::from_private_key_der(signing, der).map_err(|source| LoadError::Key {
            path: self.key_path.clone(),
            source,
        })?;
        if key.public_key().as_ref() != spki.subject_public_key.data.as_ref() {
            return Err(LoadError::KeyMismatch {
                key: self.key_path.clone(),
                crt: self.crt_path.clone(),
            });
        }
        Ok((key, algorithm))
    }
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
        let probe = self.sign_parts(own, spki.as_ref(), &key_id, validity, now)?;
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
        self.sign_parts(csr.identity(), csr.spki(), csr.key_id(), validity, now)
    }

    fn sign_parts(
        &self,
        identity: &Identity,
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
                der::nest(out, der::SEQUENCE, |out| self.extensions(out, identity, key_id));
            });
        });
        let signature = self.key.sign(&self.rng, &tbs).map_err(|_| SignError::Crypto)?;
        let mut leaf = Vec::with_capacity(tbs.len() + 128);
        der::nest(&mut leaf, der::SEQUENCE, |out| {
            out.extend_from_slice(&tbs);
            out.extend_from_slice(self.algorithm);
            der::bits(out, signature.as_ref());
        });
        Ok(Issued {
            leaf,
            chain: Arc::clone(&self.chain),
            expires,
        })
    }

    fn extensions(&self, out: &mut Vec<u8>, identity: &Identity, key_id: &KeyId) {
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
                der::value(out, 0x82, identity.as_str().as_bytes())
            });
        });
    }
}

/// Reads `path`, which people know as `shown`.
fn read(path: &Path, shown: &Path) -> Result<Vec<u8>, LoadError> {
    let error = |source| LoadError::Read {
        path: shown.into(),
        source,
    };
    let file = std::fs::File::open(path).map_err(error)?;
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(file, FILE_BYTES_MAX + 1), &mut bytes).map_err(error)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(LoadError::TooLarge(shown.into()));
    }
    Ok(bytes)
}

fn may_sign(cert: &X509Certificate<'_>) -> bool {
    // Without the extension, any usage is allowed; one that cannot be read allows none.
    let usage = cert
        .key_usage()
        .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.key_cert_sign()));
    cert.is_ca() && usage
}

fn subject_key_id(cert: &X509Certificate<'_>) -> Vec<u8> {
    for extension in cert.extensions() {
        if let ParsedExtension::SubjectKeyIdentifier(id) = extension.parsed_extension() {
            return id.0.to_vec();
        }
    }
    key_id(&cert.public_key().subject_public_key.data).to_vec()
}

fn system_time(unix_seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
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

/// Never prints the key.
impl fmt::Debug for IssuerFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerFiles")
            .field("crt", &self.crt_path)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
