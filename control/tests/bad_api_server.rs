//! An API server that fails in every way it can: watches go on, and nothing that was known is lost.
//!
//! The server is a script: it answers lists and watches of pods in the order given, and the last answer for ever.

use std::{
    convert::Infallible,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use heddle_control_core::discover::{DiscoverInbound as _, WorkloadName};
use heddle_control_index::{Cluster, Config, watcher::Watchers};
use heddle_tests_harness::wait::{self, Look};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinSet};

const LIMIT: Duration = Duration::from_secs(40);

type Body = BoxBody<Bytes, Infallible>;

/// What the server answers.
enum Answer {
    /// An error, with its status.
    Fails(StatusCode),
    /// A list, with its resource version.
    List(u32, Vec<Value>),
    /// Events of a watch. The connection then stays open and silent.
    Events(Vec<String>),
}

/// The script, from the end; and what has been asked for.
#[derive(Default)]
struct Script {
    answers: Vec<Answer>,
    asked: Vec<String>,
}

impl Script {
    /// The next answer; when there is none left, one that is silent.
    fn next(&mut self, query: &str) -> (StatusCode, Vec<String>, bool) {
        let is_watch = query.contains("watch=");
        self.asked
            .push(if is_watch { "watch" } else { "list" }.to_owned());
        let silent = (StatusCode::OK, vec![], true);
        match self.answers.pop() {
            None => silent,
            Some(Answer::Fails(code)) => {
                let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": "x", "message": "scripted"});
                (code, vec![status.to_string()], false)
            }
            Some(Answer::List(version, items)) if !is_watch => {
                let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": version.to_string()}, "items": items});
                (StatusCode::OK, vec![list.to_string()], false)
            }
            Some(Answer::Events(events)) if is_watch => (StatusCode::OK, events, true),
            // The client asks for something else than the script expects: it must be seen, not answered.
            Some(other) => {
                self.asked.push("unexpected".to_owned());
                self.answers.push(other);
                silent
            }
        }
    }
}

struct Server {
    addr: SocketAddr,
    script: Arc<Mutex<Script>>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(mut answers: Vec<Answer>) -> anyhow::Result<Self> {
        answers.reverse();
        let script = Arc::new(Mutex::new(Script {
            answers,
            asked: Vec::new(),
        }));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let mut tasks = JoinSet::new();
        let shared = script.clone();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let script = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| answer(script.clone(), request));
                    // A client that hangs up is what the script is for.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self {
            addr,
            script,
            _tasks: tasks,
        })
    }

    fn asked(&self) -> Vec<String> {
        self.script
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .asked
            .clone()
    }
}

async fn answer(
    script: Arc<Mutex<Script>>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let query = request.uri().query().unwrap_or_default();
    let (status, lines, stays_open) = script.lock().unwrap_or_else(PoisonError::into_inner).next(query);
    let lines = lines
        .into_iter()
        .map(|line| Ok(Frame::data(Bytes::from(format!("{line}\n")))));
    let body = match stays_open {
        true => BodyExt::boxed(StreamBody::new(stream::iter(lines).chain(stream::pending()))),
        false => BodyExt::boxed(StreamBody::new(stream::iter(lines))),
    };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}

fn pod(name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": "1"},
        "spec": {"containers": [{"name": "app"}]},
        "status": {"phase": "Running", "podIP": ip},
    })
}

/// A pod that nobody can read, but for its name.
fn garbled(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "ns", "name": name, "resourceVersion": "2"},
        "spec": {"containers": 7},
    })
}

