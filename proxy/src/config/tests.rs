use std::collections::HashMap;

use super::*;

fn anchors() -> String {
    let mut params = rcgen::CertificateParams::new(Vec::new()).expect("no names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = rcgen::KeyPair::generate().expect("a key");
    params.self_signed(&key).expect("a certificate").pem()
}

fn base() -> HashMap<String, String> {
    [
        (
            "DESTINATION_SVC_ADDR",
            "linkerd-dst-headless.linkerd.svc.cluster.local.:8086",
        ),
        (
            "DESTINATION_SVC_NAME",
            "linkerd-destination.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        ("POLICY_SVC_ADDR", "127.0.0.1:8090"),
        ("POLICY_WORKLOAD", r#"{"ns":"a","pod":"b"}"#),
        (
            "IDENTITY_SVC_ADDR",
            "linkerd-identity-headless.linkerd.svc.cluster.local.:8080",
        ),
        (
            "IDENTITY_SVC_NAME",
            "linkerd-identity.linkerd.serviceaccount.identity.linkerd.cluster.local",
        ),
        ("IDENTITY_DIR", "/var/run/linkerd/identity/end-entity"),
        ("IDENTITY_TOKEN_FILE", "/token"),
        (
            "IDENTITY_LOCAL_NAME",
            "web.a.serviceaccount.identity.linkerd.cluster.local",
        ),
    ]
    .into_iter()
    .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value.to_owned()))
    .chain([(env::IDENTITY_TRUST_ANCHORS.to_owned(), anchors())])
    .collect()
}

fn with(changes: &[(&str, &str)]) -> Result<Config, Vec<EnvError>> {
    let mut vars = base();
    vars.extend(
        changes
            .iter()
            .map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), (*value).to_owned())),
    );
    Config::from_env(&vars)
}

#[test]
fn the_required_variables_suffice() {
    let config = with(&[]).expect("valid");
    assert_eq!(config.inbound.listen, SocketAddr::from(([0, 0, 0, 0], 4143)));
    assert_eq!(config.outbound.listen, [SocketAddr::from(([127, 0, 0, 1], 4140))]);
    assert_eq!(config.inbound.connect_timeout, Duration::from_millis(300));
    assert_eq!(config.inbound.default_policy, DefaultPolicy::AllUnauthenticated);
    assert_eq!(config.workers, 1);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let changes = [
        ("INBOUND_LISTEN_ADDR", "nowhere"),
        ("OUTBOUND_CONNECT_TIMEOUT", "1.5s"),
        ("INBOUND_DEFAULT_POLICY", "allow"),
        ("CORES", "0"),
        ("LOG", "warn,heddle=loud"),
        ("IDENTITY_LOCAL_NAME", ""),
        ("IDENTITY_TRUST_ANCHORS", "no certificate"),
    ];
    let errors = with(&changes).expect_err("seven mistakes");
    let text: Vec<String> = errors.iter().map(EnvError::to_string).collect();
    assert_eq!(errors.len(), 7, "{text:#?}");
    assert!(
        text.contains(&"LINKERD2_PROXY_IDENTITY_LOCAL_NAME must be set".to_owned()),
        "{text:#?}"
    );
}

#[test]
fn lists_and_ranges_are_read() {
    let config = with(&[
        ("OUTBOUND_LISTEN_ADDRS", "127.0.0.1:4140,[::1]:4140"),
        ("INBOUND_PORTS", "8080,9000-9002"),
        ("INBOUND_IPS", "10.0.0.1,fd00::1"),
        ("POLICY_CLUSTER_NETWORKS", "10.0.0.0/8,fd00::/8"),
        ("SHUTDOWN_ENDPOINT_ENABLED", "true"),
    ])
    .expect("valid");
    assert_eq!(config.outbound.listen.len(), 2);
    assert_eq!(config.inbound.ports.iter().count(), 4);
    assert_eq!(config.inbound.ips.len(), 2);
    assert!(config.admin.shutdown_endpoint);
}

