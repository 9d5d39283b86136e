//! A namespace of a test's own in the shared world, and streams that are followed as text.

use std::{net::IpAddr, sync::Arc};

use anyhow::{Context as _, bail};
use heddle_tests_harness::wait;
use heddle_wire::PolicyMessage;
use linkerd2_proxy_api::{
    destination::{DestinationProfile, GetDestination, Update},
    inbound::{PortSpec, Server},
    net::TcpAddress,
    outbound::{TrafficSpec, traffic_spec},
};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};
use tonic::{Request, Status, Streaming, client::Grpc, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;

use super::{
    show,
    world::{LIMIT, World, Writer},
};

/// An API version and a kind.
pub(crate) type Kind = (&'static str, &'static str);

pub(crate) const SERVICE: Kind = ("v1", "Service");
pub(crate) const POD: Kind = ("v1", "Pod");
pub(crate) const SLICE: Kind = ("discovery.k8s.io/v1", "EndpointSlice");
pub(crate) const SERVER: Kind = ("policy.linkerd.io/v1beta3", "Server");
pub(crate) const AUTHORIZATION_POLICY: Kind = ("policy.linkerd.io/v1alpha1", "AuthorizationPolicy");
pub(crate) const SERVER_AUTHORIZATION: Kind = ("policy.linkerd.io/v1beta1", "ServerAuthorization");
pub(crate) const MESH_TLS: Kind = ("policy.linkerd.io/v1alpha1", "MeshTLSAuthentication");
pub(crate) const NETWORKS: Kind = ("policy.linkerd.io/v1alpha1", "NetworkAuthentication");
pub(crate) const RATE_LIMIT: Kind = ("policy.linkerd.io/v1alpha1", "HTTPLocalRateLimitPolicy");
pub(crate) const EGRESS: Kind = ("policy.linkerd.io/v1alpha1", "EgressNetwork");
pub(crate) const EXTERNAL: Kind = ("workload.linkerd.io/v1beta1", "ExternalWorkload");
pub(crate) const PROFILE: Kind = ("linkerd.io/v1alpha2", "ServiceProfile");
pub(crate) const POLICY_ROUTE: Kind = ("policy.linkerd.io/v1beta3", "HTTPRoute");
pub(crate) const HTTP_ROUTE: Kind = ("gateway.networking.k8s.io/v1", "HTTPRoute");
pub(crate) const GRPC_ROUTE: Kind = ("gateway.networking.k8s.io/v1", "GRPCRoute");

pub(crate) struct Space {
    pub(crate) world: Arc<World>,
    pub(crate) writer: Writer,
    pub(crate) name: String,
}

impl Space {
    /// A namespace that no other test uses.
    pub(crate) async fn new(name: &str) -> anyhow::Result<Self> {
        let world = World::shared().await?;
        let writer = Writer(world.cluster.client().await?);
        writer.namespace(name, json!({})).await?;
        Ok(Self {
            world,
            writer,
            name: name.to_owned(),
        })
    }

    /// Another one, for the same test.
    pub(crate) async fn beside(&self, name: &str) -> anyhow::Result<Self> {
        let writer = Writer(self.writer.0.clone());
        writer.namespace(name, json!({})).await?;
        Ok(Self {
            world: self.world.clone(),
            writer,
            name: name.to_owned(),
        })
    }

    /// An object of this namespace: `rest` is all but its type and name.
    pub(crate) fn object(&self, (api_version, kind): Kind, name: &str, rest: Value) -> Value {
        let metadata = json!({"namespace": self.name, "name": name});
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
        merge(&mut object, rest);
        object
    }

    pub(crate) async fn put(&self, kind: Kind, name: &str, rest: Value) -> anyhow::Result<()> {
        self.writer.apply(self.object(kind, name, rest)).await
    }

    pub(crate) async fn delete(&self, (api_version, kind): Kind, name: &str) -> anyhow::Result<()> {
        self.writer.delete(api_version, kind, &self.name, name).await
    }

    /// A meshed pod with label `app: web` and port `http`, 8080.
    pub(crate) async fn pod(&self, name: &str, ip: &str, rest: Value) -> anyhow::Result<()> {
        let proxy = json!([{"name": "LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "value": "0.0.0.0:4143"}]);
        let mut pod = json!({
            "metadata": {"labels": {"app": "web", "linkerd.io/control-plane-ns": "linkerd"}},
            "spec": {"containers": [
                {"name": "app", "image": "local/none:1", "ports": [{"name": "http", "containerPort": 8080}]},
                {"name": "linkerd-proxy", "image": "local/none:1", "env": proxy},
            ]},
            "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
        });
        merge(&mut pod, rest);
        self.put(POD, name, pod).await
    }

    /// A service with port 80 to 8080; its address.
    pub(crate) async fn service(&self, name: &str, rest: Value) -> anyhow::Result<String> {
        let mut service = json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]}});
        merge(&mut service, rest);
        let live = self.writer.applied(self.object(SERVICE, name, service)).await?;
        let ip = live.data["spec"]["clusterIP"].as_str();
        Ok(ip.context("no cluster IP")?.to_owned())
    }

    /// Pods behind port 8080 of a service: name and address.
    pub(crate) async fn slice(
        &self,
        service: &str,
        family: &str,
        pods: &[(&str, &str)],
    ) -> anyhow::Result<()> {
        let endpoint = |(name, ip): &(&str, &str)| {
            let target = json!({"kind": "Pod", "namespace": self.name, "name": name});
            json!({"addresses": [ip], "hostname": name, "conditions": {"ready": true}, "targetRef": target})
        };
        let endpoints: Vec<Value> = pods.iter().map(endpoint).collect();
        let rest = json!({
            "metadata": {"labels": {"kubernetes.io/service-name": service}},
            "addressType": family,
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        });
        self.put(SLICE, &format!("{service}-{}", family.to_lowercase()), rest)
            .await
    }

    /// The name of a service's port, as proxies ask for it.
    pub(crate) fn authority(&self, service: &str, port: u16) -> String {
        format!("{service}.{}.svc.cluster.local:{port}", self.name)
    }

    /// Follows the policy of a workload's port, once the workload is known.
    pub(crate) async fn inbound(&self, workload: Value, port: u16) -> anyhow::Result<Told<Server>> {
        let mut spec = workload;
        merge(&mut spec, json!({"ns": self.name}));
        let port = PortSpec {
            workload: spec.to_string(),
            port: port.into(),
        };
        let stream = wait::until_ok("the workload to be known", LIMIT, || {
            let (mut client, port) = (self.world.policy.inbound(), port.clone());
            async move { client.watch_port(port).await }
        });
        Ok(Told::new(stream.await?.into_inner(), show::inbound::server))
    }

    /// Follows the policy of an address or name for clients of this namespace, extension and all.
    pub(crate) async fn outbound(&self, target: &str) -> anyhow::Result<Told<PolicyMessage>> {
        let spec = self.traffic(target)?;
        let stream = wait::until_ok("the target to be known", LIMIT, || {
            let (channel, spec) = (self.world.policy.channel(), spec.clone());
            async move {
                let mut client = Grpc::new(channel);
                let ready = client.ready().await;
                ready.map_err(|error| Status::unavailable(error.to_string()))?;
                let path = PathAndQuery::from_static("/io.linkerd.proxy.outbound.OutboundPolicies/Watch");
                let codec = ProstCodec::<TrafficSpec, PolicyMessage>::default();
                client.server_streaming(Request::new(spec), path, codec).await
            }
        });
        Ok(Told::new(stream.await?.into_inner(), show::outbound::policy))
    }

    /// What a client of this namespace asks about an address or name.
    pub(crate) fn traffic(&self, target: &str) -> anyhow::Result<TrafficSpec> {
        let target = match target.rsplit_once(':') {
            Some((host, port)) if host.parse::<IpAddr>().is_ok() => {
                let ip: IpAddr = host.parse()?;
                traffic_spec::Target::Addr(TcpAddress {
                    ip: Some(ip.into()),
                    port: port.parse()?,
                })
            }
            _ => traffic_spec::Target::Authority(target.to_owned()),
        };
        Ok(TrafficSpec {
            source_workload: json!({"ns": self.name, "pod": "client"}).to_string(),
            target: Some(target),
        })
    }

    /// Follows the endpoints of a name, once it is known.
    pub(crate) async fn endpoints(&self, authority: &str) -> anyhow::Result<Told<Update>> {
        let ask = self.ask(authority);
        let stream = wait::until_ok("the service to be known", LIMIT, || {
            let (mut client, ask) = (self.world.destination.destination(), ask.clone());
            async move { client.get(ask).await }
        });
        let mut endpoints = show::destination::Endpoints::default();
        Ok(Told::new(stream.await?.into_inner(), move |update| {
            endpoints.update(update)
        }))
    }

    /// Follows the profile of an address or name.
    pub(crate) async fn profile(&self, target: &str) -> anyhow::Result<Told<DestinationProfile>> {
        let mut client = self.world.destination.destination();
        let stream = client.get_profile(self.ask(target)).await?.into_inner();
        Ok(Told::new(stream, show::destination::profile))
    }

    fn ask(&self, path: &str) -> GetDestination {
        GetDestination {
            scheme: "k8s".into(),
            path: path.into(),
            context_token: json!({"ns": self.name, "nodeName": "n"}).to_string(),
        }
    }
}

