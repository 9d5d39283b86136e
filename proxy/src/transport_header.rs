//! The header with which a peer's proxy says what it wants of ours, at the beginning of a TLS connection straight to
//! the inbound listener. Linkerd's `transport.l5d.io/v1`: a preface, a length, and a protobuf message.

use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use prost::Message as _;
use tokio::io::AsyncRead;

use crate::{detect::H2_PREFACE, io::Prefixed};

/// The ALPN protocol that announces it.
pub(crate) const ALPN: &[u8] = b"transport.l5d.io/v1";
const PREFACE: &[u8] = b"transport.l5d.io/v1\r\n\r\n";
/// A port, a name of at most 253 bytes and a few tags.
const HEADER_BYTES_MAX: usize = 1024;

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(int32, tag = "1")]
    port: i32,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, optional, tag = "3")]
    session_protocol: Option<SessionProtocolMessage>,
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct SessionProtocolMessage {
    #[prost(oneof = "SessionKind", tags = "1, 2")]
    kind: Option<SessionKind>,
}

#[derive(Clone, Copy, PartialEq, prost::Oneof)]
enum SessionKind {
    #[prost(message, tag = "1")]
    Http1(Empty),
    #[prost(message, tag = "2")]
    Http2(Empty),
}

#[derive(Clone, Copy, PartialEq, prost::Message)]
struct Empty {}

/// What the peer wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TransportHeader {
    /// The application's port.
    pub port: u16,
    /// A name, for gateways.
    pub name: Option<String>,
    /// The protocol inside, when it is HTTP.
    pub protocol: Option<Protocol>,
}

/// A protocol inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http1,
    Http2,
}

/// A connection that does not begin with a header.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("the connection failed before its transport header was read")]
    Io(#[from] std::io::Error),
    #[error("the connection does not begin with a transport header")]
    Preface,
    #[error("the transport header has {0} bytes, more than {HEADER_BYTES_MAX}")]
    TooLong(usize),
    #[error("the transport header cannot be decoded")]
    Decode(#[from] prost::DecodeError),
    #[error("the transport header names port {0}, expected 1 to 65535")]
    Port(i32),
}

impl TransportHeader {
    /// The bytes to begin a connection with.
    pub(crate) fn encode(&self) -> BytesMut {
        let Self { port, name, protocol } = self;
        let session_protocol = protocol.map(|protocol| SessionProtocolMessage {
            kind: Some(match protocol {
                Protocol::Http1 => SessionKind::Http1(Empty {}),
                Protocol::Http2 => SessionKind::Http2(Empty {}),
            }),
        });
        let header = Header {
            port: i32::from(*port),
            name: name.clone().unwrap_or_default(),
            session_protocol,
        };
        let mut bytes = BytesMut::with_capacity(PREFACE.len() + 4 + header.encoded_len());
        bytes.put_slice(PREFACE);
        bytes.put_u32(u32::try_from(header.encoded_len()).expect("a name of a service is short"));
        header.encode(&mut bytes).expect("BytesMut grows as needed");
        bytes
    }

    /// Reads a header and takes it off the stream.
    pub(crate) async fn read<S: AsyncRead + Unpin>(
        io: &mut Prefixed<S>,
        timeout: Duration,
    ) -> Result<Self, HeaderError> {
        let start = io.read_exact_within(PREFACE.len() + 4, timeout).await?;
        let (preface, length) = start.split_at(PREFACE.len());
        if preface != PREFACE {
            return Err(HeaderError::Preface);
        }
        let length =
            u32::from_be_bytes(length.try_into().expect("four bytes were read after the preface")) as usize;
        if length > HEADER_BYTES_MAX {
            return Err(HeaderError::TooLong(length));
        }
        let header = Header::decode(io.read_exact_within(length, timeout).await?)?;
        Ok(Self {
            port: u16::try_from(header.port)
                .ok()
                .filter(|port| *port > 0)
                .ok_or(HeaderError::Port(header.port))?,
            name: (!header.name.is_empty()).then_some(header.name),
            protocol: header
                .session_protocol
                .and_then(|protocol| protocol.kind)
                .map(|kind| match kind {
                    SessionKind::Http1(_) => Protocol::Http1,
                    SessionKind::Http2(_) => Protocol::Http2,
                }),
        })
    }
}

// HTTP/2 begins with `PRI`, the header with `transport`: a peer cannot mean both.
const _: () = assert!(PREFACE[0] != H2_PREFACE[0]);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn reads_what_it_writes_and_leaves_the_rest() {
        let header = TransportHeader {
            port: 8080,
            name: Some("web.test".into()),
            protocol: Some(Protocol::Http2),
        };
        let bytes = [&header.encode()[..], b"rest"].concat();
        let mut io = Prefixed::new(bytes.as_slice());
        assert_eq!(
            TransportHeader::read(&mut io, SECOND).await.expect("a header"),
            header
        );
        assert_eq!(
            &io.read_exact_within(4, SECOND).await.expect("the rest")[..],
            b"rest"
        );
    }

    #[tokio::test]
    async fn refuses_what_is_no_header() {
        let good = TransportHeader {
            port: 1,
            name: None,
            protocol: None,
        }
        .encode();
        let mut long = PREFACE.to_vec();
        long.extend(u32::MAX.to_be_bytes());
        let zero = Header::default().encode_to_vec();
        let mut no_port = PREFACE.to_vec();
        no_port.extend((zero.len() as u32).to_be_bytes());
        for bad in [
            &b""[..],
            b"GET / HTTP/1.1\r\n\r\n\r\n\r\n\r\n\r\n\r\n",
            &good[..good.len() - 1],
            &long,
            &no_port,
        ] {
            assert!(
                TransportHeader::read(&mut Prefixed::new(bad), SECOND)
                    .await
                    .is_err(),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn fuzz_transport_header() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .build();
            runtime.expect("a runtime").block_on(async {
                let header = u32::try_from(bytes.len()).expect("small").to_be_bytes();
                let whole = [PREFACE, &header, bytes].concat();
                for input in [bytes, whole.as_slice()] {
                    if let Ok(header) = TransportHeader::read(&mut Prefixed::new(input), SECOND).await {
                        let again = header.encode();
                        let again = TransportHeader::read(&mut Prefixed::new(&again[..]), SECOND).await;
                        assert_eq!(again.expect("its own form"), header);
                    }
                }
            });
        });
    }
}
