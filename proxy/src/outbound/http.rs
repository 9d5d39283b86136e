//! Requests of applications: route, backend, endpoint, and the way there.

use std::rc::Rc;

use heddle_proxy_policy::{
    filter::Filter,
    outbound::{Http, OutboundRule, Timeouts},
    route,
};
use http::{Request, Response, Version, header, request::Parts, uri::Authority};
use hyper::body::Incoming;
use tokio::time::{Instant, timeout_at};
use tracing::debug;

use super::{Target, target::Policy};
use crate::{
    balance::{Balancer, Endpoint},
    http::{
        ProxyError, RequestBody, ResponseBody,
        body::Tracker,
        filter, grpc_status, headers, is_grpc, pipe,
        serve::{self, HttpVersion},
    },
    io::Io,
    metrics::labels::Labels,
    upstream::ConnectError,
    worker::Worker,
};

/// Connections that a request is sent on, as long as each ends before the endpoint has looked at it.
const UNPROCESSED_MAX: u32 = 3;
/// A request with a larger body is sent once.
const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A client's connection.
pub(super) struct Client {
    worker: Rc<Worker>,
    target: Rc<Target>,
    version: HttpVersion,
    /// For what outlives the connection: an upgraded one.
    pub(super) drain: drain::Watch,
}

pub(super) async fn serve(
    worker: Rc<Worker>,
    target: Rc<Target>,
    drain: drain::Watch,
    io: Io,
    version: HttpVersion,
) {
    let client = Rc::new(Client {
        worker: worker.clone(),
        target,
        version,
        drain: drain.clone(),
    });
    let handle = move |request| {
        let client = client.clone();
        async move { client.respond(request).await }
    };
    serve::serve(worker, drain, io, version, handle).await;
}

impl Client {
    async fn respond(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        let grpc = is_grpc(request.headers());
        match self.request(request).await {
            Ok(response) => response,
            Err(error) => {
                debug!(addr = %self.target.addr, error = %heddle_daemon::report::chain(&error), "Request failed");
                let labels = Labels::default().with("error", error.label());
                self.worker.metrics.outbound_http_errors_total.get(&labels).add(1);
                error.response(grpc)
            }
        }
    }

    async fn request(&self, mut request: Request<Incoming>) -> Result<Response<ResponseBody>, ProxyError> {
        let started = Instant::now();
        let policy = self.target.policy()?;
        let http = policy.http(self.version).ok_or(ProxyError::NoRoute)?;
        let (_, found) = route::find(&http.routes, &request).ok_or(ProxyError::NoRoute)?;
        let rule = &found.policy;
        let prefix = if rule.filters.is_empty() {
            None
        } else {
            found.matched_prefix(&request)
        };
        headers::strip_forgeable(request.headers_mut());
        if let Some(response) = filter::request(&rule.filters, prefix, &mut request)? {
            return Ok(response);
        }
        if headers::is_upgrade(&request) {
            return Box::pin(super::upgrade::serve(self, &policy, rule, request)).await;
        }
        let mut response = match &rule.retry {
            Some(retry) => {
                Box::pin(super::retry::send(
                    self, &policy, http, rule, retry, request, started,
                ))
                .await?
            }
            None => {
                let (head, body) = request.into_parts();
                self.send(&policy, http, rule, head, RequestBody::Incoming(body), started)
                    .await?
            }
        };
        filter::response(&rule.filters, &mut response);
        Ok(response)
    }

    /// One try.
    pub(super) async fn send(
        &self,
        policy: &Policy,
        http: &Http,
        rule: &OutboundRule,
        head: Parts,
        body: RequestBody,
        started: Instant,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let Timeouts {
            response,
            request,
            idle: _,
        } = rule.timeouts;
        let end = request.map(|limit| started + limit);
        let limit = match (response, request) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        let sending = self.send_untimed(policy, http, rule, head, body, started);
        let response = match limit {
            None => sending.await?,
            Some(limit) => Box::pin(timeout_at(started + limit, sending))
                .await
                .map_err(|_| ProxyError::Timeout(limit))??,
        };
        Ok(match end {
            None => response,
            Some(_) => response.map(|body| body.deadline(end)),
        })
    }

