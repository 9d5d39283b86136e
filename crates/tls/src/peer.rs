//! Who a peer is: the name in its verified certificate.

use heddle_mesh::{Identity, PeerId, SpiffeId};
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The SPIFFE ID in the first certificate's subject alternative names, beside or instead of a DNS name.
///
/// `None` when there is no certificate, no URI, more than one (SPIFFE X.509-SVID §2 allows one), or one that is no
/// SPIFFE ID. The chain must have been verified before.
pub fn peer_spiffe_id(certs: &[CertificateDer<'_>]) -> Option<SpiffeId> {
    let (_, cert) = X509Certificate::from_der(certs.first()?).ok()?;
    let names = cert.subject_alternative_name().ok()??;
    uris(&names.value.general_names).ok()?
}

/// The single DNS name of the first certificate's subject alternative names.
///
/// `None` when there is no certificate, no DNS name or more than one, or when it is no identity, or when URIs beside it
/// are not one SPIFFE ID, or one of another service account: a peer whose name is in doubt has no name. The chain must have been verified before (rustls has when a handshake is done).
pub fn peer_identity(certs: &[CertificateDer<'_>]) -> Option<Identity> {
    let (_, cert) = X509Certificate::from_der(certs.first()?).ok()?;
    identity(&cert.subject_alternative_name().ok()??.value.general_names)
}

/// Who the peer is: [`peer_identity`], or for a certificate without any DNS name [`peer_spiffe_id`].
pub fn peer_id(certs: &[CertificateDer<'_>]) -> Option<PeerId> {
    let (_, cert) = X509Certificate::from_der(certs.first()?).ok()?;
    let names = &cert.subject_alternative_name().ok()??.value.general_names;
    let is_dns = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(_));
    match names.iter().any(is_dns) {
        true => identity(names).map(PeerId::Dns),
        false => uris(names).ok()?.map(PeerId::Spiffe),
    }
}

fn identity(names: &[GeneralName<'_>]) -> Option<Identity> {
    let mut dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    let identity: Identity = match (dns.next(), dns.next()) {
        (Some(name), None) => name.parse().ok()?,
        _ => return None,
    };
    // Other authorities give other IDs to workloads (SPIRE, say); two names of the mesh's own forms must agree.
    let spiffe = uris(names).ok()?;
    let accounts = (
        spiffe.and_then(|id| id.service_account()),
        identity.service_account(),
    );
    match accounts {
        (Some(of_uri), Some(of_name)) if of_uri != of_name => None,
        _ => Some(identity),
    }
}

/// More than one URI, or one that is no SPIFFE ID.
struct InDoubt;

fn uris(names: &[GeneralName<'_>]) -> Result<Option<SpiffeId>, InDoubt> {
    let mut uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (None, _) => Ok(None),
        (Some(uri), None) => uri.parse().map(Some).map_err(|_| InDoubt),
        _ => Err(InDoubt),
    }
}
