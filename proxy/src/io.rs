//! A connection's bytes: a socket, with or without TLS, that gives back what was read ahead and counts what passes.

mod copy;
mod pool;
mod wire;

use std::{
    future::poll_fn,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, BytesMut};
use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{client, server};

use crate::{limits::Permit, metrics::tcp::TcpOpen, tls::Guard};
pub(crate) use copy::copy;
pub(crate) use pool::trim;
pub(crate) use wire::Wire;

/// A stream whose first bytes were read ahead.
#[derive(Debug)]
pub(crate) struct Prefixed<S> {
    ahead: BytesMut,
    inner: S,
}

impl<S> Prefixed<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            ahead: BytesMut::new(),
            inner,
        }
    }

    /// The stream, which gives out these bytes once more before all else.
    #[must_use]
    pub(crate) fn reading_again(mut self, bytes: &[u8]) -> Self {
        if !bytes.is_empty() {
            self.ahead = [bytes, &self.ahead].concat().as_slice().into();
        }
        self
    }

    /// What was read ahead and not given out, and the stream that gives out the rest.
    pub(crate) fn into_parts(self) -> (BytesMut, S) {
        (self.ahead, self.inner)
    }

    /// The stream, without what was read ahead and not given out.
    pub(crate) fn into_inner(self) -> S {
        debug_assert!(self.ahead.is_empty(), "bytes read ahead would be lost");
        self.inner
    }
}

/// How reading ahead ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ahead<T> {
    /// The bytes were enough.
    Decided(T),
    /// The time, the room or the stream came to its end first.
    Undecided,
}

