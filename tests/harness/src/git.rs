//! Git repositories for tests: bare ones served over HTTP, and a clone to commit from.
//!
//! The server is real Git (`git http-backend`) behind a small HTTP server; it can ask for credentials, and can be told
//! to fail, as a forge does on a bad day.

mod backend;
mod repository;

pub use backend::{Auth, GitServer, GitServerOptions};
pub use repository::Repository;
