//! `ExternalWorkload` of `workload.linkerd.io`: a process outside the cluster that belongs to the mesh.

use std::num::NonZeroU16;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Describes a process outside the cluster. Services select it by its labels, as they select pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "workload.linkerd.io",
    version = "v1beta1",
    kind = "ExternalWorkload",
    namespaced,
    category = "external",
    status = "ExternalWorkloadStatus",
    doc = "A process outside the cluster that belongs to the mesh.",
    derive = "PartialEq",
    printcolumn(name = "Identity", type_ = "string", json_path = ".spec.meshTLS.identity"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.meshTLS) != has(self.meshTls)")
        .message("meshTLS must be given (v1alpha1 wrote it meshTls; only one of the two may be there)")
)]
pub struct ExternalWorkloadSpec {
    /// How the workload's proxy proves its identity.
    #[serde(default, rename = "meshTLS", skip_serializing_if = "Option::is_none")]
    pub mesh_tls: Option<MeshTls>,
    /// `meshTLS` as version v1alpha1 spelled it.
    #[serde(default, rename = "meshTls", skip_serializing_if = "Option::is_none")]
    pub mesh_tls_v1alpha1: Option<MeshTls>,
    /// The ports that the workload serves.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub ports: Vec<PortSpec>,
    /// The workload's addresses: at most one IPv4 and one IPv6 address.
    #[serde(default, rename = "workloadIPs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub workload_ips: Vec<WorkloadIp>,
}

impl ExternalWorkloadSpec {
    /// The TLS settings, under whichever name they were written.
    pub fn tls(&self) -> Option<&MeshTls> {
        self.mesh_tls.as_ref().or(self.mesh_tls_v1alpha1.as_ref())
    }
}

/// How a workload's proxy proves its identity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MeshTls {
    /// The identity in the workload's certificate: a DNS name or a SPIFFE ID.
    #[schemars(length(min = 1, max = 253))]
    pub identity: String,
    /// The name that clients send as SNI.
    #[schemars(length(min = 1, max = 253))]
    pub server_name: String,
}

/// A port that a workload serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PortSpec {
    /// The port's name; a Service's targetPort and a Server's port can refer to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub name: Option<String>,
    /// The port's number.
    #[schemars(with = "i32", range(min = 1, max = 65535))]
    pub port: NonZeroU16,
    /// TCP or UDP.
    #[serde(default)]
    pub protocol: PortProtocol,
}

/// A transport protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schemars(inline)]
pub enum PortProtocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP, which the mesh does not carry.
    Udp,
}

/// An address of a workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadIp {
    /// An IPv4 or IPv6 address.
    #[schemars(length(min = 2, max = 39), extend("anyOf" = [{"format": "ipv4"}, {"format": "ipv6"}]))]
    pub ip: String,
}

/// What is known about a workload's health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExternalWorkloadStatus {
    /// `Ready`: whether the workload takes traffic.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}
