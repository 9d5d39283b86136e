//! The socket under a TLS session. The session reads 4 KiB at a time, whatever there is; here that becomes few large
//! reads while much comes, and stays as it is while little does. Memory is held only while it has bytes in it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::{
    Prefixed,
    pool::{self, Buffer, Size},
};

#[derive(Debug)]
pub(crate) struct Wire {
    tcp: Prefixed<TcpStream>,
    held: Option<Held>,
    size: Size,
}

/// What was read and the session has not taken yet.
#[derive(Debug)]
struct Held {
    buffer: Buffer,
    start: usize,
    end: usize,
}

impl Wire {
    pub(crate) fn new(tcp: Prefixed<TcpStream>) -> Self {
        Self {
            tcp,
            held: None,
            size: Size::default(),
        }
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.tcp.inner
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.held.is_none() {
            if this.size.bytes() <= buf.remaining() {
                let before = buf.filled().len();
                ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
                this.size = this.size.after(buf.filled().len() - before);
                return Poll::Ready(Ok(()));
            }
            let mut buffer = pool::take(this.size);
            let mut read = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut this.tcp).poll_read(cx, &mut read);
            let end = read.filled().len();
            if !matches!(polled, Poll::Ready(Ok(()))) || end == 0 {
                pool::give_back(buffer);
                return polled;
            }
            this.size = this.size.after(end);
            let start = 0;
            this.held = Some(Held { buffer, start, end });
        }
        if let Some(held) = &mut this.held {
            let count = buf.remaining().min(held.end - held.start);
            buf.put_slice(&held.buffer[held.start..held.start + count]);
            held.start += count;
        }
        if let Some(held) = this.held.take_if(|held| held.start == held.end) {
            pool::give_back(held.buffer);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn small_reads_get_all_bytes_in_order_and_leave_nothing_held() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let addr = listener.local_addr().expect("it is bound");
        let (one, other) = tokio::join!(TcpStream::connect(addr), listener.accept());
        let (mut sender, receiver) = (one.expect("it listens"), other.expect("it was made").0);
        let sent: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 3) as u8).collect();
        let expected = sent.clone();
        let sending = tokio::spawn(async move { sender.write_all(&sent).await });
        let mut wire = Wire::new(Prefixed::new(receiver));
        let (mut received, mut largest) = (Vec::new(), Size::Small);
        let mut buffer = [0; 4096];
        loop {
            match wire.read(&mut buffer).await.expect("it ends well") {
                0 => break,
                count => received.extend_from_slice(&buffer[..count]),
            }
            if wire.size.bytes() > largest.bytes() {
                largest = wire.size;
            }
        }
        sending.await.expect("no panic").expect("it was read");
        assert!(received == expected && wire.held.is_none());
        assert_ne!(largest, Size::Small, "much was read 4 KiB at a time");
    }
}
