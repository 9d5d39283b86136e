//! The plugin as a container runtime runs it: the real program, by environment and standard input, on a real network
//! namespace, asking an API server over TLS.
//!
//! The API server's part (two GETs) is served here: what matters is what the program does with the answers, with
//! refusals, and with silence. `tests/cluster` runs it under a real one.

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
    thread,
};

use heddle_proxy_cni::kubeconfig::Kubeconfig;
use heddle_tests_harness::netns::{CLIENT_V4, POD_V4, PodPair, connect, serve};
use serde_json::{Value, json};

/// An API server's two answers, over TLS on loopback.
struct Api {
    folder: tempfile::TempDir,
}

impl Api {
    /// `pod` is the body for the pod, or the status line to refuse with.
    fn new(pod: Result<Value, &'static str>) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])
            .expect("a name")
            .self_signed(&key)
            .expect("signed");
        let chain = vec![certificate.der().clone()];
        let key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound listener has an address");
        let config = Arc::new(config);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let _ = answer(stream, Arc::clone(&config), &pod);
            }
        });
        let folder = tempfile::tempdir().expect("a folder");
        let kubeconfig = Kubeconfig {
            server: format!("https://{address}"),
            authority_pem: certificate.pem().into_bytes(),
            token: "the-token".into(),
        };
        std::fs::write(folder.path().join("kubeconfig"), kubeconfig.to_json()).expect("written");
        Self { folder }
    }

    fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }
}

fn answer(
    stream: std::net::TcpStream,
    config: Arc<rustls::ServerConfig>,
    pod: &Result<Value, &'static str>,
) -> std::io::Result<()> {
    let connection = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut reader = BufReader::new(rustls::StreamOwned::new(connection, stream));
    let (mut first, mut line, mut authorized) = (String::new(), String::new(), false);
    reader.read_line(&mut first)?;
    while line != "\r\n" {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        authorized |= line
            .trim_end()
            .eq_ignore_ascii_case("authorization: Bearer the-token");
    }
    let (status, body) = match first.split(' ').nth(1) {
        _ if !authorized => ("401 Unauthorized", Value::Null),
        Some("/api/v1/namespaces/payments") => (
            "200 OK",
            json!({"metadata": {"annotations": {"config.linkerd.io/skip-outbound-ports": "25"}}}),
        ),
        Some("/api/v1/namespaces/payments/pods/web-1") => match pod {
            Ok(pod) => ("200 OK", pod.clone()),
            Err(status) => (*status, Value::Null),
        },
        _ => ("404 Not Found", Value::Null),
    };
    let body = body.to_string();
    let stream = reader.get_mut();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    stream.flush()
}

fn meshed() -> Value {
    json!({
        "metadata": {"name": "web-1", "uid": "u-1", "annotations": {"config.linkerd.io/skip-inbound-ports": "9000"}},
        "spec": {"containers": [{"name": "app"}], "initContainers": [
            {"name": "linkerd-network-validator"},
            {"name": "linkerd-proxy", "securityContext": {"runAsUser": 2102}},
        ]},
    })
}

/// What the plugin answers: whether it succeeded, and its standard output.
fn call(command: &str, net: &PodPair, kubeconfig: &std::path::Path, args: &str) -> (bool, Value) {
    let config = json!({
        "cniVersion": "1.0.0", "name": "k8s", "type": "linkerd-cni",
        "kubernetes": {"kubeconfig": kubeconfig, "exclude_namespaces": ["kube-system"]},
        "linkerd": {"incoming-proxy-port": 4143, "outgoing-proxy-port": 4140, "proxy-uid": 2102,
            "inbound-ports-to-ignore": ["4190", "4191"]},
        "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.2/24"}]},
    });
    let mut child = Command::new(env!("CARGO_BIN_EXE_heddle-cni"))
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", "c1")
        .env("CNI_IFNAME", "eth0")
        .env("CNI_NETNS", net.pod_path())
        .env("CNI_ARGS", args)
        .env("CNI_PATH", "/opt/cni/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the plugin runs");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(config.to_string().as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let value = match text.trim() {
        "" => Value::Null,
        text => serde_json::from_str(text).expect("JSON on standard output"),
    };
    (output.status.success(), value)
}

const WEB: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=payments;K8S_POD_NAME=web-1;K8S_POD_UID=u-1";

