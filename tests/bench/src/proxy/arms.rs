//! What is measured side by side, and the namespaces, applications and sidecars that it takes.
//!
//! Meshed arms have a pair of namespaces each, because redirection is a namespace's; the others share one that has the
//! same redirection and whose ports it leaves alone. In each pair nginx and the generator run on CPU 0, both sidecars on
//! CPU 1.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::{
    mesh::{Mesh, MeshOptions},
    peers, sidecar, usage,
};
use crate::netns::{Netns, Pair, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arm {
    Direct,
    Null,
    Heddle,
    /// The same once more: how far two equal arms differ.
    HeddleAgain,
    HaproxyH1,
    HaproxyH2,
    Nginx,
    Linkerd,
    Ztunnel,
}

impl Arm {
    pub(crate) const ALL: [Self; 9] = [
        Self::Direct,
        Self::Null,
        Self::Heddle,
        Self::HeddleAgain,
        Self::HaproxyH1,
        Self::HaproxyH2,
        Self::Nginx,
        Self::Linkerd,
        Self::Ztunnel,
    ];

    fn is_meshed(self) -> bool {
        matches!(
            self,
            Self::Heddle | Self::HeddleAgain | Self::Linkerd | Self::Ztunnel
        )
    }
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Null => "null",
            Self::Heddle => "heddle",
            Self::HeddleAgain => "heddle-again",
            Self::HaproxyH1 => "haproxy-h1",
            Self::HaproxyH2 => "haproxy-h2",
            Self::Nginx => "nginx",
            Self::Linkerd => "linkerd2-proxy",
            Self::Ztunnel => "ztunnel",
        })
    }
}

/// What is asked of an arm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// HTTP/1 to nginx, over mutual TLS.
    Http,
    /// Bytes, or gRPC, to an application of ours, over mutual TLS.
    Bytes,
    /// Bytes through the client's sidecar alone, without TLS.
    Plain,
}

/// The application's ports: those that go through meshed sidecars, and those that do not.
pub(super) const APP_HTTP: u16 = 8080;
pub(super) const APP_BYTES: u16 = 8082;
/// The server's sidecar does not see it; the client's does.
pub(super) const APP_PLAIN: u16 = 8083;
/// What nothing is redirected from: where `direct` and the other sidecars' upstreams go.
pub(super) const DIRECT_HTTP: u16 = 8081;
pub(super) const DIRECT_BYTES: u16 = 8084;
pub(super) const CLIENT_IDENTITY: &str = "client.bench.serviceaccount.identity.linkerd.cluster.local";
pub(super) const SERVER_IDENTITY: &str = "web.bench.serviceaccount.identity.linkerd.cluster.local";

/// The programs that are measured.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub(crate) proxy: PathBuf,
    pub(crate) init: PathBuf,
    pub(crate) floor: PathBuf,
    pub(crate) linkerd: Option<PathBuf>,
    pub(crate) ztunnel: Option<PathBuf>,
}

impl Programs {
    /// What a meshed arm's sidecars are; none when it is not given.
    fn of(&self, arm: Arm) -> Option<&PathBuf> {
        match arm {
            Arm::Linkerd => self.linkerd.as_ref(),
            Arm::Ztunnel => self.ztunnel.as_ref(),
            _ => Some(&self.proxy),
        }
    }
}

/// Everything that runs during the benchmark. Fields drop in order: processes before their namespaces.
pub(crate) struct Arms {
    meshes: BTreeMap<Arm, Mesh>,
    peers: BTreeMap<Arm, Vec<Process>>,
    _apps: Vec<Process>,
    shared: Pair,
    pub(crate) programs: Programs,
    files: tempfile::TempDir,
}

impl Arms {
    /// Starts those of `arms` that can be had; `only` those are then in [`Arms::all`].
    pub(crate) fn start(programs: Programs, arms: &[Arm]) -> anyhow::Result<Self> {
        for binary in [&programs.proxy, &programs.init, &programs.floor] {
            if !binary.exists() {
                bail!(
                    "{} is missing: `cargo xtask bench proxy` builds it",
                    binary.display()
                );
            }
        }
        let files = tempfile::tempdir()?;
        let dir = files.path();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
        write_certificates(dir)?;
        let shared = Pair::new("s")?;
        let init = programs.init.to_str().context("paths are UTF-8")?;
        for netns in [&shared.client, &shared.server] {
            sidecar::redirect(netns, init, &peers::ports(), &peers::ports())?;
        }
        let mut started = Self {
            meshes: BTreeMap::new(),
            peers: BTreeMap::new(),
            _apps: start_apps(&shared, dir, "shared")?,
            shared,
            programs,
            files,
        };
        for &arm in arms {
            started.start_arm(arm)?;
        }
        for mesh in started.meshes.values() {
            mesh.wait_ready()?;
        }
        started.check_alive()?;
        Ok(started)
    }

    fn start_arm(&mut self, arm: Arm) -> anyhow::Result<()> {
        let dir = self.files.path();
        let started = match arm {
            Arm::Direct => Vec::new(),
            Arm::Null => peers::null(&self.shared, dir, &self.programs.floor)?,
            Arm::HaproxyH1 => peers::haproxy(&self.shared, dir, false)?,
            Arm::HaproxyH2 => peers::haproxy(&self.shared, dir, true)?,
            Arm::Nginx => peers::nginx(&self.shared, dir)?,
            Arm::Heddle | Arm::HeddleAgain | Arm::Linkerd | Arm::Ztunnel => {
                if self.programs.of(arm).is_none() {
                    let name = arm.to_string().replace('-', "_").to_uppercase();
                    eprintln!("{arm} is left out: PEER_{name}_BIN is not set");
                    return Ok(());
                }
                let options = self.mesh_options(arm, &arm.to_string());
                let mesh = Mesh::start(dir, &self.programs.init, options)?;
                self.meshes.insert(arm, mesh);
                return Ok(());
            }
        };
        self.peers.insert(arm, started);
        Ok(())
    }

