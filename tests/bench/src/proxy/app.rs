//! The application behind the proxies where nginx will not do: one port that echoes bytes, pours them out, or answers
//! HTTP/1, HTTP/2 and gRPC, whatever its client speaks first.

use std::{convert::Infallible, net::SocketAddr};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

/// The first byte of a connection whose bytes come back.
pub(super) const ECHO: u8 = 0;
/// The first byte of one that names a number of bytes (u64, big endian) and gets as many.
pub(super) const POUR: u8 = 1;
const BODY: &[u8] = &[b'x'; 100];

#[derive(clap::Args)]
pub(crate) struct AppOptions {
    #[arg(long)]
    listen: Vec<SocketAddr>,
}

pub(crate) async fn run(options: AppOptions) -> anyhow::Result<()> {
    let listeners = options.listen.into_iter().map(listen);
    futures_util::future::try_join_all(listeners).await.map(drop)
}

async fn listen(addr: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(addr)
        .await
        .with_context(|| format!("cannot listen on {addr}"))?;
    loop {
        let (tcp, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A client that goes away is no error of the application's.
            let _ = serve(tcp).await;
        });
    }
}

async fn serve(mut tcp: TcpStream) -> anyhow::Result<()> {
    tcp.set_nodelay(true)?;
    let mut first = [0];
    tcp.peek(&mut first).await?;
    match first {
        [ECHO] => {
            let (mut read, mut write) = tcp.split();
            tokio::io::copy(&mut read, &mut write).await?;
        }
        [POUR] => {
            tcp.read_u8().await?;
            let mut left = tcp.read_u64().await?;
            let chunk = vec![b'x'; 256 * 1024];
            while left > 0 {
                let count = left.min(chunk.len() as u64);
                tcp.write_all(&chunk[..count as usize]).await?;
                left -= count;
            }
            tcp.shutdown().await?;
        }
        _ => {
            let service = hyper::service::service_fn(answer);
            auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(tcp), service)
                .await
                .map_err(|error| anyhow::anyhow!(error))?;
        }
    }
    Ok(())
}

type Body = http_body_util::combinators::BoxBody<Bytes, Infallible>;

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<Body>> {
    let kind = request.headers().get(header::CONTENT_TYPE);
    let grpc = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    request.into_body().collect().await?;
    if !grpc {
        return Ok(Response::new(
            http_body_util::Full::new(Bytes::from_static(BODY)).boxed(),
        ));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    let frames = [Frame::data(message()), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    let mut response = Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed());
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(header::CONTENT_TYPE, grpc);
    Ok(response)
}

/// A gRPC message of 100 bytes, with its prefix.
pub(super) fn message() -> Bytes {
    let mut message = vec![0, 0, 0, 0, BODY.len() as u8];
    message.extend_from_slice(BODY);
    message.into()
}
