//! Asks the API server for token reviews, at little cost: over HTTP/2 connections that many reviews share.
//!
//! When a cluster restarts, reviews come by the thousand. kube's own client speaks HTTP/1.1: a connection, with its TLS
//! handshake, for each review that runs at a time. Its retries and its log lines are left out, too: who asks knows the
//! deadline ([`super::Reviews`]). Addresses, roots, credentials and headers are those of kube's configuration.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use heddle_tls::pieces::{Pieces, Unvectored};
use http::{Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::{Config, client::ConfigExt as _};
use tower::{BoxError, Layer as _, Service, ServiceExt as _, util::BoxCloneSyncService};

use super::review::{Verdict, verdict};
use crate::turn;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";
/// Reviews at a time on one connection: API servers allow a hundred or more.
const STREAMS_MAX: usize = 64;
/// Enough for all reviews that run at a time. One is used as long as it has room.
const CONNECTIONS_MAX: usize = (turn::FAST_MAX + turn::SLOW_MAX).div_ceil(STREAMS_MAX);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that has gone dead must not be waited for.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(3);
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// A review repeats the token and names a user.
const ANSWER_BYTES_MAX: usize = 256 * 1024;

/// One request and its whole answer.
pub(super) type Http = BoxCloneSyncService<Request<Full<Bytes>>, Response<Bytes>, BoxError>;

/// Connections to the API server, made when they are needed.
pub(super) struct Connections {
    reviews: Uri,
    connections: Vec<Connection>,
}

struct Connection {
    http: Http,
    in_flight: AtomicUsize,
}

/// Why there is no review.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The API server says so.
    #[error("the API server answered {status}: {message}")]
    Status {
        /// Of the answer.
        status: StatusCode,
        /// What it says.
        message: String,
        /// How long it wants to be left alone.
        retry_after: Duration,
    },
    /// It was not reached, or the connection ended.
    #[error("the API server was not reached")]
    Connection(#[source] BoxError),
    /// The question cannot be written.
    #[error("failed to write the TokenReview")]
    Question(#[source] serde_json::Error),
    /// What it answered is no review.
    #[error("the API server's answer is not a TokenReview")]
    Answer(#[source] serde_json::Error),
}

impl ApiError {
    /// Whether the same question may well be answered later, and how long to wait at least.
    pub(super) fn passes_after(&self) -> Option<Duration> {
        match self {
            Self::Status {
                status, retry_after, ..
            } => {
                (*status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error()).then_some(*retry_after)
            }
            Self::Connection(_) => Some(Duration::ZERO),
            Self::Question(_) | Self::Answer(_) => None,
        }
    }
}

impl Connections {
    /// As `config` says; nothing is connected yet.
    pub(super) fn new(config: &Config) -> kube::Result<Self> {
        let connections = (0..CONNECTIONS_MAX).map(|_| Ok(Connection::new(connect(config)?)));
        Ok(Self {
            reviews: reviews(&config.cluster_url)?,
            connections: connections.collect::<kube::Result<_>>()?,
        })
    }

    #[cfg(test)]
    pub(super) fn over(http: Http) -> Self {
        Self {
            reviews: Uri::from_static(PATH),
            connections: (0..2).map(|_| Connection::new(http.clone())).collect(),
        }
    }

    /// Asks on the first connection that has room; `again` on the last, which seldom is the one that failed.
    pub(super) async fn ask(&self, question: &Bytes, again: bool) -> Result<Option<Verdict>, ApiError> {
        let Self { reviews, connections } = self;
        let has_room = |connection: &&Connection| connection.in_flight.load(Ordering::Relaxed) < STREAMS_MAX;
        let found = match again {
            false => connections.iter().find(has_room),
            true => connections.iter().rev().find(has_room),
        };
        // Turns keep reviews within what all connections have room for.
        let connection = found.unwrap_or(&connections[0]);
        connection.ask(reviews.clone(), question.clone()).await
    }
}

impl Connection {
    fn new(http: Http) -> Self {
        Self {
            http,
            in_flight: AtomicUsize::new(0),
        }
    }

    async fn ask(&self, reviews: Uri, question: Bytes) -> Result<Option<Verdict>, ApiError> {
        let request = Request::post(reviews)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .body(Full::from(question))
            .map_err(|error| ApiError::Connection(error.into()))?;
        let _place = Place::take(&self.in_flight);
        let answer = self.http.clone().oneshot(request).await;
        let (parts, body) = answer.map_err(ApiError::Connection)?.into_parts();
        if parts.status.is_success() {
            return verdict(&body).map_err(ApiError::Answer);
        }
        let said: Status = serde_json::from_slice(&body).unwrap_or_default();
        let asked = parts
            .headers
            .get(header::RETRY_AFTER)
            .and_then(|value| value.to_str().ok());
        let seconds = asked.and_then(|text| text.parse().ok()).unwrap_or(0);
        Err(ApiError::Status {
            status: parts.status,
            message: said.message.unwrap_or_default(),
            retry_after: Duration::from_secs(seconds),
        })
    }
}

/// A place on a connection, given back when dropped.
struct Place<'a>(&'a AtomicUsize);

impl<'a> Place<'a> {
    fn take(in_flight: &'a AtomicUsize) -> Self {
        in_flight.fetch_add(1, Ordering::Relaxed);
        Self(in_flight)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Where reviews are asked for; put together once. A server behind a gateway has a path of its own.
fn reviews(server: &Uri) -> kube::Result<Uri> {
    let mut parts = server.clone().into_parts();
    let base = server.path().trim_end_matches('/');
    let path = format!("{base}{PATH}").try_into();
    parts.path_and_query = Some(path.map_err(http::Error::from).map_err(kube::Error::HttpError)?);
    Uri::from_parts(parts).map_err(|error| kube::Error::HttpError(error.into()))
}

fn connect(config: &Config) -> kube::Result<Http> {
    let https = match &config.tls_server_name {
        // Only kube's own connector knows how, and it speaks HTTP/1.1.
        Some(_) => config.rustls_https_connector()?,
        None => {
            let mut tcp = HttpConnector::new();
            tcp.enforce_http(false);
            tcp.set_nodelay(true);
            tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
            let mut tls = config.rustls_client_config()?;
            tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            HttpsConnector::from((tcp, tls))
        }
    };
    let https = https.map_response(Unvectored::new);
    let client: Client<_, Pieces<Full<Bytes>>> = Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE_INTERVAL)
        .http2_keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
        .build(https);
    let client = client.map_request(|request: Request<Full<Bytes>>| request.map(Pieces::new));
    let whole = client.map_err(BoxError::from).and_then(whole);
    let headers = config.extra_headers_layer()?.layer(whole);
    Ok(match config.auth_layer()? {
        Some(auth) => boxed(auth.layer(headers)),
        None => boxed(headers),
    })
}

async fn whole(answer: Response<Incoming>) -> Result<Response<Bytes>, BoxError> {
    let (parts, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

fn boxed<S>(service: S) -> Http
where
    S: Service<Request<Full<Bytes>>, Response = Response<Bytes>, Error = BoxError>
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    BoxCloneSyncService::new(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_may_have_a_path() {
        let of = |server| reviews(&Uri::from_static(server)).expect("a URI").to_string();
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        assert_eq!(of("https://10.96.0.1"), format!("https://10.96.0.1{path}"));
        assert_eq!(of("https://[::1]:6443/"), format!("https://[::1]:6443{path}"));
        assert_eq!(
            of("https://gateway.example/k8s/c-1/?x=y"),
            format!("https://gateway.example/k8s/c-1{path}")
        );
    }
}
