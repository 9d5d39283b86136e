//! Requests of applications: route, backend, endpoint, and the way there.

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use heddle_proxy_policy::{
    Meta,
    outbound::{FailureAccrual, Http, OutboundRule, Retry, Timeouts},
    route,
};
use heddle_tls::PeerId;
use http::{HeaderValue, Request, Response, Version, header, request::Parts, uri::Authority};
use tokio::time::{Instant, sleep_until};
use tracing::debug;

use super::{
    Known, Target, attempt::Attempt, counters::RouteCounters, mirror::Copies, overrides::Asked,
    sticky::Chosen, target::Policy,
};
use crate::{
    balance::{Answer, Balancer, Endpoint, Picked, Terms, Verdict},
    dst::NameAddr,
    http::{
        ProxyError, RequestBody, ResponseBody,
        body::{Activity, ClientBody, Tracker},
        filter, headers,
        incoming::Incoming,
        is_grpc, pipe,
        serve::{self, HttpVersion},
        strict,
    },
    metrics::{
        http::End,
        labels::Labels,
        route::{Of, RouteHandles, RouteTracker},
        stream::{Stream, StreamHandles},
    },
    observe::Direction,
    tap,
    upstream::ConnectError,
    worker::Worker,
};

/// Connections that a request is sent on, as long as each ends before the endpoint has looked at it.
const UNPROCESSED_MAX: u32 = 3;
/// A request with a larger body is sent once.
const REPLAY_BYTES_MAX: usize = 64 * 1024;

/// A client's connection.
pub(super) struct Client {
    pub(super) worker: Rc<Worker>,
    pub(super) target: Rc<Target>,
    addr: SocketAddr,
    /// Whether requests say themselves which service they are for.
    ingress: bool,
    /// For what outlives the connection: an upgraded one.
    pub(super) drain: drain::Watch,
}

/// What the policy says of a request.
#[derive(Clone, Copy)]
pub(super) struct Way<'p> {
    pub(super) policy: &'p Rc<Policy>,
    pub(super) http: &'p Http,
    pub(super) meta: &'p Meta,
    pub(super) rule: &'p OutboundRule,
    pub(super) counters: &'p RouteCounters,
    /// The part of the path by which the rule was chosen.
    pub(super) prefix: Option<&'p str>,
    /// The rule's, or what the request asks for where the rule allows it.
    pub(super) timeouts: Timeouts,
    pub(super) retry: Option<&'p Retry>,
    /// When either side last moved, where idle streams are ended.
    pub(super) activity: Option<&'p Activity>,
    /// The counters of the ServiceProfile's route.
    pub(super) route: Option<&'p Rc<RouteHandles>>,
    /// Who the endpoint must be.
    pub(super) require_id: Option<&'p PeerId>,
    pub(super) started: Instant,
}

/// What the policy says of a request to one of its backends.
#[derive(Clone, Copy)]
pub(super) struct Errand<'p> {
    pub(super) accrual: Option<&'p FailureAccrual>,
    /// What it is counted by; copies are not.
    pub(super) counter: Option<&'p Rc<StreamHandles>>,
    pub(super) meta: Option<&'p Meta>,
    pub(super) terms: Terms,
    pub(super) route: Option<&'p Rc<RouteHandles>>,
    pub(super) require_id: Option<&'p PeerId>,
    pub(super) started: Instant,
    /// When its time is over.
    pub(super) until: Option<Instant>,
}

pub(super) async fn serve(worker: Rc<Worker>, known: Box<Known>, version: HttpVersion) {
    let Known {
        io,
        target,
        client: addr,
        drain,
        _place,
    } = *known;
    let ingress = worker.config.outbound.ingress;
    let client = Rc::new(Client::new(worker.clone(), target, addr, ingress, drain.clone()));
    let handle = move |request| {
        let client = client.clone();
        async move { client.respond(request).await }
    };
    serve::serve(worker, drain, io, version, serve::STREAMS_MAX, handle).await;
}

