//! What an HTTP/2 connection may hold, out of one budget of the process.
//!
//! A window is memory that a peer may fill while nobody takes what it sends. Each connection begins with windows for a
//! fast and long path, as long as few connections share the budget; the more there are, the less a new one gets, down to
//! what the protocol begins with. So with what waits to be sent to a peer that does not read, which the protocol library
//! bounds by stream. Both are chosen when the connection begins, and given back when it ends: nothing is measured on the
//! way, and a connection never stops because others fill theirs.

use std::{
    fs,
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The budget where no memory limit is set.
const BUDGET_BYTES_MAX: u64 = 256 << 20;
/// This part of the memory limit is the budget.
const LIMIT_PART: u64 = 4;
/// A connection gets this part of what is left.
const SHARE_PART: u64 = 32;
/// The windows of a connection, all streams together: at most what keeps a path of 10 Gbit/s and 6 ms full. The least,
/// which HTTP/2 gives every connection (RFC 9113 §6.9.2), is not taken from the budget when that is used up: connections
/// are bounded by the limit of open files.
const CONNECTION_MAX: u64 = 8 << 20;
const CONNECTION_MIN: u64 = 65_535;
/// Of what an application in the same pod sends: no time passes on the way, and whatever it has sent already waits here.
const NEAR_CONNECTION_MAX: u64 = 4 << 20;
const NEAR_STREAM_MAX: u64 = 256 << 10;
/// One stream's part of its connection's window: several that nobody reads must not hold back the others.
const STREAM_PART: u64 = 8;
const STREAM_MAX: u64 = 1 << 20;
const STREAM_MIN: u64 = 16 << 10;
/// What waits to be sent on one stream: this part of the connection's window. A frame is sent at a time, so that more would
/// only be kept here instead of where it comes from.
const SEND_PART: u64 = 64;
const SEND_MAX: u64 = 64 << 10;
const SEND_MIN: u64 = 16 << 10;
/// A stranger has a stream for each so many bytes of the connection's window, and the least for what waits to be sent.
const STREAM_BYTES: u64 = 2 << 10;
/// Where the kernel says how much memory the container may take: cgroup v2 and v1.
const LIMIT_FILES: [&str; 2] = [
    "/sys/fs/cgroup/memory.max",
    "/sys/fs/cgroup/memory/memory.limit_in_bytes",
];

static BUDGET: LazyLock<Budget> = LazyLock::new(|| Budget::of_limit(memory_limit()));

/// What all connections together may be sent ahead.
#[derive(Debug)]
struct Budget {
    bytes: u64,
    granted: AtomicU64,
}

/// The windows of one connection, until it ends.
#[derive(Debug)]
pub(crate) struct Windows {
    stream: u32,
    connection: u32,
    budget: &'static Budget,
}

impl Windows {
    /// For a connection over a network.
    pub(crate) fn far() -> Self {
        BUDGET.grant(CONNECTION_MAX, STREAM_MAX)
    }

    /// For a connection to an application in the same pod.
    pub(crate) fn near() -> Self {
        BUDGET.grant(NEAR_CONNECTION_MAX, NEAR_STREAM_MAX)
    }

    /// The window of each stream, in bytes.
    pub(crate) fn stream(&self) -> u32 {
        self.stream
    }

    /// The window of all streams together, in bytes.
    pub(crate) fn connection(&self) -> u32 {
        self.connection
    }

    /// What may wait to be sent on each stream, in bytes.
    pub(crate) fn send_buffer(&self) -> usize {
        let part = u64::from(self.connection) / SEND_PART;
        usize::try_from(part.clamp(SEND_MIN, SEND_MAX)).expect("at most 64 KiB")
    }

    /// The same for a client that nobody vouches for, and how many of `streams_max` streams it may have.
    pub(crate) fn of_stranger(&self, streams_max: u32) -> (usize, u32) {
        let streams = u64::from(self.connection) / STREAM_BYTES;
        let streams = u32::try_from(streams).map_or(streams_max, |streams| streams.min(streams_max));
        (usize::try_from(SEND_MIN).expect("16 KiB"), streams)
    }
}

impl Drop for Windows {
    fn drop(&mut self) {
        self.budget.granted.fetch_sub(self.connection.into(), Relaxed);
    }
}

impl Budget {
    fn of_limit(limit: Option<u64>) -> Self {
        Self {
            bytes: limit.map_or(BUDGET_BYTES_MAX, |limit| {
                (limit / LIMIT_PART).min(BUDGET_BYTES_MAX)
            }),
            granted: AtomicU64::new(0),
        }
    }

    fn grant(&'static self, connection_max: u64, stream_max: u64) -> Windows {
        let share = |granted| {
            let left = self.bytes.saturating_sub(granted);
            (left / SHARE_PART).clamp(CONNECTION_MIN, connection_max)
        };
        let granted = self
            .granted
            .fetch_update(Relaxed, Relaxed, |granted| Some(granted + share(granted)))
            .unwrap_or_else(|granted| granted);
        let connection = share(granted);
        let stream = (connection / STREAM_PART).clamp(STREAM_MIN, stream_max);
        let window = |bytes: u64| u32::try_from(bytes).expect("at most 8 MiB");
        Windows {
            stream: window(stream),
            connection: window(connection),
            budget: self,
        }
    }
}

/// The memory limit of the container in bytes; none where none is set or it cannot be read.
fn memory_limit() -> Option<u64> {
    let text = LIMIT_FILES
        .iter()
        .find_map(|path| fs::read_to_string(path).ok())?;
    // "max" is no limit; version 1 writes a number beyond all memory instead.
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(limit: Option<u64>) -> &'static Budget {
        Box::leak(Box::new(Budget::of_limit(limit)))
    }

    #[test]
    fn a_few_connections_have_room_for_long_paths() {
        let budget = budget(None);
        let windows: Vec<_> = (0..20)
            .map(|_| budget.grant(CONNECTION_MAX, STREAM_MAX))
            .collect();
        assert_eq!(windows[0].connection(), 8 << 20);
        assert_eq!(windows[0].stream(), 1 << 20);
        assert_eq!(windows[0].send_buffer(), 64 << 10);
        assert_eq!(windows[0].of_stranger(256), (16 << 10, 256));
        assert!(windows[19].connection() > 4 << 20, "{:?}", windows[19]);
        let near = budget.grant(NEAR_CONNECTION_MAX, NEAR_STREAM_MAX);
        assert_eq!((near.connection(), near.stream()), (4 << 20, 256 << 10));
    }

    #[test]
    fn many_connections_stay_within_the_budget() {
        let limit = 128 << 20;
        let budget = budget(Some(limit));
        let mut windows: Vec<_> = (0..1_000)
            .map(|_| budget.grant(CONNECTION_MAX, STREAM_MAX))
            .collect();
        let least = 1_000 * CONNECTION_MIN;
        assert!(budget.granted.load(Relaxed) <= limit / LIMIT_PART + least);
        assert!(windows.iter().all(|one| one.stream() >= 16 << 10));
        assert!(
            windows.iter().all(|one| one.stream() * 3 <= one.connection()),
            "one stream does not hold the others back"
        );
        let last = &windows[999];
        assert_eq!(last.connection(), 65_535);
        assert_eq!(
            (last.send_buffer(), last.of_stranger(256)),
            (16 << 10, (16 << 10, 31))
        );
        windows.clear();
        assert_eq!(budget.granted.load(Relaxed), 0, "all is given back");
        let first = budget.grant(CONNECTION_MAX, STREAM_MAX);
        assert_eq!(first.connection(), 1 << 20, "a 32nd of a quarter of the limit");
    }
}
