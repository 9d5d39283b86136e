//! An HTTPS client as an API server is one: HTTP/2, TLS 1.3, the caBundle as the only root.

use std::{net::SocketAddr, sync::Arc};

use anyhow::{Context as _, Result};
use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::corpus::Question;

/// Opens connections.
pub(super) struct Client {
    addr: SocketAddr,
    host: &'static str,
    tls: TlsConnector,
}

/// An open connection; clones share it.
#[derive(Clone)]
pub(super) struct Connection {
    host: &'static str,
    sender: SendRequest<Full<Bytes>>,
}

/// An answer.
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) body: Bytes,
}

impl Client {
    pub(super) fn new(addr: SocketAddr, host: &'static str, roots_pem: &[u8]) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots_pem) {
            roots.add(root.context("the caBundle is not PEM")?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A new connection is that of an API server that was never here: a whole handshake.
        config.resumption = Resumption::disabled();
        Ok(Self {
            addr,
            host,
            tls: TlsConnector::from(Arc::new(config)),
        })
    }

    pub(super) async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.addr).await.context("no connection")?;
        stream.set_nodelay(true)?;
        let stream = self
            .tls
            .connect(ServerName::try_from(self.host)?, stream)
            .await
            .context("no TLS")?;
        let (sender, driver) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        // Ends with the last clone of the sender.
        tokio::spawn(driver);
        Ok(Connection {
            host: self.host,
            sender,
        })
    }
}

impl Connection {
    pub(super) async fn ask(&mut self, question: &Question) -> Result<Reply> {
        let request = Request::post(format!("https://{}/?timeout=10s", self.host))
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(question.body.clone()))?;
        self.sender.ready().await?;
        let reply = self.sender.send_request(request).await?;
        let status = reply.status().as_u16();
        let body = reply.into_body().collect().await?.to_bytes();
        Ok(Reply { status, body })
    }
}
