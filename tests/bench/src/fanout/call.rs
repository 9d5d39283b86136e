//! One simulated connection: mutual TLS and HTTP/2 as a proxy speaks them, and the streams on it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context as _, Result};
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, pem::PemObject as _};
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;

use crate::plane::Files;

const CLIENT: &str = "default.bench.serviceaccount.identity.linkerd.cluster.local";
const SERVER: &str = "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local";

/// Longer than anything that goes well takes.
const CONNECT_LIMIT: Duration = Duration::from_secs(60);

/// How simulated proxies connect.
#[derive(Clone)]
pub(crate) struct Connector {
    tls: TlsConnector,
    server: ServerName<'static>,
}

/// A question.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Questions of a class have the same answer.
    pub(crate) class: String,
    /// `/SERVICE/METHOD`.
    pub(crate) path: &'static str,
    /// The request message with its prefix.
    pub(crate) request: Bytes,
}

impl Call {
    pub(crate) fn new(path: &'static str, class: &str, message: &impl Message) -> Self {
        let mut buffer = BytesMut::new();
        buffer.put_u8(0);
        buffer.put_u32(message.encoded_len() as u32);
        buffer.put(message.encode_to_vec().as_slice());
        Self {
            class: format!("{path} {class}"),
            path,
            request: buffer.freeze(),
        }
    }
}

impl Connector {
    pub(crate) fn new(files: &Files) -> Result<Self> {
        let anchor = CertificateDer::from_pem_slice(files.anchor().as_bytes());
        let anchor = anchor.map_err(|error| anyhow::anyhow!("the trust anchor cannot be read: {error}"))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(anchor)?;
        let (chain, key) = files.leaf(CLIENT)?;
        let chain = chain.into_iter().map(CertificateDer::from).collect();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        // As linkerd2-proxy does.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            tls: TlsConnector::from(Arc::new(config)),
            server: ServerName::try_from(SERVER)?,
        })
    }

    /// Connects; the task carries the connection until it ends.
    pub(crate) async fn connect(&self, addr: SocketAddr) -> Result<(SendRequest<Bytes>, JoinHandle<()>)> {
        let connecting = async {
            let stream = TcpStream::connect(addr).await.context("TCP")?;
            stream.set_nodelay(true)?;
            let stream = self
                .tls
                .connect(self.server.clone(), stream)
                .await
                .context("TLS")?;
            let (sender, connection) = h2::client::handshake(stream).await.context("HTTP/2")?;
            let driver = tokio::spawn(async move {
                // Its streams tell what ended it.
                let _ = connection.await;
            });
            anyhow::Ok((sender, driver))
        };
        tokio::time::timeout(CONNECT_LIMIT, connecting)
            .await
            .context("connecting took too long")?
    }
}

/// A stream of messages.
pub(crate) struct Messages {
    body: h2::RecvStream,
    received: BytesMut,
}

impl Messages {
    pub(crate) async fn open(sender: SendRequest<Bytes>, call: &Call) -> Result<Self> {
        let mut sender = sender.ready().await?;
        let request = http::Request::post(format!("http://control{}", call.path))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())?;
        let (response, mut body) = sender.send_request(request, false)?;
        body.send_data(call.request.clone(), true)?;
        let response = response.await?;
        let status = response.headers().get("grpc-status");
        anyhow::ensure!(
            response.status() == 200 && status.is_none(),
            "{}: {} {status:?}",
            call.path,
            response.status()
        );
        Ok(Self {
            body: response.into_body(),
            received: BytesMut::new(),
        })
    }

    /// The next message, without its prefix; none at the stream's end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>> {
        loop {
            if let Some(mut prefix) = self.received.get(..5) {
                prefix.advance(1);
                let length = prefix.get_u32() as usize;
                if let Some(message) = self.received.get(5..5 + length) {
                    // A copy, since a slice would keep the connection's whole buffer.
                    let message = Bytes::copy_from_slice(message);
                    self.received.advance(5 + length);
                    if self.received.is_empty() {
                        self.received = BytesMut::new();
                    }
                    return Ok(Some(message));
                }
            }
            let Some(data) = self.body.data().await else {
                return Ok(None);
            };
            let data = data?;
            self.body.flow_control().release_capacity(data.len())?;
            self.received.extend_from_slice(&data);
        }
    }
}
