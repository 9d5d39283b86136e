//! A stream from the control plane that is opened anew for as long as someone wants it.

use std::{future::Future, time::Duration};

use rand::Rng as _;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Response, Status, Streaming};
use tracing::{debug, info};

use crate::config::StreamLimits;

const BACKOFF_MIN: Duration = Duration::from_millis(100);
/// A control plane that comes back after a long time is asked within this.
const BACKOFF_MAX: Duration = Duration::from_secs(3);
const FAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// What the follower makes of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Retry,
    Stop,
}

/// What came of a stream.
pub(super) enum Event<M> {
    /// A message; the flag says that it is the stream's first.
    Message(M, bool),
    /// The stream failed.
    Failed(Status),
}

/// Opens the stream again and again and hands on what comes of it.
pub(super) async fn follow<M, Fut>(
    what: String,
    limits: StreamLimits,
    mut open: impl FnMut() -> Fut,
    mut on: impl FnMut(Event<M>) -> Next,
) where
    Fut: Future<Output = Result<Response<Streaming<M>>, Status>>,
{
    let mut pause = BACKOFF_MIN;
    loop {
        let opened = Instant::now();
        let mut heard = false;
        let ended = async {
            let end_of_life = opened + limits.lifetime.unwrap_or(FAR);
            let mut deadline = opened + limits.initial_timeout.unwrap_or(FAR);
            let mut stream = timeout_at(deadline, open())
                .await
                .map_err(|_| late())??
                .into_inner();
            loop {
                match timeout_at(deadline.min(end_of_life), stream.message()).await {
                    Ok(Ok(Some(message))) => {
                        on(Event::Message(message, !heard));
                        heard = true;
                        deadline = Instant::now() + limits.idle_timeout.unwrap_or(FAR);
                    }
                    Ok(Ok(None)) => return Ok(()),
                    Ok(Err(status)) => return Err(status),
                    Err(_) if heard => return Ok(()),
                    Err(_) => return Err(late()),
                }
            }
        }
        .await;
        match ended {
            // Its time was over, or the controller wants to be asked anew.
            Ok(()) => debug!(%what, "Control stream ended"),
            Err(status) => {
                info!(%what, code = ?status.code(), message = status.message(), "Control stream failed");
                if on(Event::Failed(status)) == Next::Stop {
                    return;
                }
            }
        }
        pause = if heard {
            BACKOFF_MIN
        } else {
            (pause * 2).min(BACKOFF_MAX)
        };
        let jitter = rand::rng().random_range(0.5..=1.0);
        sleep(pause.mul_f64(jitter)).await;
    }
}

fn late() -> Status {
    Status::deadline_exceeded("no first message in time")
}
