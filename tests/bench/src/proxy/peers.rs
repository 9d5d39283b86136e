//! The sidecar pairs that speak no mesh API: `null`, haproxy, nginx. They do less: no discovery, no policy, no
//! histograms, no interception.

use std::{path::Path, process::Stdio};

use super::arms::{APP_PLAIN, Arm, DIRECT_BYTES, DIRECT_HTTP, SERVER_IDENTITY, Way};
use crate::netns::{Netns, Pair, Process};

/// Where the client's sidecar of an arm listens; its peer's ports are a hundred higher.
pub(super) fn port(arm: Arm, way: Way) -> Option<u16> {
    let base = match arm {
        Arm::Null => 9010,
        Arm::HaproxyH1 => 9020,
        Arm::HaproxyH2 => 9030,
        Arm::Nginx => 9040,
        _ => return None,
    };
    match (arm, way) {
        (_, Way::Http) => Some(base),
        (Arm::Null | Arm::HaproxyH1, Way::Bytes) => Some(base + 1),
        (Arm::HaproxyH1, Way::Plain) => Some(base + 2),
        _ => None,
    }
}

/// All ports that nothing is redirected from.
pub(super) fn ports() -> String {
    format!("{DIRECT_HTTP},{DIRECT_BYTES},{APP_PLAIN},9010-9049,9110-9149")
}

fn start(netns: &Netns, name: &str, args: &[&str]) -> anyhow::Result<Process> {
    let mut command = netns.command("taskset");
    command.args(["-c", "1"]).args(args).stdout(Stdio::null());
    Process::start(name, &mut command)
}

/// One process for each side and way: the client's come before the server's.
pub(super) fn null(pair: &Pair, dir: &Path, floor: &Path) -> anyhow::Result<Vec<Process>> {
    let (floor, dir) = (floor.to_string_lossy(), dir.to_string_lossy());
    let mut processes = Vec::new();
    for (side, netns) in [("client", &pair.client), ("server", &pair.server)] {
        for (way, app) in [(Way::Http, DIRECT_HTTP), (Way::Bytes, DIRECT_BYTES)] {
            let port = port(Arm::Null, way).unwrap_or_default();
            let peer = format!("{}:{}", Pair::SERVER_IP, port + 100);
            let (listen, connect) = match side {
                "client" => (format!("127.0.0.1:{port}"), peer),
                _ => (peer, format!("127.0.0.1:{app}")),
            };
            let args = [&*floor, "relay", side, &listen, &connect, &*dir];
            processes.push(start(netns, &format!("null ({side})"), &args)?);
        }
    }
    Ok(processes)
}

pub(super) fn haproxy(pair: &Pair, dir: &Path, h2: bool) -> anyhow::Result<Vec<Process>> {
    let (arm, alpn) = match h2 {
        true => (Arm::HaproxyH2, "alpn h2"),
        false => (Arm::HaproxyH1, "alpn http/1.1"),
    };
    let files = dir.display();
    let tls = format!(
        "ca-file {files}/ca.pem ssl-min-ver TLSv1.3 ciphersuites TLS_AES_128_GCM_SHA256 verify required"
    );
    let to_peer =
        format!("ssl crt {files}/client.pem sni str({SERVER_IDENTITY}) verifyhost {SERVER_IDENTITY} {tls}");
    let common = "global\n  maxconn 7900\n  nbthread 1\ndefaults\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  http-reuse always\n";
    let (mut client, mut server) = (common.to_owned(), common.to_owned());
    for (way, mode) in [(Way::Http, "http"), (Way::Bytes, "tcp"), (Way::Plain, "tcp")] {
        let Some(port) = port(arm, way) else { continue };
        // Always, where haproxy would only guess that much will come.
        let splice = match way {
            Way::Plain => "  option splice-request\n  option splice-response\n",
            _ => "",
        };
        let peer = format!("{}:{}", Pair::SERVER_IP, port + 100);
        let alpn = if way == Way::Http { alpn } else { "" };
        let (target, app) = match way {
            Way::Plain => (format!("{}:{APP_PLAIN}", Pair::SERVER_IP), None),
            Way::Http => (format!("{peer} {to_peer} {alpn}"), Some(DIRECT_HTTP)),
            Way::Bytes => (format!("{peer} {to_peer}"), Some(DIRECT_BYTES)),
        };
        client += &format!(
            "listen in{port}\n  mode {mode}\n{splice}  bind 127.0.0.1:{port}\n  server peer {target}\n"
        );
        if let Some(app) = app {
            server += &format!(
                "listen in{port}\n  mode {mode}\n  bind {peer} ssl crt {files}/server.pem {tls} {alpn}\n  server app 127.0.0.1:{app}\n"
            );
        }
    }
    let mut processes = Vec::new();
    for (side, netns, config) in [("client", &pair.client, client), ("server", &pair.server, server)] {
        let path = dir.join(format!("{arm}-{side}.cfg"));
        std::fs::write(&path, config)?;
        let args = ["haproxy", "-db", "-f", &path.to_string_lossy()];
        processes.push(start(netns, &format!("{arm} ({side})"), &args)?);
    }
    Ok(processes)
}

/// HTTP/1.1 on all legs: this nginx speaks no other to its upstreams.
pub(super) fn nginx(pair: &Pair, dir: &Path) -> anyhow::Result<Vec<Process>> {
    let files = dir.display();
    let port = port(Arm::Nginx, Way::Http).unwrap_or_default();
    let peer = format!("{}:{}", Pair::SERVER_IP, port + 100);
    let forward = "proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host;";
    let client = format!(
        "upstream up {{ server {peer}; keepalive 1024; keepalive_requests 1000000000; }}\n\
         server {{ listen 127.0.0.1:{port}; location / {{ {forward} proxy_pass https://up; proxy_ssl_protocols TLSv1.3;\n\
         proxy_ssl_certificate {files}/client.pem; proxy_ssl_certificate_key {files}/client.pem; proxy_ssl_verify on;\n\
         proxy_ssl_trusted_certificate {files}/ca.pem; proxy_ssl_name {SERVER_IDENTITY}; proxy_ssl_server_name on;\n\
         proxy_ssl_session_reuse off; }} }}"
    );
    let server = format!(
        "upstream up {{ server 127.0.0.1:{DIRECT_HTTP}; keepalive 1024; keepalive_requests 1000000000; }}\n\
         server {{ listen {peer} ssl; ssl_protocols TLSv1.3; ssl_certificate {files}/server.pem;\n\
         ssl_certificate_key {files}/server.pem; ssl_client_certificate {files}/ca.pem; ssl_verify_client on;\n\
         ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256; location / {{ {forward} proxy_pass http://up; }} }}"
    );
    let mut processes = Vec::new();
    for (side, netns, config) in [("client", &pair.client, client), ("server", &pair.server, server)] {
        let config = format!(
            "daemon off; master_process off; pid {files}/nginx-{side}.pid; error_log stderr crit; worker_rlimit_nofile 20000;\n\
             events {{ worker_connections 16384; }}\n\
             http {{ access_log off; keepalive_requests 1000000000; client_body_temp_path {files}/b; proxy_temp_path {files}/p;\n\
             fastcgi_temp_path {files}/f; uwsgi_temp_path {files}/u; scgi_temp_path {files}/s;\n{config} }}\n"
        );
        let path = dir.join(format!("nginx-{side}.conf"));
        std::fs::write(&path, config)?;
        let args = ["nginx", "-c", &path.to_string_lossy()];
        processes.push(start(netns, &format!("nginx ({side})"), &args)?);
    }
    Ok(processes)
}