impl Way<'_> {
    /// Has the route count what came of a request, or of one try.
    fn counted(
        &self,
        of: Of,
        started: Instant,
        mut result: Result<Response<ResponseBody>, ProxyError>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let Some(route) = self.route else { return result };
        match &mut result {
            Ok(response) => {
                let tracker = RouteTracker::new(route, of, response.status(), started);
                ResponseBody::also_tracked(response, tracker);
            }
            Err(error) => route.response(of, error.status(), End::Failed, started),
        }
        result
    }
}

impl Client {
    pub(super) fn new(
        worker: Rc<Worker>,
        target: Rc<Target>,
        addr: SocketAddr,
        ingress: bool,
        drain: drain::Watch,
    ) -> Self {
        Self {
            worker,
            target,
            addr,
            ingress,
            drain,
        }
    }

    /// The service that a request says it is for, if it does.
    async fn named<B>(&self, request: &mut Request<B>) -> Result<Option<Rc<Target>>, ProxyError> {
        let Some(value) = request.headers_mut().remove(headers::DST_OVERRIDE) else {
            return Ok(None);
        };
        let name: Option<NameAddr> = value.to_str().ok().and_then(|text| text.parse().ok());
        let name = name.ok_or(ProxyError::BadRequest("l5d-dst-override is no name of a service"))?;
        if !self.worker.config.control.profile_suffixes.contain(&name) {
            return Err(ProxyError::NoSuchService);
        }
        let target = self.worker.outbound.target(&self.worker, name.into())?;
        target.known().await;
        Ok(Some(target))
    }

    pub(super) async fn respond(self: &Rc<Self>, mut request: Request<Incoming>) -> Response<ResponseBody> {
        let observers = &self.worker.observers;
        match observers.received(Direction::Outbound, &mut request, self.addr, None) {
            None => self.answer(request).await,
            Some(observed) => Box::pin(observed.watch(self.answer(request))).await,
        }
    }

