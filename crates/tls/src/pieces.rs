//! Many small messages on one HTTP/2 connection, in few writes.
//!
//! The protocol library copies frames of less than a kilobyte into its buffer and writes them together, those of all streams
//! that have something to say; a larger one makes it write at once, by itself, and over TLS each write is a record and a
//! system call. A message of one or two kilobytes is therefore cut into pieces that are copied. That needs a transport
//! that does not offer vectored writes: with one, a quarter of a kilobyte counts as large. The price is the library's buffer
//! of 16 KiB, which many messages at once fill: it stays resident for as long as the connection lives.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};

/// With the frame's head less than what the library copies.
const PIECE_BYTES: usize = 1000;
/// What is longer is not copied.
const CUT_MAX: usize = 4 * PIECE_BYTES;

/// A body whose short messages come in pieces.
#[derive(Debug)]
pub struct Pieces<B> {
    body: B,
    rest: Bytes,
    cut: bool,
}

/// A transport that is written to as a whole.
#[derive(Debug)]
pub struct Unvectored<IO> {
    io: IO,
    vectored: bool,
}

impl<B> Pieces<B> {
    /// Cuts the messages of `body`.
    pub fn new(body: B) -> Self {
        Self::only_if(true, body)
    }

    /// Cuts them, or leaves them as they are.
    pub(crate) fn only_if(cut: bool, body: B) -> Self {
        let rest = Bytes::new();
        Self { body, rest, cut }
    }
}

impl<IO> Unvectored<IO> {
    /// Hides the vectored writes of `io`.
    pub fn new(io: IO) -> Self {
        Self::only_if(true, io)
    }

    /// Hides them, or leaves `io` as it is.
    pub(crate) fn only_if(hidden: bool, io: IO) -> Self {
        let vectored = !hidden;
        Self { io, vectored }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Pieces<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.rest = data,
                    Err(other) => return Poll::Ready(Some(Ok(other))),
                },
                end => return Poll::Ready(end),
            }
        }
        let piece = match self.rest.len() {
            length @ PIECE_BYTES..=CUT_MAX if self.cut => length.min(PIECE_BYTES),
            length => length,
        };
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let held = self.rest.len() as u64;
        let mut hint = self.body.size_hint();
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}

impl<IO: Read + Unpin> Read for Unvectored<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<IO: Write + Unpin> Write for Unvectored<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn is_write_vectored(&self) -> bool {
        self.vectored && self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

impl<IO: Connection> Connection for Unvectored<IO> {
    fn connected(&self) -> Connected {
        self.io.connected()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    async fn pieces(bytes: usize) -> Vec<usize> {
        let whole: Bytes = (0..bytes).map(|n| n as u8).collect();
        let mut body = Pieces::new(Full::new(whole.clone()));
        assert_eq!(body.size_hint().exact(), Some(bytes as u64));
        let (mut seen, mut lengths) = (Vec::new(), Vec::new());
        while let Some(frame) = body.frame().await {
            let data = frame.expect("never fails").into_data().expect("data");
            seen.extend_from_slice(&data);
            lengths.push(data.len());
            assert_eq!(body.size_hint().exact(), Some((bytes - seen.len()) as u64));
            assert_eq!(body.is_end_stream(), seen.len() == bytes);
        }
        assert_eq!(seen, whole);
        lengths
    }

    #[tokio::test]
    async fn short_messages_are_cut_and_long_ones_are_not() {
        assert_eq!(pieces(0).await, [] as [usize; 0]);
        assert_eq!(pieces(999).await, [999]);
        assert_eq!(pieces(1300).await, [1000, 300]);
        assert_eq!(pieces(4000).await, [1000, 1000, 1000, 1000]);
        assert_eq!(pieces(4001).await, [4001]);
    }
}
