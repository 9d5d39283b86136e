//! Taps: who may look, at what, and that nobody waits for who does.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use heddle_tls::{CertifyLoop, ClientAuth, ControlChannel, Readiness, Store, TrustBundle};
use http::Request;
use http_body_util::Full;
use linkerd2_proxy_api::{
    http_types,
    tap::{
        ObserveRequest, TapEvent, eos,
        observe_request::{
            self, Extract, Match, extract,
            r#match::{self as kinds, http::string_match},
        },
        tap_client::TapClient,
        tap_event::{Event, ProxyDirection, http::Event as HttpEvent},
    },
};
use tonic::Status;

use crate::{
    DEADLINE,
    apps::{Http1, get, send_http2, serve_http, try_get},
    can_run,
    control::{self, Script},
    http_traffic::service,
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::{endpoint, http_rule, identity, outbound_detect, path},
};

fn tapped(network: &Network, script: &Script) -> (Pod, Pod) {
    let options = || Options {
        env: vec![("TAP_SVC_NAME", identity("tap"))],
    };
    let server = Pod::start_with(network, script, "server", options());
    serve_http(&server.namespace, 8080, "server");
    let addrs = vec![endpoint(server.namespace.ip, 8080, Some("server"), false)];
    script.set_endpoints(&path("web"), addrs);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start_with(network, script, "client", options());
    (client, server)
}

/// Wants requests whose path begins so.
fn wanting(prefix: &str, limit: u32, headers: bool) -> ObserveRequest {
    let path = kinds::http::StringMatch {
        r#match: Some(string_match::Match::Prefix(prefix.to_owned())),
    };
    let http = kinds::Http {
        r#match: Some(kinds::http::Match::Path(path)),
    };
    let headers = headers.then_some(extract::http::Extract::Headers(extract::http::Headers {}));
    ObserveRequest {
        limit,
        r#match: Some(Match {
            r#match: Some(kinds::Match::Http(http)),
        }),
        extract: Some(Extract {
            extract: Some(extract::Extract::Http(extract::Http { extract: headers })),
        }),
    }
}

/// A channel to a pod's control port, as an account; must be made on a runtime in a namespace that has the control plane.
async fn channel(script: &Script, account: &str, pod: SocketAddr, pod_account: &str) -> ControlChannel {
    let parse = |account: &str| identity(account).parse().expect("an identity");
    let roots = TrustBundle::from_pem(script.anchors()).expect("anchors");
    let (store, key) = Store::new(parse(account), roots).expect("a store");
    let token = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(token.path(), "a token").expect("a small file");
    let addr = format!("127.0.0.1:{}", control::PORT)
        .parse()
        .expect("an address");
    let certify = CertifyLoop::new(store.clone(), key, addr, parse("identity"), token.path());
    tokio::spawn(certify.run());
    let mut ready = store.ready();
    let ready = tokio::time::timeout(DEADLINE, ready.wait_for(Readiness::is_ready)).await;
    drop(ready.expect("in time").expect("a certificate"));
    drop(token);
    let addr = pod.to_string().parse().expect("an address");
    ControlChannel::new(addr, parse(pod_account), store, ClientAuth::Leaf)
}

/// Taps as an account, lets `act` make traffic once the tap is there, and collects the events until it ends.
fn tap<A, F>(
    observer: &Namespace,
    script: &Script,
    account: &'static str,
    pod: SocketAddr,
    request: ObserveRequest,
    act: A,
) -> Result<Vec<TapEvent>, Status>
where
    A: FnOnce() -> F + Send + 'static,
    F: Future<Output = ()>,
{
    let script = script.clone();
    observer.block_on(move || async move {
        let pod_account = "server";
        let mut client = TapClient::new(channel(&script, account, pod, pod_account).await);
        let events = client.observe(request).await?.into_inner();
        act().await;
        let events = tokio::time::timeout(DEADLINE, events.collect::<Vec<_>>()).await;
        events
            .expect("the tap ends when it has all")
            .into_iter()
            .collect()
    })
}

fn http(event: &TapEvent) -> &HttpEvent {
    match &event.event {
        Some(Event::Http(http)) => http.event.as_ref().expect("an event"),
        None => panic!("no HTTP: {event:?}"),
    }
}

