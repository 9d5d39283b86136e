//! Annotations of Services, EgressNetworks and routes that say how traffic to them is treated.
//!
//! In go an object's annotations; out come settings, and a [`Problem`] for each annotation that does not do what whoever
//! wrote it meant. The index reads objects with the very same code that the webhook and the status leader ask for
//! [`problems`], so what is warned about is what is ignored. A value that cannot be read counts as absent: one typing
//! error must not take a service's other settings, let alone its traffic, down. No I/O, no clock.

mod affinity;
mod balance;
mod traffic;

use std::{collections::BTreeMap, fmt, time::Duration};

use heddle_mesh::{PortSet, annotation::OPAQUE_PORTS, duration};

pub(crate) use self::{
    affinity::DEFAULT_NAME as DEFAULT_SESSION_NAME, balance::Balancing, traffic::RouteTraffic,
};

/// A kind of object whose annotations say how traffic is treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Annotated {
    /// A Service.
    Service,
    /// An EgressNetwork.
    EgressNetwork,
    /// An HTTPRoute of either group.
    HttpRoute,
    /// A GRPCRoute.
    GrpcRoute,
    /// A TLSRoute; none of these annotations mean anything to it.
    TlsRoute,
    /// A TCPRoute; none of these annotations mean anything to it.
    TcpRoute,
}

/// An annotation that does not do what it seems to say.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Problem {
    /// The annotation's key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// What was expected instead, as the rest of a sentence that begins with "expected".
    pub expected: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, value, expected } = self;
        write!(f, "annotation {key}: `{value}` is ignored: expected {expected}")
    }
}

/// What is wrong with an object's annotations, in order of their keys; empty when each does what it says.
pub fn problems(kind: Annotated, annotations: &BTreeMap<String, String>) -> Vec<Problem> {
    let mut reader = Reader::new(annotations);
    let known: &[&[&str]] = match kind {
        Annotated::Service => {
            reader.opaque_ports();
            reader.route_traffic();
            reader.balancing();
            &[
                traffic::KEYS,
                balance::KEYS,
                balance::LINKERD_KEYS,
                affinity::KEYS,
            ]
        }
        Annotated::EgressNetwork => {
            reader.opaque_ports();
            reader.route_traffic();
            reader.failure_accrual();
            &[traffic::KEYS, balance::ACCRUAL_KEYS]
        }
        Annotated::HttpRoute | Annotated::GrpcRoute => {
            reader.route_traffic();
            &[traffic::KEYS]
        }
        Annotated::TlsRoute | Annotated::TcpRoute => &[],
    };
    reader.unknown(kind, known);
    let mut problems = reader.problems;
    problems.sort_unstable();
    problems.dedup();
    problems
}

/// Prefixes of the annotations that are read here.
const PREFIXES: [&str; 5] = [
    "retry.linkerd.io/",
    "timeout.linkerd.io/",
    "balancer.linkerd.io/",
    "balancer.alpha.linkerd.io/",
    "balancer.heddle.dev/",
];

/// Reads an object's annotations and keeps what is wrong with them.
pub(crate) struct Reader<'a> {
    annotations: &'a BTreeMap<String, String>,
    pub(crate) problems: Vec<Problem>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(annotations: &'a BTreeMap<String, String>) -> Self {
        Self {
            annotations,
            problems: Vec::new(),
        }
    }

    fn has(&self, key: &str) -> bool {
        self.annotations.contains_key(key)
    }

    /// A value, or the complaint that `parse` returns: what was expected.
    fn read<T>(&mut self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        match parse(self.annotations.get(key)?.trim()) {
            Ok(value) => Some(value),
            Err(expected) => {
                self.complain(key, expected);
                None
            }
        }
    }

    fn complain(&mut self, key: &str, expected: impl Into<String>) {
        self.problems.push(Problem {
            key: key.to_owned(),
            value: self.annotations.get(key).cloned().unwrap_or_default(),
            expected: expected.into(),
        });
    }

    fn duration(&mut self, key: &str) -> Option<Duration> {
        self.read(key, |text| {
            duration::parse(text).map_err(|_| {
                "a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h".to_owned()
            })
        })
    }

    /// As [`Reader::duration`]; zero means the same as absence.
    fn timeout(&mut self, key: &str) -> Option<Duration> {
        self.duration(key).filter(|timeout| !timeout.is_zero())
    }

    fn number(&mut self, key: &str, min: u32, max: u32) -> Option<u32> {
        self.read(key, |text| match text.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => Err(format!("a whole number from {min} to {max}")),
        })
    }

    fn ratio(&mut self, key: &str, max: f64) -> Option<f64> {
        self.read(key, |text| match text.parse::<f64>() {
            Ok(ratio) if (0.0..=max).contains(&ratio) => Ok(ratio),
            _ => Err(format!("a number from 0 to {max}")),
        })
    }

    /// The words that Go takes for booleans, as Linkerd does.
    fn flag(&mut self, key: &str) -> bool {
        let parsed = self.read(key, |text| match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            _ => Err("true or false".to_owned()),
        });
        parsed.unwrap_or_default()
    }

    /// The annotation about opaque ports.
    pub(crate) fn opaque_ports(&mut self) -> Option<PortSet> {
        self.read(OPAQUE_PORTS, |text| {
            text.parse::<PortSet>()
                .map_err(|_| "ports and ranges separated by commas, such as 3306,4444-4450".to_owned())
        })
    }

    fn unknown(&mut self, kind: Annotated, known: &[&[&str]]) {
        let is_ours = |key: &&String| PREFIXES.iter().any(|prefix| key.starts_with(prefix));
        let annotations = self.annotations;
        for key in annotations.keys().filter(is_ours) {
            if known
                .iter()
                .flat_map(|keys| keys.iter())
                .any(|known| known == key)
            {
                continue;
            }
            let everything = [
                traffic::KEYS,
                balance::KEYS,
                balance::LINKERD_KEYS,
                affinity::KEYS,
            ];
            let elsewhere = everything
                .iter()
                .flat_map(|keys| keys.iter())
                .any(|known| known == key);
            self.complain(
                key,
                match elsewhere {
                    true => format!(
                        "this annotation on a Service, because a {} does not take it",
                        kind.name()
                    ),
                    false => "an annotation that exists".to_owned(),
                },
            );
        }
    }
}

impl Annotated {
    /// The kind, as the API spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Service => "Service",
            Self::EgressNetwork => "EgressNetwork",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TlsRoute => "TLSRoute",
            Self::TcpRoute => "TCPRoute",
        }
    }
}

#[cfg(test)]
mod tests;
