//! `heddle-init`: redirects a pod's traffic to its proxy, and ends. Takes the flags of linkerd2-proxy-init.
//!
//! Exit codes: 0 done, 1 not installed (or, for `await`, not ready in time), 2 wrong flags, 95 `validate` found that
//! connections are not redirected.

use std::{error::Error, fs, io, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{ArgAction, Parser, Subcommand};
use heddle_mesh::{PortSet, duration, port};
use heddle_proxy_init::{
    Redirect, enter, install, parse_network, ready,
    validate::{EXIT_NOT_REDIRECTED, ValidateError, validate},
};
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
    #[arg(long, action = ArgAction::Append, value_delimiter = ',', value_parser = parse_network)]
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

    /// How long the kernel remembers a connection that its peer has closed; 0 leaves the node's setting. Needs a
    /// privileged container.
    #[arg(long, default_value_t = 0)]
    timeout_close_wait_secs: u32,
    /// Taken for compatibility: the rules are nf_tables' in every mode.
    #[arg(long)]
    iptables_mode: Option<IptablesMode>,
    /// Taken for compatibility and without effect: there is no lock to wait for.
    #[arg(short = 'w', long, hide = true, num_args = 0..=1, default_missing_value = "true", require_equals = true,
          action = ArgAction::Set)]
    use_wait_flag: Option<bool>,
    /// Taken for compatibility and without effect: no program is run.
    #[arg(long, hide = true)]
    firewall_bin_path: Option<String>,
    /// Taken for compatibility and without effect: no program is run.
    #[arg(long, hide = true)]
    firewall_save_bin_path: Option<String>,
    /// Taken for compatibility and without effect.
    #[arg(long, hide = true)]
    log_level: Option<String>,
    /// Taken for compatibility and without effect.
    #[arg(long, hide = true)]
    log_format: Option<String>,
}

/// Which of iptables' programs Linkerd's own init container would run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum IptablesMode {
    Legacy,
    Nft,
    Plain,
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
    /// Tells whether this pod's connections are redirected, as linkerd2-network-validator does.
    Validate {
        /// An address outside the pod; nobody needs to be there.
        #[arg(long, default_value = "1.1.1.1:20001")]
        connect_addr: SocketAddr,
        /// Where redirected connections arrive: the proxy's outbound listener, which is not there yet.
        #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], port::PROXY_OUTBOUND)))]
        listen_addr: SocketAddr,
        /// How long to try.
        #[arg(long, default_value = "10s", value_parser = duration::parse)]
        timeout: Duration,
        /// Taken for compatibility and without effect.
        #[arg(long, hide = true)]
        log_level: Option<String>,
        /// Taken for compatibility and without effect.
        #[arg(long, hide = true)]
        log_format: Option<String>,
    },
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    let result = match args.command.take() {
        Some(Command::Await { port, timeout }) => ready::wait(port, timeout).map_err(Into::into),
        Some(Command::Validate {
            connect_addr,
            listen_addr,
            timeout,
            log_level: _,
            log_format: _,
        }) => validate(connect_addr, listen_addr, timeout)
            .inspect(|()| eprintln!("heddle-init: connections are redirected to {listen_addr}"))
            .map_err(Into::into),
        None => redirect(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let code = match error.downcast_ref() {
                Some(ValidateError::NotRedirected { .. }) => ExitCode::from(EXIT_NOT_REDIRECTED),
                _ => ExitCode::FAILURE,
            };
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            eprintln!("heddle-init: {text}");
            code
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
        firewall_bin_path: _,
        firewall_save_bin_path: _,
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
    if matches!(iptables_mode, Some(IptablesMode::Legacy | IptablesMode::Plain)) {
        eprintln!("heddle-init: --iptables-mode has no effect: the rules are nf_tables'");
    }
    if let Some(path) = netns {
        enter(&path)?;
    }
    install(&rules)?;
    if timeout_close_wait_secs > 0 {
        close_wait(timeout_close_wait_secs)?;
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

/// Sets the namespace's own timeout. The rules are there by now, and with them connection tracking and its settings.
fn close_wait(seconds: u32) -> Result<(), Box<dyn Error>> {
    const SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait";
    fs::write(SETTING, seconds.to_string()).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied => {
                "; only a privileged container may change it"
            }
            _ => "",
        };
        format!("failed to set --timeout-close-wait-secs={seconds} in {SETTING}: {error}{hint}").into()
    })
}

fn union(sets: &[PortSet]) -> PortSet {
    sets.iter().flat_map(PortSet::iter).collect()
}
