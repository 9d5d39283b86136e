//! An API server, the objects that the injector needs, and injectors.

use std::{
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    wait,
};
use k8s_openapi::{
    api::{
        admissionregistration::v1::MutatingWebhookConfiguration,
        core::v1::{Namespace, Pod, Secret, Service, ServiceAccount},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
    core::NamespaceResourceScope,
};
use serde_json::{Value, json};

use super::https::{self, Reply};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const CONFIGURATION: &str = "linkerd-proxy-injector-webhook-config";
pub(crate) const SECRET: &str = "linkerd-proxy-injector-k8s-tls";
pub(crate) const HOST: &str = "linkerd-proxy-injector.linkerd.svc";

/// A cluster without nodes, with namespace `payments` to inject.
pub(crate) struct World {
    pub(crate) cluster: ScopedCluster,
    pub(crate) client: Client,
    pub(crate) files: tempfile::TempDir,
    /// The port that the API server asks.
    pub(crate) port: u16,
    pub(crate) anchors: String,
}

/// A running injector, killed when dropped.
pub(crate) struct Injector {
    pub(crate) child: Child,
    pub(crate) addr: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl World {
    pub(crate) async fn new(name: &str) -> anyhow::Result<Self> {
        let name = format!("{name}-{}", std::process::id());
        let cluster = ScopedCluster::up(ClusterOptions::new(name, Mode::ApiServerOnly)).await?;
        let client = cluster.client().await?;
        let anchors = rcgen::generate_simple_self_signed(vec!["root.linkerd.cluster.local".to_owned()])?
            .cert
            .pem();
        let world = Self {
            cluster,
            client,
            files: tempfile::tempdir()?,
            port: free_port()?,
            anchors,
        };
        world.write_config("")?;
        std::fs::write(world.files.path().join("ca-bundle.crt"), &world.anchors)?;
        let enabled = json!({"linkerd.io/inject": "enabled"});
        for (namespace, annotations) in [
            ("linkerd", json!({})),
            ("payments", enabled),
            ("plain", json!({})),
        ] {
            world.namespace(namespace, annotations).await?;
        }
        let service = json!({
            "metadata": {"name": "linkerd-proxy-injector"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        });
        world.create::<Service>("linkerd", service).await?;
        Ok(world)
    }

    /// A namespace and what a controller would put into it.
    pub(crate) async fn namespace(&self, name: &str, annotations: Value) -> anyhow::Result<()> {
        let namespace = json!({"metadata": {"name": name, "annotations": annotations}});
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(namespace)?)
            .await?;
        self.create::<ServiceAccount>(name, json!({"metadata": {"name": "default"}}))
            .await?;
        Ok(())
    }

    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(crate) async fn create<K>(&self, namespace: &str, object: Value) -> anyhow::Result<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + std::fmt::Debug,
    {
        let object: K = serde_json::from_value(object)?;
        let api = self.api::<K>(namespace);
        api.create(&PostParams::default(), &object)
            .await
            .with_context(|| format!("failed to create {object:?}"))
    }

    /// What the API server makes of a pod, as it would be; nothing is kept.
    pub(crate) async fn admit(&self, namespace: &str, pod: Value) -> anyhow::Result<Pod> {
        let params = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        Ok(self
            .api::<Pod>(namespace)
            .create(&params, &serde_json::from_value(pod)?)
            .await?)
    }

    pub(crate) fn write_config(&self, text: &str) -> anyhow::Result<()> {
        // Replaced in one step, as the kubelet does it: a file caught between truncation and writing is an empty one.
        let next = self.files.path().join("values.next");
        std::fs::write(&next, text)?;
        Ok(std::fs::rename(next, self.files.path().join("values"))?)
    }

    /// The configuration as the reconciler applies it: without a caBundle.
    pub(crate) async fn apply_configuration(&self) -> anyhow::Result<()> {
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": CONFIGURATION},
            "webhooks": [{
                "name": "linkerd-proxy-injector.linkerd.io",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {
                    "service": {"name": "linkerd-proxy-injector", "namespace": "linkerd", "path": "/", "port": self.port},
                },
                "failurePolicy": "Fail",
                "sideEffects": "NoneOnDryRun",
                "rules": [
                    {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods", "services"]},
                ],
            }],
        });
        let params = PatchParams::apply("heddle");
        self.configurations()
            .patch(CONFIGURATION, &params, &Patch::Apply(object))
            .await?;
        Ok(())
    }

    pub(crate) fn configurations(&self) -> Api<MutatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    pub(crate) async fn ca_bundle(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let configuration = self.configurations().get(CONFIGURATION).await?;
        let webhook = configuration
            .webhooks
            .into_iter()
            .flatten()
            .next()
            .context("one webhook")?;
        Ok(webhook.client_config.ca_bundle.map(|bundle| bundle.0))
    }

    /// What the injectors' Secret says the API server must trust.
    pub(crate) async fn secret_bundle(&self) -> anyhow::Result<Vec<u8>> {
        let secret = self.api::<Secret>("linkerd").get(SECRET).await?;
        let part = secret
            .data
            .and_then(|mut data| data.remove("ca.crt"))
            .context("no ca.crt")?;
        Ok(part.0)
    }

    /// Waits until the API server trusts what the Secret holds.
    pub(crate) async fn bundle_in_place(&self) -> anyhow::Result<()> {
        wait::until_ok("the caBundle to be the Secret's", LIMIT, || async {
            let (configured, secret) = (self.ca_bundle().await?, self.secret_bundle().await?);
            anyhow::ensure!(
                configured.as_deref() == Some(&secret[..]),
                "it differs, or is empty"
            );
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(())
    }

    pub(crate) fn spawn(&self, port: u16) -> anyhow::Result<Injector> {
        let addr = SocketAddr::from(([127, 0, 0, 1], port));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let file = |name: &str| self.files.path().join(name);
        let flag = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let child = Command::new(env!("CARGO_BIN_EXE_heddle-control"))
            .args([
                "injector",
                &format!("--listen-addr={addr}"),
                &format!("--admin-addr={admin}"),
            ])
            .arg(flag("config-file", &file("values")))
            .arg(flag("trust-roots", &file("ca-bundle.crt")))
            .arg(flag("kubeconfig", &self.cluster.kubeconfig_path()))
            .args(["--log-level", "warn"])
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start heddle-control")?;
        Ok(Injector { child, addr, admin })
    }

    /// An injector that the API server asks, ready.
    pub(crate) async fn start(&self) -> anyhow::Result<Injector> {
        let injector = self.spawn(self.port)?;
        injector.ready().await?;
        Ok(injector)
    }

    /// Sends bytes to an injector as the API server would.
    pub(crate) async fn post(&self, injector: &Injector, kind: &str, body: Vec<u8>) -> anyhow::Result<Reply> {
        https::post(injector.addr, HOST, &self.secret_bundle().await?, kind, body).await
    }
}

impl Injector {
    pub(crate) async fn ready(&self) -> anyhow::Result<()> {
        wait::until_ok("the injector to be ready", LIMIT, || async {
            let (status, text) = self.admin("/ready").await?;
            anyhow::ensure!(status == 200, "{status} {text}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(())
    }

    pub(crate) async fn admin(&self, path: &str) -> anyhow::Result<(u16, String)> {
        https::get_plain(self.admin, path).await
    }

    /// The value of the first metric whose line begins so.
    pub(crate) async fn metric(&self, start: &str) -> anyhow::Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let line = text
            .lines()
            .find(|line| line.starts_with(start))
            .with_context(|| format!("no {start} in\n{text}"))?;
        Ok(line.rsplit_once(' ').context("a value")?.1.parse()?)
    }
}

pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A pod that the API server takes.
pub(crate) fn mk_pod(name: &str, annotations: Value) -> Value {
    json!({
        "metadata": {"name": name, "annotations": annotations},
        "spec": {
            // What an admission plugin of a whole cluster fills in before webhooks are asked.
            "serviceAccountName": "default",
            "containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080, "name": "http"}]}],
        },
    })
}

pub(crate) fn container_names(pod: &Pod) -> Vec<&str> {
    let spec = pod.spec.as_ref().expect("pods have a spec");
    let init = spec.init_containers.iter().flatten();
    init.chain(&spec.containers)
        .map(|container| container.name.as_str())
        .collect()
}
