//! What a client is told about the endpoints behind one port of a service.
//!
//! [`Endpoints`] is the same for all clients; [`Endpoints::seen_from`] is what one client, on its node and in its zone,
//! may use of it. [`Diff`] is how one view becomes the next.

use std::{borrow::Cow, collections::BTreeMap, net::SocketAddr, sync::Arc};

use heddle_mesh::Identity;

use crate::discover::{WorkloadKind, WorkloadName};

/// The default weight of an endpoint; Linkerd's.
pub const DEFAULT_WEIGHT: u32 = 10_000;

/// How much more an endpoint of the client's own zone weighs where zones count: as in Linkerd.
const OWN_ZONE: u32 = 10;

/// Labels of a metric, in order of their names.
pub type Labels = BTreeMap<String, String>;

/// Endpoints by address.
pub type Addresses = BTreeMap<SocketAddr, Arc<Endpoint>>;

/// All endpoints of one port of one service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Whether the service exists; a service without endpoints still does.
    pub exists: bool,
    /// Labels that all endpoints share: `namespace` and `service`.
    pub labels: Labels,
    /// Whether a client may use the endpoints on its own node only (`internalTrafficPolicy: Local`).
    pub local_only: bool,
    /// Whether endpoints of the client's own zone weigh more than others.
    pub zone_weights: bool,
    /// The endpoints by address.
    pub addresses: Addresses,
}

/// One address that takes a service's traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Share of the traffic, relative to the other endpoints'.
    pub weight: u32,
    /// The identity that the endpoint's proxy proves, when it is meshed.
    pub identity: Option<PeerIdentity>,
    /// What the endpoint's proxy understands.
    pub hint: ProtocolHint,
    /// Labels that the workload's replicas share: owner, service account and so on.
    pub labels: Arc<Labels>,
    /// The workload behind the address; its name is a label, too.
    pub workload: Option<Arc<WorkloadName>>,
    /// Where it is; most of a node's endpoints share it.
    pub place: Arc<Place>,
}

/// Where an endpoint is, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Place {
    /// The node the endpoint runs on.
    pub node: Option<Arc<str>>,
    /// The zone the endpoint runs in.
    pub zone: Option<Arc<str>>,
    /// Zones whose clients should use it, from topology hints; empty means all.
    pub for_zones: Vec<Arc<str>>,
    /// Nodes whose clients should use it, from topology hints; empty means all.
    pub for_nodes: Vec<Arc<str>>,
}

/// What the proxy of an endpoint proves with its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PeerIdentity {
    /// A service account's identity, by which the proxy is also asked for (SNI).
    ServiceAccount(Arc<Identity>),
    /// What an ExternalWorkload says of its proxy.
    External(Arc<ExternalIdentity>),
}

/// See [`PeerIdentity::External`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExternalIdentity {
    /// The name in the certificate: a SPIFFE ID (`spiffe://…`), or a DNS name.
    pub identity: String,
    /// The name that clients ask for (SNI).
    pub server_name: String,
}

/// What an endpoint's proxy understands, so that the client's proxy need not find out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProtocolHint {
    /// The protocol to speak to it.
    pub protocol: Protocol,
    /// The port of the proxy's inbound listener, for traffic with a transport header.
    pub opaque_transport: Option<u16>,
}

/// See [`ProtocolHint`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Nothing is known.
    #[default]
    Unknown,
    /// HTTP/1 may be carried over HTTP/2.
    H2,
    /// The bytes are not to be looked into.
    Opaque,
}

/// Where a client runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct ClientLocation {
    /// The client's node.
    pub node: Option<Arc<str>>,
    /// The zone of the client's node.
    pub zone: Option<Arc<str>>,
}

impl Endpoints {
    /// A service that does not exist.
    pub fn missing(labels: Labels) -> Self {
        Self {
            exists: false,
            labels,
            local_only: false,
            zone_weights: false,
            addresses: BTreeMap::new(),
        }
    }

