//! Endpoints, added up as a proxy does, and profiles.

use std::collections::BTreeMap;

use anyhow::Context as _;
use linkerd2_proxy_api::destination::{
    DestinationProfile, Update, WeightedAddr, protocol_hint::Protocol, tls_identity::Strategy,
    update::Update as Kind,
};

use super::{addr, meta, short};

/// What a proxy has after all updates.
#[derive(Default)]
pub(crate) struct Endpoints(BTreeMap<String, String>);

impl Endpoints {
    /// A line for each endpoint; `none` or `no service` without any.
    pub(crate) fn update(&mut self, update: Update) -> anyhow::Result<Vec<String>> {
        match update.update.context("an update without a kind")? {
            Kind::Add(set) => {
                for one in &set.addrs {
                    self.0.insert(addr(one.addr.as_ref())?, endpoint(one)?);
                }
            }
            Kind::Remove(set) => {
                for one in &set.addrs {
                    let gone = addr(Some(one))?;
                    self.0.remove(&gone).context("removed what was never added")?;
                }
            }
            Kind::NoEndpoints(none) => {
                self.0.clear();
                return Ok(vec![if none.exists { "none" } else { "no service" }.to_owned()]);
            }
        }
        Ok(self.0.values().cloned().collect())
    }
}

/// `ADDRESS as IDENTITY PROTOCOL via PORT`.
fn endpoint(one: &WeightedAddr) -> anyhow::Result<String> {
    let mut text = addr(one.addr.as_ref())?;
    if let Some(identity) = &one.tls_identity {
        let proof = match identity.strategy.as_ref().context("no strategy")? {
            Strategy::DnsLikeIdentity(dns) => &dns.name,
            Strategy::UriLikeIdentity(uri) => &uri.uri,
        };
        text += &format!(" as {}", short(proof));
        let server_name = &identity.server_name.as_ref().context("no server name")?.name;
        if server_name != proof {
            text += &format!(" at {server_name}");
        }
    }
    if let Some(hint) = &one.protocol_hint {
        text += match hint.protocol {
            None => "",
            Some(Protocol::H2(_)) => " h2",
            Some(Protocol::Opaque(_)) => " opaque",
        };
        if let Some(transport) = &hint.opaque_transport {
            text += &format!(" via {}", transport.inbound_port);
        }
    }
    Ok(text)
}

/// `NAME`, whether it is opaque, its routes, its overrides, its endpoint.
pub(crate) fn profile(profile: DestinationProfile) -> anyhow::Result<Vec<String>> {
    let DestinationProfile {
        fully_qualified_name,
        opaque_protocol,
        routes,
        retry_budget,
        dst_overrides,
        endpoint: one,
        parent_ref,
        profile_ref,
    } = profile;
    let mut lines = vec![match fully_qualified_name.is_empty() {
        true => "unnamed".to_owned(),
        false => short(&fully_qualified_name),
    }];
    if opaque_protocol {
        lines.push("opaque".to_owned());
    }
    if parent_ref.is_some() {
        lines.push(format!("of {}", meta(parent_ref.as_ref())?));
    }
    if profile_ref.is_some() {
        let budget = retry_budget.context("no budget")?;
        let profile = short(&meta(profile_ref.as_ref())?);
        lines.push(format!("by {profile}, {} retries a request", budget.retry_ratio));
    }
    for route in &routes {
        let name = route.metrics_labels.get("route").context("no name")?;
        let retries = if route.is_retryable { " retried" } else { "" };
        lines.push(format!("route {name}{retries}"));
    }
    for one in &dst_overrides {
        lines.push(format!("{} x {}", one.weight, short(&one.authority)));
    }
    if let Some(one) = &one {
        lines.push(endpoint(one)?);
    }
    Ok(lines)
}
