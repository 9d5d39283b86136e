//! Obtains this process' leaf from the identity service and renews it, for as long as it runs.

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use heddle_daemon::report::chain;
use heddle_mesh::Identity;
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse, identity_client::IdentityClient};
use rustls::pki_types::CertificateDer;
use tokio::{io::AsyncReadExt, sync::watch, time::timeout};
use tonic::{Request, Status};
use tracing::{info, warn};

use crate::{
    CertMetrics, CertifyKey, ClientAuth, ControlAddr, ControlChannel, LeafError, LocalCredentials, Store,
    connect::{Backoff, ChannelOptions},
};

/// Renewal at this share of the remaining life, as Linkerd's proxy does; a tenth of it earlier at random, so that
/// pods that started together do not renew together.
const REFRESH_AT: f64 = 0.7;
const REFRESH_JITTER: f64 = 0.1;
const REFRESH_MIN: Duration = Duration::from_secs(10);
const REFRESH_MAX: Duration = Duration::from_secs(24 * 60 * 60);
const BACKOFF_MIN: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(20);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(15);
/// The clock is looked at this often while waiting: a machine that slept has a clock that jumps.
const CLOCK_CHECK: Duration = Duration::from_secs(60);
/// A service-account token is one or two kilobytes.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;
/// A leaf and its intermediates are a few kilobytes.
const RESPONSE_BYTES_MAX: usize = 256 * 1024;

/// The loop; make it, then run it in a task of its own.
#[derive(Debug)]
pub struct CertifyLoop {
    store: Store,
    key: CertifyKey,
    client: IdentityClient<ControlChannel>,
    token_file: PathBuf,
    metrics: CertMetrics,
    refresh_min: Duration,
    refresh_max: Duration,
}

