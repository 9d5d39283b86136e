//! Requests to the application: route, authorization, and the application's own version of HTTP.

use std::{
    cell::{OnceCell, RefCell},
    net::SocketAddr,
    pin::pin,
    rc::Rc,
    sync::Arc,
};

use heddle_proxy_policy::{
    Client, ClientTls, Meta, Permit, ServerPolicy,
    inbound::{Allowed, Protocol, Refused},
    ratelimit::{Cell, RateLimited},
};
use http::{HeaderValue, Request, Response, Version};
use tokio::time::Instant;
use tracing::{debug, info};

use super::{Known, app::App, port::Port, tcp::Judge};
use crate::{
    http::{
        ProxyError, RequestBody, ResponseBody,
        body::ClientBody,
        filter, headers,
        incoming::Incoming,
        is_grpc,
        live::{Forbidden, Leave, Live},
        pipe,
        serve::{self, HttpVersion},
        strict,
        tracker::Tracker,
        upgrade,
    },
    metrics::{
        family::Counter,
        http::HttpHandles,
        labels::{Labels, Unmeshed},
        route::{Of, RouteHandles, RouteTracker},
        stream::{Stream, StreamHandles},
    },
    observe::{Direction, Observed},
    tap,
    worker::Worker,
};

/// Routes and authorizations whose counters a connection holds on to.
const HANDLES_MAX: usize = 64;

/// A client's connection.
pub(super) struct Connection {
    worker: Rc<Worker>,
    port: Rc<Port>,
    client: Client,
    peer: SocketAddr,
    client_id: Option<HeaderValue>,
    unmeshed: Unmeshed,
    /// What its rate limit counts by.
    cell: OnceCell<Arc<Cell>>,
    handles: RefCell<Vec<Rc<Handles>>>,
    /// HTTP/2 goes to the application on a connection for this client alone: one that does not read what it asked
    /// for fills the connection's window, and would hold back all others.
    http2_app: OnceCell<App>,
    /// For what outlives the connection: an upgraded one.
    drain: drain::Watch,
}

/// The counters of requests with one verdict.
pub(super) struct Handles {
    permit: Permit,
    /// For the requests of now; when the policy forbids them, they end.
    pub(super) leave: Rc<Leave>,
    pub(super) http: Rc<HttpHandles>,
    pub(super) stream: Rc<StreamHandles>,
    allowed: Arc<Counter>,
}

impl Handles {
    /// The response, counted when it ends.
    pub(super) fn counted(
        &self,
        response: Response<ResponseBody>,
        started: Instant,
    ) -> Response<ResponseBody> {
        let (status, headers) = (response.status(), response.headers());
        let tracker = Tracker::new(Some(self.http.clone()), status, headers, started, None);
        let tracker = tracker.counting(Some(Stream::new(self.stream.clone(), started)));
        response.map(|body| body.tracked(tracker))
    }

    /// Once the policy has forbidden requests of the kind, those that it allows later begin anew.
    fn are_for(&self, permit: &Permit, route: &Meta, grpc: bool) -> bool {
        self.permit == *permit
            && self.leave.route() == route
            && self.stream.is_grpc() == grpc
            && !self.leave.is_forbidden()
    }
}

pub(super) async fn serve(worker: Rc<Worker>, known: Box<Known>, drain: drain::Watch, version: HttpVersion) {
    let Known {
        io,
        client,
        peer,
        unmeshed,
        port,
    } = *known;
    let connection = Rc::new(Connection::new(
        worker.clone(),
        port,
        client,
        peer,
        unmeshed,
        drain.clone(),
    ));
    let streams_max = match &connection.client_id {
        Some(_) => serve::STREAMS_MAX,
        None => serve::STRANGER_STREAMS_MAX,
    };
    let handle = move |request| {
        let connection = connection.clone();
        async move { connection.respond(request).await }
    };
    // Each request is judged by the policy of its moment, so that the connection as a whole need not be.
    let http2 = worker.config.inbound.http2.at_most(streams_max);
    serve::serve(worker, drain, io, version, http2, handle).await;
}

/// The server's labels.
pub(super) fn server_labels(labels: Labels, server: &Meta, port: u16) -> Labels {
    labels.resource("srv", server).with("srv_port", port)
}

