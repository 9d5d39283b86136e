//! Traces through both proxies of a request, and their spans at a meshed collector.

use std::{
    collections::HashMap,
    convert::Infallible,
    net::Ipv4Addr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use http::Request;
use http_body_util::Full;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{KeyValue, any_value::Value},
    trace::v1::{Span, span::SpanKind},
};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Response, Status,
    server::{Grpc, NamedService},
};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

use crate::{
    apps::{Http1, serve_http},
    can_run,
    control::Script,
    eventually,
    http_traffic::service,
    net::{Namespace, Network},
    pod::{Options, Pod},
    policies::{authz, endpoint, http_rule, identity, outbound_detect, path, server},
};

const PORT: u16 = 4317;

/// Each with what is said of its process.
type Spans = Vec<(HashMap<String, Value>, Span)>;

/// Takes spans and keeps them.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Spans>>);

impl NamedService for Collector {
    const NAME: &'static str = "opentelemetry.proto.collector.trace.v1.TraceService";
}

impl Service<http::Request<tonic::body::Body>> for Collector {
    type Response = http::Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<tonic::body::Body>) -> Self::Future {
        let collector = self.clone();
        Box::pin(async move {
            let take = service_fn(move |request: tonic::Request<ExportTraceServiceRequest>| {
                collector.take(request.into_inner());
                std::future::ready(Ok::<_, Status>(Response::new(
                    ExportTraceServiceResponse::default(),
                )))
            });
            let codec = ProstCodec::<ExportTraceServiceResponse, ExportTraceServiceRequest>::default();
            Ok(Grpc::new(codec).unary(take, request).await)
        })
    }
}

fn attributes(all: &[KeyValue]) -> HashMap<String, Value> {
    let pairs = all.iter();
    pairs
        .filter_map(|one| Some((one.key.clone(), one.value.clone()?.value?)))
        .collect()
}

impl Collector {
    fn serve(&self, namespace: &Namespace) {
        let collector = self.clone();
        namespace.listen((Ipv4Addr::UNSPECIFIED, PORT), |listener| async move {
            tonic::transport::Server::builder()
                .add_service(collector)
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .expect("the collector serves");
        });
    }

    fn take(&self, request: ExportTraceServiceRequest) {
        let mut spans = self.0.lock().expect("no test panics while it holds this");
        for resource in request.resource_spans {
            let of = attributes(&resource.resource.unwrap_or_default().attributes);
            let all = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(all.map(|span| (of.clone(), span)));
        }
    }

    fn spans(&self) -> Spans {
        self.0.lock().expect("no test panics while it holds this").clone()
    }
}

fn text(value: &str) -> Value {
    Value::StringValue(value.to_owned())
}

