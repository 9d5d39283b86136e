//! The reconciler: from a commit to a running mesh, and the command line over the same pipeline.
//!
//! `source` -> `profile` -> `render` -> `observe` -> `plan` -> `execute` -> `status`: each stage is a module that takes
//! the earlier stage's value and gives its own. `heddle render` stops after the third, `heddle plan` after the fifth,
//! `heddle apply` runs once, and `heddle run` loops. The first three and `plan` are pure; `observe` only reads the
//! cluster, and only `execute`, `identity` and `status` write to it. The crate never names the proxy, the identity
//! service or the control plane's programs: they meet as images.
#![expect(
    clippy::result_large_err,
    reason = "errors name file, place, object and field, and are made once per pass at most"
)]

pub mod certificates;
pub mod cli;
pub mod cluster;
pub mod commands;
pub mod diff;
pub mod execute;
pub mod fault;
pub mod forward;
pub mod identity;
pub mod metrics;
pub mod object;
pub mod observe;
pub mod pipeline;
pub mod plan;
pub mod profile;
pub mod readiness;
pub mod reconcile;
pub mod render;
pub mod rollout;
pub mod schema;
pub mod source;
pub mod status;
pub mod yaml;
