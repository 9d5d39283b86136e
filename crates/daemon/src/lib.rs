//! What every long-running program of Heddle does besides its own work: logging, an admin port with `/live`, `/ready`
//! and `/metrics`, signals and draining, metrics of the process, and errors printed with all their causes.
//!
//! In go a log level, a metrics registry and a readiness check; out come a running admin server and a shutdown that
//! waits for what is in flight. This crate never knows what a program is for: no Kubernetes, no gRPC, no TLS.

pub mod admin;
pub mod log;
pub mod process;
pub mod report;
pub mod signal;

pub use admin::Admin;
pub use drain::Watch;
pub use signal::Shutdown;
