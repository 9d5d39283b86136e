//! The first process of every pod: holds its namespaces, collects orphans, ends when told to.

use rustix::process::{WaitOptions, wait};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut child = signal(SignalKind::child())?;
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            // One signal may stand for several children.
            _ = child.recv() => while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {},
        }
    }
}
