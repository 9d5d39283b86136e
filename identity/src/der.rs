//! Writes the little DER that a certificate needs, so that names are copied byte for byte: a chain is only valid when
//! a leaf's issuer equals the issuer's subject in its very encoding.

use time::{OffsetDateTime, UtcOffset};

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const SEQUENCE: u8 = 0x30;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// Writes a value with its tag and length around what `content` writes.
pub(crate) fn nest(out: &mut Vec<u8>, tag: u8, content: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    out.push(0);
    let start = out.len();
    content(out);
    let length = out.len() - start;
    if length < 0x80 {
        out[start - 1] = length as u8;
        return;
    }
    let bytes = length.to_be_bytes();
    let skip = bytes.iter().take_while(|byte| **byte == 0).count();
    let bytes = &bytes[skip..];
    out[start - 1] = 0x80 | bytes.len() as u8;
    out.splice(start..start, bytes.iter().copied());
}

/// Writes a value whose content is at hand.
pub(crate) fn value(out: &mut Vec<u8>, tag: u8, content: &[u8]) {
    nest(out, tag, |out| out.extend_from_slice(content));
}

/// Writes a positive INTEGER from big-endian bytes.
pub(crate) fn positive(out: &mut Vec<u8>, bytes: &[u8]) {
    let skip = bytes
        .iter()
        .take_while(|byte| **byte == 0)
        .count()
        .min(bytes.len().saturating_sub(1));
    nest(out, INTEGER, |out| {
        if bytes.get(skip).is_none_or(|byte| byte & 0x80 != 0) {
            out.push(0);
        }
        out.extend_from_slice(&bytes[skip..]);
    });
}

/// Writes a BIT STRING of whole bytes.
pub(crate) fn bits(out: &mut Vec<u8>, bytes: &[u8]) {
    nest(out, BIT_STRING, |out| {
        out.push(0);
        out.extend_from_slice(bytes);
    });
}

/// Writes a time as RFC 5280 §4.1.2.5 wants it: two digits for the year until 2049, four from then on.
pub(crate) fn time(out: &mut Vec<u8>, at: OffsetDateTime) {
    let at = at.to_offset(UtcOffset::UTC);
    let (month, day) = (u8::from(at.month()), at.day());
    let (hour, minute, second) = (at.hour(), at.minute(), at.second());
    let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
    match at.year() {
        year @ 1950..2050 => value(out, UTC_TIME, format!("{:02}{rest}", year % 100).as_bytes()),
        year => value(out, GENERALIZED_TIME, format!("{year:04}{rest}").as_bytes()),
    }
}

/// Writes an extension; `oid` is the content of its OBJECT IDENTIFIER.
pub(crate) fn extension(out: &mut Vec<u8>, oid: &[u8], critical: bool, content: impl FnOnce(&mut Vec<u8>)) {
    nest(out, SEQUENCE, |out| {
        value(out, OID, oid);
        if critical {
            value(out, BOOLEAN, &[0xff]);
        }
        nest(out, OCTET_STRING, content);
    });
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut out = Vec::new();
        write(&mut out);
        out
    }

    #[test]
    fn lengths_are_as_short_as_can_be() {
        assert_eq!(written(|out| value(out, OCTET_STRING, &[7; 3])), [4, 3, 7, 7, 7]);
        assert_eq!(
            written(|out| value(out, OCTET_STRING, &[7; 127]))[..3],
            [4, 127, 7]
        );
        assert_eq!(
            written(|out| value(out, OCTET_STRING, &[7; 128]))[..4],
            [4, 0x81, 128, 7]
        );
        assert_eq!(
            written(|out| value(out, OCTET_STRING, &[7; 256]))[..5],
            [4, 0x82, 1, 0, 7]
        );
    }

    #[test]
    fn integers_are_positive_and_minimal() {
        assert_eq!(written(|out| positive(out, &[0, 0, 1])), [2, 1, 1]);
        assert_eq!(written(|out| positive(out, &[0x80])), [2, 2, 0, 0x80]);
        assert_eq!(written(|out| positive(out, &[0, 0])), [2, 1, 0]);
        assert_eq!(written(|out| positive(out, &[])), [2, 1, 0]);
    }

    #[test]
    fn years_change_form_in_2050() {
        assert_eq!(
            written(|out| time(out, datetime!(2049-12-31 23:59:59 UTC)))[2..],
            *b"491231235959Z"
        );
        assert_eq!(
            written(|out| time(out, datetime!(2050-01-02 03:04:05 UTC)))[2..],
            *b"20500102030405Z"
        );
    }
}
