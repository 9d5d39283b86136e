//! Bringing a cluster's processes to life, in the order in which they need one another.

use std::fs;
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::{Node, ServiceAccount};
use kube::api::Api;

use super::control_plane::ControlPlane;
use super::process::Daemon;
use super::record::Record;
use super::{Cluster, Mode, blocking, bootstrap, cgroup, ctr, network, node, pki, sysctl};
use crate::progress::Step;
use crate::tools::Tools;
use crate::wait::{self, Look};
use crate::{command, image};

/// Longest wait for the API server. It takes about four seconds on an idle machine, and much more beside a build.
const API_READY_LIMIT: Duration = Duration::from_secs(180);

/// Longest wait for the node, which pulls nothing: seconds on an idle machine.
const NODE_READY_LIMIT: Duration = Duration::from_secs(180);

impl Cluster {
    /// What must exist before the first process starts.
    pub(super) fn prepare(&self) -> Result<()> {
        let (layout, slot) = (&self.layout, self.record.slot);
        let full = self.record.mode == Mode::Full;
        let node = full.then(|| (layout.name(), slot.node()));
        let mut server_ips = vec![Ipv4Addr::LOCALHOST, slot.kubernetes_service()];
        if full {
            sysctl::remember(layout.clusters());
            network::ensure(layout, slot)?;
            cgroup::ensure(layout)?;
            server_ips.push(slot.node());
        }
        let names = pki::Names {
            server_ips: &server_ips,
            node,
            cluster_domain: &self.record.cluster_domain,
        };
        pki::ensure(layout, &names)?;
        pki::write_kubeconfigs(layout, &self.server_url(), node.map(|(name, _)| name))?;
        fs::create_dir_all(layout.at("log"))
            .with_context(|| format!("failed to make {}", layout.at("log").display()))
    }

    pub(super) async fn start_api(&self, tools: &Tools, step: &Step) -> Result<()> {
        let control_plane = self.control_plane(tools);
        let daemons = vec![control_plane.etcd(), control_plane.apiserver()?];
        self.start(&daemons).await?;
        step.detail("waiting for /readyz");
        let client = self.client().await?;
        self.wait_for("the API server", API_READY_LIMIT, &daemons, || {
            let client = client.clone();
            async move {
                let request = http_get("/readyz");
                client
                    .request_text(request)
                    .await
                    .map(drop)
                    .map_err(|error| anyhow!(error))
            }
        })
        .await
    }

    pub(super) async fn start_node(&self, tools: &Tools, step: &Step) -> Result<()> {
        let control_plane = self.control_plane(tools);
        let node = self.node(tools);
        let controllers = vec![
            control_plane.controller_manager(),
            control_plane.scheduler(),
            node.containerd()?,
        ];
        self.start(&controllers).await?;
        let client = self.client().await?;
        bootstrap::apply(&client, self.record.slot).await?;
        step.detail("waiting for containerd");
        let layout = self.layout.clone();
        self.wait_for("containerd", NODE_READY_LIMIT, &controllers, || {
            let layout = layout.clone();
            blocking(move || command::run(ctr(&layout)?.arg("version")).map(drop))
        })
        .await?;
        self.load_pause_image().await?;
        let mut daemons = vec![node.kubelet()?, node.kube_proxy(), node.coredns()?];
        self.start(&daemons).await?;
        daemons.extend(controllers);
        step.detail("waiting for the node");
        let nodes: Api<Node> = Api::all(client.clone());
        self.wait_for("the node to be Ready", NODE_READY_LIMIT, &daemons, || {
            node_ready(nodes.clone(), self.name())
        })
        .await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        self.wait_for(
            "the default service account",
            NODE_READY_LIMIT,
            &daemons,
            || async {
                accounts
                    .get("default")
                    .await
                    .map(drop)
                    .map_err(|error| anyhow!(error))
            },
        )
        .await?;
        step.detail("waiting for DNS");
        let ready = format!("{}:8181", self.record.slot.node());
        self.wait_for("the DNS server", NODE_READY_LIMIT, &daemons, || {
            dns_ready(ready.clone())
        })
        .await
    }

    async fn start(&self, daemons: &[Daemon]) -> Result<()> {
        let (layout, daemons) = (self.layout.clone(), daemons.to_vec());
        blocking(move || daemons.iter().try_for_each(|daemon| daemon.ensure(&layout))).await
    }

    /// Waits for `check`, but no longer than the processes that must make it true live.
    async fn wait_for<F, Fut>(
        &self,
        what: &str,
        limit: Duration,
        daemons: &[Daemon],
        mut check: F,
    ) -> Result<()>
    where
        F: FnMut() -> Fut,
        Fut: Future<Output = Result<()>>,
    {
        let waited = wait::until(what, limit, || {
            let check = check();
            async move {
                let Err(error) = check.await else {
                    return Look::Done(());
                };
                match daemons.iter().try_for_each(|daemon| daemon.check(&self.layout)) {
                    Err(dead) => Look::Never(format!("{dead:#}")),
                    Ok(()) => Look::NotYet(format!("{error:#}")),
                }
            }
        });
        waited.await.map_err(|error| {
            let logs = daemons
                .iter()
                .map(|daemon| format!("\n{}:\n{}", daemon.name, daemon.log_tail(&self.layout)));
            let logs: String = if error.impossible {
                String::new()
            } else {
                logs.collect()
            };
            anyhow!("{error}{logs}")
        })
    }

    async fn load_pause_image(&self) -> Result<()> {
        let layout = self.layout.clone();
        let listed = blocking(move || {
            command::run(ctr(&layout)?.args([
                "images",
                "list",
                "-q",
                &format!("name=={}", image::PAUSE_IMAGE),
            ]))
        });
        if listed.await?.trim().is_empty() {
            let tar = blocking(image::pause_tar).await?;
            self.load_image(&tar).await?;
        }
        Ok(())
    }

    fn control_plane<'a>(&'a self, tools: &'a Tools) -> ControlPlane<'a> {
        let Record {
            mode,
            slot,
            ports,
            cluster_domain,
        } = &self.record;
        let with_node = *mode == Mode::Full;
        ControlPlane {
            layout: &self.layout,
            tools,
            slot: *slot,
            ports: *ports,
            cluster_domain,
            with_node,
        }
    }

    fn node<'a>(&'a self, tools: &'a Tools) -> node::Node<'a> {
        let Record {
            slot, cluster_domain, ..
        } = &self.record;
        node::Node {
            layout: &self.layout,
            tools,
            slot: *slot,
            cluster_domain,
        }
    }
}

async fn node_ready(nodes: Api<Node>, name: &str) -> Result<()> {
    let node = nodes.get(name).await?;
    let conditions = node
        .status
        .and_then(|status| status.conditions)
        .unwrap_or_default();
    let ready = conditions
        .into_iter()
        .find(|condition| condition.type_ == "Ready")
        .context("the node has no Ready condition")?;
    if ready.status != "True" {
        bail!("the node is not ready: {}", ready.message.unwrap_or_default());
    }
    Ok(())
}

/// The DNS server's own readiness page says 200 once it has seen all Services.
async fn dns_ready(address: String) -> Result<()> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(&address)
        .await
        .context("the DNS server does not listen yet")?;
    stream.write_all(b"GET /ready HTTP/1.0\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    if answer.ends_with(b" 200") {
        Ok(())
    } else {
        bail!(
            "the DNS server is not ready: {}",
            String::from_utf8_lossy(&answer)
        )
    }
}

fn http_get(path: &str) -> http::Request<Vec<u8>> {
    http::Request::get(path)
        .body(Vec::new())
        .expect("a constant path makes a valid request")
}
