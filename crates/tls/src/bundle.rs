//! Trust anchors: the certificates that a peer's chain must lead to.

use std::{sync::Arc, time::SystemTime};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem, pem::PemObject},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// A bundle holds one or two anchors, and a few more while one is rotated.
const ANCHORS_MAX: usize = 64;
const PEM_BYTES_MAX: usize = 1024 * 1024;

/// Trust anchors, parsed and checked. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TrustBundle {
    certs: Arc<[CertificateDer<'static>]>,
    anchors: Arc<RootCertStore>,
    expires: SystemTime,
}

/// Why a text is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// More text than a bundle can have.
    #[error("trust anchors: {0} bytes of PEM, at most {PEM_BYTES_MAX} are read")]
    TooLarge(usize),
    /// No certificate at all.
    #[error("trust anchors: no certificate found, expected PEM with at least one `BEGIN CERTIFICATE`")]
    Empty,
    /// More certificates than a bundle can have.
    #[error("trust anchors: more than {ANCHORS_MAX} certificates")]
    TooMany,
    /// The text is not PEM.
    #[error("trust anchors: certificate {number} is not valid PEM")]
    Pem {
        /// Counted from one.
        number: usize,
        /// What the parser said.
        source: pem::Error,
    },
    /// A certificate that cannot be an anchor.
    #[error("trust anchors: certificate {number} is not a valid X.509 certificate")]
    Certificate {
        /// Counted from one.
        number: usize,
        /// What the parser said.
        source: rustls::Error,
    },
    /// A certificate whose fields cannot be read.
    #[error("trust anchors: certificate {0} has no readable validity")]
    Validity(usize),
}

impl TrustBundle {
    /// Reads one or more certificates in PEM. Other kinds of PEM blocks are passed over.
    ///
    /// # Errors
    /// No certificate, too many, or one that is broken: a bundle is taken whole or not at all.
    pub fn from_pem(text: &str) -> Result<Self, TrustError> {
        if text.len() > PEM_BYTES_MAX {
            return Err(TrustError::TooLarge(text.len()));
        }
        let mut certs: Vec<CertificateDer<'static>> = Vec::new();
        for (index, cert) in CertificateDer::pem_slice_iter(text.as_bytes()).enumerate() {
            if certs.len() == ANCHORS_MAX {
                return Err(TrustError::TooMany);
            }
            let cert = cert.map_err(|source| TrustError::Pem {
                number: index + 1,
                source,
            })?;
            // A root that is named twice is one root; concatenated bundles often repeat.
            if !certs.contains(&cert) {
                certs.push(cert);
            }
        }
        Self::from_certs(certs)
    }

    /// Takes certificates that are already in DER.
    ///
    /// # Errors
    /// No certificate, or one that is broken.
    pub fn from_certs(certs: Vec<CertificateDer<'static>>) -> Result<Self, TrustError> {
        let mut anchors = RootCertStore::empty();
        let mut expires: Option<SystemTime> = None;
        for (index, cert) in certs.iter().enumerate() {
            let number = index + 1;
            anchors
                .add(cert.clone())
                .map_err(|source| TrustError::Certificate { number, source })?;
            let (_, parsed) = X509Certificate::from_der(cert).map_err(|_| TrustError::Validity(number))?;
            let until = crate::leaf::system_time(parsed.validity().not_after.timestamp());
            expires = Some(expires.map_or(until, |earlier| earlier.min(until)));
        }
        let expires = expires.ok_or(TrustError::Empty)?;
        Ok(Self {
            certs: certs.into(),
            anchors: Arc::new(anchors),
            expires,
        })
    }

    /// The certificates, in the order of the text, each once.
    pub fn certs(&self) -> &[CertificateDer<'static>] {
        &self.certs
    }

    /// The anchors as rustls wants them.
    pub fn anchors(&self) -> &Arc<RootCertStore> {
        &self.anchors
    }

    /// When the first of the anchors expires.
    pub fn expires(&self) -> SystemTime {
        self.expires
    }
}

/// Bundles are equal when they hold the same certificates in the same order.
impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.certs == other.certs
    }
}

impl Eq for TrustBundle {}
