//! Network namespaces, one per pod, on a bridge in one more.

use std::{
    fs::File,
    future::Future,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::AsFd as _,
    process::Command,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    thread::JoinHandle,
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::{TcpListener, TcpStream};

/// A bridge, and the namespaces on it. Everything is gone when it is dropped.
pub(crate) struct Network {
    id: String,
    pods: AtomicU32,
}

/// A pod's namespace.
#[derive(Clone)]
pub(crate) struct Namespace {
    pub name: String,
    pub ip: Ipv4Addr,
    pub ip6: Ipv6Addr,
}

impl Network {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("hp{}x{}", std::process::id(), COUNT.fetch_add(1, Relaxed));
        ip(&["netns", "add", &format!("{id}-sw")]);
        let network = Self {
            id,
            pods: AtomicU32::new(0),
        };
        let switch = network.switch();
        ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"]);
        ip(&["-n", &switch, "link", "set", "br0", "up"]);
        network
    }

    fn switch(&self) -> String {
        format!("{}-sw", self.id)
    }

    /// A namespace with an address of its own; everything that is not on the bridge is routed to it, too.
    pub(crate) fn namespace(&self) -> Namespace {
        let number = self.pods.fetch_add(1, Relaxed) + 1;
        let name = format!("{}-{number}", self.id);
        let address = Ipv4Addr::new(10, 77, 0, u8::try_from(number).expect("few pods"));
        let (switch, port) = (self.switch(), format!("p{number}"));
        ip(&["netns", "add", &name]);
        ip(&["-n", &name, "link", "set", "lo", "up"]);
        ip(&[
            "-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", &port, "netns", &switch,
        ]);
        ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"]);
        ip(&[
            "-n",
            &name,
            "addr",
            "add",
            &format!("{address}/24"),
            "dev",
            "eth0",
        ]);
        let address6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, u16::try_from(number).expect("few pods"));
        let net6 = format!("{address6}/64");
        ip(&["-n", &name, "addr", "add", &net6, "dev", "eth0", "nodad"]);
        ip(&["-n", &name, "link", "set", "eth0", "up"]);
        ip(&["-n", &name, "route", "add", "default", "dev", "eth0"]);
        ip(&["-n", &name, "-6", "route", "add", "default", "dev", "eth0"]);
        Namespace {
            name,
            ip: address,
            ip6: address6,
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let pods = self.pods.load(Relaxed);
        for name in (1..=pods)
            .map(|number| format!("{}-{number}", self.id))
            .chain([self.switch()])
        {
            // One that is gone already is no failure of the test.
            let _ = Command::new("ip").args(["netns", "del", &name]).status();
        }
    }
}

impl Namespace {
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Has packets for an address sent to another pod, whose address it is not.
    pub(crate) fn route(&self, addr: IpAddr, via: &Namespace) {
        let (family, via) = match addr {
            IpAddr::V4(_) => ("-4", via.ip.to_string()),
            IpAddr::V6(_) => ("-6", via.ip6.to_string()),
        };
        let addr = addr.to_string();
        ip(&[
            family, "-n", &self.name, "route", "add", &addr, "via", &via, "dev", "eth0",
        ]);
    }

    /// Makes the kernel drop packets: a rule's matches, after those that it had before.
    pub(crate) fn drop_packets(&self, rule: &str) {
        for command in [
            "add table inet faults",
            "add chain inet faults in { type filter hook input priority 0; }",
            &format!("add rule inet faults in {rule} drop"),
        ] {
            self.nft(command);
        }
    }

    /// Lets all packets through again.
    pub(crate) fn heal(&self) {
        self.nft("delete table inet faults");
    }

    fn nft(&self, command: &str) {
        ip(&["netns", "exec", &self.name, "nft", command]);
    }

    /// Runs a thread inside.
    pub(crate) fn thread<T: Send + 'static>(
        &self,
        body: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let path = self.path();
        std::thread::spawn(move || {
            let file = File::open(path).expect("the namespace exists");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("root may enter it");
            body()
        })
    }

    /// Listens inside, in a thread of its own, and has `serve` do the rest; nothing is refused once this returns.
    pub(crate) fn listen<F>(
        &self,
        addr: impl Into<SocketAddr>,
        serve: impl FnOnce(TcpListener) -> F + Send + 'static,
    ) -> JoinHandle<()>
    where
        F: Future<Output = ()>,
    {
        let addr = addr.into();
        let (up, is_up) = std::sync::mpsc::sync_channel(1);
        let thread = self.thread(move || {
            // Dropping the runtime cuts all connections, as a crash would.
            runtime().block_on(async move {
                let listener = TcpListener::bind(addr).await.expect("the port is free");
                up.send(()).expect("the test waits for this");
                serve(listener).await;
            });
        });
        is_up.recv().expect("it listens");
        thread
    }

    /// An application inside, for as long as the test runs: `serve` has each connection, in a task of its own.
    pub(crate) fn serve<F>(&self, port: u16, serve: impl Fn(TcpStream) -> F + Send + 'static)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        self.serve_at((Ipv4Addr::UNSPECIFIED, port), serve);
    }

    /// As [`Namespace::serve`], at any address.
    pub(crate) fn serve_at<F>(
        &self,
        addr: impl Into<SocketAddr>,
        serve: impl Fn(TcpStream) -> F + Send + 'static,
    ) where
        F: Future<Output: Send> + Send + 'static,
    {
        self.listen(addr, |listener| async move {
            loop {
                if let Ok((tcp, _)) = listener.accept().await {
                    tokio::spawn(serve(tcp));
                }
            }
        });
    }

    /// Runs async code inside and waits for its result.
    pub(crate) fn block_on<T, F>(&self, body: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T>,
    {
        match self.thread(move || runtime().block_on(body())).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn ip(args: &[&str]) {
    let output = Command::new("ip")
        .args(args)
        .output()
        .expect("`ip` of iproute2 is installed");
    assert!(
        output.status.success(),
        "ip {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
