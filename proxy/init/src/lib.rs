//! Redirects a pod's TCP traffic to its proxy.
//!
//! In go ports, users and networks ([`Redirect`]); out come firewall rules, first as values ([`RuleSet`], pure and
//! printable), then in the kernel ([`install`]): one nf_tables transaction over netlink, all or nothing, that replaces
//! what an earlier run installed. No shell, no `nft`, no `iptables`, no `unsafe`. This crate must never know Kubernetes
//! or the proxy's own configuration: it gets numbers.

mod install;
mod netlink;
pub mod ready;
mod rules;

pub use install::{InstallError, install};
pub use rules::{
    Action, Chain, Family, Hook, Match, PORT_RANGES_MAX, Redirect, Rule, RuleSet, RulesError, Table,
};
