//! The rules as values. What they say is what Linkerd's iptables rules say; what differs is that they live in a
//! table of their own, so that replacing them touches nobody else's.
//!
//! Inbound (`prerouting`): connections from other hosts go to the proxy's inbound port, except those to ignored ports
//! and from ignored networks. Outbound (`output`): connections of the pod's processes go to the proxy's outbound port,
//! except the proxy's own, those over loopback (which includes the pod's own address), and those to ignored ports.
//! Both are NAT rules: the kernel remembers each connection's original destination, and the proxy asks for it.

use std::fmt;

use heddle_mesh::PortSet;
use ipnet::IpNet;

/// What is to be redirected, and what is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// The proxy's inbound listener.
    pub inbound_port: u16,
    /// The proxy's outbound listener; none: outbound connections are left alone.
    pub outbound_port: Option<u16>,
    /// The proxy's user: its connections are left alone.
    pub proxy_uid: u32,
    /// The proxy's group, likewise.
    pub proxy_gid: Option<u32>,
    /// Inbound ports to redirect; empty: all of them.
    pub inbound_only: PortSet,
    /// Inbound ports to leave alone.
    pub inbound_ignored: PortSet,
    /// Outbound ports to leave alone.
    pub outbound_ignored: PortSet,
    /// Networks whose inbound connections are left alone.
    pub networks_ignored: Vec<IpNet>,
    /// Redirect IPv6 as well.
    pub ipv6: bool,
}

/// All rules, one table for each address family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleSet {
    /// The tables; replaced as a whole.
    pub tables: Vec<Table>,
}

/// A table called [`Table::NAME`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Which packets it sees.
    pub family: Family,
    /// Its chains.
    pub chains: Vec<Chain>,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
}

/// A NAT chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where in a packet's path it is consulted.
    pub hook: Hook,
    /// Its rules, the first that matches decides.
    pub rules: Vec<Rule>,
}

/// A place in a packet's path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Packets that arrive.
    Prerouting,
    /// Packets that local processes send.
    Output,
}

/// A rule: what all its matches accept is acted on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Conditions, all of which must hold.
    pub matches: Vec<Match>,
    /// What happens.
    pub action: Action,
    /// What it is for, shown by `nft list ruleset`.
    pub comment: &'static str,
}

/// A condition on a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Match {
    /// TCP, any port.
    Tcp,
    /// TCP to a port within these bounds, both included.
    TcpPort(u16, u16),
    /// Sent by a socket of this user.
    User(u32),
    /// Sent by a socket of this group.
    Group(u32),
    /// Arrives on the loopback device.
    FromLoopback,
    /// Leaves on the loopback device: to 127.0.0.0/8, ::1, or an address of the pod itself.
    ToLoopback,
    /// Comes from this network.
    Source(IpNet),
}

/// What happens to a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The connection is left alone.
    Leave,
    /// The connection goes to this local port.
    RedirectTo(u16),
}

/// Why no rules can be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// A port is 0.
    #[error("the proxy's {0} port must not be 0")]
    PortZero(&'static str),
    /// Both listeners have one port.
    #[error("the proxy's inbound and outbound port are both {0}: they must differ")]
    SamePort(u16),
    /// More ranges than fit one transaction.
    #[error(
        "{list} has {count} separate ranges of ports: at most {PORT_RANGES_MAX} are possible; write neighbouring ports as ranges"
    )]
    TooManyRanges {
        /// The list at fault.
        list: &'static str,
        /// How many it has.
        count: usize,
    },
    /// More networks than fit one transaction.
    #[error("{0} networks are to be ignored: at most {PORT_RANGES_MAX} are possible")]
    TooManyNetworks(usize),
    /// The proxy runs as root.
    #[error(
        "the proxy's user is 0 (root): its own connections are recognised by their user, so it needs one of its own"
    )]
    Root,
}

/// A rule for each range of ports goes into one netlink message; this many, in both directions and families, fit the
/// kernel's default socket buffer with room to spare.
pub const PORT_RANGES_MAX: usize = 256;

