//! Who looks at requests besides the counters: the access log, spans and taps. Each of them is off unless it is asked
//! for; when all are off, a request costs two comparisons and nothing is allocated.
//!
//! A request that somebody looks at has an [`Observed`]: it is told of the response's head, of what passes and of the
//! end. It travels with the response's body.

use std::{future::poll_fn, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, timeout},
};

use crate::{
    access_log::{self, AccessLog},
    http::{RequestBody, ResponseBody},
    tap::{self, Taps},
    trace::{self, Spans},
};

/// Which of the proxy's two sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Inbound,
    Outbound,
}

impl Direction {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// The beginning of a text, of at most so many bytes.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// Puts a message into a queue that is answered when all before it is done, and waits for that, but no longer than
/// `limit`. A queue whose reader has ended has nothing to wait for.
pub(crate) async fn flush<M>(
    queue: &mpsc::Sender<M>,
    message: impl FnOnce(oneshot::Sender<()>) -> M,
    limit: Duration,
) {
    let (done, answered) = oneshot::channel();
    let flush = async {
        if queue.send(message(done)).await.is_ok() {
            let _ = answered.await;
        }
    };
    let _ = timeout(limit, flush).await;
}

/// All who may look.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observers {
    pub access_log: Option<AccessLog>,
    pub spans: Option<Spans>,
    pub taps: Option<Arc<Taps>>,
}

/// A request that somebody looks at.
#[derive(Debug)]
pub(crate) struct Observed {
    entry: Option<access_log::Entry>,
    spans: Vec<trace::Span>,
    taps: Vec<tap::Tapped>,
    ended: bool,
}

impl Observers {
    /// A request came in.
    pub(crate) fn received<B>(
        &self,
        direction: Direction,
        request: &mut Request<B>,
        client: SocketAddr,
        client_id: Option<&str>,
    ) -> Option<Box<Observed>> {
        if self.access_log.is_none() && self.spans.is_none() {
            return None;
        }
        let span = self
            .spans
            .as_ref()
            .and_then(|spans| spans.received(direction, request, client));
        let log = self
            .access_log
            .as_ref()
            .filter(|_| direction == Direction::Inbound);
        let entry = log.map(|log| log.entry(request, client, client_id));
        Observed::new(entry, span, Vec::new())
    }

    /// A request is sent on: `seen` tells from where to where.
    pub(crate) fn sending<'s>(
        &self,
        direction: Direction,
        request: &mut Request<RequestBody>,
        seen: impl FnOnce() -> tap::Way<'s>,
    ) -> Option<Box<Observed>> {
        let taps = self.taps.as_ref().filter(|taps| taps.are_any());
        if taps.is_none() && self.spans.is_none() {
            return None;
        }
        let way = seen();
        let taps = taps.map(|taps| taps.request(direction, request, &way));
        let span = self
            .spans
            .as_ref()
            .and_then(|spans| spans.sending(direction, request, way.destination));
        Observed::new(None, span, taps.unwrap_or_default())
    }
}

impl Observed {
    fn new(
        entry: Option<access_log::Entry>,
        span: Option<trace::Span>,
        taps: Vec<tap::Tapped>,
    ) -> Option<Box<Self>> {
        if entry.is_none() && span.is_none() && taps.is_empty() {
            return None;
        }
        Some(Box::new(Self {
            entry,
            spans: span.into_iter().collect(),
            taps,
            ended: false,
        }))
    }

    /// Waits for the response, and takes note of how much of the time was ours.
    pub(crate) async fn watch(
        mut self: Box<Self>,
        responding: impl Future<Output = Response<ResponseBody>>,
    ) -> Response<ResponseBody> {
        let mut responding = std::pin::pin!(responding);
        let mut processing = Duration::ZERO;
        let response = poll_fn(|cx| {
            let begun = Instant::now();
            let polled = responding.as_mut().poll(cx);
            processing += begun.elapsed();
            polled
        })
        .await;
        if let Some(entry) = &mut self.entry {
            entry.processing = processing;
        }
        self.answered(response)
    }

    /// Takes note of the response's head, and goes with its body.
    pub(crate) fn answered(mut self: Box<Self>, response: Response<ResponseBody>) -> Response<ResponseBody> {
        if let Some(entry) = self.entry.take() {
            entry.answered(&response);
        }
        for span in &mut self.spans {
            span.answered(&response);
        }
        for tapped in &mut self.taps {
            tapped.answered(&response);
        }
        response.map(|body| body.observed(self))
    }

    /// Who looked at the request on its way out goes with those who saw it come in.
    pub(crate) fn absorb(&mut self, mut inner: Self) {
        self.spans.append(&mut inner.spans);
        self.taps.append(&mut inner.taps);
        inner.ended = true;
    }

    pub(crate) fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(data) = frame.data_ref() {
            for tapped in &mut self.taps {
                tapped.data(data.len());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            for span in &mut self.spans {
                span.trailers(trailers);
            }
            for tapped in &mut self.taps {
                tapped.trailers(trailers);
            }
        }
    }

    /// The response has come to its end.
    pub(crate) fn ended(&mut self) {
        self.end(None);
    }

    /// There is no response, or not a whole one.
    pub(crate) fn failed(&mut self, reason: Option<h2::Reason>) {
        self.end(Some(reason));
    }

    fn end(&mut self, failed: Option<Option<h2::Reason>>) {
        self.ended = true;
        for span in self.spans.drain(..) {
            span.end(failed.is_some());
        }
        for tapped in self.taps.drain(..) {
            tapped.end(failed.flatten());
        }
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if !self.ended {
            // Whoever wanted it wants no more of it.
            self.end(Some(Some(h2::Reason::CANCEL)));
        }
    }
}
