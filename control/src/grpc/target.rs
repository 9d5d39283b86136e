//! What proxies name in their requests: targets, workloads, contexts.

use std::net::SocketAddr;

use heddle_control_core::discover::{PodName, ServiceName, ServiceTarget, Target};
use serde::Deserialize;
use tonic::Status;

/// HTTP's.
const DEFAULT_PORT: u16 = 80;

/// A text that names no target.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {expected}")]
pub(super) struct TargetError {
    text: String,
    expected: String,
}

impl From<TargetError> for Status {
    fn from(error: TargetError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// An address, or a service by name.
pub(super) fn parse(text: &str, cluster_domain: &str) -> Result<Target, TargetError> {
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(Target::Addr(addr));
    }
    parse_service(text, cluster_domain).map(Target::Service)
}

/// A service by name: `[INSTANCE.]SERVICE.NAMESPACE.svc.DOMAIN[:PORT]`.
pub(super) fn parse_service(text: &str, cluster_domain: &str) -> Result<ServiceTarget, TargetError> {
    let error = || TargetError {
        text: text.to_owned(),
        expected: format!("service: expected [INSTANCE.]SERVICE.NAMESPACE.svc.{cluster_domain}[:PORT]"),
    };
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (
            host,
            port.parse().ok().filter(|port| *port > 0).ok_or_else(error)?,
        ),
        None => (text, DEFAULT_PORT),
    };
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let in_cluster = host
        .strip_suffix(cluster_domain)
        .and_then(|host| host.strip_suffix(".svc."));
    let labels: Vec<&str> = in_cluster.ok_or_else(error)?.split('.').collect();
    if labels.iter().any(|label| label.is_empty() || label.len() > 63) {
        return Err(error());
    }
    let (instance, name, namespace) = match labels.as_slice() {
        [name, namespace] => (None, name, namespace),
        [instance, name, namespace] => (Some((*instance).to_owned()), name, namespace),
        _ => return Err(error()),
    };
    let service = ServiceName {
        namespace: (*namespace).to_owned(),
        name: (*name).to_owned(),
    };
    Ok(ServiceTarget {
        service,
        port,
        instance,
    })
}

/// What a proxy says of itself: `{"ns":…,"nodeName":…,"pod":…}`, or `ns:NAMESPACE` as older ones have it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(super) struct Context {
    #[serde(default)]
    pub(super) ns: String,
    #[serde(default, rename = "nodeName")]
    pub(super) node_name: Option<String>,
}

impl Context {
    /// A context that cannot be read costs locality, not the answer.
    pub(super) fn parse(token: &str) -> Self {
        if token.is_empty() {
            return Self::default();
        }
        if let Some(ns) = token.strip_prefix("ns:") {
            return Self {
                ns: ns.to_owned(),
                node_name: None,
            };
        }
        serde_json::from_str(token).unwrap_or_else(|error| {
            tracing::debug!(token, %error, "A proxy's context cannot be read");
            Self::default()
        })
    }
}

/// `{"ns":…,"pod":…}`, or `NAMESPACE:POD` as older proxies have it.
#[derive(Debug, Deserialize)]
struct Workload {
    ns: String,
    pod: Option<String>,
    external_workload: Option<String>,
}

/// The pod that a proxy says it runs in.
pub(super) fn parse_pod(workload: &str) -> Result<PodName, Status> {
    let error = || {
        Status::invalid_argument(format!(
            "`{workload}` names no workload: expected {{\"ns\":…,\"pod\":…}} or NAMESPACE:POD"
        ))
    };
    if workload.starts_with('{') {
        let Workload {
            ns,
            pod,
            external_workload,
        } = serde_json::from_str(workload).map_err(|_| error())?;
        if external_workload.is_some() {
            return Err(Status::unimplemented(
                "policies of external workloads are not served",
            ));
        }
        let name = pod.filter(|name| !name.is_empty()).ok_or_else(error)?;
        return Ok(PodName { namespace: ns, name });
    }
    match workload.split_once(':') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() => Ok(PodName {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        _ => Err(error()),
    }
}

/// The namespace of the workload that asks about outbound traffic.
pub(super) fn client_namespace(workload: &str) -> Result<String, Status> {
    if workload.starts_with('{') {
        let parsed: Result<Workload, _> = serde_json::from_str(workload);
        return parsed
            .map(|workload| workload.ns)
            .map_err(|error| Status::invalid_argument(format!("source_workload: {error}")));
    }
    match workload.split_once(':') {
        Some((namespace, _)) => Ok(namespace.to_owned()),
        None => Err(Status::invalid_argument(
            "source_workload: expected {\"ns\":…,\"pod\":…} or NAMESPACE:POD",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Result<(String, String, u16, Option<String>), TargetError> {
        let ServiceTarget {
            service,
            port,
            instance,
        } = parse_service(text, "cluster.local")?;
        Ok((service.name, service.namespace, port, instance))
    }

    #[test]
    fn services_are_named_with_and_without_port_and_instance() {
        assert_eq!(
            service("web.ns.svc.cluster.local:8080"),
            Ok(("web".into(), "ns".into(), 8080, None))
        );
        assert_eq!(
            service("web.ns.svc.cluster.local"),
            Ok(("web".into(), "ns".into(), 80, None))
        );
        assert_eq!(
            service("Web.NS.svc.cluster.local.:81"),
            Ok(("web".into(), "ns".into(), 81, None))
        );
        assert_eq!(
            service("db-0.db.ns.svc.cluster.local:81"),
            Ok(("db".into(), "ns".into(), 81, Some("db-0".into())))
        );
    }

    #[test]
    fn refuses_what_is_no_service() {
        for bad in [
            "",
            "10.0.0.1:80",
            "[::1]:80",
            "web.ns",
            "web.ns.svc.other:80",
            "web.ns.svc.cluster.local:0",
            "web.ns.svc.cluster.local:x",
            "a.b.c.d.svc.cluster.local",
            ".ns.svc.cluster.local",
            "svc.cluster.local",
        ] {
            assert!(service(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn workloads_come_in_two_forms() {
        let expected = PodName {
            namespace: "ns".into(),
            name: "web".into(),
        };
        assert_eq!(
            parse_pod(r#"{"ns":"ns","pod":"web"}"#).ok(),
            Some(expected.clone())
        );
        assert_eq!(parse_pod("ns:web").ok(), Some(expected));
        for bad in ["", "web", ":web", "ns:", "{}", r#"{"ns":"ns"}"#, "{"] {
            assert_eq!(
                parse_pod(bad).expect_err("no workload").code(),
                tonic::Code::InvalidArgument,
                "{bad:?}"
            );
        }
        assert_eq!(client_namespace("ns:x").ok().as_deref(), Some("ns"));
    }

    #[test]
    fn a_context_is_read_as_far_as_it_goes() {
        assert_eq!(
            Context::parse(r#"{"ns":"a","nodeName":"n","pod":"p"}"#),
            Context {
                ns: "a".into(),
                node_name: Some("n".into())
            }
        );
        assert_eq!(Context::parse("ns:a").ns, "a");
        assert_eq!(Context::parse("nonsense"), Context::default());
    }
}
