//! What is asked for: a certificate signing request, parsed, and checked against the identity it must be for.
//!
//! Only the name and the public key of a request are ever used. Keys may be ECDSA on P-256 or P-384, Ed25519, or RSA of
//! 2048 to 4096 bits, signed with SHA-2: what Linkerd takes, without what is weak or slow.

use std::fmt;

use aws_lc_rs::digest;
use heddle_mesh::{Identity, SpiffeId};
use x509_parser::{
    certification_request::X509CertificationRequest,
    cri_attributes::ParsedCriAttribute,
    extensions::{GeneralName, ParsedExtension},
    oid_registry as oids,
    prelude::FromDer,
    public_key::PublicKey,
    x509::SubjectPublicKeyInfo,
};

/// A request with a P-256 key is half a kilobyte, one with a 4096-bit RSA key less than two.
pub const CSR_BYTES_MAX: usize = 16 * 1024;
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=4096;

/// A request that is well-formed and signed by the key that it asks for. For whom is yet to be seen.
#[derive(Debug)]
pub struct Csr {
    common_names: Vec<String>,
    dns_names: Vec<String>,
    uris: Vec<String>,
    other_names: Vec<&'static str>,
    spki: Vec<u8>,
    key_id: KeyId,
}

/// A request for exactly one identity. Nothing else can be signed.
#[derive(Debug)]
pub struct ValidCsr {
    identity: Identity,
    spiffe: Option<SpiffeId>,
    spki: Vec<u8>,
    key_id: KeyId,
}

/// The first 160 bits of the SHA-256 of a public key (RFC 7093 §2, method 1).
pub(crate) type KeyId = [u8; 20];

/// Why a request is malformed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// No bytes.
    #[error("certificate_signing_request is empty: expected a PKCS #10 request in DER")]
    Empty,
    /// More bytes than any request needs.
    #[error("certificate_signing_request has {0} bytes, at most {CSR_BYTES_MAX} are taken")]
    TooLarge(usize),
    /// Not DER, not PKCS #10, or something behind it.
    #[error("certificate_signing_request is not a PKCS #10 request in DER")]
    Malformed,
    /// A key that is not taken.
    #[error(
        "certificate_signing_request has a key or signature algorithm that is not taken: expected ECDSA P-256 or \
         P-384, Ed25519, or RSA of 2048 to 4096 bits, with SHA-256 or stronger"
    )]
    Algorithm,
    /// Not signed by its own key.
    #[error("certificate_signing_request is not signed by the key that it asks to certify")]
    Signature,
    /// More than one list of extensions, or of names, so that readers could disagree.
    #[error("certificate_signing_request asks for {0} more than once")]
    Ambiguous(&'static str),
}

/// Why a request is not for the identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MismatchError {
    /// Not exactly one DNS name.
    #[error(
        "certificate_signing_request has {found} DNS names in its subject alternative names: expected one, {expected}"
    )]
    DnsNames {
        /// How many there are.
        found: usize,
        /// The identity.
        expected: Identity,
    },
    /// A URI that is not the identity's own.
    #[error("certificate_signing_request has the URI {found}: expected none, or {expected}")]
    Uri {
        /// The URI asked for.
        found: Text,
        /// The identity's SPIFFE ID.
        expected: SpiffeId,
    },
    /// Names of other kinds.
    #[error(
        "certificate_signing_request has a subject alternative name of kind {0}: only one DNS name is taken"
    )]
    OtherName(&'static str),
    /// The DNS name is another.
    #[error("certificate_signing_request has the DNS name {found}: expected {expected}")]
    DnsName {
        /// The name asked for.
        found: Text,
        /// The identity.
        expected: Identity,
    },
    /// The subject's common name is another.
    #[error("certificate_signing_request has the common name {found}: expected none, or {expected}")]
    CommonName {
        /// The name asked for.
        found: Text,
        /// The identity.
        expected: Identity,
    },
}

/// Text from outside, printed short and without control characters.
#[derive(Clone, PartialEq, Eq)]
pub struct Text(pub String);

/// Reads a request and verifies that it is signed by its own key.
///
/// # Errors
/// The request is too large, malformed, ambiguous, of a weak or unknown algorithm, or wrongly signed.
pub fn parse(request: &[u8]) -> Result<Csr, CsrError> {
    match request.len() {
        0 => return Err(CsrError::Empty),
        bytes if bytes > CSR_BYTES_MAX => return Err(CsrError::TooLarge(bytes)),
        _ => {}
    }
    let (rest, csr) = X509CertificationRequest::from_der(request).map_err(|_| CsrError::Malformed)?;
    // A signature of whole bytes: the parser takes any number of unused bits, DER does not.
    if !rest.is_empty() || csr.signature_value.unused_bits != 0 {
        return Err(CsrError::Malformed);
    }
    let info = &csr.certification_request_info;
    if !key_taken(&info.subject_pki) || !signature_taken(&csr) {
        return Err(CsrError::Algorithm);
    }
    csr.verify_signature().map_err(|_| CsrError::Signature)?;

    let common_names = info
        .subject
        .iter_common_name()
        .map(|name| name.as_str().map(str::to_owned).map_err(|_| CsrError::Malformed));
    let common_names = common_names.collect::<Result<Vec<_>, _>>()?;
    let mut dns_names = Vec::new();
    let mut uris = Vec::new();
    let mut other_names = Vec::new();
    let mut requests = 0;
    let mut name_lists = 0;
    for attribute in info.iter_attributes() {
        let ParsedCriAttribute::ExtensionRequest(asked) = attribute.parsed_attribute() else {
            continue;
        };
        requests += 1;
        for extension in &asked.extensions {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    name_lists += 1;
                    for name in &names.general_names {
                        match name {
                            GeneralName::DNSName(name) => dns_names.push((*name).to_owned()),
                            GeneralName::URI(name) => uris.push((*name).to_owned()),
                            other => other_names.push(kind(other)),
                        }
                    }
                }
                ParsedExtension::ParseError { .. } => return Err(CsrError::Malformed),
                // Leaves have the same usages whatever is asked for.
                _ => {}
            }
        }
    }
    if requests > 1 {
        return Err(CsrError::Ambiguous("extensions"));
    }
    if name_lists > 1 {
        return Err(CsrError::Ambiguous("subject alternative names"));
    }
    let spki = info.subject_pki.raw.to_vec();
    let key_id = key_id(&info.subject_pki.subject_public_key.data);
    Ok(Csr {
        common_names,
        dns_names,
        uris,
        other_names,
        spki,
        key_id,
    })
}

