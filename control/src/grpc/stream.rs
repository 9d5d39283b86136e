//! Streams that follow a watch channel, as bodies: what a client is sent is made of the newest value, when the client is
//! ready for it.
//!
//! A client that reads slowly skips values; it is never cut off, and nothing queues up for it but the messages of one
//! step. What it is sent is shared with the other clients and not copied: HTTP/2 takes the bytes as they are.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::StreamExt as _;
use heddle_control_core::discover::Watched;
use http_body::{Body, Frame};
use tokio_stream::wrappers::WatchStream;
use tonic::Status;

use super::frame::Frames;
use crate::metrics::OpenStream;

/// A stream's body: makes messages of a value's changes with `step`, beginning with its present state, until the value is
/// gone for good.
pub(super) struct Follow<V, F> {
    /// None after the end.
    values: Option<WatchStream<Arc<V>>>,
    step: F,
    /// Messages of one step, and how many of them were sent.
    pending: Option<(Frames, usize)>,
    open: OpenStream,
}

impl<V, F> Follow<V, F>
where
    V: Send + Sync + 'static,
    F: FnMut(&Arc<V>) -> Frames + Unpin,
{
    pub(super) fn new(values: Watched<V>, open: OpenStream, step: F) -> Self {
        Self {
            values: Some(WatchStream::new(values)),
            step,
            pending: None,
            open,
        }
    }

    fn next_pending(&mut self) -> Option<Bytes> {
        let (frames, sent) = self.pending.as_mut()?;
        let next = frames.get(*sent).cloned();
        *sent += 1;
        // Not kept while the stream is idle.
        if *sent >= frames.len() {
            self.pending = None;
        }
        next
    }
}

impl<V, F> Body for Follow<V, F>
where
    V: Send + Sync + 'static,
    F: FnMut(&Arc<V>) -> Frames + Unpin,
{
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = &mut *self;
        loop {
            if let Some(message) = this.next_pending() {
                this.open.sent();
                return Poll::Ready(Some(Ok(Frame::data(message))));
            }
            let Some(values) = &mut this.values else {
                return Poll::Ready(None);
            };
            match std::task::ready!(values.poll_next_unpin(cx)) {
                Some(value) => this.pending = Some(((this.step)(&value), 0)),
                None => {
                    this.values = None;
                    return Poll::Ready(Some(Ok(Frame::trailers(ended()))));
                }
            }
        }
    }
}

/// The trailers of a call that ended well.
pub(super) fn ended() -> http::HeaderMap {
    let mut trailers = http::HeaderMap::with_capacity(1);
    Status::ok("")
        .add_header(&mut trailers)
        .expect("an empty message is a valid header");
    trailers
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;
    use tokio::sync::watch;

    use super::*;
    use crate::metrics::GrpcMetrics;

    fn follow(values: Watched<u32>) -> impl Body<Data = Bytes, Error = Infallible> + Unpin {
        let open = GrpcMetrics::default().open("Test");
        Follow::new(values, open, |value: &Arc<u32>| {
            // As many messages as the value says.
            let text = Bytes::from(value.to_string());
            vec![text; **value as usize].into()
        })
    }

    async fn next(body: &mut (impl Body<Data = Bytes, Error = Infallible> + Unpin)) -> Option<Bytes> {
        let frame = body.frame().await?.expect("no error is possible");
        frame.into_data().ok()
    }

    #[tokio::test]
    async fn a_slow_reader_gets_the_newest_value_and_the_end() {
        let (values, receiver) = watch::channel(Arc::new(1));
        let mut body = follow(receiver);
        assert_eq!(next(&mut body).await.as_deref(), Some(&b"1"[..]));
        for value in 2..5 {
            values.send_replace(Arc::new(value));
        }
        assert_eq!(next(&mut body).await.as_deref(), Some(&b"4"[..]));
        values.send_replace(Arc::new(0));
        values.send_replace(Arc::new(2));
        for expected in ["4", "4", "4", "2", "2"] {
            assert_eq!(
                next(&mut body).await.as_deref(),
                Some(expected.as_bytes()),
                "steps are whole"
            );
        }
        drop(values);
        let last = body
            .frame()
            .await
            .expect("trailers")
            .expect("no error is possible");
        let trailers = last.into_trailers().expect("trailers");
        assert_eq!(trailers.get("grpc-status").map(|v| v.as_bytes()), Some(&b"0"[..]));
        assert!(body.frame().await.is_none());
    }
}
