//! What a client speaks, from its first bytes. Pure and bounded: no I/O here.

pub(crate) mod client_hello;

/// The bytes with which HTTP/2 begins.
pub(crate) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method that is taken for HTTP.
const METHOD_BYTES_MAX: usize = 32;
/// A request line that is longer still may be HTTP, and is decided without its end.
pub(crate) const SNIFF_BYTES_MAX: usize = 8 * 1024;

/// What the first bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniff {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Neither.
    Opaque,
    /// Too few bytes to say.
    More,
}

/// Judges a connection's first bytes.
pub(crate) fn sniff(bytes: &[u8]) -> Sniff {
    if bytes.starts_with(H2_PREFACE) {
        return Sniff::Http2;
    }
    // Up to here `PRI` may yet become the preface.
    if H2_PREFACE.starts_with(bytes) {
        return Sniff::More;
    }
    let Some(space) = bytes
        .iter()
        .take(METHOD_BYTES_MAX + 1)
        .position(|&byte| !is_token(byte))
    else {
        return if bytes.len() > METHOD_BYTES_MAX {
            Sniff::Opaque
        } else {
            Sniff::More
        };
    };
    if space == 0 || bytes[space] != b' ' {
        return Sniff::Opaque;
    }
    let rest = &bytes[space + 1..];
    match rest.iter().position(|&byte| byte == b'\n') {
        Some(end) => {
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            // RFC 9112: a target without spaces or controls, one space, and the version.
            let version = line.len().checked_sub(b" HTTP/1.1".len()).map(|at| &line[at..]);
            match version {
                Some(b" HTTP/1.1" | b" HTTP/1.0") => Sniff::Http1,
                _ => Sniff::Opaque,
            }
        }
        None if rest.iter().any(|&byte| byte < b' ' && byte != b'\r') => Sniff::Opaque,
        None if bytes.len() >= SNIFF_BYTES_MAX => Sniff::Http1,
        None => Sniff::More,
    }
}

/// RFC 9110's `tchar`.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_http_from_other_protocols() {
        for (bytes, want) in [
            (&b"GET / HTTP/1.1\r\nhost: a\r\n"[..], Sniff::Http1),
            (b"POST http://a/b HTTP/1.0\n", Sniff::Http1),
            (b"M-SEARCH * HTTP/1.1\r\n", Sniff::Http1),
            (H2_PREFACE, Sniff::Http2),
            (b"PRI * HTTP/2.0\r\n\r\n", Sniff::More),
            (b"P", Sniff::More),
            (b"", Sniff::More),
            (b"GET /abc", Sniff::More),
            (b"PRIX /abc HTTP/1.1\r\n", Sniff::Http1),
            (b"GET / HTTP/2.0\r\n", Sniff::Opaque),
            (b"GET\r\n", Sniff::Opaque),
            (b" GET / HTTP/1.1\r\n", Sniff::Opaque),
            (b"\x16\x03\x01\x02\x00\x01", Sniff::Opaque),
            (b"EHLO mail.example.com\r\n", Sniff::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Sniff::Opaque),
            (b"SSH-2.0-OpenSSH\r\n", Sniff::Opaque),
            (b"SELECT 1\0", Sniff::Opaque),
        ] {
            assert_eq!(sniff(bytes), want, "{:?}", String::from_utf8_lossy(bytes));
        }
        assert_eq!(sniff(&[b'A'; METHOD_BYTES_MAX + 1]), Sniff::Opaque);
        let mut long = b"GET /".to_vec();
        long.resize(SNIFF_BYTES_MAX, b'a');
        assert_eq!(sniff(&long), Sniff::Http1);
    }

    #[test]
    fn more_bytes_never_take_back_a_decision() {
        for whole in [
            &b"GET /abc?d=e HTTP/1.1\r\nhost: a\r\n\r\n"[..],
            H2_PREFACE,
            b"EHLO mail\r\nfoo\r\n",
        ] {
            let verdicts: Vec<_> = (0..=whole.len()).map(|len| sniff(&whole[..len])).collect();
            let decided = verdicts
                .iter()
                .position(|&verdict| verdict != Sniff::More)
                .expect("decided in the end");
            assert!(
                verdicts[decided..]
                    .iter()
                    .all(|verdict| verdict == &verdicts[decided]),
                "{verdicts:?}"
            );
        }
    }

    /// What is decided stays decided, whatever follows.
    #[test]
    fn fuzz_sniff() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let all = sniff(bytes);
            let decided = (0..bytes.len())
                .map(|end| sniff(&bytes[..end]))
                .find(|one| *one != Sniff::More);
            if let Some(decided) = decided {
                assert_eq!(all, decided);
            }
        });
    }
}
