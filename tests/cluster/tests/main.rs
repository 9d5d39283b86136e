//! The programs as users run them, on real clusters. One test program, so that it links once.
//!
//! `cargo xtask test` brings the whole cluster up and says its name in HEDDLE_TEST_CLUSTER; without that, the first test
//! that needs one brings up `heddle-test` and leaves it. The whole cluster is one for all tests, so the tests on it
//! take turns; those that need only an API server have one each and run beside them.

#[path = "cluster/ask.rs"]
mod ask;
#[path = "cluster/bad_input.rs"]
mod bad_input;
#[path = "cluster/cert_manager.rs"]
mod cert_manager;
#[path = "cluster/cni.rs"]
mod cni;
#[path = "cluster/crash.rs"]
mod crash;
#[path = "cluster/jobs.rs"]
mod jobs;
#[path = "cluster/reference.rs"]
mod reference;
#[path = "cluster/stage.rs"]
mod stage;
#[path = "cluster/story.rs"]
mod story;
