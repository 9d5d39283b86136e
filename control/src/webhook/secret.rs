//! Keeps the Secret of the serving certificate: made when absent, renewed at two thirds of its life, and shared by all
//! replicas. Whoever comes first writes; the others see it by their watch.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt as _;
use heddle_daemon::report;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, ResourceExt as _,
    api::{ObjectMeta, PostParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event},
    },
};
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::{
    certificate::{self, CertificateError, Material, Serving},
    said,
};

/// On the Secret: who made it. What others made is served, and never overwritten.
const MADE_BY: &str = "heddle.dev/made-by";
const TYPE: &str = "kubernetes.io/tls";

const LOOK_AGAIN_MAX: Duration = Duration::from_secs(60 * 60);
const RETRY: Duration = Duration::from_secs(5);

/// Whose Secret it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner {
    /// Field manager, and value of the annotation and the label that tell who made it.
    pub(crate) manager: &'static str,
    /// Value of the label `linkerd.io/control-plane-component`.
    pub(crate) component: &'static str,
}

/// Keeps the Secret and publishes what it holds.
#[derive(Debug)]
pub(crate) struct Keeper {
    api: Api<Secret>,
    owner: Owner,
    name: String,
    /// What API servers call the webhook's services.
    hosts: Vec<String>,
    /// Besides them, their names in the cluster's domain.
    aliases: Vec<String>,
    lifetime_clock: fn() -> SystemTime,
    published: watch::Sender<Option<Serving>>,
}

/// What is to be done about the Secret.
#[derive(Debug)]
enum Verdict {
    /// Serve it; look again when it is to be renewed.
    Serve(Serving),
    /// Serve it while it lasts, and replace it.
    Renew(Serving, Box<Secret>),
    /// It cannot be served, and is ours to replace.
    Replace(CertificateError, Box<Secret>),
    /// It cannot be served, and somebody else made it.
    Foreign(CertificateError),
    /// There is none.
    Make,
}

impl Keeper {
    pub(crate) fn new(
        api: Api<Secret>,
        owner: Owner,
        name: &str,
        hosts: Vec<String>,
        cluster_domain: &str,
    ) -> (Self, watch::Receiver<Option<Serving>>) {
        let (published, receiver) = watch::channel(None);
        let aliases = hosts
            .iter()
            .map(|host| format!("{host}.{cluster_domain}"))
            .collect();
        (
            Self {
                api,
                owner,
                name: name.to_owned(),
                hosts,
                aliases,
                lifetime_clock: SystemTime::now,
                published,
            },
            receiver,
        )
    }

    #[cfg(test)]
    pub(crate) fn clock(mut self, now: fn() -> SystemTime) -> Self {
        self.lifetime_clock = now;
        self
    }

