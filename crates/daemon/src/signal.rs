//! Ending well: SIGTERM or SIGINT starts a drain, and the process ends when what is in flight has ended, or when the
//! grace period has. A second signal ends it at once.

use std::{io, sync::Arc, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};
use tracing::{info, warn};

/// Installed signal handlers and the drain they start. Tasks get a [`drain::Watch`] from [`Shutdown::watch`].
#[derive(Debug)]
pub struct Shutdown {
    signal: drain::Signal,
    watch: drain::Watch,
    trigger: Trigger,
    terminate: Signal,
    interrupt: Signal,
}

/// Starts the drain from within the program, as a signal would: for an admin request `/shutdown`, or a failed task.
#[derive(Clone, Debug, Default)]
pub struct Trigger(Arc<Notify>);

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All that was in flight has ended.
    Clean,
    /// The grace period, or a second signal, came first.
    Cut,
}

/// Installs handlers for SIGTERM and SIGINT. Must be called within a tokio runtime.
///
/// # Errors
/// The operating system refuses the handlers.
pub fn shutdown() -> io::Result<Shutdown> {
    let (signal_, watch) = drain::channel();
    Ok(Shutdown {
        signal: signal_,
        watch,
        trigger: Trigger::default(),
        terminate: signal(SignalKind::terminate())?,
        interrupt: signal(SignalKind::interrupt())?,
    })
}

impl Shutdown {
    /// A handle for a task that is to be told of the drain and awaited by it.
    pub fn watch(&self) -> drain::Watch {
        self.watch.clone()
    }

    /// A handle that starts the drain from within the program.
    pub fn trigger(&self) -> Trigger {
        self.trigger.clone()
    }

    /// Waits for a signal (or the trigger) without draining: for what a program does before it serves. Cancel-safe.
    pub async fn requested(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = self.trigger.0.notified() => {}
        }
    }

    /// Waits for a signal (or the trigger), then drains for at most `grace`.
    pub async fn drain(self, grace: Duration) -> Drained {
        let Self {
            signal,
            watch,
            trigger,
            mut terminate,
            mut interrupt,
        } = self;
        // Our own handle would keep the drain waiting for ever.
        drop(watch);
        let cause = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
            () = trigger.0.notified() => "request",
        };
        info!(cause, grace_secs = grace.as_secs_f64(), "Shutting down");
        let drained = tokio::select! {
            () = signal.drain() => Drained::Clean,
            () = tokio::time::sleep(grace) => Drained::Cut,
            _ = terminate.recv() => Drained::Cut,
            _ = interrupt.recv() => Drained::Cut,
        };
        match drained {
            Drained::Clean => info!("Drained"),
            Drained::Cut => {
                warn!("Ended with work in flight: the grace period is over, or a second signal came")
            }
        }
        drained
    }
}

impl Trigger {
    /// Starts the drain. A call before anyone waits is not lost.
    pub fn fire(&self) {
        self.0.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn drain_waits_for_what_is_in_flight() {
        let shutdown = shutdown().expect("handlers can be installed");
        let watch = shutdown.watch();
        shutdown.trigger().fire();
        let work = tokio::spawn(async move {
            let release = watch.signaled().await;
            tokio::time::sleep(Duration::from_secs(5)).await;
            drop(release);
        });
        assert_eq!(shutdown.drain(Duration::from_secs(10)).await, Drained::Clean);
        work.await.expect("the task ends");
    }

    #[tokio::test(start_paused = true)]
    async fn drain_ends_with_the_grace_period() {
        let shutdown = shutdown().expect("handlers can be installed");
        let watch = shutdown.watch();
        shutdown.trigger().fire();
        let work = tokio::spawn(async move {
            let _release = watch.signaled().await;
            std::future::pending::<()>().await;
        });
        assert_eq!(shutdown.drain(Duration::from_secs(10)).await, Drained::Cut);
        work.abort();
    }
}
