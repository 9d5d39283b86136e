//! Which requests a tap wants: expressions of `Tap.Observe`, checked when they come.

use std::net::{IpAddr, SocketAddr};

use http::{Method, uri::Scheme};
use ipnet::IpNet;
use linkerd2_proxy_api::tap::observe_request::{
    self as proto,
    r#match::{self as kinds, http::string_match},
};

use super::Way;

/// An expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Match {
    All(Vec<Self>),
    Any(Vec<Self>),
    Not(Box<Self>),
    Source(Address),
    Destination(Address),
    DestinationLabel(String, String),
    RouteLabel(String, String),
    Scheme(Scheme),
    Method(Method),
    Authority(Text),
    Path(Text),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Net(IpNet),
    /// From the first to the last, both included.
    Ports(u16, u16),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Text {
    Exact(String),
    Prefix(String),
}

/// An expression that says nothing, or nothing that can be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("match.{field} is invalid: {problem}")]
pub(super) struct InvalidMatch {
    field: &'static str,
    problem: &'static str,
}

/// What is looked at.
#[derive(Debug)]
pub(super) struct Seen<'s> {
    pub way: &'s Way<'s>,
    pub method: &'s Method,
    pub scheme: Option<&'s Scheme>,
    pub authority: &'s str,
    pub path: &'s str,
}

fn missing(field: &'static str) -> InvalidMatch {
    invalid(field, "it must be given")
}

fn invalid(field: &'static str, problem: &'static str) -> InvalidMatch {
    InvalidMatch { field, problem }
}

impl Match {
    /// Reads an expression. How deep it may be, and how long, the message's decoder has bounded.
    pub(super) fn parse(message: Option<proto::Match>) -> Result<Self, InvalidMatch> {
        let message = message.and_then(|message| message.r#match);
        Self::kind(message.ok_or(missing("match"))?)
    }

    fn kind(message: kinds::Match) -> Result<Self, InvalidMatch> {
        let all = |seq: kinds::Seq| -> Result<Vec<Self>, InvalidMatch> {
            let matches = seq.matches.into_iter();
            matches.map(|one| Self::parse(Some(one))).collect()
        };
        Ok(match message {
            kinds::Match::All(seq) => Self::All(all(seq)?),
            kinds::Match::Any(seq) => Self::Any(all(seq)?),
            kinds::Match::Not(one) => Self::Not(Box::new(Self::parse(Some(*one))?)),
            kinds::Match::Source(tcp) => Self::Source(Address::parse(tcp, "source")?),
            kinds::Match::Destination(tcp) => Self::Destination(Address::parse(tcp, "destination")?),
            kinds::Match::DestinationLabel(label) => {
                let (key, value) = pair(label, "destination_label")?;
                Self::DestinationLabel(key, value)
            }
            kinds::Match::RouteLabel(label) => {
                let (key, value) = pair(label, "route_label")?;
                Self::RouteLabel(key, value)
            }
            kinds::Match::Http(http) => Self::http(http)?,
        })
    }

    fn http(message: kinds::Http) -> Result<Self, InvalidMatch> {
        Ok(match message.r#match.ok_or(missing("http"))? {
            kinds::http::Match::Scheme(scheme) => {
                let scheme = Scheme::try_from(scheme);
                Self::Scheme(scheme.map_err(|_| invalid("http.scheme", "it is no scheme"))?)
            }
            kinds::http::Match::Method(method) => {
                let method = Method::try_from(method);
                Self::Method(method.map_err(|_| invalid("http.method", "it is no method"))?)
            }
            kinds::http::Match::Authority(text) => Self::Authority(Text::parse(text, "http.authority")?),
            kinds::http::Match::Path(text) => Self::Path(Text::parse(text, "http.path")?),
        })
    }

