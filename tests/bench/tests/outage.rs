//! The control plane is killed under load and comes back: no request fails, and what changed meanwhile is followed again.
//!
//! The benchmark itself, for some seconds; `cargo xtask bench outage` is the long one.

use std::{
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

#[test]
fn no_request_fails_while_the_control_plane_is_gone() {
    let bench = Path::new(env!("CARGO_BIN_EXE_heddle-bench"));
    let binaries = bench.parent().expect("a program is in a folder");
    for program in ["heddle-control", "heddle-identity", "heddle-proxy", "heddle-init"] {
        assert!(
            binaries.join(program).exists(),
            "no {program} in {}: run `cargo build --workspace --bins` first, as `cargo xtask test` does",
            binaries.display()
        );
    }
    let dir = tempfile::tempdir().expect("a folder");
    let records = dir.path().join("records");
    let Output { status, stderr, .. } = Command::new(bench)
        .args(["outage", "--seconds", "4", "--rate", "50", "--binaries"])
        .arg(binaries)
        .arg("--proxy")
        .arg(binaries.join("heddle-proxy"))
        .arg("--json")
        .arg(&records)
        .current_dir(heddle_tests_harness::workspace_root())
        .output()
        .expect("the benchmark starts");
    let told = String::from_utf8_lossy(&stderr);
    // It fails itself when the endpoint that changed meanwhile is never heard of, or a proxy does not follow again.
    assert!(status.success(), "{told}");
    let records: Vec<Value> =
        serde_json::from_slice(&std::fs::read(&records).expect("records")).expect("records in JSON");
    let value = |metric: &str| {
        let found = records.iter().find(|record| record["metric"] == metric);
        found
            .and_then(|record| record["value"].as_f64())
            .unwrap_or(f64::NAN)
    };
    assert!(value("requests") > 300.0, "{told}");
    assert_eq!(value("failed_requests"), 0.0, "{told}");
}
