//! How the sidecar is built for users: by itself, so that its dependencies have its features alone; with one code
//! generation unit and whole-program optimisation; and by a profile of what it does under load, which `cargo xtask pgo`
//! records and the repository keeps.
//!
//! The profile names functions as one compiler, one set of dependencies and one Cargo profile have them. Functions that it does
//! not know, because any of these has changed, are compiled as without it.

use std::path::{Path, PathBuf};

/// Cargo's profile of the sidecar.
pub const PROFILE: &str = "release";

/// Its package, and its program.
pub const NAME: &str = "heddle-proxy";

/// The recorded profile, in the repository.
pub fn recorded() -> PathBuf {
    crate::workspace_root().join("proxy/heddle-proxy.profdata")
}

/// Cargo's arguments to build it by the recorded profile.
pub fn build_arguments() -> Vec<String> {
    let used = format!("-Cprofile-use={}", recorded().display());
    // Functions that have changed since are no news to whoever changes them.
    arguments(&[&used, "-Cllvm-args=-no-pgo-warn-mismatch"])
}

/// Cargo's arguments to build it so that it writes what it does to a file in `folder` at its end.
pub fn recording_arguments(folder: &Path) -> Vec<String> {
    arguments(&[&format!("-Cprofile-generate={}", folder.display())])
}

fn arguments(rustflags: &[&str]) -> Vec<String> {
    let quoted: Vec<String> = rustflags.iter().map(|flag| format!("{flag:?}")).collect();
    let config = format!("build.rustflags=[{}]", quoted.join(","));
    [
        "--profile",
        PROFILE,
        "--package",
        NAME,
        "--bin",
        NAME,
        "--config",
        &config,
    ]
    .map(str::to_owned)
    .to_vec()
}
