//! Which EgressNetwork an address outside the cluster belongs to.

use std::{cmp::Reverse, net::IpAddr};

use heddle_control_core::inbound::NetworkMatch;

use crate::{
    config::Config,
    facts::{EgressFacts, ObjectKey},
    store::Store,
};

/// The EgressNetwork of the client's own namespace, or else the global one: of several the one with the smallest
/// network around the address, then the oldest, then the first by name.
pub(super) fn find<'a>(
    store: &'a Store,
    config: &Config,
    client_namespace: &str,
    ip: IpAddr,
) -> Option<(ObjectKey, &'a EgressFacts)> {
    [client_namespace, &config.global_egress_namespace]
        .into_iter()
        .find_map(|namespace| {
            let matching = store
                .egress_networks
                .namespace(namespace)
                .filter_map(|(name, facts)| {
                    let prefix = match &facts.networks {
                        None => 0,
                        Some(networks) => networks
                            .iter()
                            .filter(|network| contains(network, ip))
                            .map(|one| one.net.prefix_len())
                            .max()?,
                    };
                    Some((Reverse(prefix), facts.created, name, facts))
                });
            let (_, _, name, facts) =
                matching.min_by_key(|(prefix, created, name, _)| (*prefix, *created, *name))?;
            Some((ObjectKey::new(namespace, name), facts))
        })
}

fn contains(network: &NetworkMatch, ip: IpAddr) -> bool {
    network.net.contains(&ip) && !network.except.iter().any(|net| net.contains(&ip))
}