#[test]
fn variables_that_say_nothing_here_are_checked_all_the_same() {
    let config = with(&[
        ("INBOUND_ACCEPT_KEEPALIVE", "10000ms"),
        ("OUTBOUND_CONNECT_EXP_BACKOFF_MIN", "200ms"),
        ("OUTBOUND_CONNECT_EXP_BACKOFF_MAX", "30s"),
        ("OUTBOUND_CONNECT_EXP_BACKOFF_JITTER", "0.1"),
        ("INBOUND_METRICS_AUTHORITY_LABELS", "unsafe"),
        ("HTTP_QUEUE_CAPACITY", "10000"),
        ("OUTBOUND_SERVER_HTTP2_ADAPTIVE_FLOW_CONTROL", "true"),
        ("INBOUND_GATEWAY_SUFFIXES", "svc.cluster.local.,x.test"),
        ("INGRESS_MODE", "true"),
        // Nobody reads these, in Linkerd's proxy neither.
        ("INBOUND_PORTS_REQUIRE_TLS", "anything"),
        ("TRACE_PROTOCOL", "anything"),
    ])
    .expect("valid");
    assert!(config.outbound.ingress);
    let told = Backoff {
        min: Duration::from_millis(200),
        max: Duration::from_secs(30),
        jitter_ratio: 0.1,
    };
    assert_eq!(config.outbound.connect_backoff, told);
    let wrong = [
        ("OUTBOUND_HTTP_FAILFAST_TIMEOUT", "soon"),
        ("INBOUND_SERVER_HTTP2_MAX_CONCURRENT_STREAMS", "-1"),
        ("INBOUND_METRICS_AUTHORITY_LABELS", "safe"),
        ("INBOUND_SERVER_HTTP2_ADAPTIVE_FLOW_CONTROL", "perhaps"),
        ("INBOUND_GATEWAY_SUFFIXES", "a b"),
        ("INGRESS_MODE", "perhaps"),
    ];
    let errors = with(&wrong).expect_err("six mistakes");
    assert_eq!(errors.len(), wrong.len(), "{errors:#?}");
    for (wrong, mistakes) in [
        // All of it, or nothing.
        (&[("CONTROL_EXP_BACKOFF_MIN", "1s")][..], 1),
        (&[("CONTROL_EXP_BACKOFF_JITTER", "0.1")], 2),
        (
            &[
                ("CONTROL_EXP_BACKOFF_MIN", "2s"),
                ("CONTROL_EXP_BACKOFF_MAX", "1s"),
            ],
            1,
        ),
        (
            &[
                ("INBOUND_CONNECT_EXP_BACKOFF_MIN", "soon"),
                ("INBOUND_CONNECT_EXP_BACKOFF_MAX", "1s"),
            ],
            1,
        ),
    ] {
        assert_eq!(with(wrong).expect_err("wrong").len(), mistakes, "{wrong:?}");
    }
}

#[test]
fn a_server_id_must_be_the_servers_name() {
    let id = |changes: &[(&str, &str)]| {
        let unnamed = [("IDENTITY_LOCAL_NAME", "")];
        with(&[&unnamed, changes].concat()).map(|config| config.identity.local_name.to_string())
    };
    let (name, other) = ("web.a.test", "other.a.test");
    assert_eq!(
        id(&[("IDENTITY_SERVER_ID", name), ("IDENTITY_SERVER_NAME", name)]),
        Ok(name.to_owned())
    );
    for (wrong, told) in [
        (
            &[("IDENTITY_SERVER_NAME", name)][..],
            "LINKERD2_PROXY_IDENTITY_SERVER_ID must be set",
        ),
        (
            &[("IDENTITY_SERVER_ID", name)],
            "LINKERD2_PROXY_IDENTITY_SERVER_NAME must be set",
        ),
        (
            &[("IDENTITY_SERVER_ID", other), ("IDENTITY_SERVER_NAME", name)],
            "LINKERD2_PROXY_IDENTITY_SERVER_ID is invalid",
        ),
        (
            &[
                ("IDENTITY_SERVER_ID", "spiffe://a.test/web"),
                ("IDENTITY_SERVER_NAME", name),
            ],
            "LINKERD2_PROXY_IDENTITY_SERVER_ID is invalid",
        ),
        (
            &[
                ("IDENTITY_LOCAL_NAME", name),
                ("IDENTITY_SPIRE_SOCKET", "/run/spire"),
            ],
            "LINKERD2_PROXY_IDENTITY_SPIRE_SOCKET is invalid",
        ),
    ] {
        let errors = id(wrong).expect_err("wrong");
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].to_string().starts_with(told), "{errors:?}");
    }
}

