//! A request on its way to one of a backend's endpoints.

use std::rc::Rc;

use heddle_proxy_policy::{Meta, outbound::FailureAccrual};
use heddle_tls::PeerId;
use http::{Request, Response, Version, header, request::Parts, uri::Authority};
use tokio::time::Instant;
use tracing::debug;

use super::{
    super::{
        attempt::{Attempt, Unanswered},
        clock::Clock,
    },
    Client,
};
use crate::{
    balance::{Answer, Balancer, Endpoint, Picked, Terms, Verdict},
    http::{ProxyError, RequestBody, ResponseBody, headers, pipe, tracker::Tracker},
    metrics::{
        route::RouteHandles,
        stream::{Stream, StreamHandles},
    },
    observe::Direction,
    tap,
    upstream::ConnectError,
};

/// Connections that a request is sent on, as long as each ends before the endpoint has looked at it.
const UNPROCESSED_MAX: u32 = 3;
/// A request with a larger body is sent once.
const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// What the policy says of a request to one of its backends.
#[derive(Clone, Copy)]
pub(in crate::outbound) struct Errand<'p> {
    pub(in crate::outbound) accrual: Option<&'p FailureAccrual>,
    /// What it is counted by; copies are not.
    pub(in crate::outbound) counter: Option<&'p Rc<StreamHandles>>,
    pub(in crate::outbound) meta: Option<&'p Meta>,
    pub(in crate::outbound) terms: Terms,
    pub(in crate::outbound) route: Option<&'p Rc<RouteHandles>>,
    pub(in crate::outbound) require_id: Option<&'p PeerId>,
    pub(in crate::outbound) started: Instant,
    /// What limits its time.
    pub(in crate::outbound) clock: Option<&'p Clock>,
}

impl Client {
    /// Sends a request to one of the backend's endpoints, whose number comes with the answer.
    pub(in crate::outbound) async fn to_balancer(
        &self,
        balancer: &Rc<Balancer>,
        errand: Errand<'_>,
        mut head: Box<Parts>,
        mut body: RequestBody,
    ) -> Result<(u64, Response<ResponseBody>), ProxyError> {
        let deadline = errand.terms.deadline();
        for _ in 1..UNPROCESSED_MAX {
            let (endpoint, connection) = self.connection(balancer, errand, &head, deadline).await?;
            let Connection::Http2(sender) = connection else {
                return self
                    .to_endpoint(balancer, errand, endpoint, connection, head, body)
                    .await;
            };
            // The other side may be ending the connection at this moment; then the request is sent on another.
            let (spare_head, replay) = (head.clone(), body.repeatable(REPLAY_BYTES_MAX));
            let connection = Connection::Http2(sender);
            let sent = self.to_endpoint(balancer, errand, endpoint, connection, head, replay.body());
            match sent.await {
                Err(ProxyError::Http2(error)) if is_unprocessed(&error) && replay.can_repeat() => {
                    debug!(%error, "Sending a request again that the endpoint did not look at");
                    (head, body) = (spare_head, replay.body());
                }
                result => return result,
            }
        }
        let (endpoint, connection) = self.connection(balancer, errand, &head, deadline).await?;
        self.to_endpoint(balancer, errand, endpoint, connection, head, body)
            .await
    }