impl Redirect {
    /// The rules that do this.
    ///
    /// # Errors
    /// Ports that clash, a proxy that runs as root, or lists too long for one transaction.
    pub fn rules(&self) -> Result<RuleSet, RulesError> {
        self.check()?;
        let families = if self.ipv6 {
            &[Family::Ip, Family::Ip6][..]
        } else {
            &[Family::Ip][..]
        };
        let tables = families.iter().map(|&family| {
            let mut chains = vec![self.inbound(family)];
            chains.extend(self.outbound_port.map(|port| self.outbound(port)));
            Table { family, chains }
        });
        Ok(RuleSet {
            tables: tables.collect(),
        })
    }

    fn check(&self) -> Result<(), RulesError> {
        if self.inbound_port == 0 {
            return Err(RulesError::PortZero("inbound"));
        }
        if self.outbound_port == Some(0) {
            return Err(RulesError::PortZero("outbound"));
        }
        if self.outbound_port == Some(self.inbound_port) {
            return Err(RulesError::SamePort(self.inbound_port));
        }
        if self.proxy_uid == 0 {
            return Err(RulesError::Root);
        }
        let lists = [
            ("the list of inbound ports to redirect", &self.inbound_only),
            ("the list of inbound ports to ignore", &self.inbound_ignored),
            ("the list of outbound ports to ignore", &self.outbound_ignored),
        ];
        for (list, ports) in lists {
            let count = ports.ranges().len();
            if count > PORT_RANGES_MAX {
                return Err(RulesError::TooManyRanges { list, count });
            }
        }
        match self.networks_ignored.len() {
            count if count > PORT_RANGES_MAX => Err(RulesError::TooManyNetworks(count)),
            _ => Ok(()),
        }
    }

    fn inbound(&self, family: Family) -> Chain {
        let mut rules = vec![leave(Match::FromLoopback, "ignore-loopback")];
        rules.extend(ports(&self.inbound_ignored).map(|port| leave(port, "ignore-port")));
        let networks = self
            .networks_ignored
            .iter()
            .map(IpNet::trunc)
            .filter(|network| family.has(network));
        rules.extend(networks.map(|network| leave(Match::Source(network), "ignore-subnet")));
        if self.inbound_only.is_empty() {
            rules.push(redirect(
                Match::Tcp,
                self.inbound_port,
                "redirect-all-incoming-to-proxy-port",
            ));
        } else {
            let only = ports(&self.inbound_only);
            rules.extend(only.map(|port| redirect(port, self.inbound_port, "redirect-port-to-proxy-port")));
        }
        Chain {
            name: "inbound",
            hook: Hook::Prerouting,
            rules,
        }
    }

    fn outbound(&self, port: u16) -> Chain {
        let mut rules = vec![leave(Match::User(self.proxy_uid), "ignore-proxy-user-id")];
        rules.extend(
            self.proxy_gid
                .map(|gid| leave(Match::Group(gid), "ignore-proxy-group-id")),
        );
        rules.push(leave(Match::ToLoopback, "ignore-loopback"));
        rules.extend(ports(&self.outbound_ignored).map(|port| leave(port, "ignore-port")));
        rules.push(redirect(Match::Tcp, port, "redirect-all-outgoing-to-proxy-port"));
        Chain {
            name: "outbound",
            hook: Hook::Output,
            rules,
        }
    }
}

/// A network, or an address alone.
///
/// # Errors
/// A sentence that names the text.
pub fn parse_network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let address = || text.parse().map(|address: std::net::IpAddr| IpNet::from(address));
    text.parse()
        .or_else(|_| address())
        .map_err(|_| format!("`{text}` is not a network: expected one such as 10.0.0.0/8"))
}

fn ports(set: &PortSet) -> impl Iterator<Item = Match> {
    set.ranges()
        .into_iter()
        .map(|(first, last)| Match::TcpPort(first, last))
}

