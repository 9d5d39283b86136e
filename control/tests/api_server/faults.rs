//! The API server falls ill in every way it can, while objects change and some clients do not read: afterwards, what every
//! client was told is what a fresh one is told, and that is what was written.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use heddle_tests_harness::wait;
use http::StatusCode;
use linkerd2_proxy_api::{
    destination::{
        DestinationProfile, GetDestination, Update, WeightedAddr, destination_client::DestinationClient,
        update,
    },
    inbound::{PortSpec, Server, inbound_server_policies_client::InboundServerPoliciesClient},
    net::TcpAddress,
    outbound::{OutboundPolicy, TrafficSpec, outbound_policies_client::OutboundPoliciesClient, traffic_spec},
};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{sync::watch, task::JoinSet};
use tonic::{Streaming, transport::Channel};

use super::{
    gate::{Gate, Health},
    world::{LIMIT, Program, Writer, cluster, next, policy, policy_crds, web_service},
};

/// Of so many clients every fourth is slow.
const CLIENTS: usize = 16;

/// A window that a few messages fill.
const SLOW_WINDOW: u32 = 64;

/// What a client knows after all that it was told.
#[derive(Clone, Debug, Default, PartialEq)]
struct Known {
    endpoints: BTreeMap<SocketAddr, WeightedAddr>,
    profile: Option<DestinationProfile>,
    outbound: Option<OutboundPolicy>,
    inbound: Option<Server>,
}

fn socket(addr: TcpAddress) -> SocketAddr {
    let ip = addr.ip.and_then(|ip| IpAddr::try_from(ip).ok());
    let port = u16::try_from(addr.port).expect("a port");
    SocketAddr::new(ip.expect("an IP"), port)
}

impl Known {
    fn update(&mut self, update: Update) {
        match update.update.expect("a kind") {
            update::Update::Add(set) => {
                for one in set.addrs {
                    self.endpoints.insert(socket(one.addr.expect("an address")), one);
                }
            }
            update::Update::Remove(set) => {
                for one in set.addrs {
                    self.endpoints.remove(&socket(one));
                }
            }
            update::Update::NoEndpoints(_) => self.endpoints.clear(),
        }
    }
}

/// The streams of one proxy.
struct Streams {
    endpoints: Streaming<Update>,
    profile: Streaming<DestinationProfile>,
    outbound: Streaming<OutboundPolicy>,
    inbound: Streaming<Server>,
}

impl Streams {
    async fn open(destination: &Program, policy: &Program, ip: &str, slow: bool) -> anyhow::Result<Self> {
        let channel = |grpc: SocketAddr| -> anyhow::Result<Channel> {
            let endpoint = Channel::from_shared(format!("http://{grpc}"))?;
            let window = slow.then_some(SLOW_WINDOW);
            Ok(endpoint.initial_stream_window_size(window).connect_lazy())
        };
        let get = |path: String| GetDestination {
            path,
            context_token: r#"{"ns":"shop","nodeName":"n"}"#.into(),
            ..GetDestination::default()
        };
        let mut client = DestinationClient::new(channel(destination.grpc)?);
        let endpoints = client.get(get("web.shop.svc.cluster.local:80".into())).await?;
        let profile = client.get_profile(get(format!("{ip}:80"))).await?;
        let channel = channel(policy.grpc)?;
        let addr: SocketAddr = format!("{ip}:80").parse()?;
        let spec = TrafficSpec {
            source_workload: "shop:web-0".into(),
            target: Some(traffic_spec::Target::Addr(addr.into())),
        };
        let outbound = OutboundPoliciesClient::new(channel.clone()).watch(spec).await?;
        let port = PortSpec {
            workload: "shop:web-0".into(),
            port: 8080,
        };
        let inbound = InboundServerPoliciesClient::new(channel).watch_port(port).await?;
        Ok(Self {
            endpoints: endpoints.into_inner(),
            profile: profile.into_inner(),
            outbound: outbound.into_inner(),
            inbound: inbound.into_inner(),
        })
    }

    /// What is told first.
    async fn fresh(mut self) -> anyhow::Result<Known> {
        let mut known = Known {
            profile: Some(next(&mut self.profile).await?),
            outbound: Some(next(&mut self.outbound).await?),
            inbound: Some(next(&mut self.inbound).await?),
            ..Known::default()
        };
        known.update(next(&mut self.endpoints).await?);
        Ok(known)
    }

    /// Follows the streams into `known`, while `reading`.
    fn follow(self, known: &Arc<Mutex<Known>>, reading: &watch::Receiver<bool>, tasks: &mut JoinSet<()>) {
        let Self {
            endpoints,
            profile,
            outbound,
            inbound,
        } = self;
        read(endpoints, known, reading, tasks, Known::update);
        read(profile, known, reading, tasks, |known, profile| {
            known.profile = Some(profile)
        });
        read(outbound, known, reading, tasks, |known, policy| {
            known.outbound = Some(policy)
        });
        read(inbound, known, reading, tasks, |known, server| {
            known.inbound = Some(server)
        });
    }
}

fn read<T: Send + Debug + 'static>(
    mut stream: Streaming<T>,
    known: &Arc<Mutex<Known>>,
    reading: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
    fold: fn(&mut Known, T),
) {
    let (known, mut reading) = (known.clone(), reading.clone());
    tasks.spawn(async move {
        loop {
            let _ = reading.wait_for(|reading| *reading).await;
            let message = stream.message().await.expect("no stream is aborted");
            fold(&mut known.lock(), message.expect("no stream ends"));
        }
    });
}

