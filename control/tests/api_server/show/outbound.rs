//! Outbound policies, with Heddle's extension.

use anyhow::{Context as _, ensure};
use heddle_wire::{
    Affinity, Balancer, Carrier, Extension, GrpcMatchRegex, PathRewrite, Persistence, PolicyMessage,
    RuleExtension,
};
use linkerd2_proxy_api::outbound::{
    Backend, FailureAccrual, GrpcRoute, HttpRoute, OpaqueRoute, OutboundPolicy, TlsRoute, backend,
    failure_accrual, grpc_route, http_route, opaque_route, proxy_protocol::Kind, tls_route,
};
use linkerd2_proxy_api::{http_route::Timeouts, tls_route::sni_match};

use super::{addr, all, duration, grpc_match, hosts, http_match, meta, reversed, short};

/// The standard policy's lines, then the extension's.
pub(crate) fn policy(message: PolicyMessage) -> anyhow::Result<Vec<String>> {
    let (policy, extension) = message.into_parts()?;
    let mut lines = standard(policy)?;
    let Extension { rules, balancers } = extension;
    for rule in &rules {
        lines.push(rule_extension(rule)?);
    }
    lines.extend(balancers.iter().map(balancer));
    Ok(lines)
}

/// `PROTOCOL of PARENT`, then a line for each rule, in order: `ROUTE: MATCHES SETTINGS -> BACKENDS`.
pub(crate) fn standard(policy: OutboundPolicy) -> anyhow::Result<Vec<String>> {
    let OutboundPolicy { protocol, metadata } = policy;
    let kind = protocol
        .and_then(|protocol| protocol.kind)
        .context("no protocol")?;
    let parent = meta(metadata.as_ref())?;
    let mut lines = Vec::new();
    let name = match &kind {
        Kind::Detect(detect) => {
            ensure!(detect.timeout.is_some(), "proxies refuse this");
            let (http1, http2) = detect
                .http1
                .as_ref()
                .zip(detect.http2.as_ref())
                .context("no HTTP")?;
            let opaque = detect.opaque.as_ref().context("nothing else")?;
            ensure!(
                http1.routes == http2.routes && http1.failure_accrual == http2.failure_accrual,
                "HTTP/1 and HTTP/2 differ"
            );
            http_lines(&http1.routes, http1.failure_accrual.as_ref(), &mut lines)?;
            opaque_lines(&opaque.routes, &mut lines)?;
            "detect"
        }
        Kind::Http1(http) => {
            http_lines(&http.routes, http.failure_accrual.as_ref(), &mut lines)?;
            "http1"
        }
        Kind::Http2(http) => {
            http_lines(&http.routes, http.failure_accrual.as_ref(), &mut lines)?;
            "http2"
        }
        Kind::Grpc(grpc) => {
            accrual(grpc.failure_accrual.as_ref(), &mut lines)?;
            for route in &grpc.routes {
                grpc_lines(route, &mut lines)?;
            }
            "grpc"
        }
        Kind::Opaque(opaque) => {
            opaque_lines(&opaque.routes, &mut lines)?;
            "opaque"
        }
        Kind::Tls(tls) => {
            for route in &tls.routes {
                lines.push(tls_line(route)?);
            }
            "tls"
        }
    };
    lines.insert(0, format!("{name} of {parent}"));
    Ok(lines)
}

fn http_lines(
    routes: &[HttpRoute],
    failures: Option<&FailureAccrual>,
    lines: &mut Vec<String>,
) -> anyhow::Result<()> {
    accrual(failures, lines)?;
    for HttpRoute {
        metadata,
        hosts: for_hosts,
        rules,
    } in routes
    {
        let (name, hosts) = (meta(metadata.as_ref())?, hosts(for_hosts)?);
        for rule in rules {
            let matches = all(&rule.matches, http_match)?;
            let mut settings = all(&rule.filters, http_filter)?;
            settings += &timeouts(rule.timeouts.as_ref())?;
            if let Some(http_route::Retry {
                max_retries,
                conditions,
                timeout,
                backoff,
                ..
            }) = &rule.retry
            {
                ensure!(backoff.is_some(), "proxies refuse retries without a backoff");
                let ranges = &conditions.as_ref().context("no conditions")?.status_ranges;
                let on = all(ranges, |range| Ok(format!("{}-{}", range.start, range.end)))?;
                settings += &format!(" retries {max_retries} on {on}");
                if let Some(timeout) = timeout {
                    settings += &format!(" after {}", duration(*timeout)?);
                }
            }
            let backends = http_backends(rule.backends.as_ref())?;
            lines.push(format!("{name}: {hosts}{matches}{settings} -> {backends}"));
        }
    }
    Ok(())
}

