//! What the tests of Heddle stand on: real programs, never stand-ins.
//!
//! - [`tools`] builds the Kubernetes programs from Go modules, once per machine and version.
//! - [`cluster`] runs them: a whole single-node Kubernetes in a network namespace of its own, or etcd and
//!   an API server alone.
//! - [`audit`] reads what an API server was asked to write, and by whom.
//! - [`image`] turns built binaries into images that a cluster loads without a registry.
//! - [`sidecar`] says how the sidecar is built for users.
//! - [`git`] serves bare repositories over HTTP to whatever runs in a cluster.
//! - [`crds`] gets other projects' CRDs out of their Go modules.
//! - [`netns`] makes a pod's network without a cluster.
//! - [`wait`] waits for conditions, with a deadline and an explanation.
//!
//! Nothing here knows what Heddle's programs do; they come in as binaries and go out as images.

pub mod audit;
pub mod cluster;
pub mod command;
pub mod crds;
pub mod git;
pub mod host;
pub mod image;
pub mod netns;
pub mod progress;
pub mod sidecar;
pub mod token;
pub mod tools;
pub mod wait;

/// The root of Heddle's checkout: where the workspace's `Cargo.toml` and `tests/tools` are.
pub fn workspace_root() -> std::path::PathBuf {
    let manifest = std::env::var_os("HEDDLE_WORKSPACE").map(std::path::PathBuf::from);
    manifest.unwrap_or_else(|| {
        std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("the harness lies two folders below the workspace root")
            .to_path_buf()
    })
}
