//! A bridge on loopback between libgit2 and a Git server behind http(s).
//!
//! libgit2 is built without TLS, and its hooks for another transport are unsafe functions. So it speaks plain HTTP to
//! this bridge, which forwards the two requests of Git's smart protocol to the real server: with rustls, credentials,
//! redirects, timeouts and bounds on what is sent back. The bridge listens on loopback only, and answers only under an
//! unguessable path, so that no other process on the machine can use its credentials.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{Either, Empty, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
};
use tokio::time::{Instant, Sleep};

use super::{
    SourceError,
    git::{Access, Credentials},
};

/// A server that does not accept a connection in this time is unreachable.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A server may need this long to prepare a pack before it answers.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// A body that stands still for this long is given up.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// A pack larger than this is no repository of mesh profiles.
const RESPONSE_BYTES_MAX: u64 = 1 << 30;
/// What a server may send in the way of redirects.
const REDIRECTS_MAX: usize = 4;
/// libgit2 uses one connection at a time.
const CONNECTIONS_MAX: usize = 8;

type Upstream = Either<Empty<Bytes>, Incoming>;
type Downstream = Either<Full<Bytes>, Guarded>;

/// A running bridge; it ends when dropped.
pub struct Bridge {
    url: String,
    shared: Arc<Shared>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// What went wrong at the server's side.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The HTTP status, when there was an answer.
    pub status: Option<u16>,
    pub message: String,
}

struct Shared {
    path: String,
    client: Client<HttpsConnector<HttpConnector>, Upstream>,
    target: Mutex<Target>,
    failure: Mutex<Option<Failure>>,
}

/// Where requests go; a redirect changes it.
#[derive(Clone)]
struct Target {
    base: String,
    authorization: Option<HeaderValue>,
}

impl Bridge {
    /// Starts a bridge to a repository's URL.
    ///
    /// # Errors
    /// A URL, a CA or credentials that cannot be used, or no loopback port.
    pub fn start(url: &str, access: &Access) -> Result<Self, SourceError> {
        let shown = super::git::redact(url);
        let failed = |reason: String| SourceError::Bridge {
            url: shown.clone(),
            reason,
        };
        let uri: Uri = url
            .parse()
            .map_err(|error| failed(format!("the URL is not valid: {error}")))?;
        let userinfo = uri
            .authority()
            .and_then(|authority| authority.as_str().rsplit_once('@'))
            .map(|(user, _)| {
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                Credentials::Basic {
                    username: name.to_owned(),
                    password: password.to_owned(),
                }
            });
        let authorization = access
            .credentials
            .clone()
            .or(userinfo)
            .map(|credentials| authorization(&credentials));
        let authorization = authorization.transpose().map_err(failed)?;
        let mut http = HttpConnector::new();
        http.enforce_http(false);
        http.set_connect_timeout(Some(CONNECT_TIMEOUT));
        http.set_nodelay(true);
        let https = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(access.ca_pem.as_deref()).map_err(failed)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http);
        // A thread of its own: libgit2 blocks the caller's, whatever runtime that may belong to.
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("git-bridge")
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        let listener = runtime
            .block_on_outside(tokio::net::TcpListener::bind(("127.0.0.1", 0)))
            .map_err(|error| failed(error.to_string()))?;
        let port = listener
            .local_addr()
            .map_err(|error| failed(error.to_string()))?
            .port();
        let path = format!("/{}", secret().map_err(failed)?);
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .build(https);
        let target = Target {
            base: shown.trim_end_matches('/').to_owned(),
            authorization,
        };
        let shared = Arc::new(Shared {
            path: path.clone(),
            client,
            target: Mutex::new(target),
            failure: Mutex::new(None),
        });
        runtime.spawn(serve(listener, shared.clone()));
        Ok(Self {
            url: format!("http://127.0.0.1:{port}{path}"),
            shared,
            runtime: Some(runtime),
        })
    }

    /// What libgit2 connects to.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Forgets the last failure, before a new attempt.
    pub(super) fn begin(&self) {
        *self.shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Why the attempt failed, when it was the server or the way to it.
    pub(super) fn failure(&self) -> Option<Failure> {
        self.shared
            .failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A plain drop would block, which an async caller's thread must not.
            runtime.shutdown_background();
        }
    }
}

