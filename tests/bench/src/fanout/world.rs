//! What the API server holds: services with endpoints in three zones, and the pods that the simulated proxies run in.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Pod, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, Resource,
    api::{Patch, PatchParams, PostParams},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub(crate) const NAMESPACE: &str = "bench";
const NODES: usize = 100;
const ZONES: usize = 3;
pub(crate) const ENDPOINTS_PER_SERVICE: usize = 20;
/// Requests to the API server at a time.
const WRITERS: usize = 16;

/// How large the cluster is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    pub(crate) services: usize,
    /// Pods, each with a simulated proxy.
    pub(crate) pods: usize,
    /// Of each service: at most [`ENDPOINTS_PER_SERVICE`].
    pub(crate) endpoints: usize,
}

/// The cluster's services by number: their addresses.
pub(crate) struct World {
    client: Client,
    pub(crate) service_ips: Vec<Ipv4Addr>,
}

pub(crate) fn node(number: usize) -> String {
    format!("node-{}", number % NODES)
}

pub(crate) fn pod(number: usize) -> String {
    format!("p-{number}")
}

pub(crate) fn service(number: usize) -> String {
    format!("svc-{number}")
}

pub(crate) fn zone(node: usize) -> String {
    format!("zone-{}", node % NODES % ZONES)
}

impl World {
    /// Writes all objects that are not there yet.
    pub(crate) async fn build(client: Client, size: Size) -> Result<Self> {
        let Size {
            services,
            pods,
            endpoints,
        } = size;
        let metadata = json!({"name": NAMESPACE});
        create::<Namespace>(&Api::all(client.clone()), json!({"metadata": metadata})).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), NAMESPACE);
        create(&accounts, json!({"metadata": {"name": "default"}})).await?;
        let nodes: Api<Node> = Api::all(client.clone());
        for number in 0..NODES {
            let labels = json!({"topology.kubernetes.io/zone": zone(number)});
            create(
                &nodes,
                json!({"metadata": {"name": node(number), "labels": labels}}),
            )
            .await?;
        }
        let api: Api<Service> = Api::namespaced(client.clone(), NAMESPACE);
        let service_ips = stream::iter(0..services)
            .map(|number| {
                let api = api.clone();
                async move {
                    let ports = json!([{"name": "http", "port": 80, "targetPort": 8080}]);
                    let object = json!({"metadata": {"name": service(number)}, "spec": {"ports": ports}});
                    create(&api, object).await?;
                    let live = api.get(&service(number)).await?;
                    let ip = live.spec.and_then(|spec| spec.cluster_ip);
                    Ok::<Ipv4Addr, anyhow::Error>(ip.context("a service has an address")?.parse()?)
                }
            })
            .buffered(WRITERS)
            .try_collect()
            .await?;
        let api: Api<Pod> = Api::namespaced(client.clone(), NAMESPACE);
        stream::iter((0..pods).map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(WRITERS, |number| {
                let api = api.clone();
                async move { create(&api, pod_object(number)).await }
            })
            .await?;
        let world = Self { client, service_ips };
        stream::iter((0..services).map(Ok::<_, anyhow::Error>))
            .try_for_each_concurrent(WRITERS, |number| world.slice(number, endpoints, pods))
            .await?;
        Ok(world)
    }

    fn slices(&self) -> Api<EndpointSlice> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Writes a service's first `endpoints`: the first half is in pods, where there are so many.
    pub(crate) async fn slice(&self, number: usize, endpoints: usize, pods: usize) -> Result<()> {
        let first = number * ENDPOINTS_PER_SERVICE;
        let list = (0..endpoints).map(|at| {
            let all = first + at;
            let mut endpoint = json!({
                "addresses": [Ipv4Addr::from(0x0a40_0000 + all as u32).to_string()],
                "conditions": {"ready": true},
                "nodeName": node(all),
                "zone": zone(all),
            });
            let of_pod = number * (ENDPOINTS_PER_SERVICE / 2) + at / 2;
            if at % 2 == 0 && of_pod < pods {
                let reference = json!({"kind": "Pod", "namespace": NAMESPACE, "name": pod(of_pod)});
                endpoint["targetRef"] = reference;
            }
            endpoint
        });
        let slice = slice_object(
            &service(number),
            &format!("{}-a", service(number)),
            list.collect(),
        );
        self.put(slice).await
    }

    /// Writes a second slice of a service, with one endpoint or none.
    pub(crate) async fn extra(&self, number: usize, endpoint: Option<Ipv4Addr>) -> Result<()> {
        let list = endpoint.map(|ip| json!({"addresses": [ip.to_string()], "conditions": {"ready": true}}));
        let name = format!("{}-extra", service(number));
        self.put(slice_object(&service(number), &name, list.into_iter().collect()))
            .await
    }

    async fn put(&self, slice: Value) -> Result<()> {
        let name = slice["metadata"]["name"]
            .as_str()
            .context("a slice has a name")?
            .to_owned();
        let params = PatchParams::apply("bench").force();
        self.slices().patch(&name, &params, &Patch::Apply(&slice)).await?;
        Ok(())
    }

    /// Changes a service's opaque ports.
    pub(crate) async fn opaque(&self, number: usize, opaque: bool) -> Result<()> {
        let api: Api<Service> = Api::namespaced(self.client.clone(), NAMESPACE);
        let ports = if opaque { json!("80") } else { Value::Null };
        let change = json!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": ports}}});
        api.patch(&service(number), &PatchParams::default(), &Patch::Merge(&change))
            .await?;
        Ok(())
    }

    /// Makes a Server of some pods, or changes its protocol.
    pub(crate) async fn server(&self, number: usize, protocol: &str) -> Result<()> {
        crate::plane::apply(
            &self.client,
            json!({
                "apiVersion": "policy.linkerd.io/v1beta3",
                "kind": "Server",
                "metadata": {"namespace": NAMESPACE, "name": format!("server-{number}")},
                "spec": {
                    "podSelector": {"matchLabels": {"app": format!("app-{number}")}},
                    "port": 8080,
                    "proxyProtocol": protocol,
                },
            }),
        )
        .await
    }
}

