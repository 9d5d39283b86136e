//! Endpoints of a service, as the destination service streams them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use heddle_mesh::{Identity, PeerId};
use http::uri::Authority;
use linkerd2_proxy_api::destination as proto;

use crate::{Invalid, invalid::duration, net};

/// Endpoints kept of one service. More than any cluster has; a broken controller must not fill the memory.
pub const ENDPOINTS_MAX: usize = 100_000;
/// Pings that come faster cost more than they tell.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(100);
/// Metric labels kept of one endpoint.
const LABELS_MAX: usize = 32;

/// One endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Where it listens.
    pub addr: SocketAddr,
    /// What metrics say about it, sorted by name.
    pub labels: Vec<(String, String)>,
    /// The identity that it must prove, when it is meshed.
    pub identity: Option<PeerId>,
    /// The server name to ask it for, when that is not its identity.
    pub server_name: Option<Identity>,
    /// What its proxy takes.
    pub hint: ProtocolHint,
    /// The port of its proxy that takes a transport header.
    pub opaque_transport_port: Option<u16>,
    /// Replaces the authority of requests to it.
    pub authority_override: Option<Authority>,
    /// Relative share of connections; 10,000 is usual.
    pub weight: u32,
    /// How HTTP/2 connections to it are looked after.
    pub keep_alive: Option<KeepAlive>,
}

/// Pings on an HTTP/2 connection. One that is not answered in time means that the other side is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// The time between them.
    pub interval: Duration,
    /// The time for an answer.
    pub timeout: Duration,
    /// Whether they are sent though no request is under way.
    pub while_idle: bool,
}

/// What an endpoint's proxy takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ProtocolHint {
    /// What the client speaks.
    #[default]
    Unknown,
    /// HTTP/1 requests inside HTTP/2.
    Http2,
    /// Only bytes.
    Opaque,
}

/// The endpoints of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum EndpointSet {
    /// The control plane has not answered yet.
    #[default]
    Unknown,
    /// There is no such service.
    DoesNotExist,
    /// These, by address; perhaps none.
    Known(BTreeMap<SocketAddr, Arc<Endpoint>>),
}

impl Endpoint {
    /// An address without more being known of it.
    pub fn unmeshed(addr: SocketAddr) -> Self {
        Self {
            addr,
            labels: Vec::new(),
            identity: None,
            server_name: None,
            hint: ProtocolHint::Unknown,
            opaque_transport_port: None,
            authority_override: None,
            weight: 10_000,
            keep_alive: None,
        }
    }

    /// Reads an endpoint; `shared` labels belong to all endpoints of the service.
    pub fn from_proto(one: proto::WeightedAddr, shared: &HashMap<String, String>) -> Result<Self, Invalid> {
        use proto::{protocol_hint::Protocol, tls_identity::Strategy};
        let proto::WeightedAddr {
            addr,
            weight,
            metric_labels,
            tls_identity,
            protocol_hint,
            authority_override,
            http2,
            ..
        } = one;
        let addr = net::socket_addr(addr.ok_or_else(|| Invalid::missing("addr"))?)?;
        let (strategy, server_name) =
            tls_identity.map_or((None, None), |tls| (tls.strategy, tls.server_name));
        // An identity that cannot be read is no endpoint: plaintext in its place would be worse than none.
        let invalid = |error| Invalid::new("tls_identity", error);
        let identity = match strategy {
            None => None,
            Some(Strategy::DnsLikeIdentity(id)) => Some(PeerId::Dns(id.name.parse().map_err(invalid)?)),
            Some(Strategy::UriLikeIdentity(id)) => Some(PeerId::Spiffe(id.uri.parse().map_err(invalid)?)),
        };
        let server_name: Option<Identity> = server_name
            .map(|name| name.name.parse())
            .transpose()
            .map_err(|error| Invalid::new("tls_identity.server_name", error))?;
        if matches!(identity, Some(PeerId::Spiffe(_))) && server_name.is_none() {
            return Err(Invalid::missing("tls_identity.server_name"));
        }
        // Most endpoints are asked for by their identity.
        let server_name = server_name.filter(|name| identity.as_ref().and_then(PeerId::dns) != Some(name));
        let hint = protocol_hint.unwrap_or_default();
        let opaque_transport_port = match hint.opaque_transport {
            None => None,
            Some(transport) => match u16::try_from(transport.inbound_port) {
                Ok(port) if port > 0 => Some(port),
                _ => {
                    return Err(Invalid::new(
                        "protocol_hint.opaque_transport.inbound_port",
                        "must be 1 to 65535",
                    ));
                }
            },
        };
        let authority = authority_override
            .map(|over| over.authority_override)
            .filter(|text| !text.is_empty());
        let mut labels: BTreeMap<String, String> = shared.clone().into_iter().collect();
        labels.extend(metric_labels);
        Ok(Self {
            addr,
            labels: labels
                .into_iter()
                .filter(|(name, _)| is_label_name(name))
                .take(LABELS_MAX)
                .collect(),
            identity,
            server_name,
            hint: match hint.protocol {
                None => ProtocolHint::Unknown,
                Some(Protocol::H2(_)) => ProtocolHint::Http2,
                Some(Protocol::Opaque(_)) => ProtocolHint::Opaque,
            },
            opaque_transport_port,
            authority_override: authority
                .map(|text| {
                    text.parse()
                        .map_err(|error| Invalid::new("authority_override", error))
                })
                .transpose()?,
            weight,
            keep_alive: http2
                .and_then(|params| params.keep_alive)
                .and_then(KeepAlive::read),
        })
    }
}

