//! Objects as short as the tests need them, and questions as short as the answers allow.

use std::{net::SocketAddr, sync::Arc};

use heddle_control_core::{
    discover::{
        DiscoverEndpoints as _, DiscoverInbound as _, DiscoverOutbound as _, DiscoverProfiles as _,
        ServiceName, ServiceTarget, Target, Watched, WorkloadName,
    },
    endpoints::Endpoints,
    inbound::{Authorization, InboundServer},
    outbound::OutboundPolicy,
    profile::Profile,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{Cluster, Config, ObjectKey, Tracked};

pub(super) use serde_json::json as j;

/// An object of kind `K` from JSON, with namespace and name.
pub(super) fn mk<K: DeserializeOwned + kube::Resource<DynamicType = ()>>(
    namespace: &str,
    name: &str,
    rest: Value,
) -> K {
    let mut object = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"namespace": namespace, "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
    });
    merge(&mut object, rest);
    serde_json::from_value(object).expect("an object of this kind")
}

pub(super) fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

pub(super) type Pod = k8s_openapi::api::core::v1::Pod;
pub(super) type Service = k8s_openapi::api::core::v1::Service;
pub(super) type Slice = k8s_openapi::api::discovery::v1::EndpointSlice;
pub(super) type Namespace = k8s_openapi::api::core::v1::Namespace;
pub(super) type Node = k8s_openapi::api::core::v1::Node;

/// A running pod without a proxy, labelled `app: NAME`, with a container port 8080 named `http`.
pub(super) fn mk_pod(namespace: &str, name: &str, ip: &str) -> Pod {
    mk_pod_with(namespace, name, ip, json!({}))
}

pub(super) fn mk_pod_with(namespace: &str, name: &str, ip: &str, more: Value) -> Pod {
    let mut rest = json!({
        "metadata": {"labels": {"app": name}},
        "spec": {
            "nodeName": "node-a",
            "serviceAccountName": name,
            "containers": [{"name": "app", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    });
    merge(&mut rest, more);
    mk(namespace, name, rest)
}

/// As [`mk_pod`], with a proxy of control plane `linkerd`.
pub(super) fn mk_meshed_pod(namespace: &str, name: &str, ip: &str) -> Pod {
    mk_pod_with(namespace, name, ip, meshed())
}

pub(super) fn meshed() -> Value {
    json!({
        "metadata": {"labels": {"linkerd.io/control-plane-ns": "linkerd"}},
        "spec": {"initContainers": [
            {"name": "linkerd-init", "args": ["--inbound-ports-to-ignore", "4190,4191,4567"]},
            {"name": "linkerd-proxy", "restartPolicy": "Always", "env": [
                {"name": "LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "value": "0.0.0.0:4143"},
                {"name": "LINKERD2_PROXY_ADMIN_LISTEN_ADDR", "value": "0.0.0.0:4191"},
                {"name": "LINKERD2_PROXY_CONTROL_LISTEN_ADDR", "value": "0.0.0.0:4190"},
            ]},
        ]},
    })
}

/// A service with a port 80 named `http` that leads to 8080.
pub(super) fn mk_service(namespace: &str, name: &str, cluster_ip: &str) -> Service {
    mk_service_with(namespace, name, cluster_ip, json!({}))
}

pub(super) fn mk_service_with(namespace: &str, name: &str, cluster_ip: &str, more: Value) -> Service {
    let mut rest = json!({"spec": {
        "clusterIP": cluster_ip,
        "clusterIPs": [cluster_ip],
        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
    }});
    merge(&mut rest, more);
    mk(namespace, name, rest)
}

/// A slice of a service with these pods, all ready, at port 8080.
pub(super) fn mk_slice(namespace: &str, service: &str, pods: &[(&str, &str)]) -> Slice {
    let endpoints = pods.iter().map(|(pod, ip)| {
        json!({
            "addresses": [ip],
            "conditions": {"ready": true},
            "hostname": pod,
            "nodeName": "node-a",
            "zone": "zone-a",
            "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod},
        })
    });
    let endpoints: Vec<Value> = endpoints.collect();
    mk(
        namespace,
        &format!("{service}-1"),
        json!({
            "metadata": {"labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4",
            "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            "endpoints": endpoints,
        }),
    )
}

pub(super) fn mk_namespace(name: &str, annotations: Value) -> Namespace {
    serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}}))
        .expect("a namespace")
}

pub(super) fn cluster() -> Cluster {
    Cluster::new(Config::default())
}

/// A service `web` in `ns` with one meshed pod `web-0` at 10.1.0.1.
pub(super) fn web() -> Cluster {
    let cluster = cluster();
    cluster.apply(&mk_service("ns", "web", "10.96.0.1"));
    cluster.apply(&mk_meshed_pod("ns", "web-0", "10.1.0.1"));
    cluster.apply(&mk_slice("ns", "web", &[("web-0", "10.1.0.1")]));
    cluster
}

pub(super) fn target(namespace: &str, name: &str, port: u16) -> ServiceTarget {
    ServiceTarget {
        service: ServiceName {
            namespace: namespace.into(),
            name: name.into(),
        },
        port,
        instance: None,
    }
}

pub(super) trait Ask {
    fn watch_endpoints(&self, namespace: &str, name: &str, port: u16) -> Watched<Endpoints>;
    fn addresses(&self, namespace: &str, name: &str, port: u16) -> Vec<String>;
    fn profile_of(&self, target: Target) -> Arc<Profile>;
    fn watch_inbound(&self, namespace: &str, pod: &str, port: u16) -> Watched<InboundServer>;
    fn inbound_of(&self, namespace: &str, pod: &str, port: u16) -> Arc<InboundServer>;
    fn authorizations(&self, namespace: &str, pod: &str, port: u16) -> Vec<Authorization>;
    fn outbound_of(&self, client: &str, target: Target) -> Arc<OutboundPolicy>;
    fn remove<K: Tracked>(&self, namespace: &str, name: &str);
}

impl Ask for Cluster {
    fn watch_endpoints(&self, namespace: &str, name: &str, port: u16) -> Watched<Endpoints> {
        self.endpoints(&target(namespace, name, port))
            .expect("the service is there")
    }

    fn addresses(&self, namespace: &str, name: &str, port: u16) -> Vec<String> {
        self.watch_endpoints(namespace, name, port)
            .borrow()
            .addresses
            .keys()
            .map(ToString::to_string)
            .collect()
    }

    fn profile_of(&self, target: Target) -> Arc<Profile> {
        self.profile("client", &target).borrow().clone()
    }

    fn watch_inbound(&self, namespace: &str, pod: &str, port: u16) -> Watched<InboundServer> {
        self.inbound(&WorkloadName::pod(namespace, pod), port)
            .expect("the pod is there")
    }

    fn inbound_of(&self, namespace: &str, pod: &str, port: u16) -> Arc<InboundServer> {
        self.watch_inbound(namespace, pod, port).borrow().clone()
    }

    fn authorizations(&self, namespace: &str, pod: &str, port: u16) -> Vec<Authorization> {
        self.inbound_of(namespace, pod, port).authorizations.clone()
    }

    fn outbound_of(&self, client: &str, target: Target) -> Arc<OutboundPolicy> {
        self.outbound(client, &target)
            .expect("the target is known")
            .borrow()
            .clone()
    }

    fn remove<K: Tracked>(&self, namespace: &str, name: &str) {
        self.delete::<K>(&ObjectKey {
            namespace: namespace.into(),
            name: name.into(),
        });
    }
}

pub(super) fn addr(text: &str) -> Target {
    Target::Addr(socket(text))
}

pub(super) fn socket(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}
