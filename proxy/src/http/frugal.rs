//! What a peer's HTTP/2 frames may cost.
//!
//! Frames that carry nothing (pings, settings, window updates, priorities, empty data, padding) are cheap to send and
//! cost us work each. A peer has a budget of them, which grows with time and with the bytes that it and we really
//! move; a peer that uses it up is flooding, and its connection ends. Resets have a budget of their own, which what the
//! peer sends does not make greater: each throws away a request that we have begun to work on, whatever came with it. The
//! protocol library bounds what a connection
//! can make it hold; this bounds what it can make it do. Sits between a connection's bytes and the library, and knows
//! of frames only their heads.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

/// Frames without bytes that a client may send at once, for each stream that it may have: it updates windows in bursts,
/// and resets all streams when it goes away. A stranger's are worked off in one turn, for which everybody else waits.
const FRAMES_PER_STREAM: u32 = 4;
/// So many more are allowed per second.
const FRAMES_PER_SECOND: u32 = 2_000;
/// At once, from a peer's proxy, which has all of its clients' requests on one connection, ...
const PEER_FRAMES_MAX: u32 = 100_000;
/// ... and per second.
const PEER_FRAMES_PER_SECOND: u32 = 20_000;
/// So many bytes of bodies allow one more: window updates and gRPC's pings come with data.
const BYTES_PER_FRAME: usize = 64;
/// As many resets as half of the other frames: a reset ends a request that we have begun to work on.
const FRAMES_PER_RESET: u32 = 2;

const HEAD_BYTES: usize = 9;
const PREFACE_BYTES: usize = crate::detect::H2_PREFACE.len();
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;
/// The flag of a frame with padding.
const PADDED: u8 = 8;

/// A connection that ends when its peer's frames cost more than they carry.
#[derive(Debug)]
pub(crate) struct Frugal<S> {
    inner: S,
    frames: Frames,
    budget: Budget,
}

/// The peer floods the connection.
#[derive(Debug, thiserror::Error)]
#[error("the peer sends too many frames that carry nothing")]
struct Flood;

/// Where in the sequence of frames the bytes read so far end.
#[derive(Debug, Default)]
struct Frames {
    head: [u8; HEAD_BYTES],
    head_len: usize,
    /// Bytes to come that are no head.
    skip: usize,
}

/// A frame's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Frame {
    kind: u8,
    flags: u8,
    length: usize,
}

#[derive(Debug)]
struct Budget {
    frames: Allowance,
    resets: Allowance,
}

/// A number of frames.
#[derive(Debug)]
struct Allowance {
    left: u32,
    max: u32,
    per_second: u32,
    refilled: Instant,
}

impl<S> Frugal<S> {
    /// For a connection that a client has opened, which may have so many streams.
    pub(crate) fn server(inner: S, streams_max: u32) -> Self {
        let max = streams_max.saturating_mul(FRAMES_PER_STREAM);
        Self::new(inner, PREFACE_BYTES, Budget::new(max, FRAMES_PER_SECOND))
    }

    /// For one that a peer's proxy has opened.
    pub(crate) fn peer(inner: S) -> Self {
        Self::new(inner, PREFACE_BYTES, Budget::peer())
    }

    /// For a connection to a server, which answers the resets of all our clients' requests with frames of its own.
    pub(crate) fn client(inner: S) -> Self {
        Self::new(inner, 0, Budget::peer())
    }

    fn new(inner: S, skip: usize, budget: Budget) -> Self {
        Self {
            inner,
            frames: Frames {
                skip,
                ..Frames::default()
            },
            budget,
        }
    }
}

impl Frames {
    /// The next frame that begins in `bytes`, which are taken up to the end of its head.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<Frame> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        *bytes = &bytes[skipped..];
        let taken = (HEAD_BYTES - self.head_len).min(bytes.len());
        self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
        self.head_len += taken;
        *bytes = &bytes[taken..];
        if self.head_len < HEAD_BYTES {
            return None;
        }
        let [a, b, c, kind, flags, ..] = self.head;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        (self.head_len, self.skip) = (0, length);
        Some(Frame { kind, flags, length })
    }
}

impl Budget {
    fn new(max: u32, per_second: u32) -> Self {
        Self {
            frames: Allowance::new(max, per_second),
            resets: Allowance::new(max / FRAMES_PER_RESET, per_second / FRAMES_PER_RESET),
        }
    }

    fn peer() -> Self {
        Self::new(PEER_FRAMES_MAX, PEER_FRAMES_PER_SECOND)
    }

    fn spend(&mut self, frame: Frame) -> Result<(), Flood> {
        match frame.kind {
            // What is padding is only known later, and hardly anybody pads.
            DATA if frame.length > 0 && frame.flags & PADDED == 0 => {
                self.frames.earn(frame.length);
                Ok(())
            }
            // Requests are bounded by the number of streams, and their heads by their size.
            HEADERS | CONTINUATION => Ok(()),
            RST_STREAM => self.resets.spend(),
            _ => self.frames.spend(),
        }
    }

    /// We have sent so many bytes.
    fn sent(&mut self, bytes: usize) {
        self.frames.earn(bytes);
        self.resets.earn(bytes);
    }
}

impl Allowance {
    fn new(max: u32, per_second: u32) -> Self {
        Self {
            left: max,
            max,
            per_second,
            refilled: Instant::now(),
        }
    }

