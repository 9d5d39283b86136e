//! EgressNetworks: whether they keep out of the cluster.

use heddle_control_core::inbound::NetworkMatch;
use ipnet::IpNet;

use super::condition::{Condition, Rejection};
use crate::{config::Config, facts::EgressFacts};

pub(super) fn judge(config: &Config, facts: &EgressFacts) -> Condition {
    let Some(networks) = &facts.networks else {
        // All that is not in the cluster.
        return Condition::accepted();
    };
    if networks.is_empty() {
        let message = "spec.networks: one of them is no network such as 192.0.2.0/24: correct it";
        return Condition::rejected(Rejection::Invalid, message.to_owned());
    }
    let clash = networks.iter().find_map(|network| {
        let cluster = config
            .cluster_networks
            .iter()
            .find(|cluster| overlaps(network, cluster))?;
        Some((network.net, cluster))
    });
    match clash {
        None => Condition::accepted(),
        Some((net, cluster)) => Condition::rejected(
            Rejection::NetworkOverlap,
            format!(
                "networks overlap with clusterNetworks: {net} with {cluster}: add what is in the cluster to its except"
            ),
        ),
    }
}

/// Whether routes may attach to it. Its own traffic policy is in force even if not: a mistake in one of several
/// networks must not open what it closes.
pub(super) fn takes_routes(config: &Config, facts: &EgressFacts) -> bool {
    judge(config, facts).status
}

fn overlaps(network: &NetworkMatch, cluster: &IpNet) -> bool {
    let common = match () {
        () if network.net.contains(cluster) => *cluster,
        () if cluster.contains(&network.net) => network.net,
        () => return false,
    };
    !covered(common, &network.except)
}

/// Whether the exceptions together leave nothing of a network.
fn covered(net: IpNet, except: &[IpNet]) -> bool {
    if except.iter().any(|one| one.contains(&net)) {
        return true;
    }
    // Without an exception inside, splitting it further leads nowhere: so this ends, and soon.
    let within: Vec<IpNet> = except.iter().copied().filter(|one| net.contains(one)).collect();
    if within.is_empty() {
        return false;
    }
    let Ok(mut halves) = net.subnets(net.prefix_len() + 1) else {
        return false;
    };
    halves.all(|half| covered(half, &within))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(net: &str, except: &[&str]) -> NetworkMatch {
        NetworkMatch {
            net: net.parse().expect("a network"),
            except: except.iter().map(|net| net.parse().expect("a network")).collect(),
        }
    }

    #[test]
    fn what_is_excepted_does_not_overlap() {
        let cluster = "10.0.0.0/8".parse().expect("a network");
        assert!(overlaps(&network("0.0.0.0/0", &[]), &cluster));
        assert!(overlaps(&network("10.1.0.0/16", &[]), &cluster));
        assert!(overlaps(&network("0.0.0.0/0", &["10.0.0.0/9"]), &cluster));
        assert!(!overlaps(&network("0.0.0.0/0", &["10.0.0.0/8"]), &cluster));
        assert!(!overlaps(
            &network("0.0.0.0/0", &["10.0.0.0/9", "10.128.0.0/9"]),
            &cluster
        ));
        assert!(!overlaps(&network("11.0.0.0/8", &[]), &cluster));
        assert!(!overlaps(&network("2001:db8::/32", &[]), &cluster));
    }
}