    pub(super) fn matches(&self, seen: &Seen<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.matches(seen)),
            Self::Any(any) => any.iter().any(|one| one.matches(seen)),
            Self::Not(one) => !one.matches(seen),
            Self::Source(address) => address.matches(seen.way.source),
            Self::Destination(address) => address.matches(seen.way.destination),
            Self::DestinationLabel(key, value) => {
                let mut labels = seen.way.labels.iter();
                labels.any(|label| label.0 == *key && label.1 == *value)
            }
            Self::RouteLabel(key, value) => key == "route" && seen.way.route == Some(value),
            Self::Scheme(scheme) => seen.scheme.unwrap_or(&Scheme::HTTP) == scheme,
            Self::Method(method) => seen.method == method,
            Self::Authority(text) => text.matches(seen.authority),
            Self::Path(text) => text.matches(seen.path),
        }
    }
}

fn pair(label: kinds::Label, field: &'static str) -> Result<(String, String), InvalidMatch> {
    match label.key.is_empty() || label.value.is_empty() {
        true => Err(invalid(field, "key and value must be given")),
        false => Ok((label.key, label.value)),
    }
}

impl Address {
    fn parse(message: kinds::Tcp, field: &'static str) -> Result<Self, InvalidMatch> {
        match message.r#match.ok_or(missing(field))? {
            kinds::tcp::Match::Ports(kinds::tcp::PortRange { min, max }) => {
                // One that is not given is the other.
                let (first, last) = match (min, max) {
                    (0, 0) => return Err(missing(field)),
                    (0, one) | (one, 0) => (one, one),
                    both => both,
                };
                match (u16::try_from(first), u16::try_from(last)) {
                    (Ok(first), Ok(last)) if first <= last => Ok(Self::Ports(first, last)),
                    _ => Err(invalid(
                        field,
                        "ports are at most 65535, the first before the last",
                    )),
                }
            }
            kinds::tcp::Match::Netmask(kinds::tcp::Netmask { ip, mask }) => {
                let ip = ip.ok_or(missing(field))?;
                let ip = IpAddr::try_from(ip).map_err(|_| invalid(field, "it is no address"))?;
                let net = u8::try_from(mask).ok().filter(|mask| *mask > 0);
                net.and_then(|mask| IpNet::new(ip, mask).ok())
                    .map(Self::Net)
                    .ok_or(invalid(field, "it is no network"))
            }
        }
    }

    fn matches(&self, addr: SocketAddr) -> bool {
        match self {
            Self::Net(net) => net.contains(&addr.ip()),
            Self::Ports(first, last) => (*first..=*last).contains(&addr.port()),
        }
    }
}

