//! A thread's buffers and pipes: taken by a direction that has something to read, given back when all is written.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
};

use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

/// What one `splice` moves at most.
pub(super) const PIPE_BYTES: usize = 256 * 1024;
/// Pipes of one thread that are in use or kept, two file descriptors each; who gets none copies.
const PIPES_MAX: usize = 256;
/// What is kept for the next to take: buffers by size, and pipes.
const KEPT_MAX: [usize; 3] = [64, 32, 8];
const PIPES_KEPT_MAX: usize = 16;

pub(super) type Buffer = Box<[u8]>;

/// How much is read at once. What fills a small buffer is more often than not followed by more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Size {
    #[default]
    Small,
    Middle,
    Large,
}

impl Size {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Small => 4 * 1024,
            Self::Middle => 16 * 1024,
            Self::Large => 256 * 1024,
        }
    }

    /// The size for the next read: larger when `count` bytes filled this one, smaller when they would fit it.
    pub(super) fn after(self, count: usize) -> Self {
        match self {
            Self::Small if count == self.bytes() => Self::Middle,
            Self::Middle if count == self.bytes() => Self::Large,
            Self::Middle if count <= Self::Small.bytes() / 2 => Self::Small,
            Self::Large if count <= Self::Middle.bytes() / 2 => Self::Middle,
            same => same,
        }
    }
}

/// A pipe. Dropped, it is closed, and with it what it may hold.
#[derive(Debug)]
pub(super) struct Pipe {
    pub(super) read: OwnedFd,
    pub(super) write: OwnedFd,
    _counted: Counted,
}

/// One of [`PIPES_MAX`].
#[derive(Debug)]
struct Counted;

impl Drop for Counted {
    fn drop(&mut self) {
        // At the thread's end there is nothing left to count.
        let _ = PIPES.try_with(|pipes| pipes.set(pipes.get() - 1));
    }
}

#[derive(Debug, Default)]
struct Kept {
    buffers: [Vec<Buffer>; 3],
    pipes: Vec<Pipe>,
    /// The fewest of each that have lain here since the last trim: these were not needed.
    unused: [usize; 4],
}

/// Where `unused` counts the pipes, after the buffers.
const PIPE: usize = 3;

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
    static PIPES: Cell<usize> = const { Cell::new(0) };
}

pub(super) fn take(size: Size) -> Buffer {
    let class = size as usize;
    let kept = KEPT.with_borrow_mut(|kept| {
        let buffer = kept.buffers[class].pop();
        kept.unused[class] = kept.unused[class].min(kept.buffers[class].len());
        buffer
    });
    kept.unwrap_or_else(|| vec![0; size.bytes()].into())
}

pub(super) fn give_back(buffer: Buffer) {
    let sizes = [Size::Small, Size::Middle, Size::Large];
    let Some(class) = sizes.iter().position(|size| size.bytes() == buffer.len()) else {
        return;
    };
    KEPT.with_borrow_mut(|kept| {
        if kept.buffers[class].len() < KEPT_MAX[class] {
            kept.buffers[class].push(buffer);
        }
    });
}

/// `None` when there are too many already, or the system has none.
pub(super) fn take_pipe() -> Option<Pipe> {
    let kept = KEPT.with_borrow_mut(|kept| {
        let pipe = kept.pipes.pop();
        kept.unused[PIPE] = kept.unused[PIPE].min(kept.pipes.len());
        pipe
    });
    if kept.is_some() {
        return kept;
    }
    let count = PIPES.get();
    if count >= PIPES_MAX {
        return None;
    }
    let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).ok()?;
    // A user's pipes have a common bound; beyond it they stay as small as they are made.
    let _ = fcntl_setpipe_size(&write, PIPE_BYTES);
    PIPES.set(count + 1);
    Some(Pipe {
        read,
        write,
        _counted: Counted,
    })
}

/// Only an empty pipe may be given back.
pub(super) fn give_back_pipe(pipe: Pipe) {
    KEPT.with_borrow_mut(|kept| {
        if kept.pipes.len() < PIPES_KEPT_MAX {
            kept.pipes.push(pipe);
        }
    });
}

/// Frees what nobody has needed since the last time.
pub(crate) fn trim() {
    KEPT.with_borrow_mut(|kept| {
        let Kept {
            buffers,
            pipes,
            unused,
        } = kept;
        for (buffers, unused) in buffers.iter_mut().zip(unused.iter_mut()) {
            buffers.truncate(buffers.len() - *unused);
            *unused = buffers.len();
        }
        pipes.truncate(pipes.len() - unused[PIPE]);
        unused[PIPE] = pipes.len();
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_grow_when_a_buffer_is_full_and_shrink_when_it_is_nearly_empty() {
        let grown = Size::Small.after(4 * 1024).after(16 * 1024);
        assert_eq!(grown, Size::Large);
        assert_eq!(grown.after(100).after(100), Size::Small);
        assert_eq!(Size::Middle.after(3 * 1024), Size::Middle);
    }

    #[test]
    fn what_is_not_needed_is_freed() {
        let held: Vec<_> = (0..KEPT_MAX[0] + 3).map(|_| take(Size::Small)).collect();
        held.into_iter().for_each(give_back);
        give_back_pipe(take_pipe().expect("there are pipes"));
        let kept = || KEPT.with_borrow(|kept| (kept.buffers[0].len(), kept.pipes.len()));
        trim();
        assert_eq!(kept(), (KEPT_MAX[0], 1), "all were needed");
        give_back(take(Size::Small));
        trim();
        assert_eq!((kept(), PIPES.get()), ((1, 0), 0), "one buffer was needed");
    }

    #[test]
    fn pipes_are_bounded() {
        let held: Vec<_> = std::iter::from_fn(take_pipe).take(PIPES_MAX + 1).collect();
        assert_eq!(held.len(), PIPES_MAX);
        drop(held);
        assert_eq!(PIPES.get(), 0);
    }
}
