//! A pair of sidecars under the scripted control plane: ours, or a peer that speaks the same API.

use std::{
    ffi::OsString,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, SystemTime},
};

use anyhow::Context as _;
use rcgen::{CertificateParams, KeyPair};

use super::{
    arms::{
        APP_HTTP, APP_PLAIN, Arm, CLIENT_IDENTITY, DIRECT_BYTES, DIRECT_HTTP, SERVER_IDENTITY, start_apps,
    },
    client::{self, Drained},
    sidecar::{self, Sidecar},
};
use crate::netns::{Netns, Pair, Process};

const CONTROL: &str = "127.0.0.1:8085";

/// What a pair is started with.
#[derive(Clone, Debug)]
pub(crate) struct MeshOptions {
    arm: Arm,
    /// Distinguishes the pair's names from those of others.
    name: String,
    proxy: PathBuf,
    /// A program that runs the proxies, with its arguments.
    wrapper: Vec<OsString>,
    /// How often a second endpoint comes and goes, per second.
    flaps: u32,
}

impl MeshOptions {
    pub(crate) fn new(arm: Arm, proxy: PathBuf) -> Self {
        Self {
            arm,
            name: arm.to_string(),
            proxy,
            wrapper: Vec::new(),
            flaps: 0,
        }
    }

