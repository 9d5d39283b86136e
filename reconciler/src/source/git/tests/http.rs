//! Fetching over http(s), against a small server of Git's smart protocol over libgit2's own repository.

use super::*;

#[test]
fn a_dead_server_is_unreachable_and_the_snapshot_stays() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x.git", listener.local_addr().unwrap());
    drop(listener);
    let cache = tempfile::tempdir().unwrap();
    let mut source = GitSource::open(
        &url,
        Reference::Head,
        Access::default(),
        cache.path(),
        Limits::default(),
    )
    .unwrap();
    let error = source.fetch_blocking().unwrap_err();
    assert_eq!(error.reason(), "RepositoryUnreachable");
    assert!(
        crate::cli::chain(&error).contains("refused"),
        "{}",
        crate::cli::chain(&error)
    );
}

#[test]
fn wrong_credentials_are_told_apart() {
    // A server that knows nothing but 401.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/x.git", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        use std::io::{Read as _, Write as _};
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 2048];
        let size = stream.read(&mut request).unwrap();
        stream
            .write_all(b"HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        String::from_utf8_lossy(&request[..size]).to_lowercase()
    });
    let cache = tempfile::tempdir().unwrap();
    let access = Access {
        credentials: Some(Credentials::Bearer("token-1".into())),
        ca_pem: None,
    };
    let mut source = GitSource::open(&url, Reference::Head, access, cache.path(), Limits::default()).unwrap();
    let error = source.fetch_blocking().unwrap_err();
    assert_eq!(error.reason(), "AuthenticationFailed", "{error:?}");
    let request = server.join().unwrap();
    assert!(request.contains("authorization: bearer token-1"), "{request}");
    assert!(
        request.starts_with("get /x.git/info/refs?service=git-upload-pack"),
        "{request}"
    );
}
