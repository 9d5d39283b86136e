//! Lines for a reader that may be slow, or have stopped: they go through a bounded queue to a thread of their own. What
//! finds no room is lost, and nobody waits.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc as std_mpsc,
    },
    time::{Duration, Instant},
};

use tokio::sync::mpsc::{self, error::TrySendError};

/// Lines that wait to be written, and their bytes.
const QUEUE_LINES_MAX: usize = 8_192;
pub(crate) const QUEUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Lines written at once.
const BATCH_LINES_MAX: usize = 256;
/// A reader that has stopped reading gets no more time than this at the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Where the lines go. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Lines {
    queue: mpsc::Sender<Message>,
    /// Bytes in the queue.
    queued_bytes: Arc<AtomicUsize>,
}

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    Flush(std_mpsc::SyncSender<()>),
}

impl Lines {
    /// Starts the thread that writes.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub(crate) fn start(thread: &str, out: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = mpsc::channel(QUEUE_LINES_MAX);
        let queued_bytes = Arc::<AtomicUsize>::default();
        let counted = queued_bytes.clone();
        std::thread::Builder::new()
            .name(thread.to_owned())
            .spawn(move || write(lines, &counted, out))?;
        Ok(Self { queue, queued_bytes })
    }

    /// Queues a line, which brings its own end. False when there is no room for it.
    #[must_use]
    pub(crate) fn push(&self, line: Vec<u8>) -> bool {
        let bytes = line.len();
        let taken = self.queued_bytes.fetch_add(bytes, Relaxed) + bytes <= QUEUE_BYTES_MAX
            && self.queue.try_send(Message::Line(line)).is_ok();
        if !taken {
            self.queued_bytes.fetch_sub(bytes, Relaxed);
        }
        taken
    }

    /// Waits until what was queued so far is written, for a second. Blocks: for the end of the process.
    pub(crate) fn flush(&self) {
        let deadline = Instant::now() + FLUSH_TIMEOUT;
        let (done, written) = std_mpsc::sync_channel(1);
        let mut message = Message::Flush(done);
        // A full queue has no room for this either, until the reader goes on.
        while let Err(TrySendError::Full(unsent)) = self.queue.try_send(message) {
            if Instant::now() >= deadline {
                return;
            }
            message = unsent;
            std::thread::park_timeout(LOOK_AGAIN);
        }
        // Whether it was written or not, it ends here.
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// Writes until nobody can send any more. Blocks its thread whenever the reader does not read.
fn write(mut lines: mpsc::Receiver<Message>, queued_bytes: &AtomicUsize, mut out: impl Write) {
    let (mut batch, mut text, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
    while lines.blocking_recv_many(&mut batch, BATCH_LINES_MAX) > 0 {
        for message in batch.drain(..) {
            match message {
                Message::Line(line) => text.extend_from_slice(&line),
                Message::Flush(done) => flushed.push(done),
            }
        }
        // With nobody at the other end there is nobody to tell.
        let _ = out.write_all(&text).and_then(|()| out.flush());
        queued_bytes.fetch_sub(text.len(), Relaxed);
        text.clear();
        for done in flushed.drain(..) {
            // Whoever asked may have stopped waiting.
            let _ = done.try_send(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that reads when it is let.
    struct Slow(std_mpsc::Receiver<()>, Arc<AtomicUsize>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // The end of the test lets it read, too.
            let _ = self.0.recv();
            self.1.fetch_add(bytes.len(), Relaxed);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_reader_loses_lines_and_holds_up_nobody() {
        let (let_read, letting) = std_mpsc::sync_channel::<()>(1);
        let read = Arc::<AtomicUsize>::default();
        let lines = Lines::start("test", Slow(letting, read.clone())).expect("a thread");
        let line = vec![b'x'; 8 * 1024];
        let kept = (0..1_000).filter(|_| lines.push(line.clone())).count();
        assert!(kept > 0 && kept < 1_000, "{kept}");
        assert!(lines.queued_bytes.load(Relaxed) <= QUEUE_BYTES_MAX);
        drop(let_read);
        lines.flush();
        assert_eq!(read.load(Relaxed), kept * line.len());
        assert!(lines.push(line), "there is room again");
    }
}