#[test]
fn an_empty_list_of_what_is_looked_up_is_not_the_default() {
    let looks_up = |suffixes: Option<&str>, networks: Option<&str>| {
        let suffixes = suffixes.map(|text| ("DESTINATION_PROFILE_SUFFIXES", text));
        let networks = networks.map(|text| ("DESTINATION_PROFILE_NETWORKS", text));
        let changes: Vec<_> = suffixes.into_iter().chain(networks).collect();
        let control = with(&changes).expect("valid").control;
        let name = "web.a.svc.cluster.local:80".parse().expect("a name");
        let networks = control.profile_networks.map(|all| all.len());
        (control.profile_suffixes.contain(&name), networks)
    };
    assert_eq!(looks_up(None, None), (true, None));
    assert_eq!(looks_up(Some(""), Some(" ")), (false, Some(0)));
    assert_eq!(looks_up(Some("."), Some("10.0.0.0/8")), (true, Some(1)));
}

#[test]
fn streams_are_bounded_by_the_service_that_they_come_from() {
    let limits = [
        ("CONTROL_STREAM_INITIAL_TIMEOUT", "3s"),
        ("CONTROL_STREAM_IDLE_TIMEOUT", "5m"),
        ("CONTROL_STREAM_LIFETIME", "1h"),
    ];
    let control = with(&limits).expect("valid").control;
    let bounded = |service: &ControlService| control.streams(service).lifetime.is_some();
    assert!(bounded(&control.destination) && !bounded(&control.policy));
    for (name, value) in [
        ("CONTROL_STREAM_INITIAL_TIMEOUT", "10m"),
        ("CONTROL_STREAM_IDLE_TIMEOUT", "2h"),
    ] {
        let changes = [&limits[..], &[(name, value)]].concat();
        assert_eq!(with(&changes).expect_err("too long").len(), 1, "{name}");
    }
}