impl Csr {
    /// Checks that the request is for `identity` and nothing else: one DNS name that equals it, no name of another
    /// kind, and a common name that is empty or equal. With `spiffe`, the leaf will have that URI too, and the request
    /// may ask for it, and for no other.
    ///
    /// # Errors
    /// It is for something else, or for more.
    pub fn for_identity(
        self,
        identity: &Identity,
        spiffe: Option<SpiffeId>,
    ) -> Result<ValidCsr, MismatchError> {
        let Self {
            common_names,
            dns_names,
            uris,
            other_names,
            spki,
            key_id,
        } = self;
        let is = |name: &str| name.parse::<Identity>().is_ok_and(|name| name == *identity);
        if let Some(kind) = other_names.first() {
            return Err(MismatchError::OtherName(kind));
        }
        match (&spiffe, uris.as_slice()) {
            (_, []) => {}
            (None, _) => return Err(MismatchError::OtherName("URI")),
            (Some(expected), [uri]) if uri == expected.as_str() => {}
            (Some(expected), _) => {
                let found = Text(uris.join(" "));
                let expected = expected.clone();
                return Err(MismatchError::Uri { found, expected });
            }
        }
        match dns_names.as_slice() {
            [name] if is(name) => {}
            [name] => {
                return Err(MismatchError::DnsName {
                    found: Text(name.clone()),
                    expected: identity.clone(),
                });
            }
            names => {
                return Err(MismatchError::DnsNames {
                    found: names.len(),
                    expected: identity.clone(),
                });
            }
        }
        if let Some(name) = common_names
            .into_iter()
            .find(|name| !name.is_empty() && !is(name))
        {
            return Err(MismatchError::CommonName {
                found: Text(name),
                expected: identity.clone(),
            });
        }
        Ok(ValidCsr {
            identity: identity.clone(),
            spiffe,
            spki,
            key_id,
        })
    }
}

impl ValidCsr {
    /// For whom.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The URI that the leaf gets beside its name.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        self.spiffe.as_ref()
    }

    /// The public key, as a SubjectPublicKeyInfo in DER.
    pub(crate) fn spki(&self) -> &[u8] {
        &self.spki
    }

    pub(crate) fn key_id(&self) -> &KeyId {
        &self.key_id
    }
}

pub(crate) fn key_id(public_key: &[u8]) -> KeyId {
    let hash = digest::digest(&digest::SHA256, public_key);
    *hash
        .as_ref()
        .first_chunk()
        .expect("SHA-256 has 32 bytes, more than the 20 of an identifier")
}

fn key_taken(spki: &SubjectPublicKeyInfo<'_>) -> bool {
    let algorithm = &spki.algorithm;
    if algorithm.algorithm == oids::OID_KEY_TYPE_EC_PUBLIC_KEY {
        let curve = algorithm
            .parameters
            .as_ref()
            .and_then(|parameters| parameters.as_oid().ok());
        return curve.is_some_and(|curve| curve == oids::OID_EC_P256 || curve == oids::OID_NIST_EC_P384);
    }
    if algorithm.algorithm == oids::OID_PKCS1_RSAENCRYPTION {
        return matches!(spki.parsed(), Ok(PublicKey::RSA(key)) if RSA_BITS.contains(&key.key_size()));
    }
    algorithm.algorithm == oids::OID_SIG_ED25519
}

fn signature_taken(csr: &X509CertificationRequest<'_>) -> bool {
    [
        oids::OID_SIG_ECDSA_WITH_SHA256,
        oids::OID_SIG_ECDSA_WITH_SHA384,
        oids::OID_SIG_ED25519,
        oids::OID_PKCS1_SHA256WITHRSA,
        oids::OID_PKCS1_SHA384WITHRSA,
        oids::OID_PKCS1_SHA512WITHRSA,
    ]
    .contains(&csr.signature_algorithm.algorithm)
}

fn kind(name: &GeneralName<'_>) -> &'static str {
    match name {
        GeneralName::OtherName(..) => "other name",
        GeneralName::RFC822Name(_) => "e-mail",
        GeneralName::DNSName(_) => "DNS",
        GeneralName::X400Address(_) => "X.400",
        GeneralName::DirectoryName(_) => "directory",
        GeneralName::EDIPartyName(_) => "EDI party",
        GeneralName::URI(_) => "URI",
        GeneralName::IPAddress(_) => "IP address",
        GeneralName::RegisteredID(_) => "registered ID",
        GeneralName::Invalid(..) => "unknown",
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const CHARS_MAX: usize = 256;
        write!(
            f,
            "`{}`",
            self.0
                .chars()
                .take(CHARS_MAX)
                .collect::<String>()
                .escape_default()
        )
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests;
