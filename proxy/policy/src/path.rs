//! How a request's path is read.
//!
//! Applications read one path in different ways: some resolve dot segments and drop empty ones, some do not; some take an
//! encoded slash for a slash; some cut parameters off segments, take a backslash for a slash, or decode twice. Rules are
//! compared with the canonical form. Who may send a request is judged by every reading (RFC 3986 section 7.3 warns of
//! components that are decoded at the wrong time), because the proxy cannot know which one is the application's.

use std::borrow::Cow;

/// The path with escapes decoded, empty segments dropped and dot segments resolved. A trailing slash is kept.
pub fn canonical_path(path: &str) -> Cow<'_, str> {
    match is_plain(path) {
        true => Cow::Borrowed(path),
        false => Cow::Owned(resolved(&decoded(path))),
    }
}

/// Whether there is nothing to decode, to drop or to resolve.
fn is_plain(path: &str) -> bool {
    !path.contains("//") && !path.contains("/.") && !path.contains('%')
}

fn decoded(path: &str) -> String {
    String::from_utf8_lossy(&percent_decode(path)).into_owned()
}

/// Without empty segments and dot segments.
fn resolved(decoded: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    let mut parts = decoded.split('/').peekable();
    let mut trailing = false;
    while let Some(part) = parts.next() {
        trailing = matches!(part, "" | "." | "..") && parts.peek().is_none();
        match part {
            "" | "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(part),
        }
    }
    let mut out = String::with_capacity(decoded.len());
    for segment in &segments {
        out.push('/');
        out.push_str(segment);
    }
    if trailing || segments.is_empty() {
        out.push('/');
    }
    out
}

/// How else an application may read the path, besides its canonical form; nothing where all read it alike.
pub(crate) fn other_readings(path: &str) -> impl Iterator<Item = String> {
    let alike = is_plain(path) && !path.contains([';', '\\']);
    let readings: [fn(&str) -> String; 2] = [as_written, as_leniently_as_possible];
    readings
        .into_iter()
        .filter(move |_| !alike)
        .map(move |read| read(path))
}

/// Escapes are decoded, but an encoded slash separates nothing, and all segments are names.
fn as_written(path: &str) -> String {
    let segments = path.split('/').map(|segment| {
        let mut text = decoded(segment);
        if text.contains('/') {
            text = text.replace('/', "%2F");
        }
        text
    });
    segments.collect::<Vec<_>>().join("/")
}

/// Decoded twice, backslashes are slashes, and segments have no parameters.
fn as_leniently_as_possible(path: &str) -> String {
    let decoded = decoded(&decoded(path)).replace('\\', "/");
    let names = decoded
        .split('/')
        .map(|segment| segment.split(';').next().unwrap_or_default());
    resolved(&names.collect::<Vec<_>>().join("/"))
}

pub(crate) fn percent_decode(text: &str) -> Vec<u8> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        let hex = |offset| {
            bytes
                .get(at + offset)
                .and_then(|&digit| char::from(digit).to_digit(16))
        };
        match (byte, hex(1), hex(2)) {
            // Two hex digits make at most 255.
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            _ => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_see_one_form_of_a_path() {
        for (path, want) in [
            ("/a/b", "/a/b"),
            ("//a///b", "/a/b"),
            ("/x/../a/./b", "/a/b"),
            ("/%61/b", "/a/b"),
            ("/a%2Fb", "/a/b"),
            ("/a/%2e%2e/b/", "/b/"),
            ("/../..", "/"),
            ("/a%zz", "/a%zz"),
            ("/.well-known/x", "/.well-known/x"),
        ] {
            assert_eq!(canonical_path(path), want, "{path}");
        }
    }

    #[test]
    fn other_readings_are_those_of_applications() {
        for (path, want) in [
            ("/a/b?", &[][..]),
            ("/a/../b", &["/a/../b", "/b"]),
            ("//a", &["//a", "/a"]),
            ("/a%2Fb%20c", &["/a%2Fb c", "/a/b c"]),
            ("/a/..;x=y/b", &["/a/..;x=y/b", "/b"]),
            ("/a;x/b", &["/a;x/b", "/a/b"]),
            ("/a%5c..%5Cb", &["/a\\..\\b", "/b"]),
            ("/a/%252e%252e/b", &["/a/%2e%2e/b", "/b"]),
        ] {
            let got: Vec<_> = other_readings(path).collect();
            assert_eq!(got, want, "{path}");
        }
    }
}
