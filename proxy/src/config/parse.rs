//! One variable at a time; mistakes are collected.

mod telemetry;

use std::{net::IpAddr, time::Duration};

use heddle_mesh::{Identity, PortSet, env};
use ipnet::IpNet;

use super::{ControlConfig, ControlService, StreamLimits};

/// Names that the destination service is asked about when none are given: Linkerd's.
const PROFILE_SUFFIXES: &str = "svc.cluster.local.";

/// A view of an environment.
pub(crate) trait Vars {
    /// The value of a variable; empty ones count as unset.
    fn get(&self, name: &str) -> Option<String>;
}

/// The process's environment.
pub(crate) struct ProcessEnv;

impl Vars for ProcessEnv {
    fn get(&self, name: &str) -> Option<String> {
        std::env::var(name).ok()
    }
}

impl Vars for std::collections::HashMap<String, String> {
    fn get(&self, name: &str) -> Option<String> {
        std::collections::HashMap::get(self, name).cloned()
    }
}

/// A variable that is missing or wrong.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EnvError {
    /// It must be set.
    #[error("{0} must be set")]
    Missing(String),
    /// It is wrong.
    #[error("{name} is invalid: {problem}")]
    Invalid {
        /// The variable.
        name: String,
        /// What was expected.
        problem: String,
    },
}

pub(super) struct Parser<'v> {
    vars: &'v dyn Vars,
    errors: Vec<EnvError>,
}

impl<'v> Parser<'v> {
    pub(super) fn new(vars: &'v dyn Vars) -> Self {
        Self {
            vars,
            errors: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<EnvError> {
        self.errors
    }

    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.vars.get(name).filter(|text| !text.trim().is_empty())?;
        match parse(text.trim()) {
            Ok(value) => Some(value),
            Err(problem) => {
                self.errors.push(EnvError::Invalid {
                    name: name.to_owned(),
                    problem,
                });
                None
            }
        }
    }

    pub(super) fn required<T>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let wrong_before = self.errors.len();
        let value = self.optional(name, parse);
        if value.is_none() && self.errors.len() == wrong_before {
            self.errors.push(EnvError::Missing(name.to_owned()));
        }
        value
    }

