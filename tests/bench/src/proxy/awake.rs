//! Keeps the processors from halting, as latencies are measured elsewhere: a halted virtual processor wakes by way of the
//! hypervisor, which takes longer than all that a proxy does with a request.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
};

use anyhow::Context as _;

/// The kernel's interface for the longest wake-up that is tolerated, in microseconds, for as long as the file is open.
const LATENCY: &str = "/dev/cpu_dma_latency";

/// Until it is dropped, idle processors poll.
pub(super) struct Awake(#[expect(dead_code, reason = "what counts is that it is open")] File);

impl Awake {
    pub(super) fn keep() -> anyhow::Result<Self> {
        let ask = || {
            let mut file = OpenOptions::new().write(true).open(LATENCY)?;
            file.write_all(&0_i32.to_ne_bytes())?;
            Ok::<_, std::io::Error>(file)
        };
        ask()
            .map(Self)
            .with_context(|| format!("failed to keep processors awake by {LATENCY}, which needs root"))
    }
}