/// The `n`th state of the cluster: which endpoints the service has, whether it is opaque, and what its Server says.
async fn write(writer: &Writer, n: usize) -> anyhow::Result<BTreeSet<SocketAddr>> {
    let pods: Vec<(String, String)> = (0..3 + n % 3)
        .map(|at| (format!("web-{}", n * at), format!("10.1.0.{}", 1 + n * at)))
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect();
    for (name, ip) in &pods {
        writer.pod(name, ip).await?;
    }
    let listed: Vec<(&str, &str)> = pods
        .iter()
        .map(|(name, ip)| (name.as_str(), ip.as_str()))
        .collect();
    writer.slice(&listed).await?;
    let opaque = if n.is_multiple_of(2) { "80" } else { "" };
    writer
        .apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"config.linkerd.io/opaque-ports": opaque}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))
        .await?;
    let protocol = ["HTTP/1", "HTTP/2", "opaque"][n % 3];
    let spec =
        json!({"podSelector": {"matchLabels": {"app": "web"}}, "port": 8080, "proxyProtocol": protocol});
    writer.apply(policy("Server", "v1beta3", "web", spec)).await?;
    let identities =
        json!({"identities": [format!("a{n}.shop.serviceaccount.identity.linkerd.cluster.local")]});
    writer
        .apply(policy("MeshTLSAuthentication", "v1alpha1", "a", identities))
        .await?;
    let required = json!([{"group": "policy.linkerd.io", "kind": "MeshTLSAuthentication", "name": "a"}]);
    let target = json!({"group": "policy.linkerd.io", "kind": "Server", "name": "web"});
    let spec = json!({"targetRef": target, "requiredAuthenticationRefs": required});
    writer
        .apply(policy(
            "AuthorizationPolicy",
            "v1alpha1",
            &format!("allow-{n}"),
            spec,
        ))
        .await?;
    if n > 0 {
        let old = format!("allow-{}", n - 1);
        writer
            .delete("policy.linkerd.io/v1alpha1", "AuthorizationPolicy", "shop", &old)
            .await?;
    }
    let addrs = pods.iter().map(|(_, ip)| format!("{ip}:8080").parse());
    Ok(addrs.collect::<Result<_, _>>()?)
}

#[tokio::test]
async fn every_client_is_right_again_after_every_fault() -> anyhow::Result<()> {
    let (cluster, writer) = cluster("control-faults").await?;
    policy_crds(&writer).await?;
    let ip = web_service(&writer).await?;
    writer.pod("web-0", "10.1.0.1").await?;
    write(&writer, 0).await?;
    let gate = Gate::open(cluster.client().await?).await?;
    let destination = Program::start_with("destination", &gate.kubeconfig, &[]).await?;
    let policies = Program::start_with("policy", &gate.kubeconfig, &[]).await?;

    let (reading, quick) = watch::channel(true);
    let (pause, slow) = watch::channel(true);
    let mut tasks = JoinSet::new();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let is_slow = number % 4 == 3;
        let known = Arc::new(Mutex::new(Known::default()));
        let streams = Streams::open(&destination, &policies, &ip, is_slow).await?;
        streams.follow(&known, if is_slow { &slow } else { &quick }, &mut tasks);
        clients.push(known);
    }

    let faults = [
        Health::Refuses(StatusCode::TOO_MANY_REQUESTS),
        Health::Refuses(StatusCode::INTERNAL_SERVER_ERROR),
        Health::Expires,
        Health::Stalls,
        Health::Cuts,
    ];
    for (at, fault) in faults.into_iter().enumerate() {
        let n = 1 + 2 * at;
        pause.send_replace(false);
        let before = gate.faults();
        gate.set(fault);
        write(&writer, n).await?;
        wait::until_ok(format!("{fault:?} to be felt"), LIMIT, || async {
            ensure!(gate.faults() > before, "no fault yet");
            Ok::<_, anyhow::Error>(())
        })
        .await?;
        let expected = write(&writer, n + 1).await?;
        gate.set(Health::Well);
        pause.send_replace(true);
        let allowed = format!("a{}.shop", n + 1);
        wait::until_ok(format!("all to be right after {fault:?}"), LIMIT, || async {
            let fresh = Streams::open(&destination, &policies, &ip, false)
                .await?
                .fresh()
                .await?;
            let addrs: BTreeSet<SocketAddr> = fresh.endpoints.keys().copied().collect();
            ensure!(addrs == expected, "{addrs:?} instead of {expected:?}");
            ensure!(
                format!("{:?}", fresh.inbound).contains(&allowed),
                "{allowed} is not let in"
            );
            for client in &clients {
                let known = client.lock().clone();
                ensure!(known == fresh, "{known:?} is not {fresh:?}");
            }
            Ok(())
        })
        .await?;
    }

    let metrics = destination.admin("/metrics").await?;
    let count = |name: &str| -> anyhow::Result<usize> {
        let line = metrics.lines().find_map(|line| line.strip_prefix(name));
        Ok(line
            .with_context(|| format!("no {name} in\n{metrics}"))?
            .trim()
            .parse()?)
    };
    let sent = count("grpc_updates_sent_total{method=\"Get\"}")?;
    let encoded = count("grpc_updates_encoded_total{method=\"Get\"}")?;
    ensure!(encoded * 2 < sent, "{encoded} messages were encoded for {sent}");
    ensure!(tasks.try_join_next().is_none(), "a stream was aborted");
    drop(reading);
    Ok(())
}
