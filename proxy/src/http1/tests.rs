use std::rc::Weak;

use http::Request;
use http_body_util::BodyExt as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use super::*;
use crate::{
    io::{Prefixed, Socket},
    metrics::{Metrics, labels::Labels, tcp::TcpHandles},
};

/// A connection, and the application's side of it.
async fn connect() -> (Box<Connection>, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    let (client, server) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let open = TcpHandles::new(&Metrics::default(), &Labels::default()).open();
    let io = Io::new(Socket::Plain(Prefixed::new(client.expect("connects"))), open);
    (Connection::new(io, Weak::new()), server.expect("accepts").0)
}

fn request(method: &str) -> Parts {
    let request = Request::builder()
        .method(method)
        .uri("/a?b")
        .header("host", "web.test")
        .body(());
    request.expect("valid").into_parts().0
}

/// What a client makes of an application's answer: status, body and trailers, or the failure's text.
async fn exchange(method: &str, answer: &[&[u8]]) -> Result<(u16, String, Option<String>), String> {
    let (connection, mut app) = connect().await;
    let answering = async {
        let mut bytes = [0; 1024];
        let count = app.read(&mut bytes).await.expect("a request");
        let expected = format!("{method} /a?b HTTP/1.1\r\nhost: web.test\r\n\r\n");
        assert_eq!(String::from_utf8_lossy(&bytes[..count]), expected);
        for piece in answer {
            app.write_all(piece).await.expect("writes");
            tokio::task::yield_now().await;
        }
        app.shutdown().await.expect("ends");
    };
    let head = request(method);
    let asking = async {
        let response = connection
            .send(&head, RequestBody::Empty)
            .await
            .map_err(|(error, _)| error.to_string())?;
        let status = response.status().as_u16();
        let body = response
            .into_body()
            .collect()
            .await
            .map_err(|error| error.to_string())?;
        let trailers = body.trailers().map(|trailers| format!("{trailers:?}"));
        Ok((
            status,
            String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            trailers,
        ))
    };
    tokio::join!(answering, asking).1
}

async fn body(answer: &[&[u8]]) -> Result<String, String> {
    exchange("GET", answer).await.map(|(_, body, _)| body)
}

