//! Applications and their clients.

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    client::conn,
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_stream::StreamExt as _;

use crate::net::Namespace;

/// Calls that a client may take back at once before it is taken for an attacker.
pub(crate) const RESET_STREAMS_MAX: usize = 10_000;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A reply, read whole.
#[derive(Debug)]
pub(crate) struct Reply {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
    pub trailers: Option<HeaderMap>,
}

/// Serves HTTP/1 and HTTP/2 on a pod's port. It answers with `name`, tells in headers what it saw, and does what
/// some paths ask for.
pub(crate) fn serve_http(namespace: &Namespace, port: u16, name: &'static str) {
    serve_http_with(namespace, (Ipv4Addr::UNSPECIFIED, port).into(), name, None);
}

/// As [`serve_http`], on any address, over TLS when told how.
pub(crate) fn serve_http_with(
    namespace: &Namespace,
    addr: SocketAddr,
    name: &'static str,
    tls: Option<Arc<heddle_tls::rustls::ServerConfig>>,
) {
    namespace.serve_at(addr, move |tcp| {
        let tls = tls.clone();
        async move {
            let service =
                service_fn(move |request| async move { Ok::<_, Infallible>(answer(request, name).await) });
            let mut serving = auto::Builder::new(TokioExecutor::new());
            // It takes as large heads as proxies pass on, and is not easily provoked: the proxy's limits are tested.
            serving
                .http2()
                .max_header_list_size(64 * 1024)
                .max_pending_accept_reset_streams(RESET_STREAMS_MAX);
            if let Some(tls) = tls {
                if let Ok(tls) = tokio_rustls::TlsAcceptor::from(tls).accept(tcp).await {
                    let _ = serving.serve_connection(TokioIo::new(tls), service).await;
                }
                return;
            }
            let serving = serving.serve_connection_with_upgrades(TokioIo::new(tcp), service);
            // Clients come and go.
            let _ = serving.await;
        }
    });
}

