//! How settings are read: fields that may be null, and sets that may be text, numbers or lists.

use std::net::IpAddr;

use heddle_mesh::{PortSet, port};
use serde::{Deserialize, Deserializer, de::Error as _};

use super::{CLUSTER_DOMAIN, IMAGE_NAME, LOG_LEVEL, SkippedPorts, beside, default_networks};
use crate::setting::Timeout;

fn or<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D, default: T) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or(default))
}

pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

pub(super) fn or_true<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    or(deserializer, true)
}

pub(super) fn or_default_uid<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    or(deserializer, port::PROXY_UID)
}

pub(super) fn or_default_control_namespace<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    or(deserializer, heddle_mesh::CONTROL_NAMESPACE.to_owned())
}

pub(super) fn or_default_cluster_domain<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    or(deserializer, CLUSTER_DOMAIN.to_owned())
}

pub(super) fn or_default_log_level<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    or(deserializer, LOG_LEVEL.to_owned())
}

pub(super) fn or_default_image_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    or(deserializer, IMAGE_NAME.to_owned())
}

pub(super) fn or_default_version<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    or(deserializer, heddle_mesh::VERSION.to_owned())
}

pub(super) fn timeout_or_1s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
    or(deserializer, Timeout::from_ms(1_000))
}

pub(super) fn timeout_or_100ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
    or(deserializer, Timeout::from_ms(100))
}

pub(super) fn timeout_or_5s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
    or(deserializer, Timeout::from_ms(5_000))
}

pub(super) fn timeout_or_90s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
    or(deserializer, Timeout::from_ms(90_000))
}

/// A port, a comma-separated text, or a list of either.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextOrList {
    Number(u16),
    Text(String),
    List(Vec<TextOrList>),
}

impl TextOrList {
    fn join(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => text,
            Self::List(items) => items.into_iter().map(Self::join).collect::<Vec<_>>().join(","),
        }
    }
}

fn ports_or<'de, D: Deserializer<'de>>(deserializer: D, default: PortSet) -> Result<PortSet, D::Error> {
    match Option::<TextOrList>::deserialize(deserializer)? {
        None => Ok(default),
        Some(given) => given.join().parse().map_err(D::Error::custom),
    }
}

pub(super) fn ports<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    ports_or(deserializer, PortSet::default())
}

pub(super) fn ports_or_opaque<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PortSet, D::Error> {
    ports_or(deserializer, PortSet::from_iter(port::DEFAULT_OPAQUE))
}

pub(super) fn ports_or_skipped<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SkippedPorts, D::Error> {
    ports_or(deserializer, SkippedPorts::default().0).map(SkippedPorts)
}

fn networks_or<'de, D: Deserializer<'de>>(
    deserializer: D,
    default: fn() -> Vec<String>,
) -> Result<Vec<String>, D::Error> {
    match Option::<TextOrList>::deserialize(deserializer)? {
        None => Ok(default()),
        Some(given) => {
            parse_networks(&given.join()).map_err(|expected| D::Error::custom(format!("expected {expected}")))
        }
    }
}

pub(super) fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    networks_or(deserializer, default_networks)
}

pub(super) fn networks_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    networks_or(deserializer, Vec::new)
}

/// Reads comma-separated networks, each `ADDRESS/LENGTH` or a lone address; kept as written.
pub(crate) fn parse_networks(text: &str) -> Result<Vec<String>, String> {
    let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
    items
        .map(|item| match is_network(item) {
            true => Ok(item.to_owned()),
            false => Err(format!("networks such as 10.0.0.0/8, not `{item}`")),
        })
        .collect()
}

fn is_network(text: &str) -> bool {
    let (address, length) = text
        .split_once('/')
        .map_or((text, None), |(address, length)| (address, Some(length)));
    let bits = match address.parse() {
        Ok(IpAddr::V4(_)) => 32,
        Ok(IpAddr::V6(_)) => 128,
        Err(_) => return false,
    };
    length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= bits))
}

pub(super) fn timeout_or_10s<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timeout, D::Error> {
    or(deserializer, Timeout::from_ms(10_000))
}

pub(super) fn or_default_validator_log_level<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    or(deserializer, beside::VALIDATOR_LOG_LEVEL.to_owned())
}

pub(super) fn or_default_debug_image<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    or(deserializer, beside::DEBUG_IMAGE.to_owned())
}

pub(super) fn or_default_debug_version<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    or(deserializer, beside::DEBUG_VERSION.to_owned())
}

pub(super) fn or_default_service_name<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<String, D::Error> {
    or(deserializer, beside::TRACE_SERVICE_NAME.to_owned())
}
