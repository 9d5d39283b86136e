//! The server name in a TLS ClientHello, read without a TLS library so that the connection can go on either way.
//!
//! RFC 8446 §4.1.2 and RFC 6066 §3. The hello may be cut into several records (RFC 8446 §5.1) and packets.

/// A hello is rarely above 2 KiB, even with post-quantum keys and many extensions.
pub(crate) const HELLO_BYTES_MAX: usize = 16 * 1024;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// What the first bytes say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// TLS, for this server name if any; lower case.
    Tls(Option<String>),
    /// Not TLS, or no well-formed hello.
    NotTls,
    /// Too few bytes to say.
    More,
}

/// Judges a connection's first bytes.
pub(crate) fn parse(bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match header(&message) {
            Ok(Some(length)) if message.len() >= 4 + length => {
                return match server_name(&message[4..4 + length]) {
                    Some(name) => Hello::Tls(name),
                    None => Hello::NotTls,
                };
            }
            Ok(_) => {}
            Err(()) => return Hello::NotTls,
        }
        // One record: type, version, length, then a piece of the message.
        match *rest {
            [kind, ..] if kind != HANDSHAKE => return Hello::NotTls,
            [_, major, ..] if major != 3 => return Hello::NotTls,
            [_, _, _, high, low, ref tail @ ..] => {
                let length = usize::from(u16::from_be_bytes([high, low]));
                if length == 0 || length > HELLO_BYTES_MAX || message.len() + length > HELLO_BYTES_MAX {
                    return Hello::NotTls;
                }
                let piece = &tail[..length.min(tail.len())];
                message.extend_from_slice(piece);
                if piece.len() < length {
                    // The message may be whole before its record is.
                    return match header(&message) {
                        Err(()) => Hello::NotTls,
                        Ok(_) => Hello::More,
                    };
                }
                rest = &tail[length..];
            }
            _ => return Hello::More,
        }
    }
}

/// The message's length, when its header is there; an error when it is no hello.
fn header(message: &[u8]) -> Result<Option<usize>, ()> {
    match *message {
        [kind, ..] if kind != CLIENT_HELLO => Err(()),
        [_, a, b, c, ..] => {
            let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
            if length > HELLO_BYTES_MAX {
                Err(())
            } else {
                Ok(Some(length))
            }
        }
        _ => Ok(None),
    }
}

/// The outer `None` means malformed.
fn server_name(mut body: &[u8]) -> Option<Option<String>> {
    take(&mut body, 2 + 32)?; // legacy_version, random
    vector8(&mut body)?; // legacy_session_id
    vector16(&mut body)?; // cipher_suites
    vector8(&mut body)?; // legacy_compression_methods
    if body.is_empty() {
        return Some(None);
    }
    let mut extensions = vector16(&mut body)?;
    while !extensions.is_empty() {
        let kind = number16(&mut extensions)?;
        let mut extension = vector16(&mut extensions)?;
        if kind != SERVER_NAME {
            continue;
        }
        let mut names = vector16(&mut extension)?;
        while !names.is_empty() {
            let kind = take(&mut names, 1)?[0];
            let name = vector16(&mut names)?;
            if kind == HOST_NAME {
                let name = std::str::from_utf8(name).ok()?;
                return Some(Some(name.trim_end_matches('.').to_ascii_lowercase()));
            }
        }
    }
    Some(None)
}

fn take<'b>(bytes: &mut &'b [u8], count: usize) -> Option<&'b [u8]> {
    let (taken, rest) = bytes.split_at_checked(count)?;
    *bytes = rest;
    Some(taken)
}

fn number16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes, 2).map(|two| u16::from_be_bytes([two[0], two[1]]))
}

fn vector8<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = take(bytes, 1)?[0];
    take(bytes, length.into())
}

fn vector16<'b>(bytes: &mut &'b [u8]) -> Option<&'b [u8]> {
    let length = number16(bytes)?;
    take(bytes, length.into())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use heddle_tls::rustls::{ClientConfig, ClientConnection, RootCertStore};

    use super::*;

    fn hello(name: &'static str) -> Vec<u8> {
        let config = ClientConfig::builder_with_provider(heddle_tls::provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has TLS 1.3")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        let mut client =
            ClientConnection::new(Arc::new(config), name.try_into().expect("a name")).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("memory takes all");
        bytes
    }

    /// The same hello in records of at most `size` bytes.
    fn cut(hello: &[u8], size: usize) -> Vec<u8> {
        hello[5..]
            .chunks(size)
            .flat_map(|piece| {
                let length = u16::try_from(piece.len()).expect("small").to_be_bytes();
                [&[HANDSHAKE, 3, 1, length[0], length[1]], piece].concat()
            })
            .collect()
    }

    #[test]
    fn finds_the_server_name_however_the_hello_is_cut() {
        let want = Hello::Tls(Some("web.payments.test".into()));
        let whole = hello("Web.payments.test");
        assert_eq!(parse(&whole), want);
        for len in 0..whole.len() {
            assert_eq!(parse(&whole[..len]), Hello::More, "of {len} bytes");
        }
        for size in [1, 3, 7, 100] {
            assert_eq!(parse(&cut(&whole, size)), want, "in records of {size}");
        }
        assert_eq!(parse(&hello("10.0.0.1")), Hello::Tls(None));
    }

    #[test]
    fn broken_hellos_are_not_tls_and_never_panic() {
        let whole = hello("web.test");
        assert_eq!(parse(b"GET / HTTP/1.1\r\n"), Hello::NotTls);
        assert_eq!(parse(&[22, 2, 0]), Hello::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 0]), Hello::NotTls);
        assert_eq!(parse(&[22, 3, 1, 0, 4, 2]), Hello::NotTls);
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                let _ = parse(&broken);
            }
        }
    }

    /// What is decided stays decided, whatever follows.
    #[test]
    fn fuzz_client_hello() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let record = [
                &[HANDSHAKE, 3, 1][..],
                &u16::try_from(bytes.len()).unwrap_or(u16::MAX).to_be_bytes(),
                bytes,
            ]
            .concat();
            for input in [bytes, &record] {
                let all = parse(input);
                let decided = (0..input.len())
                    .map(|end| parse(&input[..end]))
                    .find(|one| *one != Hello::More);
                if let Some(decided) = decided {
                    assert_eq!(all, decided);
                }
            }
        });
    }
}
