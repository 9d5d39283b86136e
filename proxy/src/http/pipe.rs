//! One request over an HTTP/2 connection to an upstream.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{Reason, SendStream, client::SendRequest};
use http::{Request, Response, request::Parts};
use http_body::Body as _;

use super::{ProxyError, RequestBody, body::BodyError};

/// Sends a request on a connection that is ready, and waits for the response's head. What is left of the request's
/// body by then goes on in a task of its own.
pub(crate) async fn send(
    sender: &mut SendRequest<Bytes>,
    head: Parts,
    body: RequestBody,
) -> Result<Response<h2::RecvStream>, ProxyError> {
    let request = Request::from_parts(head, ());
    if body.is_end_stream() {
        let (response, _) = sender.send_request(request, true).map_err(ProxyError::Http2)?;
        return response.await.map_err(ProxyError::Http2);
    }
    let (response, stream) = sender.send_request(request, false).map_err(ProxyError::Http2)?;
    let mut pipe = Some(Pipe {
        body,
        stream,
        chunk: None,
    });
    let mut response = std::pin::pin!(response);
    let answered = std::future::poll_fn(|cx| {
        if let Some(sending) = &mut pipe
            && let Poll::Ready(sent) = Pin::new(sending).poll(cx)
        {
            pipe = None;
            if let Err(error) = sent {
                return Poll::Ready(Err(ProxyError::Client(error)));
            }
        }
        response.as_mut().poll(cx).map_err(ProxyError::Http2)
    })
    .await;
    if answered.is_ok()
        && let Some(pipe) = pipe
    {
        tokio::task::spawn_local(async move {
            // The response tells the client; a request cut short has reset its stream.
            let _ = pipe.await;
        });
    }
    answered
}

/// Moves a body into a stream, as fast as the peer's flow control lets it.
struct Pipe {
    body: RequestBody,
    stream: SendStream<Bytes>,
    chunk: Option<Bytes>,
}

impl Future for Pipe {
    type Output = Result<(), BodyError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            if let Some(chunk) = &mut this.chunk {
                while !chunk.is_empty() {
                    let room = this.stream.capacity();
                    if room == 0 {
                        this.stream.reserve_capacity(chunk.len());
                        // It may have come at once.
                        if this.stream.capacity() > 0 {
                            continue;
                        }
                        match ready!(this.stream.poll_capacity(cx)) {
                            Some(Ok(_)) => continue,
                            Some(Err(error)) => return Poll::Ready(Err(error.into())),
                            // The peer has closed the stream: it wants no more.
                            None => return Poll::Ready(Ok(())),
                        }
                    }
                    let piece = chunk.split_to(room.min(chunk.len()));
                    let last = chunk.is_empty() && this.body.is_end_stream();
                    if this.stream.send_data(piece, last).is_err() || last {
                        return Poll::Ready(Ok(()));
                    }
                }
                this.chunk = None;
            }
            // A peer that has reset the stream wants no more of the body.
            if let Poll::Ready(Ok(_) | Err(_)) = this.stream.poll_reset(cx) {
                return Poll::Ready(Ok(()));
            }
            match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        this.stream.reserve_capacity(data.len());
                        this.chunk = Some(data);
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            let _ = this.stream.send_trailers(trailers);
                            return Poll::Ready(Ok(()));
                        }
                    }
                },
                Some(Err(error)) => {
                    this.stream.send_reset(Reason::CANCEL);
                    return Poll::Ready(Err(error));
                }
                None => {
                    let _ = this.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(Ok(()));
                }
            }
        }
    }
}