#[test]
fn pools_and_http2_are_bounded_as_they_are_told() {
    let config = with(&[
        ("MAX_IDLE_CONNS_PER_ENDPOINT", "7"),
        ("OUTBOUND_MAX_IDLE_CONNS_PER_ENDPOINT", "1000000"),
        ("OUTBOUND_HTTP1_CONNECTION_POOL_IDLE_TIMEOUT", "1s"),
        ("INBOUND_SERVER_HTTP2_MAX_CONCURRENT_STREAMS", "10"),
        ("INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "5s"),
        ("INBOUND_SERVER_HTTP2_KEEP_ALIVE_TIMEOUT", "500ms"),
    ])
    .expect("valid");
    let (inbound, outbound) = (config.inbound, config.outbound);
    assert_eq!((inbound.pool.idle_max, outbound.pool.idle_max), (7, 1_024));
    let idle = [inbound.pool.idle_timeout, outbound.pool.idle_timeout];
    assert_eq!(idle, [Duration::from_secs(3), Duration::from_secs(1)]);
    assert_eq!(inbound.http2.at_most(256).streams_max, 10);
    assert_eq!(outbound.http2.at_most(256).streams_max, 256);
    assert_eq!(inbound.http2.ping_interval, Duration::from_secs(5));
    assert_eq!(inbound.http2.ping_timeout, Duration::from_millis(500));
    assert_eq!(outbound.http2.ping_interval, Duration::from_secs(20));
    let wrong = [
        ("INBOUND_SERVER_HTTP2_KEEP_ALIVE_INTERVAL", "0s"),
        ("MAX_IDLE_CONNS_PER_ENDPOINT", "many"),
    ];
    assert_eq!(with(&wrong).expect_err("two mistakes").len(), 2);
}

#[test]
fn an_ingress_keeps_what_went_wrong_to_itself_unless_told_otherwise() {
    let tells = |changes: &[(&str, &str)]| with(changes).expect("valid").outbound.informational_headers;
    let (ingress, off, on) = (
        ("INGRESS_MODE", "true"),
        ("OUTBOUND_DISABLE_INFORMATIONAL_HEADERS", "true"),
        ("OUTBOUND_DISABLE_INFORMATIONAL_HEADERS", "false"),
    );
    assert!(tells(&[]) && tells(&[ingress, on]));
    assert!(!tells(&[ingress]) && !tells(&[off]));
}

#[test]
fn telemetry_is_off_unless_it_is_asked_for() {
    let off = with(&[("CONTROL_LISTEN_ADDR", "0.0.0.0:4190")])
        .expect("valid")
        .telemetry;
    assert!(off.access_log.is_none() && off.trace.is_none() && off.tap.is_none() && !off.hostname_labels);
    let on = with(&[
        ("ACCESS_LOG", "json"),
        ("CONTROL_LISTEN_ADDR", "0.0.0.0:5190"),
        (
            "TAP_SVC_NAME",
            "tap.linkerd-viz.serviceaccount.identity.linkerd.cluster.local",
        ),
        ("TRACE_COLLECTOR_SVC_ADDR", "otel.obs:4317"),
        (
            "TRACE_COLLECTOR_SVC_NAME",
            "otel.obs.serviceaccount.identity.linkerd.cluster.local",
        ),
        ("TRACE_EXTRA_ATTRIBUTES", "team=blue\nservice.name=web"),
        ("OUTBOUND_METRICS_HOSTNAME_LABELS", "true"),
    ]);
    let on = on.expect("valid").telemetry;
    assert_eq!(on.access_log, Some(access_log::Format::Json));
    assert_eq!(on.tap.map(|tap| tap.listen.port()), Some(5190));
    let mut trace = on.trace.expect("a collector");
    trace.add_labels("app=\"web\"\nteam=\"red\"\n");
    let attributes: Vec<_> = trace
        .attributes
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    assert_eq!(attributes, ["app=web", "service.name=web", "team=blue"]);
    assert!(on.hostname_labels);

    let wrong = [
        ("ACCESS_LOG", "nginx"),
        ("CONTROL_LISTEN_ADDR", "here"),
        ("TAP_SVC_NAME", "no name"),
        ("TRACE_COLLECTOR_SVC_ADDR", "otel.obs:4317"),
        ("TRACE_EXTRA_ATTRIBUTES", "team"),
    ];
    let errors = with(&wrong).expect_err("four that are wrong, and a collector that need not prove anything");
    assert_eq!(errors.len(), 5, "{errors:#?}");
    let nowhere = with(&[("TRACE_COLLECTOR_SVC_NAME", "otel.obs.test")]).expect_err("no address");
    assert_eq!(
        nowhere,
        [EnvError::Missing(env::TRACE_COLLECTOR_SVC_ADDR.to_owned())]
    );
}

/// Lines of `NAME=value` on top of a valid environment: a configuration, or every mistake by its variable's name.
#[test]
fn fuzz_environment() {
    let base = base();
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        let mut vars = base.clone();
        let lines = text.lines().filter_map(|line| line.split_once('='));
        vars.extend(lines.map(|(name, value)| (format!("LINKERD2_PROXY_{name}"), value.to_owned())));
        if let Err(errors) = Config::from_env(&vars) {
            assert!(!errors.is_empty());
            for error in errors {
                assert!(error.to_string().starts_with("LINKERD2_PROXY_"), "{error}");
            }
        }
    });
}
