//! The real control plane beside a real API server: identity, destination, policy and injector as processes, with a trust
//! anchor, an issuer and service-account tokens as a cluster would mount them.

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use heddle_mesh::IDENTITY_TOKEN_AUDIENCE;
use heddle_tests_harness::{cluster::Cluster, crds, token, wait};
use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::{ApiResource, GroupVersionKind},
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::proxy::{anonymous_bytes, cpu_seconds, resident_bytes};

/// Until a program is ready: it lists the whole cluster first.
const READY_LIMIT: Duration = Duration::from_secs(120);
const CONTROL_NAMESPACE: &str = "linkerd";

/// A running control plane; its processes are killed when dropped.
pub(crate) struct Plane {
    pub(crate) identity: Program,
    pub(crate) destination: Program,
    pub(crate) policy: Program,
    pub(crate) injector: Program,
    pub(crate) files: Files,
}

/// What a cluster mounts into the control plane's pods.
pub(crate) struct Files {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    anchor: String,
}

/// One program of the control plane.
pub(crate) struct Program {
    pub(crate) name: &'static str,
    /// Where it serves.
    pub(crate) addr: SocketAddr,
    admin: SocketAddr,
    binary: PathBuf,
    args: Vec<String>,
    kubeconfig: PathBuf,
    child: Option<Child>,
}

impl Plane {
    /// Starts identity, destination, policy and injector on `ip`, from the binaries in `binaries`, and waits until they
    /// are ready.
    pub(crate) async fn start(cluster: &Cluster, ip: IpAddr, binaries: &Path) -> Result<Self> {
        let client = cluster.client().await?;
        prepare(&client).await?;
        let files = Files::write(&client).await?;
        let program = |name, binary: &str, addr: SocketAddr, args: Vec<String>| {
            let admin = free_addr(ip)?;
            let mut all = args;
            all.extend([format!("--admin-addr={admin}"), "--log-level=warn".to_owned()]);
            Ok::<_, anyhow::Error>(Program {
                name,
                addr,
                admin,
                binary: binaries.join(binary),
                args: all,
                kubeconfig: cluster.kubeconfig_path(),
                child: None,
            })
        };
        let path = |name: &str| files.dir.path().join(name).display().to_string();
        let roots = format!("--trust-roots={}", path("ca-bundle.crt"));
        let identity_addr = free_addr(ip)?;
        let identity_loopback = free_addr(IpAddr::from([127, 0, 0, 1]))?;
        let identity_args = vec![
            format!("--listen-addr={identity_addr}"),
            format!("--loopback-addr={identity_loopback}"),
            format!("--issuer-dir={}", path("issuer")),
            roots.clone(),
        ];
        let identity = program("identity", "heddle-identity", identity_addr, identity_args)?;
        let control = |subcommand: &'static str| {
            let addr = free_addr(ip)?;
            let args = vec![
                subcommand.to_owned(),
                format!("--listen-addr={addr}"),
                format!("--identity-addr={identity_loopback}"),
                format!("--identity-token-file={}", path("token")),
                roots.clone(),
            ];
            program(subcommand, "heddle-control", addr, args)
        };
        let injector_addr = free_addr(ip)?;
        let injector_args = vec![
            "injector".to_owned(),
            format!("--listen-addr={injector_addr}"),
            format!("--config-file={}", path("values")),
            roots.clone(),
        ];
        let injector = program("injector", "heddle-control", injector_addr, injector_args)?;
        let (destination, policy) = (control("destination")?, control("policy")?);
        let mut plane = Self {
            identity,
            destination,
            policy,
            injector,
            files,
        };
        for program in plane.programs() {
            program.start().await?;
        }
        Ok(plane)
    }

    /// All programs, in the order in which they need each other.
    pub(crate) fn programs(&mut self) -> [&mut Program; 4] {
        let Self {
            identity,
            destination,
            policy,
            injector,
            files: _,
        } = self;
        [identity, destination, policy, injector]
    }
}

impl Program {
    /// Starts it and waits until it is ready.
    pub(crate) async fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let name = self.name;
        wait::until_ok(format!("{name} to be ready"), READY_LIMIT, || async {
            let (status, body) = self.admin("/ready").await?;
            ensure!(status == 200, "{status} {body}");
            Ok(())
        })
        .await?;
        // Ready means synced; the listener follows at once.
        wait::until_ok(format!("{name} to listen"), READY_LIMIT, || {
            tokio::net::TcpStream::connect(self.addr)
        })
        .await?;
        Ok(())
    }

    /// Starts it.
    pub(crate) fn spawn(&mut self) -> Result<()> {
        let child = Command::new(&self.binary)
            .args(&self.args)
            .env("KUBECONFIG", &self.kubeconfig)
            // As the profile's manifests do.
            .env("MALLOC_ARENA_MAX", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start {}: build it with `cargo build --profile image -p heddle-control -p heddle-identity`",
                    self.binary.display()
                )
            })?;
        self.child = Some(child);
        Ok(())
    }

    /// Ends it as a crash would.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    fn pid(&self) -> Result<u32> {
        self.child
            .as_ref()
            .map(Child::id)
            .with_context(|| format!("{} does not run", self.name))
    }

    /// Resident memory, in bytes.
    pub(crate) fn resident(&self) -> Result<f64> {
        resident_bytes(self.pid()?)
    }

    /// Resident memory without the pages of files, in bytes: of these, as many are mapped as the kernel likes.
    pub(crate) fn anonymous(&self) -> Result<f64> {
        anonymous_bytes(self.pid()?)
    }

    /// CPU seconds used so far.
    pub(crate) fn cpu(&self) -> Result<f64> {
        cpu_seconds(self.pid()?)
    }

    /// Asks its admin server.
    pub(crate) async fn admin(&self, path: &str) -> Result<(u16, String)> {
        let mut stream = tokio::net::TcpStream::connect(self.admin).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await?;
        let status = reply.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok((status.context("no status")?, reply))
    }

    /// The sum of all metrics whose lines begin so.
    pub(crate) async fn metric(&self, start: &str) -> Result<f64> {
        let (_, text) = self.admin("/metrics").await?;
        let lines = text.lines().filter(|line| line.starts_with(start));
        Ok(lines
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
            .sum())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} stays behind: {error:#}", self.name);
        }
    }
}