    /// The endpoints that a client may use.
    ///
    /// Topology hints hold only when every endpoint has some, and when the client's node, or else its zone, is hinted at
    /// by at least one: kube-proxy falls back in these cases, so that a stale hint never leaves a client without any.
    pub fn seen_from(&self, client: &ClientLocation) -> Cow<'_, Addresses> {
        if self.local_only {
            let here = |endpoint: &Endpoint| client.node.is_some() && endpoint.place.node == client.node;
            return Cow::Owned(self.filtered(here));
        }
        let by_node = self.hinted(client.node.as_ref(), |place| &place.for_nodes);
        let hinted = by_node.or_else(|| self.hinted(client.zone.as_ref(), |place| &place.for_zones));
        hinted.map_or(Cow::Borrowed(&self.addresses), Cow::Owned)
    }

    /// Whether clients of a node are told something of their own: their zone alone does not say what they may use.
    pub fn differs_on(&self, node: &Arc<str>) -> bool {
        // Mostly there are no hints, and hints hold only where all have some: the first tells.
        let mut places = self.addresses.values().map(|endpoint| &endpoint.place);
        let hinted = places.next().filter(|place| !place.for_nodes.is_empty());
        let hints = |place: &Arc<Place>| place.for_nodes.contains(node);
        self.local_only || hinted.is_some_and(|first| hints(first) || places.any(hints))
    }

    /// The endpoints that are hinted at for `here`, where the hints hold.
    fn hinted(&self, here: Option<&Arc<str>>, hints: impl Fn(&Place) -> &Vec<Arc<str>>) -> Option<Addresses> {
        let here = here?;
        let complete = self
            .addresses
            .values()
            .all(|endpoint| !hints(&endpoint.place).is_empty());
        let ours = |endpoint: &Endpoint| hints(&endpoint.place).contains(here);
        (complete && self.addresses.values().any(|endpoint| ours(endpoint))).then(|| self.filtered(ours))
    }

    /// Share of a client's traffic that goes to one of the endpoints, relative to the others'.
    pub fn weight_for(&self, endpoint: &Endpoint, client: &ClientLocation) -> u32 {
        let near = client.zone.is_some() && endpoint.place.zone == client.zone;
        match self.zone_weights && near {
            true => endpoint.weight.saturating_mul(OWN_ZONE),
            false => endpoint.weight,
        }
    }

    fn filtered(&self, keep: impl Fn(&Endpoint) -> bool) -> Addresses {
        let kept = self.addresses.iter().filter(|(_, endpoint)| keep(endpoint));
        kept.map(|(addr, endpoint)| (*addr, endpoint.clone())).collect()
    }
}

impl ExternalIdentity {
    /// Whether the identity is a URI rather than a DNS name.
    pub fn is_uri(&self) -> bool {
        self.identity.contains("://")
    }
}

impl Endpoint {
    /// The labels that a client's metrics carry for this endpoint.
    pub fn labels_for(&self, client: &ClientLocation) -> Labels {
        let mut labels = self.labels.as_ref().clone();
        if let Some(WorkloadName { kind, name, .. }) = self.workload.as_deref() {
            let kind = match kind {
                WorkloadKind::Pod => "pod",
                WorkloadKind::ExternalWorkload => "external_workload",
            };
            labels.insert(kind.to_owned(), name.as_ref().to_owned());
        }
        let ours = &self.place.zone;
        let locality = match (ours, &client.zone) {
            (Some(ours), Some(theirs)) if ours == theirs => "local",
            (Some(_), Some(_)) => "remote",
            _ => "unknown",
        };
        // Linkerd's has the label even when there is no zone, so that series do not differ in their labels.
        let zone = ours.as_deref().unwrap_or_default();
        labels.insert("zone".into(), zone.to_owned());
        labels.insert("zone_locality".into(), locality.into());
        labels
    }
}

