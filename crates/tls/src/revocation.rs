//! Revocation lists: which leaves are no longer good, though not yet over.
//!
//! The identity service serves one list (RFC 5280 §5) per issuer in PEM; [`fetch`] keeps a [`Store`](crate::Store)'s
//! lists current. Verifiers judge by them in each handshake, and [`Store::until_revoked`](crate::Store::until_revoked)
//! ends connections that live.
//!
//! In doubt: a list that has grown old denies every leaf of its issuer. A leaf whose issuer has no list is judged without
//! one, since right after an issuer's rotation there may be none for the old or the new; a list that was known is
//! kept until it is over, so that what was revoked stays so.

pub mod fetch;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_mesh::Identity;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, pem, pem::PemObject};
use x509_parser::{
    prelude::{FromDer, X509Certificate},
    revocation_list::CertificateRevocationList,
};

use crate::{leaf::system_time, peer::peer_identity};

/// Where the identity service serves its lists: a path beside its gRPC methods.
pub const LISTS_PATH: &str = "/heddle.dev.Revocations/List";
/// The first segment of [`LISTS_PATH`].
pub const LISTS_SERVICE: &str = "heddle.dev.Revocations";
/// The content of the OBJECT IDENTIFIER 2.25.147695787842734683186181727200449890849 (a UUID, X.667), under which a
/// list's extension holds a SEQUENCE OF UTF8String: identities none of whose leaves is good.
pub const REVOKED_IDENTITIES_OID: &[u8] = &[
    0x69, 0x81, 0xde, 0x9d, 0x96, 0xa3, 0xca, 0x9b, 0xba, 0xac, 0x95, 0x9a, 0xb2, 0x8f, 0x8f, 0xd0, 0xf2,
    0xfe, 0x94, 0x21,
];
/// Ten thousand revocations are half of this.
pub(crate) const BYTES_MAX: usize = 1024 * 1024;
/// The issuer's, and those of issuers that it replaced.
const LISTS_MAX: usize = 16;

/// Lists of some issuers. Cheap to clone; empty by default, which revokes nothing.
#[derive(Clone, Debug, Default)]
pub struct Revocations(Arc<[List]>);

#[derive(Clone, Debug)]
struct List {
    der: CertificateRevocationListDer<'static>,
    /// The issuer's name, in its very bytes.
    issuer: Vec<u8>,
    /// The issuer's key, by identifier: issuers of one name follow each other.
    key_id: Option<Vec<u8>>,
    until: SystemTime,
    serials: BTreeSet<Vec<u8>>,
    identities: BTreeSet<Identity>,
}

/// What is remembered of a peer's leaf, to judge it again when lists change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerLeaf {
    issuer: Vec<u8>,
    key_id: Option<Vec<u8>>,
    serial: Vec<u8>,
    identity: Option<Identity>,
}

/// Why a text holds no lists.
#[derive(Debug, thiserror::Error)]
pub enum RevocationsError {
    /// More text than lists can have.
    #[error("revocation lists: {0} bytes of PEM, at most {BYTES_MAX} are read")]
    TooLarge(usize),
    /// No list, or too many.
    #[error("revocation lists: found {0}, expected 1 to {LISTS_MAX}")]
    Number(usize),
    /// The text is not PEM.
    #[error("revocation lists: not valid PEM")]
    Pem(#[source] pem::Error),
    /// A list that cannot be read.
    #[error("revocation lists: list {0} is not valid")]
    List(usize),
    /// A list that the verifier does not take.
    #[error("revocation lists: list {number} cannot be used")]
    Unusable {
        /// Counted from one.
        number: usize,
        /// What the verifier said.
        source: webpki::Error,
    },
}

impl Revocations {
    /// Reads one or more lists in PEM.
    ///
    /// # Errors
    /// None, too many, or one that is broken: lists are taken whole or not at all.
    pub fn from_pem(text: &[u8]) -> Result<Self, RevocationsError> {
        if text.len() > BYTES_MAX {
            return Err(RevocationsError::TooLarge(text.len()));
        }
        let mut lists = Vec::new();
        for der in CertificateRevocationListDer::pem_slice_iter(text) {
            let der = der.map_err(RevocationsError::Pem)?;
            let number = lists.len() + 1;
            if number > LISTS_MAX {
                return Err(RevocationsError::Number(number));
            }
            webpki::BorrowedCertRevocationList::from_der(&der)
                .map_err(|source| RevocationsError::Unusable { number, source })?;
            lists.push(List::read(der).ok_or(RevocationsError::List(number))?);
        }
        if lists.is_empty() {
            return Err(RevocationsError::Number(0));
        }
        Ok(Self(lists.into()))
    }

