//! One variable at a time; mistakes are collected.

mod telemetry;

use std::{net::IpAddr, time::Duration};

use heddle_mesh::{Identity, PeerId, PortSet, env};
use heddle_proxy_policy::balance::Backoff;
use ipnet::IpNet;

use super::{ControlConfig, ControlService, Http2Config, PoolConfig, StreamLimits};

/// Names that the destination service is asked about when none are given: Linkerd's.
const PROFILE_SUFFIXES: &str = "svc.cluster.local.";

/// A peer that does not answer pings is gone.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Idle HTTP/1 connections of one worker to one address, and how long each is kept. The time is Linkerd's.
const POOL_IDLE_MAX: usize = 1_024;
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(3);

/// A view of an environment.
pub(crate) trait Vars {
    /// The value of a variable. Nearly all count as unset when they are empty.
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
        if !self.is_set(name) {
            self.missing(name);
        }
        self.optional(name, parse)
    }

    pub(super) fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.optional_duration(name).unwrap_or(default)
    }

    /// One that may not be none at all.
    fn some_duration(&mut self, name: &str, default: Duration) -> Duration {
        let parsed = self.optional(name, |text| match duration(text)? {
            Duration::ZERO => Err("expected more than 0".to_owned()),
            duration => Ok(duration),
        });
        parsed.unwrap_or(default)
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

    pub(super) fn flag(&mut self, name: &str) -> bool {
        self.optional_flag(name).unwrap_or(false)
    }

    pub(super) fn optional_flag(&mut self, name: &str) -> Option<bool> {
        self.optional(name, |text| match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" | "enabled" => Ok(true),
            "false" | "0" | "no" | "off" | "disabled" => Ok(false),
            _ => Err("expected `true` or `false`".to_owned()),
        })
    }

    /// A list of which an empty one is something else than none.
    fn list<T: Default>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match self.vars.get(name) {
            Some(text) if text.trim().is_empty() => Some(T::default()),
            _ => self.optional(name, parse),
        }
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.vars.get(name).is_some_and(|text| !text.trim().is_empty())
    }

    pub(super) fn missing(&mut self, name: &str) {
        self.errors.push(EnvError::Missing(name.to_owned()));
    }

    pub(super) fn invalid(&mut self, name: &str, problem: impl Into<String>) {
        self.errors.push(EnvError::Invalid {
            name: name.to_owned(),
            problem: problem.into(),
        });
    }

    /// Clients' HTTP/2 connections of this direction.
    pub(super) fn http2(&mut self, direction: &str) -> Http2Config {
        let name = |what: &str| format!("LINKERD2_PROXY_{direction}_SERVER_HTTP2_{what}");
        let streams_max = self.optional(&name("MAX_CONCURRENT_STREAMS"), |text| match text.parse() {
            Ok(count) if count > 0 => Ok(count),
            _ => Err("expected a whole number, at least 1".to_owned()),
        });
        Http2Config {
            streams_max: streams_max.unwrap_or(u32::MAX),
            ping_interval: self.some_duration(&name("KEEP_ALIVE_INTERVAL"), PING_INTERVAL),
            ping_timeout: self.some_duration(&name("KEEP_ALIVE_TIMEOUT"), PING_TIMEOUT),
        }
    }

    /// Idle HTTP/1 connections of this direction; their number is given for all workers together.
    pub(super) fn pool(&mut self, direction: &str, count: &str, workers: usize) -> PoolConfig {
        let timeout = format!("LINKERD2_PROXY_{direction}_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT");
        let idle_max = self.optional(&format!("LINKERD2_PROXY_{count}"), |text| {
            let number = text.parse::<usize>();
            number.map_err(|_| "expected a whole number".to_owned())
        });
        PoolConfig {
            idle_max: idle_max.map_or(POOL_IDLE_MAX, |count| count.div_ceil(workers).min(POOL_IDLE_MAX)),
            idle_timeout: self.duration(&timeout, POOL_IDLE_TIMEOUT),
        }
    }

    /// All of it, or nothing; the jitter may be left out.
    pub(super) fn backoff(&mut self, base: &str) -> Option<Backoff> {
        let name = |what: &str| format!("LINKERD2_PROXY_{base}_EXP_BACKOFF_{what}");
        let (min_name, max_name) = (name("MIN"), name("MAX"));
        let min = self.optional_duration(&min_name);
        let max = self.optional_duration(&max_name);
        let jitter = self.optional(&name("JITTER"), |text| match text.parse::<f64>() {
            Ok(ratio) if (0.0..=100.0).contains(&ratio) => Ok(ratio),
            _ => Err("expected a number from 0 to 100".to_owned()),
        });
        let any = [&min_name, &max_name].into_iter().any(|one| self.is_set(one)) || jitter.is_some();
        for one in [&min_name, &max_name] {
            if any && !self.is_set(one) {
                self.missing(one);
            }
        }
        let (min, max) = (min?, max?);
        if min > max || max.is_zero() {
            self.invalid(
                &min_name,
                format!("expected no more than {max_name}, and that more than 0"),
            );
        }
        Some(Backoff {
            min,
            max,
            jitter_ratio: jitter.unwrap_or_default(),
        })
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

    /// Who this proxy is: one name, or a server ID and the name that clients ask for. The two may differ only with
    /// certificates of SPIRE, which are not supported here.
    pub(super) fn identity_name(&mut self) -> Option<Identity> {
        const SPIRE: [&str; 2] = [
            "LINKERD2_PROXY_IDENTITY_SPIRE_WORKLOAD_API_ADDRESS",
            "LINKERD2_PROXY_IDENTITY_SPIRE_SOCKET",
        ];
        const ID: &str = "LINKERD2_PROXY_IDENTITY_SERVER_ID";
        const NAME: &str = "LINKERD2_PROXY_IDENTITY_SERVER_NAME";
        for spire in SPIRE {
            self.optional::<()>(spire, |_| {
                Err("certificates of SPIRE are not supported".to_owned())
            });
        }
        let parse = |text: &str| text.parse::<Identity>().map_err(|error| error.to_string());
        if self.is_set(env::IDENTITY_LOCAL_NAME) || !(self.is_set(ID) || self.is_set(NAME)) {
            return self.required(env::IDENTITY_LOCAL_NAME, parse);
        }
        let id = self.required(ID, |text| {
            text.parse::<PeerId>().map_err(|error| error.to_string())
        });
        let name = self.required(NAME, parse);
        let (id, name) = (id?, name?);
        if id.dns() != Some(&name) {
            self.invalid(
                ID,
                format!("expected the server's name, {name}, for want of SPIRE"),
            );
        }
        Some(name)
    }

    pub(super) fn control(&mut self) -> Option<ControlConfig> {
        let destination = self.service(env::DESTINATION_SVC_ADDR, env::DESTINATION_SVC_NAME);
        let policy = self.service(env::POLICY_SVC_ADDR, env::POLICY_SVC_NAME);
        let identity = self.service(env::IDENTITY_SVC_ADDR, env::IDENTITY_SVC_NAME);
        let workload = self.required(env::POLICY_WORKLOAD, |text| Ok(text.to_owned()));
        let destination_context = self
            .optional(env::DESTINATION_CONTEXT, |text| Ok(text.to_owned()))
            .unwrap_or_default();
        // As at Linkerd, an empty list looks up nothing.
        let profile_networks = self.list(env::DESTINATION_PROFILE_NETWORKS, networks);
        let profile_suffixes = self
            .list(env::DESTINATION_PROFILE_SUFFIXES, str::parse)
            .unwrap_or_else(|| PROFILE_SUFFIXES.parse().expect("a DNS suffix"));
        let streams = self.stream_limits();
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

    /// Each is shorter than the next, as Linkerd has it.
    fn stream_limits(&mut self) -> StreamLimits {
        let names = [
            env::CONTROL_STREAM_INITIAL_TIMEOUT,
            env::CONTROL_STREAM_IDLE_TIMEOUT,
            env::CONTROL_STREAM_LIFETIME,
        ];
        let limits = names.map(|name| self.optional_duration(name));
        for (shorter, longer) in [(0, 1), (0, 2), (1, 2)] {
            if let (Some(one), Some(two)) = (limits[shorter], limits[longer])
                && one > two
            {
                self.invalid(names[shorter], format!("expected no more than {}", names[longer]));
            }
        }
        let [initial_timeout, idle_timeout, lifetime] = limits;
        StreamLimits {
            initial_timeout,
            idle_timeout,
            lifetime,
        }
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
