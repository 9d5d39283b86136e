//! The control plane is gone: a pair of real proxies under load, with the real control plane on the host, whose programs
//! are all killed at once and come back after a while.
//!
//! While it is gone an endpoint is exchanged for another, so that being current again can be seen in the answers: `one`
//! comes from the endpoint before, `two` from the one after. Every request counts, on kept connections and on new ones.

mod load;

use std::{
    net::IpAddr,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use heddle_mesh::IDENTITY_TOKEN_AUDIENCE;
use heddle_tests_harness::{
    cluster::{Cluster, ClusterOptions, Mode},
    progress::Progress,
    token,
};
use kube::Client;
use serde_json::{Value, json};
use tokio::time::sleep;

pub(crate) use self::load::{LoadOptions, run_load};
use crate::{
    netns::{Pair, Process, Uplink},
    plane::{self, Plane},
    proxy::sidecar::{self, Sidecar},
    record::Record,
};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How long the control plane is gone.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    /// Requests per second, on each kind of connection.
    #[arg(long, default_value_t = 100)]
    rate: u64,
    /// Where the programs under test are.
    #[arg(long, default_value = "target/image")]
    binaries: PathBuf,
    /// The proxy.
    #[arg(long, default_value = "target/release/heddle-proxy")]
    proxy: PathBuf,
}

const BENCH: &str = "outage";
const CLUSTER: &str = "heddle-bench-outage";
const NAMESPACE: &str = "bench";
const PORT: u16 = 8080;
const ONE: &str = Pair::SERVER_IP;
const TWO: &str = "10.77.0.3";
const BOTH: &str = "web-both";
/// Load before the outage and after everything is current, unless the outage itself is short.
const CALM: Duration = Duration::from_secs(5);
/// Far longer than being current again may take.
const LIMIT: Duration = Duration::from_secs(60);

pub(crate) async fn run(options: Options) -> Result<Vec<Record>> {
    Cluster::down(CLUSTER).await?;
    let cluster =
        Cluster::up(ClusterOptions::new(CLUSTER, Mode::ApiServerOnly).with_progress(Progress::Shown)).await?;
    let outcome = measure(&cluster, &options).await;
    Cluster::down(CLUSTER).await?;
    outcome
}

/// Fields drop in order: processes before their namespaces.
struct Pods {
    processes: Vec<Process>,
    _uplink: Uplink,
    netns: Pair,
    files: tempfile::TempDir,
}

async fn measure(cluster: &Cluster, options: &Options) -> Result<Vec<Record>> {
    let client = cluster.client().await?;
    let pair = Pair::new("")?;
    let uplink = Uplink::new(&pair)?;
    let mut plane = Plane::start(cluster, Uplink::HOST_IP.parse::<IpAddr>()?, &options.binaries).await?;
    let service = objects(&client).await?;
    let mut pods = Pods {
        processes: Vec::new(),
        _uplink: uplink,
        netns: pair,
        files: tempfile::tempdir()?,
    };
    pods.start(&client, &plane, options).await?;

    let outage = Duration::from_secs(options.seconds);
    let calm = CALM.min(outage / 2);
    let load = pods.load(&format!("{service}:80"), options)?;
    load.wait_for("one", 100).await?;
    sleep(calm).await;
    for program in plane.programs() {
        program.kill()?;
    }
    eprintln!("The control plane is gone for {} s", options.seconds);
    sleep(outage / 2).await;
    slice(&client, TWO).await?;
    sleep(outage / 2).await;
    let during = load.counts()?;
    ensure!(during.two == 0, "nobody can know of the new endpoint yet");

    let begun = Instant::now();
    for program in plane.programs() {
        program.spawn()?;
    }
    load.wait_for("two", 1).await?;
    let first = begun.elapsed().as_secs_f64();
    // The server's proxy follows its port's policy again.
    loop {
        let followed = plane
            .policy
            .metric("grpc_streams_open{method=\"WatchPort\"}")
            .await;
        if followed.is_ok_and(|streams| streams >= 1.0) {
            break;
        }
        ensure!(begun.elapsed() < LIMIT, "no proxy has asked for its policy again");
        sleep(Duration::from_millis(20)).await;
    }
    let current = begun.elapsed().as_secs_f64();
    sleep(calm).await;
    let counts = load.finish()?;
    eprintln!(
        "{} requests, {} failed{}; current {first:.2} s after the start of the control plane, all streams {current:.2} s",
        counts.requests,
        counts.failed,
        counts
            .first_failure
            .map(|failure| format!(" (first: {failure})"))
            .unwrap_or_default(),
    );
    let record = |metric, unit, value| Record::alone(BENCH, metric, unit, &[value]);
    Ok(vec![
        record("outage_seconds", "s", options.seconds as f64),
        record("requests", "1", counts.requests as f64),
        record("failed_requests", "1", counts.failed as f64),
        record("longest_request", "s", counts.longest),
        record("current_after_return", "s", first),
        record("streams_after_return", "s", current),
    ])
}

