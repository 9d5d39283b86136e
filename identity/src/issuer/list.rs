//! Certificate revocation lists (RFC 5280 §5): which leaves of this issuer are no longer good, though not yet over.
//!
//! A list names serial numbers. Identities as a whole, which X.509 has no word for, stand in an extension of ours that
//! others pass over ([`heddle_tls::revocation`] reads it).

use std::time::SystemTime;

use heddle_tls::revocation::REVOKED_IDENTITIES_OID;

use super::{AUTHORITY_KEY_IDENTIFIER, Issuer, SignError, date_time, whole_seconds};
use crate::{der, revoked::Revoked};

const CRL_NUMBER: &[u8] = &[0x55, 0x1d, 20];
const UTF8_STRING: u8 = 0x0c;

impl Issuer {
    /// Signs the list of `revoked`, good from `since` to `until`.
    ///
    /// # Errors
    /// The issuer's certificate does not allow it, or the library fails.
    pub fn sign_list(
        &self,
        revoked: &Revoked,
        since: SystemTime,
        until: SystemTime,
    ) -> Result<Vec<u8>, SignError> {
        if !self.signs_lists {
            return Err(SignError::NotForLists);
        }
        let Revoked { serials, identities } = revoked;
        let (this_update, next_update) = (date_time(since)?, date_time(whole_seconds(until))?);
        // Grows with time, whichever replica signs.
        let number = since
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_err(|_| SignError::Time)?
            .as_millis() as u64;
        let mut tbs = Vec::with_capacity(256 + 40 * serials.len());
        der::nest(&mut tbs, der::SEQUENCE, |out| {
            // Version 2.
            der::positive(out, &[1]);
            out.extend_from_slice(self.algorithm);
            out.extend_from_slice(&self.subject);
            der::time(out, this_update);
            der::time(out, next_update);
            // An empty list is written by leaving it out.
            if !serials.is_empty() {
                der::nest(out, der::SEQUENCE, |out| {
                    for serial in serials {
                        der::nest(out, der::SEQUENCE, |out| {
                            der::positive(out, serial);
                            // When it was revoked is not known; that it is, is.
                            der::time(out, this_update);
                        });
                    }
                });
            }
            der::nest(out, 0xa0, |out| {
                der::nest(out, der::SEQUENCE, |out| {
                    der::extension(out, AUTHORITY_KEY_IDENTIFIER, false, |out| {
                        der::nest(out, der::SEQUENCE, |out| der::value(out, 0x80, &self.key_id));
                    });
                    der::extension(out, CRL_NUMBER, false, |out| {
                        der::positive(out, &number.to_be_bytes());
                    });
                    if !identities.is_empty() {
                        der::extension(out, REVOKED_IDENTITIES_OID, false, |out| {
                            der::nest(out, der::SEQUENCE, |out| {
                                for identity in identities {
                                    der::value(out, UTF8_STRING, identity.as_str().as_bytes());
                                }
                            });
                        });
                    }
                });
            });
        });
        self.signed(&tbs)
    }
}
