//! The processes of all arms: application, sidecars, scripted control planes.

use std::{fmt, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, process::Stdio};

use anyhow::{Context as _, bail};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};

use super::{
    sidecar::{self, Sidecar},
    usage,
};
use crate::netns::{Pair, Process};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Arm {
    Direct,
    Heddle,
    HaproxyH1,
    HaproxyH2,
}

impl Arm {
    pub(crate) const ALL: [Self; 4] = [Self::Direct, Self::Heddle, Self::HaproxyH1, Self::HaproxyH2];
}

impl fmt::Display for Arm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Direct => "direct",
            Self::Heddle => "heddle",
            Self::HaproxyH1 => "haproxy-h1",
            Self::HaproxyH2 => "haproxy-h2",
        })
    }
}

/// Everything that runs during the benchmark. Fields drop in order: processes before their namespaces.
pub(crate) struct Arms {
    heddle: Vec<Process>,
    haproxy_h1: Vec<Process>,
    haproxy_h2: Vec<Process>,
    others: Vec<Process>,
    pub(crate) netns: Pair,
    _files: tempfile::TempDir,
}

/// The application listens here; the redirect takes 8080 and leaves 8081 alone.
const APP_MESHED: u16 = 8080;
const APP_DIRECT: u16 = 8081;
const HAPROXY_H1: (u16, u16) = (9001, 9441);
const HAPROXY_H2: (u16, u16) = (9002, 9442);
const CONTROL: &str = "127.0.0.1:8085";
const CLIENT_IDENTITY: &str = "client.bench.serviceaccount.identity.linkerd.cluster.local";
const SERVER_IDENTITY: &str = "web.bench.serviceaccount.identity.linkerd.cluster.local";

