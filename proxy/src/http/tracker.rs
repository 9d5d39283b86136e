//! What is counted, judged and given back when a response ends.

use std::rc::Rc;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use http_body::Frame;
use tokio::time::Instant;

use super::grpc_status;
use crate::{
    balance::{InFlight, Verdict},
    metrics::{
        http::{End, HttpHandles},
        route::RouteTracker,
        stream::{Outcome, Stream},
    },
};

/// What is done when a response ends: it is counted, and its endpoint has one request less in flight.
#[derive(Debug)]
pub(crate) struct Tracker {
    handles: Option<Rc<HttpHandles>>,
    /// What is counted by backend, or by the inbound route; and by the outbound route.
    pub(super) streams: (Option<Stream>, Option<Stream>),
    status: StatusCode,
    grpc_status: Option<u32>,
    started: Instant,
    ended: bool,
    /// What else counts the response.
    pub(super) routes: Vec<RouteTracker>,
    pub(super) inner: Option<Box<Tracker>>,
    /// Whom the end tells whether the endpoint did well, where the head did not.
    verdict: Option<Box<Verdict>>,
    /// The endpoint is busy with the request until then.
    _in_flight: Option<InFlight>,
}

/// What a response was cut by, in Linkerd's words.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// In the metrics of routes.
    pub stream: &'static str,
    /// In those of responses as a whole; none when nobody wanted more of it, which they tell like an end.
    pub class: Option<&'static str>,
}

impl Tracker {
    pub(crate) fn new(
        handles: Option<Rc<HttpHandles>>,
        status: StatusCode,
        headers: &HeaderMap,
        started: Instant,
        in_flight: Option<InFlight>,
    ) -> Self {
        let grpc_status = grpc_status(headers);
        Self {
            handles,
            streams: (None, None),
            status,
            grpc_status,
            started,
            ended: false,
            routes: Vec::new(),
            inner: None,
            verdict: None,
            _in_flight: in_flight,
        }
    }

    /// Counts for `stream` as well.
    #[must_use]
    pub(crate) fn counting(mut self, stream: Option<Stream>) -> Self {
        self.streams.0 = stream;
        self
    }

    /// Judges the endpoint at the end. A client that gives up says nothing of it.
    #[must_use]
    pub(crate) fn judging(mut self, verdict: Option<Box<Verdict>>) -> Self {
        self.verdict = verdict;
        self
    }

    pub(super) fn frame(&mut self, frame: &Frame<Bytes>) {
        if let Some(inner) = &mut self.inner {
            inner.frame(frame);
        }
        if let Some(data) = frame.data_ref() {
            for stream in [&self.streams.0, &self.streams.1].into_iter().flatten() {
                stream.response_frame(data.len());
            }
        } else if let Some(trailers) = frame.trailers_ref() {
            self.grpc_status = grpc_status(trailers).or(self.grpc_status);
            if let Some(verdict) = &mut self.verdict {
                verdict.trailers(trailers);
            }
        }
    }

    /// Counts the end, once; and what it was cut by, if it was.
    pub(super) fn end(&mut self, cut: Option<Cut>) {
        if self.ended {
            return;
        }
        self.ended = true;
        if let Some(inner) = &mut self.inner {
            inner.end(cut);
        }
        let end = match cut.and_then(|cut| cut.class) {
            Some(class) => End::Failed(class),
            None => self.grpc_status.map_or(End::Http, End::Grpc),
        };
        if let Some(handles) = &self.handles {
            handles.response(Some(self.status), end, self.started);
        }
        if let Some(verdict) = self.verdict.take() {
            verdict.end(self.grpc_status, cut.is_some());
        }
        let outcome = Outcome {
            status: Some(self.status),
            grpc_status: self.grpc_status,
            error: cut.map(|cut| cut.stream),
        };
        for stream in [&self.streams.0, &self.streams.1].into_iter().flatten() {
            stream.end(outcome);
        }
        for route in self.routes.drain(..) {
            route.end(end);
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        // Whoever wanted it wants no more of it.
        self.verdict = None;
        self.end(Some(Cut {
            stream: "CANCEL",
            class: None,
        }));
    }
}
