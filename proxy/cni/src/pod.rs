//! Whether, and how, a pod is redirected. Pure.

use std::{collections::BTreeMap, net::SocketAddr, str::FromStr};

use heddle_mesh::{PortSet, annotation, env, label, port};
use heddle_proxy_init::{Redirect, parse_network};
use ipnet::IpNet;
use serde::Deserialize;

use crate::{
    config::Redirection,
    protocol::{Code, Failure},
};

/// A pod, as far as it matters here; the API server's other fields are not looked at.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Metadata,
    pub spec: Spec,
}

/// What pods and namespaces say about themselves.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Metadata {
    pub uid: String,
    pub annotations: BTreeMap<String, String>,
    pub labels: BTreeMap<String, String>,
}

/// A namespace.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Namespace {
    pub metadata: Metadata,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    pub containers: Vec<Container>,
    pub init_containers: Vec<Container>,
    pub security_context: Option<SecurityContext>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Container {
    pub name: String,
    pub env: Vec<Variable>,
    pub security_context: Option<SecurityContext>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Variable {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityContext {
    pub run_as_user: Option<u32>,
    pub run_as_group: Option<u32>,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Its traffic goes through its proxy.
    Redirect(Box<Redirect>),
    /// Its network stays as it is, and why.
    Leave(Reason),
}

/// Why a pod's network stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The runtime names no pod: this is some other container.
    #[error("the runtime names no pod")]
    NoPod,
    /// Pods of the namespace are never meshed.
    #[error("pods of the namespace are never meshed")]
    ExcludedNamespace,
    /// The pod has no container `linkerd-proxy`.
    #[error("the pod has no container linkerd-proxy")]
    NotMeshed,
    /// The pod's init container `linkerd-init` sets the rules.
    #[error("the pod's init container linkerd-init sets the rules")]
    HasInit,
}

const SKIP_SUBNETS: &str = "config.linkerd.io/skip-subnets";
const PROXY_UID: &str = "config.linkerd.io/proxy-uid";

/// The annotations that decide, which a pod inherits from its namespace.
pub const ANNOTATIONS: [&str; 4] = [
    annotation::SKIP_INBOUND_PORTS,
    annotation::SKIP_OUTBOUND_PORTS,
    SKIP_SUBNETS,
    PROXY_UID,
];

/// Ports that API servers usually have: a control-plane pod must reach its own before its proxy runs.
const API_SERVER_PORTS: [u16; 2] = [443, 6443];

impl Pod {
    /// The proxy's container, native sidecar or plain one.
    fn proxy(&self) -> Option<&Container> {
        let spec = &self.spec;
        let mut containers = spec.containers.iter().chain(&spec.init_containers);
        containers.find(|container| container.name == port::PROXY_CONTAINER)
    }

    /// Why the pod's network stays as it is, when it does.
    pub fn left_alone(&self) -> Option<Reason> {
        let init = self.spec.init_containers.iter();
        if self.proxy().is_none() {
            Some(Reason::NotMeshed)
        } else if init
            .clone()
            .any(|container| container.name == port::INIT_CONTAINER)
        {
            Some(Reason::HasInit)
        } else {
            None
        }
    }

    /// Whether the namespace could still have a say.
    pub fn inherits(&self) -> bool {
        ANNOTATIONS
            .iter()
            .any(|name| !self.metadata.annotations.contains_key(*name))
    }
}

/// Decides. A pod's annotation comes before its namespace's, and that before `defaults`; what the proxy's container
/// itself says about its listeners and its user comes before all.
///
/// # Errors
/// An annotation, or a listener's address, that cannot be read.
pub fn decide(
    defaults: &Redirection,
    pod: &Pod,
    namespace: &Namespace,
    api_port: Option<u16>,
) -> Result<Decision, Failure> {
    let Some(proxy) = pod.proxy() else {
        return Ok(Decision::Leave(Reason::NotMeshed));
    };
    if let Some(reason) = pod.left_alone() {
        return Ok(Decision::Leave(reason));
    }
    let says = Says {
        pod: &pod.metadata.annotations,
        namespace: &namespace.metadata.annotations,
    };
    let mut inbound_ignored = says
        .read(annotation::SKIP_INBOUND_PORTS, "ports such as 25,8000-8010")?
        .unwrap_or_else(|| defaults.inbound_ports_to_ignore.clone());
    // Linkerd's plugin forgets these two when the annotation is there; scrapes of them would then be policed.
    for name in [env::CONTROL_LISTEN_ADDR, env::ADMIN_LISTEN_ADDR] {
        if let Some(port) = listener(proxy, name)? {
            inbound_ignored.insert(port);
        }
    }
    let mut outbound_ignored = says
        .read(annotation::SKIP_OUTBOUND_PORTS, "ports such as 25,8000-8010")?
        .unwrap_or_else(|| defaults.outbound_ports_to_ignore.clone());
    if pod.metadata.labels.contains_key(label::CONTROL_PLANE_COMPONENT) {
        for port in API_SERVER_PORTS.into_iter().chain(api_port) {
            outbound_ignored.insert(port);
        }
    }
    let networks_ignored = match says.value(SKIP_SUBNETS) {
        Some(text) => networks(text.split(','))
            .map_err(|_| says.wrong(SKIP_SUBNETS, text, "networks such as 10.0.0.0/8,fd00::/8"))?,
        None => networks(defaults.subnets_to_ignore.iter().map(String::as_str)).map_err(|wrong| {
            let text = format!("subnets-to-ignore in the network configuration: {wrong}");
            Failure::new(Code::InvalidConfig, text)
        })?,
    };
    let annotated = says.read(PROXY_UID, "a user's number")?;
    let user = |context: Option<SecurityContext>| context.and_then(|context| context.run_as_user);
    let proxy_uid = user(proxy.security_context)
        .or(annotated)
        .or(user(pod.spec.security_context))
        .unwrap_or(defaults.proxy_uid);
    let group = proxy.security_context.and_then(|context| context.run_as_group);
    let outbound = match listener(proxy, env::OUTBOUND_LISTEN_ADDRS)? {
        Some(port) => Some(port),
        None => listener(proxy, env::OUTBOUND_LISTEN_ADDR)?,
    };
    Ok(Decision::Redirect(Box::new(Redirect {
        inbound_port: listener(proxy, env::INBOUND_LISTEN_ADDR)?.unwrap_or(defaults.incoming_proxy_port),
        outbound_port: Some(outbound.unwrap_or(defaults.outgoing_proxy_port)),
        proxy_uid,
        proxy_gid: group.or_else(|| u32::try_from(defaults.proxy_gid).ok()),
        inbound_only: defaults.ports_to_redirect.clone(),
        inbound_ignored,
        outbound_ignored,
        networks_ignored,
        ipv6: defaults.ipv6,
    })))
}

/// What a pod's annotations say, or else its namespace's.
struct Says<'a> {
    pod: &'a BTreeMap<String, String>,
    namespace: &'a BTreeMap<String, String>,
}

