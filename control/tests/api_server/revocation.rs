//! The destination service, beside a real identity service, follows its revocations: for clients with real tokens, over
//! mutual TLS.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use heddle_mesh::{IDENTITY_TOKEN_AUDIENCE, Identity, ServiceAccountRef, TrustDomain};
use heddle_tests_harness::token;
use heddle_tls::{CertifyLoop, ClientAuth, ControlChannel, Store, connect::ChannelOptions, roots};
use linkerd2_proxy_api::destination::{GetDestination, Update, destination_client::DestinationClient};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tokio::{task::JoinSet, time::timeout};
use tonic::{Status, Streaming};

use super::world::{LIMIT, Program, cluster, free_addr, next, web_service};

/// What the programs have mounted.
struct Files(tempfile::TempDir);

impl Files {
    fn write() -> anyhow::Result<Self> {
        let authority = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            params
        };
        let root = CertifiedIssuer::self_signed(authority("root"), KeyPair::generate()?)?;
        let key = KeyPair::generate()?;
        let issuer = authority("issuer").signed_by(&key, &root)?;
        let files = Self(tempfile::tempdir()?);
        std::fs::create_dir(files.path("issuer"))?;
        std::fs::write(files.path("issuer/tls.crt"), issuer.pem())?;
        std::fs::write(files.path("issuer/tls.key"), key.serialize_pem())?;
        std::fs::write(files.path("roots"), root.pem())?;
        std::fs::write(files.path("revoked"), "")?;
        Ok(files)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn flag(&self, flag: &str, name: &str) -> String {
        format!("--{flag}={}", self.path(name).display())
    }
}

fn identity(namespace: &str, name: &str) -> anyhow::Result<Identity> {
    let account = ServiceAccountRef {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    };
    Ok(Identity::for_service_account(
        &account,
        "linkerd",
        &TrustDomain::default(),
    )?)
}

/// A proxy's connection to the destination service.
struct Proxy {
    destination: DestinationClient<ControlChannel>,
    _certifying: JoinSet<()>,
}

impl Proxy {
    async fn start(
        name: Identity,
        roots_file: &Path,
        token_file: PathBuf,
        identity_addr: SocketAddr,
        destination: SocketAddr,
    ) -> anyhow::Result<Self> {
        let options = ChannelOptions {
            always_tls: true,
            ..ChannelOptions::default()
        };
        let (store, key) = Store::new(name, roots::load(roots_file)?)?;
        let certify = CertifyLoop::with_options(
            store.clone(),
            key,
            identity_addr.into(),
            identity("linkerd", "linkerd-identity")?,
            token_file,
            options.clone(),
        );
        let mut certifying = JoinSet::new();
        certifying.spawn(certify.run());
        let mut ready = store.ready();
        timeout(LIMIT, ready.wait_for(|ready| ready.is_ready()))
            .await
            .context("no certificate in time")??;
        let server = identity("linkerd", "linkerd-destination")?;
        let channel =
            ControlChannel::with_options(destination.into(), server, store, ClientAuth::Leaf, options);
        Ok(Self {
            destination: DestinationClient::new(channel),
            _certifying: certifying,
        })
    }

    async fn get(&self) -> Result<Streaming<Update>, Status> {
        let request = GetDestination {
            path: "web.shop.svc.cluster.local:80".to_owned(),
            ..GetDestination::default()
        };
        Ok(self.destination.clone().get(request).await?.into_inner())
    }
}

#[tokio::test]
async fn a_revoked_client_is_cut_off_and_refused_and_others_are_not() -> anyhow::Result<()> {
    let (cluster, writer) = cluster("control-revocation").await?;
    let (client, kubeconfig) = (cluster.client().await?, cluster.kubeconfig_path());
    writer.namespace("linkerd", json!({})).await?;
    let files = Files::write()?;
    for (namespace, account) in [
        ("linkerd", "linkerd-destination"),
        ("shop", "web"),
        ("shop", "api"),
    ] {
        let metadata = json!({"namespace": namespace, "name": account});
        writer
            .apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}))
            .await?;
        std::fs::write(
            files.path(account),
            token::request(&client, namespace, account, IDENTITY_TOKEN_AUDIENCE).await?,
        )?;
    }
    web_service(&writer).await?;

    let (identity_addr, destination_addr) = (free_addr()?, free_addr()?);
    let trust_roots = files.flag("trust-roots", "roots");
    let identity_flags = [
        &format!("--listen-addr={identity_addr}"),
        &files.flag("issuer-dir", "issuer"),
        &files.flag("revocations", "revoked"),
        &trust_roots,
    ];
    let identity_service = Program::identity(&kubeconfig, &identity_flags.map(String::as_str)).await?;
    let destination_flags = [
        &format!("--listen-addr={destination_addr}"),
        &format!("--identity-addr={}", identity_service.grpc),
        &files.flag("identity-token-file", "linkerd-destination"),
        &trust_roots,
        &"--identity-revocation=true".to_owned(),
    ];
    let _destination =
        Program::start_with("destination", &kubeconfig, &destination_flags.map(String::as_str)).await?;

    let proxy = async |account: &str| {
        let (roots, token) = (files.path("roots"), files.path(account));
        let name = identity("shop", account)?;
        Proxy::start(name, &roots, token, identity_addr, destination_addr).await
    };
    let (web, api) = (proxy("web").await?, proxy("api").await?);
    let (mut of_web, mut of_api) = (web.get().await?, api.get().await?);
    next(&mut of_web).await?;
    next(&mut of_api).await?;

    std::fs::write(
        files.path("revoked"),
        format!("identity {}\n", identity("shop", "web")?),
    )?;
    let ended = timeout(LIMIT, of_web.message())
        .await
        .context("the revoked client is still served")?;
    ensure!(!matches!(ended, Ok(Some(_))), "{ended:?}");
    let again = web.get().await;
    ensure!(again.is_err(), "the revoked client was let in again");

    // The other's stream has lived through it, and a new one begins.
    writer.pod("web-0", "10.1.0.1").await?;
    writer.slice(&[("web-0", "10.1.0.1")]).await?;
    next(&mut of_api).await?;
    next(&mut api.get().await?).await?;
    Ok(())
}
