//! Packets between the pods of an embedded cluster, as tcpdump sees them on the node.

use std::{process::Stdio, time::Duration};

use anyhow::{Context as _, Result, ensure};
use heddle_tests_harness::cluster::Cluster;

/// Everything that crossed the node's interfaces to or from TCP port 8080 or a proxy during `time`, as raw bytes.
///
/// The pods' own loopbacks, where requests are in plaintext by design, are in namespaces of their own.
pub fn between_pods(cluster: &Cluster, time: Duration) -> Result<Vec<u8>> {
    let file = tempfile::Builder::new().suffix(".pcap").tempfile()?;
    let mut command = cluster.exec_in_netns("timeout");
    command.args(["--signal=INT", &time.as_secs().to_string()]);
    command
        .args(["tcpdump", "-i", "any", "-s", "0", "-U", "-Z", "root", "-w"])
        .arg(file.path());
    command.args(["tcp", "and", "(port 8080 or port 4143)"]);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("failed to start tcpdump")?;
    // timeout's own exit code says that it ended tcpdump, as it should; tcpdump's 0 comes through with --signal=INT.
    let code = output.status.code();
    ensure!(
        matches!(code, Some(0 | 124)),
        "tcpdump failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    std::fs::read(file.path()).context("failed to read the capture")
}

/// Whether `text` stands in `bytes`.
pub fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}