    /// How a meshed arm's sidecars are started.
    pub(crate) fn mesh_options(&self, arm: Arm, name: &str) -> MeshOptions {
        let proxy = self.programs.of(arm).unwrap_or(&self.programs.proxy);
        MeshOptions::new(arm, proxy.clone()).named(name)
    }

    /// The arms that run, of `wanted`.
    pub(crate) fn of(&self, wanted: &[Arm]) -> Vec<Arm> {
        let runs = |arm: &Arm| self.meshes.contains_key(arm) || self.peers.contains_key(arm);
        wanted.iter().copied().filter(runs).collect()
    }

    /// Another meshed pair, beside the others.
    pub(crate) fn another(&self, options: MeshOptions) -> anyhow::Result<Mesh> {
        let mesh = Mesh::start(self.files.path(), &self.programs.init, options)?;
        mesh.wait_ready()?;
        Ok(mesh)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.files.path()
    }

    /// Where an arm's clients run.
    pub(crate) fn netns(&self, arm: Arm) -> &Netns {
        match self.meshes.get(&arm) {
            Some(mesh) => &mesh.netns.client,
            None => &self.shared.client,
        }
    }

    /// Where they find it; none when it does not go that way.
    pub(crate) fn address(arm: Arm, way: Way) -> Option<SocketAddr> {
        let (ip, port) = match (arm, way) {
            (Arm::Ztunnel, Way::Plain) => return None,
            (arm, Way::Http) if arm.is_meshed() => (Pair::SERVER_IP, APP_HTTP),
            (arm, Way::Bytes) if arm.is_meshed() => (Pair::SERVER_IP, APP_BYTES),
            (arm, Way::Plain) if arm.is_meshed() => (Pair::SERVER_IP, APP_PLAIN),
            (Arm::Direct, Way::Http) => (Pair::SERVER_IP, DIRECT_HTTP),
            (Arm::Direct, Way::Bytes | Way::Plain) => (Pair::SERVER_IP, DIRECT_BYTES),
            (arm, way) => ("127.0.0.1", peers::port(arm, way)?),
        };
        let ip = ip.parse().expect("the constants above are addresses");
        Some(SocketAddr::new(ip, port))
    }

    /// An arm's sidecars: the client's, then the server's.
    pub(crate) fn pids(&self, arm: Arm) -> Vec<u32> {
        match self.meshes.get(&arm) {
            Some(mesh) => mesh.pids(),
            None => {
                let peers = self.peers.get(&arm).map(Vec::as_slice).unwrap_or_default();
                peers.iter().map(Process::pid).collect()
            }
        }
    }

    /// CPU seconds that an arm's two sidecars have used so far, together.
    pub(crate) fn cpu_seconds(&self, arm: Arm) -> anyhow::Result<f64> {
        self.pids(arm).into_iter().map(usage::cpu_seconds).sum()
    }

    /// An arm that died half way has measured nothing.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        let meshed = self.meshes.values_mut().flat_map(|mesh| &mut mesh.proxies);
        for process in meshed.chain(self.peers.values_mut().flatten()) {
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended during the benchmark: {status}", process.name);
            }
        }
        Ok(())
    }
}

/// nginx and an application of ours, on a pair's server side.
pub(super) fn start_apps(pair: &Pair, dir: &Path, name: &str) -> anyhow::Result<Vec<Process>> {
    let body = "x".repeat(100);
    let temp = dir.display();
    let config = format!(
        "daemon off; master_process off; pid {temp}/{name}.pid; error_log stderr crit; worker_rlimit_nofile 20000;\n\
         events {{ worker_connections 16384; }}\n\
         http {{ access_log off; keepalive_requests 1000000000; keepalive_timeout 3600s;\n\
         client_body_temp_path {temp}/b; proxy_temp_path {temp}/p;\n\
         fastcgi_temp_path {temp}/f; uwsgi_temp_path {temp}/u; scgi_temp_path {temp}/s;\n\
         server {{ listen 0.0.0.0:{APP_HTTP}; listen 0.0.0.0:{DIRECT_HTTP}; location / {{ return 200 \"{body}\"; }} }} }}\n"
    );
    let path = dir.join(format!("{name}.conf"));
    std::fs::write(&path, config)?;
    let mut nginx = pair.server.command("taskset");
    nginx.args(["-c", "0", "nginx", "-c"]).arg(&path);
    let mut app = pair.server.command("taskset");
    app.args(["-c", "0"]).arg(std::env::current_exe()?).arg("app");
    for port in [APP_BYTES, APP_PLAIN, DIRECT_BYTES] {
        app.args(["--listen", &format!("0.0.0.0:{port}")]);
    }
    Ok(vec![
        Process::start("nginx", &mut nginx)?,
        Process::start("the application", &mut app)?,
    ])
}

/// One CA, and a P-256 leaf for each side; meshed proxies ask the scripted control plane for theirs.
pub(crate) fn write_certificates(dir: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "identity.linkerd.cluster.local");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca.pem"), ca.pem())?;
    std::fs::write(dir.join("ca.key"), ca.key().serialize_pem())?;
    std::fs::write(dir.join("token"), "bench")?;
    for (file, identity) in [("client.pem", CLIENT_IDENTITY), ("server.pem", SERVER_IDENTITY)] {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([identity.to_owned()])?.signed_by(&key, &ca)?;
        std::fs::write(dir.join(file), leaf.pem() + &key.serialize_pem())?;
    }
    Ok(())
}
