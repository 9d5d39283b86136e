//! How annotations' values are read; an error is what would have been accepted.

use std::{str::FromStr, time::Duration};

use heddle_mesh::PortSet;
use k8s_openapi::api::core::v1::EnvVar;

use crate::{quantity::Quantity, setting::Timeout};

pub(super) fn parse<T: FromStr>(value: &str, expected: &str) -> Result<T, String> {
    value.parse().map_err(|_| expected.to_owned())
}

pub(super) fn timeout(value: &str) -> Result<Timeout, String> {
    parse(
        value,
        "a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h",
    )
}

pub(super) fn quantity(value: &str) -> Result<Option<Quantity>, String> {
    parse(value, "a quantity, such as 100m, 0.5, 250Mi or 1Gi").map(Some)
}

pub(super) fn port(value: &str) -> Result<u16, String> {
    match value.parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("a port from 1 to 65535".to_owned()),
    }
}

pub(super) fn ports(value: &str) -> Result<PortSet, String> {
    parse(value, "ports and ranges of ports, such as 25,8000-8010")
}

/// Linkerd writes some switches `enabled`/`disabled` and others `true`/`false`; both are read for all.
pub(super) fn flag(value: &str) -> Result<bool, String> {
    match value {
        "true" | "enabled" => Ok(true),
        "false" | "disabled" => Ok(false),
        _ => Err("`enabled` or `disabled`, or `true` or `false`".to_owned()),
    }
}

pub(super) fn text(value: &str, what: &str) -> Result<String, String> {
    let fine = !value.is_empty() && value.bytes().all(|b| b.is_ascii_graphic());
    if fine {
        Ok(value.to_owned())
    } else {
        Err(what.to_owned())
    }
}

pub(super) fn choice<T: FromStr<Err = &'static str>>(value: &str) -> Result<T, String> {
    value.parse().map_err(|expected: &str| expected.to_owned())
}

pub(super) fn additional_env(value: &str) -> Result<Vec<EnvVar>, String> {
    let expected = "a JSON list of environment variables, such as [{\"name\":\"A\",\"value\":\"b\"}]";
    let vars: Vec<EnvVar> = serde_json::from_str(value).map_err(|error| format!("{expected} ({error})"))?;
    match vars.iter().all(|var| !var.name.is_empty()) {
        true => Ok(vars),
        false => Err(format!("{expected}, each with a name")),
    }
}

/// A duration as Linkerd writes it, or as Go prints it: `1m30s`.
pub(super) fn go_duration(value: &str) -> Result<Timeout, String> {
    let expected = "a duration of at least 1s, such as 90s or 1m30s";
    let mut rest = value;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let number = rest.bytes().take_while(u8::is_ascii_digit).count();
        let unit = rest[number..].bytes().take_while(u8::is_ascii_alphabetic).count();
        let part: Timeout = parse(&rest[..number + unit], expected)?;
        sum = sum.checked_add(part.0).ok_or(expected)?;
        rest = &rest[number + unit..];
    }
    match sum >= Duration::from_secs(1) {
        true => Ok(Timeout(sum)),
        false => Err(expected.to_owned()),
    }
}

/// Ports that the proxy learns policies for at start: each costs a stream, so there is a bound.
pub(super) fn few_ports(value: &str) -> Result<PortSet, String> {
    let set = ports(value)?;
    match set.iter().count() <= POD_INBOUND_PORTS_MAX {
        true => Ok(set),
        false => Err(format!("at most {POD_INBOUND_PORTS_MAX} ports")),
    }
}

const POD_INBOUND_PORTS_MAX: usize = 256;
