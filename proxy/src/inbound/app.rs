//! The local application's side. Every way to its socket takes a [`Permit`]: who holds none cannot get there.

use std::{net::SocketAddr, rc::Rc};

use heddle_proxy_policy::Permit;

use crate::{
    io::Io,
    metrics::{labels::Labels, tcp::TcpHandles},
    upstream::{ConnectError, Pooled, Target, Upstream},
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
            .target_addr(addr)
            .server_tls(Err("loopback"));
        let tcp = TcpHandles::new(&worker.metrics, &labels);
        let target = Target {
            addr,
            connect_timeout: worker.config.inbound.connect_timeout,
            tls: None,
        };
        Self {
            upstream: Upstream::new(target, worker.tls.clone(), tcp),
        }
    }

    /// A connection of bytes.
    pub(crate) async fn connect(&self, _permit: &Permit) -> Result<Io, ConnectError> {
        self.upstream.connect().await
    }

    /// A connection for one HTTP/1 request.
    pub(crate) async fn http1(&self, _permit: &Permit) -> Result<Pooled, ConnectError> {
        self.upstream.http1().await
    }

    /// An HTTP/1 connection that becomes something else.
    pub(crate) async fn fresh_http1(&self, _permit: &Permit) -> Result<Pooled, ConnectError> {
        self.upstream.fresh_http1().await
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