impl<S: AsyncRead + Unpin> Prefixed<S> {
    /// Reads ahead until `judge` says something of the bytes, or `deadline`, or there are `bytes_max` of them.
    pub(crate) async fn peek<T>(
        &mut self,
        bytes_max: usize,
        deadline: Instant,
        mut judge: impl FnMut(&[u8]) -> Option<T>,
    ) -> io::Result<Ahead<T>> {
        loop {
            if !self.ahead.is_empty()
                && let Some(verdict) = judge(&self.ahead)
            {
                return Ok(Ahead::Decided(verdict));
            }
            if self.ahead.len() >= bytes_max {
                return Ok(Ahead::Undecided);
            }
            match tokio::time::timeout_at(deadline, self.read_ahead()).await {
                Err(_) | Ok(Ok(0)) => return Ok(Ahead::Undecided),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error),
            }
        }
    }

    /// Reads ahead once; 0 is the end. Holds no memory while it waits. Cancel-safe.
    pub(crate) async fn read_ahead(&mut self) -> io::Result<usize> {
        poll_fn(|cx| {
            let mut buffer = pool::take(pool::Size::Small);
            let mut read = ReadBuf::new(&mut buffer);
            let polled = Pin::new(&mut self.inner).poll_read(cx, &mut read);
            let count = read.filled().len();
            self.ahead.extend_from_slice(read.filled());
            pool::give_back(buffer);
            polled.map_ok(|()| count)
        })
        .await
    }

    /// Reads exactly `count` bytes and gives them out.
    pub(crate) async fn read_exact_within(
        &mut self,
        count: usize,
        timeout: Duration,
    ) -> io::Result<BytesMut> {
        let mut bytes = BytesMut::zeroed(count);
        tokio::time::timeout(timeout, self.read_exact(&mut bytes)).await??;
        Ok(bytes)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.ahead.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let count = self.ahead.len().min(buf.remaining());
        buf.put_slice(&self.ahead[..count]);
        self.ahead.advance(count);
        if self.ahead.is_empty() {
            self.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
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

/// A socket under its TLS, if it has any.
#[derive(Debug)]
pub(crate) enum Socket {
    Plain(Prefixed<TcpStream>),
    Server(Box<server::TlsStream<Wire>>),
    Client(Box<client::TlsStream<Wire>>),
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Server(io) => Pin::new(io).poll_read(cx, buf),
            Self::Client(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Server(io) => Pin::new(io).poll_write(cx, buf),
            Self::Client(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Server(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Self::Client(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(io) => io.is_write_vectored(),
            Self::Server(io) => io.is_write_vectored(),
            Self::Client(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Server(io) => Pin::new(io).poll_flush(cx),
            Self::Client(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Server(io) => Pin::new(io).poll_shutdown(cx),
            Self::Client(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}

/// A counted connection, as the protocols see it.
#[derive(Debug)]
pub(crate) struct Io {
    inner: Prefixed<Socket>,
    open: TcpOpen,
    /// The connection's place under its policy's limits.
    _permit: Option<Permit>,
    /// Has the connection end when the peer's certificate is revoked.
    _guard: Option<Guard>,
    traffic: Traffic,
    /// Bytes that one read gives out at most.
    read_max: u64,
    /// Whether an error was seen; it becomes the close's label.
    failed: bool,
}

/// What has passed through a connection, for who watches over it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Traffic(Arc<Passed>);

#[derive(Debug, Default)]
struct Passed {
    read: AtomicU64,
    unflushed: AtomicBool,
}

impl Traffic {
    /// How many bytes the connection has given out so far.
    pub(crate) fn read(&self) -> u64 {
        self.0.read.load(Relaxed)
    }

    /// Whether all that it was given, or that somebody tried to give it, has left it.
    pub(crate) fn is_flushed(&self) -> bool {
        !self.0.unflushed.load(Relaxed)
    }

    /// One task reads a connection, so that no addition is lost.
    fn add_read(&self, count: usize) {
        self.0.read.store(self.read() + count as u64, Relaxed);
    }

    fn set_flushed(&self, flushed: bool) {
        self.0.unflushed.store(!flushed, Relaxed);
    }
}

impl Io {
    pub(crate) fn new(socket: Socket, open: TcpOpen) -> Self {
        Self {
            inner: Prefixed::new(socket),
            open,
            _permit: None,
            _guard: None,
            traffic: Traffic::default(),
            read_max: u64::MAX,
            failed: false,
        }
    }

    /// Holds the place as long as the connection is open.
    #[must_use]
    pub(crate) fn holding(mut self, permit: Option<Permit>) -> Self {
        self._permit = permit;
        self
    }

    /// Holds the guard as long as the connection is open.
    #[must_use]
    pub(crate) fn guarded(mut self, guard: Option<Guard>) -> Self {
        self._guard = guard;
        self
    }

    /// Gives out at most so many bytes per read, for readers whose buffers grow with what they get.
    #[must_use]
    pub(crate) fn reading_at_most(mut self, bytes: usize) -> Self {
        self.read_max = bytes as u64;
        self
    }

    /// Gives out again what there is.
    pub(crate) fn reading_freely(&mut self) {
        self.read_max = u64::MAX;
    }

    pub(crate) fn traffic(&self) -> Traffic {
        self.traffic.clone()
    }

    /// Whether TLS ends here: the client is another proxy.
    pub(crate) fn is_meshed(&self) -> bool {
        matches!(self.inner.inner, Socket::Server(_))
    }

    fn tcp(&self) -> &TcpStream {
        match &self.inner.inner {
            Socket::Plain(io) => &io.inner,
            Socket::Server(io) => io.get_ref().0.tcp(),
            Socket::Client(io) => io.get_ref().0.tcp(),
        }
    }

    /// Makes the close a reset, so that the peer sees a refusal and not an end.
    pub(crate) fn reset_on_close(&self) {
        // Without it the close is an ordinary one.
        let _ = SockRef::from(self.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Ends the connection when the peer has not acknowledged data for so long. Only for peers that always read: the
    /// kernel takes one that lets its window close for one that is gone.
    pub(crate) fn set_unacknowledged_max(&self, timeout: Duration) {
        // Without it a lost peer is noticed later.
        let _ = SockRef::from(self.tcp()).set_tcp_user_timeout(Some(timeout));
    }

    pub(crate) fn ahead(&mut self) -> &mut Prefixed<Socket> {
        &mut self.inner
    }

    /// The socket, when what passes through it may pass us by: there is no TLS, and nothing was read ahead.
    fn bare_tcp(&self) -> Option<&TcpStream> {
        match &self.inner {
            Prefixed {
                ahead,
                inner: Socket::Plain(io),
            } if ahead.is_empty() && io.ahead.is_empty() => Some(&io.inner),
            _ => None,
        }
    }

    /// Lets the kernel move bytes into or out of a bare socket, once it is ready, and counts them.
    fn poll_splice(
        &mut self,
        cx: &mut Context<'_>,
        interest: Interest,
        mut splice: impl FnMut(&TcpStream) -> rustix::io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        let Some(tcp) = self.bare_tcp() else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        let result = loop {
            let ready = match interest.is_readable() {
                true => ready!(tcp.poll_read_ready(cx)),
                false => ready!(tcp.poll_write_ready(cx)),
            };
            match ready.and_then(|()| tcp.try_io(interest, || Ok(splice(tcp)?))) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => break Poll::Ready(result),
            }
        };
        match &result {
            Poll::Ready(Ok(count)) if interest.is_readable() => {
                self.open.read(*count);
                self.traffic.add_read(*count);
            }
            Poll::Ready(Ok(count)) => self.open.wrote(*count),
            // A kernel that cannot splice is no failure of the connection's: its bytes are copied.
            Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => {}
            _ => self.note(&result),
        }
        result
    }

    fn note<T>(&mut self, result: &Poll<io::Result<T>>) {
        if let Poll::Ready(Err(error)) = result
            && !self.failed
        {
            self.failed = true;
            self.open.fail(error);
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let mut inner = (&mut this.inner).take(this.read_max);
        let result = Pin::new(&mut inner).poll_read(cx, buf);
        let count = buf.filled().len() - before;
        this.open.read(count);
        this.traffic.add_read(count);
        this.note(&result);
        result
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.traffic.set_flushed(false);
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(count)) = result {
            this.open.wrote(count);
        }
        this.note(&result);
        result
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.traffic.set_flushed(false);
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(count)) = result {
            this.open.wrote(count);
        }
        this.note(&result);
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        this.traffic.set_flushed(matches!(result, Poll::Ready(Ok(()))));
        result
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.traffic.set_flushed(false);
        Pin::new(&mut this.inner).poll_shutdown(cx)
    }
}
