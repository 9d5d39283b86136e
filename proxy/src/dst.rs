//! Where traffic goes before anything is known of it: an address that an application connected to, or the name of a
//! service that a request or a peer asks for (ingress mode, gateways).

use std::{fmt, net::SocketAddr, str::FromStr};

/// A port that is not said.
const PORT_DEFAULT: u16 = 80;

/// A destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dst {
    Addr(SocketAddr),
    Name(NameAddr),
}

/// A DNS name, lower case and without a trailing dot, with a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct NameAddr {
    name: String,
    port: u16,
}

/// A text that is no name with a port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no name of a service: expected NAME or NAME:PORT")]
pub(crate) struct InvalidName(String);

/// DNS suffixes. Empty has no names; the root, `.`, has all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Suffixes(Vec<String>);

impl Dst {
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Addr(addr) => addr.port(),
            Self::Name(name) => name.port,
        }
    }

    pub(crate) fn addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Addr(addr) => Some(*addr),
            Self::Name(_) => None,
        }
    }
}

impl NameAddr {
    pub(crate) fn new(name: &str, port: u16) -> Result<Self, InvalidName> {
        let invalid = || InvalidName(name.chars().take(256).collect());
        // A name of a service is a DNS name, and what looks like an address is none.
        let name: heddle_mesh::Identity = name.parse().map_err(|_| invalid())?;
        let last = name.as_str().rsplit('.').next().unwrap_or_default();
        if port == 0 || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(invalid());
        }
        Ok(Self {
            name: name.as_str().to_owned(),
            port,
        })
    }
}

impl FromStr for NameAddr {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let text = text.trim();
        match text.rsplit_once(':') {
            None => Self::new(text, PORT_DEFAULT),
            Some((name, port)) => match port.parse() {
                Ok(port) => Self::new(name, port),
                Err(_) => Err(InvalidName(text.chars().take(256).collect())),
            },
        }
    }
}

impl Suffixes {
    /// Whether the name is one of these, or below one.
    pub(crate) fn contain(&self, name: &NameAddr) -> bool {
        self.0.iter().any(|suffix| {
            suffix.is_empty()
                || name
                    .name
                    .strip_suffix(suffix.as_str())
                    .is_some_and(|front| front.is_empty() || front.ends_with('.'))
        })
    }
}

/// Separated by commas; a trailing dot is no matter.
impl FromStr for Suffixes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let suffix = |one: &str| match one {
            "." => Ok(String::new()),
            one => one
                .parse::<heddle_mesh::Identity>()
                .map(|name| name.as_str().to_owned())
                .map_err(|error| error.to_string()),
        };
        let all = text.split(',').map(str::trim).filter(|one| !one.is_empty());
        all.map(suffix).collect::<Result<_, _>>().map(Self)
    }
}

impl From<SocketAddr> for Dst {
    fn from(addr: SocketAddr) -> Self {
        Self::Addr(addr)
    }
}

impl From<NameAddr> for Dst {
    fn from(name: NameAddr) -> Self {
        Self::Name(name)
    }
}

impl fmt::Display for Dst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Addr(addr) => addr.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl fmt::Display for NameAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.name, self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_addresses_are_not_names() {
        for (text, want) in [
            ("Web.ns.svc.cluster.local.:8080", "web.ns.svc.cluster.local:8080"),
            ("web.test", "web.test:80"),
        ] {
            assert_eq!(text.parse::<NameAddr>().expect(text).to_string(), want);
        }
        for text in [
            "",
            ":80",
            "web:",
            "web:0",
            "web:x",
            "10.0.0.1",
            "10.0.0.1:80",
            "[::1]:80",
            "::1",
            "a b:80",
            "u@web:80",
            "web/x",
        ] {
            assert!(text.parse::<NameAddr>().is_err(), "{text}");
        }
    }

    #[test]
    fn suffixes_end_at_labels() {
        let suffixes: Suffixes = "svc.cluster.local., x.test".parse().expect("valid");
        let has = |text: &str| suffixes.contain(&text.parse().expect("a name"));
        assert!(has("web.ns.svc.cluster.local:80") && has("x.test") && has("a.x.test"));
        assert!(!has("web.evilsvc.cluster.local") && !has("ax.test") && !has("cluster.local"));
        let all: Suffixes = ".".parse().expect("valid");
        assert!(all.contain(&"anything.test".parse().expect("a name")));
        assert!(!Suffixes::default().contain(&"anything.test".parse().expect("a name")));
        assert!("a b".parse::<Suffixes>().is_err());
    }

    /// A name that is taken is read again as itself, and is no address.
    #[test]
    fn fuzz_names() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes);
            let Ok(name) = text.parse::<NameAddr>() else {
                return;
            };
            assert_eq!(name.to_string().parse(), Ok(name.clone()));
            assert!(name.name.parse::<std::net::IpAddr>().is_err());
        });
    }
}