/// Why a certificate was not obtained. Neither the token nor the key is ever part of it.
#[derive(Debug, thiserror::Error)]
pub enum CertifyError {
    /// The token cannot be read.
    #[error("failed to read the service-account token from {path}", path = .path.display())]
    Token {
        /// The token's file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The token's file is empty or far too long.
    #[error("{path} holds no service-account token: {bytes} bytes, expected 1 to {TOKEN_BYTES_MAX}", path = .path.display())]
    TokenSize {
        /// The token's file.
        path: PathBuf,
        /// Its size, as far as it was read.
        bytes: usize,
    },
    /// The identity service refused, or was not reached.
    #[error("the identity service did not certify {name}: {code:?}: {message}")]
    Rpc {
        /// This process' identity.
        name: Identity,
        /// gRPC code.
        code: tonic::Code,
        /// What it said.
        message: String,
    },
    /// The identity service took too long.
    #[error("the identity service did not certify {name} within {REQUEST_TIMEOUT:?}")]
    Timeout {
        /// This process' identity.
        name: Identity,
    },
    /// What it sent is no leaf for us.
    #[error("the identity service sent a certificate that cannot be used")]
    Leaf(#[from] LeafError),
}

impl CertifyLoop {
    /// Certifies `store`'s identity with the service at `addr`, which must prove to be `server_name`. `key` is the one
    /// that [`Store::new`] made. Must be called within a tokio runtime.
    pub fn new(
        store: Store,
        key: CertifyKey,
        addr: ControlAddr,
        server_name: Identity,
        token_file: impl Into<PathBuf>,
    ) -> Self {
        let options = ChannelOptions::seldom_asked();
        Self::with_options(store, key, addr, server_name, token_file, options)
    }

    /// As [`CertifyLoop::new`], with other bounds of the channel.
    pub fn with_options(
        store: Store,
        key: CertifyKey,
        addr: ControlAddr,
        server_name: Identity,
        token_file: impl Into<PathBuf>,
        options: ChannelOptions,
    ) -> Self {
        let channel =
            ControlChannel::with_options(addr, server_name, store.clone(), ClientAuth::Anonymous, options);
        Self {
            store,
            key,
            client: IdentityClient::new(channel).max_decoding_message_size(RESPONSE_BYTES_MAX),
            token_file: token_file.into(),
            metrics: CertMetrics::default(),
            refresh_min: REFRESH_MIN,
            refresh_max: REFRESH_MAX,
        }
    }

    /// Counts in `metrics`.
    #[must_use]
    pub fn metrics(mut self, metrics: CertMetrics) -> Self {
        self.metrics = metrics;
        self
    }

    /// Renews no sooner and no later than this after a success.
    #[must_use]
    pub fn refresh_bounds(mut self, refresh_min: Duration, refresh_max: Duration) -> Self {
        self.refresh_min = refresh_min;
        self.refresh_max = refresh_max.max(refresh_min);
        self
    }

    /// Runs until dropped. The first attempt is made at once; a failure is logged and tried again, the leaf in use
    /// stays.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF_MIN, BACKOFF_MAX);
        let mut roots = self.store.roots_generation();
        loop {
            // Changes from here on count: the leaf is verified against the anchors of this moment or later.
            roots.mark_unchanged();
            match self.certify().await {
                Ok(expires) => {
                    backoff.reset();
                    self.metrics.renewed(expires);
                    let life = expires.duration_since(SystemTime::now()).unwrap_or_default();
                    let wait = refresh_after(life, self.refresh_min, self.refresh_max);
                    info!(name = %self.store.name(), valid_secs = life.as_secs(), renew_secs = wait.as_secs(), "Certified");
                    self.rest(SystemTime::now() + wait, &mut roots).await;
                    self.renew_key();
                }
                Err(error) => {
                    self.metrics.failed();
                    let wait = backoff.wait();
                    warn!(error = %chain(&error), retry_secs = wait.as_secs_f64(), "Failed to obtain a certificate");
                    tokio::time::sleep(wait).await;
                }
            }
        }
    }

    /// One attempt: on success the store holds the new leaf, and its expiry is returned.
    async fn certify(&mut self) -> Result<SystemTime, CertifyError> {
        let name = self.store.name().clone();
        let request = CertifyRequest {
            identity: name.to_string(),
            token: self.token().await?,
            certificate_signing_request: self.key.csr_der().to_vec(),
        };
        let mut request = Request::new(request);
        request.set_timeout(REQUEST_TIMEOUT);
        let response = match timeout(REQUEST_TIMEOUT, self.client.certify(request)).await {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => return Err(rpc(name, &status)),
            Err(_) => return Err(CertifyError::Timeout { name }),
        };
        let CertifyResponse {
            leaf_certificate,
            intermediate_certificates,
            valid_until,
        } = response;
        let chain = std::iter::once(leaf_certificate)
            .chain(intermediate_certificates)
            .map(CertificateDer::from);
        let credentials = LocalCredentials::new(&self.key, chain.collect())?;
        let mut expires = credentials.expires();
        self.store.set_leaf(credentials)?;
        // The service may want us back before the certificate ends.
        if let Some(until) = valid_until.and_then(|until| SystemTime::try_from(until).ok()) {
            expires = expires.min(until);
        }
        Ok(expires)
    }

    /// Read every time, because the kubelet replaces it.
    async fn token(&self) -> Result<Vec<u8>, CertifyError> {
        let error = |source| CertifyError::Token {
            path: self.token_file.clone(),
            source,
        };
        let file = tokio::fs::File::open(&self.token_file).await.map_err(error)?;
        let mut token = Vec::new();
        file.take(TOKEN_BYTES_MAX + 1)
            .read_to_end(&mut token)
            .await
            .map_err(error)?;
        if token.iter().all(u8::is_ascii_whitespace) || token.len() as u64 > TOKEN_BYTES_MAX {
            return Err(CertifyError::TokenSize {
                path: self.token_file.clone(),
                bytes: token.len(),
            });
        }
        Ok(token.trim_ascii().to_vec())
    }

    /// Until it is time to renew, or the leaf no longer leads to the trust anchors.
    async fn rest(&self, until: SystemTime, roots: &mut watch::Receiver<u64>) {
        while let Ok(left) = until.duration_since(SystemTime::now()) {
            tokio::select! {
                () = tokio::time::sleep(left.min(CLOCK_CHECK)) => {}
                // The sender is in our own store.
                _ = roots.changed() => {
                    let trusted = self.store.credentials().map(|leaf| leaf.verify(&self.store.roots(), SystemTime::now()));
                    if let Some(Err(error)) = trusted {
                        info!(error = %chain(&error), "Renewing the certificate early: the trust anchors have changed");
                        return;
                    }
                }
            }
        }
    }

    /// A key serves one certificate; if none can be made now, the old one serves another.
    fn renew_key(&mut self) {
        match CertifyKey::generate(self.store.name()) {
            Ok(key) => self.key = key,
            Err(error) => warn!(error = %chain(&error), "Keeping the old key"),
        }
    }
}

fn rpc(name: Identity, status: &Status) -> CertifyError {
    CertifyError::Rpc {
        name,
        code: status.code(),
        message: status.message().to_owned(),
    }
}

fn refresh_after(life: Duration, refresh_min: Duration, refresh_max: Duration) -> Duration {
    let share = REFRESH_AT * (1.0 - rand::Rng::random_range(&mut rand::rng(), 0.0..REFRESH_JITTER));
    life.mul_f64(share).clamp(refresh_min, refresh_max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_is_at_seven_tenths_of_the_life_within_bounds() {
        let secs = Duration::from_secs;
        for _ in 0..100 {
            let wait = refresh_after(secs(1000), REFRESH_MIN, REFRESH_MAX);
            assert!((secs(629)..=secs(700)).contains(&wait), "{wait:?}");
        }
        assert_eq!(refresh_after(secs(5), REFRESH_MIN, REFRESH_MAX), REFRESH_MIN);
        assert_eq!(
            refresh_after(secs(90 * 24 * 3600), REFRESH_MIN, REFRESH_MAX),
            REFRESH_MAX
        );
    }
}
