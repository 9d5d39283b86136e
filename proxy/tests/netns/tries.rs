//! How often a request is tried, how long it may take, and which backend it goes to when not all of them can take it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use linkerd2_proxy_api::{
    destination::AuthorityOverride,
    http_route::Timeouts,
    outbound::{
        ExponentialBackoff, FailureAccrual, OutboundPolicy, failure_accrual,
        http_route::{self, Distribution, Retry, RouteBackend, WeightedRouteBackend, distribution, retry},
        proxy_protocol::Kind,
    },
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    apps::{Http1, Reply, get, serve_http, try_get},
    can_run,
    control::Script,
    eventually,
    fault_app::{Fickle, PIECE, PIECES},
    fault_endpoint::in_a_row,
    http_traffic::service,
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::{backend, endpoint, http_rule, outbound_detect, path, seconds},
};

/// One endpoint without a proxy, and a client with one worker, so that it knows what it has seen.
struct Story {
    app: Fickle,
    client: Pod,
    script: Script,
    server: Namespace,
    network: Network,
}

impl Story {
    fn new(policy: OutboundPolicy) -> Self {
        let (network, script) = (Network::new(), Script::new());
        let server = network.namespace();
        let app = Fickle::serve(&server, 8080);
        script.set_endpoints(&path("web"), vec![endpoint(server.ip, 8080, None, false)]);
        script.set_outbound(service(), policy);
        let options = Options {
            env: vec![("CORES", "1".to_owned())],
        };
        Self {
            app,
            client: Pod::start_with(&network, &script, "client", options),
            script,
            server,
            network,
        }
    }

    /// A reply, and how long it took.
    fn ask(&self, path: &'static str) -> (Reply, Duration) {
        let start = Instant::now();
        let reply = self
            .client
            .namespace
            .block_on(move || async move { try_get(service(), path).await.expect("a reply") });
        (reply, start.elapsed())
    }

    fn post(&self, path: &'static str, body: Vec<u8>) -> Reply {
        self.client.namespace.block_on(move || async move {
            let request = Request::post(path)
                .header("host", "web.test")
                .body(Full::new(Bytes::from(body)));
            let mut connection = Http1::connect(service()).await.expect("connects");
            connection.send(request.expect("valid")).await.expect("a reply")
        })
    }

    fn counted(&self, name: &str) -> f64 {
        self.client.metric(name, &[]).unwrap_or(0.0)
    }
}

fn ms(ms: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration {
        seconds: 0,
        nanos: ms * 1_000_000,
    })
}

/// Tries a request again that the server failed at.
fn retried(max_retries: u32) -> Retry {
    Retry {
        max_retries,
        max_request_bytes: 1024,
        conditions: Some(retry::Conditions {
            status_ranges: vec![retry::conditions::StatusRange { start: 500, end: 599 }],
        }),
        timeout: None,
        backoff: None,
    }
}

/// A rule whose tries have 200 ms each, but for the second, which is the last.
fn impatient() -> http_route::Rule {
    let retry = Retry {
        timeout: ms(200),
        ..retried(1)
    };
    http_route::Rule {
        retry: Some(retry),
        ..http_rule("web")
    }
}

fn policy(rule: http_route::Rule, accrual: Option<FailureAccrual>) -> OutboundPolicy {
    let mut policy = outbound_detect("web", rule);
    if let Some(Kind::Detect(detect)) = policy.protocol.as_mut().and_then(|one| one.kind.as_mut())
        && let Some(http1) = &mut detect.http1
    {
        http1.failure_accrual = accrual;
    }
    policy
}

