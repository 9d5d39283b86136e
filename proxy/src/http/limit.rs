//! A request's time limits, and when each passes.

use std::{fmt, time::Duration};

use tokio::time::Instant;

/// Which of a request's time limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// From the request's start to the response's end, with all tries.
    Request,
    /// From the request's end to the response's end, in one try.
    Response,
    /// Of one try that is not the last.
    Try,
    /// Without anything that moves, either way.
    Idle,
}

/// When a time limit passes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    pub at: Instant,
    pub limit: Limit,
    pub after: Duration,
}

impl Limit {
    /// This limit of something that began at `since`, if it is limited.
    pub(crate) fn of(self, since: Instant, after: Option<Duration>) -> Option<Deadline> {
        after.map(|after| Deadline {
            at: since + after,
            limit: self,
            after,
        })
    }

    /// Linkerd's word for it in the metrics of routes.
    pub(crate) fn stream_label(self) -> &'static str {
        match self {
            Self::Request => "REQUEST_TIMEOUT",
            Self::Response => "RESPONSE_STREAM_TIMEOUT",
            Self::Try => "RESPONSE_HEADERS_TIMEOUT",
            Self::Idle => "IDLE_TIMEOUT",
        }
    }

    /// Linkerd's class of a response that did not come in time.
    pub(crate) fn class(self) -> &'static str {
        match self {
            Self::Request | Self::Response | Self::Try => "timeout",
            Self::Idle => "unclassified",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request timeout",
            Self::Response => "response timeout",
            Self::Try => "response header timeout",
            Self::Idle => "idle timeout",
        })
    }
}

impl Deadline {
    /// The one that passes first, and of several at once the first.
    pub(crate) fn earliest(all: impl IntoIterator<Item = Option<Self>>) -> Option<Self> {
        all.into_iter().flatten().min_by_key(|one| one.at)
    }
}
