//! Calls: one request message in, one answer or a stream of them out, already encoded.
//!
//! Written by hand instead of generated, because a generated service encodes each answer for each stream.

use std::{
    convert::Infallible,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use tonic::{
    Status, Streaming,
    body::Body,
    codec::{DecodeBuf, Decoder},
    codegen::Service,
    server::NamedService,
};

use super::{frame::Frames, stream::ended};

/// Requests are names and addresses; nothing larger is meant well.
const REQUEST_BYTES_MAX: usize = 16 * 1024;

/// A caller has this long to say what it wants to know.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The answer to a call.
pub(super) type Answer = Result<Response<Body>, Status>;

/// A service's methods.
pub(super) trait Methods: Send + Sync + 'static {
    /// The service's full name.
    const NAME: &'static str;

    /// Answers a call of a method.
    fn call(&self, method: &str, request: Request<Body>) -> impl Future<Output = Answer> + Send;
}

/// A service. Clones are the same service.
#[derive(Debug)]
pub(crate) struct Served<M>(pub(super) Arc<M>);

impl<M> Clone for Served<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<M: Methods> NamedService for Served<M> {
    const NAME: &'static str = M::NAME;
}

impl<M: Methods> Service<Request<Body>> for Served<M> {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let service = self.0.clone();
        Box::pin(async move {
            let path = request.uri().path().to_owned();
            let method = path.rsplit('/').next().unwrap_or_default();
            let answer = service.call(method, request).await;
            Ok(answer.unwrap_or_else(|status| status.into_http()))
        })
    }
}

/// Reads the one message of a request.
pub(super) async fn read<T: Message + Default + 'static>(request: Request<Body>) -> Result<T, Status> {
    let decode = Decode(PhantomData);
    let mut messages = Streaming::new_request(decode, request.into_body(), None, Some(REQUEST_BYTES_MAX));
    let message = tokio::time::timeout(REQUEST_TIMEOUT, messages.message()).await;
    let message = message.map_err(|_| Status::deadline_exceeded("no request message came in time"))?;
    message?.ok_or_else(|| Status::invalid_argument("expected a request message, found none"))
}

/// Encoded messages that are all of an answer.
pub(super) fn once(frames: &Frames) -> Answer {
    let message = frames.first().cloned().unwrap_or_default();
    streaming(Full::new(message).with_trailers(async { Some(Ok(ended())) }))
}

/// A stream of encoded messages as an answer.
pub(super) fn streaming(
    body: impl http_body::Body<Data = Bytes, Error = Infallible> + Send + 'static,
) -> Answer {
    let mut response = Response::new(Body::new(body));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(CONTENT_TYPE, grpc);
    Ok(response)
}

/// What is said to a call of a method that there is not.
pub(super) fn unimplemented(method: &str) -> Answer {
    Err(Status::unimplemented(format!("no method {method}")))
}

struct Decode<T>(PhantomData<fn() -> T>);

impl<T: Message + Default + 'static> Decoder for Decode<T> {
    type Item = T;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<T>, Status> {
        match T::decode(buffer) {
            Ok(message) => Ok(Some(message)),
            Err(error) => Err(Status::invalid_argument(format!("malformed request: {error}"))),
        }
    }
}
