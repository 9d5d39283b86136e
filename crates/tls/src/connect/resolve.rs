//! From a service's name to the addresses of its pods: SRV on a headless Service, else A and AAAA.

use std::{net::SocketAddr, sync::OnceLock, time::Duration};

use hickory_resolver::{
    ResolverBuilder, TokioResolver,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{RData, RecordType},
};

use super::addr::{ControlAddr, Host};

/// A service has a few replicas; more addresses than this are not looked at.
const ADDRESSES_MAX: usize = 64;
const QUERY_TIMEOUT: Duration = Duration::from_secs(2);
const QUERY_ATTEMPTS: usize = 2;
/// So that a scaled or restarted control plane is found soon, whatever a record's time to live says.
const TTL_MAX: Duration = Duration::from_secs(5);

/// Resolves names, by the system's configuration, read when first needed.
#[derive(Default)]
pub(super) struct Resolver(OnceLock<TokioResolver>);

/// Why a service has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// `/etc/resolv.conf` is not usable.
    #[error("failed to read the system's DNS configuration")]
    Config(#[source] NetError),
    /// DNS does not answer, or knows no address.
    #[error("failed to resolve {name}")]
    Lookup {
        /// The name asked for.
        name: String,
        /// What DNS said.
        source: NetError,
    },
    /// DNS answers without an address.
    #[error("{0} has no address")]
    Empty(String),
}

impl Resolver {
    pub(super) async fn resolve(&self, addr: &ControlAddr) -> Result<Vec<SocketAddr>, ResolveError> {
        let name = match addr.host() {
            Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, addr.port())]),
            Host::Name(name) => absolute(name),
        };
        let resolver = self.get()?;
        let mut found = srv(resolver, &name, addr.port()).await;
        if found.is_empty() {
            let ips = resolver
                .lookup_ip(name.as_str())
                .await
                .map_err(|source| ResolveError::Lookup {
                    name: name.clone(),
                    source,
                })?;
            found = ips
                .iter()
                .take(ADDRESSES_MAX)
                .map(|ip| SocketAddr::new(ip, addr.port()))
                .collect();
        }
        if found.is_empty() {
            return Err(ResolveError::Empty(name));
        }
        Ok(found)
    }

    fn get(&self) -> Result<&TokioResolver, ResolveError> {
        if let Some(resolver) = self.0.get() {
            return Ok(resolver);
        }
        let builder = TokioResolver::builder_tokio().map_err(ResolveError::Config)?;
        let resolver = build(builder).map_err(ResolveError::Config)?;
        Ok(self.0.get_or_init(|| resolver))
    }
}

fn build(mut builder: ResolverBuilder<TokioRuntimeProvider>) -> Result<TokioResolver, NetError> {
    let options = builder.options_mut();
    options.timeout = QUERY_TIMEOUT;
    options.attempts = QUERY_ATTEMPTS;
    options.cache_size = 64;
    options.positive_max_ttl = Some(TTL_MAX);
    options.negative_max_ttl = Some(TTL_MAX);
    builder.build()
}

/// A headless Service's name has SRV records that name each pod, with the pod's own port. Those of other ports of the
/// same Service are passed over; without any of ours, the caller asks for plain addresses.
async fn srv(resolver: &TokioResolver, name: &str, port: u16) -> Vec<SocketAddr> {
    let Ok(records) = resolver.lookup(name, RecordType::SRV).await else {
        return Vec::new();
    };
    let mut found = Vec::new();
    for record in records.answers() {
        let RData::SRV(srv) = &record.data else { continue };
        if srv.port != port || found.len() >= ADDRESSES_MAX {
            continue;
        }
        if let Ok(ips) = resolver.lookup_ip(srv.target.clone()).await {
            found.extend(ips.iter().map(|ip| SocketAddr::new(ip, port)));
        }
    }
    found.truncate(ADDRESSES_MAX);
    found
}

/// The name of a Service is complete as it stands; with a dot at its end the resolver does not try the search domains
/// of the pod first, which would be three queries for nothing.
fn absolute(name: &str) -> String {
    if name.contains(".svc.") && !name.ends_with('.') {
        format!("{name}.")
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests;
