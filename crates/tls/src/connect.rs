//! A client's channel to a control-plane service: resolves its name, connects by mesh TLS, speaks HTTP/2, and connects
//! anew when the connection ends.
//!
//! One task per channel owns the connection and makes it when a request needs it; requests take a sender from it. A
//! request that never reached the connection is sent again on the next one; any other failure is the caller's to judge.

mod addr;
mod backoff;
mod driver;
mod resolve;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use heddle_mesh::Identity;
use http::{Request, Response, Uri, uri};
use http_body::{Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http2::SendRequest};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tonic::{Status, body::Body};
use tower::Service;

pub use addr::{ControlAddr, InvalidAddr};
pub use driver::ConnectError;
pub use resolve::ResolveError;

pub(crate) use backoff::Backoff;

use crate::Store;

/// A request that finds its connection closed is sent again on a new one, so often.
const SENDS_MAX: usize = 3;

/// Whether a channel shows this process' certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// Shows the newest leaf when there is one.
    Leaf,
    /// Shows none: for the service that a leaf is obtained from.
    Anonymous,
}

/// The bounds of a channel.
#[derive(Clone, Debug)]
pub struct ChannelOptions {
    /// For one address: TCP, TLS and HTTP/2 together.
    pub connect_timeout: Duration,
    /// How long a request waits for a connection before it fails as unavailable.
    pub wait_timeout: Duration,
    /// A connection without requests for this long is closed.
    pub idle_timeout: Duration,
    /// Requests and open streams at a time; more wait.
    pub requests_max: usize,
    /// TLS even when the address is loopback.
    pub always_tls: bool,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(3),
            wait_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            requests_max: 16 * 1024,
            always_tls: false,
        }
    }
}

impl ChannelOptions {
    /// For a service that is asked once in minutes or hours: an open connection would cost it memory for nothing, so that
    /// it ends a second after the answer.
    pub fn seldom_asked() -> Self {
        Self {
            idle_timeout: Duration::from_secs(1),
            ..Self::default()
        }
    }
}

/// A channel to one control-plane service, for tonic's generated clients. Cheap to clone; clones share a connection,
/// and it ends with the last of them.
#[derive(Clone)]
pub struct ControlChannel {
    shared: Arc<Shared>,
    link: watch::Receiver<Link>,
    /// Aborts the driver when the last clone is gone.
    _driver: Arc<driver::Running>,
}

/// What requests and the driver share.
struct Shared {
    name: String,
    scheme: uri::Scheme,
    authority: uri::Authority,
    /// A request waits for a connection.
    demand: Notify,
    /// A request found the connection of this generation closed.
    broken: AtomicU64,
    broken_changed: Notify,
    /// Counts requests, so that the driver sees whether there were any.
    requests: AtomicU64,
    limit: Arc<Semaphore>,
    requests_max: usize,
    wait_timeout: Duration,
}

/// The connection as the driver last saw it.
#[derive(Clone)]
enum Link {
    Down {
        error: Option<Arc<str>>,
    },
    Up {
        generation: u64,
        sender: SendRequest<Body>,
    },
}

/// A response's body; holds the request's place among `requests_max` until it ends.
pub struct ControlBody {
    inner: Incoming,
    _permit: OwnedSemaphorePermit,
}

impl ControlChannel {
    /// A channel to the service at `addr`, which must prove to be `server`. Nothing is connected yet. Must be called
    /// within a tokio runtime, which then drives the connection.
    pub fn new(addr: ControlAddr, server: Identity, store: Store, auth: ClientAuth) -> Self {
        Self::with_options(addr, server, store, auth, ChannelOptions::default())
    }

    /// As [`ControlChannel::new`], with other bounds.
    pub fn with_options(
        addr: ControlAddr,
        server: Identity,
        store: Store,
        auth: ClientAuth,
        options: ChannelOptions,
    ) -> Self {
        let plaintext = addr.is_loopback() && !options.always_tls;
        let authority = addr
            .authority()
            .parse()
            .expect("a host and a port make an authority: checked in ControlAddr");
        let requests_max = options.requests_max.clamp(1, Semaphore::MAX_PERMITS);
        let shared = Arc::new(Shared {
            name: addr.to_string(),
            scheme: if plaintext {
                uri::Scheme::HTTP
            } else {
                uri::Scheme::HTTPS
            },
            authority,
            demand: Notify::new(),
            broken: AtomicU64::new(0),
            broken_changed: Notify::new(),
            requests: AtomicU64::new(0),
            limit: Arc::new(Semaphore::new(requests_max)),
            requests_max,
            wait_timeout: options.wait_timeout,
        });
        let (publish, link) = watch::channel(Link::Down { error: None });
        let tls = (!plaintext).then_some(driver::Tls { server, store, auth });
        let driver = driver::spawn(Arc::clone(&shared), addr, tls, options, publish);
        Self {
            shared,
            link,
            _driver: Arc::new(driver),
        }
    }