async fn answer(mut request: Request<Incoming>, name: &str) -> Response<BoxBody<Bytes, Infallible>> {
    let full = |text: String| Full::new(Bytes::from(text)).boxed();
    let mut response = match request.uri().path() {
        "/echo" => {
            let body = request
                .body_mut()
                .collect()
                .await
                .map(|body| body.to_bytes())
                .unwrap_or_default();
            Response::new(Full::new(body).boxed())
        }
        "/slow" => {
            tokio::time::sleep(Duration::from_millis(800)).await;
            Response::new(full(name.to_owned()))
        }
        "/big" => Response::new(Full::new(Bytes::from_static(&[b'.'; 256 * 1024])).boxed()),
        "/fail" => {
            let mut response = Response::new(full(String::new()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
        // The beginning of a response that never ends, and the beginning of none.
        path if path.starts_with("/endless") => {
            let first = tokio_stream::once(Ok(Frame::data(Bytes::from_static(b"first"))));
            let body = StreamBody::new(first.chain(tokio_stream::pending()));
            Response::new(BoxBody::new(body))
        }
        "/silent" => std::future::pending().await,
        "/grpc.Test/Call" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            let frames = [
                Frame::data(Bytes::from_static(b"message")),
                Frame::trailers(trailers),
            ];
            let body = StreamBody::new(tokio_stream::iter(frames.map(Ok)));
            let mut response = Response::new(body.boxed());
            response
                .headers_mut()
                .insert("content-type", HeaderValue::from_static("application/grpc"));
            response
        }
        "/upgrade" => {
            let upgraded = hyper::upgrade::on(&mut request);
            tokio::spawn(async move {
                let mut io = TokioIo::new(upgraded.await.expect("the client switches, too"));
                let mut bytes = [0; 4];
                while io.read_exact(&mut bytes).await.is_ok() {
                    bytes.reverse();
                    if io.write_all(&bytes).await.is_err() {
                        break;
                    }
                }
            });
            let mut response = Response::new(full(String::new()));
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response
                .headers_mut()
                .insert("connection", HeaderValue::from_static("upgrade"));
            response
                .headers_mut()
                .insert("upgrade", HeaderValue::from_static("reverse"));
            response
        }
        _ => {
            // The whole request first: an answer that comes early hides what is wrong with the rest.
            let _ = request.body_mut().collect().await;
            Response::new(full(name.to_owned()))
        }
    };
    let seen_uri = request
        .uri()
        .path_and_query()
        .map_or("/", |uri| uri.as_str())
        .to_owned();
    let seen_version = format!("{:?}", request.version());
    let client_id = request
        .headers()
        .get("l5d-client-id")
        .cloned()
        .unwrap_or(HeaderValue::from_static("none"));
    let seen_host = request
        .headers()
        .get("host")
        .cloned()
        .unwrap_or(HeaderValue::from_static("none"));
    let seen_forwarded = request.headers().get("forwarded").cloned();
    let seen_l5d = request
        .headers()
        .keys()
        .filter(|name| name.as_str().starts_with("l5d-"))
        .count();
    if request.method() == Method::HEAD {
        // Over HTTP/2, hyper would send it.
        *response.body_mut() = full(String::new());
    }
    let headers = response.headers_mut();
    for (name, seen) in [
        ("traceparent", "seen-traceparent"),
        ("x-b3-spanid", "seen-b3-spanid"),
    ] {
        if let Some(value) = request.headers().get(name) {
            headers.insert(seen, value.clone());
        }
    }
    headers.insert(
        "seen-version",
        HeaderValue::from_str(&seen_version).expect("a version"),
    );
    headers.insert("seen-client-id", client_id);
    headers.insert("seen-host", seen_host);
    headers.insert("seen-uri", HeaderValue::from_str(&seen_uri).expect("a path"));
    headers.insert("seen-l5d", HeaderValue::from(seen_l5d));
    if let Some(forwarded) = seen_forwarded {
        headers.insert("seen-forwarded", forwarded);
    }
    response
}

/// Serves a protocol in which the server speaks first, then echoes.
pub(crate) fn serve_greeting(namespace: &Namespace, port: u16) {
    namespace.serve(port, |mut tcp| async move {
        tcp.write_all(b"220 hello\r\n").await?;
        let (mut read, mut write) = tcp.split();
        tokio::io::copy(&mut read, &mut write).await?;
        write.shutdown().await
    });
}

/// A GET for `host` with these headers, from within a pod.
pub(crate) fn ask(
    namespace: &Namespace,
    addr: SocketAddr,
    host: &'static str,
    path: &'static str,
    headers: &[(&'static str, String)],
) -> Reply {
    let headers = headers.to_vec();
    namespace.block_on(move || async move {
        let mut request = Request::get(path).header("host", host);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::<Bytes>::default()).expect("valid");
        let mut connection = Http1::connect(addr).await.expect("connects");
        connection.send(request).await.expect("a reply")
    })
}

/// One exchange of bytes, until the other side ends it.
pub(crate) async fn exchange(addr: SocketAddr, bytes: &[u8]) -> Result<String, Error> {
    let exchange = async {
        let mut tcp = TcpStream::connect(addr).await?;
        tcp.write_all(bytes).await?;
        let mut answer = Vec::new();
        tcp.read_to_end(&mut answer).await?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    tokio::time::timeout(crate::DEADLINE, exchange).await?
}

/// A client's HTTP/1 connection.
pub(crate) struct Http1 {
    sender: conn::http1::SendRequest<Full<Bytes>>,
}

impl Http1 {
    pub(crate) async fn connect(addr: SocketAddr) -> Result<Self, Error> {
        let tcp = TcpStream::connect(addr).await?;
        let (sender, connection) = conn::http1::handshake(TokioIo::new(tcp)).await?;
        tokio::spawn(connection.with_upgrades());
        Ok(Self { sender })
    }

    pub(crate) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, Error> {
        self.sender.ready().await?;
        read(self.sender.send_request(request).await?).await
    }

    pub(crate) async fn raw(&mut self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Error> {
        Ok(self.sender.send_request(request).await?)
    }
}

/// A connection on which what is sent comes back in reverse, four bytes at a time.
pub(crate) async fn upgrade(addr: SocketAddr) -> Result<TokioIo<hyper::upgrade::Upgraded>, Error> {
    let mut connection = Http1::connect(addr).await?;
    let mut request = get("/upgrade");
    let headers = request.headers_mut();
    headers.insert("connection", HeaderValue::from_static("upgrade"));
    headers.insert("upgrade", HeaderValue::from_static("reverse"));
    let response = connection.raw(request).await?;
    Ok(TokioIo::new(hyper::upgrade::on(response).await?))
}

/// A request for a path.
pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path)
        .header("host", "web.test")
        .body(Full::default())
        .expect("a valid request")
}

/// One request on a connection of its own.
pub(crate) async fn try_get(addr: SocketAddr, path: &str) -> Result<Reply, Error> {
    let exchange = async { Http1::connect(addr).await?.send(get(path)).await };
    tokio::time::timeout(crate::DEADLINE, exchange).await?
}

/// One request over HTTP/2.
pub(crate) async fn send_http2(addr: SocketAddr, request: Request<Full<Bytes>>) -> Result<Reply, Error> {
    let tcp = TcpStream::connect(addr).await?;
    let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp)).await?;
    tokio::spawn(connection);
    read(sender.send_request(request).await?).await
}

/// One request on a connection that is there already.
pub(crate) async fn send_on(
    io: impl hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    http2: bool,
    request: Request<Full<Bytes>>,
) -> Result<Reply, Error> {
    let exchange = async {
        let response = if http2 {
            let (mut sender, connection) = conn::http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        } else {
            let (mut sender, connection) = conn::http1::handshake(io).await?;
            tokio::spawn(connection);
            sender.send_request(request).await?
        };
        read(response).await
    };
    tokio::time::timeout(crate::DEADLINE, exchange).await?
}

/// A connection over TLS to whoever proves this name.
pub(crate) async fn connect_tls(
    addr: SocketAddr,
    name: String,
    config: Arc<heddle_tls::rustls::ClientConfig>,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = heddle_tls::rustls::pki_types::ServerName::try_from(name).expect("a name");
    let tcp = TcpStream::connect(addr).await?;
    tokio_rustls::TlsConnector::from(config).connect(name, tcp).await
}

async fn read(response: Response<Incoming>) -> Result<Reply, Error> {
    let (head, body) = response.into_parts();
    let body = body.collect().await?;
    let trailers = body.trailers().cloned();
    let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
    Ok(Reply {
        status: head.status.as_u16(),
        headers: head.headers,
        body,
        trailers,
    })
}
