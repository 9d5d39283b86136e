//! What an admission webhook needs besides its decisions: an HTTPS server with bounds, a serving certificate that its
//! replicas share in a Secret, and the `caBundle` that makes API servers trust it.
//!
//! In go names and a [`server::Review`]; out comes a server, and whether it may be asked. Nothing here knows what
//! is admitted.

pub(crate) mod ca_bundle;
pub(crate) mod certificate;
pub(crate) mod metrics;
pub(crate) mod review;
pub(crate) mod secret;
pub(crate) mod server;

#[cfg(test)]
mod tests;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use heddle_daemon::report;
use kube::{Api, Client};
use tokio::{sync::watch, task::JoinSet};

use self::{ca_bundle::Configuration, certificate::Serving};

/// How one webhook appears in the cluster.
#[derive(Clone, Debug)]
pub(crate) struct Webhook {
    /// Owner of `caBundle` in the configurations, and maker of the Secret.
    pub(crate) manager: &'static str,
    /// Value of the label `linkerd.io/control-plane-component`.
    pub(crate) component: &'static str,
    pub(crate) control_namespace: String,
    pub(crate) cluster_domain: String,
    /// Services by which API servers reach it.
    pub(crate) services: Vec<String>,
    /// Secret that the replicas share their serving certificate in.
    pub(crate) secret: String,
    /// Webhook configurations to keep the caBundle of.
    pub(crate) configurations: Vec<String>,
}

impl Webhook {
    /// Starts to keep certificate and bundle, as tasks that never end.
    pub(crate) fn keep<C: Configuration>(self, client: &Client, tasks: &mut JoinSet<()>) -> Presence {
        let Self {
            manager,
            component,
            control_namespace,
            cluster_domain,
            services,
            secret,
            configurations,
        } = self;
        let owner = secret::Owner { manager, component };
        let hosts = services
            .iter()
            .map(|service| format!("{service}.{control_namespace}.svc"))
            .collect();
        let api = Api::namespaced(client.clone(), &control_namespace);
        let (keeper, newest) = secret::Keeper::new(api, owner, &secret, hosts, &cluster_domain);
        tasks.spawn(keeper.run());
        let (presented, presenting) = watch::channel(None);
        let (state, bundle) = watch::channel(ca_bundle::State::Unknown);
        let keeper = ca_bundle::Keeper::<C> {
            api: Api::all(client.clone()),
            manager,
            names: configurations,
            namespace: control_namespace,
            services,
            newest,
            presented,
            state,
            catch_up: ca_bundle::API_SERVERS_CATCH_UP,
        };
        tasks.spawn(keeper.run());
        Presence {
            presenting,
            bundle,
            bundle_seen: Arc::default(),
        }
    }
}

/// What is known of certificate and bundle.
#[derive(Clone, Debug)]
pub(crate) struct Presence {
    /// The certificate that the listener presents.
    pub(crate) presenting: watch::Receiver<Option<Arc<Serving>>>,
    bundle: watch::Receiver<ca_bundle::State>,
    /// Once the bundle was in place, an edit by hand is mended in a moment and no reason to send requests elsewhere.
    bundle_seen: Arc<AtomicBool>,
}

impl Presence {
    /// Whether API servers may ask: a certificate is presented, and they trust it, if there is a configuration that
    /// makes them ask: that one may well be applied only when the webhook is ready.
    pub(crate) fn is_ready(&self) -> bool {
        let in_place = match *self.bundle.borrow() {
            ca_bundle::State::InPlace | ca_bundle::State::Absent => true,
            ca_bundle::State::Differs => self.bundle_seen.load(Ordering::Acquire),
            ca_bundle::State::Unknown => false,
        };
        let ready = in_place && self.presenting.borrow().is_some();
        if ready {
            self.bundle_seen.store(true, Ordering::Release);
        }
        ready
    }
}

/// What the API server said: the client's own text repeats it with the whole status.
pub(crate) fn said(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => format!("{} ({} {})", status.message, status.code, status.reason),
        other => report::chain(other),
    }
}