impl Connection {
    pub(super) fn new(
        worker: Rc<Worker>,
        port: Rc<Port>,
        client: Client,
        peer: SocketAddr,
        unmeshed: Unmeshed,
        drain: drain::Watch,
    ) -> Self {
        let client_id = client.tls.identity();
        let client_id = client_id.and_then(|id| HeaderValue::from_str(id.as_str()).ok());
        Self {
            worker,
            port,
            client,
            peer,
            client_id,
            unmeshed,
            cell: OnceCell::new(),
            handles: RefCell::default(),
            http2_app: OnceCell::new(),
            drain,
        }
    }

    async fn respond(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        // On the heap, or each step of the way would keep room for it.
        let mut request = Box::new(request);
        match self.received(&mut request) {
            None => self.answer(request).await,
            Some(observed) => Box::pin(observed.watch(self.answer(request))).await,
        }
    }

    /// Shows the request to those who look at the pod's requests.
    pub(super) fn received(&self, request: &mut Request<Incoming>) -> Option<Box<Observed>> {
        let observers = &self.worker.observers;
        observers.received(Direction::Inbound, request, self.peer, self.client_id())
    }

    fn client_id(&self) -> Option<&str> {
        self.client.tls.identity().map(|id| id.as_str())
    }

    async fn answer(&self, request: Box<Request<Incoming>>) -> Response<ResponseBody> {
        let grpc = is_grpc(request.headers());
        let http1 = request.version() != Version::HTTP_2;
        match self.request(request).await {
            Ok(response) => response,
            Err(error) => self.failure(&error, grpc, http1),
        }
    }

    /// The counters of the ServiceProfile's route, when the client's proxy says that it chose the request's way by one.
    fn profiled<B>(&self, request: &Request<B>) -> Option<Rc<RouteHandles>> {
        // A stranger does not choose what is counted.
        let service = self
            .client_id
            .as_ref()
            .and_then(|_| request.headers().get(headers::DST_CANONICAL))?;
        self.worker.profiles.route(&self.worker, service, request)
    }

    /// The port's policy as it is now.
    pub(super) fn policy(&self) -> Arc<ServerPolicy> {
        self.port.policy()
    }

    /// What the client is told of an error.
    pub(super) fn failure(&self, error: &ProxyError, grpc: bool, http1: bool) -> Response<ResponseBody> {
        debug!(client = %self.client.addr, error = %heddle_daemon::report::chain(error), "Request failed");
        let labels = Labels::default().with("error", error.label());
        self.worker.metrics.inbound_http_errors_total.get(&labels).add(1);
        let mut response = error.response(grpc);
        let headers = response.headers_mut();
        let close = HeaderValue::from_static("close");
        // What the mesh says to itself is no stranger's business.
        match self.client.tls {
            ClientTls::Established(_) if error.closes() => {
                headers.insert(headers::PROXY_CONNECTION, close.clone());
            }
            ClientTls::Established(_) => {}
            ClientTls::None => drop(headers.remove(headers::PROXY_ERROR)),
        }
        if http1 && error.closes() {
            headers.insert(http::header::CONNECTION, close);
        }
        response
    }

