//! `heddle-cni`: called by a container runtime it is the CNI plugin `linkerd-cni`; called by a person or a pod it
//! installs that plugin on the node.

use std::{io, process::ExitCode};

use clap::{Parser, Subcommand};
use heddle_daemon::{log, report};
use heddle_proxy_cni::{install, plugin, protocol};

/// Redirects meshed pods' traffic as their network is made.
///
/// A container runtime calls this program with CNI_COMMAND in its environment; then it is the CNI plugin linkerd-cni and
/// takes no arguments.
#[derive(Debug, Parser)]
#[command(name = "heddle-cni", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Puts the plugin into a node's network configuration and keeps it there until SIGTERM, which removes it.
    Install {
        #[command(flatten)]
        target: install::Target,
        /// Log filter, in the syntax of RUST_LOG.
        #[arg(long, default_value = "info")]
        log_level: String,
        /// Form of a log line: plain or json.
        #[arg(long, default_value_t)]
        log_format: log::Format,
    },
    /// Ends with 0 when the plugin is in place: for probes.
    Installed {
        #[command(flatten)]
        target: install::Target,
    },
}

fn main() -> ExitCode {
    if let Some(command) = std::env::var_os(protocol::COMMAND) {
        let command = command.to_string_lossy();
        return plugin::main(&command, |name| std::env::var(name).ok(), io::stdin().lock());
    }
    let result = match Cli::parse().command {
        Command::Install {
            target,
            log_level,
            log_format,
        } => {
            if let Err(error) = log::init(&log_level, log_format) {
                eprintln!("heddle-cni: --log-level: {}", report::chain(&error));
                return ExitCode::from(2);
            }
            install::run(target)
        }
        Command::Installed { target } => install::verify(&target),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heddle-cni: {}", report::chain(&error));
            ExitCode::FAILURE
        }
    }
}