fn leave(condition: Match, comment: &'static str) -> Rule {
    Rule {
        matches: vec![condition],
        action: Action::Leave,
        comment,
    }
}

fn redirect(condition: Match, port: u16, comment: &'static str) -> Rule {
    Rule {
        matches: vec![condition],
        action: Action::RedirectTo(port),
        comment,
    }
}

impl RuleSet {
    /// How many rules there are in all.
    pub fn len(&self) -> usize {
        self.tables
            .iter()
            .flat_map(|table| &table.chains)
            .map(|chain| chain.rules.len())
            .sum()
    }

    /// Whether there is no rule.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Table {
    /// The name of Heddle's tables.
    pub const NAME: &str = "heddle";
}

impl Family {
    fn has(self, network: &IpNet) -> bool {
        matches!(
            (self, network),
            (Self::Ip, IpNet::V4(_)) | (Self::Ip6, IpNet::V6(_))
        )
    }
}

/// In the words of `nft`: the text can be given to `nft -f`.
impl fmt::Display for RuleSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Table { family, chains } in &self.tables {
            writeln!(f, "table {family} {} {{", Table::NAME)?;
            for (index, chain) in chains.iter().enumerate() {
                if index > 0 {
                    writeln!(f)?;
                }
                writeln!(f, "\tchain {} {{", chain.name)?;
                // The same number; nft takes its name only where packets arrive.
                let priority = match chain.hook {
                    Hook::Prerouting => "dstnat",
                    Hook::Output => "-100",
                };
                let hook = chain.hook;
                writeln!(f, "\t\ttype nat hook {hook} priority {priority}; policy accept;")?;
                for rule in &chain.rules {
                    writeln!(f, "\t\t{rule}")?;
                }
                writeln!(f, "\t}}")?;
            }
            writeln!(f, "}}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prerouting => "prerouting",
            Self::Output => "output",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for condition in &self.matches {
            write!(f, "{condition} ")?;
        }
        write!(f, "{} comment \"{}\"", self.action, self.comment)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("meta l4proto tcp"),
            Self::TcpPort(first, last) if first == last => write!(f, "tcp dport {first}"),
            Self::TcpPort(first, last) => write!(f, "tcp dport {first}-{last}"),
            Self::User(uid) => write!(f, "meta skuid {uid}"),
            Self::Group(gid) => write!(f, "meta skgid {gid}"),
            Self::FromLoopback => f.write_str("iifname \"lo\""),
            Self::ToLoopback => f.write_str("oifname \"lo\""),
            Self::Source(IpNet::V4(network)) => write!(f, "ip saddr {network}"),
            Self::Source(IpNet::V6(network)) => write!(f, "ip6 saddr {network}"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leave => f.write_str("return"),
            Self::RedirectTo(port) => write!(f, "redirect to :{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn mk_redirect() -> Redirect {
        Redirect {
            inbound_port: 4143,
            outbound_port: Some(4140),
            proxy_uid: 2102,
            proxy_gid: None,
            inbound_only: PortSet::default(),
            inbound_ignored: "4190,4191,4567-4568".parse().expect("ports"),
            outbound_ignored: "4567-4568".parse().expect("ports"),
            networks_ignored: Vec::new(),
            ipv6: false,
        }
    }

    fn check(redirect: &Redirect, expected: Expect) {
        expected.assert_eq(&redirect.rules().expect("valid").to_string());
    }

    #[test]
    fn what_an_injected_pod_gets() {
        check(
            &mk_redirect(),
            expect![[r#"
                table ip heddle {
                	chain inbound {
                		type nat hook prerouting priority dstnat; policy accept;
                		iifname "lo" return comment "ignore-loopback"
                		tcp dport 4190-4191 return comment "ignore-port"
                		tcp dport 4567-4568 return comment "ignore-port"
                		meta l4proto tcp redirect to :4143 comment "redirect-all-incoming-to-proxy-port"
                	}

                	chain outbound {
                		type nat hook output priority -100; policy accept;
                		meta skuid 2102 return comment "ignore-proxy-user-id"
                		oifname "lo" return comment "ignore-loopback"
                		tcp dport 4567-4568 return comment "ignore-port"
                		meta l4proto tcp redirect to :4140 comment "redirect-all-outgoing-to-proxy-port"
                	}
                }
            "#]],
        );
    }

    #[test]
    fn both_families_with_networks_group_and_few_ports() {
        let redirect = Redirect {
            proxy_gid: Some(2103),
            inbound_only: "80,8080-8090".parse().expect("ports"),
            inbound_ignored: PortSet::default(),
            outbound_ignored: PortSet::default(),
            networks_ignored: vec![
                "10.1.2.3/16".parse().expect("v4"),
                "fd00::1/64".parse().expect("v6"),
            ],
            ipv6: true,
            ..mk_redirect()
        };
        check(
            &redirect,
            expect![[r#"
                table ip heddle {
                	chain inbound {
                		type nat hook prerouting priority dstnat; policy accept;
                		iifname "lo" return comment "ignore-loopback"
                		ip saddr 10.1.0.0/16 return comment "ignore-subnet"
                		tcp dport 80 redirect to :4143 comment "redirect-port-to-proxy-port"
                		tcp dport 8080-8090 redirect to :4143 comment "redirect-port-to-proxy-port"
                	}

                	chain outbound {
                		type nat hook output priority -100; policy accept;
                		meta skuid 2102 return comment "ignore-proxy-user-id"
                		meta skgid 2103 return comment "ignore-proxy-group-id"
                		oifname "lo" return comment "ignore-loopback"
                		meta l4proto tcp redirect to :4140 comment "redirect-all-outgoing-to-proxy-port"
                	}
                }
                table ip6 heddle {
                	chain inbound {
                		type nat hook prerouting priority dstnat; policy accept;
                		iifname "lo" return comment "ignore-loopback"
                		ip6 saddr fd00::/64 return comment "ignore-subnet"
                		tcp dport 80 redirect to :4143 comment "redirect-port-to-proxy-port"
                		tcp dport 8080-8090 redirect to :4143 comment "redirect-port-to-proxy-port"
                	}

                	chain outbound {
                		type nat hook output priority -100; policy accept;
                		meta skuid 2102 return comment "ignore-proxy-user-id"
                		meta skgid 2103 return comment "ignore-proxy-group-id"
                		oifname "lo" return comment "ignore-loopback"
                		meta l4proto tcp redirect to :4140 comment "redirect-all-outgoing-to-proxy-port"
                	}
                }
            "#]],
        );
    }

    #[test]
    fn without_an_outbound_port_output_is_left_alone() {
        let redirect = Redirect {
            outbound_port: None,
            ..mk_redirect()
        };
        let rules = redirect.rules().expect("valid");
        assert!(
            rules.tables[0]
                .chains
                .iter()
                .all(|chain| chain.hook == Hook::Prerouting)
        );
    }

    #[test]
    fn refuses_what_cannot_work() {
        let refuse = |redirect: Redirect| redirect.rules().expect_err("refused");
        assert_eq!(
            refuse(Redirect {
                inbound_port: 0,
                ..mk_redirect()
            }),
            RulesError::PortZero("inbound")
        );
        assert_eq!(
            refuse(Redirect {
                outbound_port: Some(0),
                ..mk_redirect()
            }),
            RulesError::PortZero("outbound")
        );
        assert_eq!(
            refuse(Redirect {
                outbound_port: Some(4143),
                ..mk_redirect()
            }),
            RulesError::SamePort(4143)
        );
        assert_eq!(
            refuse(Redirect {
                proxy_uid: 0,
                ..mk_redirect()
            }),
            RulesError::Root
        );
        let odd = PortSet::from_iter((1..=1025u16).step_by(2));
        assert!(matches!(
            refuse(Redirect {
                outbound_ignored: odd,
                ..mk_redirect()
            }),
            RulesError::TooManyRanges { count: 513, .. }
        ));
    }
}
