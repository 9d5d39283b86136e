//! The mesh's TLS: trust bundles, a leaf certificate that renews itself, rustls configurations that follow both, and the
//! control plane's connections on top of them.
//!
//! In go trust anchors (PEM), an identity and a service-account token; out come rustls configurations that always use
//! the newest leaf and roots, a channel to control-plane services, and an accept loop that tells gRPC services who
//! calls. Private keys stay in memory. This crate never knows Kubernetes, nor whether a peer may do what it asks for:
//! it says who the peer is, and whether its certificate was revoked.
//!
//! One provider (aws-lc-rs), TLS 1.3 only, X25519MLKEM768 and AES-128-GCM first, no resumption.

pub mod bundle;
pub mod certify;
pub mod connect;
pub mod leaf;
pub mod metrics;
pub mod peer;
pub mod pieces;
pub mod revocation;
pub mod roots;
pub mod serve;
pub mod store;
mod verify;

use std::sync::{Arc, OnceLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};

/// Certificates that a peer may show, the leaf included: a leaf and one or two intermediates are what meshes have.
pub const CHAIN_MAX: usize = 5;
/// Bytes of all of them. Each is verified before anybody is known, so this is work that strangers can ask for.
pub const CHAIN_BYTES_MAX: usize = 16 * 1024;

pub use bundle::{TrustBundle, TrustError};
pub use certify::CertifyLoop;
pub use connect::{ClientAuth, ControlAddr, ControlChannel};
pub use heddle_mesh::{Identity, PeerId, TrustDomain};
pub use leaf::{CertifyKey, LeafError, LocalCredentials};
pub use metrics::CertMetrics;
pub use peer::{peer_id, peer_identity, peer_spiffe_id};
pub use revocation::{PeerLeaf, Revocations};
pub use rustls;
pub use serve::Peer;
pub use store::{Readiness, Store, StoreError};

/// The provider of all mesh TLS: aws-lc-rs with the mesh's preferences.
///
/// AES-128-GCM comes first because it is the fastest on hardware with AES instructions and is of the strength of the
/// P-256 keys; the hybrid key exchange comes first because recorded traffic must stay secret.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| {
        use aws_lc_rs::{cipher_suite, kx_group};
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![
                kx_group::X25519MLKEM768,
                kx_group::X25519,
                kx_group::SECP256R1,
                kx_group::SECP384R1,
            ],
            ..aws_lc_rs::default_provider()
        })
    }))
}
