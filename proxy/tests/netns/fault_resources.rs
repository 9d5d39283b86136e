//! F19: what a process can lack: file descriptors, memory, room for its logs.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::{
    apps::{Http1, get, serve_http, try_get},
    attack::long,
    can_run,
    cgroup::Cgroup,
    control::Script,
    eventually,
    http_traffic::service,
    net::Network,
    pod::Pod,
    policies::{authz, endpoint, http_rule, outbound_detect, path, server as inbound_server},
};

/// Without file descriptors nothing is accepted, and everything again when there are some.
#[test]
fn a_lack_of_file_descriptors_passes() {
    if !can_run() {
        return;
    }
    const FILES_MAX: usize = 150;
    let (network, script) = (Network::new(), Script::new());
    let mut server = Pod::start_with_files(&network, &script, "server", FILES_MAX);
    serve_http(&server.namespace, 8080, "server");
    script.set_endpoints(
        &path("web"),
        vec![endpoint(server.namespace.ip, 8080, Some("server"), false)],
    );
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let outside = network.namespace();
    let addr = server.addr(8080);
    let get_directly = move || async move { try_get(addr, "/").await.map(|reply| reply.status).ok() };
    assert_eq!(outside.block_on(get_directly), Some(200));
    let held = outside.block_on(move || async move {
        let mut held = Vec::new();
        for _ in 0..if long() { 2_000 } else { 300 } {
            let mut tcp = TcpStream::connect(addr).await.expect("the backlog takes it");
            tcp.write_all(b"GET / HTTP/1.1\r\nhost: web.test\r\n")
                .await
                .expect("small");
            held.push(tcp.into_std().expect("a socket"));
        }
        held
    });
    eventually("there are none left", || {
        (server.open_files() >= FILES_MAX).then_some(())
    });
    drop(held);
    assert_eq!(outside.block_on(get_directly), Some(200));
    let client = Pod::start(&network, &script, "client");
    let reply = client.namespace.block_on(|| try_get(service(), "/"));
    assert_eq!(reply.expect("a reply").status, 200);
    assert!(server.is_running());
}

/// However much clients send that nobody takes, and ask for that they do not read, the proxy stays within the memory of
/// a small container, and serves others when they are gone.
#[test]
fn clients_that_do_not_read_cannot_take_the_containers_memory() {
    if !can_run() {
        return;
    }
    const MEMORY_BYTES: u64 = 64 << 20;
    const CLIENTS: usize = 300;
    let (network, script) = (Network::new(), Script::new());
    let cgroup = Cgroup::with_memory(MEMORY_BYTES);
    let mut server = Pod::start_in_cgroup(&network, &script, "server", &cgroup);
    server.namespace.serve(8080, |mut tcp| async move {
        let mut head = [0; 4096];
        let Ok(taken) = tcp.read(&mut head).await else {
            return;
        };
        let head = &head[..taken];
        if head.starts_with(b"POST") {
            std::future::pending::<()>().await;
        }
        let length = if head.starts_with(b"GET /endless") {
            1 << 30
        } else {
            0
        };
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n");
        let mut written = tcp.write_all(answer.as_bytes()).await;
        for _ in 0..length >> 16 {
            if written.is_err() {
                return;
            }
            written = tcp.write_all(&[0; 1 << 16]).await;
        }
    });
    let outside = network.namespace();
    let addr = server.addr(8080);
    let get_directly = move || async move { try_get(addr, "/").await.map(|reply| reply.status).ok() };
    assert_eq!(outside.block_on(get_directly), Some(200));
    let held = outside.block_on(move || async move {
        let mut held = Vec::new();
        for number in 0..CLIENTS {
            let mut tcp = TcpStream::connect(addr).await.expect("connects");
            let head = match number % 2 {
                0 => "POST / HTTP/1.1\r\nhost: web.test\r\ncontent-length: 1000000000\r\n\r\n",
                _ => "GET /endless HTTP/1.1\r\nhost: web.test\r\n\r\n",
            };
            tcp.write_all(head.as_bytes()).await.expect("small");
            held.push(tcp);
        }
        // Those that send do so until there is no more room, anywhere.
        let mut quiet_rounds = 0;
        while quiet_rounds < 20 {
            let mut sent = 0;
            for tcp in held.iter().step_by(2) {
                while let Ok(count) = tcp.try_write(&[0; 1 << 16]) {
                    sent += count;
                }
            }
            quiet_rounds = if sent == 0 { quiet_rounds + 1 } else { 0 };
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        held.into_iter()
            .map(|tcp| tcp.into_std().expect("a socket"))
            .collect::<Vec<_>>()
    });
    assert!(server.is_running(), "it has outgrown its memory");
    assert_eq!(outside.block_on(get_directly), Some(200), "others are served");
    drop(held);
    assert_eq!(outside.block_on(get_directly), Some(200), "and afterwards");
    assert!(server.is_running());
}

/// A file system that is soon full.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k,mode=755", "tmpfs"])
            .arg(dir.path())
            .status();
        assert!(
            mounted.is_ok_and(|status| status.success()),
            "root may mount a tmpfs"
        );
        Self(dir)
    }

    fn append(&self, name: &str) -> File {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.0.path().join(name));
        file.expect("an empty file takes no room")
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // At once, or when its last file is closed.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

