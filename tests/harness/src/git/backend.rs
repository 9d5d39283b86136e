//! The HTTP side: each request becomes one run of `git http-backend`, as the CGI convention has it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{
    AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, WWW_AUTHENTICATE,
};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{ChildStdout, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::repository::{Repository, git};

/// Largest push that is accepted.
const REQUEST_MAX_BYTES: usize = 64 << 20;
/// Largest header block that the backend may send.
const HEADER_MAX_BYTES: u64 = 16 << 10;
/// Pieces that an answer is sent in.
const PIECE_BYTES: usize = 64 << 10;
/// Connections served at once; more wait to be accepted.
const CONNECTIONS_MAX: usize = 128;
/// Longest that one request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(120);

type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// What a client must show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    Basic { user: String, password: String },
    Bearer(String),
}

impl Auth {
    fn expected(&self) -> String {
        match self {
            Self::Basic { user, password } => {
                format!("Basic {}", BASE64.encode(format!("{user}:{password}")))
            }
            Self::Bearer(token) => format!("Bearer {token}"),
        }
    }

    fn challenge(&self) -> &'static str {
        match self {
            Self::Basic { .. } => "Basic realm=\"heddle tests\"",
            Self::Bearer(_) => "Bearer realm=\"heddle tests\"",
        }
    }
}

/// How to serve.
#[derive(Debug, Clone)]
pub struct GitServerOptions {
    /// Where to listen; port 0 takes a free one. Pods reach [`crate::cluster::Cluster::host_ip`].
    pub listen: SocketAddr,
    /// What clients must show; nothing by default.
    pub auth: Option<Auth>,
}

impl GitServerOptions {
    /// On a free port of `ip`, open to everyone.
    pub fn on(ip: impl Into<std::net::IpAddr>) -> Self {
        Self {
            listen: SocketAddr::new(ip.into(), 0),
            auth: None,
        }
    }
}

/// A server of repositories that lives as long as this value.
#[derive(Debug)]
pub struct GitServer {
    addr: SocketAddr,
    root: tempfile::TempDir,
    // Aborts the server when dropped.
    _serving: JoinSet<()>,
    failing: watch::Sender<Option<StatusCode>>,
}

struct Shared {
    root: PathBuf,
    auth: Option<Auth>,
    failing: watch::Receiver<Option<StatusCode>>,
}

impl GitServer {
    /// Starts to listen.
    pub async fn start(options: GitServerOptions) -> Result<Self> {
        let GitServerOptions { listen, auth } = options;
        let listener = TcpListener::bind(listen)
            .await
            .with_context(|| format!("failed to listen on {listen} for the Git server"))?;
        let addr = listener
            .local_addr()
            .context("failed to read the Git server's address")?;
        let root = tempfile::Builder::new()
            .prefix("heddle-git-")
            .tempdir()
            .context("failed to make a folder for repositories")?;
        let (failing, failing_receiver) = watch::channel(None);
        let shared = Arc::new(Shared {
            root: root.path().to_path_buf(),
            auth,
            failing: failing_receiver,
        });
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, shared));
        Ok(Self {
            addr,
            root,
            _serving: serving,
            failing,
        })
    }

    /// Makes a repository that is served at once.
    pub fn create(&self, name: &str) -> Result<Repository> {
        Repository::create(self.root.path(), name)
    }

    /// Where `repository` is served.
    pub fn url(&self, repository: &Repository) -> String {
        let name = repository
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy();
        format!("http://{}/{name}", self.addr)
    }

    /// The address it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers every request with `status` from now on; with `None`, serves again.
    pub fn fail_with(&self, status: Option<StatusCode>) {
        self.failing.send_replace(status);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => match accepted {
                Ok((stream, peer)) => drop(connections.spawn(serve(stream, peer, shared.clone()))),
                Err(error) => {
                    tracing::warn!(%error, "Failed to accept a connection");
                    // Descriptors ran out for a moment, most likely.
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>) {
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(answer(&shared, peer, request).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    if let Err(error) = builder.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, %peer, "A Git client's connection ended early");
    }
}

async fn answer(shared: &Shared, peer: SocketAddr, request: Request<Incoming>) -> Response<Body> {
    let failing = *shared.failing.borrow();
    if let Some(status) = failing {
        return text(status, "this server was told to fail\n");
    }
    if let Some(auth) = &shared.auth {
        let shown = request
            .headers()
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        if shown != Some(&auth.expected()) {
            let mut refusal = text(StatusCode::UNAUTHORIZED, "credentials are needed\n");
            refusal
                .headers_mut()
                .insert(WWW_AUTHENTICATE, HeaderValue::from_static(auth.challenge()));
            return refusal;
        }
    }
    match tokio::time::timeout(REQUEST_LIMIT, run_backend(shared, peer, request)).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            tracing::warn!("The Git backend failed: {error:#}");
            let status = match error.is::<http_body_util::LengthLimitError>() {
                true => StatusCode::PAYLOAD_TOO_LARGE,
                false => StatusCode::BAD_GATEWAY,
            };
            text(status, format!("{error:#}\n"))
        }
        Err(_) => text(StatusCode::GATEWAY_TIMEOUT, "git took too long\n"),
    }
}

