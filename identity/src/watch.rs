//! Keeps the issuer and the trust anchors current: both are files of mounted volumes, which Kubernetes swaps by a
//! symlink. File events make it fast, a timer makes it sure.
//!
//! A new issuer is used only when it loads and what it signs leads to the trust anchors; until then the old one stays,
//! and an Event says why.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use heddle_daemon::report;
use heddle_tls::roots::{self, RootsError};
use notify::{RecursiveMode, Watcher};
use tokio::sync::Notify;
use tracing::{debug, info, warn};

use crate::{
    event::{Events, Reason, Subject},
    issuer::{InvalidIssuer, Issuer, IssuerFiles, LoadError},
    own::Own,
};

/// Looks at the files this often even without an event.
const INTERVAL: Duration = Duration::from_secs(30);
/// Several events belong to one change.
const SETTLE: Duration = Duration::from_millis(200);

/// Keeps an issuer current.
#[derive(Debug)]
pub struct Keeper {
    dir: PathBuf,
    roots_path: PathBuf,
    own: Own,
    current: Arc<ArcSwapOption<Issuer>>,
    events: Events,
    /// The files of the issuer in use: nothing is parsed again while they stay.
    taken: Option<IssuerFiles>,
    /// The last complaints, so that each is made once.
    issuer_complaint: Option<String>,
    roots_complaint: Option<String>,
}

/// What a look at the issuer's files came to.
#[derive(Debug)]
pub enum IssuerChange {
    /// The same issuer as before, still good.
    Unchanged,
    /// A new issuer is in use.
    Updated,
    /// The files cannot be used; the old issuer stays.
    Skipped(LoadError),
    /// Peers would refuse what it signs; the old issuer stays.
    Invalid(InvalidIssuer),
}

impl Keeper {
    /// Keeps `current` equal to the issuer in `dir`, the anchors of `own`'s store equal to those in `roots_path`, and
    /// `own` renewed.
    pub fn new(
        dir: impl Into<PathBuf>,
        roots_path: impl Into<PathBuf>,
        own: Own,
        current: Arc<ArcSwapOption<Issuer>>,
        events: Events,
    ) -> Self {
        Self {
            dir: dir.into(),
            roots_path: roots_path.into(),
            own,
            current,
            events,
            taken: None,
            issuer_complaint: None,
            roots_complaint: None,
        }
    }

    /// Runs until dropped.
    pub async fn run(mut self, lifetime: Duration) {
        let changed = Arc::new(Notify::new());
        let _watcher = self.watch(&changed);
        // With short-lived leaves our own must be renewed more often than files are looked at.
        let mut interval = tokio::time::interval(INTERVAL.min(lifetime / 10).max(Duration::from_millis(100)));
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            self.refresh(SystemTime::now());
            tokio::select! {
                _ = interval.tick() => {}
                () = changed.notified() => tokio::time::sleep(SETTLE).await,
            }
        }
    }

    /// Looks at the files once, and does what follows from it.
    pub fn refresh(&mut self, now: SystemTime) -> IssuerChange {
        let roots_changed = self.refresh_roots();
        let change = self.refresh_issuer(roots_changed, now);
        self.tell(&change);
        if let Some(issuer) = self.current.load_full() {
            let new = matches!(change, IssuerChange::Updated);
            if (new || roots_changed || self.own.due(now))
                && let Err(error) = self.own.renew(&issuer, now)
            {
                warn!(error = %report::chain(&error), "Keeping the old certificate of the identity service itself");
            }
        }
        change
    }

    fn refresh_roots(&mut self) -> bool {
        let taken = roots::load(&self.roots_path).and_then(|roots| {
            let set = self.own.store().set_roots(roots);
            set.map_err(|source| RootsError::Use {
                path: self.roots_path.clone(),
                source,
            })
        });
        match taken {
            Ok(changed) => {
                self.roots_complaint = None;
                if changed {
                    info!(
                        anchors = self.own.store().roots().certs().len(),
                        "Took new trust anchors"
                    );
                }
                changed
            }
            Err(error) => {
                let text = report::chain(&error);
                if self.roots_complaint.as_ref() != Some(&text) {
                    warn!(error = %text, "Keeping the last good trust anchors");
                    self.roots_complaint = Some(text);
                }
                false
            }
        }
    }

    fn refresh_issuer(&mut self, roots_changed: bool, now: SystemTime) -> IssuerChange {
        let files = match IssuerFiles::read(&self.dir) {
            Ok(files) => files,
            Err(error) => return IssuerChange::Skipped(error),
        };
        if self.taken.as_ref() == Some(&files) && !roots_changed && self.issuer_complaint.is_none() {
            return IssuerChange::Unchanged;
        }
        let issuer = match files.parse() {
            Ok(issuer) => issuer,
            Err(error) => return IssuerChange::Skipped(error),
        };
        let store = self.own.store();
        if let Err(error) = issuer.check(&store.roots(), store.name(), now) {
            return IssuerChange::Invalid(error);
        }
        self.taken = Some(files);
        if self
            .current
            .load()
            .as_ref()
            .is_some_and(|current| current.same(&issuer))
        {
            return IssuerChange::Unchanged;
        }
        self.current.store(Some(Arc::new(issuer)));
        IssuerChange::Updated
    }

    fn tell(&mut self, change: &IssuerChange) {
        let (reason, error) = match change {
            IssuerChange::Unchanged => {
                self.issuer_complaint = None;
                return;
            }
            IssuerChange::Updated => {
                self.issuer_complaint = None;
                info!(dir = %self.dir.display(), "Updated the issuer");
                let note = "Updated identity issuer".to_owned();
                return self.events.tell(Reason::IssuerUpdated, Subject::Service, note);
            }
            IssuerChange::Skipped(error) => (Reason::IssuerUpdateSkipped, report::chain(error)),
            IssuerChange::Invalid(error) => (Reason::IssuerValidationFailed, report::chain(error)),
        };
        if self.issuer_complaint.as_ref() == Some(&error) {
            return;
        }
        let old = if self.current.load().is_some() {
            "keeping the old one"
        } else {
            "there is none yet"
        };
        warn!(dir = %self.dir.display(), %error, "Did not take an issuer: {old}");
        self.events.tell(
            reason,
            Subject::Service,
            format!("Did not take an issuer, {old}: {error}"),
        );
        self.issuer_complaint = Some(error);
    }

    fn watch(&self, changed: &Arc<Notify>) -> Option<notify::RecommendedWatcher> {
        let notify = Arc::clone(changed);
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| match event {
                // Reading the files makes events too.
                Ok(event) if event.kind.is_access() => {}
                _ => notify.notify_one(),
            })
            .inspect_err(|error| warn!(%error, "Files are looked at by timer only"))
            .ok()?;
        for path in [Some(self.dir.as_path()), self.roots_path.parent()]
            .into_iter()
            .flatten()
        {
            let path = if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            };
            if let Err(error) = watcher.watch(path, RecursiveMode::NonRecursive) {
                debug!(path = %path.display(), %error, "A folder is looked at by timer only");
            }
        }
        Some(watcher)
    }
}

#[cfg(test)]
mod tests;
