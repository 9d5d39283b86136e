//! What is revoked: serial numbers and identities, one a line, as Git keeps them.
//!
//! ```text
//! # Stolen from node 7, INC-4711
//! serial 4f0c21d3a9b84e7761c25f90ab3d1e08
//! identity batch.payments.serviceaccount.identity.linkerd.cluster.local
//! ```
//! A serial number stands in the Event and the log line of each certificate. An identity that is listed gets no new
//! certificate, and none of its old ones is good, until its line is taken away.

use std::collections::BTreeSet;

use heddle_mesh::Identity;

use crate::csr::Text;

/// Proxies read lists of at most 1 MiB.
const ENTRIES_MAX: usize = 10_000;
const TEXT_BYTES_MAX: usize = 1024 * 1024;
/// RFC 5280 §4.1.2.2.
const SERIAL_BYTES_MAX: usize = 20;

/// The list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revoked {
    /// Big-endian, without leading zeros.
    pub serials: BTreeSet<Vec<u8>>,
    /// All certificates of these.
    pub identities: BTreeSet<Identity>,
}

/// Why a text is no list. It is taken whole or not at all.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RevokedError {
    /// Too much of it.
    #[error("more than {ENTRIES_MAX} revocations, or {TEXT_BYTES_MAX} bytes")]
    TooLarge,
    /// A line of another form.
    #[error("line {number}: expected `serial HEX` or `identity NAME`, found {found}")]
    Line {
        /// Counted from one.
        number: usize,
        /// The line.
        found: Text,
    },
    /// Not a serial number.
    #[error(
        "line {number}: expected the 1 to {SERIAL_BYTES_MAX} bytes of a serial number in hexadecimal digits, found {found}"
    )]
    Serial {
        /// Counted from one.
        number: usize,
        /// What is there.
        found: Text,
    },
    /// Not a name.
    #[error("line {number}: {found} is not an identity")]
    Identity {
        /// Counted from one.
        number: usize,
        /// What is there.
        found: Text,
        /// What is wrong with it.
        source: heddle_mesh::IdentityError,
    },
}

impl Revoked {
    /// Reads a list.
    ///
    /// # Errors
    /// A line is neither blank nor a comment nor a revocation, or there are too many.
    pub fn parse(text: &str) -> Result<Self, RevokedError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(RevokedError::TooLarge);
        }
        let mut revoked = Self::default();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            let found = |text: &str| Text(text.to_owned());
            match line.split_once(char::is_whitespace) {
                Some(("serial", digits)) => {
                    let digits = digits.trim();
                    let serial = serial(digits).ok_or_else(|| RevokedError::Serial {
                        number,
                        found: found(digits),
                    })?;
                    revoked.serials.insert(serial);
                }
                Some(("identity", name)) => {
                    let name = name.trim();
                    let identity = name.parse().map_err(|source| RevokedError::Identity {
                        number,
                        found: found(name),
                        source,
                    })?;
                    revoked.identities.insert(identity);
                }
                _ => {
                    return Err(RevokedError::Line {
                        number,
                        found: found(line),
                    });
                }
            }
            if revoked.serials.len() + revoked.identities.len() > ENTRIES_MAX {
                return Err(RevokedError::TooLarge);
            }
        }
        Ok(revoked)
    }
}

/// Hexadecimal digits, with or without colons between bytes, as openssl and the service's own log write them.
fn serial(text: &str) -> Option<Vec<u8>> {
    let digits: String = text.chars().filter(|char| *char != ':').collect();
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let digits = if digits.len().is_multiple_of(2) {
        digits
    } else {
        format!("0{digits}")
    };
    let bytes: Option<Vec<u8>> = (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).ok())
        .collect();
    let bytes = bytes?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let serial = bytes[zeros..].to_vec();
    (1..=SERIAL_BYTES_MAX).contains(&serial.len()).then_some(serial)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_and_identities_are_read_in_any_spelling() {
        let text =
            "# why\n\nserial 4f0c21\nserial 4F:0C:21 # again\n serial\t00:7 \nidentity Batch.Payments.\n";
        let revoked = Revoked::parse(text).expect("a list");
        assert_eq!(
            revoked.serials.into_iter().collect::<Vec<_>>(),
            [vec![0x07], vec![0x4f, 0x0c, 0x21]]
        );
        let names: Vec<_> = revoked.identities.iter().map(Identity::as_str).collect();
        assert_eq!(names, ["batch.payments"]);
        assert_eq!(Revoked::parse(""), Ok(Revoked::default()));
    }

    #[test]
    fn a_broken_line_breaks_the_list_and_is_named() {
        for (line, expected) in [
            ("4f0c21", "line 2: expected `serial HEX` or `identity NAME`"),
            ("serial", "line 2: expected `serial HEX`"),
            ("serial xyz", "line 2: expected the 1 to 20 bytes"),
            ("serial 00", "line 2: expected the 1 to 20 bytes"),
            ("serial 4f 0c", "line 2: expected the 1 to 20 bytes"),
            ("identity a b", "line 2: `a b` is not an identity"),
            ("account web", "line 2: expected `serial HEX`"),
        ] {
            let error = Revoked::parse(&format!("serial 01\n{line}\n")).expect_err(line);
            assert!(error.to_string().starts_with(expected), "{line}: {error}");
        }
        let long = "serial 010203\n".repeat(100_000);
        assert_eq!(Revoked::parse(&long), Err(RevokedError::TooLarge));
        let many: String = (0..=ENTRIES_MAX).map(|n| format!("serial 1{n:07}\n")).collect();
        assert_eq!(Revoked::parse(&many), Err(RevokedError::TooLarge));
    }
}
