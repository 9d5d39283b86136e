//! The program against a real Kubernetes API: real tokens, real reviews, real Events.
//!
//! With HEDDLE_TEST_CLUSTER it uses that cluster. Without it, an API server of its own, when its programs are there
//! already; else it says that it was skipped, since building them takes many minutes.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use heddle_mesh::{Identity, ServiceAccountRef, TrustDomain};
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode, ScopedCluster},
    tools, wait,
};
use heddle_tls::{
    CertifyKey, CertifyLoop, ClientAuth, ControlAddr, ControlChannel, LocalCredentials, Store, TrustBundle,
    connect::ChannelOptions,
};
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Event, Namespace, Pod, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Client,
    api::{DeleteParams, ListParams, PostParams},
};
use linkerd2_proxy_api::identity::{CertifyRequest, CertifyResponse, identity_client::IdentityClient};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use tonic::{Code, Status};

const DEADLINE: Duration = Duration::from_secs(60);
const AUDIENCE: &str = "identity.l5d.io";

type Ca = CertifiedIssuer<'static, KeyPair>;

/// Whose cluster it is.
enum Stage {
    Shared(Cluster),
    Own(Box<ScopedCluster>),
}

impl Stage {
    async fn take() -> Option<Self> {
        if let Ok(name) = std::env::var("HEDDLE_TEST_CLUSTER") {
            return Some(Self::Shared(
                Cluster::attach(&name).expect("HEDDLE_TEST_CLUSTER names a cluster"),
            ));
        }
        let there = |program: &str| {
            let cached = tools::cache_dir()
                .ok()
                .and_then(|dir| std::fs::read_dir(dir.join("tools")).ok());
            cached
                .into_iter()
                .flatten()
                .flatten()
                .any(|tool| tool.path().join("bin").join(program).exists())
        };
        if !(there("kube-apiserver") && there("etcd")) {
            eprintln!("Skipped: no Kubernetes programs are built; `cargo xtask test` builds them.");
            return None;
        }
        let name = format!("identity-{}", std::process::id());
        let cluster = ScopedCluster::up(ClusterOptions::new(name, Mode::ApiServerOnly)).await;
        Some(Self::Own(Box::new(cluster.expect("an API server comes up"))))
    }

    fn cluster(&self) -> &Cluster {
        match self {
            Self::Shared(cluster) => cluster,
            Self::Own(cluster) => cluster,
        }
    }
}

/// The running program.
struct Program {
    child: Child,
    log: Arc<Mutex<String>>,
    grpc: SocketAddr,
    admin: SocketAddr,
}

impl Program {
    async fn start(kubeconfig: &Path, dir: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_heddle-identity"))
            .args([
                "--listen-addr",
                "127.0.0.1:0",
                "--admin-addr",
                "127.0.0.1:0",
                "--log-format",
                "json",
            ])
            .args(["--log-level", "info,heddle_identity=debug"])
            .arg("--issuer-dir")
            .arg(dir.join("issuer"))
            .arg("--trust-roots")
            .arg(dir.join("ca-bundle.crt"))
            .env_clear()
            .env("KUBECONFIG", kubeconfig)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = BufReader::new(child.stderr.take().expect("piped"));
        let log = Arc::new(Mutex::new(String::new()));
        let lines = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                let mut log = lines.lock().expect("no one panics");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let addr = |message: &'static str| {
            let log = Arc::clone(&log);
            async move {
                let found = wait::until_ok(message, DEADLINE, || {
                    let log = log.lock().expect("no one panics").clone();
                    async move { log_addr(&log, message).ok_or_else(|| anyhow::anyhow!(log)) }
                });
                found.await.unwrap_or_else(|error| panic!("{error}"))
            }
        };
        let (grpc, admin) = (addr("Serving gRPC").await, addr("Serving admin requests").await);
        Self {
            child,
            log,
            grpc,
            admin,
        }
    }

    fn log(&self) -> String {
        self.log.lock().expect("no one panics").clone()
    }

    async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(self.admin)
            .await
            .expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.expect("reads");
        reply
    }

    /// Ends it as Kubernetes does.
    fn stop(mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .expect("kill runs")
                .success()
        );
        self.child
            .wait()
            .expect("it ends")
            .code()
            .expect("it exits by itself")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address that a log line tells: `"message":"…" … "addr":"…"`, in plain or debug form.
fn log_addr(log: &str, message: &str) -> Option<SocketAddr> {
    let line = log.lines().find(|line| line.contains(message))?;
    let (_, rest) = line.split_once("\"addr\":\"")?;
    let text = rest.split('"').next()?;
    text.trim_start_matches("Some(")
        .trim_end_matches(')')
        .parse()
        .ok()
}

