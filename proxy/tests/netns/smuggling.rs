//! The corpus of HTTP/1 requests that can be read in more than one way, and what the proxy makes of each.

use Part::{Many, Text};
use Verdict::{Last, Refused, Taken};

/// What is sent on one connection.
pub(crate) struct Entry {
    pub name: &'static str,
    pub request: &'static [Part],
    pub verdict: Verdict,
    /// Its first line is no HTTP: where the protocol is detected it is passed on as bytes.
    pub is_first_line: bool,
}

/// A piece of a request; `{e}` in it is the entry's path.
pub(crate) enum Part {
    Text(&'static [u8]),
    Many(&'static [u8], usize),
}

/// What the proxy makes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Verdict {
    /// The application sees nothing of it, nor of what follows.
    Refused,
    /// The application sees these, then what follows: method, path, host, body, and the number of trailers.
    Taken(&'static [&'static str]),
    /// As before, but the connection ends behind it.
    Last(&'static [&'static str]),
}

impl Part {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Text(text) => text.to_vec(),
            Many(text, times) => text.repeat(*times),
        }
    }
}

const fn entry(name: &'static str, request: &'static [Part], verdict: Verdict) -> Entry {
    Entry {
        name,
        request,
        verdict,
        is_first_line: false,
    }
}

const fn first_line(name: &'static str, request: &'static [Part], verdict: Verdict) -> Entry {
    Entry {
        name,
        request,
        verdict,
        is_first_line: true,
    }
}

