//! What a gateway passes on: a peer's connection, sent on as if an application of this pod had made it to the named
//! service.

use std::{net::SocketAddr, rc::Rc};

use http::{Request, Response};

use super::{OutboundError, http::Client, opaque};
use crate::{
    discovery::Outbound,
    dst::NameAddr,
    http::{ProxyError, ResponseBody, incoming::Incoming},
    io::Io,
    worker::Worker,
};

/// The outbound side of one peer's connection through the gateway.
pub(crate) struct Through(Rc<Client>);

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
        let client = Client::new(worker.clone(), target, addr, false, drain);
        Ok(Self(Rc::new(client)))
    }

    /// Sends a request on.
    pub(crate) async fn respond(&self, request: Request<Incoming>) -> Response<ResponseBody> {
        self.0.respond(request).await
    }

    /// Copies bytes both ways.
    pub(crate) async fn copy(&self, io: &mut Io) -> Result<(), OutboundError> {
        let Client { worker, target, .. } = &*self.0;
        opaque::carry(worker, target, io, self.0.addr(), None).await
    }
}