#[test]
fn a_sampled_request_leaves_a_chain_of_spans_at_a_collector_that_proves_who_it_is() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    // Only meshed clients may reach the collector: the spans come over mutual TLS.
    script.set_inbound(
        "collector",
        PORT,
        server(vec![authz(Some(&["client", "server"]))]),
    );
    let home = Pod::start(&network, &script, "collector");
    let collector = Collector::default();
    collector.serve(&home.namespace);
    let tracing = |name: &str| Options {
        env: vec![
            (
                "TRACE_COLLECTOR_SVC_ADDR",
                format!("{}:{PORT}", home.namespace.ip),
            ),
            ("TRACE_COLLECTOR_SVC_NAME", identity("collector")),
            ("TRACE_SERVICE_NAME", name.to_owned()),
            ("TRACE_EXTRA_ATTRIBUTES", "k8s.pod.name=a\nteam=blue".to_owned()),
        ],
    };
    let web = Pod::start_with(&network, &script, "server", tracing("web-proxy"));
    serve_http(&web.namespace, 8080, "web");
    let addrs = vec![endpoint(web.namespace.ip, 8080, Some("server"), false)];
    script.set_endpoints(&path("web"), addrs);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let client = Pod::start_with(&network, &script, "client", tracing("client-proxy"));

    let trace = "94d7f6ec6b95f3e916179cb6cfd01390";
    let send = |headers: Vec<(&'static str, String)>| {
        client.namespace.block_on(move || async move {
            let mut request = Request::get("/a?b=c").header("host", "web.test");
            for (name, value) in headers {
                request = request.header(name, value);
            }
            let request = request.body(Full::default()).expect("valid");
            let mut connection = Http1::connect(service()).await.expect("connects");
            connection.send(request).await.expect("a reply")
        })
    };
    let not_sampled = send(vec![("traceparent", format!("00-{trace}-00000000000000aa-00"))]);
    assert!(
        not_sampled.headers["seen-traceparent"]
            .to_str()
            .expect("text")
            .starts_with(&format!("00-{trace}-"))
    );
    let reply = send(vec![("traceparent", format!("00-{trace}-00000000000000ab-01"))]);
    let b3 = send(vec![
        ("x-b3-traceid", "16179cb6cfd01390".to_owned()),
        ("x-b3-spanid", "00000000000000ac".to_owned()),
        ("x-b3-sampled", "1".to_owned()),
    ]);
    assert_eq!((reply.status, b3.status), (200, 200));

    let spans = eventually("all spans have come", || {
        let spans = collector.spans();
        (spans.len() >= 8).then_some(spans)
    });
    assert_eq!(spans.len(), 8, "four of each sampled request, none of the other");
    let below = |parent: &[u8]| {
        let found = spans.iter().find(|(_, span)| span.parent_span_id == parent);
        found.unwrap_or_else(|| panic!("no span below {parent:?}"))
    };
    for (first, trace) in [
        (0xab_u64, u128::from_str_radix(trace, 16).expect("hex")),
        (0xac, 0x16179cb6cfd01390),
    ] {
        let mut parent = first.to_be_bytes().to_vec();
        for (service, direction, kind) in [
            ("client-proxy", "outbound", SpanKind::Server),
            ("client-proxy", "outbound", SpanKind::Client),
            ("web-proxy", "inbound", SpanKind::Server),
            ("web-proxy", "inbound", SpanKind::Client),
        ] {
            let (resource, span) = below(&parent);
            assert_eq!(resource["service.name"], text(service));
            assert_eq!(resource["team"], text("blue"));
            let said = attributes(&span.attributes);
            assert_eq!(said["direction"], text(direction));
            assert_eq!(said["http.request.method"], text("GET"));
            assert_eq!(said["url.path"], text("/a"));
            assert_eq!(said["http.response.status_code"], Value::IntValue(200));
            assert_eq!((span.kind, span.name.as_str()), (kind as i32, "/a"));
            assert_eq!(span.trace_id, trace.to_be_bytes());
            assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
            parent = span.span_id.clone();
        }
        let last = u64::from_be_bytes(parent.try_into().expect("eight bytes"));
        let seen = match first {
            0xab => &reply.headers["seen-traceparent"],
            _ => &b3.headers["seen-b3-spanid"],
        };
        assert!(
            seen.to_str().expect("text").contains(&format!("{last:016x}")),
            "{seen:?}"
        );
    }
    eventually("spans are counted", || {
        (client.metric("opentelemetry_span_exports", &[]) == Some(4.0)).then_some(())
    });
    let [streams, requests] = ["streams", "requests"].map(|what| {
        let name = format!("opentelemetry_span_export_{what}");
        client.metric(&name, &[]).expect("a counter")
    });
    assert!(streams >= requests && requests >= 1.0, "{streams}, {requests}");

    // One that is somebody else gets none.
    let mut wrong = tracing("wrong");
    wrong.env[1].1 = identity("server");
    let wrong = Pod::start_with(&network, &script, "client", wrong);
    let reply = wrong.namespace.block_on(|| async {
        let request = Request::get("/").header("host", "web.test");
        let request = request.header(
            "traceparent",
            "00-94d7f6ec6b95f3e916179cb6cfd01390-00000000000000ad-01",
        );
        let mut connection = Http1::connect(service()).await.expect("connects");
        connection
            .send(request.body(Full::default()).expect("valid"))
            .await
            .expect("a reply")
    });
    assert_eq!(reply.status, 200, "requests do not wait for the collector");
    eventually("spans are given up", || {
        (wrong.metric("opentelemetry_spans_dropped_total", &[])? >= 2.0).then_some(())
    });
    assert!(
        collector
            .spans()
            .iter()
            .all(|(resource, _)| resource["service.name"] != text("wrong"))
    );
}
