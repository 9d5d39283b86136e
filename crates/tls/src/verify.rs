//! The verifiers of peers' certificates: rustls' own, behind bounds on what a stranger may make it verify, and with the
//! revocation of whole identities, which X.509 has no word for.

use std::sync::Arc;

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

use crate::{CHAIN_BYTES_MAX, CHAIN_MAX, TrustBundle, peer_identity, provider, revocation::Revocations};

#[derive(Debug)]
struct Clients {
    inner: Arc<dyn ClientCertVerifier>,
    revocations: Revocations,
}

#[derive(Debug)]
struct Servers {
    inner: Arc<dyn ServerCertVerifier>,
    revocations: Revocations,
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
    }))
}

/// Verifies servers.
pub(crate) fn servers(
    roots: &TrustBundle,
    revocations: &Revocations,
) -> Result<Arc<dyn ServerCertVerifier>, ServerVerifierError> {
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
        revocations: revocations.clone(),
    }))
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

impl ClientCertVerifier for Clients {
    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        bounded(leaf, intermediates)?;
        let verified = self.inner.verify_client_cert(leaf, intermediates, now)?;
        not_revoked(leaf, &self.revocations)?;
        Ok(verified)
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
        let verified = self
            .inner
            .verify_server_cert(leaf, intermediates, name, ocsp, now)?;
        not_revoked(leaf, &self.revocations)?;
        Ok(verified)
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