fn mk_root() -> Ca {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "root.linkerd.cluster.local");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    Ca::self_signed(params, KeyPair::generate().expect("a key")).expect("a root")
}

fn identity(namespace: &str, name: &str) -> Identity {
    let account = ServiceAccountRef {
        namespace: namespace.into(),
        name: name.into(),
    };
    Identity::for_service_account(&account, "linkerd", &TrustDomain::default()).expect("a name")
}

async fn token(client: &Client, namespace: &str, name: &str, audience: &str) -> String {
    bound_token(client, namespace, name, audience, None).await
}

/// A token as the kubelet asks for it: bound to the pod.
async fn bound_token(
    client: &Client,
    namespace: &str,
    name: &str,
    audience: &str,
    pod: Option<&Pod>,
) -> String {
    let bound = pod.map(|pod| BoundObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
    });
    let request = TokenRequest {
        spec: Some(TokenRequestSpec {
            audiences: Some(vec![audience.to_owned()]),
            bound_object_ref: bound,
            ..TokenRequestSpec::default()
        }),
        ..TokenRequest::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    let answer = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await;
    answer
        .expect("a token")
        .status
        .expect("a status")
        .token
        .expect("a text")
}

/// A pod that nothing runs: enough to bind a token to.
async fn mk_pod(client: &Client, namespace: &str, name: &str) -> Pod {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name},
        "spec": {"serviceAccountName": "web", "containers": [{"name": "app", "image": "none"}]},
    }))
    .expect("a pod");
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    pods.create(&PostParams::default(), &pod).await.expect("creates")
}

async fn mk_account(client: &Client, namespace: &str, name: &str) {
    let account = ServiceAccount {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        },
        ..ServiceAccount::default()
    };
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), namespace);
    accounts
        .create(&PostParams::default(), &account)
        .await
        .expect("a service account");
}

async fn certify(
    client: &mut IdentityClient<ControlChannel>,
    identity: &Identity,
    token: &str,
) -> Result<(CertifyKey, CertifyResponse), Status> {
    let key = CertifyKey::generate(identity).expect("a key");
    let request = CertifyRequest {
        identity: identity.to_string(),
        token: token.as_bytes().to_vec(),
        certificate_signing_request: key.csr_der().to_vec(),
    };
    let response = tokio::time::timeout(DEADLINE, client.certify(request))
        .await
        .expect("in time")?;
    Ok((key, response.into_inner()))
}

