//! Brings the rules into the kernel.

use std::{
    fs::File,
    io,
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{
    netlink::{self, Answer, Batch, answers},
    rules::{RuleSet, Table},
};

/// Why the rules were not installed. Nothing was changed then: a transaction is all or nothing.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no netlink socket to be had.
    #[error("failed to open a netfilter netlink socket ({errno}): {hint}")]
    Socket {
        /// The kernel's error.
        errno: Errno,
        /// What to do.
        hint: &'static str,
    },
    /// The transaction could not be handed over.
    #[error("failed to send {bytes} bytes of rules to the kernel ({errno}): {hint}")]
    Send {
        /// The kernel's error.
        errno: Errno,
        /// How much there was to send.
        bytes: usize,
        /// What to do.
        hint: &'static str,
    },
    /// The kernel's answer could not be read.
    #[error(
        "failed to read the kernel's answer to the rules ({0}): it is unknown whether they are in force; run again"
    )]
    Receive(Errno),
    /// The kernel did not answer.
    #[error("the kernel did not answer within {} s: it is unknown whether the rules are in force; run again", ANSWER_TIMEOUT.as_secs())]
    Silent,
    /// The kernel refused a step, and with it the whole transaction.
    #[error("the kernel refused to {step} ({errno}): {hint}")]
    Refused {
        /// The step that it refused.
        step: String,
        /// Its error.
        errno: Errno,
        /// What to do.
        hint: &'static str,
    },
}

/// A network namespace could not be entered.
#[derive(Debug, thiserror::Error)]
#[error("failed to enter network namespace {}", .path.display())]
pub struct EnterError {
    path: PathBuf,
    source: io::Error,
}

/// The kernel answers within milliseconds, unless it has to load a module first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// All that may be sent: 256 ranges of ports in both directions and families stay below half of it.
const SEND_BUFFER_BYTES: usize = 1 << 20;
const RECEIVE_BUFFER_BYTES: usize = 1 << 16;

/// Replaces Heddle's tables in the calling thread's network namespace by these.
///
/// # Errors
/// No netfilter in the kernel, no permission (CAP_NET_ADMIN), or a step that the kernel refuses; nothing is changed
/// then. Only without an answer it is unknown.
pub fn install(rules: &RuleSet) -> Result<(), InstallError> {
    let Batch { bytes, steps, last } = Batch::replacing(rules);
    match ask_kernel(&bytes, last)? {
        None => Ok(()),
        Some(Answer { sequence, errno }) => {
            let errno = Errno::from_raw_os_error(errno);
            let step = steps.get(sequence as usize).cloned();
            let step = step.unwrap_or_else(|| format!("take message {sequence} of the transaction"));
            Err(InstallError::Refused {
                step,
                errno,
                hint: hint(errno),
            })
        }
    }
}

/// Which chains of these rules are absent from the calling thread's network namespace, as `ip heddle inbound`.
///
/// # Errors
/// As [`install`]; nothing is changed.
pub fn missing(rules: &RuleSet) -> Result<Vec<String>, InstallError> {
    let mut missing = Vec::new();
    for table in &rules.tables {
        for chain in &table.chains {
            let name = format!("{} {} {}", table.family, Table::NAME, chain.name);
            match ask_kernel(&netlink::get_chain(table.family, chain), 0)? {
                None => {}
                Some(answer) if answer.errno == Errno::NOENT.raw_os_error() => missing.push(name),
                Some(answer) => {
                    let errno = Errno::from_raw_os_error(answer.errno);
                    return Err(InstallError::Refused {
                        step: format!("show chain {name}"),
                        errno,
                        hint: hint(errno),
                    });
                }
            }
        }
    }
    Ok(missing)
}

/// Moves the calling thread into the network namespace of this path, such as `/run/netns/NAME`.
///
/// # Errors
/// There is no such namespace, or no permission (CAP_SYS_ADMIN).
pub fn enter(path: &Path) -> Result<(), EnterError> {
    let error = |source| EnterError {
        path: path.to_owned(),
        source,
    };
    let namespace = File::open(path).map_err(error)?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|errno| error(errno.into()))
}

/// Sends messages and reads answers up to the one about message `last`; returns the first that is an error.
fn ask_kernel(bytes: &[u8], last: u32) -> Result<Option<Answer>, InstallError> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(rustix::net::netlink::NETFILTER),
    )
    .map_err(|errno| InstallError::Socket {
        errno,
        hint: hint(errno),
    })?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))
        .map_err(InstallError::Receive)?;
    // More than the system's default needs CAP_NET_ADMIN; without it the transaction is refused anyway, in better words.
    if sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES).is_err() {
        let _ = sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER_BYTES);
    }
    // Not connected and without an address, a netlink socket sends to the kernel.
    send(&socket, bytes, SendFlags::empty()).map_err(|errno| InstallError::Send {
        errno,
        bytes: bytes.len(),
        hint: hint(errno),
    })?;

    let mut buffer = vec![0; RECEIVE_BUFFER_BYTES];
    loop {
        let length = match recv(&socket, &mut buffer, RecvFlags::empty()) {
            Ok((length, _)) => length,
            Err(Errno::INTR) => continue,
            Err(Errno::AGAIN) => return Err(InstallError::Silent),
            Err(errno) => return Err(InstallError::Receive(errno)),
        };
        for answer in answers(&buffer[..length]) {
            if answer.errno != 0 {
                return Ok(Some(answer));
            }
            if answer.sequence == last {
                return Ok(None);
            }
        }
    }
}

fn hint(errno: Errno) -> &'static str {
    match errno {
        Errno::PERM | Errno::ACCESS => {
            "this needs the capability NET_ADMIN in the pod's network namespace; the container's securityContext must add it"
        }
        Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::NOENT | Errno::AFNOSUPPORT => {
            "the node's kernel lacks a part of nf_tables; it needs nf_tables, nft_chain_nat, nft_redir and nf_conntrack (modprobe nft_chain_nat nft_redir)"
        }
        Errno::NOBUFS | Errno::MSGSIZE | Errno::NOMEM => {
            "the node is short of memory, or there are too many rules"
        }
        Errno::BUSY => "another program is changing the firewall in this namespace; run again",
        _ => "nothing was changed; please report this with the node's kernel version",
    }
}