fn header<'h>(headers: Option<&'h http_types::Headers>, name: &str) -> Option<&'h [u8]> {
    let found = headers?.headers.iter().find(|header| header.name == name);
    found.map(|header| header.value.as_slice())
}

/// The thread of another namespace, for traffic while the observer's runtime waits.
async fn elsewhere<F>(namespace: Namespace, body: impl FnOnce() -> F + Send + 'static)
where
    F: Future<Output = ()>,
{
    let done = tokio::task::spawn_blocking(move || namespace.block_on(body));
    done.await.expect("no panic");
}

#[test]
fn an_observer_sees_the_life_of_the_requests_it_asked_for() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = tapped(&network, &script);
    let observer = network.namespace();
    let _control = script.serve(&observer);
    let from = client.namespace.clone();
    let traffic = move || {
        elsewhere(from, || async {
            assert_eq!(try_get(service(), "/other").await.expect("a reply").status, 200);
            let request = Request::post("/echo?secret=1").header("host", "web.test");
            let request = request
                .header("x-asked", "for")
                .body(Full::new(Bytes::from_static(b"123456")));
            let mut connection = Http1::connect(service()).await.expect("connects");
            let reply = connection.send(request.expect("valid")).await.expect("a reply");
            assert_eq!(reply.status, 200);
        })
    };
    let control_port = server.addr(4190);
    let events = tap(
        &observer,
        &script,
        "tap",
        control_port,
        wanting("/echo", 1, true),
        traffic,
    );
    let events = events.expect("allowed");
    let [begun, answered, ended] = events.as_slice() else {
        panic!("not three events: {events:#?}");
    };
    let labels = |meta: &Option<linkerd2_proxy_api::tap::tap_event::EndpointMeta>| {
        meta.clone().expect("labels").labels
    };
    for event in &events {
        assert_eq!(event.proxy_direction, i32::from(ProxyDirection::Inbound));
        let source: SocketAddr = event.source.expect("an address").try_into().expect("valid");
        assert_eq!(source.ip(), client.namespace.ip);
        let destination: SocketAddr = event.destination.expect("an address").try_into().expect("valid");
        assert_eq!(destination, server.addr(8080));
        let source = labels(&event.source_meta);
        assert_eq!(
            (source["tls"].as_str(), &source["client_id"]),
            ("true", &identity("client"))
        );
    }
    let (HttpEvent::RequestInit(begun), HttpEvent::ResponseInit(answered), HttpEvent::ResponseEnd(ended)) =
        (http(begun), http(answered), http(ended))
    else {
        panic!("not in order: {events:#?}");
    };
    assert_eq!(
        (begun.path.as_str(), begun.authority.as_str()),
        ("/echo", "web.test")
    );
    assert_eq!(begun.method, Some(http::Method::POST.into()));
    assert_eq!(header(begun.headers.as_ref(), "x-asked"), Some(b"for".as_slice()));
    assert_eq!(answered.http_status, 200);
    assert!(header(answered.headers.as_ref(), "seen-uri").is_some());
    assert_eq!(ended.response_bytes, 6);
    assert!(ended.since_request_init.is_some() && ended.since_response_init.is_some());
    assert!(begun.id == answered.id && begun.id == ended.id && begun.id.is_some());
}

