//! The cluster around the injector: namespaces, owners, its configuration, and the program itself.

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, stream};
use heddle_tests_harness::{cluster::ScopedCluster, wait};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    batch::v1::{CronJob, Job},
    core::v1::{Namespace, Pod, Secret, Service, ServiceAccount},
};
use kube::{
    Api, Resource as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{Burst, client::Client};
use crate::reconcile::Running;

/// Those that want their pods injected.
pub(super) const NAMESPACES: [&str; 8] = [
    "payments", "orders", "search", "users", "billing", "emails", "reports", "media",
];
const HOST: &str = "linkerd-proxy-injector.linkerd.svc";
const CONFIGURATION: &str = "linkerd-proxy-injector-webhook-config";
const LIMIT: Duration = Duration::from_secs(60);

pub(super) struct World {
    client: kube::Client,
    injector: Running,
    addr: SocketAddr,
    jobs: HashMap<&'static str, String>,
    /// What the injector reads; gone when dropped.
    _files: tempfile::TempDir,
}

impl World {
    pub(super) async fn new(cluster: &ScopedCluster, control: &Path) -> Result<Self> {
        let client = cluster.client().await?;
        let mut jobs = HashMap::new();
        for name in NAMESPACES.into_iter().chain(["linkerd"]) {
            namespace(&client, name).await?;
            if name != "linkerd" {
                jobs.insert(name, job(&client, name).await?);
            }
        }
        let service = json!({
            "metadata": {"name": "linkerd-proxy-injector"},
            "spec": {"type": "ExternalName", "externalName": "localhost"},
        });
        let services: Api<Service> = Api::namespaced(client.clone(), "linkerd");
        services
            .create(&PostParams::default(), &serde_json::from_value(service)?)
            .await?;

        let files = tempfile::tempdir()?;
        let anchors = rcgen::generate_simple_self_signed(vec!["root.linkerd.cluster.local".to_owned()])?;
        std::fs::write(files.path().join("ca-bundle.crt"), anchors.cert.pem())?;
        std::fs::write(files.path().join("values"), "")?;
        let (addr, admin) = (free_address()?, free_address()?);
        configure(&client, addr.port()).await?;
        let flag = |name: &str, file: &str| format!("--{name}={}", files.path().join(file).display());
        let child = Command::new(control)
            .arg("injector")
            .arg(format!("--listen-addr={addr}"))
            .arg(format!("--admin-addr={admin}"))
            .arg(flag("config-file", "values"))
            .arg(flag("trust-roots", "ca-bundle.crt"))
            .arg(format!("--kubeconfig={}", cluster.kubeconfig_path().display()))
            // As installed; what is logged of each admission is part of its cost.
            .args(["--log-level", "info"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}: build it with `cargo build --profile image -p heddle-control`",
                    control.display()
                )
            })?;
        let injector = Running(child);
        wait::until_ok("the injector to be ready", LIMIT, || is_ready(admin)).await?;
        Ok(Self {
            client,
            injector,
            addr,
            jobs,
            _files: files,
        })
    }

    pub(super) fn pid(&self) -> u32 {
        self.injector.0.id()
    }

    pub(super) fn job_uid(&self, namespace: &str) -> &str {
        self.jobs.get(namespace).map_or("", String::as_str)
    }

    /// A client that trusts what API servers are told to trust.
    pub(super) async fn client(&self) -> Result<Client> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), "linkerd");
        let secret = secrets.get("linkerd-proxy-injector-k8s-tls").await?;
        let bundle = secret.data.and_then(|mut data| data.remove("ca.crt"));
        Client::new(self.addr, HOST, &bundle.context("the Secret has no ca.crt")?.0)
    }

    /// Creates pods through the API server: one that is refused, or comes out without its proxy, is a failure.
    pub(super) async fn burst(&self, total: usize, in_flight: usize) -> Result<Burst> {
        let start = Instant::now();
        let failures = stream::iter(0..total)
            .map(|index| self.create(index))
            .buffer_unordered(in_flight)
            .filter(|made| std::future::ready(!matches!(made, Ok(true))))
            .count()
            .await;
        Ok(Burst {
            failures,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    async fn create(&self, index: usize) -> Result<bool> {
        let pod = json!({
            "metadata": {"generateName": "web-", "labels": {"app": "web"}},
            "spec": {
                "serviceAccountName": "default",
                "containers": [{"name": "app", "image": "app:1", "ports": [{"containerPort": 8080}]}],
            },
        });
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACES[index % NAMESPACES.len()]);
        let made = pods
            .create(&PostParams::default(), &serde_json::from_value(pod)?)
            .await?;
        let init = made
            .spec
            .and_then(|spec| spec.init_containers)
            .unwrap_or_default();
        Ok(init.iter().any(|container| container.name == "linkerd-proxy"))
    }
}

async fn namespace(client: &kube::Client, name: &str) -> Result<()> {
    let params = PostParams::default();
    let annotations = match name {
        "linkerd" => json!({}),
        _ => json!({"linkerd.io/inject": "enabled", "config.linkerd.io/proxy-memory-limit": "250Mi"}),
    };
    let namespace = json!({"metadata": {"name": name, "annotations": annotations}});
    Api::<Namespace>::all(client.clone())
        .create(&params, &serde_json::from_value(namespace)?)
        .await?;
    let account = json!({"metadata": {"name": "default"}});
    Api::<ServiceAccount>::namespaced(client.clone(), name)
        .create(&params, &serde_json::from_value(account)?)
        .await?;
    Ok(())
}

/// A Job of a CronJob: whom the injector must ask about.
async fn job(client: &kube::Client, namespace: &str) -> Result<String> {
    let params = PostParams::default();
    let spec = json!({"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": "a"}]}}});
    let cron: Value = json!({"metadata": {"name": "nightly"}, "spec": {"schedule": "0 0 * * *", "jobTemplate": {"spec": spec}}});
    let cron: CronJob = Api::namespaced(client.clone(), namespace)
        .create(&params, &serde_json::from_value(cron)?)
        .await?;
    let job = json!({
        "metadata": {"name": "nightly-1", "ownerReferences": [cron.controller_owner_ref(&())]}, "spec": spec,
    });
    let job: Job = Api::namespaced(client.clone(), namespace)
        .create(&params, &serde_json::from_value(job)?)
        .await?;
    job.metadata.uid.context("a created object has a uid")
}

/// As the profile installs it, with failurePolicy Fail.
async fn configure(client: &kube::Client, port: u16) -> Result<()> {
    let object = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": CONFIGURATION},
        "webhooks": [{
            "name": "linkerd-proxy-injector.linkerd.io",
            "admissionReviewVersions": ["v1"],
            "clientConfig": {
                "service": {"name": "linkerd-proxy-injector", "namespace": "linkerd", "path": "/", "port": port},
            },
            "failurePolicy": "Fail", "sideEffects": "NoneOnDryRun", "timeoutSeconds": 10,
            "rules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]},
            ],
        }],
    });
    Api::<MutatingWebhookConfiguration>::all(client.clone())
        .patch(
            CONFIGURATION,
            &PatchParams::apply("heddle"),
            &Patch::Apply(object),
        )
        .await?;
    Ok(())
}

async fn is_ready(admin: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(admin).await?;
    stream
        .write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    ensure!(text.starts_with("HTTP/1.1 200"), "{text}");
    Ok(())
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