async fn run_backend(
    shared: &Shared,
    peer: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>> {
    let (parts, body) = request.into_parts();
    // Chunks are put together here, within bounds; a compressed body stays so, the backend unpacks it.
    let body = Limited::new(body, REQUEST_MAX_BYTES).collect().await;
    let body = body.map_err(
        |error| match error.downcast::<http_body_util::LengthLimitError>() {
            Ok(too_long) => anyhow::Error::from(*too_long),
            Err(error) => anyhow::anyhow!("failed to read the request's body: {error}"),
        },
    )?;
    let body = body.to_bytes();
    let header = |name: HeaderName| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
            .to_owned()
    };
    let mut backend = Command::from(git());
    backend
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", &shared.root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("REQUEST_METHOD", parts.method.as_str())
        .env("PATH_INFO", parts.uri.path())
        .env("QUERY_STRING", parts.uri.query().unwrap_or_default())
        .env("REMOTE_ADDR", peer.ip().to_string())
        .env("CONTENT_TYPE", header(CONTENT_TYPE))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("HTTP_CONTENT_ENCODING", header(CONTENT_ENCODING))
        .env("GIT_PROTOCOL", header(HeaderName::from_static("git-protocol")))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    let mut child = backend.spawn().context("failed to start `git http-backend`")?;
    let mut stdin = child.stdin.take().context("git has no standard input")?;
    let stdout = child.stdout.take().context("git has no standard output")?;
    // Written beside reading: git may answer before it has read everything. It may also stop reading; then writing fails
    // and the answer says why.
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let _ = stdin.write_all(&body).await;
    });
    let mut stdout = BufReader::new(stdout);
    let mut response = read_headers(&mut stdout).await?;
    *response.body_mut() = stream_body(Answering {
        stdout,
        _child: child,
        _tasks: tasks,
    });
    Ok(response)
}

/// What must live until the answer has been sent.
struct Answering {
    stdout: BufReader<ChildStdout>,
    _child: tokio::process::Child,
    _tasks: JoinSet<()>,
}

fn stream_body(answering: Answering) -> Body {
    let pieces = stream::try_unfold(answering, |mut answering| async move {
        let mut piece = vec![0; PIECE_BYTES];
        let read = answering.stdout.read(&mut piece).await?;
        piece.truncate(read);
        Ok::<_, std::io::Error>((read > 0).then(|| (Frame::data(Bytes::from(piece)), answering)))
    });
    StreamBody::new(pieces).boxed_unsync()
}

