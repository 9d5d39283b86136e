//! `heddle-init` as a pod runs it: real rules in a real network namespace, with a client in another.
//!
//! Needs root, `ip` and `nft`. Each test makes its own namespaces and removes them.

use std::{
    io::{ErrorKind, Write as _},
    net::{Ipv6Addr, SocketAddr},
    process::{Command, Output},
};

use heddle_tests_harness::netns::{CLIENT_V4, CLIENT_V6, POD_V4, POD_V6, PodPair, connect, inside, serve};

const INBOUND: u16 = 4143;
const OUTBOUND: u16 = 4140;

/// A pod and a client, and `heddle-init` for the pod.
struct Net(PodPair);

impl std::ops::Deref for Net {
    type Target = PodPair;

    fn deref(&self) -> &PodPair {
        &self.0
    }
}

impl Net {
    fn new(name: &str) -> Option<Self> {
        PodPair::new(name).map(Self)
    }

    fn init(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle-init"));
        command.args(flags).arg("--netns").arg(self.pod_path());
        command.output().expect("heddle-init runs")
    }

    fn install(&self, flags: &[&str]) -> String {
        let output = self.init(flags);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    /// Runs `heddle-init validate` in the pod.
    fn validate(&self, flags: &[&str]) -> (Option<i32>, String) {
        let output = inside(&self.pod, None, || {
            Command::new(env!("CARGO_BIN_EXE_heddle-init"))
                .args(["validate", "--timeout=1s"])
                .args(flags)
                .output()
        });
        let output = output.expect("heddle-init runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }
}

/// The proxy's listeners in the pod, both families.
fn serve_proxy(net: &Net) {
    serve(
        &net.pod,
        "inbound",
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, INBOUND)),
    );
    serve(
        &net.pod,
        "outbound",
        format!("127.0.0.1:{OUTBOUND}").parse().expect("an address"),
    );
    serve(
        &net.pod,
        "outbound",
        format!("[::1]:{OUTBOUND}").parse().expect("an address"),
    );
}

fn said(text: &str) -> Result<String, ErrorKind> {
    Ok(text.to_owned())
}

#[test]
fn inbound_connections_reach_the_proxy_with_their_destination() {
    let Some(net) = Net::new("in") else { return };
    serve_proxy(&net);
    for address in [
        format!("{POD_V4}:8080"),
        format!("{POD_V4}:4190"),
        format!("[{POD_V6}]:4190"),
    ] {
        serve(&net.pod, "app", address.parse().expect("an address"));
    }
    let log = net.install(&["--inbound-ports-to-ignore", "4190,4191,5000-5010"]);
    assert!(log.contains("installed"), "{log}");

    let from_client = |address: String| connect(&net.client, None, &address);
    assert_eq!(
        from_client(format!("{POD_V4}:8080")),
        said("inbound 10.77.0.2:8080")
    );
    assert_eq!(
        from_client(format!("{POD_V4}:81")),
        said("inbound 10.77.0.2:81"),
        "nobody needs to listen there"
    );
    assert_eq!(
        from_client(format!("[{POD_V6}]:8080")),
        said("inbound [fd77::2]:8080")
    );
    assert_eq!(from_client(format!("{POD_V4}:4190")), said("app 10.77.0.2:4190"));
    assert_eq!(
        from_client(format!("[{POD_V6}]:4190")),
        said("app [fd77::2]:4190")
    );
    assert_eq!(
        from_client(format!("{POD_V4}:5005")),
        Err(ErrorKind::ConnectionRefused),
        "ignored, and nobody there"
    );
    assert_eq!(
        from_client(format!("{POD_V4}:{INBOUND}")),
        said("inbound 10.77.0.2:4143")
    );
}

#[test]
fn outbound_connections_reach_the_proxy_unless_they_are_its_own() {
    let Some(net) = Net::new("out") else { return };
    serve_proxy(&net);
    for address in [
        format!("{CLIENT_V4}:80"),
        format!("{CLIENT_V4}:4567"),
        format!("[{CLIENT_V6}]:80"),
    ] {
        serve(&net.client, "peer", address.parse().expect("an address"));
    }
    serve(&net.pod, "app", "0.0.0.0:8080".parse().expect("an address"));
    net.install(&["--outbound-ports-to-ignore", "4567-4568", "--proxy-uid", "2102"]);

    let from_pod = |uid, address: &str| connect(&net.pod, uid, address);
    assert_eq!(from_pod(None, "10.77.0.1:80"), said("outbound 10.77.0.1:80"));
    assert_eq!(
        from_pod(Some(1000), "10.77.0.1:80"),
        said("outbound 10.77.0.1:80")
    );
    assert_eq!(from_pod(None, "[fd77::1]:80"), said("outbound [fd77::1]:80"));
    assert_eq!(from_pod(Some(2102), "10.77.0.1:80"), said("peer none"));
    assert_eq!(from_pod(Some(2102), "[fd77::1]:80"), said("peer none"));
    assert_eq!(from_pod(None, "10.77.0.1:4567"), said("peer none"));
    // Over loopback, by whatever address, nothing is redirected.
    assert_eq!(from_pod(None, "127.0.0.1:8080"), said("app 127.0.0.1:8080"));
    assert_eq!(from_pod(None, "10.77.0.2:8080"), said("app 10.77.0.2:8080"));
    assert_eq!(from_pod(Some(2102), "10.77.0.2:8080"), said("app 10.77.0.2:8080"));
}

#[test]
fn subnets_and_chosen_ports() {
    let Some(net) = Net::new("sub") else { return };
    serve_proxy(&net);
    serve(
        &net.pod,
        "app",
        format!("{POD_V4}:8080").parse().expect("an address"),
    );
    serve(
        &net.pod,
        "app",
        format!("[{POD_V6}]:8080").parse().expect("an address"),
    );
    serve(
        &net.pod,
        "app",
        format!("{POD_V4}:9000").parse().expect("an address"),
    );

    net.install(&["--subnets-to-ignore", "10.77.0.1/32,fd99::/16"]);
    assert_eq!(
        connect(&net.client, None, "10.77.0.2:8080"),
        said("app 10.77.0.2:8080")
    );
    assert_eq!(
        connect(&net.client, None, "[fd77::2]:8080"),
        said("inbound [fd77::2]:8080")
    );
    net.install(&["--subnets-to-ignore", "fd77::1"]);
    assert_eq!(
        connect(&net.client, None, "[fd77::2]:8080"),
        said("app [fd77::2]:8080")
    );
    assert_eq!(
        connect(&net.client, None, "10.77.0.2:8080"),
        said("inbound 10.77.0.2:8080")
    );

    net.install(&["--ports-to-redirect", "8080", "--ipv6=false"]);
    assert_eq!(
        connect(&net.client, None, "10.77.0.2:8080"),
        said("inbound 10.77.0.2:8080")
    );
    assert_eq!(
        connect(&net.client, None, "10.77.0.2:9000"),
        said("app 10.77.0.2:9000")
    );
}

#[test]
fn what_is_installed_is_what_is_printed_and_running_again_changes_nothing() {
    let Some(net) = Net::new("same") else { return };
    let flags = [
        "--inbound-ports-to-ignore",
        "4190,4191,5000-5010",
        "--outbound-ports-to-ignore",
        "25",
        "--subnets-to-ignore",
        "10.0.0.0/8,192.168.1.7,fd00::/8",
        "--proxy-gid",
        "2102",
    ];
    net.install(&flags);
    let once = net.ruleset();
    net.install(&flags);
    assert_eq!(net.ruleset(), once, "running again replaces, and adds nothing");

    let simulated = Command::new(env!("CARGO_BIN_EXE_heddle-init"))
        .args(flags)
        .arg("--simulate")
        .output();
    let simulated = simulated.expect("heddle-init runs").stdout;
    let reference = Net::new("ref").expect("as above");
    let mut nft = Command::new("ip")
        .args(["netns", "exec", &reference.pod, "nft", "-f", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("nft runs");
    nft.stdin
        .take()
        .expect("piped")
        .write_all(&simulated)
        .expect("nft reads");
    assert!(
        nft.wait().expect("nft ends").success(),
        "nft refuses:\n{}",
        String::from_utf8_lossy(&simulated)
    );
    assert_eq!(once, reference.ruleset(), "our messages and nft's mean the same");

    net.install(&["--outgoing-proxy-port", "-1", "--ipv6=true"]);
    assert!(
        !net.ruleset().contains("hook output"),
        "replaced:\n{}",
        net.ruleset()
    );
}

#[test]
fn the_time_of_half_closed_connections_is_set() {
    const SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    let Some(net) = Net::new("wait") else { return };
    let setting =
        || inside(&net.pod, None, || std::fs::read_to_string(SETTING)).map(|text| text.trim().to_owned());
    net.install(&["--timeout-close-wait-secs", "47"]);
    assert_eq!(setting().ok().as_deref(), Some("47"));
    // Without the flag it stays what it is.
    net.install(&[]);
    assert_eq!(setting().ok().as_deref(), Some("47"));
}

#[test]
fn as_many_ports_as_are_allowed_fit_one_transaction() {
    let Some(net) = Net::new("many") else { return };
    let odd: Vec<String> = (1..512).step_by(2).map(|port| port.to_string()).collect();
    let odd = odd.join(",");
    net.install(&[
        "--inbound-ports-to-ignore",
        &odd,
        "--outbound-ports-to-ignore",
        &odd,
    ]);
    assert_eq!(net.ruleset().matches("ignore-port").count(), 1024);
}

#[test]
fn the_validator_tells_whether_connections_are_redirected() {
    let Some(net) = Net::new("val") else { return };
    // Somebody answers there, so that it is the redirection that decides and not whether a connection succeeds.
    serve(
        &net.client,
        "peer",
        format!("{CLIENT_V4}:20001").parse().expect("an address"),
    );
    let elsewhere = format!("--connect-addr={CLIENT_V4}:20001");
    let (code, text) = net.validate(&[&elsewhere]);
    assert_eq!(code, Some(95), "{text}");
    assert!(text.contains("not redirected to its proxy"), "{text}");
    let (code, text) = net.validate(&[]);
    assert_eq!(code, Some(95), "{text}");

    net.install(&["--timeout-close-wait-secs", "77"]);
    for flags in [
        &[][..],
        &[elsewhere.as_str()],
        &["--connect-addr=[fd00::1]:20001", "--listen-addr=[::]:4140"],
    ] {
        let (code, text) = net.validate(flags);
        assert_eq!(code, Some(0), "{flags:?}: {text}");
    }
    let setting = inside(&net.pod, None, || {
        std::fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait")
    });
    assert_eq!(setting.expect("the setting can be read").trim(), "77");
}

#[test]
fn without_the_capability_nothing_changes_and_the_error_says_what_is_missing() {
    let Some(net) = Net::new("cap") else { return };
    net.install(&["--incoming-proxy-port", "5143"]);
    let before = net.ruleset();
    let output = Command::new("ip")
        .args([
            "netns",
            "exec",
            &net.pod,
            "setpriv",
            "--bounding-set=-net_admin",
            "--inh-caps=-net_admin",
        ])
        .arg(env!("CARGO_BIN_EXE_heddle-init"))
        .output()
        .expect("setpriv runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("NET_ADMIN"), "{text}");
    assert_eq!(net.ruleset(), before);
}

#[test]
fn wrong_flags_end_with_2() {
    let code = |flags: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_heddle-init"))
            .args(flags)
            .output()
            .expect("heddle-init runs");
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    for flags in [
        &["--inbound-ports-to-ignore", "http"][..],
        &["--subnets-to-ignore", "10.0.0.0/40"],
        &["--no-such-flag"],
        &["--incoming-proxy-port", "70000"],
    ] {
        let (code, text) = code(flags);
        assert_eq!(code, Some(2), "{flags:?}: {text}");
    }
    let (code, text) = code(&["--proxy-uid", "0"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("root"), "{text}");
}