/// The steps from one view of endpoints to the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// New or changed endpoints.
    pub add: Vec<(SocketAddr, Arc<Endpoint>)>,
    /// Addresses that are gone.
    pub remove: Vec<SocketAddr>,
}

impl Diff {
    /// What turns `old` into `new`.
    pub fn between(old: &Addresses, new: &Addresses) -> Self {
        // Unchanged endpoints share their memory, so the pointer mostly decides.
        let same = |a: &Arc<Endpoint>, b: &Arc<Endpoint>| Arc::ptr_eq(a, b) || a == b;
        let changed = new
            .iter()
            .filter(|(addr, endpoint)| !old.get(addr).is_some_and(|known| same(known, endpoint)));
        Self {
            add: changed
                .map(|(addr, endpoint)| (*addr, endpoint.clone()))
                .collect(),
            remove: old
                .keys()
                .filter(|addr| !new.contains_key(addr))
                .copied()
                .collect(),
        }
    }

    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.add.is_empty() && self.remove.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(node: &str, zone: &str, for_zones: &[&str]) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            weight: DEFAULT_WEIGHT,
            identity: None,
            hint: ProtocolHint::default(),
            labels: Arc::new(Labels::new()),
            workload: Some(WorkloadName::pod("ns", "web-0").into()),
            place: Arc::new(Place {
                node: Some(node.into()),
                zone: Some(zone.into()),
                for_zones: for_zones.iter().map(|zone| Arc::from(*zone)).collect(),
                for_nodes: Vec::new(),
            }),
        })
    }

    fn on_node(endpoint: &Arc<Endpoint>, for_nodes: &[&str]) -> Arc<Endpoint> {
        let mut endpoint = endpoint.as_ref().clone();
        let mut place = endpoint.place.as_ref().clone();
        place.for_nodes = for_nodes.iter().map(|node| Arc::from(*node)).collect();
        endpoint.place = Arc::new(place);
        Arc::new(endpoint)
    }

    fn endpoints(local_only: bool, list: &[(&str, Arc<Endpoint>)]) -> Endpoints {
        let addresses = list
            .iter()
            .map(|(addr, e)| (addr.parse().expect("an address"), e.clone()))
            .collect();
        Endpoints {
            exists: true,
            labels: Labels::new(),
            local_only,
            zone_weights: false,
            addresses,
        }
    }

    fn client(node: &str, zone: &str) -> ClientLocation {
        ClientLocation {
            node: Some(node.into()),
            zone: Some(zone.into()),
        }
    }

    fn addrs(view: &Addresses) -> Vec<String> {
        view.keys().map(ToString::to_string).collect()
    }

    #[test]
    fn local_traffic_policy_shows_only_the_clients_own_node() {
        let all = endpoints(
            true,
            &[
                ("10.0.0.1:80", endpoint("n1", "a", &[])),
                ("10.0.0.2:80", endpoint("n2", "a", &[])),
            ],
        );
        assert_eq!(addrs(&all.seen_from(&client("n2", "a"))), ["10.0.0.2:80"]);
        assert!(all.seen_from(&ClientLocation::default()).is_empty());
    }

    #[test]
    fn topology_hints_hold_only_when_complete_and_matching() {
        let complete = [
            ("10.0.0.1:80", endpoint("n1", "a", &["a"])),
            ("10.0.0.2:80", endpoint("n2", "b", &["b"])),
        ];
        let all = endpoints(false, &complete);
        assert_eq!(addrs(&all.seen_from(&client("n1", "a"))), ["10.0.0.1:80"]);
        assert_eq!(
            all.seen_from(&client("n9", "c")).len(),
            2,
            "a zone without endpoints sees all"
        );
        let partial = endpoints(
            false,
            &[complete[0].clone(), ("10.0.0.2:80", endpoint("n2", "b", &[]))],
        );
        assert_eq!(
            partial.seen_from(&client("n1", "a")).len(),
            2,
            "an endpoint without hints disables them"
        );
    }

    #[test]
    fn hints_for_nodes_come_before_those_for_zones_and_hold_only_when_complete_and_matching() {
        let (one, two) = (endpoint("n1", "a", &["a"]), endpoint("n2", "a", &["a"]));
        let far = on_node(&endpoint("n3", "b", &["b"]), &["n3"]);
        let all = endpoints(
            false,
            &[
                ("10.0.0.1:80", on_node(&one, &["n1"])),
                ("10.0.0.2:80", on_node(&two, &["n2"])),
                ("10.0.0.3:80", far.clone()),
            ],
        );
        assert_eq!(addrs(&all.seen_from(&client("n2", "a"))), ["10.0.0.2:80"]);
        let near = ["10.0.0.1:80", "10.0.0.2:80"];
        assert_eq!(
            addrs(&all.seen_from(&client("n9", "a"))),
            near,
            "a node without endpoints goes by its zone"
        );
        assert_eq!(all.seen_from(&client("n9", "c")).len(), 3);
        assert!(all.differs_on(&"n2".into()) && !all.differs_on(&"n9".into()));
        let partial = endpoints(
            false,
            &[
                ("10.0.0.1:80", one),
                ("10.0.0.2:80", on_node(&two, &["n2"])),
                ("10.0.0.3:80", far),
            ],
        );
        assert_eq!(addrs(&partial.seen_from(&client("n2", "a"))), near);
    }

    #[test]
    fn endpoints_of_the_clients_own_zone_weigh_more_where_zones_count() {
        let here = endpoint("n1", "a", &[]);
        let mut all = endpoints(false, &[("10.0.0.1:80", here.clone())]);
        assert_eq!(all.weight_for(&here, &client("n2", "a")), DEFAULT_WEIGHT);
        all.zone_weights = true;
        assert_eq!(all.weight_for(&here, &client("n2", "a")), DEFAULT_WEIGHT * 10);
        assert_eq!(all.weight_for(&here, &client("n2", "b")), DEFAULT_WEIGHT);
        assert_eq!(all.weight_for(&here, &ClientLocation::default()), DEFAULT_WEIGHT);
    }

    #[test]
    fn labels_name_the_workload_and_tell_the_clients_own_zone_from_others() {
        let e = endpoint("n1", "a", &[]);
        let labels = e.labels_for(&client("n1", "a"));
        assert_eq!(labels.get("pod").map(String::as_str), Some("web-0"));
        assert_eq!(
            e.labels_for(&client("n1", "a"))
                .get("zone_locality")
                .map(String::as_str),
            Some("local")
        );
        assert_eq!(
            e.labels_for(&client("n1", "b"))
                .get("zone_locality")
                .map(String::as_str),
            Some("remote")
        );
        assert_eq!(
            e.labels_for(&ClientLocation::default())
                .get("zone_locality")
                .map(String::as_str),
            Some("unknown")
        );
    }

    #[test]
    fn a_diff_names_what_is_new_changed_and_gone() {
        let old = endpoints(
            false,
            &[
                ("10.0.0.1:80", endpoint("n1", "a", &[])),
                ("10.0.0.2:80", endpoint("n2", "a", &[])),
            ],
        );
        let new = endpoints(
            false,
            &[
                ("10.0.0.2:80", endpoint("n3", "a", &[])),
                ("10.0.0.3:80", endpoint("n3", "a", &[])),
            ],
        );
        let diff = Diff::between(&old.addresses, &new.addresses);
        assert_eq!(
            diff.add
                .iter()
                .map(|(addr, _)| addr.to_string())
                .collect::<Vec<_>>(),
            ["10.0.0.2:80", "10.0.0.3:80"]
        );
        assert_eq!(
            diff.remove.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["10.0.0.1:80"]
        );
        assert!(Diff::between(&new.addresses, &new.addresses).is_empty());
    }
}
