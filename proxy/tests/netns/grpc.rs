//! gRPC between pods, with a client and a server that know nothing of proxies: what applications rely on beyond
//! requests and trailers.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, uri::PathAndQuery};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use linkerd2_proxy_api::outbound::proxy_protocol::Kind;
use tokio::net::TcpStream;
use tokio_stream::StreamExt as _;
use tonic::{
    Code, Status, Streaming,
    client::Grpc,
    metadata::{MetadataMap, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;
use tower::service_fn as method;

use crate::{
    DEADLINE,
    apps::RESET_STREAMS_MAX,
    can_run,
    control::Script,
    eventually,
    fault_endpoint::in_a_row,
    http_traffic::service,
    net::{Namespace, Network},
    pod::Pod,
    policies::{endpoint, http_rule, outbound_http2, path},
};

/// Most of a head on either side of the proxies, which pass up to 64 KiB.
const HEAD_BYTES_MAX: u32 = 64 * 1024;

/// What the server has seen.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// Calls that will never be answered.
    begun: Arc<AtomicU32>,
    /// Calls that ended before their server was done with them.
    cancelled: Arc<AtomicU32>,
    /// Calls that said how long their client waits.
    with_deadline: Arc<AtomicU32>,
    /// Calls of a method that fails after its head.
    late: Arc<AtomicU32>,
    /// So many of these fail.
    late_failures: Arc<AtomicU32>,
}

/// Counts a call whose future is dropped.
struct Call(Arc<AtomicU32>);

impl Drop for Call {
    fn drop(&mut self) {
        self.0.fetch_add(1, SeqCst);
    }
}

pub(crate) fn serve(namespace: &Namespace, port: u16, seen: Seen) {
    namespace.serve(port, move |tcp| {
        let seen = seen.clone();
        let service = service_fn(move |request| answer(request, seen.clone()));
        http2::Builder::new(TokioExecutor::new())
            .max_header_list_size(HEAD_BYTES_MAX)
            .max_pending_accept_reset_streams(RESET_STREAMS_MAX)
            .serve_connection(TokioIo::new(tcp), service)
    });
}

async fn answer(
    request: Request<Incoming>,
    seen: Seen,
) -> Result<http::Response<tonic::body::Body>, Infallible> {
    if request.headers().contains_key("grpc-timeout") {
        seen.with_deadline.fetch_add(1, SeqCst);
    }
    let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
    Ok(match request.uri().path() {
        "/test.Echo/Unary" => {
            let echo = |request: tonic::Request<String>| async {
                let (metadata, _, message) = request.into_parts();
                let mut response = tonic::Response::new(message);
                copy(&metadata, response.metadata_mut());
                Ok::<_, Status>(response)
            };
            grpc.unary(method(echo), request).await
        }
        "/test.Echo/Stream" => {
            let echo = |request: tonic::Request<Streaming<String>>| async {
                Ok::<_, Status>(tonic::Response::new(request.into_inner()))
            };
            grpc.streaming(method(echo), request).await
        }
        "/test.Echo/Late" => {
            let number = seen.late.fetch_add(1, SeqCst);
            let fails = number < seen.late_failures.load(SeqCst);
            let late = move |request: tonic::Request<String>| async move {
                let answer = match fails {
                    true => Err(Status::unavailable("later")),
                    false => Ok(request.into_inner()),
                };
                Ok::<_, Status>(tonic::Response::new(tokio_stream::iter([answer])))
            };
            grpc.server_streaming(method(late), request).await
        }
        "/test.Echo/Hang" => {
            let hang = move |_: tonic::Request<String>| {
                seen.begun.fetch_add(1, SeqCst);
                let call = Call(seen.cancelled.clone());
                async move {
                    let _call = call;
                    std::future::pending::<Result<tonic::Response<String>, Status>>().await
                }
            };
            grpc.unary(method(hang), request).await
        }
        _ => {
            let mut metadata = MetadataMap::new();
            metadata.insert("reason", MetadataValue::from_static("no such method"));
            let details = b"\x00\x01binary\xff".as_slice().into();
            Status::with_details_and_metadata(Code::NotFound, "nicht gefunden: ü", details, metadata)
                .into_http()
        }
    })
}

fn copy(from: &MetadataMap, to: &mut MetadataMap) {
    if let Some(text) = from.get("big") {
        to.insert("big", text.clone());
    }
    if let Some(bytes) = from.get_bin("some-bin") {
        to.insert_bin("some-bin", bytes.clone());
    }
}

/// A client's own connection through its proxy.
async fn client() -> Grpc<Channel> {
    let channel = Endpoint::from_shared(format!("http://{}", service()))
        .expect("an address")
        .http2_max_header_list_size(HEAD_BYTES_MAX)
        .connect()
        .await
        .expect("the proxy accepts");
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.expect("connected");
    grpc
}

async fn unary(
    path: &'static str,
    request: tonic::Request<String>,
) -> Result<tonic::Response<String>, Status> {
    let call = async {
        let mut client = client().await;
        client
            .unary(request, PathAndQuery::from_static(path), ProstCodec::default())
            .await
    };
    tokio::time::timeout(DEADLINE, call)
        .await
        .expect("an answer in time")
}

/// A client's pod and a server's, and what the server sees.
fn pair(network: &Network, script: &Script) -> (Pod, Pod, Seen) {
    let (server, seen) = (Pod::start(network, script, "server"), Seen::default());
    serve(&server.namespace, 8080, seen.clone());
    script.set_endpoints(
        &path("echo"),
        vec![endpoint(server.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_http2("echo", http_rule("echo")));
    (Pod::start(network, script, "client"), server, seen)
}

#[test]
fn grpc_calls_of_every_kind_pass() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client_pod, _server, seen) = pair(&network, &script);

    let (big, message) = ("m".repeat(40_000), "x".repeat(1 << 20));
    let (sent, sent_message) = (big.clone(), message.clone());
    let response = client_pod.namespace.block_on(move || async move {
        let mut request = tonic::Request::new(sent_message);
        request.metadata_mut().insert("big", sent.parse().expect("ASCII"));
        request
            .metadata_mut()
            .insert_bin("some-bin", MetadataValue::from_bytes(&[0, 255, 10]));
        unary("/test.Echo/Unary", request).await.expect("an answer")
    });
    assert_eq!(
        response
            .metadata()
            .get("big")
            .expect("metadata of any size")
            .as_bytes(),
        big.as_bytes()
    );
    let bytes = response.metadata().get_bin("some-bin").expect("binary metadata");
    assert_eq!(bytes.to_bytes().expect("base64").as_ref(), [0, 255, 10]);
    assert!(
        *response.get_ref() == message,
        "a message of 1 MiB comes back whole"
    );

    let error = client_pod
        .namespace
        .block_on(|| unary("/test.Echo/None", tonic::Request::new(String::new())))
        .expect_err("there is no such method");
    assert_eq!(
        (error.code(), error.message()),
        (Code::NotFound, "nicht gefunden: ü")
    );
    assert_eq!(error.details(), b"\x00\x01binary\xff");
    assert_eq!(
        error.metadata().get("reason").expect("metadata"),
        "no such method"
    );

    let answers = client_pod
        .namespace
        .block_on(|| async { tokio::time::timeout(DEADLINE, converse()).await });
    let expected: Vec<_> = (0..100).map(|number| number.to_string()).collect();
    assert_eq!(
        answers.expect("each answer comes before the next question"),
        expected
    );
    assert_eq!(seen.with_deadline.load(SeqCst), 0);
}

/// Sends each message only when the one before has come back: nothing on the way may wait for more.
async fn converse() -> Vec<String> {
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(receiver);
    sender.send("0".to_owned()).await.expect("the call is open");
    let path = PathAndQuery::from_static("/test.Echo/Stream");
    let response = client()
        .await
        .streaming(tonic::Request::new(outgoing), path, ProstCodec::default())
        .await;
    let mut incoming: Streaming<String> = response.expect("an answer").into_inner();
    let (mut sender, mut answers) = (Some(sender), Vec::new());
    while let Some(answer) = incoming.next().await {
        answers.push(answer.expect("a message"));
        match &sender {
            Some(open) if answers.len() < 100 => {
                open.send(answers.len().to_string())
                    .await
                    .expect("the call is open");
            }
            _ => drop(sender.take()),
        }
    }
    answers
}

/// A server's head says nothing of a failure that is in its trailers.
#[test]
fn failures_in_trailers_are_tried_again_and_judged() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client_pod, server, seen) = pair(&network, &script);
    let mut rule = http_rule("echo");
    rule.allow_l5d_request_headers = true;
    let mut policy = outbound_http2("echo", rule);
    if let Some(Kind::Http2(http2)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut()) {
        http2.failure_accrual = Some(in_a_row(4));
    }
    script.set_outbound(service(), policy);
    let retried = || {
        let mut request = tonic::Request::new("hello".to_owned());
        for (name, value) in [("l5d-retry-grpc", "unavailable"), ("l5d-retry-limit", "3")] {
            request
                .metadata_mut()
                .insert(name, MetadataValue::from_static(value));
        }
        unary("/test.Echo/Late", request)
    };
    eventually("the policy allows retries", || {
        seen.late.store(0, SeqCst);
        seen.late_failures.store(3, SeqCst);
        let answer = client_pod.namespace.block_on(retried);
        answer
            .is_ok_and(|answer| answer.get_ref() == "hello")
            .then(|| assert_eq!(seen.late.load(SeqCst), 4))
    });
    let unavailable = [("direction", "inbound"), ("grpc_status", "14")];
    eventually("each try is counted as it ended", || {
        (server.metric("response_total", &unavailable)? >= 3.0).then_some(())
    });

    seen.late.store(0, SeqCst);
    seen.late_failures.store(u32::MAX, SeqCst);
    eventually("the server rests", || {
        let late = || unary("/test.Echo/Late", tonic::Request::new(String::new()));
        let error = client_pod.namespace.block_on(late).expect_err("it fails");
        error.message().contains("no endpoint became ready").then_some(())
    });
    // What succeeded began the count anew; each of the client's two workers counts for itself.
    let asked = seen.late.load(SeqCst);
    assert!((4..=8).contains(&asked), "asked {asked} times");
}

