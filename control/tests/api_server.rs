//! The real program against a real API server: what clients are told follows what is written to the cluster.
//!
//! etcd and an API server are enough: pods, slices and policies are written by hand, as controllers would write them.

#[path = "api_server/faults.rs"]
mod faults;
#[path = "api_server/gate.rs"]
mod gate;
#[path = "api_server/status.rs"]
mod status;

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode, ScopedCluster},
    wait,
};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use linkerd2_proxy_api::{
    destination::{
        DestinationProfile, GetDestination, Update, destination_client::DestinationClient, protocol_hint,
        update,
    },
    inbound::{PortSpec, Server, inbound_server_policies_client::InboundServerPoliciesClient},
    outbound::{
        OutboundPolicy, TrafficSpec, outbound_policies_client::OutboundPoliciesClient, proxy_protocol,
        traffic_spec,
    },
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tonic::{Code, Streaming, transport::Channel};

const LIMIT: Duration = Duration::from_secs(60);

/// A running `heddle-control`, killed when dropped.
struct Program {
    child: Child,
    admin: SocketAddr,
    grpc: SocketAddr,
    channel: Channel,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    async fn start(subcommand: &str, cluster: &Cluster) -> anyhow::Result<Self> {
        Self::start_with(subcommand, &cluster.kubeconfig_path()).await
    }

    async fn start_with(subcommand: &str, kubeconfig: &std::path::Path) -> anyhow::Result<Self> {
        let (admin, grpc) = (free_addr()?, free_addr()?);
        let child = Command::new(env!("CARGO_BIN_EXE_heddle-control"))
            .args([
                subcommand,
                "--loopback-addr",
                &grpc.to_string(),
                "--admin-addr",
                &admin.to_string(),
            ])
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .args(["--log-level", "info,heddle_control=debug"])
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start heddle-control")?;
        let channel = Channel::from_shared(format!("http://{grpc}"))?.connect_lazy();
        let program = Self {
            child,
            admin,
            grpc,
            channel,
        };
        wait::until_ok(format!("{subcommand} to be ready"), LIMIT, || async {
            let reply = program.admin("/ready").await?;
            anyhow::ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        wait::until_ok(format!("{subcommand} to listen"), LIMIT, || {
            tokio::net::TcpStream::connect(grpc)
        })
        .await?;
        Ok(program)
    }

    async fn admin(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes())
            .await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    }

    /// Asks the program to end, and waits until it has: well before its clients would be cut off.
    async fn terminate(mut self) -> anyhow::Result<std::process::ExitStatus> {
        heddle_tests_harness::command::run_args("kill", ["-TERM".to_owned(), self.child.id().to_string()])?;
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

    fn destination(&self) -> DestinationClient<Channel> {
        DestinationClient::new(self.channel.clone())
    }

    fn inbound(&self) -> InboundServerPoliciesClient<Channel> {
        InboundServerPoliciesClient::new(self.channel.clone())
    }

    fn outbound(&self) -> OutboundPoliciesClient<Channel> {
        OutboundPoliciesClient::new(self.channel.clone())
    }
}

fn free_addr() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// Writes objects by server-side apply, and statuses besides.
struct Writer(Client);

impl Writer {
    fn api(&self, object: &Value) -> anyhow::Result<Api<DynamicObject>> {
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

    async fn apply(&self, object: Value) -> anyhow::Result<()> {
        let name = object
            .pointer("/metadata/name")
            .and_then(Value::as_str)
            .context("no name")?
            .to_owned();
        let params = PatchParams::apply("test").force();
        let api = self.api(&object)?;
        api.patch(&name, &params, &Patch::Apply(&object))
            .await
            .with_context(|| format!("failed to apply {object}"))?;
        if object.get("status").is_some() && object["kind"] == "Pod" {
            api.patch_status(&name, &params, &Patch::Apply(&object))
                .await
                .context("failed to apply a pod's status")?;
        }
        Ok(())
    }

    async fn delete(&self, api_version: &str, kind: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"namespace": namespace, "name": name}});
        let now = kube::api::DeleteParams {
            grace_period_seconds: Some(0),
            ..kube::api::DeleteParams::default()
        };
        self.api(&object)?.delete(name, &now).await?;
        Ok(())
    }

    async fn pod(&self, name: &str, ip: &str) -> anyhow::Result<()> {
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

    async fn slice(&self, pods: &[(&str, &str)]) -> anyhow::Result<()> {
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

async fn next<T>(stream: &mut Streaming<T>) -> anyhow::Result<T> {
    let message = tokio::time::timeout(LIMIT, stream.message())
        .await
        .context("no message in time")?;
    message?.context("the stream has ended")
}

fn kind(update: Update) -> anyhow::Result<update::Update> {
    update.update.context("an update without a kind")
}

/// The identities of the endpoints that an update adds.
fn added(update: Update) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let update::Update::Add(set) = kind(update)? else {
        bail!("not an addition")
    };
    let mut all = Vec::new();
    for one in set.addrs {
        let addr = one.addr.context("no address")?;
        let ip = std::net::IpAddr::try_from(addr.ip.context("no IP")?)?;
        let identity = one
            .tls_identity
            .and_then(|tls| tls.server_name)
            .map(|name| name.name);
        all.push((format!("{ip}:{}", addr.port), identity));
    }
    Ok(all)
}

async fn cluster(name: &str) -> anyhow::Result<(ScopedCluster, Writer)> {
    let cluster = ScopedCluster::up(ClusterOptions::new(
        format!("{name}-{}", std::process::id()),
        Mode::ApiServerOnly,
    ))
    .await?;
    let writer = Writer(cluster.client().await?);
    writer
        .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}))
        .await?;
    // Nothing else makes the account that the API server insists on for pods.
    writer.apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": "shop", "name": "default"}})).await?;
    Ok((cluster, writer))
}

