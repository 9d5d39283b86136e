//! What is on its way to the application: heads and small pieces of bodies together, large ones from where they are.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use tokio::io::AsyncWrite;
use tokio_util::io::poll_write_buf;

/// Bytes that wait to be sent; then the body's source waits.
const COPIED_BYTES_MAX: usize = 16 * 1024;
/// Pieces of this size are not copied.
const PIECE_BYTES_MIN: usize = 4 * 1024;

/// Sent in the order of the fields.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    before: BytesMut,
    piece: Bytes,
    after: BytesMut,
}

impl Outgoing {
    pub(super) fn is_empty(&self) -> bool {
        self.before.is_empty() && self.piece.is_empty() && self.after.is_empty()
    }

    /// Whether another piece may come, in one of [`Outgoing::put`].
    pub(super) fn has_room(&self) -> bool {
        self.before.len() < COPIED_BYTES_MAX && self.piece.is_empty() && self.after.is_empty()
    }

    /// Where what comes next is appended.
    pub(super) fn tail(&mut self) -> &mut BytesMut {
        match self.piece.is_empty() && self.after.is_empty() {
            true => &mut self.before,
            false => &mut self.after,
        }
    }

    /// Appends a piece of a body; only while there is room.
    pub(super) fn put(&mut self, data: Bytes) {
        debug_assert!(
            self.piece.is_empty() && self.after.is_empty(),
            "pieces come one by one"
        );
        match data.len() < PIECE_BYTES_MIN {
            true => self.before.put(data),
            false => self.piece = data,
        }
    }

    /// Forgets what nobody takes any more.
    pub(super) fn clear(&mut self) {
        self.before.clear();
        self.piece = Bytes::new();
        self.after.clear();
    }

    /// Writes some of it, all parts together; tells how much.
    pub(super) fn poll_write<W: AsyncWrite>(
        &mut self,
        io: Pin<&mut W>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let Self { before, piece, after } = self;
        let written = poll_write_buf(io, cx, &mut before.chain(&mut *piece).chain(after));
        if piece.is_empty() {
            // An empty part of a buffer keeps all of it.
            *piece = Bytes::new();
        }
        written
    }
}
