//! A condition of a status, and the reasons that we give.

use std::borrow::Cow;

/// Whether an object is in force.
const ACCEPTED: &str = "Accepted";
/// Whether what it refers to is there.
const RESOLVED_REFS: &str = "ResolvedRefs";
/// Whether another object has taken its place; the one whose bad status is `True`.
const CONFLICTED: &str = "Conflicted";

/// A condition without the time since when it holds: that is the writer's to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    /// The condition's type, such as `Accepted`.
    pub type_: Cow<'static, str>,
    /// Whether it holds.
    pub status: bool,
    /// Why, as a word for programs.
    pub reason: Cow<'static, str>,
    /// Why, as a sentence for people.
    pub message: String,
    /// The generation of the object that was judged.
    pub observed_generation: i64,
}

/// Why an object is not in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rejection {
    NoMatchingParent,
    Conflicted,
    UnsupportedValue,
    NetworkOverlap,
    RateLimitExists,
    NoMatchingTarget,
    Invalid,
}

/// Why a reference leads nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unresolved {
    BackendNotFound,
    InvalidKind,
    AuthenticationNotFound,
}

impl Condition {
    fn new(type_: &'static str, status: bool, reason: &'static str, message: String) -> Self {
        Self {
            type_: type_.into(),
            status,
            reason: reason.into(),
            message,
            observed_generation: 0,
        }
    }

    pub(super) fn accepted() -> Self {
        Self::new(ACCEPTED, true, "Accepted", String::new())
    }

    pub(super) fn rejected(why: Rejection, message: String) -> Self {
        Self::new(ACCEPTED, false, why.reason(), message)
    }

    pub(super) fn resolved() -> Self {
        Self::new(RESOLVED_REFS, true, "ResolvedRefs", String::new())
    }

    pub(super) fn unresolved(why: Unresolved, message: String) -> Self {
        let reason = match why {
            Unresolved::BackendNotFound => "BackendNotFound",
            Unresolved::InvalidKind => "InvalidKind",
            Unresolved::AuthenticationNotFound => "AuthenticationNotFound",
        };
        Self::new(RESOLVED_REFS, false, reason, message)
    }

    pub(super) fn without_conflicts() -> Self {
        Self::new(CONFLICTED, false, "NoConflicts", String::new())
    }

    pub(super) fn overlapped(message: String) -> Self {
        Self::new(CONFLICTED, true, "ServerOverlap", message)
    }

    /// Whether it tells of something that is to be mended.
    pub(super) fn is_bad(&self) -> bool {
        self.status == (self.type_ == CONFLICTED)
    }

    /// The reason of a condition of ours.
    pub(super) fn reason_word(&self) -> &'static str {
        match self.reason {
            Cow::Borrowed(reason) => reason,
            // Conditions with owned reasons are read from statuses, and nobody is told of these.
            Cow::Owned(_) => "Unknown",
        }
    }
}

impl Rejection {
    fn reason(self) -> &'static str {
        match self {
            Self::NoMatchingParent => "NoMatchingParent",
            Self::Conflicted => "RouteReasonConflicted",
            Self::UnsupportedValue => "UnsupportedValue",
            Self::NetworkOverlap => "EgressReasonNetworkOverlap",
            Self::RateLimitExists => "RateLimitReasonAlreadyExists",
            Self::NoMatchingTarget => "NoMatchingTarget",
            Self::Invalid => "Invalid",
        }
    }
}