async fn web_service(writer: &Writer) -> anyhow::Result<String> {
    let service = json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": "shop", "name": "web"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
    });
    writer.apply(service.clone()).await?;
    let live = writer.api(&service)?.get("web").await?;
    Ok(live.data["spec"]["clusterIP"]
        .as_str()
        .context("no cluster IP")?
        .to_owned())
}

async fn policy_crds(writer: &Writer) -> anyhow::Result<()> {
    let crds: Vec<Value> = heddle_k8s::crds()
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<_, _>>()?;
    heddle_tests_harness::crds::apply(&writer.0, &crds).await
}

fn policy(kind: &str, version: &str, name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": format!("policy.linkerd.io/{version}"),
        "kind": kind,
        "metadata": {"namespace": "shop", "name": name},
        "spec": spec,
    })
}

const IDENTITY: &str = "default.shop.serviceaccount.identity.linkerd.cluster.local";

#[tokio::test]
async fn endpoints_and_profiles_follow_the_cluster() -> anyhow::Result<()> {
    // Without any CRD: the kinds that are missing do not keep the service from starting.
    let (cluster, writer) = cluster("control-dst").await?;
    let program = Program::start("destination", &cluster).await?;
    let mut client = program.destination();
    let get = |path: &str| GetDestination {
        scheme: "k8s".into(),
        path: path.into(),
        context_token: r#"{"ns":"shop","nodeName":"n"}"#.into(),
    };

    let missing = client
        .get(get("web.shop.svc.cluster.local:80"))
        .await
        .expect_err("no such service yet");
    assert_eq!(missing.code(), Code::NotFound);
    for bad in ["10.0.0.1:80", "example.com:80", "web.shop"] {
        assert_eq!(
            client.get(get(bad)).await.expect_err(bad).code(),
            Code::InvalidArgument,
            "{bad}"
        );
    }

    let cluster_ip = web_service(&writer).await?;
    let mut endpoints = wait::until_ok("the service", LIMIT, || {
        let mut client = client.clone();
        async move { client.get(get("web.shop.svc.cluster.local:80")).await }
    })
    .await?
    .into_inner();
    let first = kind(next(&mut endpoints).await?)?;
    assert!(
        matches!(&first, update::Update::NoEndpoints(none) if none.exists),
        "told at once: {first:?}"
    );

    writer.pod("web-0", "10.1.0.1").await?;
    writer.slice(&[("web-0", "10.1.0.1")]).await?;
    assert_eq!(
        added(next(&mut endpoints).await?)?,
        [("10.1.0.1:8080".to_owned(), Some(IDENTITY.to_owned()))]
    );
    writer.pod("web-1", "10.1.0.2").await?;
    writer
        .slice(&[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")])
        .await?;
    assert_eq!(
        added(next(&mut endpoints).await?)?,
        [("10.1.0.2:8080".to_owned(), Some(IDENTITY.to_owned()))],
        "only what is new"
    );
    writer.slice(&[("web-1", "10.1.0.2")]).await?;
    let gone = kind(next(&mut endpoints).await?)?;
    assert!(
        matches!(&gone, update::Update::Remove(set) if set.addrs.len() == 1),
        "{gone:?}"
    );

    // A kind that comes later is found, and reaches streams that are open.
    policy_crds(&writer).await?;
    let opaque = json!({"podSelector": {}, "port": "http", "proxyProtocol": "opaque"});
    writer.apply(policy("Server", "v1beta3", "web", opaque)).await?;
    let update::Update::Add(set) = kind(next(&mut endpoints).await?)? else {
        bail!("not an addition")
    };
    let hint = set.addrs[0].protocol_hint.and_then(|hint| hint.protocol);
    assert!(
        matches!(hint, Some(protocol_hint::Protocol::Opaque(_))),
        "{hint:?}"
    );

    let mut profile = client
        .get_profile(get(&format!("{cluster_ip}:80")))
        .await?
        .into_inner();
    let DestinationProfile {
        fully_qualified_name,
        opaque_protocol,
        ..
    } = next(&mut profile).await?;
    assert_eq!(
        (fully_qualified_name.as_str(), opaque_protocol),
        ("web.shop.svc.cluster.local", false)
    );
    writer
        .apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"config.linkerd.io/opaque-ports": "80"}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))
        .await?;
    assert!(
        next(&mut profile).await?.opaque_protocol,
        "the annotation reaches an open stream"
    );
    let mut pod = client.get_profile(get("10.1.0.2:8080")).await?.into_inner();
    let endpoint = next(&mut pod)
        .await?
        .endpoint
        .context("a pod's address is an endpoint")?;
    assert_eq!(
        endpoint
            .tls_identity
            .and_then(|tls| tls.server_name)
            .map(|name| name.name)
            .as_deref(),
        Some(IDENTITY)
    );

    writer.delete("v1", "Service", "shop", "web").await?;
    let gone = kind(next(&mut endpoints).await?)?;
    assert!(
        matches!(&gone, update::Update::NoEndpoints(none) if !none.exists),
        "{gone:?}"
    );

    let metrics = program.admin("/metrics").await?;
    for line in [
        "grpc_streams_open{method=\"Get\"} 1",
        "index_pods 2",
        "watch_restarts_total{group=\"\",kind=\"Pod\"}",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }

    let status = program.terminate().await?;
    assert!(status.success(), "{status}");
    let ended = tokio::time::timeout(LIMIT, endpoints.message())
        .await
        .context("the stream goes on")?;
    assert!(matches!(ended, Ok(None)), "the stream ends in order: {ended:?}");
    Ok(())
}

