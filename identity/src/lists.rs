//! Keeps the revocation lists that proxies ask for: what Git says is revoked, signed by the issuer, and signed again
//! before it grows old.
//!
//! A list is good for as long as a leaf, and signed anew after a quarter of that: a proxy that has had no list for so
//! long has had no leaf either, so lists add no way to fail. An issuer that was replaced goes on signing lists here until
//! its last leaf is over. A broken file keeps the last good revocations: what is revoked must not become good by a slip.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, ArcSwapOption};
use aws_lc_rs::digest;
use heddle_daemon::report;
use heddle_tls::revocation::{Revocations, RevocationsError};
use http::{Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tracing::{info, warn};

use crate::{
    event::{Events, Reason, Subject},
    issuer::{Issuer, SignError},
    revoked::{Revoked, RevokedError},
};

/// The kubelet updates mounts once a minute or so; reading a small file this often costs nothing.
const INTERVAL: Duration = Duration::from_secs(5);
/// Replaced issuers that still sign lists; one is the rule.
const OLD_MAX: usize = 4;

/// Where the newest lists are; shared by the one who keeps them and the one who serves them.
#[derive(Clone, Debug, Default)]
pub struct Published(Arc<ArcSwapOption<Lists>>);

#[derive(Debug)]
struct Lists {
    pem: String,
    etag: String,
}

/// Keeps [`Published`] and the service's own view of what is revoked.
#[derive(Debug)]
pub struct ListKeeper {
    path: PathBuf,
    lifetime: Duration,
    clock_skew: Duration,
    issuer: Arc<ArcSwapOption<Issuer>>,
    revoked: Arc<ArcSwap<Revoked>>,
    published: Published,
    events: Events,
    /// Issuers that were replaced, and when their last leaf is over.
    old: Vec<(Arc<Issuer>, SystemTime)>,
    /// What the published lists were made of.
    made: Option<Made>,
    complaint: Option<String>,
}

#[derive(Debug)]
struct Made {
    issuer: Arc<Issuer>,
    revoked: Arc<Revoked>,
    renew_at: SystemTime,
}

/// Why there are no new lists; the old ones stay.
#[derive(Debug, thiserror::Error)]
pub enum ListsError {
    /// The file is not readable.
    #[error("failed to read {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file's text is no list.
    #[error("{path} is no list of revocations", path = .path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: RevokedError,
    },
    /// The issuer does not sign.
    #[error("failed to sign a revocation list")]
    Sign(#[from] SignError),
    /// Proxies would not take the lists.
    #[error("failed to read back the revocation lists")]
    ReadBack(#[from] RevocationsError),
}

impl ListKeeper {
    /// Keeps the lists of what `path` says is revoked, signed by whatever `issuer` holds.
    pub fn new(
        path: impl Into<PathBuf>,
        (lifetime, clock_skew): (Duration, Duration),
        issuer: Arc<ArcSwapOption<Issuer>>,
        revoked: Arc<ArcSwap<Revoked>>,
        events: Events,
    ) -> Self {
        Self {
            path: path.into(),
            lifetime,
            clock_skew,
            issuer,
            revoked,
            published: Published::default(),
            events,
            old: Vec::new(),
            made: None,
            complaint: None,
        }
    }

    /// Where the lists will be.
    pub fn published(&self) -> Published {
        self.published.clone()
    }

    /// Reads what is revoked, for the first time: without it nothing may be issued.
    ///
    /// # Errors
    /// The file is not there, or broken.
    pub fn load(&self) -> Result<(), ListsError> {
        let revoked = self.read()?;
        if **self.revoked.load() != revoked {
            info!(
                serials = revoked.serials.len(),
                identities = revoked.identities.len(),
                "Took new revocations"
            );
            self.revoked.store(Arc::new(revoked));
        }
        Ok(())
    }

    /// Runs until dropped.
    pub async fn run(mut self) {
        let mut interval = tokio::time::interval(INTERVAL.min(self.lifetime / 20));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.refresh(SystemTime::now());
        }
    }

    /// Looks once, and does what follows from it.
    pub fn refresh(&mut self, now: SystemTime) {
        let read = self.load();
        let signed = self.sign(now);
        match read.and(signed) {
            Ok(()) => self.complaint = None,
            Err(error) => {
                let text = report::chain(&error);
                if self.complaint.as_ref() != Some(&text) {
                    warn!(error = %text, "Keeping the last good revocations");
                    let note = format!("Keeping the last good revocations: {text}");
                    self.events
                        .tell(Reason::RevocationUpdateSkipped, Subject::Service, note);
                    self.complaint = Some(text);
                }
            }
        }
    }

    fn read(&self) -> Result<Revoked, ListsError> {
        let path = || self.path.clone();
        let text = std::fs::read_to_string(&self.path)
            .map_err(|source| ListsError::Read { path: path(), source })?;
        Revoked::parse(&text).map_err(|source| ListsError::Parse { path: path(), source })
    }

    /// Signs lists when there is something new, or when the published ones grow old.
    fn sign(&mut self, now: SystemTime) -> Result<(), ListsError> {
        let Some(issuer) = self.issuer.load_full() else {
            return Ok(());
        };
        let revoked = self.revoked.load_full();
        if let Some(made) = &self.made {
            let same = Arc::ptr_eq(&made.issuer, &issuer) && Arc::ptr_eq(&made.revoked, &revoked);
            if same && now < made.renew_at {
                return Ok(());
            }
            if !Arc::ptr_eq(&made.issuer, &issuer) {
                self.old.push((Arc::clone(&made.issuer), now + self.lifetime));
                let surplus = self.old.len().saturating_sub(OLD_MAX);
                self.old.drain(..surplus);
            }
        }
        self.old.retain(|(_, until)| *until > now);
        let (since, until) = (now - self.clock_skew, now + self.lifetime);
        let mut pem = String::new();
        for signer in std::iter::once(&issuer).chain(self.old.iter().map(|(issuer, _)| issuer)) {
            heddle_tls::revocation::to_pem(&mut pem, &signer.sign_list(&revoked, since, until)?);
        }
        // What proxies would refuse is not served.
        Revocations::from_pem(pem.as_bytes())?;
        let etag = digest::digest(&digest::SHA256, pem.as_bytes());
        let etag = etag.as_ref()[..8].iter().map(|byte| format!("{byte:02x}"));
        let etag = format!("\"{}\"", etag.collect::<String>());
        self.published.0.store(Some(Arc::new(Lists { pem, etag })));
        self.made = Some(Made {
            issuer,
            revoked,
            renew_at: now + self.lifetime / 4,
        });
        Ok(())
    }
}

/// Answers `GET` of [`LISTS_PATH`](heddle_tls::revocation::LISTS_PATH) beside the gRPC service, to anybody: lists are signed and no secret.
#[derive(Clone, Debug)]
pub struct ListService(Published);

impl ListService {
    /// Serves `published`.
    pub fn new(published: Published) -> Self {
        Self(published)
    }

    /// Of a request to the path of the lists.
    pub(crate) fn answer<B>(&self, request: &Request<B>) -> Response<Body> {
        let plain = |status| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            response
        };
        if request.method() != Method::GET {
            return plain(StatusCode::METHOD_NOT_ALLOWED);
        }
        // There is no issuer yet.
        let Some(lists) = self.0.0.load_full() else {
            return plain(StatusCode::SERVICE_UNAVAILABLE);
        };
        let known = request.headers().get(header::IF_NONE_MATCH);
        if known.is_some_and(|known| known.as_bytes() == lists.etag.as_bytes()) {
            return plain(StatusCode::NOT_MODIFIED);
        }
        let mut response = Response::new(Body::new(lists.pem.clone()));
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            header::HeaderValue::from_static("application/x-pem-file"),
        );
        if let Ok(etag) = lists.etag.parse() {
            headers.insert(header::ETAG, etag);
        }
        response
    }
}
