//! Addresses and networks.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use linkerd2_proxy_api::{inbound, net as proto};

use crate::Invalid;

/// A network of clients, less some parts of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The network.
    pub net: IpNet,
    /// Parts that do not belong.
    pub except: Vec<IpNet>,
}

impl Network {
    /// Every address.
    pub fn all() -> Vec<Self> {
        ["0.0.0.0/0", "::/0"]
            .map(|net| Self {
                net: net.parse().expect("a literal network is well formed"),
                except: Vec::new(),
            })
            .into()
    }

    /// Whether `addr` is in the network and in none of its exceptions.
    pub fn contains(&self, addr: IpAddr) -> bool {
        let addr = canonical(addr);
        self.net.contains(&addr) && !self.except.iter().any(|net| net.contains(&addr))
    }
}

impl From<IpNet> for Network {
    fn from(net: IpNet) -> Self {
        Self {
            net,
            except: Vec::new(),
        }
    }
}

impl TryFrom<inbound::Network> for Network {
    type Error = Invalid;

    fn try_from(network: inbound::Network) -> Result<Self, Invalid> {
        let inbound::Network { net, except } = network;
        let net = net.ok_or_else(|| Invalid::missing("net"))?;
        Ok(Self {
            net: net.try_into().map_err(|error| Invalid::new("net", error))?,
            except: crate::invalid::each("except", except, |net| {
                net.try_into().map_err(|error| Invalid::new("net", error))
            })?,
        })
    }
}

/// An IPv4 address that came as IPv6 (`::ffff:10.0.0.1`) is IPv4 for every decision.
pub fn canonical(addr: IpAddr) -> IpAddr {
    addr.to_canonical()
}

/// Reads an address.
pub fn ip_addr(ip: proto::IpAddress) -> Result<IpAddr, Invalid> {
    let ip = IpAddr::try_from(ip).map_err(|error| Invalid::new("ip", error))?;
    Ok(canonical(ip))
}

/// Reads an address with its port.
pub fn socket_addr(addr: proto::TcpAddress) -> Result<SocketAddr, Invalid> {
    let proto::TcpAddress { ip, port } = addr;
    let ip = ip_addr(ip.ok_or_else(|| Invalid::missing("ip"))?)?;
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(SocketAddr::new(ip, port)),
        _ => Err(Invalid::new(
            "port",
            format!("{port} is not a port from 1 to 65535"),
        )),
    }
}

/// Writes an address with its port.
pub fn to_proto(addr: SocketAddr) -> proto::TcpAddress {
    proto::TcpAddress {
        ip: Some(addr.ip().into()),
        port: addr.port().into(),
    }
}