impl<'a> Says<'a> {
    /// An empty value is none, as for Linkerd's plugin.
    fn value(&self, name: &str) -> Option<&'a str> {
        [self.pod, self.namespace]
            .into_iter()
            .find_map(|annotations| annotations.get(name).map(|value| value.trim()))
            .filter(|value| !value.is_empty())
    }

    fn read<T: FromStr>(&self, name: &str, expected: &str) -> Result<Option<T>, Failure> {
        self.value(name)
            .map(|value| value.parse().map_err(|_| self.wrong(name, value, expected)))
            .transpose()
    }

    fn wrong(&self, name: &str, value: &str, expected: &str) -> Failure {
        let holder = match self.pod.contains_key(name) {
            true => "pod",
            false => "namespace",
        };
        Failure::new(
            Code::InvalidPod,
            format!("annotation {name} of the {holder} is `{value}`: expected {expected}"),
        )
    }
}

fn networks<'a>(texts: impl Iterator<Item = &'a str>) -> Result<Vec<IpNet>, String> {
    let given = texts.filter(|text| !text.trim().is_empty());
    given.map(parse_network).collect()
}

/// The port that the proxy's container listens on by this variable; of several addresses, all have the same.
fn listener(proxy: &Container, name: &str) -> Result<Option<u16>, Failure> {
    let value = proxy.env.iter().find(|variable| variable.name == name);
    let Some(text) = value
        .and_then(|variable| variable.value.split(',').next())
        .map(str::trim)
    else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<SocketAddr>() {
        Ok(address) => Ok(Some(address.port())),
        Err(_) => Err(Failure::new(
            Code::InvalidPod,
            format!(
                "{name} of container {} is `{text}`: expected an address such as 0.0.0.0:4143",
                port::PROXY_CONTAINER
            ),
        )),
    }
}