    async fn answer(self: &Rc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        let grpc = is_grpc(request.headers());
        let http1 = request.version() != Version::HTTP_2;
        match self.request(request).await {
            Ok(mut response) => {
                let closes = response.headers_mut().remove(headers::PROXY_CONNECTION);
                if http1 && closes.is_some_and(|value| value == "close") {
                    response
                        .headers_mut()
                        .insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
            Err(error) => {
                debug!(dst = %self.target.dst, error = %heddle_daemon::report::chain(&error), "Request failed");
                let labels = Labels::default().with("error", error.label());
                self.worker.metrics.outbound_http_errors_total.get(&labels).add(1);
                let mut response = error.response(grpc);
                if http1 && error.is_ambiguous() {
                    response
                        .headers_mut()
                        .insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                response
            }
        }
    }

    async fn request(
        self: &Rc<Self>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let started = Instant::now();
        strict::check(&request)?;
        let own_headers = headers::has_own(request.headers());
        let named = match own_headers && self.ingress {
            true => Box::pin(self.named(&mut request)).await?,
            false => None,
        };
        let policy = named.as_ref().unwrap_or(&self.target).policy()?;
        let version = match request.version() {
            Version::HTTP_2 => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        };
        let http = policy.http(version).ok_or(ProxyError::NoRoute)?;
        let (route, found) = route::find(&http.routes, &request).ok_or(ProxyError::NoRoute)?;
        let rule = &found.policy;
        let asked = match own_headers {
            true => Asked::take(request.headers_mut(), rule)?,
            false => Asked::default(),
        };
        let Worker { config, metrics, .. } = &*self.worker;
        let host = match config.telemetry.hostname_labels {
            true => route::host(&request),
            false => None,
        };
        let counters = policy
            .counters
            .route(metrics, &policy.policy, &route.meta, rule, host.as_deref());
        let timeouts = asked.timeouts.unwrap_or(rule.timeouts);
        let activity = timeouts.idle.map(Activity::new);
        let way = Way {
            policy: &policy,
            http,
            meta: &route.meta,
            rule,
            counters: &counters,
            prefix: rule
                .changes_urls()
                .then(|| found.matched_prefix(&request))
                .flatten(),
            timeouts,
            activity: activity.as_ref(),
            retry: asked.retry.as_ref().or(rule.retry.as_ref()),
            route: policy.route_handles(rule),
            require_id: asked.id.as_ref(),
            started,
        };
        let stream = Stream::new(counters.stream.clone(), started);
        match self.routed(way, request).await {
            Ok(response) => {
                let (head, body) = response.into_parts();
                let body = body.counted(stream, head.status, &head.headers);
                Ok(Response::from_parts(head, body))
            }
            Err(error) => {
                stream.failed(error.stream_label());
                Err(error)
            }
        }
    }

    async fn routed(
        self: &Rc<Self>,
        way: Way<'_>,
        mut request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let Way { policy, rule, .. } = way;
        if let Some(response) = filter::request(&rule.filters, way.prefix, &mut request)? {
            return Ok(response);
        }
        if headers::is_upgrade(&request) {
            return Box::pin(super::upgrade::serve(self, way, request)).await;
        }
        let (head, body) = request.into_parts();
        let body = ClientBody::new(body, Some(way.counters.stream.clone())).noting(way.activity.cloned());
        let body = RequestBody::Incoming(body);
        if let Some(route) = way.route {
            route.request(Of::Request);
        }
        let result = match Copies::draw(&rule.mirrors, &head) {
            None => self.tries(way, head, body).await,
            Some(copies) => {
                let send = async |body| self.tries(way, head, body).await;
                Box::pin(copies.beside(self, policy, body, send)).await
            }
        };
        let mut response = way.counted(Of::Request, way.started, result)?;
        filter::response(&rule.filters, &mut response);
        Ok(response)
    }

    async fn tries(
        self: &Rc<Self>,
        way: Way<'_>,
        head: Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        match way.retry {
            Some(retry) => Box::pin(super::retry::send(self, way, retry, head, body)).await,
            None => self.send(way, head, body).await,
        }
    }

    /// One try.
    pub(super) async fn send(
        self: &Rc<Self>,
        way: Way<'_>,
        head: Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let started = way.started;
        let Timeouts {
            response,
            request,
            // Watched over by `way.activity`.
            idle: _,
        } = way.timeouts;
        let end = request.map(|limit| started + limit);
        let limit = match (response, request) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        let sending = self.send_untimed(way, limit.map(|limit| started + limit), head, body);
        let tried = way.route.map(|route| {
            route.request(Of::Try);
            Instant::now()
        });
        let result = match (limit, way.activity) {
            (None, None) => sending.await,
            (limit, activity) => Box::pin(bounded(sending, started, limit, activity)).await,
        };
        let response = way.counted(Of::Try, tried.unwrap_or(started), result)?;
        Ok(match (end, way.activity) {
            (None, None) => response,
            (end, activity) => response.map(|body| body.deadline(end).idle(activity.cloned())),
        })
    }

    async fn send_untimed(
        self: &Rc<Self>,
        way: Way<'_>,
        until: Option<Instant>,
        mut head: Parts,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let Chosen {
            backend,
            balancer,
            terms,
            sticky,
        } = Chosen::new(way.policy, way.rule, &head.headers, self.addr())?;
        if let Some(response) = filter::to_backend(&backend.filters, way.prefix, &mut head)? {
            return Ok(response);
        }
        let counter = way.counters.backend(backend);
        let errand = Errand {
            counter: Some(&counter),
            meta: Some(way.meta),
            accrual: way.http.failure_accrual.as_ref(),
            terms,
            route: way.route,
            require_id: way.require_id,
            started: way.started,
            until,
        };
        let (endpoint, mut response) = match Copies::draw(&backend.mirrors, &head) {
            None => self.to_balancer(balancer, errand, head, body).await?,
            Some(copies) => {
                let send = async |body| self.to_balancer(balancer, errand, head, body).await;
                Box::pin(copies.beside(self, way.policy, body, send)).await?
            }
        };
        if let Some(sticky) = sticky {
            sticky.tell(endpoint, response.headers_mut());
        }
        filter::response(&backend.filters, &mut response);
        headers::clean_response(&mut response);
        Ok(response)
    }

    /// Sends a request to one of the backend's endpoints, whose number comes with the answer.
    pub(super) async fn to_balancer(
        &self,
        balancer: &Rc<Balancer>,
        errand: Errand<'_>,
        mut head: Parts,
        mut body: RequestBody,
    ) -> Result<(u64, Response<ResponseBody>), ProxyError> {
        let deadline = balancer.failfast_deadline();
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
            until,
            ..
        }: Errand<'_>,
        head: &Parts,
        deadline: Instant,
    ) -> Result<(Picked, Connection), ProxyError> {
        loop {
            let endpoint = balancer.pick(terms, deadline).await?;
            endpoint.must_be(require_id)?;
            let attempt = Attempt::begin(balancer, &endpoint, accrual, until);
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
        head: Parts,
        body: RequestBody,
    ) -> Result<(u64, Response<ResponseBody>), ProxyError> {
        let Errand {
            accrual,
            route,
            counter,
            started,
            until,
            ..
        } = errand;
        let http1 = head.version != Version::HTTP_2;
        let in_flight = endpoint.begin();
        let endpoint = in_flight.endpoint().clone();
        let handles = endpoint.handles().clone();
        handles.request();
        let sent = Instant::now();
        let stream = counter.map(|counter| {
            counter.request();
            Stream::new(counter.clone(), sent)
        });
        let mut request = Request::from_parts(head, body);
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
        let attempt = Attempt::begin(balancer, &endpoint, accrual, until);
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
        attempt.over();
        let mut response = match result {
            Ok(response) => response,
            Err(error) => {
                balancer.judge(&endpoint, Answer::FAILED, accrual);
                if let Some(observed) = &mut observed {
                    observed.failed(error.h2_reason());
                }
                if let Some(stream) = stream {
                    stream.failed(error.stream_label());
                }
                handles.response(http::StatusCode::BAD_GATEWAY, End::Failed, started);
                return Err(error);
            }
        };
        endpoint.observe(sent.elapsed());
        let verdict = Verdict::now_or_later(balancer, &endpoint, accrual, &response);
        *response.version_mut() = if http1 { Version::HTTP_11 } else { Version::HTTP_2 };
        let (status, in_flight) = (response.status(), Some(in_flight));
        let tracker = Tracker::new(Some(handles), status, response.headers(), started, in_flight);
        let tracker = tracker.counting(stream).judging(verdict);
        let response = response.map(|body| body.tracked(tracker));
        let response = match observed {
            None => response,
            Some(observed) => observed.answered(response),
        };
        Ok((endpoint.id(), response))
    }

    /// Where the application's connection came from.
    pub(super) fn addr(&self) -> IpAddr {
        self.addr.ip()
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

    /// A place among the copies that may be under way.
    pub(super) fn mirror_place(&self, under_way_max: usize) -> Option<Rc<()>> {
        let places = &self.worker.mirrored;
        (Rc::strong_count(places) <= under_way_max).then(|| places.clone())
    }

    /// What a request that names no host is for.
    fn authority(&self) -> Authority {
        Authority::try_from(self.target.dst.to_string()).unwrap_or(Authority::from_static("localhost"))
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

/// A try that must have its response's head in time, and without its request's body standing still for too long.
async fn bounded(
    sending: impl Future<Output = Result<Response<ResponseBody>, ProxyError>>,
    started: Instant,
    limit: Option<Duration>,
    activity: Option<&Activity>,
) -> Result<Response<ResponseBody>, ProxyError> {
    let late = async {
        match limit {
            Some(limit) => {
                sleep_until(started + limit).await;
                limit
            }
            None => std::future::pending().await,
        }
    };
    let idle = async {
        match activity {
            Some(activity) => activity.idle().await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        result = sending => result,
        limit = late => Err(ProxyError::Timeout(limit)),
        limit = idle => Err(ProxyError::Timeout(limit)),
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
