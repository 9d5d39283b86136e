//! What a gateway passes on: a peer's connection, sent on as if an application of this pod had made it to the named
//! service.

use std::{net::SocketAddr, rc::Rc};

use http::{Request, Response};

use super::{OutboundError, http::Client, opaque, target::Target};
use crate::{
    discovery::Outbound,
    dst::NameAddr,
    http::{ProxyError, ResponseBody, incoming::Incoming},
    io::Io,
    worker::Worker,
};

/// The outbound side of one peer's connection through the gateway.
pub(crate) struct Through {
    target: Rc<Target>,
    client: Rc<Client>,
    worker: Rc<Worker>,
    addr: SocketAddr,
}

impl Through {
    /// To a service that the control plane knows.
    pub(crate) async fn to(
        worker: &Rc<Worker>,
        name: NameAddr,
        addr: SocketAddr,
        drain: drain::Watch,
    ) -> Result<Self, ProxyError> {
        let target = worker.outbound.target(worker, name.into())?;
        if matches!(target.known().await, Outbound::Unknown) {
            return Err(ProxyError::NoSuchService);
        }
        let client = Client::new(worker.clone(), target.clone(), addr, false, drain);
        Ok(Self {
            target,
            client: Rc::new(client),
            worker: worker.clone(),
            addr,
        })
    }

    /// Sends a request on.
    pub(crate) async fn respond(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        self.client.respond(request).await
    }

    /// Copies bytes both ways.
    pub(crate) async fn copy(&self, io: &mut Io) -> Result<(), OutboundError> {
        opaque::carry(&self.worker, &self.target, io, self.addr.ip(), None).await
    }
}
