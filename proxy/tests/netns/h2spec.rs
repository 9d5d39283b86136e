//! The proxy's HTTP/2 servers under h2spec, which plays every case of RFC 7540 and RFC 7541 against them: the one
//! towards other pods, and the one towards the pod's own application.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    apps::serve_http,
    can_run,
    control::Script,
    http_traffic::{pair, service},
    net::{Namespace, Network},
    pod::Pod,
    policies::{http_rule, http2_server, outbound_http2},
};

/// All that h2spec knows.
const CASES: usize = 146;

/// What counts as a connection that was closed, in h2spec's own code, too; but it does not know the error by the type
/// that Go gives it today. The kernel resets a connection that is closed while bytes of the client's are unread.
const RESET: &str = "connection reset by peer";

/// The program, which `cargo xtask test` builds and names.
fn program() -> Option<PathBuf> {
    let program = std::env::var_os("HEDDLE_H2SPEC").map(PathBuf::from);
    if program.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "HEDDLE_H2SPEC names no h2spec, and CI requires it"
        );
        println!("not run: HEDDLE_H2SPEC names no h2spec; `cargo xtask tools` builds it");
    }
    program.filter(|_| can_run())
}

fn passes(program: &Path, namespace: &Namespace, address: SocketAddr) {
    let mut h2spec = Command::new(program);
    let (host, port) = (address.ip().to_string(), address.port().to_string());
    h2spec
        .args(["--host", &host, "--port", &port, "--strict", "--timeout", "2"])
        // Five headers of this length exceed the largest frame that the proxy takes, which one case wants; by default
        // they exceed the smallest that there is.
        .args(["--max-header-length", "20000"]);
    let output = namespace
        .thread(move || h2spec.output().expect("h2spec starts"))
        .join()
        .expect("no panic");
    let text = String::from_utf8_lossy(&output.stdout);
    let reset = text
        .split_once("Failures:")
        .map_or("", |(_, failures)| failures)
        .lines()
        .filter(|line| line.contains("Actual:") && line.contains(RESET))
        .count();
    let all = format!(
        "{CASES} tests, {} passed, 0 skipped, {reset} failed",
        CASES - reset
    );
    assert!(text.contains(&all), "{text}");
}

#[test]
fn h2spec_passes_against_the_inbound_server() {
    let Some(program) = program() else {
        return;
    };
    let (network, script) = (Network::new(), Script::new());
    script.set_inbound("server", 8080, http2_server());
    let server = Pod::start(&network, &script, "server");
    serve_http(&server.namespace, 8080, "server");
    passes(&program, &network.namespace(), server.addr(8080));
}

#[test]
fn h2spec_passes_against_the_outbound_server() {
    let Some(program) = program() else {
        return;
    };
    let (network, script) = (Network::new(), Script::new());
    let (client, _server) = pair(&network, &script);
    script.set_outbound(service(), outbound_http2("web", http_rule("web")));
    passes(&program, &client.namespace, service());
}