#[test]
fn an_outbound_tap_tells_the_endpoint_and_how_a_call_ended() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = tapped(&network, &script);
    // The helper asks for the server's identity: here the client is looked at.
    let observer = network.namespace();
    let _control = script.serve(&observer);
    let from = client.namespace.clone();
    let traffic = move || {
        elsewhere(from, || async {
            let call =
                Request::post("http://web.test/grpc.Test/Call").header("content-type", "application/grpc");
            let call = call.body(Full::default()).expect("valid");
            let reply = send_http2(service(), call).await.expect("a reply");
            assert_eq!(reply.trailers.expect("trailers")["grpc-status"], "0");
            assert_eq!(
                Http1::connect(service())
                    .await
                    .expect("connects")
                    .send(get("/slow"))
                    .await
                    .expect("a reply")
                    .status,
                200
            );
        })
    };
    let (script2, addr) = (script.clone(), client.addr(4190));
    let events: Vec<TapEvent> = observer.block_on(move || async move {
        let channel = channel(&script2, "tap", addr, "client").await;
        let mut client = TapClient::new(channel);
        let events = client
            .observe(wanting("/", 2, false))
            .await
            .expect("allowed")
            .into_inner();
        traffic().await;
        let events = tokio::time::timeout(DEADLINE, events.collect::<Vec<_>>()).await;
        events
            .expect("in time")
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("no error")
    });
    assert_eq!(events.len(), 6, "{events:#?}");
    for event in &events {
        assert_eq!(event.proxy_direction, i32::from(ProxyDirection::Outbound));
        let destination: SocketAddr = event.destination.expect("an address").try_into().expect("valid");
        assert_eq!(destination, server.addr(8080));
        let to = event.destination_meta.clone().expect("labels").labels;
        assert_eq!(to["pod"], format!("pod-{}", server.namespace.ip));
        assert_eq!(
            (to["tls"].as_str(), &to["server_id"]),
            ("true", &identity("server"))
        );
    }
    let ends: Vec<_> = events
        .iter()
        .filter_map(|event| match http(event) {
            HttpEvent::ResponseEnd(end) => Some(end.eos.and_then(|eos| eos.end)),
            HttpEvent::RequestInit(begun) => {
                assert!(begun.headers.is_none(), "headers were not asked for");
                None
            }
            HttpEvent::ResponseInit(_) => None,
        })
        .collect();
    assert_eq!(ends, [Some(eos::End::GrpcStatusCode(0)), None]);
}

#[test]
fn only_the_named_identity_may_tap_and_only_with_a_request_that_says_something() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (_client, server) = tapped(&network, &script);
    let observer = network.namespace();
    let _control = script.serve(&observer);
    let refused = |account, request| {
        let nothing = || async {};
        let result = tap(&observer, &script, account, server.addr(4190), request, nothing);
        result.expect_err("refused").code()
    };
    assert_eq!(
        refused("client", wanting("/", 1, false)),
        tonic::Code::Unauthenticated
    );
    assert_eq!(
        refused("tap", wanting("/", 0, false)),
        tonic::Code::InvalidArgument
    );
    let nothing = ObserveRequest {
        r#match: Some(observe_request::Match { r#match: None }),
        ..wanting("/", 1, false)
    };
    assert_eq!(refused("tap", nothing), tonic::Code::InvalidArgument);
    // Without TLS there is nobody to be.
    let addr = server.addr(4190);
    let plain = observer.block_on(move || async move { try_get(addr, "/").await.map(|reply| reply.status) });
    assert!(plain.is_err(), "{plain:?}");
    // A pod that names nobody has no such port.
    let untapped = Pod::start(&network, &script, "untapped");
    let addr = untapped.addr(4190);
    let connected =
        observer.block_on(move || async move { tokio::net::TcpStream::connect(addr).await.is_ok() });
    assert!(!connected);
}

#[test]
fn a_slow_observer_loses_events_and_holds_up_nobody() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (client, server) = tapped(&network, &script);
    let observer = network.namespace();
    let _control = script.serve(&observer);
    let (script2, addr, from) = (script.clone(), server.addr(4190), client.namespace.clone());
    observer.block_on(move || async move {
        let channel = channel(&script2, "tap", addr, "server").await;
        let mut tap = TapClient::new(channel);
        // Not read from here on, until far more has happened than there is room for.
        let events = tap
            .observe(wanting("/", 100_000, true))
            .await
            .expect("allowed")
            .into_inner();
        elsewhere(from, || async {
            let mut connection = Http1::connect(service()).await.expect("connects");
            for _ in 0..1_500 {
                let request = Request::get("/")
                    .header("host", "web.test")
                    .header("x-long", "x".repeat(2_000));
                let request = request.body(Full::default()).expect("valid");
                assert_eq!(connection.send(request).await.expect("a reply").status, 200);
            }
        })
        .await;
        drop(events);
    });
    let dropped = server.metric("tap_events_dropped_total", &[]).expect("a count");
    assert!(dropped > 0.0, "{dropped}");
    assert_eq!(
        client.metric("request_total", &[("direction", "outbound")]),
        Some(1_500.0)
    );
}