impl Text {
    fn parse(message: kinds::http::StringMatch, field: &'static str) -> Result<Self, InvalidMatch> {
        Ok(match message.r#match.ok_or(missing(field))? {
            string_match::Match::Exact(text) => Self::Exact(text),
            string_match::Match::Prefix(text) => Self::Prefix(text),
        })
    }

    fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == exact,
            Self::Prefix(prefix) => text.starts_with(prefix.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use linkerd2_proxy_api::{http_types, net};
    use prost::Message as _;

    use super::*;

    fn is(kind: kinds::Match) -> proto::Match {
        proto::Match { r#match: Some(kind) }
    }

    fn ports(min: u32, max: u32) -> kinds::Tcp {
        kinds::Tcp {
            r#match: Some(kinds::tcp::Match::Ports(kinds::tcp::PortRange { min, max })),
        }
    }

    fn netmask(ip: [u8; 4], mask: u32) -> kinds::Tcp {
        let ip = Some(net::IpAddress::from(IpAddr::from(ip)));
        kinds::Tcp {
            r#match: Some(kinds::tcp::Match::Netmask(kinds::tcp::Netmask { ip, mask })),
        }
    }

    fn http(kind: kinds::http::Match) -> proto::Match {
        is(kinds::Match::Http(kinds::Http { r#match: Some(kind) }))
    }

    fn prefix(text: &str) -> kinds::http::StringMatch {
        kinds::http::StringMatch {
            r#match: Some(string_match::Match::Prefix(text.to_owned())),
        }
    }

    fn matches(message: proto::Match) -> Result<bool, InvalidMatch> {
        let labels = [("pod".to_owned(), "web-1".to_owned())];
        let way = Way {
            source: ([10, 0, 0, 1], 5000).into(),
            source_tls: "true",
            source_id: None,
            destination: ([10, 0, 1, 1], 8080).into(),
            destination_tls: "true",
            destination_id: None,
            labels: &labels,
            route: Some("r"),
        };
        let seen = Seen {
            way: &way,
            method: &Method::GET,
            scheme: None,
            authority: "web:80",
            path: "/api/v1",
        };
        Match::parse(Some(message)).map(|one| one.matches(&seen))
    }

    #[test]
    fn expressions_say_what_they_say() {
        let label = |key: &str, value: &str| kinds::Label {
            key: key.to_owned(),
            value: value.to_owned(),
        };
        let cases = [
            (is(kinds::Match::Source(netmask([10, 0, 0, 0], 24))), true),
            (is(kinds::Match::Source(netmask([10, 0, 1, 0], 24))), false),
            (is(kinds::Match::Destination(ports(8000, 8080))), true),
            (is(kinds::Match::Destination(ports(0, 8081))), false),
            (is(kinds::Match::DestinationLabel(label("pod", "web-1"))), true),
            (is(kinds::Match::DestinationLabel(label("pod", "web-2"))), false),
            (is(kinds::Match::RouteLabel(label("route", "r"))), true),
            (http(kinds::http::Match::Path(prefix("/api"))), true),
            (http(kinds::http::Match::Authority(prefix("db"))), false),
            (http(kinds::http::Match::Method(Method::GET.into())), true),
            (
                http(kinds::http::Match::Scheme(http_types::Scheme::from("https"))),
                false,
            ),
        ];
        for (message, expected) in cases {
            assert_eq!(matches(message.clone()), Ok(expected), "{message:?}");
            let not = is(kinds::Match::Not(Box::new(message)));
            assert_eq!(matches(not), Ok(!expected));
        }
        let (yes, no) = (
            is(kinds::Match::Source(ports(5000, 0))),
            is(kinds::Match::Source(ports(1, 2))),
        );
        let seq = |matches: &[&proto::Match]| kinds::Seq {
            matches: matches.iter().map(|&one| one.clone()).collect(),
        };
        assert_eq!(matches(is(kinds::Match::All(seq(&[&yes, &no])))), Ok(false));
        assert_eq!(matches(is(kinds::Match::Any(seq(&[&yes, &no])))), Ok(true));
        assert_eq!(matches(is(kinds::Match::All(seq(&[])))), Ok(true));
        assert_eq!(matches(is(kinds::Match::Any(seq(&[])))), Ok(false));
    }

    #[test]
    fn what_says_nothing_is_refused() {
        for message in [
            proto::Match { r#match: None },
            is(kinds::Match::Source(ports(0, 0))),
            is(kinds::Match::Source(ports(9, 70_000))),
            is(kinds::Match::Source(ports(9, 8))),
            is(kinds::Match::Source(netmask([10, 0, 0, 0], 33))),
            is(kinds::Match::Source(netmask([10, 0, 0, 0], 0))),
            is(kinds::Match::Destination(kinds::Tcp { r#match: None })),
            is(kinds::Match::RouteLabel(kinds::Label::default())),
            is(kinds::Match::Not(Box::new(proto::Match { r#match: None }))),
            http(kinds::http::Match::Path(kinds::http::StringMatch {
                r#match: None,
            })),
        ] {
            assert!(matches(message.clone()).is_err(), "{message:?}");
        }
    }

    #[test]
    fn any_message_is_read_without_panic() {
        bolero::check!().for_each(|bytes: &[u8]| {
            if let Ok(message) = proto::Match::decode(bytes) {
                // Whether it is valid does not matter.
                let _ = matches(message);
            }
        });
    }
}
