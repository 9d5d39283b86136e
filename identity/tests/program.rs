//! The program as its users start it: flags, exit codes, and a first life without a cluster.

use std::process::{Command, Output};

fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_heddle-identity"))
        .args(args)
        .env_clear()
        .output()
        .expect("the program starts")
}

#[test]
fn help_names_the_flags_and_their_defaults() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    for flag in [
        "--listen-addr",
        "--admin-addr",
        "--issuer-dir",
        "--trust-roots",
        "--issuance-lifetime",
        "--clock-skew-allowance",
        "--spiffe-ids",
        "--require-pod-tokens",
        "--pod-requests-per-minute",
        "--identity-requests-per-minute",
        "[default: 20]",
        "[default: 12000]",
        "--identity-trust-domain",
        "--cluster-domain",
        "--control-namespace",
        "--log-level",
        "--log-format",
        "/var/run/linkerd/identity/issuer",
        "/var/run/linkerd/identity/trust-roots/ca-bundle.crt",
        "0.0.0.0:8080",
        "24h",
    ] {
        assert!(text.contains(flag), "{flag} is missing in:\n{text}");
    }
}

#[test]
fn version_is_printed() {
    let output = run(&["--version"]);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!("heddle-identity {}\n", heddle_mesh::VERSION)
    );
}

#[test]
fn malformed_flags_end_with_2_and_name_the_flag() {
    for (flag, value) in [
        ("--issuance-lifetime", "1.5h"),
        ("--issuance-lifetime", "1s"),
        ("--issuance-lifetime", "1000d"),
        ("--clock-skew-allowance", "soon"),
        ("--clock-skew-allowance", "2h"),
        ("--pod-requests-per-minute", "0"),
        ("--spiffe-ids", "perhaps"),
        ("--listen-addr", "8080"),
        ("--loopback-addr", "0.0.0.0:8081"),
        ("--identity-trust-domain", "not a domain"),
        ("--log-format", "xml"),
        ("--log-level", "heddle=loud"),
        ("--no-such-flag", "x"),
    ] {
        let output = run(&[flag, value]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flag} {value}: {text}");
        assert!(text.contains(flag), "{flag} {value}: {text}");
    }
}

#[test]
fn without_a_cluster_it_says_so() {
    let output = run(&["--listen-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("failed to configure the Kubernetes client"),
        "{text}"
    );
}
