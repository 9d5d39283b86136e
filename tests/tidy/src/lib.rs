//! Checks of the project itself, as tests: who may depend on whom, what files may look like.
//!
//! In go the workspace's metadata and its files; out come test failures that say what to move. Nothing here runs a
//! program of the product.
