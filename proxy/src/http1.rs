//! An HTTP/1 client connection without a task of its own: whoever waits for a response, or reads its body, drives it.
//!
//! So a response whose head and body arrive together is passed on together, in one write; hyper's client connection
//! hands heads and bodies through channels, between tasks, and costs a write for each. Framing follows RFC 9112 §6;
//! what is ambiguous there is refused, because the next hop might read it the other way.

mod body;
mod head;
mod outgoing;

use std::{
    io,
    pin::Pin,
    rc::Weak,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{Method, Response, request::Parts};
use http_body::Body as _;
use tokio::io::AsyncWrite as _;
use tokio_util::io::poll_read_buf;

use body::Decoder;
pub(crate) use body::Http1Body;
pub(crate) use head::HeadError;
use outgoing::Outgoing;

use crate::{
    http::{RequestBody, body::BodyError},
    io::Io,
    upstream::Upstream,
};

const READ_BYTES: usize = 16 * 1024;

/// A connection between two requests, or in the midst of one.
#[derive(Debug)]
pub(crate) struct Connection {
    io: Io,
    read: BytesMut,
    write: Outgoing,
    /// What was written has yet to be flushed.
    flush: bool,
    /// Where it goes when it is free again.
    home: Weak<Upstream>,
}

/// An exchange that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Http1Error {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the connection was closed before a response")]
    Closed,
    #[error("the response's head is malformed")]
    Head(#[from] HeadError),
    #[error("the request's body has not the length that its head says")]
    Length,
    #[error("the request has more than one content-length")]
    Ambiguous,
    #[error("the client's request ended early")]
    Client(#[source] BodyError),
}

/// The request's side of an exchange.
#[derive(Debug)]
struct Sending {
    body: RequestBody,
    framing: Framing,
}

#[derive(Debug)]
enum Framing {
    Length(u64),
    Chunked,
}

impl Connection {
    pub(crate) fn new(io: Io, home: Weak<Upstream>) -> Box<Self> {
        Box::new(Self {
            io,
            read: BytesMut::new(),
            write: Outgoing::default(),
            flush: false,
            home,
        })
    }

    /// Whether an idle connection can take a request: an application that closed it, or spoke unasked, ends it.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.poll_fill(&mut cx).is_pending()
    }

    /// Sends a request and waits for the response's head.
    ///
    /// An error comes with whether another connection may be tried: nothing was heard on this one, and the request
    /// can be repeated without harm.
    pub(crate) async fn send(
        mut self: Box<Self>,
        head: &Parts,
        body: RequestBody,
    ) -> Result<Response<Http1Body>, (Http1Error, Option<RequestBody>)> {
        let mut sending = match self.begin(head, body) {
            Ok(sending) => sending,
            Err(error) => return Err((error, None)),
        };
        let bodiless = sending.is_none();
        let received = std::future::poll_fn(|cx| self.poll_head(cx, &mut sending, &head.method)).await;
        match received {
            Ok(mut response) => {
                let decoder = std::mem::replace(response.body_mut(), Decoder::None);
                Ok(response.map(|_| Http1Body::new(self, decoder, sending)))
            }
            Err(error) => {
                let unheard = self.read.is_empty() && matches!(error, Http1Error::Io(_) | Http1Error::Closed);
                let body = sending.map(|sending| sending.body);
                let repeatable = unheard && bodiless && head.method.is_idempotent();
                // A body that was there has been used up at least in part.
                Err((
                    error,
                    if repeatable {
                        Some(body.unwrap_or(RequestBody::Empty))
                    } else {
                        None
                    },
                ))
            }
        }
    }

    /// Writes the head, and says what there is of a body.
    fn begin(&mut self, head: &Parts, body: RequestBody) -> Result<Option<Sending>, Http1Error> {
        let length = head::content_length(&head.headers).map_err(|_| Http1Error::Ambiguous)?;
        let framing = match (body.is_end_stream(), length) {
            (true, Some(0) | None) => None,
            (true, Some(_)) => return Err(Http1Error::Length),
            (false, Some(length)) => Some(Framing::Length(length)),
            (false, None) => Some(Framing::Chunked),
        };
        head::encode(head, matches!(framing, Some(Framing::Chunked)), self.write.tail());
        self.flush = true;
        Ok(framing.map(|framing| Sending { body, framing }))
    }

    /// Drives both sides until the response's head is there.
    fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Option<Sending>,
        method: &Method,
    ) -> Poll<Result<Response<Decoder>, Http1Error>> {
        // An application may answer before the request's end, and close: its answer counts, not our failed write.
        let written = self.poll_send(cx, sending);
        loop {
            if let Some(response) = head::decode(&mut self.read, method)? {
                return Poll::Ready(Ok(response));
            }
            match self.poll_fill(cx) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(Http1Error::Closed)),
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    return match written {
                        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                        _ => Poll::Pending,
                    };
                }
            }
        }
    }

    /// Moves the request's body into the connection; ready when all of it is there.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Option<Sending>,
    ) -> Poll<Result<(), Http1Error>> {
        loop {
            let mut waiting = false;
            while let Some(now) = sending
                && self.write.has_room()
            {
                match Pin::new(&mut now.body).poll_frame(cx) {
                    Poll::Pending => {
                        waiting = true;
                        break;
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Http1Error::Client(error))),
                    Poll::Ready(Some(Ok(frame))) => {
                        let last = match frame.into_data() {
                            Ok(data) => {
                                now.framing.encode(data, &mut self.write)?;
                                now.body.is_end_stream()
                            }
                            Err(frame) => {
                                now.framing.finish(frame.trailers_ref(), self.write.tail())?;
                                *sending = None;
                                continue;
                            }
                        };
                        if last {
                            now.framing.finish(None, self.write.tail())?;
                            *sending = None;
                        }
                    }
                    Poll::Ready(None) => {
                        now.framing.finish(None, self.write.tail())?;
                        *sending = None;
                    }
                }
            }
            while !self.write.is_empty() {
                let count = ready!(self.write.poll_write(Pin::new(&mut self.io), cx))?;
                if count == 0 {
                    return Poll::Ready(Err(io::Error::from(io::ErrorKind::WriteZero).into()));
                }
                self.flush = true;
            }
            if self.flush {
                ready!(Pin::new(&mut self.io).poll_flush(cx))?;
                self.flush = false;
            }
            match sending {
                None => return Poll::Ready(Ok(())),
                Some(_) if waiting => return Poll::Pending,
                Some(_) => {}
            }
        }
    }

    /// Reads more; 0 is the end.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.reserve(READ_BYTES);
        poll_read_buf(Pin::new(&mut self.io), cx, &mut self.read)
    }

    /// Gives the connection back for the next request.
    fn release(self: Box<Self>) {
        debug_assert!(
            self.write.is_empty(),
            "a request is whole before its connection is free"
        );
        if self.read.is_empty()
            && let Some(home) = self.home.upgrade()
        {
            home.give_back(self);
        }
    }
}

impl Framing {
    fn encode(&mut self, data: Bytes, out: &mut Outgoing) -> Result<(), Http1Error> {
        match self {
            _ if data.is_empty() => {}
            Self::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(Http1Error::Length)?;
                out.put(data);
            }
            Self::Chunked => {
                head::put_hex(data.len(), out.tail());
                out.tail().put_slice(b"\r\n");
                out.put(data);
                out.tail().put_slice(b"\r\n");
            }
        }
        Ok(())
    }

    fn finish(&mut self, trailers: Option<&http::HeaderMap>, out: &mut BytesMut) -> Result<(), Http1Error> {
        match self {
            Self::Length(0) => {}
            // The next request would be taken for this one's rest.
            Self::Length(_) => return Err(Http1Error::Length),
            Self::Chunked => {
                out.put_slice(b"0\r\n");
                for (name, value) in trailers.into_iter().flatten() {
                    head::put_header(name, value, out);
                }
                out.put_slice(b"\r\n");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