/// Reads the backend's header block: lines up to an empty one, `Status` among them if it is not 200.
async fn read_headers(stdout: &mut BufReader<ChildStdout>) -> Result<Response<Body>> {
    let mut response = text(StatusCode::OK, "");
    let mut block = stdout.take(HEADER_MAX_BYTES);
    loop {
        let mut line = String::new();
        if block
            .read_line(&mut line)
            .await
            .context("failed to read what git answers")?
            == 0
        {
            bail!(
                "git ended without an answer, or with a header block of more than {HEADER_MAX_BYTES} bytes"
            );
        }
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(response);
        }
        let (name, value) = line
            .split_once(':')
            .with_context(|| format!("git sent `{line}` as a header"))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("status") {
            let code = value.split(' ').next().unwrap_or_default();
            *response.status_mut() = code
                .parse()
                .with_context(|| format!("git sent the status `{value}`"))?;
        } else {
            let name: HeaderName = name
                .parse()
                .with_context(|| format!("git sent `{line}` as a header"))?;
            let value =
                HeaderValue::from_str(value).with_context(|| format!("git sent `{line}` as a header"))?;
            response.headers_mut().append(name, value);
        }
    }
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(
        Full::new(text.into())
            .map_err(|never| match never {})
            .boxed_unsync(),
    );
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::command;

    async fn clone(url: &str, extra: &[&str]) -> Result<String> {
        let folder = tempfile::tempdir()?;
        let (url, extra) = (
            url.to_owned(),
            extra.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>(),
        );
        tokio::task::spawn_blocking(move || {
            command::run(
                git()
                    .args(extra)
                    .args(["clone", "--quiet", &url])
                    .arg(folder.path().join("clone")),
            )?;
            Ok(std::fs::read_to_string(folder.path().join("clone/mesh.yaml"))?)
        })
        .await?
    }

    #[tokio::test]
    async fn commits_are_served_and_history_can_be_replaced() {
        let server = GitServer::start(GitServerOptions::on(Ipv4Addr::LOCALHOST))
            .await
            .unwrap();
        let repository = server.create("mesh").unwrap();
        let first = repository
            .commit("one", &[("mesh.yaml", "1"), ("a/b.yaml", "x")])
            .unwrap();
        assert_eq!(clone(&server.url(&repository), &[]).await.unwrap(), "1");
        let second = repository.commit("two", &[("mesh.yaml", "2")]).unwrap();
        let replaced = repository.rewrite("two again", &[("mesh.yaml", "3")]).unwrap();
        assert!(first != second && second != replaced);
        assert_eq!(clone(&server.url(&repository), &[]).await.unwrap(), "3");
        assert_eq!(repository.reset_to(&first).unwrap(), first);
        assert_eq!(clone(&server.url(&repository), &[]).await.unwrap(), "1");
    }

    #[tokio::test]
    async fn a_large_push_over_http_arrives() {
        let server = GitServer::start(GitServerOptions::on(Ipv4Addr::LOCALHOST))
            .await
            .unwrap();
        let repository = server.create("mesh").unwrap();
        repository.commit("one", &[("mesh.yaml", "1")]).unwrap();
        // More than Git sends in one piece: it switches to chunks. The numbers keep it from being compressed away.
        let large: String = (0..400_000_u64)
            .map(|n| format!("{:x} ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
            .collect();
        let (url, work) = (server.url(&repository), repository.work().to_path_buf());
        std::fs::write(work.join("mesh.yaml"), &large).unwrap();
        repository.git(["commit", "--quiet", "-am", "large"]).unwrap();
        tokio::task::spawn_blocking(move || {
            command::run(
                git()
                    .arg("-C")
                    .arg(work)
                    .args(["push", "--quiet", &url, "HEAD:main"]),
            )
        })
        .await
        .unwrap()
        .unwrap();
        assert_eq!(clone(&server.url(&repository), &[]).await.unwrap(), large);
    }

    #[tokio::test]
    async fn a_fetch_of_many_commits_is_compressed_and_answered() {
        let server = GitServer::start(GitServerOptions::on(Ipv4Addr::LOCALHOST))
            .await
            .unwrap();
        let repository = server.create("mesh").unwrap();
        repository.commit("first", &[("mesh.yaml", "1")]).unwrap();
        for n in 0..30 {
            // Commits that no branch has: the client must name each, and compresses requests of more than 1 KiB.
            repository
                .git([
                    "commit",
                    "--quiet",
                    "--allow-empty",
                    "--amend",
                    "-m",
                    &format!("tagged {n}"),
                ])
                .unwrap();
            repository.git(["tag", &format!("t{n}")]).unwrap();
        }
        repository.git(["push", "--quiet", "--tags", "origin"]).unwrap();
        assert_eq!(clone(&server.url(&repository), &[]).await.unwrap(), "1");
    }

    #[tokio::test]
    async fn without_the_right_credentials_nothing_is_served() {
        let auth = Some(Auth::Bearer("the right one".into()));
        let server = GitServer::start(GitServerOptions {
            auth,
            ..GitServerOptions::on(Ipv4Addr::LOCALHOST)
        })
        .await
        .unwrap();
        let repository = server.create("mesh").unwrap();
        repository.commit("one", &[("mesh.yaml", "1")]).unwrap();
        let url = server.url(&repository);
        assert!(clone(&url, &[]).await.is_err());
        assert!(
            clone(
                &url,
                &["-c", "http.extraHeader=Authorization: Bearer a wrong one"]
            )
            .await
            .is_err()
        );
        assert_eq!(
            clone(
                &url,
                &["-c", "http.extraHeader=Authorization: Bearer the right one"]
            )
            .await
            .unwrap(),
            "1"
        );
    }

    #[tokio::test]
    async fn a_server_told_to_fail_fails_until_told_otherwise() {
        let server = GitServer::start(GitServerOptions::on(Ipv4Addr::LOCALHOST))
            .await
            .unwrap();
        let repository = server.create("mesh").unwrap();
        repository.commit("one", &[("mesh.yaml", "1")]).unwrap();
        server.fail_with(Some(StatusCode::SERVICE_UNAVAILABLE));
        assert!(
            clone(&server.url(&repository), &[])
                .await
                .unwrap_err()
                .to_string()
                .contains("503")
        );
        server.fail_with(None);
        assert_eq!(clone(&server.url(&repository), &[]).await.unwrap(), "1");
    }
}