    async fn send(self, request: Request<Body>) -> Result<Response<ControlBody>, Status> {
        let Self {
            shared,
            mut link,
            _driver,
        } = self;
        let deadline = Instant::now() + shared.wait_timeout;
        let permit = match timeout(shared.wait_timeout, Arc::clone(&shared.limit).acquire_owned()).await {
            Ok(permit) => permit.expect("the semaphore is never closed"),
            Err(_) => {
                let max = shared.requests_max;
                return Err(Status::resource_exhausted(format!(
                    "{}: {max} requests are in flight",
                    shared.name
                )));
            }
        };
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let mut request = absolute(request, &shared)?;
        for _ in 0..SENDS_MAX {
            let (generation, mut sender) = shared.connected(&mut link, deadline).await?;
            match sender.try_send_request(request).await {
                Ok(response) => {
                    return Ok(response.map(|inner| ControlBody {
                        inner,
                        _permit: permit,
                    }));
                }
                Err(mut error) => {
                    shared.broken(generation);
                    match error.take_message() {
                        Some(unsent) => request = unsent,
                        None => return Err(status(&shared.name, error.into_error())),
                    }
                }
            }
        }
        Err(Status::unavailable(format!(
            "{}: connections close before a request can be sent",
            shared.name
        )))
    }
}

impl Shared {
    /// Waits for a connection; the error says why the last attempt failed.
    async fn connected(
        &self,
        link: &mut watch::Receiver<Link>,
        deadline: Instant,
    ) -> Result<(u64, SendRequest<Body>), Status> {
        loop {
            let error = match &*link.borrow_and_update() {
                Link::Up { generation, sender } if *generation > self.broken.load(Ordering::Acquire) => {
                    if !sender.is_closed() {
                        return Ok((*generation, sender.clone()));
                    }
                    self.broken(*generation);
                    None
                }
                Link::Up { .. } => None,
                Link::Down { error } => error.clone(),
            };
            self.demand.notify_one();
            match timeout_at(deadline, link.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    return Err(Status::unavailable(format!(
                        "{}: the channel has ended",
                        self.name
                    )));
                }
                Err(_) => {
                    let error = error.as_deref().unwrap_or("no connection in time");
                    return Err(Status::unavailable(format!("{}: {error}", self.name)));
                }
            }
        }
    }

    fn broken(&self, generation: u64) {
        self.broken.fetch_max(generation, Ordering::AcqRel);
        self.broken_changed.notify_one();
    }
}

/// tonic's clients give a path only; HTTP/2 wants scheme and authority too.
fn absolute(request: Request<Body>, shared: &Shared) -> Result<Request<Body>, Status> {
    let (mut parts, body) = request.into_parts();
    let mut uri = parts.uri.into_parts();
    uri.scheme = Some(shared.scheme.clone());
    uri.authority = Some(shared.authority.clone());
    uri.path_and_query
        .get_or_insert(uri::PathAndQuery::from_static("/"));
    parts.uri =
        Uri::from_parts(uri).map_err(|error| Status::internal(format!("invalid request path: {error}")))?;
    parts.version = http::Version::HTTP_2;
    Ok(Request::from_parts(parts, body))
}

/// What the library cannot tell the code of is a connection that failed.
fn status(name: &str, error: hyper::Error) -> Status {
    let text = format!("{name}: {}", heddle_daemon::report::chain(&error));
    match Status::from_error(Box::new(error)).code() {
        tonic::Code::Unknown => Status::unavailable(text),
        code => Status::new(code, text),
    }
}

impl Service<Request<Body>> for ControlChannel {
    type Response = Response<ControlBody>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // A request waits for its place and its connection itself, with a deadline.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

impl http_body::Body for ControlBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.inner).poll_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map_err(|error| status("response", error))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl fmt::Debug for ControlChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlChannel")
            .field("addr", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ControlBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
