//! The profile of an address or a name: `Destination.GetProfile`.

use std::sync::Arc;

use heddle_proxy_policy::Profile;
use linkerd2_proxy_api::destination::GetDestination;
use tokio::sync::watch;
use tonic::Code;
use tracing::warn;

use super::{
    Inner,
    stream::{self, Event, Next},
};
use crate::dst::NameAddr;

/// Hands on what comes of the stream. A profile that cannot be read changes nothing.
pub(super) async fn follow(inner: &Inner, path: &str, mut on: impl FnMut(Event<Profile>) -> Next) {
    let open = || {
        let mut client = inner.destination.clone();
        let request = GetDestination {
            scheme: "k8s".to_owned(),
            path: path.to_owned(),
            context_token: inner.config.control.destination_context.clone(),
        };
        async move { client.get_profile(request).await }
    };
    let what = format!("profile of {path}");
    stream::follow(
        what,
        inner.config.control.streams(&inner.config.control.destination),
        open,
        |event| match event {
            Event::Message(profile, first) => match Profile::try_from(profile) {
                Ok(profile) => on(Event::Message(profile, first)),
                Err(error) => {
                    warn!(%path, %error, "Ignoring an invalid profile");
                    Next::Retry
                }
            },
            Event::Failed(status) => on(Event::Failed(status)),
        },
    )
    .await;
}

/// Publishes a service's profile.
pub(super) async fn publish(inner: &Inner, name: &NameAddr, publish: &watch::Sender<Option<Arc<Profile>>>) {
    follow(inner, &name.to_string(), |event| match event {
        Event::Message(profile, _) => {
            publish.send_replace(Some(Arc::new(profile)));
            Next::Retry
        }
        Event::Failed(status) if status.code() == Code::InvalidArgument => Next::Stop,
        Event::Failed(_) => Next::Retry,
    })
    .await;
}
