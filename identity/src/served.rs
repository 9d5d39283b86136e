//! All that is served on the gRPC port: Certify, and the revocation lists where there are any.
//!
//! There is no router: it costs each certificate more than there is to choose from.

use std::{
    convert::Infallible,
    future::{Future, ready},
    pin::Pin,
    task::{Context, Poll},
};

use heddle_tls::revocation::LISTS_PATH;
use http::{Request, Response};
use hyper::body::Incoming;
use linkerd2_proxy_api::identity::identity_server::IdentityServer;
use tonic::body::Body;

use crate::{lists::ListService, service::Service, token::Authenticate};

/// The services together.
pub struct Served<A> {
    certify: IdentityServer<Service<A>>,
    lists: Option<ListService>,
}

/// Of the handle: there is one service, whatever authenticates.
impl<A> Clone for Served<A> {
    fn clone(&self) -> Self {
        let Self { certify, lists } = self;
        Self {
            certify: certify.clone(),
            lists: lists.clone(),
        }
    }
}

impl<A: Authenticate> Served<A> {
    /// Without lists, asking for them is like asking for anything else that is not known.
    pub fn new(certify: IdentityServer<Service<A>>, lists: Option<ListService>) -> Self {
        Self { certify, lists }
    }
}

impl<A: Authenticate> tower::Service<Request<Incoming>> for Served<A> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        match &self.lists {
            Some(lists) if request.uri().path() == LISTS_PATH => Box::pin(ready(Ok(lists.answer(&request)))),
            // It answers what it does not know, too.
            _ => self.certify.call(request),
        }
    }
}
