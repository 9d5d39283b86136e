//! The real `heddle-proxy` between network namespaces: pods with real redirection, a scripted control plane that speaks
//! the proxy API in each pod, and applications. Needs root, `ip` and the kernel's nftables.

mod addresses;
mod admin;
mod apps;
mod attack;
mod attack_h2;
mod attack_http1;
mod attack_routing;
mod attack_tls;
mod authorization;
mod cgroup;
mod control;
mod direct;
mod edges;
mod extension;
mod fault_app;
mod fault_endpoint;
mod fault_network;
mod fault_process;
mod fault_resources;
mod gateway;
mod grpc;
mod h2spec;
mod http_traffic;
mod identity;
mod inbound_protocols;
mod ingress;
mod lifecycle;
mod live_requests;
mod net;
mod pod;
mod policies;
mod policy;
mod profiles;
mod roots;
mod route_matches;
mod smuggling;
mod taps;
mod tcp_traffic;
mod telemetry;
mod telemetry_bounds;
mod telemetry_errors;
mod telemetry_labels;
mod tracing;
mod tries;

use std::time::{Duration, Instant};

/// No condition of these tests takes this long, even on a busy machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// Whether these tests can run here. Where CI requires them, they must.
fn can_run() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "these tests need root, and CI requires them"
    );
    println!("not run: network namespaces need root");
    false
}

/// Waits until the condition holds.
fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(20));
    }
}
