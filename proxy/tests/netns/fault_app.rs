//! An application that misbehaves as a test says, and counts what reaches it.

use std::{
    collections::HashMap,
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;

use crate::net::Namespace;

/// A long response comes in so many pieces, each after a while.
pub(crate) const PIECES: usize = 20;
pub(crate) const PIECE: &[u8] = &[b'.'; 1_000];
const PIECE_INTERVAL: Duration = Duration::from_millis(50);

/// The application's switches and counters.
#[derive(Clone, Default)]
pub(crate) struct Fickle(Arc<Inner>);

#[derive(Default)]
struct Inner {
    delay_ms: AtomicU64,
    /// Of a hundred requests so many are answered with 503.
    fail_percent: AtomicU32,
    seen: AtomicU32,
    /// How often each `id` came.
    ids: Mutex<HashMap<String, u32>>,
}

impl Fickle {
    pub(crate) fn serve(namespace: &Namespace, port: u16) -> Self {
        let fickle = Self::default();
        let serving = fickle.clone();
        namespace.serve(port, move |tcp| {
            let fickle = serving.clone();
            async move {
                let answer = service_fn(move |request| {
                    let fickle = fickle.clone();
                    async move { Ok::<_, Infallible>(fickle.answer(request).await) }
                });
                // Clients come and go.
                let _ = http1::Builder::new()
                    .serve_connection(TokioIo::new(tcp), answer)
                    .await;
            }
        });
        fickle
    }

    pub(crate) fn set_delay(&self, delay: Duration) {
        self.0
            .delay_ms
            .store(delay.as_millis().try_into().expect("short"), Relaxed);
    }

    pub(crate) fn set_fail_percent(&self, percent: u32) {
        self.0.fail_percent.store(percent, Relaxed);
    }

    /// Requests so far.
    pub(crate) fn seen(&self) -> u32 {
        self.0.seen.load(Relaxed)
    }

    /// How often each request came that said its `id`.
    pub(crate) fn ids(&self) -> HashMap<String, u32> {
        self.0
            .ids
            .lock()
            .expect("nobody panics while holding this")
            .clone()
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        let number = self.0.seen.fetch_add(1, Relaxed);
        if let Some(id) = request.headers().get("id").and_then(|id| id.to_str().ok()) {
            let mut ids = self.0.ids.lock().expect("nobody panics while holding this");
            *ids.entry(id.to_owned()).or_default() += 1;
        }
        let delay = Duration::from_millis(self.0.delay_ms.load(Relaxed));
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        if request.uri().path() == "/long" {
            let pieces = futures_util::stream::unfold(0, |sent| async move {
                tokio::time::sleep(PIECE_INTERVAL).await;
                (sent < PIECES).then(|| (Ok(Frame::data(Bytes::from_static(PIECE))), sent + 1))
            });
            return Response::new(StreamBody::new(pieces).boxed());
        }
        let body = match request.uri().path() {
            "/echo" => request
                .into_body()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default(),
            _ => Bytes::from_static(b"ok"),
        };
        let mut response = Response::new(Full::new(body).boxed());
        // Spread evenly, whatever the share.
        let percent = self.0.fail_percent.load(Relaxed);
        if (number + 1) * percent / 100 != number * percent / 100 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        response
    }
}
