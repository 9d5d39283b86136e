//! A request that is observed, and the events of its life.

use std::{sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response, Version};
use linkerd2_proxy_api::{
    http_types::{self, headers::Header},
    tap::{
        Eos, TapEvent, eos,
        tap_event::{
            EndpointMeta, Event, Http, ProxyDirection, RouteMeta,
            http::{Event as HttpEvent, RequestInit, ResponseEnd, ResponseInit, StreamId},
        },
    },
};
use tokio::{sync::mpsc, time::Instant};

use super::{Tap, matching::Seen};
use crate::{
    http::grpc_status,
    metrics::family::Counter,
    observe::{Direction, cut},
};

/// Bytes of a path, and of all headers of one event; the rest is left out. A bound on what waits.
const PATH_BYTES_MAX: usize = 8 * 1024;
const HEADERS_BYTES_MAX: usize = 16 * 1024;

/// A request that a tap took.
#[derive(Debug)]
pub(crate) struct Tapped {
    id: StreamId,
    /// What all events of the request say.
    base: TapEvent,
    headers: bool,
    events: mpsc::Sender<TapEvent>,
    dropped: Arc<Counter>,
    begun: Instant,
    answered: Option<Instant>,
    response_bytes: u64,
    grpc_status: Option<u32>,
    trailers: Option<http_types::Headers>,
}

impl Tapped {
    /// Tells the tap that a request begins. `None` when there is no place for the event: then it gets none of the
    /// request's.
    pub(super) fn begin<B>(
        tap: &Tap,
        stream: u64,
        dropped: Arc<Counter>,
        direction: Direction,
        request: &Request<B>,
        seen: &Seen<'_>,
    ) -> Option<Self> {
        let way = seen.way;
        let meta = |tls: &str, id: Option<&str>, id_key: &str, labels: &[(String, String)]| {
            let id = id.map(|id| (id_key.to_owned(), id.to_owned()));
            let tls = Some(("tls".to_owned(), tls.to_owned()));
            Some(EndpointMeta {
                labels: labels.iter().cloned().chain(tls).chain(id).collect(),
            })
        };
        let tapped = Self {
            id: StreamId {
                base: tap.base,
                stream,
            },
            base: TapEvent {
                source: Some(way.source.into()),
                source_meta: meta(way.source_tls, way.source_id, "client_id", &[]),
                route_meta: way.route.map(|route| RouteMeta {
                    labels: [("route".to_owned(), route.to_owned())].into(),
                }),
                destination: Some(way.destination.into()),
                destination_meta: meta(way.destination_tls, way.destination_id, "server_id", way.labels),
                proxy_direction: match direction {
                    Direction::Inbound => ProxyDirection::Inbound,
                    Direction::Outbound => ProxyDirection::Outbound,
                }
                .into(),
                event: None,
            },
            headers: tap.headers,
            events: tap.events.clone(),
            dropped,
            begun: Instant::now(),
            answered: None,
            response_bytes: 0,
            grpc_status: None,
            trailers: None,
        };
        let pseudo = [
            (":method", request.method().as_str()),
            (":scheme", seen.scheme.map_or("", |scheme| scheme.as_str())),
            (":authority", seen.authority),
            (
                ":path",
                request.uri().path_and_query().map_or("", |path| path.as_str()),
            ),
        ];
        let init = HttpEvent::RequestInit(RequestInit {
            id: Some(tapped.id),
            method: Some(request.method().clone().into()),
            scheme: seen.scheme.map(http_types::Scheme::from),
            authority: seen.authority.to_owned(),
            path: cut(seen.path, PATH_BYTES_MAX).to_owned(),
            headers: tapped.headers(request.version(), &pseudo, request.headers()),
        });
        tapped.send(init).then_some(tapped)
    }

    /// The response begins.
    pub(crate) fn answered<B>(&mut self, response: &Response<B>) {
        let now = Instant::now();
        self.answered = Some(now);
        self.grpc_status = grpc_status(response.headers());
        let status = response.status();
        let pseudo = [(":status", status.as_str())];
        self.send(HttpEvent::ResponseInit(ResponseInit {
            id: Some(self.id),
            since_request_init: duration(now - self.begun),
            http_status: response.status().as_u16().into(),
            headers: self.headers(response.version(), &pseudo, response.headers()),
        }));
    }

    pub(crate) fn data(&mut self, bytes: usize) {
        self.response_bytes += bytes as u64;
    }

    pub(crate) fn trailers(&mut self, trailers: &HeaderMap) {
        self.grpc_status = grpc_status(trailers).or(self.grpc_status);
        self.trailers = self.headers(Version::HTTP_11, &[], trailers);
    }

    /// The request is over; with an HTTP/2 error's code if that is why.
    pub(crate) fn end(mut self, reset: Option<h2::Reason>) {
        let now = Instant::now();
        let end = match reset {
            Some(reason) => Some(eos::End::ResetErrorCode(reason.into())),
            None => self.grpc_status.map(eos::End::GrpcStatusCode),
        };
        let trailers = self.trailers.take();
        self.send(HttpEvent::ResponseEnd(ResponseEnd {
            id: Some(self.id),
            since_request_init: duration(now - self.begun),
            since_response_init: self.answered.and_then(|answered| duration(now - answered)),
            response_bytes: self.response_bytes,
            eos: Some(Eos { end }),
            trailers,
        }));
    }

    fn send(&self, event: HttpEvent) -> bool {
        let event = TapEvent {
            event: Some(Event::Http(Http { event: Some(event) })),
            ..self.base.clone()
        };
        let sent = self.events.try_send(event).is_ok();
        if !sent {
            self.dropped.add(1);
        }
        sent
    }

    /// Headers, if they are asked for, with those that HTTP/2 makes of the first line.
    fn headers(
        &self,
        version: Version,
        pseudo: &[(&str, &str)],
        headers: &HeaderMap,
    ) -> Option<http_types::Headers> {
        if !self.headers {
            return None;
        }
        let pseudo = pseudo.iter().filter(|_| version == Version::HTTP_2);
        let all = pseudo.map(|(name, value)| (*name, value.as_bytes())).chain(
            headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_bytes())),
        );
        let mut room = HEADERS_BYTES_MAX;
        let headers = all.map_while(|(name, value)| {
            room = room.checked_sub(name.len() + value.len())?;
            Some(Header {
                name: name.to_owned(),
                value: value.to_vec(),
            })
        });
        Some(http_types::Headers {
            headers: headers.collect(),
        })
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(duration).ok()
}