#[test]
fn deadlines_and_cancellation_reach_the_server() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client_pod, _server, seen) = pair(&network, &script);
    let error = client_pod
        .namespace
        .block_on(|| {
            let mut request = tonic::Request::new(String::new());
            request.set_timeout(Duration::from_millis(300));
            unary("/test.Echo/Hang", request)
        })
        .expect_err("the server never answers");
    assert!(
        matches!(error.code(), Code::Cancelled | Code::DeadlineExceeded),
        "{error:?}"
    );
    assert_eq!(
        seen.with_deadline.load(SeqCst),
        1,
        "the server is told of the deadline"
    );
    eventually("the server learns that nobody waits any more", || {
        (seen.cancelled.load(SeqCst) == 1).then_some(())
    });

    // The same without a deadline, on a connection that stays.
    let (begun, cancelled) = (seen.begun.clone(), seen.cancelled.clone());
    client_pod.namespace.block_on(move || async move {
        let mut client = client().await;
        let path = PathAndQuery::from_static("/test.Echo/Hang");
        let call = client.unary::<String, String, _>(
            tonic::Request::new(String::new()),
            path,
            ProstCodec::default(),
        );
        tokio::select! {
            answer = call => panic!("the server never answers, and yet {answer:?}"),
            () = counts_to(&begun, 2) => {}
        }
        counts_to(&cancelled, 2).await;
    });
}

