//! The verifiers of peers' certificates: rustls' own, behind bounds on what a stranger may make it verify and a memory of
//! chains that were found good, and with the revocation of whole identities, which X.509 has no word for.

mod known;

use std::sync::Arc;

use heddle_mesh::PeerId;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::{
        VerifierBuilderError as ServerVerifierError, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use crate::{
    CHAIN_BYTES_MAX, CHAIN_MAX, TrustBundle, peer_id, peer_identity, provider, revocation::Revocations,
};
use known::Known;

#[derive(Debug)]
struct Clients {
    inner: Arc<dyn ClientCertVerifier>,
    revocations: Revocations,
    /// None with revocation lists: these have times of their own.
    known: Option<Known>,
}

/// Verifies servers by the name that they are asked for.
#[derive(Debug)]
pub(crate) struct Servers {
    inner: Arc<dyn ServerCertVerifier>,
    roots: TrustBundle,
    revocations: Revocations,
    /// None with revocation lists: these have times of their own.
    known: Option<Known>,
}

/// Verifies a server by another identity than the name that it is asked for: a SPIFFE ID, say, which no client can ask
/// for.
#[derive(Debug)]
struct Named {
    servers: Arc<Servers>,
    id: PeerId,
}

/// Verifies clients that show a certificate, and lets in those that show none.
pub(crate) fn clients(
    roots: &TrustBundle,
    revocations: &Revocations,
) -> Result<Arc<dyn ClientCertVerifier>, VerifierBuilderError> {
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots.anchors()), provider())
        // The hints would only lengthen the handshake: a meshed peer has one certificate to show.
        .clear_root_hint_subjects()
        .allow_unauthenticated();
    if !revocations.is_empty() {
        builder = builder
            .with_crls(revocations.ders())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration();
    }
    Ok(Arc::new(Clients {
        inner: builder.build()?,
        revocations: revocations.clone(),
        known: revocations.is_empty().then(Known::default),
    }))
}

/// Verifies servers.
pub(crate) fn servers(
    roots: &TrustBundle,
    revocations: &Revocations,
) -> Result<Arc<Servers>, ServerVerifierError> {
    let mut builder = WebPkiServerVerifier::builder_with_provider(Arc::clone(roots.anchors()), provider());
    if !revocations.is_empty() {
        builder = builder
            .with_crls(revocations.ders())
            .only_check_end_entity_revocation()
            .allow_unknown_revocation_status()
            .enforce_revocation_expiration();
    }
    Ok(Arc::new(Servers {
        inner: builder.build()?,
        roots: roots.clone(),
        revocations: revocations.clone(),
        known: revocations.is_empty().then(Known::default),
    }))
}

/// Verifies a server that must be `id`, whatever name it is asked for.
pub(crate) fn named(servers: &Arc<Servers>, id: PeerId) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Named {
        servers: Arc::clone(servers),
        id,
    })
}

/// Looked at before any signature is verified.
fn bounded(leaf: &CertificateDer<'_>, intermediates: &[CertificateDer<'_>]) -> Result<(), Error> {
    let bytes = leaf.len() + intermediates.iter().map(|cert| cert.len()).sum::<usize>();
    if intermediates.len() >= CHAIN_MAX || bytes > CHAIN_BYTES_MAX {
        return Err(Error::General(format!(
            "the peer's chain has {} certificates and {bytes} bytes: at most {CHAIN_MAX} and {CHAIN_BYTES_MAX} are taken",
            intermediates.len() + 1
        )));
    }
    Ok(())
}

fn not_revoked(leaf: &CertificateDer<'_>, revocations: &Revocations) -> Result<(), Error> {
    let revoked = !revocations.is_empty()
        && peer_identity(std::slice::from_ref(leaf))
            .is_some_and(|identity| revocations.revokes_identity(&identity));
    if revoked {
        Err(Error::InvalidCertificate(CertificateError::Revoked))
    } else {
        Ok(())
    }
}

impl Servers {
    /// Whether the chain leads to the anchors and was not revoked, whoever it is of.
    fn verify_chain(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let ders: Vec<_> = self.revocations.ders().collect();
        let lists = ders
            .iter()
            .map(|der| webpki::BorrowedCertRevocationList::from_der(der).map(Into::into))
            .collect::<Result<Vec<webpki::CertRevocationList<'_>>, _>>()
            .map_err(|error| Error::General(format!("a revocation list cannot be used: {error}")))?;
        let lists: Vec<_> = lists.iter().collect();
        let revocation = match lists.is_empty() {
            true => None,
            false => Some(
                webpki::RevocationOptionsBuilder::new(&lists)
                    .map_err(|_| Error::General("no revocation lists".to_owned()))?
                    .with_depth(webpki::RevocationCheckDepth::EndEntity)
                    .with_status_policy(webpki::UnknownStatusPolicy::Allow)
                    .with_expiration_policy(webpki::ExpirationPolicy::Enforce)
                    .build(),
            ),
        };
        let bad = |error: webpki::Error| {
            Error::InvalidCertificate(match error {
                webpki::Error::CertRevoked => CertificateError::Revoked,
                webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
                other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
            })
        };
        webpki::EndEntityCert::try_from(leaf)
            .and_then(|cert| {
                cert.verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    &self.roots.anchors().roots,
                    intermediates,
                    now,
                    webpki::KeyUsage::server_auth(),
                    revocation,
                    None,
                )
                .map(drop)
            })
            .map_err(bad)?;
        not_revoked(leaf, &self.revocations)
    }
}

impl ServerCertVerifier for Named {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _asked: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let PeerId::Dns(name) = &self.id {
            let name = ServerName::try_from(name.as_str())
                .map_err(|_| Error::InvalidCertificate(CertificateError::NotValidForName))?;
            return self
                .servers
                .verify_server_cert(leaf, intermediates, &name, ocsp, now);
        }
        bounded(leaf, intermediates)?;
        self.servers.verify_chain(leaf, intermediates, now)?;
        match peer_id(std::slice::from_ref(leaf)) {
            Some(id) if id == self.id => Ok(ServerCertVerified::assertion()),
            _ => Err(Error::InvalidCertificate(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.servers.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.servers.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Clients {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        bounded(leaf, intermediates)?;
        let verify = || self.inner.verify_client_cert(leaf, intermediates, now).map(drop);
        match &self.known {
            Some(known) => known.or_verify("", leaf, intermediates, now, verify)?,
            None => verify()?,
        }
        not_revoked(leaf, &self.revocations)?;
        Ok(ClientCertVerified::assertion())
    }

    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        bounded(leaf, intermediates)?;
        let verify = || {
            let verified = self
                .inner
                .verify_server_cert(leaf, intermediates, name, ocsp, now);
            verified.map(drop)
        };
        match &self.known {
            Some(known) => known.or_verify(&name.to_str(), leaf, intermediates, now, verify)?,
            None => verify()?,
        }
        not_revoked(leaf, &self.revocations)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
