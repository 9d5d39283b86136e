//! Redirects meshed pods' traffic as their network is made, so that they need no init container with NET_ADMIN.
//!
//! Two halves of one program. The *plugin* is called by the container runtime for each pod: in goes a CNI request, out
//! comes the runtime's own result, unchanged, or an error that keeps the pod from starting; between them the pod is
//! looked up in the API server and, when it carries the proxy, its network namespace gets the same rules that
//! `heddle-init` would install. The *installer* runs on each node: it puts the program, its credentials and its entry in
//! the runtime's network configuration where they belong, and keeps them there.
//!
//! This crate asks the API server one question and needs no Kubernetes client for it: it runs at every pod's start,
//! as root, on the host, and must stay small. Repairing pods that started without rules is `heddle-proxy-cni-repair`'s.

pub mod api;
pub mod config;
pub mod install;
pub mod kubeconfig;
pub mod plugin;
pub mod pod;
pub mod protocol;

/// The plugin's type in network configurations, and the name of its file in the runtime's folder of plugins.
pub const PLUGIN: &str = "linkerd-cni";