#[test]
fn a_request_whose_time_is_over_is_not_tried_again() {
    if !can_run() {
        return;
    }
    let rule = http_route::Rule {
        retry: Some(retried(5)),
        timeouts: Some(Timeouts {
            request: ms(300),
            ..Default::default()
        }),
        ..http_rule("web")
    };
    let story = Story::new(policy(rule, Some(in_a_row(2))));
    assert_eq!(story.ask("/").0.status, 200);
    story.app.set_delay(Duration::from_secs(2));
    let (reply, took) = story.ask("/");
    assert_eq!(reply.status, 504);
    assert!(took >= Duration::from_millis(300), "{took:?}");
    assert_eq!(story.app.seen(), 2, "one try");
    assert_eq!(story.counted("outbound_http_route_retry_requests_total"), 0.0);
    story.app.set_delay(Duration::ZERO);
    // One failure: the endpoint rests after two.
    assert_eq!(story.ask("/").0.status, 200);
}

#[test]
fn a_try_that_takes_too_long_is_followed_by_another() {
    if !can_run() {
        return;
    }
    let story = Story::new(policy(impatient(), None));
    story.app.set_delay(Duration::from_millis(600));
    let (reply, took) = story.ask("/");
    assert_eq!((reply.status, story.app.seen()), (200, 2));
    // The last one may take as long as it does.
    assert!(took >= Duration::from_millis(800), "{took:?}");
}

#[test]
fn a_slow_try_counts_against_its_endpoint() {
    if !can_run() {
        return;
    }
    let story = Story::new(policy(impatient(), Some(in_a_row(1))));
    story.app.set_delay(Duration::from_millis(600));
    let (reply, _) = story.ask("/");
    assert_eq!((reply.status, story.app.seen()), (503, 1), "it rests");
}