/// Ports as people read them, for the log.
pub fn describe(redirect: &Redirect) -> String {
    let ports = |set: &PortSet| set.to_string();
    format!(
        "inbound TCP to port {}, outbound TCP to port {}, user {} left alone; ignored ports: inbound `{}`, outbound `{}`",
        redirect.inbound_port,
        redirect.outbound_port.unwrap_or_default(),
        redirect.proxy_uid,
        ports(&redirect.inbound_ignored),
        ports(&redirect.outbound_ignored),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn mk_pod(annotations: Value, more: Value) -> Pod {
        let mut pod = json!({
            "metadata": {"uid": "u", "annotations": annotations, "creationTimestamp": null},
            "spec": {
                "containers": [{"name": "app", "image": "a"}],
                "initContainers": [
                    {"name": "linkerd-network-validator"},
                    {"name": "linkerd-proxy", "securityContext": {"runAsUser": 2102}, "env": [
                        {"name": "LINKERD2_PROXY_INBOUND_LISTEN_ADDR", "value": "0.0.0.0:4143"},
                        {"name": "LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS", "value": "127.0.0.1:4140,[::1]:4140"},
                        {"name": "LINKERD2_PROXY_CONTROL_LISTEN_ADDR", "value": "0.0.0.0:4190"},
                        {"name": "LINKERD2_PROXY_ADMIN_LISTEN_ADDR", "value": "0.0.0.0:4191"},
                        {"name": "_pod_name", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    ]},
                ],
            },
        });
        for (pointer, value) in more.as_object().expect("pointers and values") {
            *pod.pointer_mut(pointer).expect("the pointer points somewhere") = value.clone();
        }
        serde_json::from_value(pod).expect("a pod")
    }

    fn redirect(pod: &Pod, namespace: &Namespace) -> Redirect {
        match decide(&Redirection::default(), pod, namespace, None).expect("decided") {
            Decision::Redirect(redirect) => *redirect,
            Decision::Leave(reason) => panic!("left alone: {reason}"),
        }
    }

    fn leave(pod: &Pod) -> Reason {
        match decide(&Redirection::default(), pod, &Namespace::default(), None).expect("decided") {
            Decision::Redirect(redirect) => panic!("redirected: {redirect:?}"),
            Decision::Leave(reason) => reason,
        }
    }

    #[test]
    fn a_meshed_pod_gets_what_its_proxy_listens_on() {
        let redirect = redirect(&mk_pod(json!({}), json!({})), &Namespace::default());
        assert_eq!(
            (redirect.inbound_port, redirect.outbound_port, redirect.proxy_uid),
            (4143, Some(4140), 2102)
        );
        assert_eq!(redirect.inbound_ignored.to_string(), "4190-4191");
        let other = mk_pod(
            json!({}),
            json!({"/spec/initContainers/1/env/0/value": "[::]:5143", "/spec/initContainers/1/securityContext": {"runAsUser": 7}}),
        );
        let redirect = self::redirect(&other, &Namespace::default());
        assert_eq!((redirect.inbound_port, redirect.proxy_uid), (5143, 7));
    }

    #[test]
    fn annotations_of_the_pod_come_before_its_namespaces() {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"annotations": {
            "config.linkerd.io/skip-inbound-ports": "1", "config.linkerd.io/skip-outbound-ports": "2,3-4",
            "config.linkerd.io/skip-subnets": "10.0.0.0/8, fd00::/8", "config.linkerd.io/proxy-uid": "99",
        }}}))
        .expect("a namespace");
        let pod = mk_pod(
            json!({"config.linkerd.io/skip-inbound-ports": "8080"}),
            json!({"/spec/initContainers/1/securityContext": null}),
        );
        let redirect = redirect(&pod, &namespace);
        assert_eq!(redirect.inbound_ignored.to_string(), "4190-4191,8080");
        assert_eq!(redirect.outbound_ignored.to_string(), "2-4");
        assert_eq!(redirect.networks_ignored.len(), 2);
        assert_eq!(redirect.proxy_uid, 99);
    }

    #[test]
    fn a_pod_without_proxy_or_with_linkerd_init_is_left_alone() {
        let unmeshed = mk_pod(json!({}), json!({"/spec/initContainers/1/name": "other"}));
        assert_eq!(leave(&unmeshed), Reason::NotMeshed);
        let init = mk_pod(json!({}), json!({"/spec/initContainers/0/name": "linkerd-init"}));
        assert_eq!(leave(&init), Reason::HasInit);
        let plain = mk_pod(
            json!({}),
            json!({"/spec/containers/0/name": "linkerd-proxy", "/spec/initContainers/1/name": "x"}),
        );
        redirect(&plain, &Namespace::default());
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_name() {
        let refuse = |pod: &Pod| {
            let error = decide(&Redirection::default(), pod, &Namespace::default(), None);
            error.expect_err("refused").to_string()
        };
        for name in ANNOTATIONS {
            let text = refuse(&mk_pod(
                json!({name: "http"}),
                json!({"/spec/initContainers/1/securityContext": null}),
            ));
            assert!(text.contains(name) && text.contains("`http`"), "{text}");
        }
        let text = refuse(&mk_pod(
            json!({}),
            json!({"/spec/initContainers/1/env/0/value": "$(ADDR)"}),
        ));
        assert!(text.contains("LINKERD2_PROXY_INBOUND_LISTEN_ADDR"), "{text}");
    }

    #[test]
    fn a_control_plane_pod_reaches_the_api_server_without_its_proxy() {
        let mut pod = mk_pod(json!({}), json!({}));
        pod.metadata.labels = [("linkerd.io/control-plane-component".to_owned(), "tap".to_owned())].into();
        match decide(&Redirection::default(), &pod, &Namespace::default(), Some(8443)).expect("decided") {
            Decision::Redirect(redirect) => {
                assert_eq!(redirect.outbound_ignored.to_string(), "443,6443,8443");
            }
            Decision::Leave(reason) => panic!("left alone: {reason}"),
        }
    }
}