    /// An endpoint, and a connection to it that can take the request.
    async fn connection(
        &self,
        balancer: &Balancer,
        Errand {
            terms,
            require_id,
            accrual,
            clock,
            ..
        }: Errand<'_>,
        head: &Parts,
        deadline: Instant,
    ) -> Result<(Picked, Connection), ProxyError> {
        loop {
            let endpoint = balancer.pick(terms, deadline).await?;
            endpoint.must_be(require_id)?;
            let attempt = Attempt::begin(balancer, &endpoint, endpoint.pass(), accrual, clock);
            let connected = connection(&endpoint, head.version != Version::HTTP_2).await;
            attempt.over();
            match connected {
                Ok(connection) => {
                    endpoint.connected();
                    return Ok((endpoint, connection));
                }
                Err(error) => {
                    debug!(addr = %endpoint.info().addr, error = %heddle_daemon::report::chain(&error), "Not connected to an endpoint");
                    balancer.not_connected(endpoint, &error, deadline).await;
                    if Instant::now() >= deadline {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    async fn to_endpoint(
        &self,
        balancer: &Rc<Balancer>,
        errand: Errand<'_>,
        endpoint: Picked,
        connection: Connection,
        head: Box<Parts>,
        body: RequestBody,
    ) -> Result<(u64, Response<ResponseBody>), ProxyError> {
        let Errand {
            accrual,
            route,
            counter,
            started,
            clock,
            ..
        } = errand;
        let http1 = head.version != Version::HTTP_2;
        let in_flight = endpoint.begin();
        let (endpoint, pass) = (in_flight.endpoint().clone(), in_flight.pass());
        let handles = endpoint.handles().clone();
        handles.request();
        let sent = Instant::now();
        let stream = counter.map(|counter| {
            counter.request();
            Stream::new(counter.clone(), sent)
        });
        let mut request = Request::from_parts(*head, body);
        let mut observed = self
            .worker
            .observers
            .sending(Direction::Outbound, &mut request, || {
                self.way(&endpoint, errand.meta)
            });
        if let Some(authority) = &endpoint.info().authority_override {
            override_authority(&mut request, authority);
        }
        // The peer's proxy counts by the same route.
        if let Some(route) = route.filter(|_| endpoint.info().identity.is_some()) {
            request
                .headers_mut()
                .insert(headers::DST_CANONICAL, route.service().clone());
        }
        let attempt = Attempt::begin(balancer, &endpoint, pass, accrual, clock).counting(Unanswered {
            handles,
            stream,
            started,
        });
        let result = match connection {
            Connection::Http2(mut sender) => {
                match http1 {
                    true => headers::upgrade_to_h2(&mut request, || self.authority()),
                    false => headers::absolute_uri(&mut request, || self.authority()),
                }
                let (head, body) = request.into_parts();
                pipe::send(&mut sender, head, body)
                    .await
                    .map(|response| response.map(ResponseBody::http2))
            }
            Connection::Http1(connection) => {
                self.to_http1(&mut request);
                // Peers without a proxy are few; the others need not keep room for this.
                let sent = Box::pin(endpoint.http().send_http1(connection, request)).await;
                sent.map(|response| response.map(ResponseBody::http1))
            }
        };
        let unanswered = attempt.over();
        let mut response = match result {
            Ok(response) => response,
            Err(error) => {
                balancer.judge(&endpoint, pass, Answer::FAILED, accrual);
                if let Some(observed) = &mut observed {
                    observed.failed(error.h2_reason());
                }
                if let Some(sent) = unanswered {
                    sent.refused(&error, http1);
                }
                return Err(error);
            }
        };
        endpoint.observe(sent.elapsed());
        let verdict = Verdict::now_or_later(balancer, &endpoint, pass, accrual, &response);
        *response.version_mut() = if http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        let (status, in_flight) = (response.status(), Some(in_flight));
        let (handles, stream) = unanswered.map(|sent| (sent.handles, sent.stream)).unzip();
        let tracker = Tracker::new(handles, status, response.headers(), started, in_flight);
        let tracker = tracker.counting(stream.flatten()).judging(verdict);
        let response = response.map(|body| body.tracked(tracker));
        let response = match observed {
            None => response,
            Some(observed) => observed.answered(response),
        };
        Ok((endpoint.id(), response))
    }

    /// The way to an endpoint.
    fn way<'w>(&'w self, endpoint: &'w Endpoint, route: Option<&'w Meta>) -> tap::Way<'w> {
        let info = endpoint.info();
        let identity = info
            .identity
            .as_ref()
            .filter(|_| endpoint.no_tls_reason().is_none());
        tap::Way {
            source: self.addr,
            // The application's own side never leaves the pod.
            source_tls: "loopback",
            source_id: None,
            destination: info.addr,
            destination_tls: endpoint.no_tls_reason().unwrap_or("true"),
            destination_id: identity.map(|identity| identity.as_str()),
            labels: &info.labels,
            route: route.map(Meta::name),
        }
    }

    fn to_http1(&self, request: &mut Request<RequestBody>) {
        headers::strip_connection(request.headers_mut());
        if request.version() == Version::HTTP_2 {
            headers::h2_to_h1(request, false);
        }
        headers::origin_form(request);
        *request.version_mut() = Version::HTTP_11;
        if !request.headers().contains_key(header::HOST)
            && let Ok(host) = http::HeaderValue::from_str(self.authority().as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
    }
}

enum Connection {
    Http2(h2::client::SendRequest<bytes::Bytes>),
    Http1(Box<crate::http1::Connection>),
}

async fn connection(endpoint: &Endpoint, http1: bool) -> Result<Connection, ConnectError> {
    match endpoint.takes_http2() || !http1 {
        true => endpoint.http().http2().await.map(Connection::Http2),
        false => endpoint.http().http1().await.map(Connection::Http1),
    }
}

pub(in crate::outbound) fn override_authority<B>(request: &mut Request<B>, authority: &Authority) {
    if let Ok(host) = http::HeaderValue::from_str(authority.as_str()) {
        request.headers_mut().insert(header::HOST, host);
    }
    if request.uri().authority().is_some() {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.authority = Some(authority.clone());
        // Only a part that was there is exchanged.
        *request.uri_mut() = http::Uri::from_parts(parts).unwrap_or_default();
    }
}

/// Whether the endpoint says that it did nothing with a request: RFC 9113 §8.7. A stream's error is a GOAWAY without
/// error only when the stream came after the last one that the endpoint takes.
fn is_unprocessed(error: &h2::Error) -> bool {
    let reason = error.reason();
    error.is_remote()
        && ((error.is_go_away() && reason == Some(h2::Reason::NO_ERROR))
            || (error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM)))
}
