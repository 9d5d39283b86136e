//! HTTP as the proxy passes it on: bodies, header hygiene, error replies, connections to upstreams.

pub(crate) mod body;
pub(crate) mod error;
pub(crate) mod filter;
pub(crate) mod frugal;
pub(crate) mod headers;
pub(crate) mod incoming;
pub(crate) mod limit;
pub(crate) mod live;
pub(crate) mod pipe;
pub(crate) mod replay;
pub(crate) mod serve;
pub(crate) mod strict;
pub(crate) mod tracker;
pub(crate) mod upgrade;
pub(crate) mod windows;

use hyper::rt::Executor;

pub(crate) use body::{RequestBody, ResponseBody};
pub(crate) use error::ProxyError;

/// Spawns on the worker's own thread: nothing of a connection ever leaves it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LocalExec;

impl<F> Executor<F> for LocalExec
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Whether a request is gRPC: then errors are told in gRPC's way.
pub(crate) fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// The gRPC status in headers or trailers.
pub(crate) fn grpc_status(headers: &http::HeaderMap) -> Option<u32> {
    let text = headers.get("grpc-status")?.to_str().ok()?;
    // Codes are 0 to 16; whatever else a server says is `unknown`, so that it cannot make up metrics.
    Some(text.parse::<u32>().ok().filter(|code| *code <= 16).unwrap_or(2))
}
