//! Sets of ports as annotations write them: `25,587,9000-9010`.

use std::{collections::BTreeSet, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A set of TCP ports. Parsed from, and printed as, a comma-separated list of ports and inclusive ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PortSet(BTreeSet<u16>);

/// Why a text is no set of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PortSetError {
    /// Not a number from 1 to 65535.
    #[error("`{0}` is not a port: expected a number from 1 to 65535, or a range such as 8000-8010")]
    NotAPort(String),
    /// The range's end is before its start.
    #[error("`{0}` is not a range of ports: it ends before it starts")]
    Backwards(String),
}

impl PortSet {
    /// Whether the set holds `port`.
    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }

    /// The ports in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().copied()
    }

    /// Whether no port is in the set.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a port.
    pub fn insert(&mut self, port: u16) {
        self.0.insert(port);
    }

    /// The ports as inclusive ranges, ascending and never touching: what a firewall's interval set wants.
    pub fn ranges(&self) -> Vec<(u16, u16)> {
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for &port in &self.0 {
            match ranges.last_mut() {
                Some((_, end)) if u32::from(*end) + 1 == u32::from(port) => *end = port,
                _ => ranges.push((port, port)),
            }
        }
        ranges
    }
}

impl FromIterator<u16> for PortSet {
    fn from_iter<I: IntoIterator<Item = u16>>(ports: I) -> Self {
        Self(ports.into_iter().collect())
    }
}

impl FromStr for PortSet {
    type Err = PortSetError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let port = |text: &str| match text.trim().parse::<u16>() {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(PortSetError::NotAPort(text.trim().to_owned())),
        };
        let mut ports = BTreeSet::new();
        for part in s.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('-') {
                None => {
                    ports.insert(port(part)?);
                }
                Some((start, end)) => {
                    let (start, end) = (port(start)?, port(end)?);
                    if end < start {
                        return Err(PortSetError::Backwards(part.to_owned()));
                    }
                    ports.extend(start..=end);
                }
            }
        }
        Ok(Self(ports))
    }
}

impl fmt::Display for PortSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (start, end)) in self.ranges().into_iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match start == end {
                true => write!(f, "{start}")?,
                false => write!(f, "{start}-{end}")?,
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for PortSet {
    type Error = PortSetError;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

impl From<PortSet> for String {
    fn from(ports: PortSet) -> Self {
        ports.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_ports_and_ranges_and_prints_them_shortest() {
        let set: PortSet = " 25, 587,9000-9002,9003 ,".parse().expect("valid");
        assert_eq!(set.to_string(), "25,587,9000-9003");
        assert!(set.contains(9001) && !set.contains(26));
        assert_eq!(
            "".parse::<PortSet>().expect("an empty list is a set").to_string(),
            ""
        );
        assert_eq!(
            "65534-65535".parse::<PortSet>().expect("valid").ranges(),
            [(65534, 65535)]
        );
    }

    #[test]
    fn refuses_what_is_no_port() {
        for bad in ["0", "65536", "http", "1-0", "10-5", "-5", "5-", "1.5"] {
            assert!(bad.parse::<PortSet>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn fuzz_port_sets() {
        bolero::check!().with_type::<String>().for_each(|text| {
            if let Ok(set) = text.parse::<PortSet>() {
                assert_eq!(set.to_string().parse::<PortSet>(), Ok(set));
            }
        });
    }
}
