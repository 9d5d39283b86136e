//! Waiting for a condition: poll, remember what was seen last, and say it when time is up.
//!
//! Tests never sleep for a guess. They name what they wait for, and a failure reads
//! "gave up after 30.0 s waiting for node ready; last seen: …".

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

/// How often a condition is looked at. Short beside any deadline, long beside any check.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// What one look at a condition found.
#[derive(Debug)]
pub enum Look<T> {
    /// The condition holds; the wait returns this.
    Done(T),
    /// Not yet. The text is the state that was observed, for the failure message.
    NotYet(String),
    /// It can never hold any more; the wait ends at once.
    Never(String),
}

/// A condition that did not come true.
#[derive(Debug, thiserror::Error)]
pub struct WaitError {
    /// What was waited for.
    pub what: String,
    /// How long.
    pub waited: Duration,
    /// The state observed last.
    pub last_seen: String,
    /// Whether the wait ended before its deadline because the condition became impossible.
    pub impossible: bool,
}

impl fmt::Display for WaitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.impossible {
            "it became impossible"
        } else {
            "gave up"
        };
        let Self {
            what,
            waited,
            last_seen,
            ..
        } = self;
        write!(
            f,
            "{verb} after {:.1} s waiting for {what}; last seen: {last_seen}",
            waited.as_secs_f64()
        )
    }
}

/// Polls `look` until it is done, or until `limit` has passed. One look that hangs ends at the deadline too.
pub async fn until<T, F, Fut>(what: impl Into<String>, limit: Duration, mut look: F) -> Result<T, WaitError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Look<T>>,
{
    let what = what.into();
    let start = Instant::now();
    let deadline = start + limit;
    let mut last_seen = "nothing yet".to_owned();
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Look::Done(value)) => return Ok(value),
            Ok(Look::NotYet(seen)) => last_seen = seen,
            Ok(Look::Never(seen)) => {
                return Err(WaitError {
                    what,
                    waited: start.elapsed(),
                    last_seen: seen,
                    impossible: true,
                });
            }
            Err(_) => last_seen.push_str(" (and the last look did not return)"),
        }
        if Instant::now() + POLL_INTERVAL >= deadline {
            return Err(WaitError {
                what,
                waited: start.elapsed(),
                last_seen,
                impossible: false,
            });
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// As [`until`], for checks that return a `Result`: an error means "not yet", its chain is what was seen.
pub async fn until_ok<T, E, F, Fut>(
    what: impl Into<String>,
    limit: Duration,
    mut check: F,
) -> Result<T, WaitError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
    E: Into<anyhow::Error>,
{
    until(what, limit, || {
        let check = check();
        async move {
            match check.await {
                Ok(value) => Look::Done(value),
                Err(error) => Look::NotYet(format!("{:#}", error.into())),
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_failure_names_the_condition_and_what_was_seen_last() {
        let mut looks = 0;
        let error = until::<(), _, _>("the third replica", Duration::from_millis(350), || {
            looks += 1;
            let seen = format!("{} of 3 ready", looks.min(2));
            async move { Look::NotYet(seen) }
        })
        .await
        .unwrap_err();
        let text = error.to_string();
        assert!(text.contains("waiting for the third replica"), "{text}");
        assert!(text.ends_with("last seen: 2 of 3 ready"), "{text}");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline() {
        let error = until::<(), _, _>("a reply", Duration::from_millis(50), std::future::pending)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("did not return"), "{error}");
    }

    #[tokio::test]
    async fn an_impossible_condition_ends_the_wait_at_once() {
        let error = until::<(), _, _>("a pod", Duration::from_secs(60), || async {
            Look::Never("the pod failed".into())
        })
        .await
        .unwrap_err();
        assert!(error.impossible && error.waited < Duration::from_secs(1));
    }
}