/// Of objects all fields, of all else `rest`.
pub(crate) fn merge(into: &mut Value, rest: Value) {
    match (into, rest) {
        (Value::Object(into), Value::Object(rest)) => {
            for (key, value) in rest {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, rest) => *into = rest,
    }
}

type Read<T> = Box<dyn FnMut(T) -> anyhow::Result<Vec<String>> + Send>;

/// What a client has been told, as text.
pub(crate) struct Told<T> {
    stream: Streaming<T>,
    read: Read<T>,
    last: Vec<String>,
}

impl<T> Told<T> {
    fn new(
        stream: Streaming<T>,
        read: impl FnMut(T) -> anyhow::Result<Vec<String>> + Send + 'static,
    ) -> Self {
        Self {
            stream,
            read: Box::new(read),
            last: Vec::new(),
        }
    }

    /// Waits until the client has been told this.
    pub(crate) async fn becomes(&mut self, wanted: &[&str]) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while self.last != wanted {
            match timeout_at(deadline, self.stream.message()).await {
                Ok(Ok(Some(message))) => self.last = (self.read)(message)?,
                Ok(Ok(None)) => bail!("the stream ended after {:#?}; wanted {wanted:#?}", self.last),
                Ok(Err(status)) => bail!("{status} after {:#?}; wanted {wanted:#?}", self.last),
                Err(_) => bail!("told last: {:#?}; wanted {wanted:#?}", self.last),
            }
        }
        Ok(())
    }

    /// Waits until the stream ends in order.
    pub(crate) async fn ends(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + LIMIT;
        while let Some(message) = timeout_at(deadline, self.stream.message())
            .await
            .context("the stream goes on")??
        {
            self.last = (self.read)(message)?;
        }
        Ok(())
    }
}