    /// Runs until dropped.
    pub(crate) async fn run(self) {
        let only = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut events = watcher::watcher(self.api.clone(), only).default_backoff().boxed();
        let mut secret = None;
        let mut listed = false;
        let mut wait = LOOK_AGAIN_MAX;
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(Event::Apply(found) | Event::InitApply(found))) => secret = Some(found),
                    Some(Ok(Event::Delete(_))) => secret = None,
                    Some(Ok(Event::Init)) => {
                        // What the list does not bring is gone.
                        (secret, listed) = (None, false);
                        continue;
                    }
                    Some(Ok(Event::InitDone)) => listed = true,
                    Some(Err(error)) => {
                        warn!(secret = self.name, error = %report::chain(&error), "Failed to watch the webhook's certificate");
                        continue;
                    }
                    None => return,
                },
                () = tokio::time::sleep(wait) => {}
            }
            if listed {
                wait = self.settle(secret.as_ref()).await;
            }
        }
    }

    /// Does what the Secret calls for; returns when to look again at the latest.
    async fn settle(&self, secret: Option<&Secret>) -> Duration {
        let now = (self.lifetime_clock)();
        let written = match self.judge(secret, now) {
            Verdict::Serve(serving) => {
                let wait = serving.renew_at.duration_since(now).unwrap_or_default();
                self.publish(serving);
                return wait.clamp(Duration::from_secs(1), LOOK_AGAIN_MAX);
            }
            Verdict::Renew(serving, old) => {
                let previous = serving.ca_bundle.clone();
                self.publish(serving);
                self.write(Some(*old), Some(&previous), now).await
            }
            Verdict::Replace(problem, old) => {
                warn!(secret = self.name, error = %report::chain(&problem), "Replacing the webhook's certificate");
                self.write(Some(*old), None, now).await
            }
            Verdict::Make => self.write(None, None, now).await,
            Verdict::Foreign(problem) => {
                error!(
                    secret = self.name, error = %report::chain(&problem),
                    "The webhook's certificate cannot be served; whoever made the Secret must mend it, or delete it to have one made"
                );
                return RETRY;
            }
        };
        // What was written comes back by the watch.
        match written {
            Ok(()) => LOOK_AGAIN_MAX,
            Err(error) => {
                warn!(secret = self.name, error = %report::chain(&error), "Failed to write the webhook's certificate");
                RETRY
            }
        }
    }

    fn judge(&self, secret: Option<&Secret>, now: SystemTime) -> Verdict {
        let Some(secret) = secret else {
            return Verdict::Make;
        };
        let ours = secret
            .annotations()
            .get(MADE_BY)
            .is_some_and(|value| value == self.owner.manager);
        match certificate::check(&material(secret), &self.hosts, now) {
            Ok(serving) if now >= serving.renew_at && ours => {
                Verdict::Renew(serving, Box::new(secret.clone()))
            }
            Ok(serving) => Verdict::Serve(serving),
            Err(problem) if ours => Verdict::Replace(problem, Box::new(secret.clone())),
            Err(problem) => Verdict::Foreign(problem),
        }
    }

    fn publish(&self, serving: Serving) {
        self.published.send_if_modified(|current| {
            let same = current.as_ref().is_some_and(|current| {
                current.not_after == serving.not_after && current.ca_bundle == serving.ca_bundle
            });
            if !same {
                *current = Some(serving);
            }
            !same
        });
    }

    async fn write(
        &self,
        old: Option<Secret>,
        previous: Option<&str>,
        now: SystemTime,
    ) -> Result<(), WriteError> {
        let authority = format!("linkerd-{} webhook CA", self.owner.component);
        let names: Vec<_> = self.hosts.iter().chain(&self.aliases).cloned().collect();
        let material =
            certificate::issue(&authority, &names, previous, now).map_err(WriteError::Certificate)?;
        let renewal = old.is_some();
        let secret = self.secret(old, material);
        let params = PostParams {
            field_manager: Some(self.owner.manager.to_owned()),
            ..PostParams::default()
        };
        let result = match renewal {
            // The resource version in it makes this fail when another replica was faster.
            true => self.api.replace(&self.name, &params, &secret).await,
            false => self.api.create(&params, &secret).await,
        };
        match result {
            Ok(_) => {
                info!(
                    secret = self.name,
                    renewal, "Made a serving certificate for the webhook"
                );
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                info!(
                    secret = self.name,
                    "Another replica made a serving certificate first"
                );
                Ok(())
            }
            Err(error) => Err(WriteError::Api(said(&error))),
        }
    }

    fn secret(&self, old: Option<Secret>, material: Material) -> Secret {
        let Material {
            ca_bundle,
            certificate,
            key,
        } = material;
        let data = [("ca.crt", ca_bundle), ("tls.crt", certificate), ("tls.key", key)];
        let data = data.map(|(key, text)| (key.to_owned(), ByteString(text.into_bytes())));
        let text = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
        let Owner { manager, component } = self.owner;
        let labels = [
            (heddle_mesh::label::CONTROL_PLANE_COMPONENT, component),
            (heddle_mesh::label::MANAGED_BY, manager),
        ];
        let metadata = ObjectMeta {
            name: Some(self.name.clone()),
            resource_version: old.and_then(|old| old.metadata.resource_version),
            annotations: Some([(MADE_BY, manager)].map(text).into()),
            labels: Some(labels.map(text).into()),
            ..ObjectMeta::default()
        };
        Secret {
            metadata,
            data: Some(BTreeMap::from(data)),
            type_: Some(TYPE.to_owned()),
            ..Secret::default()
        }
    }
}

/// Why the Secret was not written.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("failed to make a serving certificate")]
    Certificate(#[source] CertificateError),
    #[error("the API server did not take the Secret: {0}")]
    Api(String),
}

/// What a Secret holds; missing or binary parts are empty, and fail the check by name.
fn material(secret: &Secret) -> Material {
    let part = |key: &str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes
            .map(|bytes| String::from_utf8_lossy(&bytes.0).into_owned())
            .unwrap_or_default()
    };
    Material {
        ca_bundle: part("ca.crt"),
        certificate: part("tls.crt"),
        key: part("tls.key"),
    }
}