async fn counts_to(count: &AtomicU32, expected: u32) {
    let reached = async {
        while count.load(SeqCst) < expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(DEADLINE, reached)
        .await
        .expect("the server sees it in time");
}

#[test]
fn a_client_that_goes_away_takes_no_other_clients_calls_with_it() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client_pod, _server, seen) = pair(&network, &script);
    client_pod.namespace.block_on(move || async move {
        let mut other = client().await;
        for round in 1..=3 {
            let gone = tokio::spawn(call_without_end(3_000));
            // The server takes 200 of them at a time.
            counts_to(&seen.begun, round * 200).await;
            gone.abort();
            for _ in 0..20 {
                other.ready().await.expect("connected");
                let path = PathAndQuery::from_static("/test.Echo/Unary");
                let codec = ProstCodec::<String, String>::default();
                let answer = other
                    .unary(tonic::Request::new("other".to_owned()), path, codec)
                    .await;
                assert_eq!(
                    answer.expect("another client's call is answered").get_ref(),
                    "other"
                );
            }
            counts_to(&seen.cancelled, round * 200).await;
        }
    });
}

/// An application that has many calls open, until it is dropped.
async fn call_without_end(calls: usize) {
    let tcp = TcpStream::connect(service()).await.expect("the proxy accepts");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tcp))
            .await
            .expect("HTTP/2");
    let calls = async move {
        sender.ready().await.expect("HTTP/2");
        let begun: Vec<_> = (0..calls)
            .map(|_| {
                let call = Request::post("http://echo.test/test.Echo/Hang")
                    .header("content-type", "application/grpc");
                let empty = Full::new(Bytes::from_static(&[0; 5]));
                sender.send_request(call.body(empty).expect("valid"))
            })
            .collect();
        futures_util::future::join_all(begun).await
    };
    let _ = tokio::join!(connection, calls);
}
