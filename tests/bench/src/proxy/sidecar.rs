//! One proxy in a network namespace, as the injector would set it up.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::bail;

use crate::netns::Netns;

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
}

/// Redirects a namespace's traffic to its proxy, but for the ports of `ignored`.
pub(crate) fn redirect(netns: &Netns, init: &str, ignored: &str) -> anyhow::Result<()> {
    netns.run(&[
        init,
        "--incoming-proxy-port=4143",
        "--outgoing-proxy-port=4140",
        "--proxy-uid=2102",
        &format!("--inbound-ports-to-ignore=4190,4191,{ignored}"),
        &format!("--outbound-ports-to-ignore={ignored}"),
    ])?;
    Ok(())
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
        } = self;
        let mut command = netns.command("taskset");
        command
            .args([
                "-c",
                cpu,
                "setpriv",
                "--reuid=2102",
                "--regid=2102",
                "--clear-groups",
            ])
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
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let output = netns
            .command("curl")
            .args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "-m", "2"])
            .arg("http://127.0.0.1:4191/ready")
            .output()?;
        if output.stdout == b"200" {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!(
                "the proxy is not ready after 20 s: /ready answers {}",
                String::from_utf8_lossy(&output.stdout)
            );
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
}
