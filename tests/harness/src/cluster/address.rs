//! Which addresses a cluster gets: all derived from one small number, so that clusters never collide.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The most clusters that can run side by side on one machine.
pub const CLUSTERS_MAX: u8 = 48;

/// A cluster's number on this machine; everything about its addresses follows from it.
///
/// The veth pair between host and cluster takes a /30 from 100.100.0.0/16 (shared address space, which
/// meshes count as part of a cluster, and not link-local, which the API server refuses in endpoints).
/// Pods and Services get a /16 each that differs between clusters, so that the host can route to all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Slot(u8);

/// An IPv4 network in CIDR form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// Its first address.
    pub base: Ipv4Addr,
    /// Its prefix length.
    pub prefix: u8,
}

impl Slot {
    /// The number of a cluster without a node: its addresses exist nowhere outside its API server.
    pub const FIRST: Slot = Slot(0);

    /// The lowest number that `taken` says is free.
    pub fn lowest_free(mut taken: impl FnMut(Slot) -> bool) -> Option<Slot> {
        (0..CLUSTERS_MAX).map(Slot).find(|slot| !taken(*slot))
    }

    /// The host's end of the veth pair.
    pub fn host(self) -> Ipv4Addr {
        Ipv4Addr::new(100, 100, 0, self.0 * 4 + 1)
    }

    /// The node's address: the cluster's end of the veth pair.
    pub fn node(self) -> Ipv4Addr {
        Ipv4Addr::new(100, 100, 0, self.0 * 4 + 2)
    }

    /// The network of the veth pair.
    pub fn link(self) -> Cidr {
        Cidr {
            base: Ipv4Addr::new(100, 100, 0, self.0 * 4),
            prefix: 30,
        }
    }

    /// Addresses of pods.
    pub fn pods(self) -> Cidr {
        Cidr {
            base: Ipv4Addr::new(10, 244 - self.0, 0, 0),
            prefix: 16,
        }
    }

    /// Addresses of the pods of the only node: the first /24 of [`Slot::pods`], as the controller manager assigns it.
    pub fn node_pods(self) -> Cidr {
        Cidr {
            prefix: 24,
            ..self.pods()
        }
    }

    /// Addresses of Services.
    pub fn services(self) -> Cidr {
        Cidr {
            base: Ipv4Addr::new(10, 96 + self.0, 0, 0),
            prefix: 16,
        }
    }

    /// The Service `default/kubernetes`, which the API server gives the first address.
    pub fn kubernetes_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96 + self.0, 0, 1)
    }

    /// The Service `kube-system/kube-dns`.
    pub fn dns_service(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96 + self.0, 0, 10)
    }
}

impl Cidr {
    /// Whether `address` is in it.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        address.to_bits() & mask == self.base.to_bits() & mask
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Slot> {
        (0..CLUSTERS_MAX).map(Slot)
    }

    #[test]
    fn no_two_clusters_share_an_address() {
        let networks: Vec<Cidr> = all()
            .flat_map(|slot| [slot.link(), slot.pods(), slot.services()])
            .collect();
        for (i, a) in networks.iter().enumerate() {
            for b in &networks[i + 1..] {
                assert!(!a.contains(b.base) && !b.contains(a.base), "{a} and {b} overlap");
            }
        }
    }

    #[test]
    fn a_cluster_lies_in_its_own_networks() {
        for slot in all() {
            assert!(slot.link().contains(slot.host()) && slot.link().contains(slot.node()));
            assert!(slot.services().contains(slot.kubernetes_service()));
            assert!(slot.services().contains(slot.dns_service()));
            assert!(slot.pods().contains(slot.node_pods().base));
        }
    }

    #[test]
    fn the_lowest_free_slot_is_taken_and_they_run_out() {
        assert_eq!(Slot::lowest_free(|slot| slot.0 < 2), Some(Slot(2)));
        assert_eq!(Slot::lowest_free(|slot| slot.0 != 1), Some(Slot(1)));
        assert_eq!(Slot::lowest_free(|_| true), None);
    }
}
