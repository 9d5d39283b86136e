//! The identity service's own leaf, which it signs itself: it cannot ask itself over the network for what it needs to
//! be asked.

use std::time::{Duration, SystemTime};

use heddle_mesh::SpiffeId;
use heddle_tls::{CertMetrics, CertifyKey, LeafError, LocalCredentials, Store};
use rustls_pki_types::CertificateDer;

use crate::{
    csr::{self, CsrError, MismatchError},
    issuer::{Issuer, SignError, Validity},
};

/// Renewed at this share of its life, as every other leaf.
const RENEW_AT: f64 = 0.7;

/// Signs and renews the leaf in a store.
#[derive(Debug)]
pub struct Own {
    store: Store,
    spiffe: Option<SpiffeId>,
    key: CertifyKey,
    validity: Validity,
    metrics: CertMetrics,
    renew_at: Option<SystemTime>,
}

/// Why there is no new leaf; the old one stays.
#[derive(Debug, thiserror::Error)]
pub enum OwnError {
    /// Our own request is malformed.
    #[error("failed to read the identity service's own request")]
    Csr(#[from] CsrError),
    /// Our own request is for something else.
    #[error("failed to check the identity service's own request")]
    Mismatch(#[from] MismatchError),
    /// The issuer does not sign.
    #[error("failed to sign the identity service's own certificate")]
    Sign(#[from] SignError),
    /// The leaf is not valid for peers.
    #[error("failed to use the identity service's own certificate")]
    Leaf(#[from] LeafError),
}

impl Own {
    /// Keeps the leaf of `store`, whose first key is `key`.
    pub fn new(store: Store, key: CertifyKey, validity: Validity, metrics: CertMetrics) -> Self {
        Self {
            store,
            spiffe: None,
            key,
            validity,
            metrics,
            renew_at: None,
        }
    }

    /// Puts this URI into the leaf, too.
    #[must_use]
    pub fn spiffe(mut self, spiffe: Option<SpiffeId>) -> Self {
        self.spiffe = spiffe;
        self
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Whether it is time for a new leaf.
    pub fn due(&self, now: SystemTime) -> bool {
        self.renew_at.is_none_or(|at| at <= now)
    }

    /// Signs a new leaf.
    ///
    /// # Errors
    /// The issuer cannot sign it, or peers would refuse it.
    pub fn renew(&mut self, issuer: &Issuer, now: SystemTime) -> Result<(), OwnError> {
        match self.sign(issuer, now) {
            Ok(expires) => {
                let life = expires.duration_since(now).unwrap_or_default();
                self.renew_at = Some(now + life.mul_f64(RENEW_AT));
                self.metrics.renewed(expires);
                Ok(())
            }
            Err(error) => {
                self.metrics.failed();
                self.renew_at = Some(now + Duration::from_secs(1));
                Err(error)
            }
        }
    }

    fn sign(&self, issuer: &Issuer, now: SystemTime) -> Result<SystemTime, OwnError> {
        let csr = csr::parse(self.key.csr_der())?.for_identity(self.store.name(), self.spiffe.clone())?;
        let issued = issuer.sign(&csr, self.validity, now)?;
        let chain = std::iter::once(CertificateDer::from(issued.leaf)).chain(issued.chain.iter().cloned());
        self.store
            .set_leaf(LocalCredentials::new(&self.key, chain.collect())?)?;
        Ok(issued.expires)
    }
}