impl Files {
    async fn write(client: &Client) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let root = CertifiedIssuer::self_signed(ca("root.linkerd.cluster.local"), KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let params = ca("identity.linkerd.cluster.local");
        let cert = params.signed_by(&key, &root)?;
        std::fs::create_dir(dir.path().join("issuer"))?;
        std::fs::write(dir.path().join("issuer/tls.crt"), cert.pem())?;
        std::fs::write(dir.path().join("issuer/tls.key"), key.serialize_pem())?;
        std::fs::write(dir.path().join("issuer/ca.crt"), root.pem())?;
        std::fs::write(dir.path().join("ca-bundle.crt"), root.pem())?;
        std::fs::write(dir.path().join("values"), "")?;
        let token = token::request(
            client,
            CONTROL_NAMESPACE,
            "linkerd-destination",
            IDENTITY_TOKEN_AUDIENCE,
        )
        .await?;
        std::fs::write(dir.path().join("token"), token)?;
        let issuer = Issuer::from_ca_cert_pem(&cert.pem(), key)?;
        Ok(Self {
            dir,
            issuer,
            anchor: root.pem(),
        })
    }

    /// The trust anchor, PEM.
    pub(crate) fn anchor(&self) -> &str {
        &self.anchor
    }

    /// A certificate that proves `identity`, with the issuer's, and its key: DER.
    pub(crate) fn leaf(&self, identity: &str) -> Result<(Vec<Vec<u8>>, Vec<u8>)> {
        let key = KeyPair::generate()?;
        let leaf = CertificateParams::new([identity.to_owned()])?.signed_by(&key, &self.issuer)?;
        let pem = std::fs::read(self.dir.path().join("issuer/tls.crt"))?;
        let issuer = x509_pem(&pem)?;
        Ok((vec![leaf.der().to_vec(), issuer], key.serialize_der()))
    }
}

fn x509_pem(pem: &[u8]) -> Result<Vec<u8>> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let cert = CertificateDer::from_pem_slice(pem).map_err(|error| anyhow::anyhow!("{error}"))?;
    Ok(cert.to_vec())
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The control plane's namespace, accounts and kinds, and the webhook that the injector keeps.
async fn prepare(client: &Client) -> Result<()> {
    let crds = tokio::task::spawn_blocking(crd_objects).await??;
    crds::apply(client, &crds).await?;
    apply(
        client,
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": CONTROL_NAMESPACE}}),
    )
    .await?;
    for account in [
        "linkerd-identity",
        "linkerd-destination",
        "linkerd-proxy-injector",
    ] {
        let metadata = json!({"namespace": CONTROL_NAMESPACE, "name": account});
        apply(
            client,
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}),
        )
        .await?;
    }
    // Only its caBundle matters here: no rule, so the API server never asks.
    apply(
        client,
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "linkerd-proxy-injector-webhook-config"},
            "webhooks": [{
                "name": "linkerd-proxy-injector.linkerd.io",
                "admissionReviewVersions": ["v1"],
                "clientConfig": {"service": {"name": "linkerd-proxy-injector", "namespace": CONTROL_NAMESPACE}},
                "sideEffects": "None",
            }],
        }),
    )
    .await
}

/// Heddle's own CRDs, as they are installed, and Gateway API's.
fn crd_objects() -> Result<Vec<Value>> {
    let dir = heddle_tests_harness::workspace_root().join("profiles/core/crds");
    let mut all = crds::gateway_api_experimental()?;
    for entry in std::fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))? {
        let text = std::fs::read_to_string(entry?.path())?;
        all.push(serde_yaml::from_str(&text)?);
    }
    Ok(all)
}

/// Makes an object, or changes it.
pub(crate) async fn apply(client: &Client, object: Value) -> Result<()> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let (Some(api_version), Some(kind), Some(name)) =
        (text("/apiVersion"), text("/kind"), text("/metadata/name"))
    else {
        bail!("{object} has no apiVersion, kind or name");
    };
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = match text("/metadata/namespace") {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    };
    let params = PatchParams::apply("bench").force();
    api.patch(name, &params, &Patch::Apply(&object))
        .await
        .with_context(|| format!("failed to apply {kind} {name}"))?;
    Ok(())
}

fn free_addr(ip: IpAddr) -> Result<SocketAddr> {
    Ok(TcpListener::bind((ip, 0))?.local_addr()?)
}
