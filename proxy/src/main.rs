//! `heddle-proxy`: the sidecar. Applications' connections are redirected to it; it finds out where they go and who may
//! make them, carries them over mutual TLS between meshed pods, balances requests, and counts.
//!
//! In go the `LINKERD2_PROXY_*` environment and what the control plane says over the proxy API; out come connections
//! and metrics. It knows no Kubernetes.

mod access_log;
mod admin;
mod app;
mod balance;
mod config;
mod detect;
mod discovery;
mod dst;
mod http;
mod http1;
mod inbound;
mod io;
mod limits;
mod lines;
mod listen;
mod logging;
mod metrics;
mod observe;
mod outbound;
mod tap;
mod tls;
mod trace;
mod transport_header;
mod upstream;
mod worker;

use std::process::ExitCode;

use config::{Config, ProcessEnv};

/// Smaller and faster than the system's for many small, short-lived allocations.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// EX_USAGE: the environment is wrong. Linkerd's proxy exits with the same.
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let config = match Config::from_env(&ProcessEnv) {
        Ok(config) => config,
        Err(errors) => {
            for error in errors {
                report(&error.to_string());
            }
            return EXIT_USAGE.into();
        }
    };
    let log = match logging::init(&config.log) {
        Ok(log) => log,
        Err(error) => {
            report(&heddle_daemon::report::chain(&error));
            return EXIT_USAGE.into();
        }
    };
    let code = match app::run(config, log.clone()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = %heddle_daemon::report::chain(&error), "The proxy failed");
            ExitCode::FAILURE
        }
    };
    log.flush();
    code
}

/// Before logging is set up.
fn report(text: &str) {
    use std::io::Write as _;
    // With stderr closed there is nobody to tell.
    let _ = writeln!(std::io::stderr(), "ERROR heddle_proxy: {text}");
}
