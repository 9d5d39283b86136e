//! Heads of messages: requests out, responses in.

use std::mem::MaybeUninit;

use bytes::{BufMut as _, BytesMut};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Version, header, request::Parts,
    response,
};

use super::body::{Decoder, Reuse};

const HEADERS_MAX: usize = 100;
pub(super) const HEAD_BYTES_MAX: usize = 64 * 1024;

/// A response's head that cannot be taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("it is not HTTP/1")]
    Parse(#[from] httparse::Error),
    #[error("it has more than {HEAD_BYTES_MAX} bytes")]
    TooLarge,
    #[error("it holds an invalid header")]
    Header,
    #[error("its length is said twice, or not in digits")]
    Length,
    #[error("it switches protocols without being asked to")]
    Switch,
}

/// Writes a request's head.
pub(super) fn encode(head: &Parts, chunked: bool, out: &mut BytesMut) {
    out.reserve(512);
    out.put_slice(head.method.as_str().as_bytes());
    out.put_u8(b' ');
    match (head.uri.scheme(), head.uri.authority()) {
        (Some(scheme), Some(authority)) => {
            out.put_slice(scheme.as_str().as_bytes());
            out.put_slice(b"://");
            out.put_slice(authority.as_str().as_bytes());
        }
        (None, Some(authority)) => out.put_slice(authority.as_str().as_bytes()),
        (_, None) => {}
    }
    out.put_slice(
        head.uri
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .as_bytes(),
    );
    out.put_slice(b" HTTP/1.1\r\n");
    for (name, value) in &head.headers {
        put_header(name, value, out);
    }
    if chunked {
        out.put_slice(b"transfer-encoding: chunked\r\n");
    }
    out.put_slice(b"\r\n");
}

pub(super) fn put_header(name: &HeaderName, value: &HeaderValue, out: &mut BytesMut) {
    out.put_slice(name.as_str().as_bytes());
    out.put_slice(b": ");
    out.put_slice(value.as_bytes());
    out.put_slice(b"\r\n");
}

pub(super) fn put_hex(number: usize, out: &mut BytesMut) {
    use std::fmt::Write as _;
    // BytesMut grows as needed.
    let _ = write!(out, "{number:x}");
}

/// Reads a response's head off the buffer, once it is there; interim responses are skipped.
pub(super) fn decode(buffer: &mut BytesMut, method: &Method) -> Result<Option<Response<Decoder>>, HeadError> {
    loop {
        if buffer.is_empty() {
            return Ok(None);
        }
        let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let parser = httparse::ParserConfig::default();
        let status = parser.parse_response_with_uninit_headers(&mut parsed, buffer, &mut headers)?;
        let httparse::Status::Complete(length) = status else {
            return if buffer.len() > HEAD_BYTES_MAX {
                Err(HeadError::TooLarge)
            } else {
                Ok(None)
            };
        };
        if length > HEAD_BYTES_MAX {
            return Err(HeadError::TooLarge);
        }
        let start = buffer.as_ptr() as usize;
        // Where each header lies in the buffer; the values then share its memory.
        let mut places = [(0, 0, 0, 0); HEADERS_MAX];
        let count = parsed.headers.len();
        for (place, header) in places.iter_mut().zip(parsed.headers.iter()) {
            let (name, value) = (
                header.name.as_ptr() as usize - start,
                header.value.as_ptr() as usize - start,
            );
            *place = (name, header.name.len(), value, header.value.len());
        }
        let status = parsed
            .code
            .and_then(|code| StatusCode::from_u16(code).ok())
            .ok_or(HeadError::Header)?;
        let http10 = parsed.version == Some(0);
        let bytes = buffer.split_to(length).freeze();
        if status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(HeadError::Switch);
        }
        if status.is_informational() {
            continue;
        }
        let mut map = HeaderMap::with_capacity(count);
        for &(name, name_length, value, value_length) in &places[..count] {
            let name =
                HeaderName::from_bytes(&bytes[name..name + name_length]).map_err(|_| HeadError::Header)?;
            let value = bytes.slice(value..value + value_length);
            map.append(
                name,
                HeaderValue::from_maybe_shared(value).map_err(|_| HeadError::Header)?,
            );
        }
        let decoder = decoder(method, status, http10, &map)?;
        let (mut head, ()) = Response::new(()).into_parts();
        let response::Parts {
            status: to_status,
            version,
            headers,
            ..
        } = &mut head;
        (*to_status, *headers) = (status, map);
        *version = if http10 {
            Version::HTTP_10
        } else {
            Version::HTTP_11
        };
        return Ok(Some(Response::from_parts(head, decoder)));
    }
}

/// RFC 9112 §6.3.
fn decoder(
    method: &Method,
    status: StatusCode,
    http10: bool,
    headers: &HeaderMap,
) -> Result<Decoder, HeadError> {
    let reuse = if keeps_alive(http10, headers) {
        Reuse::Yes
    } else {
        Reuse::No
    };
    let bodiless =
        method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = content_length(headers)?;
    let codings: Vec<&[u8]> = headers
        .get_all(header::TRANSFER_ENCODING)
        .iter()
        .map(HeaderValue::as_bytes)
        .collect();
    if bodiless {
        return Ok(Decoder::length(0, reuse));
    }
    match (codings.as_slice(), length) {
        ([], Some(length)) => Ok(Decoder::length(length, reuse)),
        ([], None) => Ok(Decoder::UntilEnd),
        // Two lengths: what one reader takes for the body's end another takes for its middle.
        (_, Some(_)) => Err(HeadError::Length),
        ([one], None) if one.eq_ignore_ascii_case(b"chunked") && !http10 => Ok(Decoder::chunked(reuse)),
        _ => Err(HeadError::Length),
    }
}

fn keeps_alive(http10: bool, headers: &HeaderMap) -> bool {
    let has = |word: &str| {
        headers.get_all(header::CONNECTION).iter().any(|value| {
            value.to_str().is_ok_and(|text| {
                text.split(',')
                    .any(|token| token.trim().eq_ignore_ascii_case(word))
            })
        })
    };
    if http10 { has("keep-alive") } else { !has("close") }
}

/// The content-length, if there is exactly one, in digits.
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, HeadError> {
    let mut values = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() || value.is_empty() || !value.as_bytes().iter().all(u8::is_ascii_digit) {
        return Err(HeadError::Length);
    }
    let text = value.to_str().map_err(|_| HeadError::Length)?;
    text.parse().map(Some).map_err(|_| HeadError::Length)
}
