//! Who a peer is: the name in its verified certificate.

use heddle_mesh::Identity;
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The single DNS name of the first certificate's subject alternative names.
///
/// `None` when there is no certificate, no DNS name or more than one, or when it is no identity: a peer whose name is
/// in doubt has no name. The chain must have been verified before (rustls has when a handshake is done).
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<Identity> {
    let (_, cert) = X509Certificate::from_der(certs.first()?).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    let mut dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    match (dns.next(), dns.next()) {
        (Some(name), None) => name.parse().ok(),
        _ => None,
    }
}