#[test]
fn failures_that_were_under_way_do_not_lengthen_the_rest() {
    if !can_run() {
        return;
    }
    let mut accrual = in_a_row(2);
    if let Some(failure_accrual::Kind::ConsecutiveFailures(one)) = &mut accrual.kind {
        one.backoff = Some(ExponentialBackoff {
            min_backoff: seconds(1),
            max_backoff: seconds(60),
            ..Default::default()
        });
    }
    let story = Story::new(policy(http_rule("web"), Some(accrual)));
    assert_eq!(story.ask("/").0.status, 200);
    let second = story.network.namespace();
    let other = Fickle::serve(&second, 8080);
    let mut known = [&story.server, &second].map(|one| endpoint(one.ip, 8080, None, false));
    // Nearly all go to the first.
    known[0].weight *= 1_000;
    story.script.set_endpoints(&path("web"), known.into());
    eventually("both are known", || {
        story.ask("/");
        (story.counted("outbound_http_balancer_p2c_endpoints") == 2.0).then_some(())
    });
    story.app.set_fail_percent(100);
    for app in [&story.app, &other] {
        app.set_delay(Duration::from_millis(500));
    }
    let failed = story.client.namespace.block_on(|| async {
        let asking: Vec<_> = (0..30).map(|_| tokio::spawn(try_get(service(), "/"))).collect();
        let mut failed = 0;
        for one in asking {
            failed += u32::from(one.await.expect("ends").expect("a reply").status == 503);
        }
        failed
    });
    assert!(failed > 20, "{failed} failed");
    story.app.set_fail_percent(0);
    for app in [&story.app, &other] {
        app.set_delay(Duration::ZERO);
    }
    let (start, seen) = (Instant::now(), story.app.seen());
    eventually("it has rested", || {
        story.ask("/");
        (story.app.seen() > seen).then_some(())
    });
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn tries_have_pauses_between_them_and_the_whole_body() {
    if !can_run() {
        return;
    }
    let rule = http_route::Rule {
        retry: Some(Retry {
            backoff: Some(ExponentialBackoff {
                min_backoff: ms(400),
                max_backoff: ms(400),
                ..Default::default()
            }),
            ..retried(2)
        }),
        ..http_rule("web")
    };
    let story = Story::new(policy(rule, None));
    story.app.set_fail_percent(100);
    let (reply, took) = story.ask("/");
    assert_eq!((reply.status, story.app.seen()), (503, 3));
    assert!(took >= Duration::from_millis(800), "{took:?}");
    // The fourth fails, the fifth does not.
    story.app.set_fail_percent(50);
    let body = vec![b'x'; 1024];
    let reply = story.post("/echo", body.clone());
    assert_eq!((reply.status, story.app.seen()), (200, 5));
    assert_eq!(reply.body.as_bytes(), body);
    let reply = story.post("/echo", vec![b'x'; 1025]);
    assert_eq!(
        (reply.status, story.app.seen()),
        (503, 6),
        "more than the policy lets be kept"
    );
    assert_eq!(story.counted("outbound_http_route_retry_overflow_total"), 1.0);
}

#[test]
fn a_response_has_its_time_once_the_request_is_there() {
    if !can_run() {
        return;
    }
    let rule = http_route::Rule {
        timeouts: Some(Timeouts {
            response: ms(500),
            ..Default::default()
        }),
        ..http_rule("web")
    };
    let story = Story::new(policy(rule, None));
    let slowly = story.client.namespace.block_on(|| async {
        let mut tcp = TcpStream::connect(service()).await.expect("connects");
        let head = b"POST /echo HTTP/1.1\r\nhost: web.test\r\ncontent-length: 8\r\nconnection: close\r\n\r\n";
        tcp.write_all(head).await.expect("writes");
        for byte in b"12345678" {
            // A client that takes its time.
            tokio::time::sleep(Duration::from_millis(100)).await;
            tcp.write_all(&[*byte]).await.expect("writes");
        }
        let mut reply = String::new();
        tcp.read_to_string(&mut reply).await.expect("reads");
        reply
    });
    assert!(
        slowly.starts_with("HTTP/1.1 200") && slowly.ends_with("12345678"),
        "{slowly}"
    );
    let long = story.client.namespace.block_on(|| async {
        let mut tcp = TcpStream::connect(service()).await.expect("connects");
        let head = b"GET /long HTTP/1.1\r\nhost: web.test\r\nconnection: close\r\n\r\n";
        tcp.write_all(head).await.expect("writes");
        let mut reply = Vec::new();
        // It may end as it likes.
        let _ = tcp.read_to_end(&mut reply).await;
        reply.len()
    });
    assert!(long < PIECES * PIECE.len(), "{long} bytes");
    story.app.set_delay(Duration::from_secs(2));
    assert_eq!(story.ask("/").0.status, 504);
}

#[test]
fn an_outage_is_waited_for_once() {
    if !can_run() {
        return;
    }
    let story = Story::new(policy(http_rule("web"), None));
    assert_eq!(story.ask("/").0.status, 200);
    story.script.set_endpoints(&path("web"), Vec::new());
    eventually("the endpoint is gone", || {
        (story.ask("/").0.status == 503).then_some(())
    });
    for _ in 0..5 {
        let (reply, took) = story.ask("/");
        assert_eq!(reply.status, 503);
        assert!(took < Duration::from_secs(1), "{took:?}");
    }
    let known = vec![endpoint(story.server.ip, 8080, None, false)];
    story.script.set_endpoints(&path("web"), known);
    eventually("it is back", || (story.ask("/").0.status == 200).then_some(()));
}

#[test]
fn a_policys_waiting_time_holds_for_a_service_that_is_in_use() {
    if !can_run() {
        return;
    }
    let waiting = |failfast_timeout, mark: &str| {
        use linkerd2_proxy_api::{
            http_route::ResponseHeaderModifier,
            http_types::{Headers, headers::Header},
        };
        let mut backend = backend("web");
        backend.queue.as_mut().expect("it has one").failfast_timeout = failfast_timeout;
        let mark = ResponseHeaderModifier {
            set: Some(Headers {
                headers: vec![Header {
                    name: "mark".to_owned(),
                    value: mark.into(),
                }],
            }),
            ..Default::default()
        };
        let first = distribution::FirstAvailable {
            backends: vec![RouteBackend {
                backend: Some(backend),
                ..Default::default()
            }],
        };
        let rule = http_route::Rule {
            backends: Some(Distribution {
                kind: Some(distribution::Kind::FirstAvailable(first)),
            }),
            filters: vec![http_route::Filter {
                kind: Some(http_route::filter::Kind::ResponseHeaderModifier(mark)),
            }],
            ..http_rule("web")
        };
        policy(rule, None)
    };
    let story = Story::new(waiting(seconds(60), "one"));
    let holds = |mark: &str| {
        eventually("the policy holds", || {
            (story.ask("/").0.headers.get("mark")? == mark).then_some(())
        });
    };
    holds("one");
    story.script.set_outbound(service(), waiting(ms(300), "two"));
    holds("two");
    story.script.set_endpoints(&path("web"), Vec::new());
    let took = eventually("the endpoint is gone", || {
        let (reply, took) = story.ask("/");
        (reply.status == 503).then_some(took)
    });
    assert!(took < Duration::from_secs(3), "{took:?}");
}

#[test]
fn an_endpoint_that_takes_no_connection_is_tried_by_one_request_at_a_time() {
    if !can_run() {
        return;
    }
    const CLIENTS: u32 = 20;
    let story = Story::new(policy(http_rule("web"), None));
    let server = story.network.namespace();
    let tried = Arc::new(AtomicU32::new(0));
    let counting = tried.clone();
    // It is to prove an identity, and does not even speak TLS.
    server.serve(8080, move |tcp| {
        counting.fetch_add(1, Relaxed);
        async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(tcp);
            Ok::<_, std::io::Error>(())
        }
    });
    let known = linkerd2_proxy_api::destination::WeightedAddr {
        // So that each request makes its own connection.
        protocol_hint: None,
        ..endpoint(server.ip, 8080, Some("server"), false)
    };
    story.script.set_endpoints(&path("web"), vec![known]);
    let failed = story.client.namespace.block_on(|| async {
        let asking: Vec<_> = (0..CLIENTS)
            .map(|_| tokio::spawn(try_get(service(), "/")))
            .collect();
        let mut failed = 0;
        for one in asking {
            failed += u32::from(one.await.expect("ends").expect("a reply").status >= 500);
        }
        failed
    });
    assert_eq!(failed, CLIENTS);
    // At first nobody knows. Then there are about five tries until all give up, each after twice the time.
    let tried = tried.load(Relaxed);
    assert!(tried <= CLIENTS + 10, "{tried} connections");
}

