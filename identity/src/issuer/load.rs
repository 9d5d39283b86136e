//! Reads an issuer from the files of a mounted Secret, and checks that certificate, chain and key belong together.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair, KeyPair},
};
use heddle_tls::{CHAIN_BYTES_MAX, CHAIN_MAX};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem, pem::PemObject};
use x509_parser::{
    certificate::X509Certificate, extensions::ParsedExtension, oid_registry as oids, prelude::FromDer,
};

use super::Issuer;
use crate::csr::key_id;

/// The names of Kubernetes' own TLS Secrets, then Linkerd's older ones.
const FILES: [(&str, &str); 2] = [("tls.crt", "tls.key"), ("crt.pem", "key.pem")];
pub(super) const FILE_BYTES_MAX: u64 = 256 * 1024;
/// Certificates of the file.
pub(super) const CERTS_MAX: usize = 6;
/// A leaf with a long name and a 4096-bit RSA key is smaller.
const LEAF_BYTES: usize = 1536;

const ECDSA_SHA256: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];
const ECDSA_SHA384: &[u8] = &[0x30, 0x0a, 6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];

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
    /// Too many certificates.
    #[error("{path}: more than {CERTS_MAX} certificates", path = .0.display())]
    CertsNumber(PathBuf),
    /// A chain that peers refuse.
    #[error(
        "{path}: with a leaf the chain has {certs} certificates and {bytes} bytes; peers take at most \
         {CHAIN_MAX} and {CHAIN_BYTES_MAX}", path = .path.display()
    )]
    ChainLength {
        /// The file.
        path: PathBuf,
        /// A leaf and the certificates that go with it.
        certs: usize,
        /// Their size.
        bytes: usize,
    },
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
        let (number, bytes) = (
            chain.len() + 1,
            chain.iter().map(|cert| cert.len()).sum::<usize>() + LEAF_BYTES,
        );
        if number > CHAIN_MAX || bytes > CHAIN_BYTES_MAX {
            return Err(LoadError::ChainLength {
                path: self.crt_path.clone(),
                certs: number,
                bytes,
            });
        }
        Ok(Issuer {
            key,
            algorithm,
            subject: ca.subject().as_raw().to_vec(),
            key_id: subject_key_id(&ca),
            chain: chain.into(),
            signs_lists: ca
                .key_usage()
                .is_ok_and(|usage| usage.is_none_or(|usage| usage.value.crl_sign())),
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
            if certs.len() == CERTS_MAX {
                return Err(LoadError::CertsNumber(self.crt_path.clone()));
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

pub(super) fn subject_key_id(cert: &X509Certificate<'_>) -> Vec<u8> {
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

/// Never prints the key.
impl fmt::Debug for IssuerFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuerFiles")
            .field("crt", &self.crt_path)
            .finish_non_exhaustive()
    }
}