/// With its type first, as API servers write it.
fn event(kind: &str, object: Value) -> String {
    format!(r#"{{"type":"{kind}","object":{object}}}"#)
}

fn gone() -> String {
    event(
        "ERROR",
        json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old"}),
    )
}

/// Watches of pods at a server, with connections that count as dead after `silence`.
fn watch(server: &Server, silence: Duration) -> anyhow::Result<(Cluster, Watchers)> {
    let mut config = kube::Config::new(format!("http://{}", server.addr).parse()?);
    config.read_timeout = Some(silence);
    let client = kube::Client::try_from(config)?;
    let cluster = Cluster::new(Config::default());
    let mut watchers = Watchers::new(
        client,
        cluster.clone(),
        &mut prometheus_client::registry::Registry::default(),
    );
    watchers.watch::<Pod>();
    Ok((cluster, watchers))
}

/// The pods that the index knows, with their addresses.
fn known(cluster: &Cluster) -> Vec<(&'static str, IpAddr)> {
    let names = ["a", "b", "c", "d"].into_iter();
    let known = names.filter_map(|name| {
        let policy = cluster.inbound(&WorkloadName::pod("ns", name), 80).ok()?;
        let ips = policy.borrow().ips.clone();
        Some((name, *ips.first()?))
    });
    known.collect()
}

async fn until(server: &Server, cluster: &Cluster, expected: &[(&'static str, &str)]) -> anyhow::Result<()> {
    let expected: Vec<(&str, IpAddr)> = expected
        .iter()
        .map(|(name, ip)| Ok((*name, ip.parse()?)))
        .collect::<Result<_, std::net::AddrParseError>>()?;
    wait::until(format!("the index to know {expected:?}"), LIMIT, || {
        let known = known(cluster);
        let look = match known == expected {
            true => Look::Done(()),
            false => Look::NotYet(format!("it knows {known:?}; asked were {:?}", server.asked())),
        };
        async move { look }
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn errors_are_tried_again_with_pauses() -> anyhow::Result<()> {
    let server = Server::start(vec![
        Answer::Fails(StatusCode::INTERNAL_SERVER_ERROR),
        Answer::Fails(StatusCode::TOO_MANY_REQUESTS),
        Answer::List(1, vec![pod("a", "10.1.0.1")]),
        Answer::Events(vec![event("ADDED", pod("b", "10.1.0.2"))]),
    ])
    .await?;
    let (cluster, watchers) = watch(&server, LIMIT)?;
    let synced = watchers.synced();
    assert!(!synced.is_synced());
    until(&server, &cluster, &[("a", "10.1.0.1"), ("b", "10.1.0.2")]).await?;
    assert!(synced.is_synced());
    assert_eq!(
        server.asked(),
        ["list", "list", "list", "watch"],
        "not once more than needed"
    );
    Ok(())
}

#[tokio::test]
async fn an_object_that_cannot_be_read_stays_as_it_was_through_watch_and_relist() -> anyhow::Result<()> {
    let server = Server::start(vec![
        Answer::List(1, vec![pod("a", "10.1.0.1"), garbled("b"), pod("c", "10.1.0.3")]),
        Answer::Events(vec![
            event("MODIFIED", garbled("a")),
            event("ADDED", pod("d", "10.1.0.4")),
            gone(),
        ]),
        // After the 410: everything is listed anew, without c.
        Answer::List(9, vec![garbled("a"), pod("d", "10.1.0.5")]),
        Answer::Events(vec![event("ADDED", pod("b", "10.1.0.2"))]),
    ])
    .await?;
    let (cluster, _watchers) = watch(&server, LIMIT)?;
    until(
        &server,
        &cluster,
        &[("a", "10.1.0.1"), ("b", "10.1.0.2"), ("d", "10.1.0.5")],
    )
    .await?;
    assert_eq!(server.asked(), ["list", "watch", "list", "watch"]);
    Ok(())
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_taken_up_again_where_it_was() -> anyhow::Result<()> {
    let server = Server::start(vec![
        Answer::List(1, vec![pod("a", "10.1.0.1")]),
        Answer::Events(vec![]),
        Answer::Events(vec![
            event("DELETED", pod("a", "10.1.0.1")),
            event("ADDED", pod("b", "10.1.0.2")),
        ]),
    ])
    .await?;
    let (cluster, _watchers) = watch(&server, Duration::from_secs(1))?;
    until(&server, &cluster, &[("b", "10.1.0.2")]).await?;
    let asked = server.asked();
    assert_eq!(asked[..3], ["list", "watch", "watch"], "no second list");
    Ok(())
}
