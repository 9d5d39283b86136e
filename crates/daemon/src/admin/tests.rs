use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

struct Running {
    addr: SocketAddr,
    task: tokio::task::JoinHandle<Infallible>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(configure: impl FnOnce(Admin) -> Admin) -> Running {
    let mut registry = Registry::default();
    crate::process::register(&mut registry);
    let admin = configure(Admin::new(SocketAddr::from(([127, 0, 0, 1], 0)), registry));
    let bound = admin.bind().await.expect("loopback can be bound");
    Running {
        addr: bound.local_addr(),
        task: tokio::spawn(bound.run()),
    }
}

async fn exchange(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.expect("connects");
    stream.write_all(request).await.expect("sends");
    let mut reply = Vec::new();
    let _ = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut reply))
        .await
        .expect("ends");
    String::from_utf8_lossy(&reply).into_owned()
}

async fn get(addr: SocketAddr, path: &str) -> String {
    exchange(
        addr,
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes(),
    )
    .await
}

#[tokio::test]
async fn ready_follows_the_check() {
    let ready = Arc::new(AtomicBool::new(false));
    let check = Arc::clone(&ready);
    let server = start(|admin| admin.ready(move || check.load(Ordering::Relaxed))).await;
    assert!(get(server.addr, "/live").await.starts_with("HTTP/1.1 200"));
    assert!(get(server.addr, "/ready").await.starts_with("HTTP/1.1 503"));
    ready.store(true, Ordering::Relaxed);
    assert!(get(server.addr, "/ready").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn metrics_are_openmetrics_text() {
    let server = start(|admin| admin).await;
    let reply = get(server.addr, "/metrics").await;
    assert!(
        reply.contains("application/openmetrics-text; version=1.0.0"),
        "{reply}"
    );
    assert!(
        reply.contains("process_cpu_seconds_total") && reply.ends_with("# EOF\n"),
        "{reply}"
    );
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let server = start(|admin| admin).await;
    assert!(get(server.addr, "/").await.starts_with("HTTP/1.1 404"));
    let post = b"POST /ready HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let reply = exchange(server.addr, post).await;
    assert!(
        reply.starts_with("HTTP/1.1 405") && reply.contains("GET, HEAD"),
        "{reply}"
    );
}

#[tokio::test]
async fn a_program_adds_routes() {
    let server = start(|admin| {
        admin.routes(|parts| {
            (parts.method == Method::POST && parts.uri.path() == "/shutdown")
                .then(|| text(StatusCode::ACCEPTED, "draining\n"))
        })
    })
    .await;
    let post = b"POST /shutdown HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    assert!(exchange(server.addr, post).await.starts_with("HTTP/1.1 202"));
    assert!(get(server.addr, "/live").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn oversized_headers_and_garbage_do_not_harm() {
    let server = start(|admin| admin).await;
    let long = format!(
        "GET /live HTTP/1.1\r\nhost: x\r\na: {}\r\n\r\n",
        "a".repeat(HEADER_BYTES_MAX * 2)
    );
    assert!(
        !exchange(server.addr, long.as_bytes())
            .await
            .starts_with("HTTP/1.1 200")
    );
    let many = format!(
        "GET /live HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "a: b\r\n".repeat(HEADERS_MAX + 1)
    );
    assert!(
        !exchange(server.addr, many.as_bytes())
            .await
            .starts_with("HTTP/1.1 200")
    );
    exchange(server.addr, b"\x16\x03\x01\x00\x05hello\r\n\r\n").await;
    assert!(get(server.addr, "/live").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let server = start(|admin| admin).await;
    let error = Admin::new(server.addr, Registry::default())
        .bind()
        .await
        .expect_err("the port is taken");
    assert!(error.to_string().contains(&server.addr.to_string()), "{error}");
}
