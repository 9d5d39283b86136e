//! Keeps `caBundle` right in the webhook configuration: what the API server trusts when it asks the injector.
//!
//! The reconciler applies the configuration without that field, and this program alone knows its value, so it owns
//! the field by server-side apply. An edit by hand is undone; nothing is written while the value is right.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use heddle_daemon::report;
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use kube::{
    Api, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    certificate::{self, Serving},
    said,
};

/// The field manager of `caBundle`.
const MANAGER: &str = "heddle-injector";
/// cert-manager's cainjector writes the field itself where this annotation asks for it.
const CAINJECTOR_PREFIX: &str = "cert-manager.io/inject-ca-from";
const RETRY: Duration = Duration::from_secs(2);
/// API servers see a changed configuration after a moment; a certificate under a new authority waits for that.
pub(super) const API_SERVERS_CATCH_UP: Duration = Duration::from_secs(10);

/// What the cluster's webhook configuration says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Not looked at yet.
    Unknown,
    /// There is no configuration that names this service: nobody asks.
    Absent,
    /// The bundle is not the one that is served under.
    Differs,
    /// The API server trusts what is served.
    InPlace,
}

/// Keeps the bundle, and says which certificate is to be served.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) api: Api<MutatingWebhookConfiguration>,
    /// Name of the configuration.
    pub(super) name: String,
    /// The Service that its webhooks name, and its namespace.
    pub(super) service: (String, String),
    /// The newest certificate.
    pub(super) newest: watch::Receiver<Option<Serving>>,
    /// The certificate that the listener presents.
    pub(super) presented: watch::Sender<Option<Arc<Serving>>>,
    pub(super) state: watch::Sender<State>,
    /// See [`API_SERVERS_CATCH_UP`].
    pub(super) catch_up: Duration,
}

impl Keeper {
    /// Runs until dropped.
    pub(super) async fn run(mut self) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher::watcher(self.api.clone(), only).default_backoff().boxed();
        let mut configuration: Option<MutatingWebhookConfiguration> = None;
        let mut listed = false;
        let mut wake: Option<Instant> = None;
        let mut trusted_since: Option<Instant> = None;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(found) | Event::InitApply(found))) => configuration = Some(found),
                    Some(Ok(Event::Delete(_))) => configuration = None,
                    Some(Ok(Event::Init)) => {
                        (configuration, listed) = (None, false);
                        continue;
                    }
                    Some(Ok(Event::InitDone)) => listed = true,
                    Some(Err(error)) => {
                        warn!(configuration = self.name, error = %report::chain(&error), "Failed to watch the webhook configuration");
                        continue;
                    }
                    None => return,
                },
                changed = self.newest.changed() => if changed.is_err() {
                    return;
                } else {
                    trusted_since = None;
                },
                () = sleep_until(wake) => {}
            }
            wake = None;
            let Some(newest) = self.newest.borrow_and_update().clone() else {
                continue;
            };
            if self.presented.borrow().is_none() {
                // Nothing to lose: an API server that does not trust it yet could not ask before, either.
                self.presented.send_replace(Some(Arc::new(newest.clone())));
            }
            if !listed {
                continue;
            }
            let state = self.judge(configuration.as_ref(), &newest);
            self.state
                .send_if_modified(|current| std::mem::replace(current, state) != state);
            match state {
                State::Differs => {
                    let found = configuration
                        .as_ref()
                        .expect("only an existing configuration differs");
                    if let Err(error) = self.apply(found, &newest).await {
                        warn!(
                            configuration = self.name,
                            error = said(&error),
                            "Failed to apply the caBundle"
                        );
                        wake = Some(Instant::now() + RETRY);
                    }
                    trusted_since = None;
                }
                State::InPlace | State::Absent => {
                    let since = *trusted_since.get_or_insert_with(Instant::now);
                    wake = self.present(newest, since, state);
                }
                State::Unknown => {}
            }
        }
    }

    /// Presents the newest certificate once API servers trust it; until then the one before it is still good.
    fn present(&self, newest: Serving, trusted_since: Instant, state: State) -> Option<Instant> {
        let presented = self.presented.borrow().clone();
        let same_authority = presented.as_ref().is_some_and(|presented| {
            certificate::newest_authority(&presented.ca_bundle)
                == certificate::newest_authority(&newest.ca_bundle)
        });
        let same =
            presented.is_some_and(|presented| same_authority && presented.not_after == newest.not_after);
        let catch_up = trusted_since + self.catch_up;
        if same {
            return None;
        }
        if state == State::InPlace && !same_authority && Instant::now() < catch_up {
            return Some(catch_up);
        }
        self.presented.send_replace(Some(Arc::new(newest)));
        info!("Presenting a new serving certificate");
        None
    }

    fn judge(&self, configuration: Option<&MutatingWebhookConfiguration>, newest: &Serving) -> State {
        let Some(configuration) = configuration else {
            return State::Absent;
        };
        let mut ours = self.ours(configuration).peekable();
        if ours.peek().is_none() {
            return State::Absent;
        }
        if configuration
            .annotations()
            .keys()
            .any(|key| key.starts_with(CAINJECTOR_PREFIX))
        {
            let authority = certificate::newest_authority(&newest.ca_bundle);
            let trusted = |webhook: &MutatingWebhook| {
                let bundle = webhook.client_config.ca_bundle.as_ref();
                bundle
                    .zip(authority.as_ref())
                    .is_some_and(|(bundle, ca)| certificate::trusts(&bundle.0, ca))
            };
            // Not ours to write: either it is right, or cainjector has yet to come.
            return if ours.all(trusted) {
                State::InPlace
            } else {
                State::Absent
            };
        }
        let right = |webhook: &MutatingWebhook| {
            webhook
                .client_config
                .ca_bundle
                .as_ref()
                .is_some_and(|bundle| bundle.0 == newest.ca_bundle.as_bytes())
        };
        if ours.all(right) {
            State::InPlace
        } else {
            State::Differs
        }
    }

    /// The webhooks that ask this service.
    fn ours<'a>(
        &'a self,
        configuration: &'a MutatingWebhookConfiguration,
    ) -> impl Iterator<Item = &'a MutatingWebhook> + 'a {
        configuration.webhooks.iter().flatten().filter(|webhook| {
            let service = webhook.client_config.service.as_ref();
            service
                .is_some_and(|service| service.name == self.service.0 && service.namespace == self.service.1)
        })
    }

    async fn apply(
        &self,
        configuration: &MutatingWebhookConfiguration,
        newest: &Serving,
    ) -> Result<(), kube::Error> {
        use base64::Engine as _;
        let bundle = base64::engine::general_purpose::STANDARD.encode(&newest.ca_bundle);
        let webhooks: Vec<_> = self
            .ours(configuration)
            .map(|webhook| json!({"name": webhook.name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let patch = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            // With the uid, a configuration that was deleted meanwhile is not created anew, half empty.
            "metadata": {"name": self.name, "uid": configuration.uid()},
            "webhooks": webhooks,
        });
        // By force, as nothing else in Heddle: nobody but this program can know the value, and another one would keep
        // pods out of the mesh for as long as it stayed.
        let params = PatchParams::apply(MANAGER).force();
        self.api.patch(&self.name, &params, &Patch::Apply(&patch)).await?;
        info!(
            configuration = self.name,
            webhooks = webhooks.len(),
            "Applied the caBundle"
        );
        Ok(())
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