/// A log that cannot be written costs no request, and is written again when there is room.
#[test]
fn a_full_disk_under_the_logs_costs_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let disk = SmallDisk::new();
    let output = || [disk.append("log"), disk.append("access")].map(Stdio::from);
    let mut server = Pod::start_logging(&network, &script, "server", output());
    serve_http(&server.namespace, 8080, "server");
    let (outside, addr) = (network.namespace(), server.addr(8080));
    let ask = |path: &'static str| {
        outside.block_on(move || async move { try_get(addr, path).await.map(|reply| reply.status).ok() })
    };
    let is_full = || {
        let error = disk.append("probe").write_all(&[0; 4096]).err();
        error.is_some_and(|error| error.kind() == std::io::ErrorKind::StorageFull)
    };
    eventually("the disk is full", || {
        assert_eq!(ask("/"), Some(200));
        is_full().then_some(())
    });
    for _ in 0..100 {
        assert_eq!(ask("/"), Some(200), "nothing is logged any more");
    }
    for name in ["log", "access", "probe"] {
        disk.append(name).set_len(0).expect("our own file");
    }
    eventually("it is logged again", || {
        assert_eq!(ask("/later"), Some(200));
        let read = |name| std::fs::read_to_string(disk.path().join(name)).expect("our own file");
        (read("access").contains("/later") && !read("log").is_empty()).then_some(())
    });
    assert!(server.is_running());
}

/// So is it with logs that nobody takes any more.
#[test]
fn closed_pipes_under_the_logs_cost_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let closed = || {
        let (_, write) = std::io::pipe().expect("a pipe");
        Stdio::from(write)
    };
    let mut server = Pod::start_logging(&network, &script, "server", [closed(), closed()]);
    serve_http(&server.namespace, 8080, "server");
    let (outside, addr) = (network.namespace(), server.addr(8080));
    for _ in 0..100 {
        let reply = outside.block_on(move || try_get(addr, "/"));
        assert_eq!(reply.expect("a reply").status, 200);
    }
    assert!(server.is_running());
}

/// And with pipes that stay open, full, while nobody reads.
#[test]
fn full_pipes_under_the_logs_cost_no_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    let (mut log, log_write) = std::io::pipe().expect("a pipe");
    let (access, access_write) = std::io::pipe().expect("a pipe");
    for pipe in [&log_write, &access_write] {
        rustix::pipe::fcntl_setpipe_size(pipe, 4096).expect("a page is the least");
    }
    let outputs = [Stdio::from(log_write), Stdio::from(access_write)];
    // Each refused request is told in the log.
    script.set_inbound("server", 8080, inbound_server(vec![authz(Some(&["nobody"]))]));
    let mut server = Pod::start_logging(&network, &script, "server", outputs);
    serve_http(&server.namespace, 8080, "server");
    let (outside, addr) = (network.namespace(), server.addr(8080));
    // Far more lines than pipes and queues hold.
    outside.block_on(move || async move {
        let mut client = Http1::connect(addr).await.expect("connects");
        for _ in 0..10_000 {
            let reply = client.send(get("/")).await.expect("a reply");
            assert_eq!(reply.status, 403);
        }
    });
    assert!(server.is_running());
    // Whoever reads again finds out what is missing, and the end is written all the same.
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        log.read_to_string(&mut text).map(|_| text)
    });
    drop(access);
    server.terminate();
    let text = reading.join().expect("no panic").expect("text");
    assert!(
        text.contains("lines before this one found no room"),
        "{}",
        text.len()
    );
}
