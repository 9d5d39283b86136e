//! Keeps `caBundle` right in the webhook configurations: what API servers trust when they ask this program.
//!
//! The reconciler applies the configurations without that field, and this program alone knows its value, so it owns
//! the field by server-side apply. An edit by hand is undone; nothing is written while the value is right.

use std::{fmt::Debug, sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use heddle_daemon::report;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    certificate::{self, Serving},
    said,
};

/// cert-manager's cainjector writes the field itself where this annotation asks for it.
const CAINJECTOR_PREFIX: &str = "cert-manager.io/inject-ca-from";
const RETRY: Duration = Duration::from_secs(2);
/// API servers see a changed configuration after a moment; a certificate under a new authority waits for that.
pub(crate) const API_SERVERS_CATCH_UP: Duration = Duration::from_secs(10);

/// The two kinds of webhook configurations.
pub(crate) trait Configuration:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
    /// Names of the webhooks, and how they are reached.
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)>;
}

impl Configuration for MutatingWebhookConfiguration {
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|webhook| (webhook.name.as_str(), &webhook.client_config))
    }
}

impl Configuration for ValidatingWebhookConfiguration {
    fn clients(&self) -> impl Iterator<Item = (&str, &WebhookClientConfig)> {
        let webhooks = self.webhooks.iter().flatten();
        webhooks.map(|webhook| (webhook.name.as_str(), &webhook.client_config))
    }
}

/// What the cluster's webhook configurations say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Not looked at yet.
    Unknown,
    /// There is no configuration that names this program's services: nobody asks.
    Absent,
    /// A bundle is not the one that is served under.
    Differs,
    /// API servers trust what is served.
    InPlace,
}

/// Keeps the bundle, and says which certificate is to be served.
#[derive(Debug)]
pub(crate) struct Keeper<C> {
    pub(crate) api: Api<C>,
    /// The field manager of `caBundle`.
    pub(crate) manager: &'static str,
    /// Names of the configurations.
    pub(crate) names: Vec<String>,
    /// The Services that their webhooks name, and those Services' namespace.
    pub(crate) services: Vec<String>,
    pub(crate) namespace: String,
    /// The newest certificate.
    pub(crate) newest: watch::Receiver<Option<Serving>>,
    /// The certificate that the listener presents.
    pub(crate) presented: watch::Sender<Option<Arc<Serving>>>,
    pub(crate) state: watch::Sender<State>,
    /// See [`API_SERVERS_CATCH_UP`].
    pub(crate) catch_up: Duration,
}

/// One configuration, as far as it is known.
#[derive(Clone, Debug)]
struct Watched<C> {
    listed: bool,
    found: Option<C>,
}

type Events<C> = BoxStream<'static, (usize, watcher::Result<Event<C>>)>;

impl<C: Configuration> Keeper<C> {
    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        let mut events = stream::select_all((0..self.names.len()).map(|index| self.events(index)));
        let nothing = Watched {
            listed: false,
            found: None,
        };
        let mut configurations = vec![nothing; self.names.len()];
        let mut wake: Option<Instant> = None;
        let mut trusted_since: Option<Instant> = None;
        loop {
            tokio::select! {
                event = events.next() => {
                    let Some((index, event)) = event else {
                        return;
                    };
                    match event {
                        Ok(event) => configurations[index].note(event),
                        Err(error) => {
                            warn!(
                                configuration = self.names[index],
                                error = %report::chain(&error),
                                "Failed to watch the webhook configuration"
                            );
                            continue;
                        }
                    }
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
            if !configurations.iter().all(|watched| watched.listed) {
                continue;
            }
            let found = || configurations.iter().filter_map(|watched| watched.found.as_ref());
            let mut state = State::Absent;
            for configuration in found() {
                state = state.and(self.judge(configuration, &newest));
            }
            self.state
                .send_if_modified(|current| std::mem::replace(current, state) != state);
            match state {
                State::Differs => {
                    let differing =
                        found().filter(|configuration| self.judge(configuration, &newest) == State::Differs);
                    for configuration in differing {
                        if let Err(error) = self.apply(configuration, &newest).await {
                            warn!(
                                configuration = configuration.name_any(),
                                error = said(&error),
                                "Failed to apply the caBundle"
                            );
                            wake = Some(Instant::now() + RETRY);
                        }
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

    /// What happens to one configuration, told apart by its index.
    fn events(&self, index: usize) -> Events<C> {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.names[index]));
        let events = watcher::watcher(self.api.clone(), only).default_backoff();
        events.map(move |event| (index, event)).boxed()
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

    fn judge(&self, configuration: &C, newest: &Serving) -> State {
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
            let trusted = |(_, client): (&str, &WebhookClientConfig)| {
                let bundle = client.ca_bundle.as_ref();
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
        let right = |(_, client): (&str, &WebhookClientConfig)| {
            let bundle = client.ca_bundle.as_ref();
            bundle.is_some_and(|bundle| bundle.0 == newest.ca_bundle.as_bytes())
        };
        if ours.all(right) {
            State::InPlace
        } else {
            State::Differs
        }
    }

    /// The webhooks that ask this program.
    fn ours<'a>(
        &'a self,
        configuration: &'a C,
    ) -> impl Iterator<Item = (&'a str, &'a WebhookClientConfig)> + 'a {
        configuration.clients().filter(|(_, client)| {
            client.service.as_ref().is_some_and(|service| {
                self.services.contains(&service.name) && service.namespace == self.namespace
            })
        })
    }

    async fn apply(&self, configuration: &C, newest: &Serving) -> Result<(), kube::Error> {
        use base64::Engine as _;
        let bundle = base64::engine::general_purpose::STANDARD.encode(&newest.ca_bundle);
        let webhooks: Vec<_> = self
            .ours(configuration)
            .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
            .collect();
        let name = configuration.name_any();
        let patch = json!({
            "apiVersion": C::api_version(&()),
            "kind": C::kind(&()),
            // With the uid, a configuration that was deleted meanwhile is not created anew, half empty.
            "metadata": {"name": name, "uid": configuration.uid()},
            "webhooks": webhooks,
        });
        // By force, as nothing else in Heddle: nobody but this program can know the value, and another one would keep
        // API servers from asking for as long as it stayed.
        let params = PatchParams::apply(self.manager).force();
        self.api.patch(&name, &params, &Patch::Apply(&patch)).await?;
        info!(
            configuration = name,
            webhooks = webhooks.len(),
            "Applied the caBundle"
        );
        Ok(())
    }
}

impl<C> Watched<C> {
    fn note(&mut self, event: Event<C>) {
        match event {
            Event::Apply(found) | Event::InitApply(found) => self.found = Some(found),
            Event::Delete(_) => self.found = None,
            // What the list does not bring is gone.
            Event::Init => (self.found, self.listed) = (None, false),
            Event::InitDone => self.listed = true,
        }
    }
}

impl State {
    /// What two configurations say together.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::Differs, _) | (_, Self::Differs) => Self::Differs,
            (Self::InPlace, _) | (_, Self::InPlace) => Self::InPlace,
            (Self::Absent, Self::Absent) => Self::Absent,
        }
    }
}

async fn sleep_until(wake: Option<Instant>) {
    match wake {
        Some(wake) => tokio::time::sleep_until(wake).await,
        None => std::future::pending().await,
    }
}
