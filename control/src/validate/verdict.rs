//! What is said about an object.

/// More problems than these are not listed: nobody mends them all at once.
const PROBLEMS_MAX: usize = 8;
/// Bounds a refusal's length, which may quote what the user wrote.
const DENIAL_BYTES_MAX: usize = 2048;

/// Problems refuse the object; warnings go to whoever applies it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) problems: Vec<String>,
    pub(super) warnings: Vec<String>,
}

impl Verdict {
    /// A refusal for one reason.
    pub(super) fn deny(problem: impl Into<String>) -> Self {
        Self {
            problems: vec![problem.into()],
            warnings: Vec::new(),
        }
    }

    pub(super) fn problem(&mut self, text: impl Into<String>) {
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(text.into());
        }
    }

    pub(super) fn warn(&mut self, text: impl Into<String>) {
        if self.warnings.len() < PROBLEMS_MAX {
            self.warnings.push(text.into());
        }
    }

    /// Why the object is refused; admitted without.
    pub(super) fn denial(&self) -> Option<String> {
        if self.problems.is_empty() {
            return None;
        }
        let mut text = self.problems.join("; ");
        if text.len() > DENIAL_BYTES_MAX {
            text.truncate(text.floor_char_boundary(DENIAL_BYTES_MAX));
            text.push('…');
        }
        Some(text)
    }
}