/// `Runtime::block_on` panics inside another runtime; this waits on a thread of the runtime's own instead.
trait BlockOnOutside {
    fn block_on_outside<T: Send + 'static>(
        &self,
        future: impl Future<Output = std::io::Result<T>> + Send + 'static,
    ) -> std::io::Result<T>;
}

impl BlockOnOutside for tokio::runtime::Runtime {
    fn block_on_outside<T: Send + 'static>(
        &self,
        future: impl Future<Output = std::io::Result<T>> + Send + 'static,
    ) -> std::io::Result<T> {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        self.spawn(async move {
            // The receiver below is still there: it waits for this.
            let _ = sender.send(future.await);
        });
        receiver
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("the bridge's runtime ended")))
    }
}

fn secret() -> Result<String, String> {
    let mut bytes = [0_u8; 16];
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .secure_random
        .fill(&mut bytes)
        .map_err(|_| "the system has no randomness".to_owned())?;
    Ok(hex::encode(bytes))
}

fn authorization(credentials: &Credentials) -> Result<HeaderValue, String> {
    let text = match credentials {
        Credentials::Basic { username, password } => {
            format!(
                "Basic {}",
                base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"))
            )
        }
        Credentials::Bearer(token) => format!("Bearer {}", token.trim()),
    };
    let mut value =
        HeaderValue::from_str(&text).map_err(|_| "the credentials hold control characters".to_owned())?;
    value.set_sensitive(true);
    Ok(value)
}

fn tls(ca_pem: Option<&str>) -> Result<rustls::ClientConfig, String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    // A host without certificates of its own can still use http, or a CA from the Secret.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in CertificateDer::pem_slice_iter(ca_pem.unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|error| format!("ca.crt is not PEM: {error:?}"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("ca.crt holds no certificate: {error}"))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

async fn serve(listener: tokio::net::TcpListener, shared: Arc<Shared>) {
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else {
            return;
        };
        // Accept fails when the process is out of descriptors; the next attempt waits for a slot to come back.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(|request| answer(shared.clone(), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // libgit2 closes as it likes; there is nobody else to tell.
            let _ = connection.await;
            drop(slot);
        });
    }
}

