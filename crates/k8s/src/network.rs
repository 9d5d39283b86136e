//! Networks in CIDR notation, with exceptions.

use std::net::IpAddr;

use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// A network, less some exceptions, as text.
///
/// It stays text here so that one mistyped network in an object cannot keep a watcher from reading the others;
/// [`Network::parse`] is where it becomes addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Network {
    /// The network, such as `10.0.0.0/8`, or a single address.
    #[schemars(schema_with = "network_schema")]
    pub cidr: String,
    /// Networks or addresses within `cidr` that are not meant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "networks_schema")]
    pub except: Vec<String>,
}

/// A [`Network`] that has been parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkMatch {
    /// The network.
    pub net: IpNet,
    /// What of it is not meant.
    pub except: Vec<IpNet>,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network: expected CIDR notation such as 10.0.0.0/8 or fd00::/8, or a single address")]
pub struct NetworkError(pub String);

/// Reads a network in CIDR notation, or a single address. Bits beyond the prefix are dropped.
///
/// # Errors
/// Anything else.
pub fn parse_net(text: &str) -> Result<IpNet, NetworkError> {
    match text.parse::<IpNet>() {
        Ok(net) => Ok(net.trunc()),
        Err(_) => text
            .parse::<IpAddr>()
            .map(IpNet::from)
            .map_err(|_| NetworkError(text.to_owned())),
    }
}

impl Network {
    /// Parses the network and its exceptions.
    ///
    /// # Errors
    /// The first text that is no network.
    pub fn parse(&self) -> Result<NetworkMatch, NetworkError> {
        let Self { cidr, except } = self;
        Ok(NetworkMatch {
            net: parse_net(cidr)?,
            except: except
                .iter()
                .map(|text| parse_net(text))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl NetworkMatch {
    /// Whether the address is in the network and in none of the exceptions.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.net.contains(&address) && !self.except.iter().any(|net| net.contains(&address))
    }
}

impl From<IpNet> for NetworkMatch {
    fn from(net: IpNet) -> Self {
        Self {
            net,
            except: Vec::new(),
        }
    }
}

fn network_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 2,
        "maxLength": 43,
        "anyOf": [{"format": "cidr"}, {"format": "ipv4"}, {"format": "ipv6"}],
    })
}

fn networks_schema(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "maxItems": 1024, "items": network_schema(generator)})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceptions_are_not_meant() {
        let network = Network {
            cidr: "10.1.2.3/8".into(),
            except: vec!["10.1.0.0/16".into(), "10.2.0.1".into()],
        };
        let network = network.parse().expect("valid");
        for (address, inside) in [
            ("10.0.0.1", true),
            ("10.1.0.1", false),
            ("10.2.0.1", false),
            ("10.2.0.2", true),
            ("11.0.0.1", false),
            ("::1", false),
        ] {
            assert_eq!(
                network.contains(address.parse().expect("an address")),
                inside,
                "{address}"
            );
        }
    }

    #[test]
    fn refuses_what_is_no_network() {
        for bad in ["", "10.0.0.0/33", "10.0.0", "any", "fd00::/129", "10.0.0.0/"] {
            assert!(parse_net(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!(parse_net("fd00::1").map(|net| net.prefix_len()), Ok(128));
    }
}