#[tokio::test(flavor = "multi_thread")]
async fn real_tokens_buy_certificates_and_events_tell() {
    let Some(stage) = Stage::take().await else { return };
    let client = stage.cluster().client().await.expect("a client");
    let namespace = format!("identity-{}", std::process::id());
    let namespaces = Api::<Namespace>::all(client.clone());
    let object = Namespace {
        metadata: ObjectMeta {
            name: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    namespaces
        .create(&PostParams::default(), &object)
        .await
        .expect("a namespace");
    mk_account(&client, &namespace, "web").await;
    mk_account(&client, &namespace, "gone").await;

    let dir = tempfile::tempdir().expect("a folder");
    let root = mk_root();
    std::fs::create_dir(dir.path().join("issuer")).expect("makes a folder");
    std::fs::write(dir.path().join("issuer/tls.crt"), root.pem()).expect("writes");
    std::fs::write(dir.path().join("issuer/tls.key"), root.key().serialize_pem()).expect("writes");
    std::fs::write(dir.path().join("ca-bundle.crt"), root.pem()).expect("writes");
    let program = Program::start(&stage.cluster().kubeconfig_path(), dir.path()).await;
    let ready = wait::until_ok("/ready", DEADLINE, || async {
        let reply = program.get("/ready").await;
        anyhow::ensure!(reply.starts_with("HTTP/1.1 200"), reply);
        Ok(())
    });
    ready.await.unwrap_or_else(|error| panic!("{error}"));

    // A workload gets its leaf as proxies do.
    let roots = TrustBundle::from_pem(&root.pem()).expect("a bundle");
    let web = identity(&namespace, "web");
    let web_token = token(&client, &namespace, "web", AUDIENCE).await;
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, &web_token).expect("writes");
    let (store, key) = Store::new(web.clone(), roots.clone()).expect("a store");
    let options = ChannelOptions {
        always_tls: true,
        ..ChannelOptions::default()
    };
    let addr = ControlAddr::from(program.grpc);
    let server = identity("linkerd", "linkerd-identity");
    let certifying = CertifyLoop::with_options(
        store.clone(),
        key,
        addr.clone(),
        server.clone(),
        token_file,
        options.clone(),
    );
    let certifying = tokio::spawn(certifying.run());
    let mut readiness = store.ready();
    let certified = tokio::time::timeout(DEADLINE, readiness.wait_for(|ready| ready.is_ready()));
    certified
        .await
        .unwrap_or_else(|_| panic!("no certificate in time:\n{}", program.log()))
        .expect("lives");
    certifying.abort();

    // An Event stands on the service account.
    let events = Api::<Event>::namespaced(client.clone(), &namespace);
    let told = wait::until_ok("an IssuedLeafCertificate Event", DEADLINE, || async {
        let events = events.list(&ListParams::default()).await?;
        let told = events
            .items
            .into_iter()
            .find(|event| event.reason.as_deref() == Some("IssuedLeafCertificate"));
        told.context("no such Event yet")
    });
    let told = told
        .await
        .unwrap_or_else(|error| panic!("{error}\n{}", program.log()));
    assert_eq!(told.involved_object.kind.as_deref(), Some("ServiceAccount"));
    assert_eq!(told.involved_object.name.as_deref(), Some("web"));
    assert!(told.involved_object.uid.is_some_and(|uid| !uid.is_empty()));
    assert!(told.message.is_some_and(|note| note.contains(web.as_str())));

    // Whatever else a caller shows buys nothing.
    let channel = ControlChannel::with_options(addr, server, store, ClientAuth::Anonymous, options);
    let mut caller = IdentityClient::new(channel);
    let (key, response) = certify(&mut caller, &web, &web_token).await.expect("issued");
    let leaf = LocalCredentials::new(&key, vec![response.leaf_certificate.into()]).expect("ours");
    leaf.verify(&roots, std::time::SystemTime::now())
        .expect("leads to the root");

    // A pod's token is good for as long as the pod is there.
    let (here, gone) = (
        mk_pod(&client, &namespace, "web-1").await,
        mk_pod(&client, &namespace, "web-2").await,
    );
    let here_token = bound_token(&client, &namespace, "web", AUDIENCE, Some(&here)).await;
    let pod_gone_token = bound_token(&client, &namespace, "web", AUDIENCE, Some(&gone)).await;
    Api::<Pod>::namespaced(client.clone(), &namespace)
        .delete("web-2", &DeleteParams::default().grace_period(0))
        .await
        .expect("deletes");
    certify(&mut caller, &web, &here_token).await.expect("issued");
    wait::until_ok("the pod in the log", DEADLINE, || async {
        anyhow::ensure!(program.log().contains(r#""pod":"web-1""#), program.log());
        Ok(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error}"));

    let api_token = token(
        &client,
        &namespace,
        "web",
        "https://kubernetes.default.svc.cluster.local",
    )
    .await;
    let gone_token = token(&client, &namespace, "gone", AUDIENCE).await;
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), &namespace);
    accounts
        .delete("gone", &DeleteParams::default())
        .await
        .expect("deletes");
    let mut tampered = web_token.clone();
    let last = tampered.pop().expect("not empty");
    tampered.push(if last == 'A' { 'Q' } else { 'A' });
    for (who, name, token) in [
        ("another audience", "web", api_token.as_str()),
        ("an account that is gone", "gone", &gone_token),
        ("a pod that is gone", "web", &pod_gone_token),
        ("a forged token", "web", &tampered),
        ("no token of this cluster", "web", "abc.def.ghi"),
        ("another account", "gone", &web_token),
    ] {
        let status = certify(&mut caller, &identity(&namespace, name), token)
            .await
            .map(drop)
            .expect_err(who);
        assert_eq!(status.code(), Code::FailedPrecondition, "{who}: {status:?}");
    }

    let metrics = program.get("/metrics").await;
    for line in [
        r#"identity_certify_requests_total{result="issued"} 3"#,
        r#"identity_certify_requests_total{result="not_authenticated"} 5"#,
        r#"identity_certify_requests_total{result="wrong_identity"} 1"#,
        "\nissuer_cert_ttl_seconds ",
        "\ntrust_anchors_cert_ttl_seconds ",
        "\ncontrol_identity_cert_expiration_timestamp_seconds ",
        r#"control_identity_cert_refreshes_total{result="ok"} 1"#,
        "\nprocess_resident_memory_bytes ",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }
    let log = program.log();
    for secret in [&web_token, &api_token, &gone_token, &here_token] {
        assert!(!log.contains(secret.as_str()), "a token is in the log");
    }
    assert!(!log.contains("PRIVATE KEY"), "a key is in the log");
    drop(caller);
    assert_eq!(program.stop(), 0);
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .expect("deletes");
}
