//! Requests of applications: route, backend, endpoint, and the way there.

mod errand;

use std::{
    net::{IpAddr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use heddle_proxy_policy::{
    Meta,
    outbound::{Http, OutboundRule, Retry, Timeouts},
    route,
};
use heddle_tls::PeerId;
use http::{HeaderValue, Request, Response, Version, header, request::Parts, uri::Authority};
use tokio::time::Instant;
use tracing::debug;

use super::{
    Known, Target, clock::Clock, counters::RouteCounters, mirror::Copies, overrides::Asked, sticky::Chosen,
    target::Policy,
};
use crate::{
    dst::NameAddr,
    http::{
        ProxyError, RequestBody, ResponseBody,
        body::{Activity, ClientBody, Sent},
        filter, headers,
        incoming::Incoming,
        is_grpc,
        serve::{self, HttpVersion},
        strict,
    },
    metrics::{
        labels::Labels,
        route::{Of, RouteHandles, RouteTracker},
        stream::Stream,
    },
    observe::Direction,
    worker::Worker,
};

pub(super) use errand::{Errand, override_authority};

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
    pub(super) timeouts: &'p Timeouts,
    pub(super) retry: Option<&'p Retry>,
    /// The limit of this try.
    pub(super) one_try: Option<Duration>,
    /// When all of the client's request was there, where a limit counts from then.
    pub(super) sent: Option<&'p Sent>,
    /// When either side last moved, where idle streams are ended.
    pub(super) activity: Option<&'p Activity>,
    /// The counters of the ServiceProfile's route.
    pub(super) route: Option<&'p Rc<RouteHandles>>,
    /// Who the endpoint must be.
    pub(super) require_id: Option<&'p PeerId>,
    /// Whether the client speaks HTTP/1.
    pub(super) http1: bool,
    pub(super) started: Instant,
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
    let http2 = worker.config.outbound.http2.at_most(serve::STREAMS_MAX);
    serve::serve(worker, drain, io, version, http2, handle).await;
}

impl Way<'_> {
    fn is_limited(&self) -> bool {
        let Timeouts {
            head,
            response,
            request,
            idle,
        } = self.timeouts;
        [head, response, request, idle, &self.one_try]
            .iter()
            .any(|limit| limit.is_some())
    }

    /// The limits of a try that begins now.
    pub(super) fn clock(&self) -> Clock {
        Clock::new(self.started, *self.timeouts, self.one_try, self.sent.cloned())
    }

    /// When the request's time is over, whatever its tries come to.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        Some(self.started + self.timeouts.whole()?)
    }

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
            Err(error) => route.response(of, error.end(self.http1), started),
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

    pub(super) async fn respond(self: &Rc<Self>, request: Request<Incoming>) -> Response<ResponseBody> {
        // On the heap, or each step of the way would keep room for it.
        let mut request = Box::new(request);
        let observers = &self.worker.observers;
        match observers.received(Direction::Outbound, &mut request, self.addr, None) {
            None => self.answer(request).await,
            Some(observed) => Box::pin(observed.watch(self.answer(request))).await,
        }
    }

    async fn answer(self: &Rc<Self>, request: Box<Request<Incoming>>) -> Response<ResponseBody> {
        let grpc = is_grpc(request.headers());
        let http1 = request.version() != Version::HTTP_2;
        let tells = self.worker.config.outbound.informational_headers;
        match self.request(request).await {
            Ok(mut response) => {
                if !tells {
                    // Of the server's proxy.
                    response.headers_mut().remove(headers::PROXY_ERROR);
                }
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
                if !tells {
                    response.headers_mut().remove(headers::PROXY_ERROR);
                    response.headers_mut().remove(headers::GRPC_MESSAGE);
                }
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
        mut request: Box<Request<Incoming>>,
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
        let timeouts = asked.timeouts.as_ref().unwrap_or(&rule.timeouts);
        let retry = asked.retry.as_ref().or(rule.retry.as_ref());
        let activity = timeouts.idle.map(Activity::new);
        let counts_from_end =
            timeouts.response.is_some() || retry.is_some_and(|retry| retry.timeout.is_some());
        let sent = counts_from_end.then(Sent::default);
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
            retry,
            one_try: None,
            sent: sent.as_ref(),
            route: policy.route_handles(rule),
            require_id: asked.id.as_ref(),
            http1: version == HttpVersion::Http1,
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
        mut request: Box<Request<Incoming>>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let Way { policy, rule, .. } = way;
        if let Some(response) = filter::request(&rule.filters, way.prefix, &mut request)? {
            return Ok(response);
        }
        if headers::is_upgrade(&request) {
            return Box::pin(super::upgrade::serve(self, way, *request)).await;
        }
        let (head, body) = request.into_parts();
        let head = Box::new(head);
        let body = ClientBody::new(body, Some(way.counters.stream.clone()))
            .noting(way.activity.cloned())
            .noting_end(way.sent.cloned());
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
        head: Box<Parts>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        match way.retry {
            Some(retry) => Box::pin(super::retry::send(self, way, retry, head, body)).await,
            None => self.send(way, head, body).await,
        }
    }

    /// One try, which may have a time limit of its own.
    pub(super) async fn send(
        self: &Rc<Self>,
        way: Way<'_>,
        head: Box<Parts>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let tried = way.route.map(|route| {
            route.request(Of::Try);
            Instant::now()
        });
        let result = match way.is_limited() {
            false => self.send_untimed(way, None, head, body).await,
            true => Box::pin(self.send_in_time(way, head, body)).await,
        };
        way.counted(Of::Try, tried.unwrap_or(way.started), result)
    }

    async fn send_in_time(
        self: &Rc<Self>,
        way: Way<'_>,
        head: Box<Parts>,
        body: RequestBody,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let clock = way.clock();
        let sending = self.send_untimed(way, Some(&clock), head, body);
        let response = clock.bound(sending, way.activity).await?;
        let ends_at = clock.ends_at();
        Ok(response.map(|body| body.deadline(ends_at).idle(way.activity.cloned())))
    }

    async fn send_untimed(
        self: &Rc<Self>,
        way: Way<'_>,
        clock: Option<&Clock>,
        mut head: Box<Parts>,
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
            clock,
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

    /// Where the application's connection came from.
    pub(super) fn addr(&self) -> IpAddr {
        self.addr.ip()
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<F: Future>(_: fn(&'static Rc<Client>, Request<Incoming>) -> F) -> usize {
        size_of::<F>()
    }

    /// Every request under way holds one of these, and it is copied when it begins.
    #[test]
    fn requests_are_small() {
        let bytes = future_bytes(Client::respond);
        assert!(bytes <= 5_200, "a request takes {bytes} bytes");
    }
}
