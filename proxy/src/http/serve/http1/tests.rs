use std::{cell::RefCell, rc::Rc};

use http::{Request, Response};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{
    http::{incoming, serve::http1_service},
    io::Socket,
    metrics::{Metrics, labels::Labels, tcp::TcpHandles},
};

/// A client, and the connection that it has to a server of [`answer`].
async fn connected() -> (TcpStream, Prefixed<Io>, Rc<ConnState>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let addr = listener.local_addr().expect("it is bound");
    let (client, server) = tokio::join!(TcpStream::connect(addr), listener.accept());
    let open = TcpHandles::new(&Metrics::default(), &Labels::default()).open();
    let io = Io::new(Socket::Plain(Prefixed::new(server.expect("it was made").0)), open);
    let state = Rc::new(ConnState::new(io.traffic()));
    (client.expect("it listens"), Prefixed::new(io), state)
}

/// Says what was asked for.
async fn answer(request: Request<incoming::Incoming>) -> Response<ResponseBody> {
    Response::new(ResponseBody::full(request.uri().path().to_owned().into()))
}

/// The body of the next response, which is as long as `path`.
async fn answered(client: &mut TcpStream, path: &str) -> String {
    let mut received = Vec::new();
    while !received.windows(4).any(|four| four == b"\r\n\r\n") || !received.ends_with(path.as_bytes()) {
        let count = client.read_buf(&mut received).await.expect("it is answered");
        assert!(
            count > 0,
            "the connection ended after {:?}",
            String::from_utf8_lossy(&received)
        );
    }
    let text = String::from_utf8(received).expect("it is text");
    text.rsplit("\r\n").next().unwrap_or_default().to_owned()
}

fn no_drain() -> (
    drain::Signal,
    Drain<impl Future<Output = ReleaseShutdown> + Unpin>,
) {
    let (signal, watch) = drain::channel();
    let drain = Drain {
        signaled: Box::pin(watch.signaled()),
        begun: None,
    };
    (signal, drain)
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_rests_and_serves_again() {
    let (mut client, mut io, state) = connected().await;
    let (_signal, mut drain) = no_drain();
    let mut service = http1_service(&state, answer, || false);
    for path in ["/first", "/second"] {
        let asking = async {
            let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n");
            client.write_all(request.as_bytes()).await.expect("it is taken");
            answered(&mut client, path).await
        };
        let (body, stop) = tokio::join!(asking, requests(io, service, &state, &mut drain, false));
        assert_eq!(body, path);
        Resting { io, service } = stop.expect("it rests");
    }
}

#[tokio::test(start_paused = true)]
async fn what_has_come_of_the_next_request_is_not_lost_when_a_connection_rests() {
    let (mut client, io, state) = connected().await;
    let (_signal, mut drain) = no_drain();
    let service = http1_service(&state, answer, || false);
    let asking = async {
        let requests = b"GET /first HTTP/1.1\r\nhost: a\r\n\r\nGET /sec";
        client.write_all(requests).await.expect("they are taken");
        answered(&mut client, "/first").await
    };
    let (_, stop) = tokio::join!(asking, requests(io, service, &state, &mut drain, false));
    let Resting { io, service } = stop.expect("it rests");
    assert!(state.has_begun());
    let asking = async {
        client
            .write_all(b"ond HTTP/1.1\r\nhost: a\r\n\r\n")
            .await
            .expect("it is taken");
        answered(&mut client, "/second").await
    };
    let (body, _) = tokio::join!(asking, requests(io, service, &state, &mut drain, false));
    assert_eq!(body, "/second");
}

/// What is left of a body must not be taken for a request.
#[tokio::test(start_paused = true)]
async fn a_connection_whose_body_is_not_over_does_not_rest() {
    let (mut client, io, state) = connected().await;
    let (_signal, mut drain) = no_drain();
    let bodies = Rc::new(RefCell::new(Vec::new()));
    let keep = bodies.clone();
    let service = http1_service(
        &state,
        move |request| {
            let (head, body) = request.into_parts();
            keep.borrow_mut().push(body);
            let path = head.uri.path().to_owned();
            async { Response::new(ResponseBody::full(path.into())) }
        },
        || false,
    );
    let asking = async {
        let head = b"POST /first HTTP/1.1\r\nhost: a\r\ncontent-length: 40\r\n\r\n";
        client.write_all(head).await.expect("it is taken");
        answered(&mut client, "/first").await
    };
    let serving = requests(io, service, &state, &mut drain, false);
    let (body, stop) = tokio::join!(asking, timeout(10 * LOOK_INTERVAL, serving));
    assert_eq!(body, "/first");
    assert!(stop.is_err(), "it neither rests nor ends");
}
