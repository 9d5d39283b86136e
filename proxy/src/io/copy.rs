//! Bytes from one connection to another, both ways at once. In go two connections, out comes how it ended.
//!
//! An idle direction holds no memory: buffers and pipes belong to the thread and are taken when there is something to
//! read. Between two sockets without TLS, bytes that have come in some number no longer pass through the process: the
//! kernel moves them (`splice`), and says how many, so that they are still counted.

#[cfg(test)]
mod tests;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::pipe::SpliceFlags;
use tokio::io::{AsyncRead as _, AsyncWrite as _, Interest, ReadBuf};

use super::{
    Io,
    pool::{self, Buffer, PIPE_BYTES, Pipe, Size},
};

/// Few bytes are faster copied than given a pipe.
const SPLICE_AFTER_BYTES: u64 = 128 * 1024;

/// TLS carries at most so many bytes at a time.
const RECORD_BYTES: usize = 16 * 1024;

/// Copies both ways until both sides have ended; one side's end is passed on at once (half-close).
pub(crate) async fn copy(one: &mut Io, two: &mut Io) -> io::Result<()> {
    let (mut there, mut back) = (Direction::default(), Direction::default());
    poll_fn(|cx| {
        let there = there.poll(cx, one, two)?;
        let back = back.poll(cx, two, one)?;
        match (there, back) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await
}

/// One way of a pair of connections.
#[derive(Debug, Default)]
struct Direction {
    stage: Stage,
    held: Held,
    size: Size,
    moved: u64,
    /// Bytes were written that may still be on this side of the socket.
    unflushed: bool,
    /// How the reading side failed, after what is held.
    failed: Option<io::Error>,
    /// The kernel does not move these bytes, or there are no pipes left.
    never_splice: bool,
}

#[derive(Clone, Copy, Debug, Default)]
enum Stage {
    #[default]
    Moving,
    /// The reading side has ended; the writing side is told.
    Ending,
    Ended,
}

/// What was read and is not written yet.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Bytes {
        buffer: Buffer,
        start: usize,
        end: usize,
    },
    Spliced {
        pipe: Pipe,
        count: usize,
    },
}

impl Direction {
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<io::Result<()>> {
        loop {
            match self.stage {
                Stage::Moving => {
                    ready!(self.write(cx, to))?;
                    self.stage = ready!(self.read(cx, from, to))?;
                }
                Stage::Ending => {
                    ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                    self.stage = Stage::Ended;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes what is held.
    fn write(&mut self, cx: &mut Context<'_>, to: &mut Io) -> Poll<io::Result<()>> {
        loop {
            match &mut self.held {
                Held::Nothing => return Poll::Ready(Ok(())),
                Held::Bytes { buffer, start, end } => {
                    let count = ready!(Pin::new(&mut *to).poll_write(cx, &buffer[*start..*end]))?;
                    if count == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.unflushed = true;
                    *start += count;
                    if start == end
                        && let Held::Bytes { buffer, .. } = std::mem::take(&mut self.held)
                    {
                        pool::give_back(buffer);
                    }
                }
                Held::Spliced { pipe, count } => {
                    let written = ready!(to.poll_splice(cx, Interest::WRITABLE, |tcp| {
                        rustix::pipe::splice(&pipe.read, None, tcp, None, *count, flags())
                    }))?;
                    *count -= written;
                    if *count == 0
                        && let Held::Spliced { pipe, .. } = std::mem::take(&mut self.held)
                    {
                        pool::give_back_pipe(pipe);
                    }
                }
            }
        }
    }

    /// Reads once; nothing is held before.
    fn read(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<io::Result<Stage>> {
        let spliced = self.moved >= SPLICE_AFTER_BYTES
            && !self.never_splice
            && from.bare_tcp().is_some()
            && to.bare_tcp().is_some();
        let read = match spliced {
            true => self.splice(cx, from),
            false => self.fill(cx, from),
        };
        match read {
            Poll::Ready(Ok(0)) if self.never_splice && spliced => Poll::Ready(Ok(Stage::Moving)),
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(Stage::Ending)),
            Poll::Ready(Ok(count)) => {
                self.moved = self.moved.saturating_add(count as u64);
                Poll::Ready(Ok(Stage::Moving))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if self.unflushed {
                    ready!(Pin::new(to).poll_flush(cx))?;
                    self.unflushed = false;
                }
                Poll::Pending
            }
        }
    }

    fn fill(&mut self, cx: &mut Context<'_>, from: &mut Io) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            return Poll::Ready(Err(error));
        }
        let mut buffer = pool::take(self.size);
        let mut read = ReadBuf::new(&mut buffer);
        let polled = Pin::new(&mut *from).poll_read(cx, &mut read);
        let mut end = read.filled().len();
        // TLS gives a record at a time; all that are here are written at once.
        while matches!(polled, Poll::Ready(Ok(()))) && end >= RECORD_BYTES && read.remaining() > 0 {
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) if read.filled().len() > end => end = read.filled().len(),
                // An error is told after the bytes before it, and an end is told again.
                Poll::Ready(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                _ => break,
            }
        }
        if end > 0 {
            self.size = self.size.after(end);
            let start = 0;
            self.held = Held::Bytes { buffer, start, end };
        } else {
            pool::give_back(buffer);
        }
        polled.map_ok(|()| end)
    }

    /// 0 with `never_splice` set means that the bytes must be copied instead.
    fn splice(&mut self, cx: &mut Context<'_>, from: &mut Io) -> Poll<io::Result<usize>> {
        let Some(pipe) = pool::take_pipe() else {
            self.never_splice = true;
            return Poll::Ready(Ok(0));
        };
        // The pipe is empty, so that "would block" can only mean the socket.
        let polled = from.poll_splice(cx, Interest::READABLE, |tcp| {
            rustix::pipe::splice(tcp, None, &pipe.write, None, PIPE_BYTES, flags())
        });
        match polled {
            Poll::Ready(Ok(count)) if count > 0 => self.held = Held::Spliced { pipe, count },
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {
                pool::give_back_pipe(pipe);
                self.never_splice = true;
                return Poll::Ready(Ok(0));
            }
            _ => pool::give_back_pipe(pipe),
        }
        polled
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::NONBLOCK | SpliceFlags::MOVE
}
