//! The endpoints of one service: `Destination.Get`.

use std::sync::Arc;

use heddle_proxy_policy::EndpointSet;
use linkerd2_proxy_api::destination::GetDestination;
use tokio::sync::watch;
use tonic::Code;
use tracing::{debug, warn};

use super::{
    Inner,
    stream::{self, Event, Next},
};

pub(super) async fn follow(inner: &Inner, path: &Arc<str>, publish: &watch::Sender<Arc<EndpointSet>>) {
    let open = || {
        let mut client = inner.destination.clone();
        let request = GetDestination {
            scheme: "k8s".to_owned(),
            path: path.to_string(),
            context_token: inner.config.control.destination_context.clone(),
        };
        async move { client.get(request).await }
    };
    stream::follow(
        format!("endpoints of {path}"),
        inner.config.control.streams(&inner.config.control.destination),
        open,
        |event| {
            match event {
                Event::Message(update, first) => {
                    let mut set = EndpointSet::clone(&publish.borrow());
                    match set.apply(update, first) {
                        Ok(refused) => {
                            for error in refused {
                                warn!(%path, %error, "Leaving out an endpoint");
                            }
                            debug!(%path, endpoints = set.iter().count(), "Endpoints changed");
                            publish.send_replace(Arc::new(set));
                        }
                        Err(error) => warn!(%path, %error, "Ignoring an invalid update of endpoints"),
                    }
                }
                // No service of this name, now; others keep what was known.
                Event::Failed(status) if matches!(status.code(), Code::NotFound | Code::InvalidArgument) => {
                    publish.send_replace(Arc::new(EndpointSet::DoesNotExist));
                }
                Event::Failed(_) => {}
            }
            Next::Retry
        },
    )
    .await;
}