#[test]
fn a_meshed_pod_is_redirected_and_checked() {
    let Some(net) = PodPair::new("cni-add") else {
        return;
    };
    let api = Api::new(Ok(meshed()));
    let kubeconfig = api.kubeconfig();
    let (well, error) = call("CHECK", &net, &kubeconfig, WEB);
    assert!(
        !well && error["code"] == 102,
        "nothing is redirected yet: {error}"
    );

    let (well, result) = call("ADD", &net, &kubeconfig, WEB);
    assert!(well, "{result}");
    assert_eq!(
        result,
        json!({"cniVersion": "1.0.0", "ips": [{"address": "10.77.0.2/24"}]}),
        "the others' result, unchanged"
    );
    let address = |text: String| -> SocketAddr { text.parse().expect("an address") };
    serve(&net.pod, "inbound", address("0.0.0.0:4143".into()));
    serve(&net.pod, "outbound", address("127.0.0.1:4140".into()));
    serve(&net.pod, "app", address("0.0.0.0:9000".into()));
    serve(&net.client, "peer", address("0.0.0.0:25".into()));
    let said = |text: &str| Ok::<_, ErrorKind>(text.to_owned());
    let from_client = |port: u16| connect(&net.client, None, &format!("{POD_V4}:{port}"));
    assert_eq!(from_client(8080), said("inbound 10.77.0.2:8080"));
    assert_eq!(
        from_client(9000),
        said("app 10.77.0.2:9000"),
        "the pod's annotation"
    );
    let from_pod = |port: u16| connect(&net.pod, None, &format!("{CLIENT_V4}:{port}"));
    assert_eq!(from_pod(80), said("outbound 10.77.0.1:80"));
    assert_eq!(from_pod(25), said("peer none"), "the namespace's annotation");

    let once = net.ruleset();
    assert!(call("ADD", &net, &kubeconfig, WEB).0);
    assert_eq!(net.ruleset(), once, "adding again adds nothing");
    assert_eq!(call("CHECK", &net, &kubeconfig, WEB), (true, Value::Null));
    for command in ["DEL", "GC", "STATUS"] {
        assert_eq!(
            call(command, &net, &kubeconfig, WEB),
            (true, Value::Null),
            "{command}"
        );
    }
}

#[test]
fn a_pod_that_is_not_the_plugins_passes() {
    let Some(net) = PodPair::new("cni-pass") else {
        return;
    };
    let mut unmeshed = meshed();
    unmeshed["spec"]["initContainers"] = json!([]);
    let mut with_init = meshed();
    with_init["spec"]["initContainers"][0]["name"] = "linkerd-init".into();
    for pod in [unmeshed, with_init] {
        let api = Api::new(Ok(pod));
        assert!(call("ADD", &net, &api.kubeconfig(), WEB).0);
    }
    // Without asking: no kubeconfig is there.
    let nowhere = PathBuf::from("/nonexistent");
    for args in ["", "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns"] {
        assert!(call("ADD", &net, &nowhere, args).0, "{args}");
    }
    assert_eq!(net.ruleset(), "");
}

#[test]
fn a_pod_that_is_not_known_does_not_start() {
    let Some(net) = PodPair::new("cni-doubt") else {
        return;
    };
    let refuse = |kubeconfig: &std::path::Path, args: &str| {
        let (well, error) = call("ADD", &net, kubeconfig, args);
        assert!(!well, "{error}");
        (
            error["code"].clone(),
            error["msg"].as_str().unwrap_or_default().to_owned(),
        )
    };
    let (code, text) = refuse(&PathBuf::from("/nonexistent"), WEB);
    assert!(
        code == 11 && text.contains("DaemonSet linkerd-cni"),
        "{code} {text}"
    );

    let api = Api::new(Err("503 Service Unavailable"));
    let (code, text) = refuse(&api.kubeconfig(), WEB);
    assert!(code == 11 && text.contains("503"), "{code} {text}");

    let api = Api::new(Err("403 Forbidden"));
    let (code, text) = refuse(&api.kubeconfig(), WEB);
    assert!(code == 11 && text.contains("ClusterRole"), "{code} {text}");

    let api = Api::new(Ok(meshed()));
    let other = WEB.replace("u-1", "u-2");
    let (code, text) = refuse(&api.kubeconfig(), &other);
    assert!(code == 11 && text.contains("has been replaced"), "{code} {text}");
    let gone = WEB.replace("web-1", "web-2");
    let (_, text) = refuse(&api.kubeconfig(), &gone);
    assert!(text.contains("pods/web-2"), "{text}");

    let mut odd = meshed();
    odd["metadata"]["annotations"]["config.linkerd.io/skip-inbound-ports"] = "http".into();
    let api = Api::new(Ok(odd));
    let (code, text) = refuse(&api.kubeconfig(), WEB);
    assert!(
        code == 100 && text.contains("skip-inbound-ports"),
        "{code} {text}"
    );
    assert_eq!(net.ruleset(), "", "nothing was half done");
}

#[test]
fn says_its_versions() {
    let output = Command::new(env!("CARGO_BIN_EXE_heddle-cni"))
        .env("CNI_COMMAND", "VERSION")
        .stdin(Stdio::null())
        .output()
        .expect("the plugin runs");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let versions = answer["supportedVersions"].as_array().expect("a list");
    for version in ["0.3.1", "0.4.0", "1.0.0", "1.1.0"] {
        assert!(versions.contains(&version.into()), "{version}");
    }
}