fn http_filter(filter: &http_route::Filter) -> anyhow::Result<String> {
    use http_route::filter::Kind;
    Ok(match filter.kind.as_ref().context("no filter")? {
        Kind::FailureInjector(failure) => format!(" fails {}", failure.status),
        Kind::RequestHeaderModifier(_) => " changes headers".to_owned(),
        Kind::ResponseHeaderModifier(_) => " changes response headers".to_owned(),
        Kind::Redirect(redirect) => format!(" redirects to {}", redirect.host),
    })
}

fn grpc_lines(route: &GrpcRoute, lines: &mut Vec<String>) -> anyhow::Result<()> {
    let (name, hosts) = (meta(route.metadata.as_ref())?, hosts(&route.hosts)?);
    for rule in &route.rules {
        let matches = all(&rule.matches, grpc_match)?;
        let mut settings = all(&rule.filters, grpc_filter)?;
        settings += &timeouts(rule.timeouts.as_ref())?;
        if let Some(retry) = &rule.retry {
            let on = retry.conditions.as_ref().context("no conditions")?;
            let named = [
                (on.cancelled, "cancelled"),
                (on.deadine_exceeded, "deadline-exceeded"),
                (on.resource_exhausted, "resource-exhausted"),
                (on.internal, "internal"),
                (on.unavailable, "unavailable"),
            ];
            let on: Vec<&str> = named
                .iter()
                .filter_map(|(on, name)| on.then_some(*name))
                .collect();
            settings += &format!(" retries {} on {}", retry.max_retries, on.join(", "));
        }
        let backends = grpc_backends(rule.backends.as_ref())?;
        lines.push(format!("{name}: {hosts}{matches}{settings} -> {backends}"));
    }
    Ok(())
}

fn grpc_filter(filter: &grpc_route::Filter) -> anyhow::Result<String> {
    use grpc_route::filter::Kind;
    Ok(match filter.kind.as_ref().context("no filter")? {
        Kind::FailureInjector(failure) => format!(" fails {}", failure.code),
        Kind::RequestHeaderModifier(_) => " changes headers".to_owned(),
    })
}

fn opaque_lines(routes: &[OpaqueRoute], lines: &mut Vec<String>) -> anyhow::Result<()> {
    for OpaqueRoute { metadata, rules } in routes {
        let name = meta(metadata.as_ref())?;
        for rule in rules {
            let settings = all(&rule.filters, opaque_filter)?;
            let backends = opaque_backends(rule.backends.as_ref())?;
            lines.push(format!("{name}: bytes{settings} -> {backends}"));
        }
    }
    Ok(())
}

fn opaque_filter(filter: &opaque_route::Filter) -> anyhow::Result<String> {
    use opaque_route::filter::Kind;
    Ok(match filter.kind.as_ref().context("no filter")? {
        Kind::Invalid(_) => " fails".to_owned(),
        Kind::Forbidden(_) => " forbidden".to_owned(),
    })
}

fn tls_line(route: &TlsRoute) -> anyhow::Result<String> {
    let name = meta(route.metadata.as_ref())?;
    let names = all(&route.snis, |sni| {
        match sni.r#match.as_ref().context("no name")? {
            sni_match::Match::Exact(name) => Ok(name.clone()),
            sni_match::Match::Suffix(suffix) => Ok(reversed(&suffix.reverse_labels)),
        }
    })?;
    let [rule] = route.rules.as_slice() else {
        anyhow::bail!("{} rules", route.rules.len())
    };
    let settings = all(&rule.filters, tls_filter)?;
    let backends = tls_backends(rule.backends.as_ref())?;
    let names = if names.is_empty() {
        "all names"
    } else {
        names.as_str()
    };
    Ok(format!("{name}: {names}{settings} -> {backends}"))
}

fn tls_filter(filter: &tls_route::Filter) -> anyhow::Result<String> {
    use tls_route::filter::Kind;
    Ok(match filter.kind.as_ref().context("no filter")? {
        Kind::Invalid(_) => " fails".to_owned(),
        Kind::Forbidden(_) => " forbidden".to_owned(),
    })
}

/// The four kinds of routes have distributions of the same shape and of different types.
macro_rules! backends {
    ($function:ident, $module:ident, $filter:ident) => {
        fn $function(distribution: Option<&$module::Distribution>) -> anyhow::Result<String> {
            use $module::distribution::Kind;
            let one = |one: &$module::RouteBackend| -> anyhow::Result<String> {
                let target = backend(one.backend.as_ref())?;
                Ok(target + &all(&one.filters, $filter)?)
            };
            let kind = distribution.and_then(|distribution| distribution.kind.as_ref());
            match kind.context("proxies refuse a rule without a distribution")? {
                Kind::Empty(_) => Ok("nothing".to_owned()),
                Kind::FirstAvailable(first) => all(&first.backends, one),
                Kind::RandomAvailable(random) => all(&random.backends, |weighted| {
                    let target = one(weighted.backend.as_ref().context("no backend")?)?;
                    Ok(format!("{} x {target}", weighted.weight))
                }),
            }
        }
    };
}

