//! Repairs pods that lost the race against the CNI plugin: their network was made while the plugin was not in the
//! node's configuration, so their validator found no redirection and they cannot start. A pod's network is made once, so
//! the only cure is another pod: this one is deleted, and its controller makes the next.
//!
//! In go one node's pods as the API server shows them; out come deletions, at a bounded rate, and Events that say why.
//! This program knows Kubernetes and nothing of rules, files or the plugin: its account may delete pods, and the
//! plugin's may not.

pub mod judge;
mod metrics;
mod queue;
mod repair;

pub use metrics::Metrics;
pub use queue::{Due, Queue};
pub use repair::{Repair, run};
