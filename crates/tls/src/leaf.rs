//! A process' own key and the leaf certificate that proves its identity.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_mesh::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime},
    sign::{CertifiedKey, SigningKey},
};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{CHAIN_BYTES_MAX, CHAIN_MAX, TrustBundle, peer::peer_identity, provider};

/// An ECDSA P-256 key, kept in memory only, with the request to certify it.
pub struct CertifyKey {
    name: Identity,
    csr: Vec<u8>,
    key: Arc<dyn SigningKey>,
}

/// A leaf certificate with its chain and key, checked to belong together.
#[derive(Clone)]
pub struct LocalCredentials {
    name: Identity,
    certified: Arc<CertifiedKey>,
    not_before: SystemTime,
    expires: SystemTime,
}

/// A key could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The key or its request could not be generated.
    #[error("failed to make a key and a certificate signing request for {name}")]
    Generate {
        /// Whose key.
        name: Identity,
        /// What the library said.
        source: rcgen::Error,
    },
    /// The TLS library does not take the key.
    #[error("failed to load the key made for {name}")]
    Load {
        /// Whose key.
        name: Identity,
        /// What the library said.
        source: rustls::Error,
    },
}

/// Why a certificate is not taken as this process' leaf.
#[derive(Debug, thiserror::Error)]
pub enum LeafError {
    /// No certificates, or too many.
    #[error("a chain of {0} certificates: expected a leaf and at most {max} more", max = CHAIN_MAX - 1)]
    Length(usize),
    /// More bytes than peers take.
    #[error("a chain of {0} bytes: expected at most {CHAIN_BYTES_MAX}")]
    Bytes(usize),
    /// The leaf is not readable.
    #[error("the leaf is not a valid X.509 certificate")]
    Malformed,
    /// The leaf is for someone else.
    #[error("the leaf is for {found}, expected {expected} as its only DNS name", found = .found.as_ref().map_or("no single DNS name", Identity::as_str))]
    Name {
        /// This process' identity.
        expected: Identity,
        /// The leaf's single DNS name.
        found: Option<Identity>,
    },
    /// The leaf certifies another key.
    #[error("the leaf of {name} is not for the key that was to be certified")]
    Key {
        /// This process' identity.
        name: Identity,
        /// What the library said.
        source: rustls::Error,
    },
    /// The chain does not lead to the trust anchors now.
    #[error("the leaf of {name} does not lead to the trust anchors")]
    Untrusted {
        /// This process' identity.
        name: Identity,
        /// What the verifier said.
        source: webpki::Error,
    },
}

impl CertifyKey {
    /// Makes a key and the request that has `name` as its only subject alternative name, and no subject.
    ///
    /// # Errors
    /// The name cannot be written into a request, or there is no randomness.
    pub fn generate(name: &Identity) -> Result<Self, KeyError> {
        let error = |source| KeyError::Generate {
            name: name.clone(),
            source,
        };
        let pair = KeyPair::generate().map_err(error)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into().map_err(error)?)];
        let csr = params.serialize_request(&pair).map_err(error)?.der().to_vec();
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let key = provider()
            .key_provider
            .load_private_key(der)
            .map_err(|source| KeyError::Load {
                name: name.clone(),
                source,
            })?;
        Ok(Self {
            name: name.clone(),
            csr,
            key,
        })
    }

    /// Whose key this is.
    pub fn name(&self) -> &Identity {
        &self.name
    }

    /// The certificate signing request, DER.
    pub fn csr_der(&self) -> &[u8] {
        &self.csr
    }
}

impl LocalCredentials {
    /// Joins a certified chain (leaf first, DER) with the key that was to be certified.
    ///
    /// # Errors
    /// The leaf is malformed, for another name, or for another key.
    pub fn new(key: &CertifyKey, chain: Vec<CertificateDer<'static>>) -> Result<Self, LeafError> {
        let Some(leaf) = chain.first().filter(|_| chain.len() <= CHAIN_MAX) else {
            return Err(LeafError::Length(chain.len()));
        };
        let bytes = chain.iter().map(|cert| cert.len()).sum();
        if bytes > CHAIN_BYTES_MAX {
            return Err(LeafError::Bytes(bytes));
        }
        let (not_before, expires) = {
            let (rest, parsed) = X509Certificate::from_der(leaf).map_err(|_| LeafError::Malformed)?;
            if !rest.is_empty() {
                return Err(LeafError::Malformed);
            }
            let validity = parsed.validity();
            (
                system_time(validity.not_before.timestamp()),
                system_time(validity.not_after.timestamp()),
            )
        };
        let found = peer_identity(&chain);
        if found.as_ref() != Some(&key.name) {
            return Err(LeafError::Name {
                expected: key.name.clone(),
                found,
            });
        }
        let certified = CertifiedKey::new(chain, Arc::clone(&key.key));
        certified.keys_match().map_err(|source| LeafError::Key {
            name: key.name.clone(),
            source,
        })?;
        Ok(Self {
            name: key.name.clone(),
            certified: Arc::new(certified),
            not_before,
            expires,
        })
    }

    /// The identity that the leaf proves.
    pub fn name(&self) -> &Identity {
        &self.name
    }

    /// The chain, leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    /// When the leaf begins to be valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// When the leaf ends to be valid.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }

    /// Whether the chain leads to `roots` at `now`, both as a server's and as a client's.
    ///
    /// # Errors
    /// It does not, or is not valid at that time.
    pub fn verify(&self, roots: &TrustBundle, now: SystemTime) -> Result<(), LeafError> {
        let error = |source| LeafError::Untrusted {
            name: self.name.clone(),
            source,
        };
        let (leaf, intermediates) = self
            .certified
            .cert
            .split_first()
            .expect("the chain has a leaf: checked in new");
        let leaf = webpki::EndEntityCert::try_from(leaf).map_err(error)?;
        let since_epoch = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            leaf.verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                &roots.anchors().roots,
                intermediates,
                UnixTime::since_unix_epoch(since_epoch),
                usage,
                None,
                None,
            )
            .map_err(error)?;
        }
        Ok(())
    }

    pub(crate) fn certified(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.certified)
    }
}

/// Times before the epoch do not occur in certificates of a mesh; they are read as the epoch itself.
pub(crate) fn system_time(unix_seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(unix_seconds).unwrap_or(0))
}

/// Never prints the key.
impl fmt::Debug for CertifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertifyKey")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Never prints the key.
impl fmt::Debug for LocalCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalCredentials")
            .field("name", &self.name)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}
