//! API servers, programs on them, and what writes to them.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode, ScopedCluster},
    command, crds, wait,
};
use kube::{
    Api, Client,
    api::{DeleteParams, DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use linkerd2_proxy_api::{
    destination::destination_client::DestinationClient,
    inbound::inbound_server_policies_client::InboundServerPoliciesClient,
    outbound::outbound_policies_client::OutboundPoliciesClient,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::Mutex,
};
use tonic::{Streaming, transport::Channel};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A running `heddle-control`, killed when dropped.
pub(crate) struct Program {
    child: Child,
    admin: SocketAddr,
    pub(crate) grpc: SocketAddr,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    pub(crate) async fn start(subcommand: &str, cluster: &Cluster) -> anyhow::Result<Self> {
        Self::start_with(subcommand, &cluster.kubeconfig_path(), &[]).await
    }

    pub(crate) async fn start_with(
        subcommand: &str,
        kubeconfig: &Path,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_heddle-control"));
        command.arg(subcommand);
        Self::launch(subcommand, command, kubeconfig, flags).await
    }

    /// The identity service; its program is built beside this one.
    pub(crate) async fn identity(kubeconfig: &Path, flags: &[&str]) -> anyhow::Result<Self> {
        let path = Path::new(env!("CARGO_BIN_EXE_heddle-control")).with_file_name("heddle-identity");
        anyhow::ensure!(
            path.exists(),
            "there is no {}: build it with `cargo build -p heddle-identity`, or run `cargo xtask test`",
            path.display()
        );
        Self::launch("identity", Command::new(path), kubeconfig, flags).await
    }

    async fn launch(
        name: &str,
        mut command: Command,
        kubeconfig: &Path,
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let (admin, grpc) = (free_addr()?, free_addr()?);
        let child = command
            .args(["--loopback-addr", &grpc.to_string()])
            .args(["--admin-addr", &admin.to_string()])
            .args(["--log-level", "info,heddle_control=debug"])
            .args(flags)
            .env("KUBECONFIG", kubeconfig)
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("failed to start {name}"))?;
        let program = Self { child, admin, grpc };
        wait::until_ok(format!("{name} to be ready"), LIMIT, || async {
            let reply = program.admin("/ready").await?;
            anyhow::ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        wait::until_ok(format!("{name} to listen"), LIMIT, || {
            tokio::net::TcpStream::connect(grpc)
        })
        .await?;
        Ok(program)
    }

    pub(crate) async fn admin(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    }

    /// Asks the program to end, and waits until it has: well before its clients would be cut off.
    pub(crate) async fn terminate(mut self) -> anyhow::Result<ExitStatus> {
        command::run_args("kill", ["-TERM".to_owned(), self.child.id().to_string()])?;
        let ended = wait::until("the program to end", Duration::from_secs(10), || {
            let state = self.child.try_wait();
            async move {
                match state {
                    Ok(Some(status)) => wait::Look::Done(status),
                    Ok(None) => wait::Look::NotYet("running".to_owned()),
                    Err(error) => wait::Look::Never(error.to_string()),
                }
            }
        });
        Ok(ended.await?)
    }

    /// A connection of the caller's own: it lives in the runtime of the test that makes it.
    pub(crate) fn channel(&self) -> Channel {
        let url = format!("http://{}", self.grpc);
        Channel::from_shared(url)
            .expect("a socket address makes a URL")
            .connect_lazy()
    }

    pub(crate) fn destination(&self) -> DestinationClient<Channel> {
        DestinationClient::new(self.channel())
    }

    pub(crate) fn inbound(&self) -> InboundServerPoliciesClient<Channel> {
        InboundServerPoliciesClient::new(self.channel())
    }

    pub(crate) fn outbound(&self) -> OutboundPoliciesClient<Channel> {
        OutboundPoliciesClient::new(self.channel())
    }
}

pub(crate) fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// An API server with the CRDs of ours and of the Gateway API, and both programs, for all tests that need nothing else.
pub(crate) struct World {
    // In this order they are dropped: the programs before what they talk to.
    pub(crate) policy: Program,
    pub(crate) destination: Program,
    pub(crate) cluster: ScopedCluster,
}

impl World {
    /// The one that a test beside this one has, or a new one. The last test that has it takes it down.
    pub(crate) async fn shared() -> anyhow::Result<Arc<Self>> {
        static SHARED: Mutex<Weak<World>> = Mutex::const_new(Weak::new());
        let mut shared = SHARED.lock().await;
        if let Some(world) = shared.upgrade() {
            return Ok(world);
        }
        let world = Arc::new(Self::up().await?);
        *shared = Arc::downgrade(&world);
        Ok(world)
    }

    async fn up() -> anyhow::Result<Self> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let name = format!("control-world{}", MADE.fetch_add(1, Ordering::Relaxed));
        let cluster = api_server(&name).await?;
        let writer = Writer(cluster.client().await?);
        let mut routes = crds::gateway_api_experimental()?;
        routes.retain(|crd| {
            ["HTTPRoute", "GRPCRoute", "TLSRoute", "TCPRoute"]
                .iter()
                .any(|kind| crd["spec"]["names"]["kind"] == *kind)
        });
        let (ours, gateway, mesh) = tokio::join!(
            policy_crds(&writer),
            crds::apply(&writer.0, &routes),
            writer.namespace("linkerd", json!({})),
        );
        ours.and(gateway).and(mesh)?;
        let kubeconfig = cluster.kubeconfig_path();
        let (policy, destination) = tokio::try_join!(
            Program::start("policy", &cluster),
            Program::start_with("destination", &kubeconfig, &["--enable-ipv6=true"]),
        )?;
        Ok(Self {
            policy,
            destination,
            cluster,
        })
    }
}

async fn api_server(name: &str) -> anyhow::Result<ScopedCluster> {
    ScopedCluster::up(ClusterOptions::new(
        format!("{name}-{}", std::process::id()),
        Mode::ApiServerOnly,
    ))
    .await
}

/// A cluster of the test's own, with namespace `shop` and nothing else.
pub(crate) async fn cluster(name: &str) -> anyhow::Result<(ScopedCluster, Writer)> {
    let cluster = api_server(name).await?;
    let writer = Writer(cluster.client().await?);
    writer.namespace("shop", json!({})).await?;
    Ok((cluster, writer))
}

pub(crate) async fn policy_crds(writer: &Writer) -> anyhow::Result<()> {
    let crds: Vec<Value> = heddle_k8s::crds()
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()?;
    heddle_tests_harness::crds::apply(&writer.0, &crds).await
}

/// Writes objects by server-side apply, and statuses besides.
pub(crate) struct Writer(pub(crate) Client);

impl Writer {
    pub(crate) fn api(&self, object: &Value) -> anyhow::Result<Api<DynamicObject>> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let (api_version, kind) = (
            text("/apiVersion").context("no apiVersion")?,
            text("/kind").context("no kind")?,
        );
        let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Ok(match text("/metadata/namespace") {
            Some(namespace) => Api::namespaced_with(self.0.clone(), namespace, &resource),
            None => Api::all_with(self.0.clone(), &resource),
        })
    }

    pub(crate) async fn apply(&self, object: Value) -> anyhow::Result<()> {
        self.applied(object).await.map(drop)
    }

    /// As [`Writer::apply`]; the object as it is then.
    pub(crate) async fn applied(&self, object: Value) -> anyhow::Result<DynamicObject> {
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .context("no name")?
            .to_owned();
        let params = PatchParams::apply("test").force();
        let api = self.api(&object)?;
        let live = api
            .patch(&name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("failed to apply {object}"))?;
        if object.get("status").is_some() && object["kind"] == "Pod" {
            api.patch_status(&name, &params, &Patch::Apply(&object))
                .await
                .context("failed to apply a pod's status")?;
        }
        Ok(live)
    }

    pub(crate) async fn delete(
        &self,
        api_version: &str,
        kind: &str,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<()> {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace, "name": name}});
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        self.api(&object)?
            .delete(name, &now)
            .await
            .with_context(|| format!("failed to delete {kind} {namespace}/{name}"))?;
        Ok(())
    }

    /// A namespace, with the account that the API server insists on for pods: nothing else makes it.
    pub(crate) async fn namespace(&self, name: &str, annotations: Value) -> anyhow::Result<()> {
        let metadata = json!({"name": name, "annotations": annotations});
        self.apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}))
            .await?;
        let account = json!({"namespace": name, "name": "default"});
        self.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}))
            .await
    }

    pub(crate) async fn pod(&self, name: &str, ip: &str) -> anyhow::Result<()> {
        self.apply(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "labels": {"app": "web", "linkerd.io/control-plane-ns": "linkerd"}},
            "spec": {"containers": [
                {"name": "app", "image": "local/none:1", "ports": [{"name": "http", "containerPort": 8080}]},
                {"name": "linkerd-proxy", "image": "local/none:1"},
            ]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        }))
        .await
    }

    pub(crate) async fn slice(&self, pods: &[(&str, &str)]) -> anyhow::Result<()> {
        let endpoints: Vec<Value> = pods
            .iter()
            .map(|(name, ip)| json!({"addresses": [ip], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "namespace": "shop", "name": name}}))
            .collect();
        self.apply(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }))
        .await
    }
}

pub(crate) async fn next<T>(stream: &mut Streaming<T>) -> anyhow::Result<T> {
    let message = tokio::time::timeout(LIMIT, stream.message())
        .await
        .context("no message in time")?;
    message?.context("the stream has ended")
}

pub(crate) async fn web_service(writer: &Writer) -> anyhow::Result<String> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    let live = writer.applied(service).await?;
    Ok(live.data["spec"]["clusterIP"]
        .as_str()
        .context("no cluster IP")?
        .to_owned())
}

pub(crate) fn policy(kind: &str, version: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("policy.linkerd.io/{version}"),
        "kind": kind,
        "metadata": {"namespace": "shop", "name": name},
        "spec": spec,
    })
}