    #[must_use]
    pub(crate) fn named(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    #[must_use]
    pub(crate) fn wrapped(mut self, wrapper: Vec<OsString>) -> Self {
        self.wrapper = wrapper;
        self
    }

    #[must_use]
    pub(crate) fn flapping(mut self, per_second: u32) -> Self {
        self.flaps = per_second;
        self
    }
}

/// Fields drop in order: processes before their namespaces.
pub(crate) struct Mesh {
    /// The client's sidecar, then the server's.
    pub(crate) proxies: Vec<Process>,
    _others: Vec<Process>,
    pub(crate) netns: Pair,
    dir: PathBuf,
    options: MeshOptions,
}

/// A side's name, identity and address.
type Side = (&'static str, &'static str, &'static str);

const CLIENT: Side = ("client", CLIENT_IDENTITY, Pair::CLIENT_IP);
const SERVER: Side = ("server", SERVER_IDENTITY, Pair::SERVER_IP);

impl Mesh {
    pub(crate) fn start(dir: &Path, init: &Path, mut options: MeshOptions) -> anyhow::Result<Self> {
        let init = init.canonicalize()?;
        let init = init.to_str().context("paths are UTF-8")?;
        options.proxy = options.proxy.canonicalize()?;
        let name = &options.name;
        let netns = Pair::new(
            &name
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .collect::<String>(),
        )?;
        let mut others = start_apps(&netns, dir, name)?;
        let mut proxies = Vec::new();
        let direct = format!("{DIRECT_HTTP},{DIRECT_BYTES}");
        for (netns, side) in [(&netns.client, CLIENT), (&netns.server, SERVER)] {
            if options.arm == Arm::Ztunnel {
                sidecar::redirect_ztunnel(netns, init, &direct)?;
            } else {
                sidecar::redirect(netns, init, &format!("{APP_PLAIN},{direct}"), &direct)?;
                others.push(control(netns, dir, options.flaps)?);
                write_identity(&dir.join(format!("{name}-{}", side.0)), side.1)?;
            }
            let mut command = proxy_command(dir, netns, &options, side)?;
            proxies.push(Process::start(format!("{name} ({})", side.0), &mut command)?);
        }
        Ok(Self {
            proxies,
            _others: others,
            netns,
            dir: dir.to_owned(),
            options,
        })
    }

    pub(crate) fn pids(&self) -> Vec<u32> {
        self.proxies.iter().map(Process::pid).collect()
    }

    pub(crate) fn wait_ready(&self) -> anyhow::Result<()> {
        for netns in [&self.netns.client, &self.netns.server] {
            sidecar::wait_ready(netns)?;
        }
        Ok(())
    }

    /// Stops the client's sidecar and starts it anew, some times: seconds until each was ready. What `ip`, `taskset` and
    /// `setpriv` take until they become the proxy is in them.
    pub(crate) fn restart(mut self, times: usize) -> anyhow::Result<Vec<f64>> {
        let mut took = Vec::new();
        for _ in 0..times {
            self.proxies.remove(0);
            let (netns, admin) = (&self.netns.client, "127.0.0.1:4191");
            let ready = client::start(netns, &["ready", "--address", admin])?;
            let began = SystemTime::now();
            let mut command = proxy_command(&self.dir, netns, &self.options, CLIENT)?;
            self.proxies
                .insert(0, Process::start("a restarted proxy", &mut command)?);
            let at: f64 = client::finish(ready)?;
            took.push(at - began.duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64());
        }
        Ok(took)
    }

    /// Tells the client's sidecar to end while its clients are busy, and waits until both have.
    pub(crate) fn drain_under_load(
        mut self,
        address: SocketAddr,
        connections: usize,
    ) -> anyhow::Result<Drained> {
        let (address, connections) = (address.to_string(), connections.to_string());
        let args = ["drain", "--address", &address, "--connections", &connections];
        let load = client::start(&self.netns.client, &args)?;
        // Long enough that all connections are busy.
        std::thread::park_timeout(Duration::from_secs(1));
        // Sends SIGTERM, and waits.
        drop(self.proxies.remove(0));
        client::finish(load)
    }
}

fn proxy_command(dir: &Path, netns: &Netns, options: &MeshOptions, side: Side) -> anyhow::Result<Command> {
    let (name, identity, ips) = side;
    if options.arm == Arm::Ztunnel {
        let config = ztunnel_config(dir, ips)?;
        return Ok(sidecar::ztunnel(netns, &options.proxy, &config, "1"));
    }
    let anchors = std::fs::read_to_string(dir.join("ca.pem"))?;
    let sidecar = Sidecar {
        dir: &dir.join(format!("{}-{name}", options.name)),
        identity,
        ips,
        workload: r#"{"ns":"bench","pod":"bench"}"#,
        anchors: &anchors,
        token: dir.join("token"),
        destination: (CONTROL, SERVER_IDENTITY),
        policy: (CONTROL, SERVER_IDENTITY),
        identity_service: (CONTROL, SERVER_IDENTITY),
        wrapper: &options.wrapper,
    };
    Ok(sidecar.command(netns, &options.proxy, "1"))
}

fn control(netns: &Netns, dir: &Path, flaps: u32) -> anyhow::Result<Process> {
    let mut command = netns.command("taskset");
    command
        .args(["-c", "0"])
        .arg(std::env::current_exe()?)
        .args(["control", "--listen", CONTROL])
        .arg("--ca-cert")
        .arg(dir.join("ca.pem"))
        .arg("--ca-key")
        .arg(dir.join("ca.key"))
        .args(["--target", &format!("{}:{APP_HTTP}", Pair::SERVER_IP)])
        .args(["--target-identity", SERVER_IDENTITY])
        .args(["--plain-port", &APP_PLAIN.to_string()])
        .args(["--flaps", &flaps.to_string()]);
    Process::start("control plane", &mut command)
}

/// What Linkerd's own start of its proxy leaves for it: a key, and a request for a certificate. Ours makes its own.
fn write_identity(dir: &Path, identity: &str) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let key = KeyPair::generate()?;
    let request = CertificateParams::new([identity.to_owned()])?.serialize_request(&key)?;
    std::fs::write(dir.join("key.p8"), key.serialize_der())?;
    std::fs::write(dir.join("csr.der"), request.der())?;
    Ok(())
}

/// ztunnel's world, when no control plane tells it: both pods, with HBONE between them.
fn ztunnel_config(dir: &Path, own_ip: &str) -> anyhow::Result<PathBuf> {
    let workload = |name: &str, ip: &str| {
        serde_json::json!({
            "uid": format!("bench//Pod/bench/{name}"),
            "name": name,
            "namespace": "bench",
            "serviceAccount": name,
            "workloadIps": [ip],
            "protocol": "HBONE",
            "node": format!("node-{name}"),
            "network": "",
        })
    };
    let config = serde_json::json!({
        "workloads": [workload("client", Pair::CLIENT_IP), workload("web", Pair::SERVER_IP)],
        "services": [],
        "policies": [],
    });
    let path = dir.join(format!("ztunnel-{own_ip}.yaml"));
    std::fs::write(&path, serde_yaml::to_string(&config)?)?;
    Ok(path)
}