    /// Judges one request by the policy of its moment, and counts it.
    pub(super) fn admit<'p, B>(
        &self,
        policy: &'p ServerPolicy,
        request: &Request<B>,
        now: Instant,
    ) -> Result<(Allowed<'p>, Rc<Handles>), ProxyError> {
        strict::check(request)?;
        let allowed = match policy.authorize_request(&self.client, request) {
            Ok(allowed) => allowed,
            Err(refused) => return Err(self.refuse(&policy.meta, &refused)),
        };
        let grpc = matches!(policy.protocol, Protocol::Grpc(_));
        let handles = self.handles(&allowed.permit, allowed.route, grpc);
        if let Some(limit) = policy.rate_limit() {
            let id = self.client.tls.identity();
            let cells = &self.port.cells;
            let cell = self.cell.get_or_init(|| cells.client(id));
            if let Err(limited) = cells.admit(limit, id, cell, now.into_std()) {
                return Err(self.limit(&policy.meta, &limit.meta, limited));
            }
        }
        handles.allowed.add(1);
        handles.http.request();
        handles.stream.request();
        Ok((allowed, handles))
    }

    async fn request(
        &self,
        mut request: Box<Request<Incoming>>,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        let started = Instant::now();
        let policy = self.port.policy();
        let (allowed, handles) = self.admit(&policy, &request, started)?;
        let mut live = Live::new(&handles.leave);
        let orig_proto = request.headers().contains_key(headers::ORIG_PROTO);
        let was_http1 = headers::downgrade_to_h1(&mut request) || request.version() != Version::HTTP_2;
        let mut profiled = None;
        if headers::has_own(request.headers()) {
            profiled = self.profiled(&request);
            headers::strip_forgeable(request.headers_mut());
        }
        if let Some(id) = &self.client_id {
            request.headers_mut().insert(headers::CLIENT_ID, id.clone());
        }
        if let Some(response) = filter::request(allowed.filters, allowed.prefix, &mut request)? {
            return Ok(handles.counted(response, started));
        }
        let permit = allowed.permit;
        if headers::is_upgrade(&request) {
            return match Box::pin(self.upgrade(&permit, *request, live)).await {
                Ok(response) => Ok(handles.counted(response, started)),
                Err(error) => Err(Self::failed(&handles, started, was_http1, error)),
            };
        }
        if let Some(route) = &profiled {
            route.request(Of::Request);
        }
        let counter = Some(handles.stream.clone());
        let mut request = request.map(|body| RequestBody::Incoming(ClientBody::new(body, counter)));
        let mut observed = self
            .worker
            .observers
            .sending(Direction::Inbound, &mut request, || self.way(allowed.route));
        let result = match was_http1 {
            true => {
                headers::strip_connection(request.headers_mut());
                if !orig_proto {
                    headers::origin_form(&mut request);
                }
                let response = live.wait(pin!(self.port.app().http1(&permit, request))).await;
                response.map(|response| response.map(|one| one.map(ResponseBody::http1)))
            }
            false => {
                let app = self.http2_app.get_or_init(|| self.port.app().apart());
                match app.http2(&permit).await {
                    Ok(mut sender) => {
                        headers::absolute_uri(&mut request, || {
                            http::uri::Authority::from_static("localhost")
                        });
                        let (head, body) = request.into_parts();
                        let response = live.wait(pin!(pipe::send(&mut sender, head, body))).await;
                        response.map(|response| response.map(|one| one.map(ResponseBody::http2)))
                    }
                    Err(error) => Ok(Err(error.into())),
                }
            }
        };
        let mut response = match result.unwrap_or_else(|Forbidden| Err(self.forbidden(&handles))) {
            Ok(response) => response,
            Err(error) => {
                if let Some(observed) = &mut observed {
                    observed.failed(error.h2_reason());
                }
                if let Some(route) = &profiled {
                    route.response(Of::Request, error.end(was_http1), started);
                }
                return Err(Self::failed(&handles, started, was_http1, error));
            }
        };
        let version = response.version();
        headers::clean_response(&mut response);
        if orig_proto {
            let proto = if version == Version::HTTP_10 {
                "HTTP/1.0"
            } else {
                "HTTP/1.1"
            };
            response
                .headers_mut()
                .insert(headers::ORIG_PROTO, HeaderValue::from_static(proto));
        }
        *response.version_mut() = if orig_proto || !was_http1 {
            Version::HTTP_2
        } else {
            Version::HTTP_11
        };
        let mut response = handles.counted(response, started).map(|body| body.live(live));
        if let Some(route) = &profiled {
            let tracker = RouteTracker::new(route, Of::Request, response.status(), started);
            ResponseBody::also_tracked(&mut response, tracker);
        }
        Ok(match observed {
            None => response,
            Some(observed) => observed.answered(response),
        })
    }

    async fn upgrade(
        &self,
        permit: &Permit,
        mut request: Request<Incoming>,
        mut live: Live,
    ) -> Result<Response<ResponseBody>, ProxyError> {
        if request.method() != http::Method::CONNECT {
            headers::origin_form(&mut request);
        }
        let connection = self.port.app().upgradable(permit).await?;
        let (worker, port) = (self.worker.clone(), self.port.clone());
        let (client, unmeshed) = (self.client.clone(), self.unmeshed.clone());
        let forbidden = async move {
            live.forbidden().await;
            let judge = Judge {
                worker: &worker,
                port: &port,
                client: &client,
                unmeshed: &unmeshed,
            };
            judge.count_terminated();
        };
        upgrade::send(connection, request, self.drain.clone(), forbidden).await
    }

    fn failed(handles: &Handles, started: Instant, http1: bool, error: ProxyError) -> ProxyError {
        let (status, end) = error.end(http1);
        handles.http.response(status, end, started);
        Stream::new(handles.stream.clone(), started).failed(error.stream_label());
        error
    }

    fn refuse(&self, server: &Meta, refused: &Refused<'_>) -> ProxyError {
        let metrics = &self.worker.metrics;
        let labels = server_labels(self.labels(), server, self.port.addr().port());
        match refused {
            Refused::NoRoute { .. } => {
                metrics.inbound_http_route_not_found_total.get(&labels).add(1);
                ProxyError::NoRoute
            }
            Refused::Denied { route, denied } => {
                info!(server = server.name(), route = route.name(), %denied, "Request denied");
                self.denied(server, route)
            }
        }
    }

    /// A request that was allowed, and no longer is, before anything was answered.
    pub(super) fn forbidden(&self, handles: &Handles) -> ProxyError {
        self.denied(handles.permit.server(), handles.leave.route())
    }

    fn denied(&self, server: &Meta, route: &Meta) -> ProxyError {
        let labels = server_labels(self.labels(), server, self.port.addr().port());
        let denied = &self.worker.metrics.inbound_http_authz_deny_total;
        denied.get(&labels.resource("route", route)).add(1);
        ProxyError::Unauthorized
    }

    fn limit(&self, server: &Meta, policy: &Meta, limited: RateLimited) -> ProxyError {
        let labels =
            server_labels(self.labels(), server, self.port.addr().port()).resource("ratelimit", policy);
        let scope = match limited {
            RateLimited::Total => "total",
            RateLimited::Client => "identity",
        };
        self.worker
            .metrics
            .inbound_http_local_ratelimit_total
            .get(&labels.with("ratelimit_scope", scope))
            .add(1);
        ProxyError::RateLimited
    }

    /// The way to the application.
    fn way<'w>(&'w self, route: &'w Meta) -> tap::Way<'w> {
        tap::Way {
            source: self.peer,
            source_tls: match self.client.tls {
                ClientTls::Established(_) => "true",
                ClientTls::None => self.unmeshed.reason(),
            },
            source_id: self.client_id(),
            destination: self.port.addr(),
            destination_tls: "loopback",
            destination_id: None,
            labels: &[],
            route: Some(route.name()),
        }
    }

    fn labels(&self) -> Labels {
        Labels::default()
            .target_addr(self.port.addr())
            .client_tls(&self.client.tls, &self.unmeshed)
    }

    /// The counters of this verdict; looked up by their labels only once per connection.
    fn handles(&self, permit: &Permit, route: &Meta, grpc: bool) -> Rc<Handles> {
        let mut all = self.handles.borrow_mut();
        if let Some(known) = all.iter().find(|one| one.are_for(permit, route, grpc)) {
            return known.clone();
        }
        self.port.audit(&self.client, permit, Some(route));
        let port = self.port.addr().port();
        let direction = Labels::direction("inbound").target_addr(self.port.addr());
        let tls = direction.client_tls(&self.client.tls, &self.unmeshed);
        let full = |labels: Labels| {
            server_labels(labels, permit.server(), port)
                .resource("route", route)
                .resource("authz", permit.authorization())
        };
        let handles = Rc::new(Handles {
            permit: permit.clone(),
            leave: self.port.leave(&self.client, route),
            http: HttpHandles::new(self.worker.metrics.clone(), full(tls)),
            stream: StreamHandles::new(
                match grpc {
                    true => &self.worker.metrics.inbound_grpc,
                    false => &self.worker.metrics.inbound_http,
                },
                Labels::default()
                    .resource("parent", permit.server())
                    .with("parent_port", port)
                    .resource("route", route),
            ),
            allowed: self
                .worker
                .metrics
                .inbound_http_authz_allow_total
                .get(&full(self.labels())),
        });
        if all.len() >= HANDLES_MAX {
            all.clear();
        }
        all.push(handles.clone());
        handles
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn future_bytes<F: Future>(_: fn(&'static Connection, Request<Incoming>) -> F) -> usize {
        size_of::<F>()
    }

    /// Every request under way holds one of these, and it is copied when it begins.
    #[test]
    fn requests_are_small() {
        let bytes = future_bytes(Connection::respond);
        assert!(bytes <= 2_700, "a request takes {bytes} bytes");
    }
}