    pub(super) fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.optional_duration(name).unwrap_or(default)
    }

    fn optional_duration(&mut self, name: &str) -> Option<Duration> {
        self.optional(name, duration)
    }

    pub(super) fn ports(&mut self, name: &str) -> PortSet {
        self.optional(name, |text| {
            text.parse::<PortSet>().map_err(|error| error.to_string())
        })
        .unwrap_or_default()
    }

    /// As Linkerd: set to anything but a word for no.
    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.optional(name, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "enabled" => Ok(true),
            "false" | "0" | "no" | "off" | "disabled" => Ok(false),
            _ => Err("expected `true` or `false`".to_owned()),
        })
        .unwrap_or(false)
    }

    pub(super) fn outbound_listen(&mut self) -> Vec<std::net::SocketAddr> {
        let parse = |text: &str| -> Result<Vec<_>, String> {
            let addrs: Vec<std::net::SocketAddr> = text
                .split(',')
                .map(|one| {
                    one.trim()
                        .parse()
                        .map_err(|error| format!("`{}`: {error}", one.trim()))
                })
                .collect::<Result<_, _>>()?;
            match addrs.len() {
                1 | 2 => Ok(addrs),
                _ => Err("expected one or two addresses".to_owned()),
            }
        };
        let many = self.optional(env::OUTBOUND_LISTEN_ADDRS, parse);
        let one = self.optional(env::OUTBOUND_LISTEN_ADDR, parse);
        many.or(one)
            .unwrap_or_else(|| vec![([127, 0, 0, 1], 4140).into()])
    }

    pub(super) fn identity_name(&mut self) -> Option<Identity> {
        let parse = |text: &str| text.parse::<Identity>().map_err(|error| error.to_string());
        // SPIRE's pair: the TLS identity is the server ID, which is a SPIFFE URI; only DNS names are supported here.
        let name = "LINKERD2_PROXY_IDENTITY_SERVER_NAME";
        match self.vars.get(env::IDENTITY_LOCAL_NAME) {
            Some(_) => self.required(env::IDENTITY_LOCAL_NAME, parse),
            None if self.vars.get(name).is_some() => self.required(name, parse),
            None => self.required(env::IDENTITY_LOCAL_NAME, parse),
        }
    }

    pub(super) fn control(&mut self) -> Option<ControlConfig> {
        let destination = self.service(env::DESTINATION_SVC_ADDR, env::DESTINATION_SVC_NAME);
        let policy = self.service(env::POLICY_SVC_ADDR, env::POLICY_SVC_NAME);
        let identity = self.service(env::IDENTITY_SVC_ADDR, env::IDENTITY_SVC_NAME);
        let workload = self.required(env::POLICY_WORKLOAD, |text| Ok(text.to_owned()));
        let destination_context = self
            .optional(env::DESTINATION_CONTEXT, |text| Ok(text.to_owned()))
            .unwrap_or_default();
        let profile_networks = self.optional(env::DESTINATION_PROFILE_NETWORKS, networks);
        let profile_suffixes = self
            .optional(env::DESTINATION_PROFILE_SUFFIXES, str::parse)
            .unwrap_or_else(|| PROFILE_SUFFIXES.parse().expect("a DNS suffix"));
        let streams = StreamLimits {
            initial_timeout: self.optional_duration(env::CONTROL_STREAM_INITIAL_TIMEOUT),
            idle_timeout: self.optional_duration(env::CONTROL_STREAM_IDLE_TIMEOUT),
            lifetime: self.optional_duration(env::CONTROL_STREAM_LIFETIME),
        };
        Some(ControlConfig {
            destination: destination?,
            policy: policy?,
            identity: identity?,
            workload: workload?,
            destination_context,
            profile_networks,
            profile_suffixes,
            streams,
        })
    }

    /// The name may be left out on loopback, where nothing is proved.
    fn service(&mut self, addr: &str, name: &str) -> Option<ControlService> {
        let parsed: Option<heddle_tls::ControlAddr> = self.required(addr, |text| {
            text.parse()
                .map_err(|error: heddle_tls::connect::InvalidAddr| error.to_string())
        });
        let parse = |text: &str| text.parse::<Identity>().map_err(|error| error.to_string());
        let loopback = parsed.as_ref().is_some_and(heddle_tls::ControlAddr::is_loopback);
        let name = match loopback && self.vars.get(name).is_none() {
            true => Some("localhost".parse().expect("a DNS name")),
            false => self.required(name, parse),
        };
        Some(ControlService {
            addr: parsed?,
            name: name?,
        })
    }

    pub(super) fn workers(&mut self, available: usize) -> usize {
        let count = |text: &str| match text.parse::<usize>() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err("expected a number of threads, at least 1".to_owned()),
        };
        let exact = self.optional(env::CORES, count);
        let min = self.optional(env::CORES_MIN, count).unwrap_or(1);
        let max = self.optional(env::CORES_MAX, count);
        let ratio = self.optional(env::CORES_MAX_RATIO, |text| match text.parse::<f64>() {
            Ok(ratio) if ratio.is_finite() && ratio > 0.0 => Ok(ratio),
            _ => Err("expected a number above 0".to_owned()),
        });
        let by_ratio = ratio.map(|ratio| ((available as f64) * ratio).round() as usize);
        // Linkerd runs one worker unless it is told otherwise: a sidecar should not take a node's cores.
        exact
            .or(by_ratio)
            .or(max)
            .unwrap_or(min)
            .min(max.unwrap_or(available))
            .max(min)
            .min(available.max(1))
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    heddle_mesh::duration::parse(text).map_err(|error| error.to_string())
}

pub(super) fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    list(text, |one| {
        one.parse::<IpNet>()
            .or_else(|error| one.parse::<IpAddr>().map(IpNet::from).map_err(|_| error))
    })
}

pub(super) fn ips(text: &str) -> Result<Vec<IpAddr>, String> {
    list(text, str::parse)
}

fn list<T, E: std::fmt::Display>(text: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Vec<T>, String> {
    text.split(',')
        .map(str::trim)
        .filter(|one| !one.is_empty())
        .map(|one| parse(one).map_err(|error| format!("`{one}`: {error}")))
        .collect()
}