fn slice_object(service: &str, name: &str, endpoints: Vec<Value>) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": endpoints,
    })
}

/// A meshed pod of a Deployment, about as large as real ones.
fn pod_object(number: usize) -> Value {
    let app = format!("app-{}", number / 10);
    let variables: Vec<Value> = (0..40)
        .map(|n| json!({"name": format!("LINKERD2_PROXY_SETTING_{n}"), "value": format!("value-{n}")}))
        .collect();
    json!({
        "metadata": {
            "name": pod(number),
            "labels": {
                "app": app,
                "app.kubernetes.io/name": app,
                "app.kubernetes.io/version": "1.2.3",
                "pod-template-hash": "6d4f9c7b8",
                "linkerd.io/control-plane-ns": "linkerd",
                "linkerd.io/proxy-deployment": app,
                "linkerd.io/workload-ns": NAMESPACE,
            },
            "annotations": {"linkerd.io/inject": "enabled", "linkerd.io/proxy-version": "0.1.0"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6d4f9c7b8"),
                "uid": "00000000-0000-0000-0000-000000000000", "controller": true,
            }],
        },
        "spec": {
            "nodeName": node(number),
            "containers": [
                {
                    "name": "app", "image": "local/app:1", "ports": [{"name": "http", "containerPort": 8080}],
                    "livenessProbe": {"httpGet": {"path": "/live", "port": 8080}},
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}},
                },
                {"name": "linkerd-proxy", "image": "local/proxy:1", "env": variables},
            ],
        },
    })
}

/// Makes an object; one that is there already stays as it is.
async fn create<K>(api: &Api<K>, object: Value) -> Result<()>
where
    K: Resource<DynamicType = ()> + Serialize + DeserializeOwned + Clone + std::fmt::Debug,
{
    let object: K = serde_json::from_value(object)?;
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).with_context(|| format!("failed to create {:?}", object.meta().name)),
        Ok(_) => Ok(()),
    }
}
