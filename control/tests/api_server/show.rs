//! Messages as text, one line for each thing that they say: what a test compares, and what a failure shows.

use std::net::IpAddr;

use anyhow::Context as _;
use linkerd2_proxy_api::{
    grpc_route::GrpcRouteMatch,
    http_route::{
        HeaderMatch, HostMatch, HttpRouteMatch, QueryParamMatch, header_match, host_match, path_match,
        query_param_match,
    },
    meta::{self, Metadata, metadata},
    net::TcpAddress,
};

pub(crate) mod destination;
pub(crate) mod inbound;
pub(crate) mod outbound;

/// `NAME` of a default, `GROUP/KIND/NAME` of a resource, with the first label of the group alone.
fn meta(metadata: Option<&Metadata>) -> anyhow::Result<String> {
    match metadata.and_then(|metadata| metadata.kind.as_ref()) {
        None => anyhow::bail!("nothing says what it is"),
        Some(metadata::Kind::Default(name)) => Ok(name.clone()),
        Some(metadata::Kind::Resource(resource)) => {
            let meta::Resource {
                group, kind, name, ..
            } = resource;
            let group = group.split('.').next().unwrap_or_default();
            Ok(format!("{group}/{kind}/{name}"))
        }
    }
}

/// A name of the cluster without what all have in common.
fn short(name: &str) -> String {
    name.replace(".serviceaccount.identity.linkerd.cluster.local", "")
        .replace(".svc.cluster.local", "")
}

fn addr(addr: Option<&TcpAddress>) -> anyhow::Result<String> {
    let addr = addr.context("no address")?;
    let ip = IpAddr::try_from(addr.ip.context("no IP")?)?;
    Ok(format!("{ip}:{}", addr.port))
}

fn duration(duration: prost_types::Duration) -> anyhow::Result<String> {
    Ok(format!("{:?}", std::time::Duration::try_from(duration)?))
}

fn hosts(hosts: &[HostMatch]) -> anyhow::Result<String> {
    let host = |host: &HostMatch| match host.r#match.as_ref().context("no host")? {
        host_match::Match::Exact(name) => Ok(format!("//{name} ")),
        host_match::Match::Suffix(suffix) => Ok(format!("//{} ", reversed(&suffix.reverse_labels))),
    };
    hosts.iter().map(host).collect()
}

/// A suffix as it is written.
fn reversed(labels: &[String]) -> String {
    let labels: Vec<&str> = labels.iter().rev().map(String::as_str).collect();
    format!("*.{}", labels.join("."))
}

/// `METHOD PATH* =PATH ~PATH name=value name~regex ?name=value`; `*` for every request.
fn http_match(one: &HttpRouteMatch) -> anyhow::Result<String> {
    let HttpRouteMatch {
        path,
        headers,
        query_params,
        method,
    } = one;
    let mut parts = Vec::new();
    if let Some(method) = method {
        parts.push(http::Method::try_from(method.clone())?.to_string());
    }
    match path.as_ref().and_then(|path| path.kind.as_ref()) {
        None => {}
        Some(path_match::Kind::Prefix(prefix)) if prefix == "/" => {}
        Some(path_match::Kind::Prefix(prefix)) => parts.push(format!("{prefix}*")),
        Some(path_match::Kind::Exact(path)) => parts.push(format!("={path}")),
        Some(path_match::Kind::Regex(regex)) => parts.push(format!("~{regex}")),
    }
    for one in headers {
        parts.push(header(one)?);
    }
    for QueryParamMatch { name, value } in query_params {
        parts.push(match value.as_ref().context("no value")? {
            query_param_match::Value::Exact(value) => format!("?{name}={value}"),
            query_param_match::Value::Regex(regex) => format!("?{name}~{regex}"),
        });
    }
    Ok(or_everything(&parts))
}

fn grpc_match(one: &GrpcRouteMatch) -> anyhow::Result<String> {
    let rpc = one.rpc.as_ref().context("no call")?;
    let mut parts = Vec::new();
    if !rpc.service.is_empty() || !rpc.method.is_empty() {
        parts.push(format!("{}/{}", rpc.service, rpc.method));
    }
    for one in &one.headers {
        parts.push(header(one)?);
    }
    Ok(or_everything(&parts))
}

fn header(HeaderMatch { name, value }: &HeaderMatch) -> anyhow::Result<String> {
    Ok(match value.as_ref().context("no value")? {
        header_match::Value::Exact(value) => format!("{name}={}", String::from_utf8_lossy(value)),
        header_match::Value::Regex(regex) => format!("{name}~{regex}"),
    })
}

fn or_everything(parts: &[String]) -> String {
    match parts.is_empty() {
        true => "*".to_owned(),
        false => parts.join(" "),
    }
}

fn all<T>(list: &[T], show: impl Fn(&T) -> anyhow::Result<String>) -> anyhow::Result<String> {
    let shown: Vec<String> = list.iter().map(show).collect::<Result<_, _>>()?;
    Ok(shown.join(", "))
}
