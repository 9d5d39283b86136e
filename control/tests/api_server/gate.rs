//! A gate between a program and the API server, that makes the API server look ill.

use std::{
    convert::Infallible,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use anyhow::Context as _;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{net::TcpListener, sync::watch, task::JoinSet};

/// What the API server looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// As it is.
    Well,
    /// Every request is refused, and what was under way is cut.
    Refuses(StatusCode),
    /// Watches cannot go on from where they were, as after a compaction.
    Expires,
    /// Nothing comes through, and nothing says so.
    Stalls,
    /// What was under way is cut; everything works when asked anew.
    Cuts,
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

/// A running gate; closed when dropped.
pub(crate) struct Gate {
    pub(crate) kubeconfig: PathBuf,
    health: watch::Sender<Health>,
    faults: Arc<AtomicUsize>,
    _dir: tempfile::TempDir,
    _serving: JoinSet<()>,
}

impl Gate {
    pub(crate) async fn open(client: Client) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let dir = tempfile::tempdir()?;
        let kubeconfig = dir.path().join("kubeconfig");
        std::fs::write(&kubeconfig, config(listener.local_addr()?).to_string())?;
        let (health, seen) = watch::channel(Health::Well);
        let faults = Arc::new(AtomicUsize::new(0));
        let ward = Ward {
            client,
            health: seen,
            faults: faults.clone(),
        };
        let mut serving = JoinSet::new();
        serving.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((connection, _)) = listener.accept().await {
                let ward = ward.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| {
                        let ward = ward.clone();
                        async move { Ok::<_, Infallible>(ward.answer(request).await) }
                    });
                    // A cut connection is what it is for.
                    let _ = http1::Builder::new()
                        .serve_connection(TokioIo::new(connection), service)
                        .await;
                });
            }
        });
        Ok(Self {
            kubeconfig,
            health,
            faults,
            _dir: dir,
            _serving: serving,
        })
    }

    pub(crate) fn set(&self, health: Health) {
        self.health.send_replace(health);
    }

    /// How many answers were not the API server's own.
    pub(crate) fn faults(&self) -> usize {
        self.faults.load(Ordering::Relaxed)
    }
}

/// A kubeconfig without users: the gate is the one who is known to the API server.
fn config(addr: SocketAddr) -> serde_json::Value {
    json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "gate", "cluster": {"server": format!("http://{addr}")}}],
        "users": [{"name": "nobody", "user": {}}],
        "contexts": [{"name": "gate", "context": {"cluster": "gate", "user": "nobody"}}],
        "current-context": "gate",
    })
}

#[derive(Clone)]
struct Ward {
    client: Client,
    health: watch::Receiver<Health>,
    faults: Arc<AtomicUsize>,
}

impl Ward {
    async fn answer(mut self, request: Request<Incoming>) -> Answer {
        let watches = request
            .uri()
            .query()
            .is_some_and(|query| query.contains("watch=true"));
        let health = *self.health.borrow_and_update();
        match health {
            Health::Refuses(code) => return self.refuse(code),
            Health::Expires if watches => return self.refuse(StatusCode::GONE),
            Health::Stalls => {
                self.fault();
                self.recovered().await;
            }
            Health::Well | Health::Expires | Health::Cuts => {}
        }
        let faults = self.faults.clone();
        match self.forward(request).await {
            Ok(answer) => answer,
            Err(error) => {
                faults.fetch_add(1, Ordering::Relaxed);
                eprintln!("The gate could not ask the API server: {error:#}");
                status(StatusCode::BAD_GATEWAY)
            }
        }
    }

    fn fault(&self) {
        self.faults.fetch_add(1, Ordering::Relaxed);
    }

    fn refuse(&self, code: StatusCode) -> Answer {
        self.fault();
        status(code)
    }

    /// Waits while nothing comes through.
    async fn recovered(&mut self) {
        // Never fails before the gate is gone.
        let _ = self.health.wait_for(|health| *health != Health::Stalls).await;
    }

    /// Waits until what is under way is cut.
    async fn cut(&mut self) {
        let cuts = |health: &Health| !matches!(health, Health::Well | Health::Stalls);
        if self.health.wait_for(cuts).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    async fn forward(self, request: Request<Incoming>) -> anyhow::Result<Answer> {
        let (mut parts, body) = request.into_parts();
        parts.headers.remove(header::HOST);
        let body = Body::from(body.collect().await?.to_bytes().to_vec());
        let answer = self.client.send(Request::from_parts(parts, body)).await;
        let (mut parts, body) = answer.context("the API server does not answer")?.into_parts();
        parts.headers.remove(header::TRANSFER_ENCODING);
        // What is under way when the API server recovers goes on.
        let begun = *self.health.borrow();
        let state = (self, body.into_data_stream(), begun);
        let frames = stream::unfold(Some(state), |state| async {
            let (mut ward, mut data, begun) = state?;
            tokio::select! {
                () = ward.cut(), if begun == Health::Well => {
                    ward.fault();
                    let cut = std::io::Error::other("cut");
                    Some((Err(cut), None))
                }
                next = data.next() => {
                    if *ward.health.borrow() == Health::Stalls {
                        ward.fault();
                        ward.recovered().await;
                    }
                    let next = next?.map(Frame::data).map_err(std::io::Error::other);
                    Some((next, Some((ward, data, begun))))
                }
            }
        });
        Ok(Response::from_parts(
            parts,
            StreamBody::new(frames).boxed_unsync(),
        ))
    }
}

/// A failure as the API server tells it.
fn status(code: StatusCode) -> Answer {
    let object = json!({
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": "the gate says so",
        "reason": if code == StatusCode::GONE { "Expired" } else { "" },
        "code": code.as_u16(),
    });
    let body = Full::new(Bytes::from(object.to_string())).map_err(|never| match never {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = code;
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