backends!(http_backends, http_route, http_filter);
backends!(grpc_backends, grpc_route, grpc_filter);
backends!(opaque_backends, opaque_route, opaque_filter);
backends!(tls_backends, tls_route, tls_filter);

fn backend(backend: Option<&Backend>) -> anyhow::Result<String> {
    let Backend {
        metadata,
        queue,
        kind,
    } = backend.context("no backend")?;
    meta(metadata.as_ref())?;
    ensure!(queue.is_some(), "proxies refuse a backend without a queue");
    match kind.as_ref().context("no kind of backend")? {
        backend::Kind::Forward(one) => addr(one.addr.as_ref()),
        backend::Kind::Balancer(balancer) => {
            let discovery = balancer.discovery.as_ref().and_then(|one| one.kind.as_ref());
            let backend::endpoint_discovery::Kind::Dst(get) = discovery.context("no discovery")?;
            let biased = match balancer.load.as_ref().context("no load")? {
                backend::balance_p2c::Load::PeakEwma(_) => "",
                backend::balance_p2c::Load::PenaltyPeakEwma(_) => " biased",
            };
            Ok(short(&get.path) + biased)
        }
    }
}

fn timeouts(timeouts: Option<&Timeouts>) -> anyhow::Result<String> {
    let Timeouts {
        request,
        response,
        idle,
    } = timeouts.cloned().unwrap_or_default();
    let mut text = String::new();
    for (name, value) in [("request", request), ("response", response), ("idle", idle)] {
        if let Some(value) = value {
            text += &format!(" {name} {}", duration(value)?);
        }
    }
    Ok(text)
}

fn accrual(accrual: Option<&FailureAccrual>, lines: &mut Vec<String>) -> anyhow::Result<()> {
    let Some(FailureAccrual { ejection, kind }) = accrual else {
        return Ok(());
    };
    let keeps = ejection
        .as_ref()
        .map_or(0, |ejection| ejection.min_ready_endpoints);
    let (text, backoff) = match kind.as_ref().context("no accrual")? {
        failure_accrual::Kind::ConsecutiveFailures(one) => {
            (format!("ejects after {}", one.max_failures), &one.backoff)
        }
        failure_accrual::Kind::Unified(one) => (
            format!(
                "ejects below {} of {}",
                one.success_rate_threshold, one.min_requests
            ),
            &one.backoff,
        ),
    };
    let backoff = backoff
        .as_ref()
        .context("proxies refuse an accrual without a backoff")?;
    let min = duration(backoff.min_backoff.context("no minimum")?)?;
    let max = duration(backoff.max_backoff.context("no maximum")?)?;
    lines.push(format!("{text} for {min} to {max}, keeps {keeps}"));
    Ok(())
}

/// `ROUTE.RULE[.BACKEND] WHAT`.
fn rule_extension(rule: &RuleExtension) -> anyhow::Result<String> {
    let RuleExtension {
        route,
        rule,
        backend: of,
        rewrite,
        mirrors,
        session,
        response_headers,
        grpc_matches,
    } = rule;
    let mut text = format!("{route}.{rule}");
    if let Some(of) = of {
        text += &format!(".{of}");
    }
    if let Some(rewrite) = rewrite {
        text += &format!(" host {}", rewrite.host.as_deref().unwrap_or("stays"));
        text += &match &rewrite.path {
            None => String::new(),
            Some(PathRewrite::Full(path)) => format!(" path {path}"),
            Some(PathRewrite::Prefix(prefix)) => format!(" path {prefix}*"),
        };
    }
    for mirror in mirrors {
        let target = backend(Some(&mirror.backend))?;
        text += &format!(" mirrors {}/{} to {target}", mirror.numerator, mirror.denominator);
    }
    if let Some(session) = session {
        text += &persistence(session);
    }
    if response_headers.is_some() {
        text += " changes response headers";
    }
    for GrpcMatchRegex {
        index,
        service,
        method,
    } in grpc_matches
    {
        let part = |part: &Option<String>| part.clone().unwrap_or_default();
        text += &format!(" match {index} ~{}/{}", part(service), part(method));
    }
    Ok(text)
}

fn persistence(session: &Persistence) -> String {
    let carrier = match session.carrier {
        Carrier::Cookie => "cookie",
        Carrier::Header => "header",
    };
    let mut text = format!(" keeps by {carrier} {}", session.name);
    if let Some(timeout) = session.absolute_timeout {
        text += &format!(" for {timeout:?}");
    }
    text
}

/// `BALANCER WHAT`.
fn balancer(balancer: &Balancer) -> String {
    let Balancer {
        path,
        affinity,
        limits,
    } = balancer;
    let mut text = short(path);
    match affinity {
        None => {}
        Some(Affinity::Persist(session)) => text += &persistence(session),
        Some(Affinity::Hash(key)) => text += &format!(" hashes {key:?}"),
    }
    if let Some(requests) = limits.requests {
        text += &format!(" takes {requests} requests");
    }
    text
}