#[tokio::test]
async fn bodies_of_every_framing_are_read() {
    for (answer, want) in [
        (
            &[&b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"[..]][..],
            "hello",
        ),
        (
            &[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhe", b"llo"],
            "hello",
        ),
        (&[b"HTTP/1.1 200 OK\r\n", b"content-length: 0\r\n\r\n"], ""),
        (
            &[b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n"],
            "hello!",
        ),
        (
            &[
                b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                b"5\r",
                b"\nhel",
                b"lo\r",
                b"\n0\r\n",
                b"\r\n",
            ],
            "hello",
        ),
        (&[b"HTTP/1.1 200 OK\r\n\r\nuntil", b" the end"], "until the end"),
        (
            &[b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"],
            "",
        ),
        (&[b"HTTP/1.0 200 OK\r\n\r\nold"], "old"),
    ] {
        assert_eq!(body(answer).await.as_deref(), Ok(want), "{answer:?}");
    }
    let head = exchange("HEAD", &[b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n"]).await;
    assert_eq!(head, Ok((200, String::new(), None)));
    let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\na: b\r\n\r\n";
    let (_, body, trailers) = exchange("GET", &[chunked]).await.expect("valid");
    assert_eq!((body.as_str(), trailers.as_deref()), ("x", Some(r#"{"a": "b"}"#)));
}

#[tokio::test]
async fn ambiguous_and_broken_responses_are_refused() {
    for answer in [
        &b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"[..],
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!",
        b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"",
    ] {
        let result = body(&[answer]).await;
        assert!(
            result.is_err(),
            "{:?} was taken as {result:?}",
            String::from_utf8_lossy(answer)
        );
    }
}

#[tokio::test]
async fn only_harmless_requests_are_offered_for_another_try() {
    for (method, want) in [("GET", true), ("POST", false), ("DELETE", true)] {
        let (connection, app) = connect().await;
        drop(app);
        let (_, again) = connection
            .send(&request(method), RequestBody::Empty)
            .await
            .expect_err("closed");
        assert_eq!(again.is_some(), want, "{method}");
    }
}

#[tokio::test]
async fn a_connection_that_the_application_closed_is_not_alive() {
    let (mut connection, mut app) = connect().await;
    assert!(connection.is_alive());
    app.write_all(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        .await
        .expect("writes");
    drop(app);
    while connection.is_alive() {
        tokio::task::yield_now().await;
    }
}

/// What there is of a response.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    status: u16,
    body: Vec<u8>,
    whole: bool,
}

/// What a response is when its bytes come in these pieces, or where it was refused.
fn read_in_pieces<'p>(pieces: impl Iterator<Item = &'p [u8]>) -> Result<Option<Seen>, &'static str> {
    let (mut buffer, mut read) = (BytesMut::new(), None::<(Decoder, Seen)>);
    for piece in pieces {
        buffer.extend_from_slice(piece);
        if read.is_none()
            && let Some(response) = head::decode(&mut buffer, &Method::GET).map_err(|_| "its head")?
        {
            let seen = Seen {
                status: response.status().as_u16(),
                body: Vec::new(),
                whole: false,
            };
            read = Some((response.into_body(), seen));
        }
        let Some((decoder, seen)) = &mut read else {
            continue;
        };
        while !seen.whole {
            match decoder.next(&mut buffer).map_err(|_| "its body")? {
                body::Next::Data(data) => seen.body.extend_from_slice(&data),
                body::Next::Trailers(_) => {}
                body::Next::More => break,
                body::Next::End(_) => seen.whole = true,
            }
        }
    }
    Ok(read.map(|(_, seen)| seen))
}

/// However an application's bytes are cut, they are the same response, or none.
#[test]
fn fuzz_response() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let chunked = [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", bytes].concat();
        for input in [bytes, &chunked] {
            let whole = read_in_pieces(std::iter::once(input));
            assert_eq!(read_in_pieces(input.chunks(1)), whole);
            assert_eq!(read_in_pieces(input.chunks(5)), whole);
        }
    });
}

/// Pieces of all sizes come whole and in order, with what ends them, however little is taken at a time.
#[tokio::test]
async fn large_and_small_pieces_are_sent_in_order() {
    let sizes = [10, 5_000, 1, 100_000, 20, 4_096, 4_095, 16_384];
    let pieces: Vec<Bytes> = (b'a'..)
        .zip(sizes)
        .map(|(byte, size)| vec![byte; size].into())
        .collect();
    let mut trailers = http::HeaderMap::new();
    trailers.insert("sum", http::HeaderValue::from_static("1"));
    let plain = pieces.concat();
    let mut chunked = Vec::new();
    for piece in &pieces {
        chunked.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    chunked.extend(b"0\r\nsum: 1\r\n\r\n");
    for (mut framing, expected) in [
        (Framing::Length(plain.len() as u64), plain),
        (Framing::Chunked, chunked),
    ] {
        for taken in [1, 999, 1 << 20] {
            let (mut near, mut far) = tokio::io::duplex(taken);
            let sending = async {
                let mut outgoing = Outgoing::default();
                for piece in &pieces {
                    framing
                        .encode(piece.clone(), &mut outgoing)
                        .expect("as long as said");
                    while !outgoing.has_room() {
                        let written = std::future::poll_fn(|cx| outgoing.poll_write(Pin::new(&mut near), cx));
                        assert!(written.await.expect("it is read") > 0);
                    }
                }
                framing
                    .finish(Some(&trailers), outgoing.tail())
                    .expect("as long as said");
                while !outgoing.is_empty() {
                    let written = std::future::poll_fn(|cx| outgoing.poll_write(Pin::new(&mut near), cx));
                    written.await.expect("it is read");
                }
                drop(near);
            };
            let mut came = Vec::new();
            let (_, read) = tokio::join!(sending, far.read_to_end(&mut came));
            read.expect("it ends");
            assert!(came == expected, "{framing:?} by {taken}");
            if let Framing::Length(left) = &mut framing {
                *left = expected.len() as u64;
            }
        }
    }
}
