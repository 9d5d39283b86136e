//! `heddle-init`: redirects a pod's traffic to its proxy, and ends. Takes the flags of linkerd2-proxy-init.
//!
//! Exit codes: 0 done, 1 not installed (or, for `await`, not ready in time), 2 wrong flags.

use std::{error::Error, fs::File, path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgAction, Parser, Subcommand};
use heddle_mesh::{PortSet, duration, port};
use heddle_proxy_init::{Redirect, install, ready};
use ipnet::IpNet;

/// Redirects a pod's TCP traffic to its proxy with nf_tables, and ends.
///
/// Running it again replaces what it installed before.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,

    /// Port to which inbound connections are redirected.
    #[arg(short = 'p', long, default_value_t = port::PROXY_INBOUND)]
    incoming_proxy_port: u16,
    /// Port to which outbound connections are redirected; -1 leaves them alone.
    #[arg(short = 'o', long, default_value_t = i32::from(port::PROXY_OUTBOUND), allow_negative_numbers = true,
          value_parser = clap::value_parser!(i32).range(-1..=65535))]
    outgoing_proxy_port: i32,
    /// User that the proxy runs as; its connections are left alone.
    #[arg(short = 'u', long, default_value_t = port::PROXY_UID)]
    proxy_uid: u32,
    /// Group that the proxy runs as; its connections are left alone. -1: none.
    #[arg(short = 'g', long, default_value_t = -1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(i64).range(-1..=i64::from(u32::MAX - 1)))]
    proxy_gid: i64,
    /// Inbound ports to redirect, such as 80,8000-8010; none given: all.
    #[arg(short = 'r', long, action = ArgAction::Append)]
    ports_to_redirect: Vec<PortSet>,
    /// Inbound ports to leave alone, such as 4190,4191,4567-4568.
    #[arg(long, action = ArgAction::Append)]
    inbound_ports_to_ignore: Vec<PortSet>,
    /// Outbound ports to leave alone.
    #[arg(long, action = ArgAction::Append)]
    outbound_ports_to_ignore: Vec<PortSet>,
    /// Networks whose inbound connections are left alone, such as 10.0.0.0/8,fd00::/8.
    #[arg(long, action = ArgAction::Append, value_delimiter = ',', value_parser = network)]
    subnets_to_ignore: Vec<IpNet>,
    /// Redirect IPv6, too.
    #[arg(long, default_value_t = true, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          action = ArgAction::Set)]
    ipv6: bool,
    /// Install into the network namespace of this path, such as /run/netns/NAME, rather than the own one.
    #[arg(long)]
    netns: Option<PathBuf>,
    /// Print the rules, in nft's words, and change nothing.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, default_value_t = false,
          action = ArgAction::Set)]
    simulate: bool,

    /// How long the kernel remembers half-closed connections; 0: its own time. Needs privileges beside NET_ADMIN.
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout_close_wait_secs: u32,
    /// Taken for compatibility and without effect: there is no iptables here.
    #[arg(long, hide = true)]
    iptables_mode: Option<String>,
    /// Taken for compatibility and without effect: there is no lock to wait for.
    #[arg(short = 'w', long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          action = ArgAction::Set)]
    use_wait_flag: Option<bool>,
    /// Taken for compatibility and without effect.
    #[arg(long, hide = true)]
    log_level: Option<String>,
    /// Taken for compatibility and without effect.
    #[arg(long, hide = true)]
    log_format: Option<String>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Waits until the proxy is ready.
    Await {
        /// The proxy's admin port.
        #[arg(long, default_value_t = port::PROXY_ADMIN)]
        port: u16,
        /// How long to wait.
        #[arg(long, default_value = "2m", value_parser = duration::parse)]
        timeout: Duration,
    },
}

/// The kernel's setting, of the network namespace of who opens it.
const CLOSE_WAIT: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";

fn main() -> ExitCode {
    let mut args = Args::parse();
    let result = match args.command.take() {
        Some(Command::Await { port, timeout }) => ready::wait(port, timeout).map_err(Into::into),
        None => redirect(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("heddle-init: {text}");
            ExitCode::FAILURE
        }
    }
}

fn redirect(args: Args) -> Result<(), Box<dyn Error>> {
    let Args {
        command: _,
        incoming_proxy_port,
        outgoing_proxy_port,
        proxy_uid,
        proxy_gid,
        ports_to_redirect,
        inbound_ports_to_ignore,
        outbound_ports_to_ignore,
        subnets_to_ignore,
        ipv6,
        netns,
        simulate,
        timeout_close_wait_secs,
        iptables_mode,
        use_wait_flag: _,
        log_level: _,
        log_format: _,
    } = args;
    let redirect = Redirect {
        inbound_port: incoming_proxy_port,
        outbound_port: u16::try_from(outgoing_proxy_port).ok(),
        proxy_uid,
        proxy_gid: u32::try_from(proxy_gid).ok(),
        inbound_only: union(&ports_to_redirect),
        inbound_ignored: union(&inbound_ports_to_ignore),
        outbound_ignored: union(&outbound_ports_to_ignore),
        networks_ignored: subnets_to_ignore,
        ipv6,
    };
    let rules = redirect.rules()?;
    if simulate {
        print!("{rules}");
        return Ok(());
    }
    if iptables_mode.is_some() {
        eprintln!("heddle-init: --iptables-mode has no effect: the rules are nf_tables'");
    }
    if let Some(path) = netns {
        let namespace = File::open(&path)
            .map_err(|error| format!("failed to open network namespace {}: {error}", path.display()))?;
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&namespace), kind)
            .map_err(|error| format!("failed to enter network namespace {}: {error}", path.display()))?;
    }
    install(&rules)?;
    if timeout_close_wait_secs > 0 {
        // Only now: the kernel has the setting where connections are tracked, which the rules see to.
        std::fs::write(CLOSE_WAIT, timeout_close_wait_secs.to_string())
            .map_err(|error| format!("failed to write {CLOSE_WAIT}: {error}"))?;
    }
    let outbound = redirect
        .outbound_port
        .map_or_else(|| "left alone".to_owned(), |port| format!("to port {port}"));
    eprintln!(
        "heddle-init: installed {} rules ({}): inbound TCP to port {}, outbound TCP {outbound}, user {} left alone; \
         ignored ports: inbound `{}`, outbound `{}`",
        rules.len(),
        if ipv6 { "IPv4 and IPv6" } else { "IPv4" },
        redirect.inbound_port,
        redirect.proxy_uid,
        redirect.inbound_ignored,
        redirect.outbound_ignored,
    );
    Ok(())
}

fn union(sets: &[PortSet]) -> PortSet {
    sets.iter().flat_map(PortSet::iter).collect()
}

/// A network, or an address alone.
fn network(text: &str) -> Result<IpNet, String> {
    let text = text.trim();
    let address = || text.parse().map(|address: std::net::IpAddr| IpNet::from(address));
    text.parse()
        .or_else(|_| address())
        .map_err(|_| format!("`{text}` is not a network: expected one such as 10.0.0.0/8"))
}