#[tokio::test]
async fn policies_follow_the_cluster_and_are_revoked() -> anyhow::Result<()> {
    let (cluster, writer) = cluster("control-pol").await?;
    policy_crds(&writer).await?;
    writer.pod("web-0", "10.1.0.1").await?;
    let cluster_ip = web_service(&writer).await?;
    let program = Program::start("policy", &cluster).await?;

    let mut inbound = program.inbound();
    let port = PortSpec {
        workload: r#"{"ns":"shop","pod":"web-0"}"#.into(),
        port: 8080,
    };
    let mut servers = inbound.watch_port(port.clone()).await?.into_inner();
    let authorizations = |server: &Server| {
        server
            .authorizations
            .iter()
            .map(|authz| authz.labels["name"].clone())
            .collect::<Vec<_>>()
    };
    let first = next(&mut servers).await?;
    assert_eq!(
        (first.labels["name"].as_str(), authorizations(&first)),
        ("all-unauthenticated", vec!["all-unauthenticated".to_owned()])
    );

    writer
        .apply(policy(
            "Server",
            "v1beta3",
            "web",
            json!({"podSelector": {"matchLabels": {"app": "web"}}, "port": 8080, "proxyProtocol": "HTTP/2"}),
        ))
        .await?;
    let server = next(&mut servers).await?;
    assert_eq!(
        (server.labels["name"].as_str(), authorizations(&server)),
        ("web", vec![]),
        "a Server closes the port"
    );

    // As the seed writes them, in versions that Linkerd does not serve.
    let required =
        json!([{"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "checkout"}]);
    let target = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "web"});
    writer
        .apply(policy(
            "MeshTLSAuthentication",
            "v1beta3",
            "checkout",
            json!({"identities": ["checkout.shop.serviceaccount.identity.linkerd.cluster.local"]}),
        ))
        .await?;
    writer
        .apply(policy(
            "AuthorizationPolicy",
            "v1beta3",
            "allow",
            json!({"targetRef": target, "requiredAuthenticationRefs": required}),
        ))
        .await?;
    assert_eq!(authorizations(&next(&mut servers).await?), ["allow"]);
    writer
        .delete(
            "policy.linkerd.io/v1alpha1",
            "MeshTLSAuthentication",
            "shop",
            "checkout",
        )
        .await?;
    assert_eq!(
        authorizations(&next(&mut servers).await?),
        Vec::<String>::new(),
        "revoked"
    );
    assert_eq!(
        inbound.get_port(port.clone()).await?.into_inner().labels["name"],
        "web"
    );

    let unknown = inbound
        .get_port(PortSpec {
            workload: "shop:nope".into(),
            port: 80,
        })
        .await
        .expect_err("no such pod");
    assert_eq!(unknown.code(), Code::NotFound);
    for bad in [
        PortSpec {
            workload: "nonsense".into(),
            port: 80,
        },
        PortSpec {
            workload: "shop:web-0".into(),
            port: 0,
        },
    ] {
        assert_eq!(
            inbound.get_port(bad).await.expect_err("malformed").code(),
            Code::InvalidArgument
        );
    }

    let mut outbound = program.outbound();
    let spec = |ip: &str, port: u32| -> anyhow::Result<TrafficSpec> {
        let ip: std::net::IpAddr = ip.parse()?;
        let addr = linkerd2_proxy_api::net::TcpAddress {
            ip: Some(ip.into()),
            port,
        };
        Ok(TrafficSpec {
            source_workload: r#"{"ns":"client","pod":"p"}"#.into(),
            target: Some(traffic_spec::Target::Addr(addr)),
        })
    };
    let mut policies = outbound.watch(spec(&cluster_ip, 80)?).await?.into_inner();
    let routes = |policy: OutboundPolicy| match policy.protocol.and_then(|protocol| protocol.kind) {
        Some(proxy_protocol::Kind::Detect(detect)) => {
            detect.http1.map(|http| http.routes).unwrap_or_default().len()
        }
        _ => 0,
    };
    assert_eq!(routes(next(&mut policies).await?), 1);
    for name in ["a", "b"] {
        writer
            .apply(policy(
                "HTTPRoute",
                "v1beta3",
                name,
                json!({"parentRefs": [{"group": "core", "kind": "Service", "name": "web", "port": 80}]}),
            ))
            .await?;
    }
    wait::until_ok("both routes", LIMIT, || {
        let mut outbound = program.outbound();
        let spec = spec(&cluster_ip, 80);
        async move {
            let found = routes(outbound.get(spec?).await?.into_inner());
            anyhow::ensure!(found == 2, "{found} routes");
            Ok::<_, anyhow::Error>(())
        }
    })
    .await?;
    let gone = outbound
        .get(spec("10.1.0.1", 8080)?)
        .await
        .expect_err("a pod's address");
    assert_eq!(gone.code(), Code::NotFound);
    assert!(
        outbound.get(spec("192.0.2.1", 443)?).await.is_ok(),
        "the world outside"
    );

    writer.delete("v1", "Pod", "shop", "web-0").await?;
    let ended = tokio::time::timeout(LIMIT, async {
        while let Ok(Some(_)) = servers.message().await {}
    })
    .await;
    assert!(ended.is_ok(), "the stream of a deleted pod ends");
    Ok(())
}
