//! The rules in a real kernel: a pod and a client, each in a network namespace of its own, joined by a veth pair.
//!
//! Needs root, `ip` and `nft`. Each test makes its own namespaces and removes them.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Command, Output},
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid};
use socket2::SockRef;

const INBOUND: u16 = 4143;
const OUTBOUND: u16 = 4140;
const DEADLINE: Duration = Duration::from_secs(10);

/// A pod and a client that reaches it. Dropped, they are gone.
struct Net {
    pod: String,
    client: String,
}

const POD_V4: &str = "10.77.0.2";
const CLIENT_V4: &str = "10.77.0.1";
const POD_V6: &str = "fd77::2";
const CLIENT_V6: &str = "fd77::1";

impl Net {
    /// None where namespaces cannot be made: said aloud, and a failure where CI counts on it.
    fn new(name: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() || Command::new("ip").arg("-V").output().is_err() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI requires the netns tier: root and iproute2"
            );
            eprintln!("SKIPPED {name}: needs root and iproute2");
            return None;
        }
        let id = std::process::id();
        let net = Self {
            pod: format!("hi-{name}-{id}-p"),
            client: format!("hi-{name}-{id}-c"),
        };
        for namespace in [&net.pod, &net.client] {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        ip(&[
            "-n",
            &net.pod,
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            &net.client,
        ]);
        for (namespace, v4, v6) in [(&net.pod, POD_V4, POD_V6), (&net.client, CLIENT_V4, CLIENT_V6)] {
            ip(&["-n", namespace, "addr", "add", &format!("{v4}/24"), "dev", "eth0"]);
            ip(&[
                "-n",
                namespace,
                "addr",
                "add",
                &format!("{v6}/64"),
                "dev",
                "eth0",
                "nodad",
            ]);
            ip(&["-n", namespace, "link", "set", "eth0", "up"]);
        }
        Some(net)
    }

    fn init(&self, flags: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle-init"));
        command
            .args(flags)
            .args(["--netns", &format!("/run/netns/{}", self.pod)]);
        command.output().expect("heddle-init runs")
    }

    fn install(&self, flags: &[&str]) -> String {
        let output = self.init(flags);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{text}");
        text
    }

    /// What is installed in the pod, in nft's words.
    fn ruleset(&self) -> String {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.pod, "nft", "list", "ruleset"])
            .output();
        let output = output.expect("nft runs");
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).expect("nft prints UTF-8")
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for namespace in [&self.pod, &self.client] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

fn ip(args: &[&str]) {
    let output = Command::new("ip").args(args).output().expect("ip runs");
    assert!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs `work` on a thread in the namespace: a network namespace is a property of threads.
fn inside<T: Send>(namespace: &str, uid: Option<u32>, work: impl FnOnce() -> T + Send) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).expect("the namespace exists");
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter");
            if let Some(uid) = uid {
                // A user, too, is a property of threads.
                set_thread_uid(rustix::process::Uid::from_raw(uid)).expect("root may become anyone");
            }
            work()
        });
        thread.join().expect("the thread's own assertions hold")
    })
}

/// Accepts connections for as long as the test runs and answers each with `name` and its original destination.
fn serve(namespace: &str, name: &'static str, address: SocketAddr) {
    inside(namespace, None, || {
        let listener =
            TcpListener::bind(address).unwrap_or_else(|error| panic!("{name} at {address}: {error}"));
        // The listener stays in the namespace it was made in, whatever thread accepts.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let socket = SockRef::from(&stream);
                let v6 = stream.local_addr().is_ok_and(|address| match address.ip() {
                    IpAddr::V4(_) => false,
                    IpAddr::V6(ip) => ip.to_ipv4_mapped().is_none(),
                });
                let original = if v6 {
                    socket.original_dst_v6()
                } else {
                    socket.original_dst_v4()
                };
                let original = match original {
                    Ok(address) => address
                        .as_socket()
                        .map_or_else(|| "?".to_owned(), |address| address.to_string()),
                    // Without connection tracking there is no entry to ask for.
                    Err(_) => "none".to_owned(),
                };
                let _ = write!(stream, "{name} {original}");
            }
        });
    });
}

/// Connects and returns what the server says, or the error's kind.
fn connect(namespace: &str, uid: Option<u32>, address: &str) -> Result<String, ErrorKind> {
    let address: SocketAddr = address.parse().expect("an address");
    inside(namespace, uid, || {
        let mut stream = TcpStream::connect_timeout(&address, DEADLINE).map_err(|error| error.kind())?;
        stream
            .set_read_timeout(Some(DEADLINE))
            .expect("a timeout above zero");
        let mut text = String::new();
        stream.read_to_string(&mut text).map_err(|error| error.kind())?;
        Ok(text)
    })
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