/// Two backends, of which the first is the story's.
fn two_backends() -> [RouteBackend; 2] {
    ["web", "other"].map(|name| RouteBackend {
        backend: Some(backend(name)),
        ..Default::default()
    })
}

fn to(kind: distribution::Kind) -> OutboundPolicy {
    let rule = http_route::Rule {
        backends: Some(Distribution { kind: Some(kind) }),
        ..http_rule("web")
    };
    policy(rule, Some(in_a_row(2)))
}

fn half_each() -> OutboundPolicy {
    let backends = two_backends().map(|backend| WeightedRouteBackend {
        backend: Some(backend),
        weight: 1,
    });
    to(distribution::Kind::RandomAvailable(
        distribution::RandomAvailable {
            backends: backends.into(),
        },
    ))
}

/// A second service that answers with its name.
fn serve_other(story: &Story) -> Namespace {
    let other = story.network.namespace();
    serve_http(&other, 8080, "other");
    let known = vec![endpoint(other.ip, 8080, None, false)];
    story.script.set_endpoints(&path("other"), known);
    other
}

#[test]
fn the_first_backend_with_endpoints_gets_all() {
    if !can_run() {
        return;
    }
    let first = distribution::FirstAvailable {
        backends: two_backends().into(),
    };
    let story = Story::new(to(distribution::Kind::FirstAvailable(first)));
    let _other = serve_other(&story);
    eventually("the second's are known", || {
        story.script.set_endpoints(&path("web"), Vec::new());
        (story.ask("/").0.body == "other").then_some(())
    });
    assert!((0..10).all(|_| story.ask("/").0.body == "other"));
    let known = vec![endpoint(story.server.ip, 8080, None, false)];
    story.script.set_endpoints(&path("web"), known);
    eventually("the first is there", || {
        (story.ask("/").0.body == "ok").then_some(())
    });
    assert!((0..10).all(|_| story.ask("/").0.body == "ok"));
}

