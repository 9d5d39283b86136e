//! An API server with our CRDs and the Gateway API's, and policy controllers that judge what is written to it.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    crds, wait,
};
use k8s_openapi::api::{
    admissionregistration::v1::ValidatingWebhookConfiguration,
    core::v1::{Namespace, Secret, Service},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde::Deserialize as _;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub(crate) const LIMIT: Duration = Duration::from_secs(60);
pub(crate) const CONFIGURATIONS: [&str; 2] = [
    "linkerd-policy-validator-webhook-config",
    "linkerd-sp-validator-webhook-config",
];
pub(crate) const SECRET: &str = "linkerd-policy-validator-k8s-tls";
const SERVICES: [&str; 2] = ["linkerd-policy-validator", "linkerd-sp-validator"];

/// A cluster without nodes, with namespace `shop` to write to.
pub(crate) struct World {
    pub(crate) cluster: ScopedCluster,
    pub(crate) client: Client,
    /// The port that the API server asks.
    pub(crate) port: u16,
}

/// A running `heddle-control policy`, killed when dropped.
pub(crate) struct Controller {
    child: Child,
    pub(crate) admission: SocketAddr,
    admin: SocketAddr,
}

/// What a client is told.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: u16,
    pub(crate) message: String,
    pub(crate) warnings: Vec<String>,
}

impl Drop for Controller {
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
        let ours: Result<Vec<Value>, _> = heddle_k8s::crds().iter().map(serde_json::to_value).collect();
        crds::apply(&client, &ours?).await?;
        crds::apply(&client, &crds::gateway_api_experimental()?).await?;
        let namespaces: Api<Namespace> = Api::all(client.clone());
        for name in ["linkerd", "shop"] {
            let namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            namespaces.create(&PostParams::default(), &namespace).await?;
        }
        let services: Api<Service> = Api::namespaced(client.clone(), "linkerd");
        for name in SERVICES {
            let spec = json!({"type": "ExternalName", "externalName": "localhost"});
            let service = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec}))?;
            services.create(&PostParams::default(), &service).await?;
        }
        let port = free_port()?;
        Ok(Self {
            cluster,
            client,
            port,
        })
    }

    /// A controller that the API server asks, ready.
    pub(crate) async fn start(&self, port: u16) -> anyhow::Result<Controller> {
        let admission = SocketAddr::from(([127, 0, 0, 1], port));
        let admin = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let child = Command::new(env!("CARGO_BIN_EXE_heddle-control"))
            .arg("policy")
            .arg(format!("--loopback-addr=127.0.0.1:{}", free_port()?))
            .arg(format!("--admin-addr={admin}"))
            .arg(format!("--admission-addr={admission}"))
            .arg(format!(
                "--kubeconfig={}",
                self.cluster.kubeconfig_path().display()
            ))
            .args(["--log-level", "warn"])
            .stdout(Stdio::null())
            .spawn()
            .context("failed to start heddle-control")?;
        let controller = Controller {
            child,
            admission,
            admin,
        };
        wait::until_ok("the controller to be ready", LIMIT, || async {
            let reply = controller.admin("/ready").await?;
            anyhow::ensure!(reply.starts_with("HTTP/1.1 200"), "{reply}");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(controller)
    }

    /// Applies the configurations of profile core, but for the port, as the reconciler does: without a caBundle.
    pub(crate) async fn apply_configurations(&self) -> anyhow::Result<()> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../profiles/core/templates/policy-validator.yaml.hbs"
        );
        let text = std::fs::read_to_string(path)?
            .replace("{{values.linkerdNamespace}}", "linkerd")
            .replace("{{values.webhook.failurePolicy}}", "Fail")
            .replace("{{values.webhook.timeoutSeconds}}", "10");
        anyhow::ensure!(
            !text.contains("{{"),
            "the template has values that this test does not know"
        );
        for document in serde_yaml::Deserializer::from_str(&text) {
            let mut object = Value::deserialize(document)?;
            if object["kind"] != "ValidatingWebhookConfiguration" {
                continue;
            }
            for webhook in object["webhooks"].as_array_mut().context("webhooks")? {
                webhook["clientConfig"]["service"]["port"] = json!(self.port);
            }
            let name = object["metadata"]["name"].as_str().context("a name")?.to_owned();
            self.configurations()
                .patch(&name, &PatchParams::apply("heddle"), &Patch::Apply(object))
                .await?;
        }
        Ok(())
    }

    pub(crate) fn configurations(&self) -> Api<ValidatingWebhookConfiguration> {
        Api::all(self.client.clone())
    }

    /// What the controllers' Secret says API servers must trust.
    pub(crate) async fn secret_bundle(&self) -> anyhow::Result<Vec<u8>> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "linkerd");
        let data = secrets.get(SECRET).await?.data;
        Ok(data
            .and_then(|mut data| data.remove("ca.crt"))
            .context("no ca.crt")?
            .0)
    }

    /// Waits until all webhooks trust what the Secret holds.
    pub(crate) async fn bundle_in_place(&self) -> anyhow::Result<()> {
        wait::until_ok("the caBundle to be the Secret's", LIMIT, || async {
            let wanted = self.secret_bundle().await?;
            for name in CONFIGURATIONS {
                let webhooks = self
                    .configurations()
                    .get(name)
                    .await?
                    .webhooks
                    .unwrap_or_default();
                for webhook in webhooks {
                    let bundle = webhook.client_config.ca_bundle.map(|bundle| bundle.0);
                    anyhow::ensure!(bundle.as_ref() == Some(&wanted), "{} differs", webhook.name);
                }
            }
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        Ok(())
    }

    /// Creates an object; what the API server says, whatever it is.
    pub(crate) async fn create(&self, path: &str, object: &Value, dry_run: bool) -> anyhow::Result<Said> {
        let query = if dry_run { "?dryRun=All" } else { "" };
        let request = http::Request::post(format!("{path}{query}"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(kube::client::Body::from(serde_json::to_vec(object)?))?;
        let reply = self.client.send(request).await?;
        let code = reply.status().as_u16();
        let warnings = reply.headers().get_all(http::header::WARNING).iter();
        let warnings = warnings
            .filter_map(|value| value.to_str().ok().map(str::to_owned))
            .collect();
        let body = reply.into_body().collect_bytes().await?;
        let status: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = status["message"].as_str().unwrap_or_default().to_owned();
        Ok(Said {
            code,
            message,
            warnings,
        })
    }
}

impl Controller {
    pub(crate) async fn admin(&self, path: &str) -> anyhow::Result<String> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        Ok(reply)
    }
}

pub(crate) fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}