    async fn send_untimed(
        &self,
        policy: &Policy,
        http: &Http,
        rule: &OutboundRule,
        mut head: Parts,
        body: RequestBody,
        started: Instant,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let (index, balancer) = policy.choose(&rule.distribution)?;
        let filters = rule
            .distribution
            .backends()
            .get(index)
            .map_or(&[][..], |one| &one.filters);
        for filter in filters {
            if let Filter::RequestHeaders(change) = filter {
                change.apply(&mut head.headers);
            }
        }
        let mut response = self.to_balancer(balancer, http, head, body, started).await?;
        filter::response(filters, &mut response);
        headers::clean_response(&mut response);
        Ok(response)
    }

    async fn to_balancer(
        &self,
        balancer: &Balancer,
        http: &Http,
        mut head: Parts,
        mut body: RequestBody,
        started: Instant,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let deadline = balancer.failfast_deadline();
        for _ in 1..UNPROCESSED_MAX {
            let (endpoint, connection) = self.connection(balancer, &head, deadline).await?;
            let Connection::Http2(sender) = connection else {
                return self
                    .to_endpoint(balancer, http, endpoint, connection, head, body, started)
                    .await;
            };
            // The other side may be ending the connection at this moment; then the request is sent on another.
            let (spare_head, replay) = (head.clone(), body.repeatable(REPLAY_BYTES_MAX));
            let sent = self.to_endpoint(
                balancer,
                http,
                endpoint,
                Connection::Http2(sender),
                head,
                replay.body(),
                started,
            );
            match sent.await {
                Err(ProxyError::Http2(error)) if is_unprocessed(&error) && replay.can_repeat() => {
                    debug!(%error, "Sending a request again that the endpoint did not look at");
                    (head, body) = (spare_head, replay.body());
                }
                result => return result,
            }
        }
        let (endpoint, connection) = self.connection(balancer, &head, deadline).await?;
        self.to_endpoint(balancer, http, endpoint, connection, head, body, started)
            .await
    }

    /// An endpoint, and a connection to it that can take the request.
    async fn connection(
        &self,
        balancer: &Balancer,
        head: &Parts,
        deadline: Instant,
    ) -> Result<(Rc<Endpoint>, Connection), ProxyError> {
        loop {
            let endpoint = balancer.pick(deadline).await?;
            match connection(&endpoint, head.version != Version::HTTP_2).await {
                Ok(connection) => {
                    endpoint.connected();
                    return Ok((endpoint, connection));
                }
                Err(error) => {
                    debug!(addr = %endpoint.info().addr, error = %heddle_daemon::report::chain(&error), "Resting an endpoint");
                    endpoint.connect_failed();
                    if Instant::now() >= deadline {
                        return Err(error.into());
                    }
                }
            }
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what a request is made of; a struct of them would be used once"
    )]
    async fn to_endpoint(
        &self,
        balancer: &Balancer,
        http: &Http,
        endpoint: Rc<Endpoint>,
        connection: Connection,
        head: Parts,
        body: RequestBody,
        started: Instant,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let http1 = head.version != Version::HTTP_2;
        let in_flight = endpoint.begin();
        let handles = endpoint.handles().clone();
        handles.request();
        let sent = Instant::now();
        let mut request = Request::from_parts(head, body);
        if let Some(authority) = &endpoint.info().authority_override {
            override_authority(&mut request, authority);
        }
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
                let sent = endpoint.http().send_http1(connection, request).await;
                sent.map(|response| response.map(ResponseBody::http1))
            }
        };
        let mut response = match result {
            Ok(response) => response,
            Err(error) => {
                balancer.judge(&endpoint, true, http.failure_accrual.as_ref());
                handles.response(
                    http::StatusCode::BAD_GATEWAY,
                    crate::metrics::http::End::Failed,
                    started,
                );
                return Err(error);
            }
        };
        endpoint.observe(sent.elapsed());
        let failed = response.status().is_server_error()
            || grpc_status(response.headers()).is_some_and(|code| code != 0);
        balancer.judge(&endpoint, failed, http.failure_accrual.as_ref());
        *response.version_mut() = if http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        let (status, in_flight) = (response.status(), Some(in_flight));
        let tracker = Tracker::new(handles, status, response.headers(), started, in_flight);
        Ok(response.map(|body| body.tracked(tracker)))
    }

    /// What a request that names no host is for.
    fn authority(&self) -> Authority {
        let addr = self.target.addr;
        Authority::try_from(addr.to_string()).unwrap_or(Authority::from_static("localhost"))
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

fn override_authority<B>(request: &mut Request<B>, authority: &Authority) {
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
