//! One proxy in a network namespace, as the injector would set it up.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::netns::Netns;

/// An instruction counter makes a start fifty times as long.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// An address of a control-plane service, and the identity that it proves.
type Service<'a> = (&'a str, &'a str);

/// What a proxy is told by its environment.
pub(crate) struct Sidecar<'a> {
    /// Where the proxy may write.
    pub(crate) dir: &'a Path,
    pub(crate) identity: &'a str,
    pub(crate) ips: &'a str,
    pub(crate) workload: &'a str,
    pub(crate) anchors: &'a str,
    pub(crate) token: PathBuf,
    pub(crate) destination: Service<'a>,
    pub(crate) policy: Service<'a>,
    pub(crate) identity_service: Service<'a>,
    /// A program that runs the proxy, with its arguments.
    pub(crate) wrapper: &'a [OsString],
}

/// Redirects a namespace's traffic to its proxy, but for ports of the pod and of others that are ignored.
pub(crate) fn redirect(netns: &Netns, init: &str, inbound: &str, outbound: &str) -> anyhow::Result<()> {
    netns.run(&[
        init,
        "--incoming-proxy-port=4143",
        "--outgoing-proxy-port=4140",
        "--proxy-uid=2102",
        &format!("--inbound-ports-to-ignore=4190,4191,{inbound}"),
        &format!("--outbound-ports-to-ignore={outbound}"),
    ])?;
    Ok(())
}

/// The same for ztunnel: plaintext that comes in by one port, HBONE by another, which is not redirected.
pub(crate) fn redirect_ztunnel(netns: &Netns, init: &str, ignored: &str) -> anyhow::Result<()> {
    netns.run(&[
        init,
        "--incoming-proxy-port=15006",
        "--outgoing-proxy-port=15001",
        "--proxy-uid=2102",
        &format!("--inbound-ports-to-ignore=15008,15020,15021,{ignored}"),
        &format!("--outbound-ports-to-ignore=15008,{ignored}"),
    ])?;
    Ok(())
}

/// ztunnel as a sidecar, with certificates of its own making.
pub(crate) fn ztunnel(netns: &Netns, binary: &Path, config: &Path, cpu: &str) -> Command {
    let mut command = as_proxy(netns, cpu);
    command
        .arg(binary)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .envs([
            ("RUST_LOG", "warn"),
            ("PROXY_MODE", "dedicated"),
            ("FAKE_CA", "true"),
            ("XDS_ADDRESS", ""),
            ("ZTUNNEL_WORKER_THREADS", "1"),
            // `wait_ready` asks here.
            ("READINESS_ADDR", "0.0.0.0:15021"),
        ])
        .env("LOCAL_XDS_PATH", config);
    command
}

/// A command on one CPU and as the proxies' user, still without its program.
fn as_proxy(netns: &Netns, cpu: &str) -> Command {
    let mut command = netns.command("taskset");
    command.args([
        "-c",
        cpu,
        "setpriv",
        "--reuid=2102",
        "--regid=2102",
        "--clear-groups",
    ]);
    command
}

impl Sidecar<'_> {
    /// The proxy as a command, on one CPU and as the proxy's user.
    pub(crate) fn command(&self, netns: &Netns, proxy: &Path, cpu: &str) -> Command {
        let Self {
            dir,
            identity,
            ips,
            workload,
            anchors,
            token,
            destination,
            policy,
            identity_service,
            wrapper,
        } = self;
        let mut command = as_proxy(netns, cpu);
        command
            .args(*wrapper)
            .arg(proxy)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs([
                ("LINKERD2_PROXY_LOG", "warn"),
                ("LINKERD2_PROXY_CORES", "1"),
                ("LINKERD2_PROXY_DESTINATION_SVC_ADDR", destination.0),
                ("LINKERD2_PROXY_DESTINATION_SVC_NAME", destination.1),
                ("LINKERD2_PROXY_POLICY_SVC_ADDR", policy.0),
                ("LINKERD2_PROXY_POLICY_SVC_NAME", policy.1),
                ("LINKERD2_PROXY_POLICY_WORKLOAD", workload),
                ("LINKERD2_PROXY_IDENTITY_SVC_ADDR", identity_service.0),
                ("LINKERD2_PROXY_IDENTITY_SVC_NAME", identity_service.1),
                ("LINKERD2_PROXY_IDENTITY_LOCAL_NAME", identity),
                ("LINKERD2_PROXY_IDENTITY_TRUST_ANCHORS", anchors),
                ("LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR", "127.0.0.1:4140"),
                ("LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "0.0.0.0:4143"),
                ("LINKERD2_PROXY_CONTROL_LISTEN_ADDR", "0.0.0.0:4190"),
                ("LINKERD2_PROXY_ADMIN_LISTEN_ADDR", "0.0.0.0:4191"),
                ("LINKERD2_PROXY_INBOUND_IPS", ips),
                ("LINKERD2_PROXY_INBOUND_DEFAULT_POLICY", "all-unauthenticated"),
                ("LINKERD2_PROXY_POLICY_CLUSTER_NETWORKS", "10.0.0.0/8"),
                ("LINKERD2_PROXY_DESTINATION_PROFILE_NETWORKS", "10.0.0.0/8"),
                ("LINKERD2_PROXY_DESTINATION_CONTEXT", workload),
            ])
            .env("LINKERD2_PROXY_IDENTITY_DIR", dir)
            .env("LINKERD2_PROXY_IDENTITY_TOKEN_FILE", token);
        command
    }
}

/// Waits until the proxy whose admin server is on this namespace's loopback has its certificate.
pub(crate) fn wait_ready(netns: &Netns) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_LIMIT;
    loop {
        let output = netns
            .command("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "2"])
            // Linkerd's port, then ztunnel's: one of them answers.
            .args(["http://127.0.0.1:4191/ready", "-o", "/dev/null"])
            .arg("http://127.0.0.1:15021/healthz/ready")
            .output()?;
        if output.stdout.windows(3).any(|code| code == b"200") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "the proxy is not ready after {READY_LIMIT:?}: /ready answers {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
