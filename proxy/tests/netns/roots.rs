//! Trust anchors and certificates that change while the proxy runs.

use std::{io::Write as _, net::SocketAddr, os::unix::fs::PermissionsExt as _, time::Duration};

use crate::{
    apps::{serve_http_with, try_get},
    attack::Honest,
    can_run,
    control::Script,
    eventually,
    http_traffic::{pair_with, service},
    identity::{VM, workload},
    net::Network,
    pod::{Options, Pod},
    policies::{http_rule, outbound_detect, path},
};

/// A mounted trust bundle.
struct Mounted(tempfile::NamedTempFile);

impl Mounted {
    fn new(anchors: &[&str]) -> Self {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let readable = std::fs::Permissions::from_mode(0o644);
        file.as_file().set_permissions(readable).expect("our own file");
        let mounted = Self(file);
        mounted.set(anchors);
        mounted
    }

    fn set(&self, anchors: &[&str]) {
        let mut file = std::fs::File::create(self.0.path()).expect("our own file");
        file.write_all(anchors.concat().as_bytes()).expect("a small file");
    }

    fn env(&self) -> (&'static str, String) {
        ("IDENTITY_TRUST_ANCHORS_FILE", self.0.path().display().to_string())
    }
}

#[test]
fn a_restart_after_a_rotation_uses_the_mounted_roots_at_once_and_later_ones_when_they_come() {
    if !can_run() {
        return;
    }
    // What the container was made with is over: the identity service signs by another root, which is mounted.
    let (network, old, script) = (Network::new(), Script::new(), Script::new());
    let mounted = Mounted::new(&[old.anchors(), script.anchors()]);
    let env = vec![
        ("IDENTITY_TRUST_ANCHORS", old.anchors().to_owned()),
        mounted.env(),
    ];
    let client = Pod::start_with(&network, &script, "client", Options { env });
    assert_eq!(
        script.certified("client"),
        1,
        "the first certificate was good already"
    );

    // The next root: its servers are strangers until it is mounted.
    let next = Script::new();
    let vm = network.namespace();
    let addr = SocketAddr::from((vm.ip, 8080));
    serve_http_with(&vm, addr, "vm", Some(next.workload(VM)));
    script.set_endpoints(&path("web"), vec![workload(addr, VM)]);
    script.set_outbound(service(), outbound_detect("web", http_rule("web")));
    let ask = || {
        client
            .namespace
            .block_on(|| async { try_get(service(), "/").await.expect("a reply").status })
    };
    assert!(ask() >= 502);
    mounted.set(&[script.anchors(), next.anchors()]);
    eventually("the new root's server is trusted", || {
        (ask() == 200).then_some(())
    });
}

#[test]
fn certificates_are_renewed_without_a_failed_request() {
    if !can_run() {
        return;
    }
    let (network, script) = (Network::new(), Script::new());
    script.set_leaf_life(Duration::from_secs(4));
    let options = || Options {
        env: vec![("IDENTITY_MIN_REFRESH", "100ms".to_owned())],
    };
    let (client, server) = pair_with(&network, &script, options);
    let (kept, new) = (
        Honest::start(&client.namespace, service(), 1, "/"),
        Honest::start_http2(&client.namespace, service(), 1),
    );
    let renewed = |account: &str| {
        eventually("the first certificate is over, and the second", || {
            (script.certified(account) >= 4).then_some(())
        });
    };
    renewed("client");
    renewed("server");
    // Connections that begin now show the new ones.
    let third = Pod::start_with(&network, &script, "third", options());
    let status = third
        .namespace
        .block_on(|| async { try_get(service(), "/").await.expect("a reply").status });
    assert_eq!(status, 200);
    for honest in [kept, new] {
        honest.goes_on(5, "requests flow after the renewals");
        let (answered, failed) = honest.finish();
        assert_eq!(failed, 0, "of {answered}");
    }
    assert!(
        server
            .metric("request_total", &[("direction", "inbound"), ("tls", "true")])
            .is_some()
    );
}