async fn answer(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Downstream>, std::convert::Infallible> {
    let plain = |status: StatusCode, text: &str| {
        let mut response = Response::new(Either::Left(Full::new(Bytes::copy_from_slice(text.as_bytes()))));
        *response.status_mut() = status;
        response
    };
    let target = request.uri().path_and_query().map_or("", |path| path.as_str());
    let Some(rest) = target.strip_prefix(&shared.path).map(str::to_owned) else {
        return Ok(plain(StatusCode::NOT_FOUND, "not found"));
    };
    let service = rest.starts_with("/info/refs?service=git-upload-pack") || rest == "/git-upload-pack";
    if !service {
        return Ok(plain(StatusCode::FORBIDDEN, "only fetching is possible"));
    }
    match forward(&shared, request, &rest).await {
        Ok(response) => Ok(response),
        Err(failure) => {
            let text = failure.message.clone();
            *shared.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(failure);
            Ok(plain(StatusCode::BAD_GATEWAY, &text))
        }
    }
}

async fn forward(
    shared: &Shared,
    request: Request<Incoming>,
    rest: &str,
) -> Result<Response<Downstream>, Failure> {
    let (parts, body) = request.into_parts();
    let mut body = Some(body).filter(|_| parts.method == Method::POST);
    let mut target = shared
        .target
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    for _ in 0..=REDIRECTS_MAX {
        let mut request = Request::builder()
            .method(&parts.method)
            .uri(format!("{}{rest}", target.base));
        for name in [
            header::ACCEPT,
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::USER_AGENT,
            header::PRAGMA,
        ] {
            if let Some(value) = parts.headers.get(&name) {
                request = request.header(name, value);
            }
        }
        if let Some(value) = &target.authorization {
            request = request.header(header::AUTHORIZATION, value);
        }
        let upstream = body
            .take()
            .map_or_else(|| Either::Left(Empty::new()), Either::Right);
        let request = request
            .body(upstream)
            .map_err(|error| failure(error.to_string()))?;
        let response = match tokio::time::timeout(ANSWER_TIMEOUT, shared.client.request(request)).await {
            Err(_) => {
                return Err(failure(format!(
                    "no answer within {} s",
                    ANSWER_TIMEOUT.as_secs()
                )));
            }
            Ok(Err(error)) => return Err(failure(crate::cli::chain(&error))),
            Ok(Ok(response)) => response,
        };
        let status = response.status();
        if status.is_redirection() && parts.method == Method::GET {
            target = redirected(&target, &response, rest)?;
            *shared.target.lock().unwrap_or_else(PoisonError::into_inner) = target.clone();
            continue;
        }
        if !status.is_success() {
            let message = match status {
                StatusCode::UNAUTHORIZED if target.authorization.is_none() => {
                    "the server asks for credentials (HTTP 401)".to_owned()
                }
                StatusCode::NOT_FOUND => "the server knows no such repository (HTTP 404)".to_owned(),
                status => format!("the server answers HTTP {status}"),
            };
            return Err(Failure {
                status: Some(status.as_u16()),
                message,
            });
        }
        let (head, body) = response.into_parts();
        let mut answer = Response::new(Either::Right(Guarded::new(body)));
        for name in [
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::CACHE_CONTROL,
        ] {
            if let Some(value) = head.headers.get(&name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        return Ok(answer);
    }
    Err(failure(format!(
        "the server redirects more than {REDIRECTS_MAX} times"
    )))
}

/// Follows a redirect of `…/info/refs`. Credentials stay with the host they were given for, and TLS stays TLS.
fn redirected(target: &Target, response: &Response<Incoming>, rest: &str) -> Result<Target, Failure> {
    let location = response
        .headers()
        .get(header::LOCATION)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let base = location
        .strip_suffix(rest)
        .filter(|base| base.starts_with("http://") || base.starts_with("https://"))
        .ok_or_else(|| {
            failure(format!(
                "the server redirects to `{location}`, which is no Git repository"
            ))
        })?;
    if target.base.starts_with("https://") && !base.starts_with("https://") {
        return Err(failure("the server redirects from https to http".to_owned()));
    }
    let host = |url: &str| url.parse::<Uri>().ok().and_then(|uri| uri.authority().cloned());
    let authorization = target
        .authorization
        .clone()
        .filter(|_| host(base) == host(&target.base));
    Ok(Target {
        base: base.to_owned(),
        authorization,
    })
}

fn failure(message: String) -> Failure {
    Failure {
        status: None,
        message,
    }
}

/// A response body that is cut off when it stands still or grows too large.
struct Guarded {
    inner: Incoming,
    deadline: Pin<Box<Sleep>>,
    bytes_left: u64,
}

impl Guarded {
    fn new(inner: Incoming) -> Self {
        Self {
            inner,
            deadline: Box::pin(tokio::time::sleep(IDLE_TIMEOUT)),
            bytes_left: RESPONSE_BYTES_MAX,
        }
    }
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match Pin::new(&mut self.inner).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                let size = frame.data_ref().map_or(0, Bytes::len) as u64;
                let Some(left) = self.bytes_left.checked_sub(size) else {
                    return Poll::Ready(Some(Err(
                        "the server sends more than a repository of profiles can hold".into(),
                    )));
                };
                self.bytes_left = left;
                self.deadline.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(other) => Poll::Ready(other.map(|result| result.map_err(Into::into))),
            Poll::Pending => match self.deadline.as_mut().poll(context) {
                Poll::Ready(()) => Poll::Ready(Some(Err("the server stopped sending".into()))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
