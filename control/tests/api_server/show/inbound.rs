//! Inbound policies.

use anyhow::{Context as _, ensure};
use linkerd2_proxy_api::inbound::{
    Authz, GrpcRoute, HttpLocalRateLimit, HttpRoute, Network, Server,
    authn::{Permit, permit_mesh_tls},
    grpc_route, http_local_rate_limit, http_route,
    proxy_protocol::Kind,
};

use super::{all, grpc_match, hosts, http_match, meta, short};

/// `KIND/NAME PROTOCOL`, then what is let in, by which routes, and how much of it.
pub(crate) fn server(server: Server) -> anyhow::Result<Vec<String>> {
    let Server {
        protocol,
        server_ips: _,
        authorizations,
        labels,
    } = server;
    let kind = protocol
        .and_then(|protocol| protocol.kind)
        .context("no protocol")?;
    let (protocol, http, grpc, limit) = match kind {
        Kind::Detect(detect) => {
            ensure!(detect.timeout.is_some(), "proxies refuse this");
            (
                "detect",
                detect.http_routes,
                Vec::new(),
                detect.http_local_rate_limit,
            )
        }
        Kind::Http1(http) => ("http1", http.routes, Vec::new(), http.local_rate_limit),
        Kind::Http2(http) => ("http2", http.routes, Vec::new(), http.local_rate_limit),
        Kind::Grpc(grpc) => ("grpc", Vec::new(), grpc.routes, None),
        Kind::Opaque(_) => ("opaque", Vec::new(), Vec::new(), None),
        Kind::Tls(_) => ("tls", Vec::new(), Vec::new(), None),
    };
    let label = |key: &str| labels.get(key).with_context(|| format!("no label {key}"));
    let mut lines = vec![format!("{}/{} {protocol}", label("kind")?, label("name")?)];
    for one in &authorizations {
        lines.push(authz(one)?);
    }
    for route in &http {
        http_lines(route, &mut lines)?;
    }
    for route in &grpc {
        grpc_lines(route, &mut lines)?;
    }
    if let Some(limit) = &limit {
        lines.push(rate_limit(limit)?);
    }
    Ok(lines)
}

/// `NAME lets WHOM`, `from` where if not from everywhere.
fn authz(authz: &Authz) -> anyhow::Result<String> {
    let Authz {
        networks,
        authentication,
        labels,
        metadata,
    } = authz;
    ensure!(
        !labels.is_empty(),
        "proxies refuse an authorization without labels"
    );
    let name = meta(metadata.as_ref())?;
    let permit = authentication
        .as_ref()
        .and_then(|authentication| authentication.permit.as_ref())
        .context("proxies refuse an authorization without authentication")?;
    let whom = match permit {
        Permit::Unauthenticated(_) => "anyone".to_owned(),
        Permit::MeshTls(tls) => match tls.clients.as_ref().context("no clients")? {
            permit_mesh_tls::Clients::Unauthenticated(_) => "any TLS".to_owned(),
            permit_mesh_tls::Clients::Identities(clients) => {
                let exact = clients.identities.iter().map(|identity| short(&identity.name));
                let suffixes = clients
                    .suffixes
                    .iter()
                    .map(|suffix| match suffix.parts.is_empty() {
                        true => "*".to_owned(),
                        false => short(&format!("*.{}", suffix.parts.join("."))),
                    });
                let list: Vec<String> = exact.chain(suffixes).collect();
                list.join(", ")
            }
        },
    };
    let from = all(networks, network)?;
    Ok(match from.as_str() {
        "0.0.0.0/0, ::/0" => format!("{name} lets {whom}"),
        _ => format!("{name} lets {whom} from {from}"),
    })
}

fn network(Network { net, except }: &Network) -> anyhow::Result<String> {
    let shown = |net: &linkerd2_proxy_api::net::IpNetwork| -> anyhow::Result<String> {
        Ok(ipnet::IpNet::try_from(*net)?.to_string())
    };
    let mut text = shown(net.as_ref().context("no network")?)?;
    for one in except {
        text = format!("{text} less {}", shown(one)?);
    }
    Ok(text)
}

fn http_lines(route: &HttpRoute, lines: &mut Vec<String>) -> anyhow::Result<()> {
    let name = meta(route.metadata.as_ref())?;
    let hosts = hosts(&route.hosts)?;
    for http_route::Rule { matches, filters } in &route.rules {
        let filters = all(filters, |filter| {
            use http_route::filter::Kind;
            Ok(match filter.kind.as_ref().context("no filter")? {
                Kind::FailureInjector(failure) => format!(" fails {}", failure.status),
                Kind::RequestHeaderModifier(_) => " changes headers".to_owned(),
                Kind::Redirect(redirect) => format!(" redirects to {}", redirect.host),
            })
        })?;
        lines.push(format!("{name}: {hosts}{}{filters}", all(matches, http_match)?));
    }
    for one in &route.authorizations {
        lines.push(format!("{name}: {}", authz(one)?));
    }
    Ok(())
}

fn grpc_lines(route: &GrpcRoute, lines: &mut Vec<String>) -> anyhow::Result<()> {
    let name = meta(route.metadata.as_ref())?;
    let hosts = hosts(&route.hosts)?;
    for grpc_route::Rule { matches, filters } in &route.rules {
        let filters = all(filters, |filter| {
            use grpc_route::filter::Kind;
            Ok(match filter.kind.as_ref().context("no filter")? {
                Kind::FailureInjector(failure) => format!(" fails {}", failure.code),
                Kind::RequestHeaderModifier(_) => " changes headers".to_owned(),
            })
        })?;
        lines.push(format!("{name}: {hosts}{}{filters}", all(matches, grpc_match)?));
    }
    for one in &route.authorizations {
        lines.push(format!("{name}: {}", authz(one)?));
    }
    Ok(())
}

fn rate_limit(limit: &HttpLocalRateLimit) -> anyhow::Result<String> {
    let rate = |limit: &Option<http_local_rate_limit::Limit>| {
        limit
            .as_ref()
            .map_or("any".to_owned(), |limit| limit.requests_per_second.to_string())
    };
    let overrides = all(&limit.overrides, |one| {
        let clients = one.clients.iter().flat_map(|clients| &clients.identities);
        let clients: Vec<String> = clients.map(|identity| short(&identity.name)).collect();
        Ok(format!("; {} of {}", rate(&one.limit), clients.join(", ")))
    })?;
    Ok(format!(
        "{}: {} a second, {} of each{overrides}",
        meta(limit.metadata.as_ref())?,
        rate(&limit.total),
        rate(&limit.identity)
    ))
}
