//! What proxies name in their requests: targets, workloads, contexts.

use std::net::SocketAddr;

use heddle_control_core::discover::{ServiceName, ServiceTarget, Target, WorkloadName};
use serde::Deserialize;
use tonic::Status;

/// HTTP's.
const DEFAULT_PORT: u16 = 80;

/// How much of a text is repeated in an error: a status travels in a header.
const SHOWN_CHARS_MAX: usize = 256;

/// A text that names no target.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {expected}")]
pub(super) struct TargetError {
    text: String,
    expected: String,
}

impl TargetError {
    fn new(text: &str, expected: impl Into<String>) -> Self {
        let shown: String = text.chars().take(SHOWN_CHARS_MAX).collect();
        let more = if shown.len() < text.len() { "…" } else { "" };
        Self {
            text: shown + more,
            expected: expected.into(),
        }
    }
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
    let error = || {
        TargetError::new(
            text,
            format!("service: expected [INSTANCE.]SERVICE.NAMESPACE.svc.{cluster_domain}[:PORT]"),
        )
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
    /// Reads a context token; none at all says nothing, as `linkerd diagnostics` does.
    ///
    /// Linkerd takes a token that it cannot read for an empty one. But then the client silently gets the answers of
    /// another namespace and zone, so here it is told.
    pub(super) fn parse(token: &str) -> Result<Self, TargetError> {
        if token.trim().is_empty() {
            return Ok(Self::default());
        }
        if let Some(ns) = token.strip_prefix("ns:") {
            return Ok(Self {
                ns: ns.to_owned(),
                node_name: None,
            });
        }
        // serde would take an array for an object.
        let object = Some(token).filter(|token| token.trim_start().starts_with('{'));
        let context = object.and_then(|token| serde_json::from_str(token).ok());
        context.ok_or_else(|| {
            TargetError::new(
                token,
                "context token: expected {\"ns\":…,\"nodeName\":…,\"pod\":…} or ns:NAMESPACE",
            )
        })
    }
}

/// `{"ns":…,"pod":…}` or `{"ns":…,"external_workload":…}`; unknown fields are a newer proxy's affair.
#[derive(Debug, Deserialize)]
struct Workload {
    ns: String,
    pod: Option<String>,
    external_workload: Option<String>,
}

/// The workload that a proxy says it runs in, in JSON or as `NAMESPACE:POD`, which older ones write.
pub(super) fn parse_workload(text: &str) -> Result<WorkloadName, TargetError> {
    let error = || {
        TargetError::new(
            text,
            "workload: expected {\"ns\":…,\"pod\":…}, {\"ns\":…,\"external_workload\":…} or NAMESPACE:POD",
        )
    };
    if !text.trim_start().starts_with('{') {
        return match text.split_once(':') {
            Some((ns, name)) if !ns.is_empty() && !name.is_empty() => Ok(WorkloadName::pod(ns, name)),
            _ => Err(error()),
        };
    }
    let Workload {
        ns,
        pod,
        external_workload,
    } = serde_json::from_str(text).map_err(|_| error())?;
    let named = |name: Option<String>| name.filter(|name| !name.is_empty());
    match (named(pod), named(external_workload)) {
        _ if ns.is_empty() => Err(error()),
        (Some(pod), None) => Ok(WorkloadName::pod(&ns, &pod)),
        (None, Some(external)) => Ok(WorkloadName::external(&ns, &external)),
        // Which of the two it is decides about its policy, so it must not be guessed.
        (None, None) | (Some(_), Some(_)) => Err(error()),
    }
}

/// The namespace of the workload that asks about outbound traffic; its name does not matter there.
pub(super) fn client_namespace(workload: &str) -> Result<String, TargetError> {
    let namespace = match workload.trim_start().starts_with('{') {
        true => serde_json::from_str(workload).ok().map(|Workload { ns, .. }| ns),
        false => workload.split_once(':').map(|(ns, _)| ns.to_owned()),
    };
    namespace.filter(|ns| !ns.is_empty()).ok_or_else(|| {
        TargetError::new(
            workload,
            "source_workload: expected {\"ns\":…,\"pod\":…} or NAMESPACE:POD",
        )
    })
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
    fn workloads_come_in_three_forms() {
        let pod = WorkloadName::pod("ns", "web");
        assert_eq!(
            parse_workload("{\"ns\":\"ns\",\"pod\":\"web\"}\n"),
            Ok(pod.clone())
        );
        assert_eq!(parse_workload("ns:web"), Ok(pod));
        assert_eq!(
            parse_workload(r#"{"ns":"ns","external_workload":"vm"}"#),
            Ok(WorkloadName::external("ns", "vm"))
        );
        for bad in [
            "",
            "web",
            ":web",
            "ns:",
            "{}",
            r#"{"ns":"ns"}"#,
            r#"{"ns":"","pod":"web"}"#,
            r#"{"ns":"ns","pod":"web","external_workload":"vm"}"#,
            "{",
        ] {
            let status = Status::from(parse_workload(bad).expect_err("no workload"));
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{bad:?}");
            assert!(status.message().contains("external_workload"), "{status}");
        }
    }

    #[test]
    fn clients_are_known_by_their_namespace() {
        assert_eq!(client_namespace("ns:x"), Ok("ns".into()));
        assert_eq!(
            client_namespace(r#"{"ns":"ns","external_workload":"vm"}"#),
            Ok("ns".into())
        );
        for bad in ["", "x", ":x", "{}", r#"{"ns":""}"#] {
            assert!(client_namespace(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn an_error_repeats_little_of_a_long_text() {
        let long = "ä".repeat(10_000);
        let error = parse_workload(&long).expect_err("no workload").to_string();
        assert!(error.len() < 1000, "{} bytes", error.len());
    }

    #[test]
    fn a_context_is_read_or_refused() {
        assert_eq!(
            Context::parse("{\"ns\":\"a\",\"nodeName\":\"n\",\"pod\":\"p\"}\n"),
            Ok(Context {
                ns: "a".into(),
                node_name: Some("n".into())
            })
        );
        assert_eq!(Context::parse("ns:a").map(|context| context.ns), Ok("a".into()));
        assert_eq!(Context::parse(""), Ok(Context::default()));
        for bad in ["nonsense", "{", "{\"ns\":1}", "[]"] {
            let status = Status::from(Context::parse(bad).expect_err("no context"));
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{bad:?}");
            assert!(status.message().contains("nodeName"), "{status}");
        }
    }

    /// What a proxy may send for a port's policy: never a panic, and an error that fits into a status.
    #[test]
    fn fuzz_port_spec() {
        bolero::check!()
            .with_type::<String>()
            .for_each(|text| match parse_workload(text) {
                Ok(workload) => {
                    let namespace = client_namespace(text).expect("a workload has a namespace");
                    assert_eq!(*workload.namespace, *namespace);
                }
                Err(error) => assert!(error.to_string().len() < 8 * SHOWN_CHARS_MAX),
            });
    }

    #[test]
    fn fuzz_traffic_spec() {
        bolero::check!()
            .with_type::<(String, u16)>()
            .for_each(|(text, port)| {
                let _ = parse(text, "cluster.local");
                if let Ok(target) =
                    parse_service(&format!("{text}.svc.cluster.local:{port}"), "cluster.local")
                {
                    assert!(target.port == *port && *port > 0);
                    assert!(!target.service.name.is_empty() && !target.service.namespace.is_empty());
                }
            });
    }

    #[test]
    fn fuzz_context_token() {
        bolero::check!().with_type::<String>().for_each(|text| {
            let _ = Context::parse(text);
            let known = serde_json::json!({"ns": text, "nodeName": text, "pod": text}).to_string();
            let context = Context::parse(&known).expect("a token");
            assert_eq!((&context.ns, context.node_name.as_ref()), (text, Some(text)));
        });
    }
}
