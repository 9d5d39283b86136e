//! An HTTPS client that trusts one bundle, and a plain one for the admin port.

use std::{net::SocketAddr, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Bytes,
}

pub(crate) async fn connect(
    addr: SocketAddr,
    host: &str,
    roots_pem: &[u8],
) -> anyhow::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots_pem) {
        roots.add(root?)?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(addr).await?;
    let name = ServerName::try_from(host.to_owned())?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, stream).await?)
}

/// One request over HTTP/2, as API servers send them.
pub(crate) async fn post(
    addr: SocketAddr,
    host: &str,
    roots_pem: &[u8],
    kind: &str,
    body: Vec<u8>,
) -> anyhow::Result<Reply> {
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://{host}/?timeout=10s"))
        .header(header::CONTENT_TYPE, kind)
        .body(Full::new(Bytes::from(body)))?;
    send(addr, host, roots_pem, request).await
}

pub(crate) async fn send(
    addr: SocketAddr,
    host: &str,
    roots_pem: &[u8],
    request: Request<Full<Bytes>>,
) -> anyhow::Result<Reply> {
    let stream = connect(addr, host, roots_pem).await.context("no TLS")?;
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let reply = client.send_request(request).await?;
    let status = reply.status();
    let body = reply.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok(Reply { status, body })
}

pub(crate) async fn get_plain(addr: SocketAddr, path: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = TcpStream::connect(addr).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let status = text.split(' ').nth(1).context("no status line")?.parse()?;
    let body = text
        .split_once("\r\n\r\n")
        .map(|(_, body)| body.to_owned())
        .unwrap_or_default();
    Ok((status, body))
}
