//! The local application's side. Every way to its socket takes a [`Permit`]: who holds none cannot get there.

use std::{net::SocketAddr, rc::Rc};

use heddle_proxy_policy::Permit;
use http::{Request, Response};
use hyper::client::conn::http1::SendRequest;

use crate::{
    http::{ProxyError, RequestBody},
    http1::Http1Body,
    io::Io,
    metrics::{labels::Labels, tcp::TcpHandles},
    upstream::{ConnectError, Target, Upstream},
    worker::Worker,
};

/// One of the application's ports.
#[derive(Debug)]
pub(crate) struct App {
    upstream: Rc<Upstream>,
}

impl App {
    pub(crate) fn new(worker: &Worker, addr: SocketAddr) -> Self {
        let labels = Labels::direction("inbound")
            .with("peer", "dst")
            .server_tls(Err("loopback"));
        let tcp = TcpHandles::new(&worker.metrics, &labels);
        let target = Target {
            addr,
            connect_timeout: worker.config.inbound.connect_timeout,
            tls: None,
            near: true,
            care: None,
            pool: worker.config.inbound.pool,
        };
        Self {
            upstream: Upstream::new(target, worker.tls.clone(), tcp, None),
        }
    }

    /// The same port, with connections of its own.
    pub(crate) fn apart(&self) -> Self {
        Self {
            upstream: self.upstream.apart(),
        }
    }

    /// A connection of bytes.
    pub(crate) async fn connect(&self, _permit: &Permit) -> Result<Io, ConnectError> {
        self.upstream.connect().await
    }

    /// One HTTP/1 request.
    pub(crate) async fn http1(
        &self,
        _permit: &Permit,
        request: Request<RequestBody>,
    ) -> Result<Response<Http1Body>, ProxyError> {
        let connection = self.upstream.http1().await?;
        self.upstream.send_http1(connection, request).await
    }

    /// An HTTP/1 connection that may become something else.
    pub(crate) async fn upgradable(
        &self,
        _permit: &Permit,
    ) -> Result<SendRequest<RequestBody>, ConnectError> {
        self.upstream.upgradable().await
    }

    /// A place on the shared HTTP/2 connection.
    pub(crate) async fn http2(
        &self,
        _permit: &Permit,
    ) -> Result<h2::client::SendRequest<bytes::Bytes>, ConnectError> {
        self.upstream.http2().await
    }

    pub(crate) fn sweep(&self) {
        self.upstream.sweep();
    }
}
