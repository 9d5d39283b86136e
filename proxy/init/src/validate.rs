//! Whether this pod's connections are redirected: what the init container `linkerd-network-validator` runs where a CNI
//! plugin, rather than an init container, sets the rules.
//!
//! The validator listens where the proxy will listen and connects to an address far away. With redirection in force
//! the connection arrives at its own listener; without, it fails or ends elsewhere, and the pod must not start: its
//! traffic would bypass the proxy.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Exit code of a validator that found no redirection. Linkerd's own number: whoever repairs pods looks for it.
pub const EXIT_NOT_REDIRECTED: u8 = 95;

/// Why the pod is not known to be redirected.
#[derive(Debug, thiserror::Error)]
pub enum ValidateError {
    /// The proxy's port is taken, or the address is not the pod's.
    #[error("failed to listen on {address}, where redirected connections arrive")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// No connection was redirected.
    #[error(
        "this pod's connections are not redirected to its proxy: none to {connect} arrived at {listen} within {} s (the \
         last try: {last}). The CNI plugin linkerd-cni did not set this pod up: see whether its DaemonSet runs on this \
         node (kubectl -n linkerd-cni get pods -o wide). Deleting the pod sets its network up anew; the repair \
         controller does so",
        .timeout.as_secs_f64()
    )]
    NotRedirected {
        /// Where the validator connected to.
        connect: SocketAddr,
        /// Where the connection should have arrived.
        listen: SocketAddr,
        /// For how long it tried.
        timeout: Duration,
        /// What the last try came to.
        last: String,
    },
}

const BETWEEN_TRIES: Duration = Duration::from_millis(200);
/// A redirected connection is at the listener as soon as it is established; the rest is scheduling.
const ARRIVAL_TIMEOUT: Duration = Duration::from_millis(500);

/// Connects to `connect` until a connection arrives at `listen`, for at most `timeout`.
///
/// # Errors
/// The listener cannot be had, or the time is over.
pub fn validate(connect: SocketAddr, listen: SocketAddr, timeout: Duration) -> Result<(), ValidateError> {
    let deadline = Instant::now() + timeout;
    let taken = |source| ValidateError::Listen {
        address: listen,
        source,
    };
    let listener = TcpListener::bind(listen).map_err(taken)?;
    listener.set_nonblocking(true).map_err(taken)?;
    let mut last = "there was no time for one".to_owned();
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ValidateError::NotRedirected {
                connect,
                listen,
                timeout,
                last,
            });
        }
        match attempt(connect, &listener, left) {
            Ok(()) => return Ok(()),
            Err(error) => last = error,
        }
        thread::sleep(BETWEEN_TRIES.min(deadline.saturating_duration_since(Instant::now())));
    }
}

/// One connection, and whether it arrived.
fn attempt(connect: SocketAddr, listener: &TcpListener, left: Duration) -> Result<(), String> {
    let stream = TcpStream::connect_timeout(&connect, left)
        .map_err(|error| format!("connecting to {connect} failed: {error}"))?;
    let own = stream.local_addr().map_err(|error| error.to_string())?;
    let deadline = Instant::now() + ARRIVAL_TIMEOUT.min(left);
    loop {
        match listener.accept() {
            // Compared by address, so that a connection of somebody else proves nothing.
            Ok((_, peer)) if same(peer, own) => return Ok(()),
            Ok(_) | Err(_) if Instant::now() >= deadline => {
                return Err(format!("{connect} itself answered"));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let wait = deadline.saturating_duration_since(Instant::now());
                let wait = Timespec::try_from(wait).map_err(|error| error.to_string())?;
                poll(&mut [PollFd::new(listener, PollFlags::IN)], Some(&wait))
                    .map_err(|error| error.to_string())?;
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// A listener for both families shows IPv4 peers in IPv6's clothes.
fn same(one: SocketAddr, other: SocketAddr) -> bool {
    one.port() == other.port() && one.ip().to_canonical() == other.ip().to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(300);

    fn loopback(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// A port that was free a moment ago.
    fn free() -> SocketAddr {
        let listener = TcpListener::bind(loopback(0)).expect("loopback has free ports");
        listener.local_addr().expect("a bound listener has an address")
    }

    #[test]
    fn a_connection_that_arrives_is_proof() {
        let address = free();
        validate(address, address, TIMEOUT).expect("connecting to the listener itself arrives there");
    }

    #[test]
    fn an_answer_from_elsewhere_is_no_proof() {
        let other = TcpListener::bind(loopback(0)).expect("loopback has free ports");
        let connect = other.local_addr().expect("a bound listener has an address");
        let error = validate(connect, free(), TIMEOUT).expect_err("it arrived elsewhere");
        let text = error.to_string();
        assert!(text.contains(&format!("{connect} itself answered")), "{text}");
    }

    #[test]
    fn a_refused_connection_is_no_proof() {
        let error = validate(free(), free(), TIMEOUT).expect_err("nobody is there");
        assert!(error.to_string().contains("failed"), "{error}");
    }

    #[test]
    fn a_taken_port_is_said() {
        let other = TcpListener::bind(loopback(0)).expect("loopback has free ports");
        let listen = other.local_addr().expect("a bound listener has an address");
        let error = validate(free(), listen, TIMEOUT).expect_err("the port is taken");
        assert!(matches!(error, ValidateError::Listen { address, .. } if address == listen));
    }
}
