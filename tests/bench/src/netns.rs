//! Two network namespaces joined by a veth pair, made for one benchmark and removed with it.

use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, bail};

/// Two namespaces that see each other as [`Pair::CLIENT_IP`] and [`Pair::SERVER_IP`].
pub(crate) struct Pair {
    pub(crate) client: Netns,
    pub(crate) server: Netns,
}

/// One namespace; its processes must be gone before it is dropped.
pub(crate) struct Netns {
    name: String,
}

impl Pair {
    pub(crate) const CLIENT_IP: &str = "10.77.0.1";
    pub(crate) const SERVER_IP: &str = "10.77.0.2";

    /// Makes the namespaces, named after this process and `name` so that no two meet.
    pub(crate) fn new(name: &str) -> anyhow::Result<Self> {
        let id = std::process::id();
        let pair = Self {
            client: Netns::new(format!("hb{id}{name}c"))?,
            server: Netns::new(format!("hb{id}{name}s"))?,
        };
        let (client, server) = (&pair.client.name, &pair.server.name);
        ip(&[
            "-n", client, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", server,
        ])?;
        for (name, address) in [(client, Self::CLIENT_IP), (server, Self::SERVER_IP)] {
            ip(&["-n", name, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
            ip(&["-n", name, "link", "set", "eth0", "up"])?;
        }
        Ok(pair)
    }
}

/// A bridge on the host that both namespaces of a pair see; removed with its links.
pub(crate) struct Uplink {
    name: String,
}

impl Uplink {
    /// The host's address on it.
    pub(crate) const HOST_IP: &str = "10.78.0.1";

    /// Joins both namespaces of a pair to the host.
    pub(crate) fn new(pair: &Pair) -> anyhow::Result<Self> {
        let uplink = Self {
            name: format!("hb{}u", std::process::id()),
        };
        let bridge = uplink.name.as_str();
        ip(&["link", "add", bridge, "type", "bridge"])?;
        ip(&["addr", "add", &format!("{}/24", Self::HOST_IP), "dev", bridge])?;
        ip(&["link", "set", bridge, "up"])?;
        for (at, netns) in [&pair.client, &pair.server].into_iter().enumerate() {
            let link = format!("{bridge}{at}");
            ip(&[
                "link",
                "add",
                &link,
                "type",
                "veth",
                "peer",
                "name",
                "up0",
                "netns",
                &netns.name,
            ])?;
            ip(&["link", "set", &link, "master", bridge, "up"])?;
            let addr = format!("10.78.0.{}/24", 2 + at);
            ip(&["-n", &netns.name, "addr", "add", &addr, "dev", "up0"])?;
            ip(&["-n", &netns.name, "link", "set", "up0", "up"])?;
        }
        Ok(uplink)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", &self.name]) {
            eprintln!("bridge {} stays behind: {error:#}", self.name);
        }
    }
}

impl Netns {
    fn new(name: String) -> anyhow::Result<Self> {
        ip(&["netns", "add", &name])?;
        let netns = Self { name };
        ip(&["-n", &netns.name, "link", "set", "lo", "up"])?;
        // bbr paces its sends, which distorts what is measured on a veth pair. Nothing is lost there, so reno serves as
        // well as cubic, and every kernel lets a namespace choose it. Many short runs need many ports, and closed
        // connections must not keep them for a minute: to find the last free ones takes longer than a handshake.
        for setting in [
            "net.ipv4.tcp_congestion_control=reno",
            "net.ipv4.ip_local_port_range=10240 65000",
            "net.ipv4.tcp_max_tw_buckets=1024",
        ] {
            netns.run(&["sysctl", "-qw", setting])?;
        }
        Ok(netns)
    }

    /// A command that will run inside the namespace.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.name, program])
            .stdin(Stdio::null());
        command
    }

    /// Runs a program to its end.
    pub(crate) fn run(&self, args: &[&str]) -> anyhow::Result<Output> {
        let (program, rest) = args.split_first().context("a command has a program")?;
        finish(self.command(program).args(rest), args)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if let Err(error) = ip(&["netns", "delete", &self.name]) {
            eprintln!("network namespace {} stays behind: {error:#}", self.name);
        }
    }
}

/// A child process that is ended with SIGTERM, then waited for, when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    pub(crate) name: String,
}

impl Process {
    pub(crate) fn start(name: impl Into<String>, command: &mut Command) -> anyhow::Result<Self> {
        let name = name.into();
        let child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        Ok(Self { child, name })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if let Err(error) = self.child.wait() {
            eprintln!("{} cannot be waited for: {error}", self.name);
        }
    }
}

fn ip(args: &[&str]) -> anyhow::Result<Output> {
    finish(Command::new("ip").args(args), args)
}

fn finish(command: &mut Command, shown: &[&str]) -> anyhow::Result<Output> {
    let output = command
        .output()
        .with_context(|| format!("cannot run `{}`", shown.join(" ")))?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}",
            shown.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(output)
}
