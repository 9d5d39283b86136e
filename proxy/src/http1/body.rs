//! A response's body, read off its connection.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::{Body, Frame, SizeHint};

use super::{Connection, Http1Error, Sending};
use crate::http::body::BodyError;

/// A chunk's size with its extensions, and all trailers.
const LINE_BYTES_MAX: usize = 4 * 1024;
const TRAILERS_BYTES_MAX: usize = 16 * 1024;
const TRAILERS_MAX: usize = 64;

/// How the body is framed, and where in it we are.
#[derive(Debug)]
pub(super) enum Decoder {
    /// It is over, or was never there.
    None,
    Length(u64, Reuse),
    UntilEnd,
    Chunked(Chunk, Reuse),
}

/// Whether the connection can be used again after the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    Yes,
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    Size,
    Data(u64),
    DataEnd,
    Trailers,
}

/// A malformed chunked body.
#[derive(Debug, thiserror::Error)]
#[error("the response's chunks are malformed")]
pub(crate) struct ChunkError;

/// What the buffer holds next.
#[derive(Debug)]
pub(super) enum Next {
    Data(Bytes),
    Trailers(HeaderMap),
    More,
    End(Reuse),
}

impl Decoder {
    pub(super) fn length(length: u64, reuse: Reuse) -> Self {
        Self::Length(length, reuse)
    }

    pub(super) fn chunked(reuse: Reuse) -> Self {
        Self::Chunked(Chunk::Size, reuse)
    }

    pub(super) fn next(&mut self, buffer: &mut BytesMut) -> Result<Next, ChunkError> {
        loop {
            match self {
                Self::None => return Ok(Next::End(Reuse::No)),
                Self::Length(0, reuse) => return Ok(Next::End(*reuse)),
                _ if buffer.is_empty() => return Ok(Next::More),
                Self::Length(left, _) => return Ok(Next::Data(take(left, buffer))),
                Self::UntilEnd => return Ok(Next::Data(buffer.split().freeze())),
                Self::Chunked(chunk, reuse) => match chunk {
                    Chunk::Size => match httparse::parse_chunk_size(buffer).map_err(|_| ChunkError)? {
                        httparse::Status::Complete((length, size)) => {
                            buffer.advance(length);
                            *chunk = if size == 0 {
                                Chunk::Trailers
                            } else {
                                Chunk::Data(size)
                            };
                        }
                        httparse::Status::Partial if buffer.len() > LINE_BYTES_MAX => return Err(ChunkError),
                        httparse::Status::Partial => return Ok(Next::More),
                    },
                    Chunk::Data(left) => {
                        let data = take(left, buffer);
                        if *left == 0 {
                            *chunk = Chunk::DataEnd;
                        }
                        return Ok(Next::Data(data));
                    }
                    Chunk::DataEnd if buffer.len() < 2 => return Ok(Next::More),
                    Chunk::DataEnd if buffer.starts_with(b"\r\n") => {
                        buffer.advance(2);
                        *chunk = Chunk::Size;
                    }
                    Chunk::DataEnd => return Err(ChunkError),
                    Chunk::Trailers => {
                        let reuse = *reuse;
                        let mut fields = [httparse::EMPTY_HEADER; TRAILERS_MAX];
                        match httparse::parse_headers(buffer, &mut fields).map_err(|_| ChunkError)? {
                            httparse::Status::Complete((length, fields)) => {
                                let trailers = trailers(fields)?;
                                buffer.advance(length);
                                *self = Self::Length(0, reuse);
                                if !trailers.is_empty() {
                                    return Ok(Next::Trailers(trailers));
                                }
                            }
                            httparse::Status::Partial if buffer.len() > TRAILERS_BYTES_MAX => {
                                return Err(ChunkError);
                            }
                            httparse::Status::Partial => return Ok(Next::More),
                        }
                    }
                },
            }
        }
    }
}

fn take(left: &mut u64, buffer: &mut BytesMut) -> Bytes {
    let count = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
    *left -= count as u64;
    buffer.split_to(count).freeze()
}

fn trailers(fields: &[httparse::Header<'_>]) -> Result<HeaderMap, ChunkError> {
    let mut map = HeaderMap::new();
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| ChunkError)?;
        map.append(
            name,
            HeaderValue::from_bytes(field.value).map_err(|_| ChunkError)?,
        );
    }
    Ok(map)
}

/// The body, with its connection until it ends.
#[derive(Debug)]
pub(crate) struct Http1Body {
    connection: Option<Box<Connection>>,
    decoder: Decoder,
    /// What is left of the request: an application may answer before it has all.
    sending: Option<Sending>,
}

impl Http1Body {
    pub(super) fn new(connection: Box<Connection>, decoder: Decoder, sending: Option<Sending>) -> Self {
        let mut body = Self {
            connection: Some(connection),
            decoder,
            sending,
        };
        if let Decoder::Length(0, reuse) = body.decoder {
            body.finish(reuse);
        }
        body
    }

    /// The body has ended: its connection is free, if the request has ended too.
    fn finish(&mut self, reuse: Reuse) {
        self.decoder = Decoder::None;
        if let Some(connection) = self.connection.take()
            && reuse == Reuse::Yes
            && self.sending.is_none()
            && connection.write.is_empty()
            && !connection.flush
        {
            connection.release();
        }
        self.sending = None;
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Http1Error>>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        if self.sending.is_some()
            && let Poll::Ready(Err(error)) = connection.poll_send(cx, &mut self.sending)
        {
            // The response may yet be whole, but its connection has no future.
            tracing::debug!(%error, "The request's rest was not sent");
            self.sending = None;
            connection.write.clear();
            connection.home = std::rc::Weak::new();
        }
        loop {
            match self
                .decoder
                .next(&mut connection.read)
                .map_err(|error| invalid(&error))?
            {
                Next::Data(data) => {
                    if let Decoder::Length(0, reuse) = self.decoder {
                        self.finish(reuse);
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Next::Trailers(trailers) => {
                    if let Decoder::Length(0, reuse) = self.decoder {
                        self.finish(reuse);
                    }
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Next::End(reuse) => {
                    self.finish(reuse);
                    return Poll::Ready(None);
                }
                Next::More => match ready!(connection.poll_fill(cx)) {
                    Ok(0) if matches!(self.decoder, Decoder::UntilEnd) => {
                        self.finish(Reuse::No);
                        return Poll::Ready(None);
                    }
                    Ok(0) => {
                        return Poll::Ready(Some(Err(io::Error::from(io::ErrorKind::UnexpectedEof).into())));
                    }
                    Ok(_) => {}
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                },
            }
        }
    }
}

fn invalid(error: &ChunkError) -> Http1Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string()).into()
}

impl Body for Http1Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = this.poll(cx);
        if let Poll::Ready(Some(Err(_))) = &polled {
            // Whatever else there is cannot be told from the failure.
            this.connection = None;
            this.decoder = Decoder::None;
        }
        polled.map_err(|error| BodyError::from(Box::new(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.connection.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match (&self.connection, &self.decoder) {
            (None, _) => SizeHint::with_exact(0),
            (Some(_), Decoder::Length(left, _)) => SizeHint::with_exact(*left),
            _ => SizeHint::default(),
        }
    }
}