#[test]
fn a_backend_whose_endpoints_rest_leaves_its_share_to_the_others() {
    if !can_run() {
        return;
    }
    let story = Story::new(half_each());
    let _other = serve_other(&story);
    eventually("both answer", || {
        let bodies: Vec<_> = (0..10).map(|_| story.ask("/").0.body).collect();
        (bodies.iter().any(|body| body == "ok") && bodies.iter().any(|body| body == "other")).then_some(())
    });
    story.app.set_fail_percent(100);
    let replies: Vec<_> = (0..40).map(|_| story.ask("/").0.status).collect();
    let failed = replies.iter().filter(|status| **status == 503).count();
    assert_eq!(failed, 2, "as many as make it rest: {replies:?}");
    // A service that has no endpoints is another matter: Gateway API wants its share answered with 503.
    story.script.set_endpoints(&path("web"), Vec::new());
    eventually("its share fails", || {
        (story.ask("/").0.status == 503).then_some(())
    });
    assert_eq!(
        eventually("the other's does not", || {
            let reply = story.ask("/").0;
            (reply.status == 200).then_some(reply.body)
        }),
        "other"
    );
}

#[test]
fn a_backend_that_cannot_be_connected_to_leaves_its_share_to_the_others() {
    if !can_run() {
        return;
    }
    let story = Story::new(half_each());
    let _other = serve_other(&story);
    // Nothing listens there.
    let gone = vec![endpoint(story.server.ip, 8081, None, false)];
    story.script.set_endpoints(&path("web"), gone);
    eventually("the other gets all", || {
        (0..20).all(|_| story.ask("/").0.body == "other").then_some(())
    });
    let back = Fickle::serve(&story.server, 8081);
    eventually("it is back", || {
        story.ask("/");
        (back.seen() > 0).then_some(())
    });
}

#[test]
fn upgrades_have_the_endpoints_name_and_count_against_it() {
    if !can_run() {
        return;
    }
    let story = Story::new(policy(http_rule("web"), Some(in_a_row(2))));
    let server = story.network.namespace();
    serve_http(&server, 8080, "server");
    let known = linkerd2_proxy_api::destination::WeightedAddr {
        authority_override: Some(AuthorityOverride {
            authority_override: "web.elsewhere:8080".to_owned(),
        }),
        ..endpoint(server.ip, 8080, None, false)
    };
    story.script.set_endpoints(&path("web"), vec![known]);
    let upgrade = |path: &'static str| {
        story.client.namespace.block_on(move || async move {
            let mut request = get(path);
            for (name, value) in [("connection", "upgrade"), ("upgrade", "reverse")] {
                let value = http::HeaderValue::from_static(value);
                request.headers_mut().insert(name, value);
            }
            let mut connection = Http1::connect(service()).await.expect("connects");
            let response = connection.raw(request).await.expect("a reply");
            let host = response.headers().get("seen-host").cloned();
            (
                response.status().as_u16(),
                host.map(|host| host.to_str().expect("text").to_owned()),
            )
        })
    };
    let host = Some("web.elsewhere:8080".to_owned());
    eventually("it is known", || {
        (upgrade("/upgrade") == (101, host.clone())).then_some(())
    });
    assert_eq!(upgrade("/fail"), (503, host.clone()));
    assert_eq!(upgrade("/fail"), (503, host));
    assert_eq!(upgrade("/upgrade"), (503, None), "the endpoint rests");
}