impl KeepAlive {
    /// Whether and how, in a message. What makes no sense asks for nothing: it is no reason to do without an endpoint.
    fn read(params: proto::http2_client_params::KeepAlive) -> Option<Self> {
        let proto::http2_client_params::KeepAlive {
            interval,
            timeout,
            while_idle,
        } = params;
        let read = |time: Option<prost_types::Duration>| {
            let time = duration("http2.keep_alive", time?).ok()?;
            (!time.is_zero()).then_some(time)
        };
        Some(Self {
            interval: read(interval)?.max(PING_INTERVAL_MIN),
            timeout: read(timeout)?,
            while_idle,
        })
    }
}

pub(crate) fn is_label_name(name: &str) -> bool {
    !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl EndpointSet {
    /// The endpoints; none when they are not known or do not exist.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Endpoint>> {
        match self {
            Self::Known(endpoints) => Some(endpoints.values()),
            Self::Unknown | Self::DoesNotExist => None,
        }
        .into_iter()
        .flatten()
    }

    /// The set after an update, with the endpoints that were left out for being invalid. `first` is the stream's first
    /// update, which replaces all that an earlier stream said.
    pub fn apply(&mut self, update: proto::Update, first: bool) -> Result<Vec<Invalid>, Invalid> {
        let mut refused = Vec::new();
        match update.update.ok_or_else(|| Invalid::missing("update"))? {
            proto::update::Update::NoEndpoints(none) if none.exists => *self = Self::Known(BTreeMap::new()),
            proto::update::Update::NoEndpoints(_) => *self = Self::DoesNotExist,
            proto::update::Update::Add(add) => {
                let known = self.known(first);
                for one in add.addrs {
                    match Endpoint::from_proto(one, &add.metric_labels) {
                        Ok(endpoint) if known.len() < ENDPOINTS_MAX || known.contains_key(&endpoint.addr) => {
                            known.insert(endpoint.addr, Arc::new(endpoint));
                        }
                        Ok(endpoint) => refused.push(Invalid::new(
                            "addrs",
                            format!(
                                "{} is beyond the {ENDPOINTS_MAX} endpoints kept of a service",
                                endpoint.addr
                            ),
                        )),
                        Err(error) => refused.push(error),
                    }
                }
            }
            proto::update::Update::Remove(remove) => {
                let known = self.known(first);
                for addr in remove.addrs {
                    match net::socket_addr(addr) {
                        Ok(addr) => drop(known.remove(&addr)),
                        Err(error) => refused.push(error),
                    }
                }
            }
        }
        Ok(refused)
    }

    fn known(&mut self, reset: bool) -> &mut BTreeMap<SocketAddr, Arc<Endpoint>> {
        if reset || !matches!(self, Self::Known(_)) {
            *self = Self::Known(BTreeMap::new());
        }
        match self {
            Self::Known(endpoints) => endpoints,
            Self::Unknown | Self::DoesNotExist => unreachable!("made Known on the line above"),
        }
    }
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::net as net_proto;

    use super::*;

    fn addr(n: u8) -> net_proto::TcpAddress {
        net::to_proto(SocketAddr::from(([10, 0, 0, n], 8080)))
    }

    fn add(addrs: &[u8]) -> proto::Update {
        let addrs = addrs.iter().map(|&n| proto::WeightedAddr {
            addr: Some(addr(n)),
            weight: 1,
            ..Default::default()
        });
        let set = proto::WeightedAddrSet {
            addrs: addrs.collect(),
            metric_labels: [("service".into(), "web".into()), ("bad-name".into(), "x".into())].into(),
        };
        proto::Update {
            update: Some(proto::update::Update::Add(set)),
        }
    }

    fn ips(set: &EndpointSet) -> Vec<String> {
        set.iter()
            .map(|endpoint| endpoint.addr.ip().to_string())
            .collect()
    }

    #[test]
    fn follows_additions_and_removals_and_a_new_stream_starts_over() {
        let mut set = EndpointSet::default();
        set.apply(add(&[1, 2]), true).expect("valid");
        set.apply(add(&[3]), false).expect("valid");
        assert_eq!(ips(&set), ["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        let remove = proto::update::Update::Remove(proto::AddrSet {
            addrs: vec![addr(2), addr(9)],
        });
        set.apply(proto::Update { update: Some(remove) }, false)
            .expect("valid");
        assert_eq!(ips(&set), ["10.0.0.1", "10.0.0.3"]);
        set.apply(add(&[4]), true).expect("valid");
        assert_eq!(ips(&set), ["10.0.0.4"]);
        assert_eq!(
            set.iter().next().expect("one").labels,
            [("service".to_owned(), "web".to_owned())]
        );
    }

    #[test]
    fn tells_an_empty_service_from_none() {
        let none = |exists| proto::Update {
            update: Some(proto::update::Update::NoEndpoints(proto::NoEndpoints { exists })),
        };
        let mut set = EndpointSet::default();
        set.apply(none(true), true).expect("valid");
        assert_eq!(set, EndpointSet::Known(BTreeMap::new()));
        set.apply(none(false), false).expect("valid");
        assert_eq!(set, EndpointSet::DoesNotExist);
    }

    #[test]
    fn an_endpoint_whose_identity_cannot_be_checked_is_left_out() {
        let update = |uri: &str, server_name: Option<&str>| {
            let strategy =
                proto::tls_identity::Strategy::UriLikeIdentity(proto::tls_identity::UriLikeIdentity {
                    uri: uri.into(),
                });
            let name = |name: &str| proto::tls_identity::DnsLikeIdentity { name: name.into() };
            let one = proto::WeightedAddr {
                addr: Some(addr(1)),
                tls_identity: Some(proto::TlsIdentity {
                    strategy: Some(strategy),
                    server_name: server_name.map(name),
                }),
                ..Default::default()
            };
            proto::Update {
                update: Some(proto::update::Update::Add(proto::WeightedAddrSet {
                    addrs: vec![one],
                    ..Default::default()
                })),
            }
        };
        let mut set = EndpointSet::default();
        for (uri, name) in [("spiffe://x", Some("vm.test")), ("spiffe://x/vm", None)] {
            assert_eq!(set.apply(update(uri, name), true).expect("valid").len(), 1);
            assert_eq!(set.iter().count(), 0);
        }
        let good = update("spiffe://x/vm", Some("vm.test"));
        assert!(set.apply(good, true).expect("valid").is_empty());
        let one = set.iter().next().expect("one");
        assert_eq!(one.identity, Some("spiffe://x/vm".parse().expect("an ID")));
        assert_eq!(one.server_name, Some("vm.test".parse().expect("a name")));
        assert!(set.apply(proto::Update { update: None }, false).is_err());
    }

    #[test]
    fn pings_are_sent_as_asked_for_but_not_as_fast_as_one_likes() {
        let read = |interval: Option<(i64, i32)>, timeout: Option<(i64, i32)>| {
            let time = |time: Option<(i64, i32)>| {
                time.map(|(seconds, nanos)| prost_types::Duration { seconds, nanos })
            };
            let keep_alive = proto::http2_client_params::KeepAlive {
                interval: time(interval),
                timeout: time(timeout),
                while_idle: true,
            };
            let http2 = proto::Http2ClientParams {
                keep_alive: Some(keep_alive),
                ..Default::default()
            };
            let one = proto::WeightedAddr {
                addr: Some(addr(1)),
                http2: Some(http2),
                ..Default::default()
            };
            let endpoint = Endpoint::from_proto(one, &HashMap::new()).expect("an endpoint all the same");
            endpoint.keep_alive.map(|one| (one.interval, one.timeout))
        };
        let (ten, three) = (Duration::from_secs(10), Duration::from_secs(3));
        assert_eq!(read(Some((10, 0)), Some((3, 0))), Some((ten, three)));
        assert_eq!(read(Some((0, 1)), Some((3, 0))), Some((PING_INTERVAL_MIN, three)));
        assert_eq!(read(Some((-1, 0)), Some((3, 0))), None);
        assert_eq!(read(None, Some((3, 0))), None);
        assert_eq!(read(Some((10, 0)), None), None);
    }
}
