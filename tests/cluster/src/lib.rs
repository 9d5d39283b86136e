//! The README's story as functions: what a user does and sees, step by step, on a real cluster.
//!
//! In go a kubeconfig and the built programs; out come the states that a step promises, or an error that says what was
//! seen instead. `cargo xtask demo` tells these steps to a person, the tests here assert them. Nothing in this crate
//! asks the product's code: it runs `heddle` as users run it, and reads what the API server and the proxies say.

pub mod capture;
pub mod conformance;
pub mod heddle;
pub mod kubectl;
pub mod metrics;
pub mod repository;
pub mod story;
pub mod workloads;

/// The manifests that the story starts from: two workloads to be meshed, one that is not.
pub const PAYMENTS: &str = include_str!("../manifests/payments.yaml");

/// Files of the mesh repository's first commit: path, text.
pub const FIRST_COMMIT: [(&str, &str); 2] = [
    (
        "clusters/production/mesh.yaml",
        include_str!("../manifests/repository/clusters/production/mesh.yaml"),
    ),
    (
        "clusters/production/policies/payments.yaml",
        include_str!("../manifests/repository/clusters/production/policies/payments.yaml"),
    ),
];

/// Text that the meshed client sends in each request; a packet capture must not show it.
pub const SECRET_TEXT: &str = "card-4000-0566-5566-5556";

/// Text that the unmeshed client sends; a packet capture shows it, which proves that the capture sees requests.
pub const PLAIN_TEXT: &str = "legacy-batch-report";
