//! Brings the rules into the kernel.

use std::time::Duration;

use rustix::{
    io::Errno,
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
        sockopt,
    },
};

use crate::{
    netlink::{Answer, Batch, answers},
    rules::RuleSet,
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
    let batch = Batch::replacing(rules);
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::NETFILTER),
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
    let bytes = batch.bytes.len();
    // Not connected and without an address, a netlink socket sends to the kernel.
    send(&socket, &batch.bytes, SendFlags::empty()).map_err(|errno| InstallError::Send {
        errno,
        bytes,
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
        for Answer { sequence, errno } in answers(&buffer[..length]) {
            if errno != 0 {
                let errno = Errno::from_raw_os_error(errno);
                let step = batch.steps.get(sequence as usize).cloned();
                let step = step.unwrap_or_else(|| format!("take message {sequence} of the transaction"));
                return Err(InstallError::Refused {
                    step,
                    errno,
                    hint: hint(errno),
                });
            }
            if sequence == batch.last {
                return Ok(());
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
