//! Where a control-plane service is: a host and a port, as text gives them.

use std::{fmt, net::IpAddr, str::FromStr};

/// Host and port of a control-plane service. A name may end with a dot, as Linkerd writes them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ControlAddr {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Ip(IpAddr),
    Name(String),
}

/// A text that is no `host:port`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no address: expected `host:port`, such as `linkerd-dst-headless.linkerd.svc.cluster.local:8086`"
)]
pub struct InvalidAddr(String);

impl ControlAddr {
    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the text itself says that the service is on this machine's loopback. A name that merely resolves to
    /// loopback does not count: what DNS says must not turn TLS off.
    pub fn is_loopback(&self) -> bool {
        match &self.host {
            Host::Ip(ip) => ip.is_loopback(),
            Host::Name(name) => name == "localhost" || name == "localhost.",
        }
    }

    /// `host:port` for a request's authority, without the dot at the end of the name.
    pub(crate) fn authority(&self) -> String {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]:{}", self.port),
            Host::Ip(ip) => format!("{ip}:{}", self.port),
            Host::Name(name) => format!("{}:{}", name.trim_end_matches('.'), self.port),
        }
    }
}

impl FromStr for ControlAddr {
    type Err = InvalidAddr;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddr(s.to_owned());
        let (host, port) = s.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(invalid)?;
        if let Some(ip) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let ip = ip.parse().map_err(|_| invalid())?;
            return Ok(Self {
                host: Host::Ip(IpAddr::V6(ip)),
                port,
            });
        }
        if let Ok(ip) = host.parse() {
            return Ok(Self {
                host: Host::Ip(IpAddr::V4(ip)),
                port,
            });
        }
        // What Identity takes as a name is what DNS can hold; a name of digits and dots only is a mistyped address.
        let fine = host.parse::<heddle_mesh::Identity>().is_ok()
            && !host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if fine {
            Ok(Self {
                host: Host::Name(host.to_ascii_lowercase()),
                port,
            })
        } else {
            Err(invalid())
        }
    }
}

impl From<std::net::SocketAddr> for ControlAddr {
    fn from(addr: std::net::SocketAddr) -> Self {
        Self {
            host: Host::Ip(addr.ip()),
            port: addr.port(),
        }
    }
}

impl fmt::Display for ControlAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Ip(_) => f.write_str(&self.authority()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_addresses() {
        let cases = [
            (
                "linkerd-dst-headless.linkerd.svc.cluster.local.:8086",
                "linkerd-dst-headless.linkerd.svc.cluster.local:8086",
            ),
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("[::1]:80", "[::1]:80"),
            ("LocalHost:1", "localhost:1"),
        ];
        for (text, authority) in cases {
            assert_eq!(text.parse::<ControlAddr>().expect(text).authority(), authority);
        }
    }

    #[test]
    fn refuses_what_is_no_address() {
        for bad in [
            "",
            "host",
            "host:",
            "host:0",
            "host:65536",
            ":80",
            "a b:80",
            "::1:80",
            "[::1:80",
            "1.2.3:80",
            "http://h:80",
        ] {
            assert!(bad.parse::<ControlAddr>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn only_the_text_decides_what_is_loopback() {
        for (text, loopback) in [
            ("127.0.0.1:1", true),
            ("[::1]:1", true),
            ("localhost.:1", true),
            ("10.0.0.1:1", false),
            ("localhost.example:1", false),
        ] {
            assert_eq!(
                text.parse::<ControlAddr>().expect(text).is_loopback(),
                loopback,
                "{text}"
            );
        }
    }
}
