//! A pod and a client, each in a network namespace of its own, joined by a veth pair: for programs that change a pod's
//! network from outside. Needs root, `ip` and `nft`. Each test makes its own pair.

use std::{
    fs::File,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    path::PathBuf,
    process::Command,
    thread,
    time::Duration,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space, set_thread_uid};
use socket2::SockRef;

use crate::host;

const DEADLINE: Duration = Duration::from_secs(10);

/// A pod and a client that reaches it. The pod's traffic to everywhere goes to the client. Dropped, they are gone.
#[derive(Debug)]
pub struct PodPair {
    /// The pod's namespace.
    pub pod: String,
    /// The client's.
    pub client: String,
}

/// The pod's addresses, and the client's.
pub const POD_V4: &str = "10.77.0.2";
pub const CLIENT_V4: &str = "10.77.0.1";
pub const POD_V6: &str = "fd77::2";
pub const CLIENT_V6: &str = "fd77::1";

impl PodPair {
    /// None where namespaces cannot be made: said aloud, and a failure where CI counts on it.
    pub fn new(name: &str) -> Option<Self> {
        if !host::is_root() || host::find_program("ip").is_none() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI requires the netns tier: root and iproute2"
            );
            eprintln!("SKIPPED {name}: needs root and iproute2");
            return None;
        }
        let id = std::process::id();
        let pair = Self {
            pod: format!("hi-{name}-{id}-p"),
            client: format!("hi-{name}-{id}-c"),
        };
        let (pod, client) = (pair.pod.as_str(), pair.client.as_str());
        for namespace in [pod, client] {
            ip(&["netns", "add", namespace]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
        }
        ip(&[
            "-n", pod, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", client,
        ]);
        for (namespace, v4, v6) in [(pod, POD_V4, POD_V6), (client, CLIENT_V4, CLIENT_V6)] {
            let (v4, v6) = (format!("{v4}/24"), format!("{v6}/64"));
            ip(&["-n", namespace, "addr", "add", &v4, "dev", "eth0"]);
            ip(&["-n", namespace, "addr", "add", &v6, "dev", "eth0", "nodad"]);
            ip(&["-n", namespace, "link", "set", "eth0", "up"]);
        }
        for gateway in [CLIENT_V4, CLIENT_V6] {
            ip(&["-n", pod, "route", "add", "default", "via", gateway]);
        }
        Some(pair)
    }

    /// The pod's namespace as a file.
    pub fn pod_path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.pod)
    }

    /// What is installed in the pod, in nft's words.
    pub fn ruleset(&self) -> String {
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

impl Drop for PodPair {
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
pub fn inside<T: Send>(namespace: &str, uid: Option<u32>, work: impl FnOnce() -> T + Send) -> T {
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
pub fn serve(namespace: &str, name: &'static str, address: SocketAddr) {
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
pub fn connect(namespace: &str, uid: Option<u32>, address: &str) -> Result<String, ErrorKind> {
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
