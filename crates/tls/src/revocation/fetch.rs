//! Asks the identity service for its revocation lists, again and again.

use std::time::Duration;

use bytes::Bytes;
use heddle_daemon::report::chain;
use heddle_mesh::Identity;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;
use tonic::body::Body;
use tower::Service as _;
use tracing::{info, warn};

use super::{BYTES_MAX, LISTS_PATH, POLL_INTERVAL, Revocations, RevocationsError};
use crate::{
    ClientAuth, ControlAddr, ControlChannel, Store, connect::Backoff, connect::ChannelOptions,
    store::RevocationRefused,
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const BACKOFF_MIN: Duration = Duration::from_millis(200);

/// The loop; make it, then run it in a task of its own.
#[derive(Debug)]
pub struct RevocationLoop {
    store: Store,
    channel: ControlChannel,
    poll_interval: Duration,
    etag: Option<HeaderValue>,
}

/// Why there are no new lists; the last ones stay until they are over.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The identity service was not reached.
    #[error("failed to ask the identity service for revocation lists: {0}")]
    Channel(String),
    /// It took too long.
    #[error("the identity service sent no revocation lists within {REQUEST_TIMEOUT:?}")]
    Timeout,
    /// It serves none.
    #[error(
        "the identity service answered {0} when asked for revocation lists: does it run with --revocations?"
    )]
    Status(StatusCode),
    /// What it sent is too long, or was cut off.
    #[error("failed to read the identity service's revocation lists: {0}")]
    Body(String),
    /// What it sent is no list.
    #[error("the identity service sent revocation lists that cannot be read")]
    Lists(#[from] RevocationsError),
    /// The lists do not fit this process' own certificate.
    #[error("the identity service sent revocation lists that cannot be used")]
    Refused(#[from] RevocationRefused),
}

impl RevocationLoop {
    /// Asks the service at `addr`, which must prove to be `server_name`. Must be called within a tokio runtime.
    pub fn new(store: Store, addr: ControlAddr, server_name: Identity) -> Self {
        Self::with_options(store, addr, server_name, ChannelOptions::seldom_asked())
    }

    /// As [`RevocationLoop::new`], with other bounds of the channel.
    pub fn with_options(
        store: Store,
        addr: ControlAddr,
        server_name: Identity,
        options: ChannelOptions,
    ) -> Self {
        // A proxy that is revoked itself must still learn what else is.
        let channel =
            ControlChannel::with_options(addr, server_name, store.clone(), ClientAuth::Anonymous, options);
        Self {
            store,
            channel,
            poll_interval: POLL_INTERVAL,
            etag: None,
        }
    }

    /// Asks this often.
    #[must_use]
    pub fn poll_interval(mut self, poll_interval: Duration) -> Self {
        self.poll_interval = poll_interval;
        self
    }

    /// Runs until dropped. A failure is logged once and tried again.
    pub async fn run(mut self) {
        let mut backoff = Backoff::new(BACKOFF_MIN, self.poll_interval);
        let mut complained = None;
        loop {
            let wait = match self.refresh().await {
                Ok(changed) => {
                    backoff.reset();
                    complained = None;
                    if changed {
                        info!("Took new revocation lists");
                    }
                    // A tenth at random, so that pods that started together do not ask together.
                    let share = rand::Rng::random_range(&mut rand::rng(), 0.9..=1.0);
                    self.poll_interval.mul_f64(share)
                }
                Err(error) => {
                    let text = chain(&error);
                    if complained.as_ref() != Some(&text) {
                        warn!(error = %text, "Keeping the last revocation lists");
                        complained = Some(text);
                    }
                    backoff.wait()
                }
            };
            tokio::time::sleep(wait).await;
        }
    }

    async fn refresh(&mut self) -> Result<bool, FetchError> {
        let asked = timeout(REQUEST_TIMEOUT, self.fetch());
        let Some((lists, etag)) = asked.await.map_err(|_| FetchError::Timeout)?? else {
            return Ok(false);
        };
        let changed = self.store.set_revocations(Revocations::from_pem(&lists)?)?;
        self.etag = etag;
        Ok(changed)
    }

    /// The lists and their tag; `None` when they are the ones we have.
    async fn fetch(&mut self) -> Result<Option<(Bytes, Option<HeaderValue>)>, FetchError> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = http::Uri::from_static(LISTS_PATH);
        if let Some(etag) = &self.etag {
            request.headers_mut().insert(header::IF_NONE_MATCH, etag.clone());
        }
        let response = self.channel.call(request).await;
        let response = response.map_err(|status| FetchError::Channel(status.message().to_owned()))?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_MODIFIED => return Ok(None),
            status => return Err(FetchError::Status(status)),
        }
        let etag = response.headers().get(header::ETAG).cloned();
        let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
        let body = body.map_err(|error| FetchError::Body(error.to_string()))?;
        Ok(Some((body.to_bytes(), etag)))
    }
}