    fn spend(&mut self) -> Result<(), Flood> {
        if self.left == 0 {
            self.refill();
        }
        self.left = self.left.checked_sub(1).ok_or(Flood)?;
        Ok(())
    }

    fn earn(&mut self, bytes: usize) {
        let frames = u32::try_from(bytes / BYTES_PER_FRAME).unwrap_or(self.max);
        self.left = self.left.saturating_add(frames).min(self.max);
    }

    /// The clock is read only when it may matter.
    fn refill(&mut self) {
        let elapsed = self.refilled.elapsed().min(Duration::from_secs(60));
        let frames = elapsed.as_millis() * u128::from(self.per_second) / 1_000;
        if frames > 0 {
            self.refilled = Instant::now();
            let frames = u32::try_from(frames).unwrap_or(self.max);
            self.left = self.left.saturating_add(frames).min(self.max);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Frugal<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            inner,
            frames,
            budget,
        } = &mut *self;
        let before = buf.filled().len();
        let result = Pin::new(inner).poll_read(cx, buf);
        let mut bytes = &buf.filled()[before..];
        while let Some(frame) = frames.next(&mut bytes) {
            if let Err(flood) = budget.spend(frame) {
                return Poll::Ready(Err(io::Error::other(flood)));
            }
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> Frugal<S> {
    fn wrote(&mut self, result: &Poll<io::Result<usize>>) {
        if let Poll::Ready(Ok(count)) = result {
            self.budget.sent(*count);
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Frugal<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.wrote(&result);
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.wrote(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    const FRAMES_MAX: u32 = 4_000;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 0], payload].concat()
    }

    async fn read(bytes: &[u8]) -> io::Result<u64> {
        let mut io = Frugal::new(bytes, 0, Budget::new(FRAMES_MAX, FRAMES_PER_SECOND));
        tokio::io::copy(&mut io, &mut tokio::io::sink()).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_ends_and_the_same_frames_with_data_do_not() {
        for (kind, payload, allowed) in [
            (6, &[0; 8][..], FRAMES_MAX),
            (4, &[], FRAMES_MAX),
            (8, &[0, 0, 0, 1], FRAMES_MAX),
            (2, &[0; 5], FRAMES_MAX),
            (DATA, &[], FRAMES_MAX),
            (200, b"unknown", FRAMES_MAX),
            (RST_STREAM, &[0; 4], FRAMES_MAX / FRAMES_PER_RESET),
        ] {
            let one = frame(kind, payload);
            assert!(
                read(&one.repeat(allowed as usize)).await.is_ok(),
                "{allowed} of {kind}"
            );
            assert!(
                read(&one.repeat(allowed as usize + 1)).await.is_err(),
                "one more of {kind}"
            );
        }
        let with_data = [frame(8, &[0, 0, 0, 1]), frame(DATA, &[0; 100])].concat();
        assert!(read(&with_data.repeat(3 * FRAMES_MAX as usize)).await.is_ok());
        let mut padded = frame(DATA, &[255; 256]);
        padded[4] = PADDED;
        assert!(
            read(&padded.repeat(FRAMES_MAX as usize + 1)).await.is_err(),
            "padding"
        );
        let reset = [
            frame(HEADERS, &[0x82]),
            frame(DATA, &[0; 1024]),
            frame(RST_STREAM, &[0; 4]),
        ]
        .concat();
        assert!(
            read(&reset.repeat((FRAMES_MAX / FRAMES_PER_RESET) as usize + 1))
                .await
                .is_err(),
            "a body does not make a reset cheaper"
        );
        let requests = frame(HEADERS, &[0x82]).repeat(3 * FRAMES_MAX as usize);
        assert!(read(&requests).await.is_ok(), "the library bounds streams");
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_grows_with_time_and_with_what_we_send() {
        let (mut peer, ours) = tokio::io::duplex(1 << 20);
        let mut ours = Frugal::new(ours, 0, Budget::new(FRAMES_MAX, FRAMES_PER_SECOND));
        let pings = frame(6, &[0; 8]).repeat(FRAMES_MAX as usize);
        let mut buffer = vec![0; pings.len()];
        peer.write_all(&pings).await.expect("room");
        ours.read_exact(&mut buffer).await.expect("the budget");
        tokio::time::advance(Duration::from_secs(1)).await;
        let more = 17 * FRAMES_PER_SECOND as usize;
        peer.write_all(&pings[..more]).await.expect("room");
        ours.read_exact(&mut buffer[..more])
            .await
            .expect("a second's worth");
        ours.write_all(&vec![0; 64 * 1024]).await.expect("room");
        peer.write_all(&pings[..17 * 1024]).await.expect("room");
        ours.read_exact(&mut buffer[..17 * 1024])
            .await
            .expect("what was sent allows it");
        peer.write_all(&pings[..17]).await.expect("room");
        assert!(ours.read_exact(&mut buffer[..17]).await.is_err());
    }

    /// However the bytes are cut, the same frames are seen.
    #[test]
    fn fuzz_frames() {
        let walk = |pieces: &mut dyn Iterator<Item = &[u8]>| {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for mut piece in pieces {
                while let Some(frame) = frames.next(&mut piece) {
                    seen.push(frame);
                }
                assert!(piece.is_empty(), "all is taken");
            }
            seen
        };
        bolero::check!().for_each(|bytes: &[u8]| {
            let whole = walk(&mut std::iter::once(bytes));
            assert_eq!(walk(&mut bytes.chunks(1)), whole);
            assert_eq!(walk(&mut bytes.chunks(7)), whole);
        });
    }
}
