//! Certificates and kubeconfigs: one CA for the cluster, one for the front proxy, a leaf for every component.

use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::{fs, io::Write};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::json;
use time::{Duration, OffsetDateTime};

use super::layout::Layout;

/// Long enough for a cluster that someone keeps for a while; a cluster is never older than its state folder.
const VALIDITY_DAYS: i64 = 365;

/// A component that authenticates to the API server, and the kubeconfig written for it.
pub(super) struct ClientIdentity<'a> {
    /// File name of its kubeconfig below `conf/`.
    pub(super) file: &'a str,
    pub(super) user: String,
    pub(super) group: Option<&'a str>,
}

/// What certificates must be valid for.
pub(super) struct Names<'a> {
    /// Addresses the API server is reached at.
    pub(super) server_ips: &'a [Ipv4Addr],
    /// The node's name and address; none without a node.
    pub(super) node: Option<(&'a str, Ipv4Addr)>,
    pub(super) cluster_domain: &'a str,
}

/// Makes all certificates below `pki/`. A finished set is kept; an unfinished one is made anew.
pub(super) fn ensure(layout: &Layout, names: &Names<'_>) -> Result<()> {
    let pki = layout.at("pki");
    let finished = pki.join("finished");
    if finished.exists() {
        return Ok(());
    }
    fs::create_dir_all(&pki).with_context(|| format!("failed to make {}", pki.display()))?;
    let ca = Authority::new("heddle-test-cluster")?;
    let front = Authority::new("heddle-test-front-proxy")?;
    write(&pki.join("ca.crt"), &ca.pem)?;
    write(&pki.join("ca.key"), &ca.issuer.key().serialize_pem())?;
    write(&pki.join("front-proxy-ca.crt"), &front.pem)?;
    let service_accounts = KeyPair::generate().context("failed to make the service account key")?;
    write(&pki.join("sa.key"), &service_accounts.serialize_pem())?;
    write(&pki.join("sa.pub"), &service_accounts.public_key_pem())?;

    let mut server = vec![
        "localhost".to_owned(),
        "kubernetes".into(),
        "kubernetes.default".into(),
    ];
    server.push("kubernetes.default.svc".into());
    server.push(format!("kubernetes.default.svc.{}", names.cluster_domain));
    ca.leaf("kube-apiserver", None, &server, names.server_ips)?
        .write(&pki, "apiserver")?;
    ca.leaf("kube-apiserver-kubelet-client", Some("system:masters"), &[], &[])?
        .write(&pki, "apiserver-kubelet-client")?;
    front
        .leaf("front-proxy-client", None, &[], &[])?
        .write(&pki, "front-proxy-client")?;
    if let Some((node, ip)) = names.node {
        ca.leaf(
            &format!("system:node:{node}"),
            Some("system:nodes"),
            &[node.to_owned()],
            &[ip],
        )?
        .write(&pki, "kubelet-server")?;
    }
    for client in clients(names.node.map(|(name, _)| name)) {
        ca.leaf(&client.user, client.group, &[], &[])?
            .write(&pki, client.file)?;
    }
    write(&finished, "")
}

/// The components that get a kubeconfig.
pub(super) fn clients(node: Option<&str>) -> Vec<ClientIdentity<'static>> {
    let client = |file, user: &str, group| ClientIdentity {
        file,
        user: user.to_owned(),
        group,
    };
    let mut clients = vec![client("admin", "heddle-test-admin", Some("system:masters"))];
    if let Some(node) = node {
        clients.push(client(
            "controller-manager",
            "system:kube-controller-manager",
            None,
        ));
        clients.push(client("scheduler", "system:kube-scheduler", None));
        clients.push(client("kube-proxy", "system:kube-proxy", None));
        clients.push(client("coredns", super::bootstrap::COREDNS_USER, None));
        clients.push(client(
            "kubelet",
            &format!("system:node:{node}"),
            Some("system:nodes"),
        ));
    }
    clients
}

/// Writes a kubeconfig for every component, and the administrator's at the cluster's well-known place.
pub(super) fn write_kubeconfigs(layout: &Layout, server: &str, node: Option<&str>) -> Result<()> {
    let pki = layout.at("pki");
    let conf = layout.at("conf");
    fs::create_dir_all(&conf).with_context(|| format!("failed to make {}", conf.display()))?;
    let read = |name: String| {
        let path = pki.join(name);
        fs::read(&path)
            .map(|bytes| BASE64.encode(bytes))
            .with_context(|| format!("failed to read {}", path.display()))
    };
    let ca = read("ca.crt".into())?;
    for client in clients(node) {
        let name = layout.name();
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": name, "cluster": {"server": server, "certificate-authority-data": ca}}],
            "users": [{"name": client.user, "user": {
                "client-certificate-data": read(format!("{}.crt", client.file))?,
                "client-key-data": read(format!("{}.key", client.file))?,
            }}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": client.user}}],
            "current-context": name,
        });
        let text = serde_yaml::to_string(&config).context("failed to write a kubeconfig as YAML")?;
        write(&kubeconfig(layout, client.file), &text)?;
    }
    Ok(())
}

/// Where the kubeconfig of a component is.
pub(super) fn kubeconfig(layout: &Layout, client: &str) -> PathBuf {
    match client {
        "admin" => layout.kubeconfig(),
        other => layout.at(&format!("conf/{other}.kubeconfig")),
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

struct Leaf {
    certificate: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Result<Self> {
        let mut params = params(name, None)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::CrlSign,
        ];
        let key = KeyPair::generate().with_context(|| format!("failed to make the key of {name}"))?;
        let pem = params
            .self_signed(&key)
            .with_context(|| format!("failed to sign {name}"))?
            .pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    fn leaf(&self, name: &str, group: Option<&str>, dns: &[String], ips: &[Ipv4Addr]) -> Result<Leaf> {
        let mut params = params(name, group)?;
        for dns in dns {
            let dns = dns
                .as_str()
                .try_into()
                .with_context(|| format!("`{dns}` is no DNS name"))?;
            params.subject_alt_names.push(SanType::DnsName(dns));
        }
        params
            .subject_alt_names
            .extend(ips.iter().map(|ip| SanType::IpAddress((*ip).into())));
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate().with_context(|| format!("failed to make the key of {name}"))?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .with_context(|| format!("failed to sign {name}"))?
            .pem();
        Ok(Leaf {
            certificate,
            key: key.serialize_pem(),
        })
    }
}

impl Leaf {
    fn write(&self, pki: &Path, name: &str) -> Result<()> {
        write(&pki.join(format!("{name}.crt")), &self.certificate)?;
        write(&pki.join(format!("{name}.key")), &self.key)
    }
}

fn params(name: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new()).context("failed to begin a certificate")?;
    let now = OffsetDateTime::now_utc();
    // An hour back, so that a clock that was just set does not matter.
    params.not_before = now - Duration::hours(1);
    params.not_after = now + Duration::days(VALIDITY_DAYS);
    params.distinguished_name.remove(DnType::CommonName);
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

/// Writes a file that only its owner may read: most files here hold keys.
fn write(path: &Path, text: &str) -> Result<()> {
    let shown = || format!("failed to write {}", path.display());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(shown)?;
    file.write_all(text.as_bytes()).with_context(shown)
}
