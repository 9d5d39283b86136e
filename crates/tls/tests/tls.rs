//! This crate over real sockets. One test program, so that it links once.

#[path = "tls/channel.rs"]
mod channel;
#[path = "tls/credentials.rs"]
mod credentials;
#[path = "tls/handshake.rs"]
mod handshake;
#[path = "tls/revocation.rs"]
mod revocation;
#[path = "tls/spiffe.rs"]
mod spiffe;
#[path = "tls/support.rs"]
mod support;