    /// These, and of `older` what they do not replace and what is not over at `now`.
    #[must_use]
    pub fn and_older(self, older: &Self, now: SystemTime) -> Self {
        let mut lists = self.0.to_vec();
        for list in older.0.iter() {
            let replaced = lists.iter().any(|new| new.of_same_issuer(list));
            if !replaced && list.until > now && lists.len() < LISTS_MAX {
                lists.push(list.clone());
            }
        }
        Self(lists.into())
    }

    /// Whether there is no list.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the lists name the leaf, by serial number or identity.
    pub fn revokes(&self, leaf: &PeerLeaf) -> bool {
        let PeerLeaf {
            issuer,
            key_id,
            serial,
            identity,
        } = leaf;
        self.0.iter().any(|list| {
            let issued = list.issuer == *issuer && (list.key_id.is_none() || list.key_id == *key_id);
            (issued && list.serials.contains(serial))
                || identity
                    .as_ref()
                    .is_some_and(|name| list.identities.contains(name))
        })
    }

    /// Whether an identity is revoked as a whole.
    pub(crate) fn revokes_identity(&self, identity: &Identity) -> bool {
        self.0.iter().any(|list| list.identities.contains(identity))
    }

    /// The lists as verifiers want them.
    pub(crate) fn ders(&self) -> impl Iterator<Item = CertificateRevocationListDer<'static>> + '_ {
        self.0.iter().map(|list| list.der.clone())
    }
}

impl List {
    fn read(der: CertificateRevocationListDer<'static>) -> Option<Self> {
        let (rest, list) = CertificateRevocationList::from_der(&der).ok()?;
        // A list without an end could not be told from one that was forgotten.
        let until = system_time(list.next_update()?.timestamp());
        if !rest.is_empty() {
            return None;
        }
        let mut identities = BTreeSet::new();
        let mut key_id = None;
        for extension in list.extensions() {
            if extension.oid.as_bytes() == REVOKED_IDENTITIES_OID {
                let (rest, names) = Vec::<String>::from_der(extension.value).ok()?;
                if !rest.is_empty() {
                    return None;
                }
                for name in names {
                    identities.insert(name.parse().ok()?);
                }
            }
            if let x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) =
                extension.parsed_extension()
            {
                key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
            }
        }
        let serials = list
            .iter_revoked_certificates()
            .map(|revoked| unsigned(revoked.raw_serial()))
            .collect();
        let issuer = list.issuer().as_raw().to_vec();
        Some(Self {
            issuer,
            key_id,
            until,
            serials,
            identities,
            der,
        })
    }

    fn of_same_issuer(&self, other: &Self) -> bool {
        self.issuer == other.issuer && self.key_id == other.key_id
    }
}

/// Lists are equal when their bytes are.
impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        self.ders().eq(other.ders())
    }
}

impl Eq for Revocations {}

impl PeerLeaf {
    /// Of a verified chain, leaf first; `None` without a certificate.
    pub fn of(certs: &[CertificateDer<'_>]) -> Option<Self> {
        let (_, leaf) = X509Certificate::from_der(certs.first()?).ok()?;
        let key_id = leaf
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                x509_parser::extensions::ParsedExtension::AuthorityKeyIdentifier(id) => {
                    id.key_identifier.as_ref().map(|id| id.0.to_vec())
                }
                _ => None,
            });
        Some(Self {
            issuer: leaf.issuer().as_raw().to_vec(),
            key_id,
            serial: unsigned(leaf.raw_serial()),
            identity: peer_identity(certs),
        })
    }
}

/// Writes a list's DER as PEM.
pub fn to_pem(out: &mut String, der: &[u8]) {
    use base64::Engine as _;
    out.push_str("-----BEGIN X509 CRL-----\n");
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    for line in text.as_bytes().chunks(64) {
        out.extend(line.iter().map(|byte| char::from(*byte)));
        out.push('\n');
    }
    out.push_str("-----END X509 CRL-----\n");
}

/// A positive INTEGER's content without the zeros before it.
fn unsigned(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    bytes[zeros..].to_vec()
}

/// How long a fetched list is trusted to be the newest.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists are taken whole or not at all; whatever is taken can be asked, and is the same when it is read again.
    #[test]
    fn fuzz_revocations() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let mut pem = String::new();
            to_pem(&mut pem, bytes);
            for text in [bytes, pem.as_bytes()] {
                let Ok(revocations) = Revocations::from_pem(text) else {
                    continue;
                };
                assert!(!revocations.is_empty());
                let mut again = String::new();
                for der in revocations.ders() {
                    to_pem(&mut again, &der);
                }
                assert_eq!(Revocations::from_pem(again.as_bytes()).ok(), Some(revocations));
            }
        });
    }
}
