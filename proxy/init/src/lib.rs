//! Redirects a pod's TCP traffic to its proxy.
//!
//! In go ports, users and networks ([`Redirect`]); out come firewall rules, first as values ([`RuleSet`], pure and
//! printable), then in the kernel ([`install`]): one nf_tables transaction over netlink, all or nothing, that replaces
//! what an earlier run installed. No shell, no `nft`, no `iptables`, no `unsafe`. [`validate`] tells whether redirection
//! works, whoever set it up. This crate must never know Kubernetes or the proxy's own configuration: it gets numbers.

mod install;
mod netlink;
pub mod ready;
mod rules;
pub mod validate;

pub use install::{EnterError, InstallError, enter, install, missing};
pub use rules::{
    Action, Chain, Family, Hook, Match, PORT_RANGES_MAX, Redirect, Rule, RuleSet, RulesError, Table,
    parse_network,
};