pub(crate) const CORPUS: &[Entry] = &[
    // Well-formed.
    entry("no body", &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\n\r\n")], Taken(&["GET a web.test \"\""])),
    entry(
        "a length",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5\r\n\r\nhello")],
        Taken(&["POST a web.test \"hello\""]),
    ),
    entry(
        "chunks",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")],
        Taken(&["POST a web.test \"hello\""]),
    ),
    entry(
        "a chunk's extension",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: Chunked\r\n\r\n5;a=\"b\"\r\nhello\r\n0\r\n\r\n")],
        Taken(&["POST a web.test \"hello\""]),
    ),
    entry(
        "trailers are no headers",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\n\r\n")],
        Taken(&["POST a web.test \"hello\" +1"]),
    ),
    entry(
        "trailers that speak for others",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 1\r\nl5d-client-id: admin\r\nhost: admin.test\r\ncontent-length: 7\r\n\r\n")],
        Taken(&["POST a web.test \"hello\" +1"]),
    ),
    entry(
        "a body that looks like a request",
        &[Text(
            b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 32\r\n\r\nGET /x HTTP/1.1\r\nhost: a\r\nx: y\r\n",
        )],
        Taken(&["GET a web.test \"GET /x HTTP/1.1\\r\\nhost: a\\r\\nx: y\\r\\n\""]),
    ),
    entry(
        "expecting to go on",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\nhello")],
        Taken(&["POST a web.test \"hello\""]),
    ),
    // Length and chunks.
    entry(
        "CL.TE",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")],
        Last(&["POST a web.test \"\""]),
    ),
    entry(
        "TE.CL",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\ncontent-length: 4\r\n\r\n5\r\nhello\r\n0\r\n\r\n")],
        Last(&["POST a web.test \"hello\""]),
    ),
    entry(
        "two equal lengths",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello")],
        Taken(&["POST a web.test \"hello\""]),
    ),
    entry(
        "two lengths",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!")],
        Refused,
    ),
    entry(
        "a list of lengths",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 5, 5\r\n\r\nhello")],
        Refused,
    ),
    entry(
        "a signed length",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: +5\r\n\r\nhello")],
        Refused,
    ),
    entry(
        "a negative length",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: -5\r\n\r\nhello")],
        Refused,
    ),
    entry(
        "a length in hex",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 0x5\r\n\r\nhello")],
        Refused,
    ),
    entry(
        "an empty length",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length:\r\n\r\n")],
        Refused,
    ),
    entry(
        "a length beyond 64 bits",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length: 18446744073709551621\r\n\r\nhello")],
        Refused,
    ),
    // Codings.
    entry(
        "TE.TE",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\ntransfer-encoding: identity\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "TE.TE the other way",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: identity\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "chunked twice",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "a coding that is not undone",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "nearly chunked",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "chunked with a parameter",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked;q=1\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "chunked behind a vertical tab",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: \x0bchunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "a space before the colon",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding : chunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "a folded coding",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding:\r\n chunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "chunks in HTTP/1.0",
        &[Text(b"POST {e}/a HTTP/1.0\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n")],
        Refused,
    ),
    // Chunks.
    entry(
        "a chunk's size with 0x",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "a chunk's size beyond 64 bits",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n10000000000000005\r\nhello\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "a signed chunk's size",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n+5\r\nhello\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "a chunk without its end",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhelloXX0\r\n\r\n")],
        Refused,
    ),
    entry(
        "chunks with bare line feeds",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n5\nhello\n0\n\n")],
        Refused,
    ),
    entry(
        "a line feed in a chunk's extension",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n")],
        Refused,
    ),
    entry(
        "extensions without end",
        &[
            Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n"),
            Many(b"1;aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\nx\r\n", 1_000),
            Text(b"0\r\n\r\n"),
        ],
        Refused,
    ),
    entry(
        "trailers without end",
        &[
            Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"),
            Many(b"x-trailer: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n", 1_000),
            Text(b"\r\n"),
        ],
        Refused,
    ),
    // Lines.
    entry(
        "a folded header",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nx: a\r\n b\r\n\r\n")],
        Refused,
    ),
    entry(
        "a bare carriage return in a value",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nx: a\rcontent-length: 5\r\n\r\n")],
        Refused,
    ),
    entry(
        "a zero byte in a value",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nx: a\0b\r\n\r\n")],
        Refused,
    ),
    entry(
        "a zero byte in a name",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nx\0: a\r\n\r\n")],
        Refused,
    ),
    entry(
        "a header without a colon",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\ncontent-length\r\n\r\n")],
        Refused,
    ),
    entry(
        "a header without a name",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\n: a\r\n\r\n")],
        Refused,
    ),
    entry(
        "space before the first header",
        &[Text(b"GET {e}/a HTTP/1.1\r\n host: web.test\r\n\r\n")],
        Refused,
    ),
    entry(
        "more than 100 headers",
        &[
            Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\n"),
            Many(b"x: y\r\n", 100),
            Text(b"\r\n"),
        ],
        Refused,
    ),
    entry(
        "a header of more than 64 KiB",
        &[
            Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nx: "),
            Many(b"0123456789abcdef", 5_000),
            Text(b"\r\n\r\n"),
        ],
        Refused,
    ),
    entry(
        "a path of more than 64 KiB",
        &[
            Text(b"GET {e}/"),
            Many(b"0123456789abcdef", 5_000),
            Text(b" HTTP/1.1\r\nhost: web.test\r\n\r\n"),
        ],
        Refused,
    ),
    first_line(
        "two spaces in the first line",
        &[Text(b"GET  {e}/a HTTP/1.1\r\nhost: web.test\r\n\r\n")],
        Refused,
    ),
    first_line(
        "a space in the path",
        &[Text(b"GET {e}/a b HTTP/1.1\r\nhost: web.test\r\n\r\n")],
        Refused,
    ),
    first_line(
        "a tab in the first line",
        &[Text(b"GET\t{e}/a HTTP/1.1\r\nhost: web.test\r\n\r\n")],
        Refused,
    ),
    first_line("HTTP/0.9", &[Text(b"GET {e}/a\r\n")], Refused),
    first_line(
        "HTTP/1.2",
        &[Text(b"GET {e}/a HTTP/1.2\r\nhost: web.test\r\n\r\n")],
        Refused,
    ),
    first_line(
        "a version in small letters",
        &[Text(b"GET {e}/a http/1.1\r\nhost: web.test\r\n\r\n")],
        Refused,
    ),
    first_line(
        "a carriage return in the path",
        &[Text(b"GET {e}/a\rb HTTP/1.1\r\nhost: web.test\r\n\r\n")],
        Refused,
    ),
    // Hosts.
    entry(
        "two hosts",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nhost: other.test\r\n\r\n")],
        Refused,
    ),
    entry(
        "a user in the host",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test@other.test\r\n\r\n")],
        Refused,
    ),
    entry(
        "a path in the host",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test/other\r\n\r\n")],
        Refused,
    ),
    entry(
        "the absolute form wins",
        &[Text(b"GET http://web.test{e}/a HTTP/1.1\r\nhost: other.test\r\n\r\n")],
        Taken(&["GET a web.test \"\""]),
    ),
    // Other protocols.
    entry(
        "an upgrade to HTTP/2 does not take place",
        &[Text(b"GET {e}/a HTTP/1.1\r\nhost: web.test\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n")],
        Taken(&["GET a web.test \"\""]),
    ),
    entry(
        "a header that connection names is for us alone",
        &[Text(b"POST {e}/a HTTP/1.1\r\nhost: web.test\r\nconnection: content-length, host\r\ncontent-length: 5\r\n\r\nhello")],
        Taken(&["POST a web.test \"hello\""]),
    ),
];
