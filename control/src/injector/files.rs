//! The injector's two files, the settings and the trust anchors, read again when they change.
//!
//! Both are mounted ConfigMaps. A file that turns bad is logged once and counted; the last good one stays.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use heddle_daemon::report;
use heddle_inject::{ConfigError, ProxyDefaults};
use heddle_tls::{TrustBundle, TrustError};
use notify::{RecursiveMode, Watcher as _};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::Notify;
use tracing::{info, warn};

/// Notifications may get lost; looking is cheap.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// A ConfigMap has at most 1 MiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What the files say.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) defaults: ProxyDefaults,
    /// The trust anchors, PEM, as they go into pods.
    pub(super) trust_anchors_pem: String,
    text: String,
}

/// Where the files are.
#[derive(Clone, Debug)]
pub(super) struct Files {
    pub(super) config: PathBuf,
    pub(super) trust_roots: PathBuf,
}

/// Why the files cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum SettingsError {
    #[error("failed to read {path}", path = .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is larger than {FILE_BYTES_MAX} bytes", path = .path.display())]
    TooLarge { path: PathBuf },
    #[error("{path} holds no settings", path = .path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("{path} holds no trust anchors", path = .path.display())]
    TrustRoots { path: PathBuf, source: TrustError },
}

impl Files {
    pub(super) fn load(&self) -> Result<Settings, SettingsError> {
        let Self { config, trust_roots } = self;
        let text = read(config)?;
        let defaults = ProxyDefaults::from_yaml(&text).map_err(|source| SettingsError::Config {
            path: config.clone(),
            source,
        })?;
        let trust_anchors_pem = read(trust_roots)?;
        // A pod that gets anchors its proxy cannot read would never start.
        TrustBundle::from_pem(&trust_anchors_pem).map_err(|source| SettingsError::TrustRoots {
            path: trust_roots.clone(),
            source,
        })?;
        Ok(Settings {
            defaults,
            trust_anchors_pem,
            text,
        })
    }

    /// Keeps `settings` what the files say, until dropped.
    pub(super) async fn follow(self, settings: Arc<ArcSwap<Settings>>, failures: Counter) {
        let changed = Arc::new(Notify::new());
        let watcher = self.watch(Arc::clone(&changed));
        if let Err(error) = &watcher {
            warn!(%error, "Cannot watch the settings' folders; looking every {} s", LOOK_INTERVAL.as_secs());
        }
        let mut complained = None;
        loop {
            // Notifications coalesce in one permit.
            let _ = tokio::time::timeout(LOOK_INTERVAL, changed.notified()).await;
            match self.load() {
                Ok(found) => {
                    complained = None;
                    let current = settings.load();
                    let (config, roots) = (
                        found.text != current.text,
                        found.trust_anchors_pem != current.trust_anchors_pem,
                    );
                    if config || roots {
                        settings.store(Arc::new(found));
                        info!(config, trust_roots = roots, "Took new settings");
                    }
                }
                Err(error) => {
                    let text = report::chain(&error);
                    if complained.as_ref() != Some(&text) {
                        failures.inc();
                        warn!(error = %text, "Keeping the last good settings");
                        complained = Some(text);
                    }
                }
            }
        }
    }

    /// The kubelet exchanges a link in the folder, so the folder is what to watch.
    fn watch(&self, changed: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            // Reading the files is an event, too.
            if event.is_ok_and(|event| !event.kind.is_access()) {
                changed.notify_one();
            }
        })?;
        for file in [&self.config, &self.trust_roots] {
            let folder = file
                .parent()
                .filter(|folder| !folder.as_os_str().is_empty())
                .unwrap_or(Path::new("."));
            watcher.watch(folder, RecursiveMode::NonRecursive)?;
        }
        Ok(watcher)
    }
}

fn read(path: &Path) -> Result<String, SettingsError> {
    let failed = |source| SettingsError::Read {
        path: path.to_owned(),
        source,
    };
    let size = std::fs::metadata(path).map_err(failed)?.len();
    if size > FILE_BYTES_MAX {
        return Err(SettingsError::TooLarge {
            path: path.to_owned(),
        });
    }
    std::fs::read_to_string(path).map_err(failed)
}