impl Arms {
    pub(crate) fn start(proxy: &Path, init: &Path) -> anyhow::Result<Self> {
        for binary in [proxy, init] {
            if !binary.exists() {
                bail!(
                    "{} is missing: build it with `cargo build --profile image -p heddle-proxy -p heddle-proxy-init`",
                    binary.display()
                );
            }
        }
        let files = tempfile::tempdir()?;
        let dir = files.path();
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755))?;
        let netns = Pair::new()?;
        write_certificates(dir)?;
        let mut arms = Self {
            heddle: Vec::new(),
            haproxy_h1: Vec::new(),
            haproxy_h2: Vec::new(),
            others: Vec::new(),
            netns,
            _files: files,
        };
        let dir = arms._files.path().to_owned();
        arms.start_app(&dir)?;
        arms.start_haproxy(&dir)?;
        arms.start_heddle(&dir, proxy, init)?;
        arms.check_alive()?;
        Ok(arms)
    }

    /// Where the load generator, in the client's namespace, finds an arm.
    pub(crate) fn address(arm: Arm) -> SocketAddr {
        let (ip, port) = match arm {
            Arm::Direct => (Pair::SERVER_IP, APP_DIRECT),
            Arm::Heddle => (Pair::SERVER_IP, APP_MESHED),
            Arm::HaproxyH1 => ("127.0.0.1", HAPROXY_H1.0),
            Arm::HaproxyH2 => ("127.0.0.1", HAPROXY_H2.0),
        };
        SocketAddr::new(ip.parse().expect("the constants above are addresses"), port)
    }

    fn sidecars(&self, arm: Arm) -> &[Process] {
        match arm {
            Arm::Direct => &[],
            Arm::Heddle => &self.heddle,
            Arm::HaproxyH1 => &self.haproxy_h1,
            Arm::HaproxyH2 => &self.haproxy_h2,
        }
    }

    /// CPU seconds that an arm's two sidecars have used so far, together.
    pub(crate) fn cpu_seconds(&self, arm: Arm) -> anyhow::Result<f64> {
        self.sidecars(arm)
            .iter()
            .map(|process| usage::cpu_seconds(process.pid()))
            .sum()
    }

    /// Memory that an arm's two sidecars hold, together.
    pub(crate) fn resident_bytes(&self, arm: Arm) -> anyhow::Result<f64> {
        self.sidecars(arm)
            .iter()
            .map(|process| usage::resident_bytes(process.pid()))
            .sum()
    }

    /// An arm that died half way has measured nothing.
    pub(crate) fn check_alive(&mut self) -> anyhow::Result<()> {
        let all = [
            &mut self.heddle,
            &mut self.haproxy_h1,
            &mut self.haproxy_h2,
            &mut self.others,
        ];
        for process in all.into_iter().flatten() {
            if let Some(status) = process.child.try_wait()? {
                bail!("{} ended during the benchmark: {status}", process.name);
            }
        }
        Ok(())
    }

    fn start_app(&mut self, dir: &Path) -> anyhow::Result<()> {
        let body = "x".repeat(100);
        let temp = dir.display();
        let config = format!(
            "daemon off; master_process off; pid {temp}/nginx.pid; error_log stderr crit; worker_rlimit_nofile 20000;\n\
             events {{ worker_connections 8192; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {temp}/b; proxy_temp_path {temp}/p;\n\
             fastcgi_temp_path {temp}/f; uwsgi_temp_path {temp}/u; scgi_temp_path {temp}/s;\n\
             server {{ listen 0.0.0.0:{APP_MESHED}; listen 0.0.0.0:{APP_DIRECT}; location / {{ return 200 \"{body}\"; }} }} }}\n"
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config)?;
        let mut command = self.netns.server.command("taskset");
        command.args(["-c", "0", "nginx", "-c"]).arg(&path);
        self.others.push(Process::start("nginx", &mut command)?);
        Ok(())
    }

    fn start_haproxy(&mut self, dir: &Path) -> anyhow::Result<()> {
        for (h2, (inner, outer)) in [(false, HAPROXY_H1), (true, HAPROXY_H2)] {
            let alpn = if h2 { "h2" } else { "http/1.1" };
            let tls = format!(
                "ca-file {0}/ca.pem alpn {alpn} ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256 verify required",
                dir.display()
            );
            let common = "global\n  maxconn 4096\n  nbthread 1\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 60s\n  timeout server 60s\n  http-reuse always\n";
            let client = format!(
                "{common}frontend in\n  bind 127.0.0.1:{inner}\n  default_backend out\nbackend out\n  server peer {}:{outer} ssl crt {}/client.pem sni str({SERVER_IDENTITY}) verifyhost {SERVER_IDENTITY} {tls}\n",
                Pair::SERVER_IP,
                dir.display(),
            );
            let server = format!(
                "{common}frontend in\n  bind {}:{outer} ssl crt {}/server.pem {tls}\n  default_backend out\nbackend out\n  server app 127.0.0.1:{APP_DIRECT}\n",
                Pair::SERVER_IP,
                dir.display(),
            );
            let mut pair = Vec::new();
            for (netns, side, config) in [
                (&self.netns.client, "client", client),
                (&self.netns.server, "server", server),
            ] {
                let path = dir.join(format!("haproxy-{alpn}-{side}.cfg").replace('/', "-"));
                std::fs::write(&path, config)?;
                let mut command = netns.command("taskset");
                command
                    .args(["-c", "1", "haproxy", "-db", "-f"])
                    .arg(&path)
                    .stdout(Stdio::null());
                pair.push(Process::start(format!("haproxy ({alpn}, {side})"), &mut command)?);
            }
            if h2 {
                self.haproxy_h2 = pair
            } else {
                self.haproxy_h1 = pair
            }
        }
        Ok(())
    }

    fn start_heddle(&mut self, dir: &Path, proxy: &Path, init: &Path) -> anyhow::Result<()> {
        let (proxy, init) = (proxy.canonicalize()?, init.canonicalize()?);
        let init = init.to_str().context("paths are UTF-8")?;
        let direct = format!("{APP_DIRECT},{},{}", HAPROXY_H1.1, HAPROXY_H2.1);
        let own = std::env::current_exe()?;
        std::fs::write(dir.join("token"), "bench")?;
        let anchors = std::fs::read_to_string(dir.join("ca.pem"))?;
        for (netns, side, identity, ip) in [
            (&self.netns.client, "client", CLIENT_IDENTITY, Pair::CLIENT_IP),
            (&self.netns.server, "server", SERVER_IDENTITY, Pair::SERVER_IP),
        ] {
            sidecar::redirect(netns, init, &direct)?;
            let mut control = netns.command("taskset");
            control
                .args(["-c", "0"])
                .arg(&own)
                .args(["control", "--listen", CONTROL]);
            control
                .arg("--ca-cert")
                .arg(dir.join("ca.pem"))
                .arg("--ca-key")
                .arg(dir.join("ca.key"));
            control.args([
                "--target",
                &format!("{}:{APP_MESHED}", Pair::SERVER_IP),
                "--target-identity",
                SERVER_IDENTITY,
            ]);
            self.others
                .push(Process::start(format!("control plane ({side})"), &mut control)?);

            let sidecar = Sidecar {
                dir,
                identity,
                ips: ip,
                workload: r#"{"ns":"bench","pod":"bench"}"#,
                anchors: &anchors,
                token: dir.join("token"),
                destination: (CONTROL, SERVER_IDENTITY),
                policy: (CONTROL, SERVER_IDENTITY),
                identity_service: (CONTROL, SERVER_IDENTITY),
            };
            let mut command = sidecar.command(netns, &proxy, "1");
            self.heddle
                .push(Process::start(format!("heddle-proxy ({side})"), &mut command)?);
        }
        for netns in [&self.netns.client, &self.netns.server] {
            sidecar::wait_ready(netns)?;
        }
        Ok(())
    }
}

/// One CA, and for haproxy a P-256 leaf for each side; Heddle's proxies ask the scripted control plane for theirs.
fn write_certificates(dir: &Path) -> anyhow::Result<()> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "identity.linkerd.cluster.local");
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    std::fs::write(dir.join("ca.pem"), ca.pem())?;
    std::fs::write(dir.join("ca.key"), ca.key().serialize_pem())?;
    for (file, identity) in [("client.pem", CLIENT_IDENTITY), ("server.pem", SERVER_IDENTITY)] {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([identity.to_owned()])?.signed_by(&key, &ca)?;
        std::fs::write(dir.join(file), leaf.pem() + &key.serialize_pem())?;
    }
    Ok(())
}