/// A service with one endpoint, in a pod that the server's namespace stands for; returns the service's address.
async fn objects(client: &Client) -> Result<String> {
    let apply = |object| plane::apply(client, object);
    apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})).await?;
    for name in ["default", "client", "web"] {
        let metadata = json!({"namespace": NAMESPACE, "name": name});
        apply(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})).await?;
    }
    for (name, account, ip) in [
        ("client", "client", Pair::CLIENT_IP),
        ("web", "web", ONE),
        ("web-two", "web", TWO),
        // One proxy serves both addresses, and no pod can have two of a kind: it follows the policies of this one.
        (BOTH, "web", ""),
    ] {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": NAMESPACE, "name": name, "labels": {"app": account, "linkerd.io/control-plane-ns": "linkerd"}},
            "spec": {"serviceAccountName": account, "containers": [
                {"name": "app", "image": "local/none:1", "ports": [{"containerPort": PORT}]},
                {"name": "linkerd-proxy", "image": "local/none:1"},
            ]},
        });
        apply(pod.clone()).await?;
        let status = match ip {
            "" => json!({"status": {"phase": "Running"}}),
            ip => json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}),
        };
        let pods: kube::Api<k8s_openapi::api::core::v1::Pod> =
            kube::Api::namespaced(client.clone(), NAMESPACE);
        let params = kube::api::PatchParams::default();
        pods.patch_status(name, &params, &kube::api::Patch::Merge(&status))
            .await?;
    }
    apply(json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": "web"},
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": PORT}]},
    }))
    .await?;
    slice(client, ONE).await?;
    let services: kube::Api<k8s_openapi::api::core::v1::Service> =
        kube::Api::namespaced(client.clone(), NAMESPACE);
    let live = services.get("web").await?;
    live.spec
        .and_then(|spec| spec.cluster_ip)
        .context("a service has an address")
}

async fn slice(client: &Client, ip: &str) -> Result<()> {
    let pod = if ip == ONE { "web" } else { "web-two" };
    let reference: Value = json!({"kind": "Pod", "namespace": NAMESPACE, "name": pod});
    plane::apply(
        client,
        json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": PORT, "protocol": "TCP"}],
            "endpoints": [{"addresses": [ip], "conditions": {"ready": true}, "targetRef": reference}],
        }),
    )
    .await
}

impl Pods {
    /// The application, both addresses of the server, and both proxies.
    async fn start(&mut self, client: &Client, plane: &Plane, options: &Options) -> Result<()> {
        let dir = self.files.path().to_owned();
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o755))?;
        let Pair {
            client: near,
            server: far,
        } = &self.netns;
        far.run(&["ip", "addr", "add", &format!("{TWO}/24"), "dev", "eth0"])?;
        // Where services are does not matter: their addresses are redirected before anything is sent there.
        near.run(&["ip", "route", "add", "default", "dev", "eth0"])?;
        let temp = dir.display();
        let answer = |ip: &str, text: &str| {
            format!("server {{ listen {ip}:{PORT}; location / {{ return 200 {text}; }} }}")
        };
        let config = format!(
            "daemon off; master_process off; pid {temp}/nginx.pid; error_log stderr crit; events {{}}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {temp}/b; proxy_temp_path {temp}/p;\n\
             fastcgi_temp_path {temp}/f; uwsgi_temp_path {temp}/u; scgi_temp_path {temp}/s;\n{}\n{}\n}}\n",
            answer(ONE, "one"),
            answer(TWO, "two"),
        );
        let path = dir.join("nginx.conf");
        std::fs::write(&path, config)?;
        let mut nginx = far.command("nginx");
        nginx.arg("-c").arg(&path);
        self.processes.push(Process::start("nginx", &mut nginx)?);

        let (proxy, init) = (&options.proxy, options.binaries.join("heddle-init"));
        let init = init
            .canonicalize()
            .with_context(|| format!("no {}", init.display()))?;
        let init = init.to_str().context("paths are UTF-8")?;
        let addrs =
            [&plane.destination, &plane.policy, &plane.identity].map(|program| program.addr.to_string());
        let name = |account: &str, namespace: &str| {
            format!("{account}.{namespace}.serviceaccount.identity.linkerd.cluster.local")
        };
        let (control, identity) = (
            name("linkerd-destination", "linkerd"),
            name("linkerd-identity", "linkerd"),
        );
        for (netns, pod, workload, ips) in [
            (near, "client", "client", Pair::CLIENT_IP.to_owned()),
            (far, "web", BOTH, format!("{ONE},{TWO}")),
        ] {
            sidecar::redirect(netns, init, "8086", "8086")?;
            let token = dir.join(format!("token-{pod}"));
            std::fs::write(
                &token,
                token::request(client, NAMESPACE, pod, IDENTITY_TOKEN_AUDIENCE).await?,
            )?;
            std::fs::set_permissions(&token, PermissionsExt::from_mode(0o644))?;
            let sidecar = Sidecar {
                dir: &dir,
                identity: &name(pod, NAMESPACE),
                ips: &ips,
                workload: &json!({"ns": NAMESPACE, "pod": workload}).to_string(),
                anchors: plane.files.anchor(),
                token,
                destination: (&addrs[0], &control),
                policy: (&addrs[1], &control),
                identity_service: (&addrs[2], &identity),
                wrapper: &[],
            };
            let mut command = sidecar.command(netns, proxy, "0,1");
            let name = format!("heddle-proxy ({pod})");
            self.processes.push(Process::start(name, &mut command)?);
        }
        for netns in [near, far] {
            sidecar::wait_ready(netns)?;
        }
        Ok(())
    }

    fn load(&self, target: &str, options: &Options) -> Result<load::Running> {
        load::Running::start(&self.netns.client, target, options.rate)
    }
}
