//! `Tap.Observe` on the control port, over mTLS, for one identity.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::Stream;
use heddle_tls::{
    Identity, Peer, Store,
    serve::{BindError, Limits, Server, bind},
};
use linkerd2_proxy_api::tap::{
    ObserveRequest, TapEvent,
    observe_request::extract,
    observe_request::extract::http::Extract as HttpExtract,
    tap_server::{Tap as TapService, TapServer},
};
use tokio::sync::mpsc;
use tonic::{Request, Response, Status, service::Routes};
use tracing::{info, warn};

use super::{Tap, Taps, matching::Match};

/// Few look at one proxy, and each asks with a few lines.
const LIMITS: Limits = Limits {
    connections_max: 16,
    handshake_timeout: Duration::from_secs(5),
    streams_max: 16,
    request_timeout: None,
    header_bytes_max: 16 * 1024,
    keep_alive_interval: Duration::from_secs(20),
    keep_alive_timeout: Duration::from_secs(20),
    drain_timeout: Duration::from_secs(1),
    connection_age_max: None,
};
const MESSAGE_BYTES_MAX: usize = 64 * 1024;

struct Observe {
    taps: Arc<Taps>,
    observer: Identity,
}

/// A tap's events.
#[derive(Debug)]
pub(crate) struct Events {
    queue: mpsc::Receiver<TapEvent>,
    /// Let go of when the tap has all its requests; the stream ends with the last of them.
    tap: Option<Arc<Tap>>,
}

/// Serves taps to `observer` until the process ends.
///
/// # Errors
/// The address cannot be bound.
pub(crate) async fn serve(
    listen: SocketAddr,
    observer: Identity,
    taps: Arc<Taps>,
    store: Store,
    drain: drain::Watch,
) -> Result<(), BindError> {
    let listener = bind(listen).await?;
    let service = TapServer::new(Observe { taps, observer }).max_decoding_message_size(MESSAGE_BYTES_MAX);
    let server = Server::new(Routes::new(service)).limits(LIMITS);
    tokio::spawn(server.serve_tls(listener, store, drain));
    Ok(())
}

#[tonic::async_trait]
impl TapService for Observe {
    type ObserveStream = Events;

    async fn observe(&self, request: Request<ObserveRequest>) -> Result<Response<Events>, Status> {
        let peer = request.extensions().get::<Peer>();
        let identity = peer.and_then(|peer| peer.identity.as_ref());
        if identity != Some(&self.observer) {
            let who = identity.map_or("nobody", Identity::as_str);
            warn!(who, "Refused a tap");
            return Err(Status::unauthenticated(format!(
                "taps are for {} only",
                self.observer
            )));
        }
        let ObserveRequest {
            limit,
            r#match,
            extract,
        } = request.into_inner();
        if limit == 0 {
            return Err(Status::invalid_argument("limit must be positive"));
        }
        let wanted = Match::parse(r#match).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let http = extract.and_then(|extract| extract.extract);
        let headers = http.is_some_and(|extract::Extract::Http(http)| {
            matches!(http.extract, Some(HttpExtract::Headers(_)))
        });
        let Some((tap, queue)) = self.taps.add(wanted, limit, headers) else {
            return Err(Status::resource_exhausted("as many taps as may be are under way"));
        };
        info!(limit, headers, "Tapped");
        Ok(Response::new(Events {
            queue,
            tap: Some(tap),
        }))
    }
}

impl Stream for Events {
    type Item = Result<TapEvent, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.tap.as_ref().is_some_and(|tap| tap.is_done()) {
            this.tap = None;
        }
        Poll::Ready(ready!(this.queue.poll_recv(cx)).map(Ok))
    }
}
