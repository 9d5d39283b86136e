use expect_test::{Expect, expect};

use super::*;
use crate::annotations;

/// Decides with these annotations on the pod and shows how the containers differ from those of a plain pod.
pub(super) fn check(annotations: &[(&str, &str)], expected: Expect) {
    let mut all = annotations.to_vec();
    all.push(("linkerd.io/inject", "enabled"));
    let text = |all: &[(&str, &str)]| {
        let (init, proxy) = injected(decide_in(&[], &mk_pod(all))).containers("PEM");
        let lines = |value: Value| {
            let mut lines = Vec::new();
            flatten("", &value, &mut lines);
            lines
        };
        let mut found: Vec<String> = lines(json!(init))
            .into_iter()
            .map(|line| format!("init{line}"))
            .collect();
        found.extend(lines(json!(proxy)).into_iter().map(|line| format!("proxy{line}")));
        found
    };
    let (plain, changed) = (text(&[("linkerd.io/inject", "enabled")]), text(&all));
    let mut diff = String::new();
    for line in &plain {
        if !changed.contains(line) {
            diff += &format!("- {line}\n");
        }
    }
    for line in &changed {
        if !plain.contains(line) {
            diff += &format!("+ {line}\n");
        }
    }
    expected.assert_eq(&diff);
}

/// One line per leaf; a list's items go by their name where they have one.
fn flatten(path: &str, value: &Value, lines: &mut Vec<String>) {
    match value {
        Value::Object(map) => map
            .iter()
            .for_each(|(key, value)| flatten(&format!("{path}.{key}"), value, lines)),
        Value::Array(items) => items.iter().enumerate().for_each(|(index, item)| {
            let name = item["name"]
                .as_str()
                .map_or_else(|| index.to_string(), str::to_owned);
            flatten(&format!("{path}[{name}]"), item, lines);
        }),
        leaf => lines.push(format!("{path} = {leaf}")),
    }
}

/// Expects the one error that the annotation causes.
pub(super) fn refuse(name: &str, value: &str, expected: Expect) {
    let pod = mk_pod(&[("linkerd.io/inject", "enabled"), (name, value)]);
    expected.assert_eq(&skipped(decide_in(&[], &pod)).to_string());
}

#[test]
fn images() {
    check(
        &[
            ("config.linkerd.io/proxy-image", "cr.l5d.io/linkerd/proxy"),
            ("config.linkerd.io/proxy-version", "edge-26.8.3"),
            ("config.linkerd.io/image-pull-policy", "Always"),
        ],
        expect![[r#"
            - init.imagePullPolicy = "IfNotPresent"
            - proxy.image = "heddle.dev/proxy:0.1.0"
            - proxy.imagePullPolicy = "IfNotPresent"
            + init.imagePullPolicy = "Always"
            + proxy.image = "cr.l5d.io/linkerd/proxy:edge-26.8.3"
            + proxy.imagePullPolicy = "Always"
        "#]],
    );
}

#[test]
fn ports() {
    check(
        &[
            ("config.linkerd.io/inbound-port", "14143"),
            ("config.linkerd.io/outbound-port", "14140"),
            ("config.linkerd.io/control-port", "14190"),
            ("config.linkerd.io/admin-port", "14191"),
            ("config.linkerd.io/skip-inbound-ports", "22, 8000-8010"),
            ("config.linkerd.io/skip-outbound-ports", ""),
            ("config.linkerd.io/skip-subnets", "10.1.0.0/16, fd00::1"),
            ("config.linkerd.io/opaque-ports", "9000,http"),
            ("config.linkerd.io/proxy-require-identity-inbound-ports", "8080"),
        ],
        expect![[r#"
            - init.args[1] = "4143"
            - init.args[3] = "4140"
            - init.args[7] = "4190,4191,4567-4568"
            - init.args[8] = "--outbound-ports-to-ignore"
            - init.args[9] = "4567-4568"
            - proxy.env[LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR].value = "127.0.0.1:4140"
            - proxy.env[LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS].value = "127.0.0.1:4140"
            - proxy.env[LINKERD2_PROXY_INBOUND_LISTEN_ADDR].value = "0.0.0.0:4143"
            - proxy.env[LINKERD2_PROXY_CONTROL_LISTEN_ADDR].value = "0.0.0.0:4190"
            - proxy.env[LINKERD2_PROXY_ADMIN_LISTEN_ADDR].value = "0.0.0.0:4191"
            - proxy.env[LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION].value = "25,587,3306,4444,5432,6379,9300,11211"
            - proxy.livenessProbe.httpGet.port = 4191
            - proxy.ports[linkerd-proxy].containerPort = 4143
            - proxy.ports[linkerd-admin].containerPort = 4191
            - proxy.readinessProbe.httpGet.port = 4191
            - proxy.startupProbe.httpGet.port = 4191
            + init.args[1] = "14143"
            + init.args[3] = "14140"
            + init.args[7] = "14190,14191,22,8000-8010"
            + init.args[8] = "--subnets-to-ignore"
            + init.args[9] = "10.1.0.0/16,fd00::1"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_LISTEN_ADDR].value = "127.0.0.1:14140"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_LISTEN_ADDRS].value = "127.0.0.1:14140"
            + proxy.env[LINKERD2_PROXY_INBOUND_LISTEN_ADDR].value = "0.0.0.0:14143"
            + proxy.env[LINKERD2_PROXY_CONTROL_LISTEN_ADDR].value = "0.0.0.0:14190"
            + proxy.env[LINKERD2_PROXY_ADMIN_LISTEN_ADDR].value = "0.0.0.0:14191"
            + proxy.env[LINKERD2_PROXY_INBOUND_PORTS_DISABLE_PROTOCOL_DETECTION].value = "8080,9000"
            + proxy.livenessProbe.httpGet.port = 14191
            + proxy.ports[linkerd-proxy].containerPort = 14143
            + proxy.ports[linkerd-admin].containerPort = 14191
            + proxy.readinessProbe.httpGet.port = 14191
            + proxy.startupProbe.httpGet.port = 14191
        "#]],
    );
}

#[test]
fn resources_and_workers() {
    check(
        &[
            ("config.linkerd.io/proxy-cpu-request", "100m"),
            ("config.linkerd.io/proxy-cpu-limit", "1.5"),
            ("config.linkerd.io/proxy-cpu-ratio-limit", "0.5"),
            ("config.linkerd.io/proxy-memory-request", "20Mi"),
            ("config.linkerd.io/proxy-memory-limit", "250Mi"),
            ("config.linkerd.io/proxy-ephemeral-storage-limit", "1Gi"),
        ],
        expect![[r#"
            + proxy.env[LINKERD2_PROXY_CORES_MAX].name = "LINKERD2_PROXY_CORES_MAX"
            + proxy.env[LINKERD2_PROXY_CORES_MAX].value = "2"
            + proxy.env[LINKERD2_PROXY_CORES_MAX_RATIO].name = "LINKERD2_PROXY_CORES_MAX_RATIO"
            + proxy.env[LINKERD2_PROXY_CORES_MAX_RATIO].value = "0.5"
            + proxy.resources.limits.cpu = "1.5"
            + proxy.resources.limits.ephemeral-storage = "1Gi"
            + proxy.resources.limits.memory = "250Mi"
            + proxy.resources.requests.cpu = "100m"
            + proxy.resources.requests.memory = "20Mi"
        "#]],
    );
}

#[test]
fn user_and_logs() {
    check(
        &[
            ("config.linkerd.io/proxy-uid", "1337"),
            ("config.linkerd.io/proxy-gid", "1338"),
            ("config.linkerd.io/proxy-log-level", "debug"),
            ("config.linkerd.io/proxy-log-format", "json"),
            ("config.linkerd.io/proxy-log-http-headers", "insecure"),
            ("config.linkerd.io/access-log", "apache"),
            ("config.linkerd.io/proxy-metrics-hostname-labels", "true"),
        ],
        expect![[r#"
            - init.args[5] = "2102"
            - init.args[6] = "--inbound-ports-to-ignore"
            - init.args[7] = "4190,4191,4567-4568"
            - init.args[8] = "--outbound-ports-to-ignore"
            - init.args[9] = "4567-4568"
            - init.args[10] = "--ipv6=false"
            - proxy.env[LINKERD2_PROXY_LOG].value = "warn,heddle=info,linkerd=info,hickory=error,h2=error"
            - proxy.env[LINKERD2_PROXY_LOG_FORMAT].value = "plain"
            - proxy.securityContext.runAsUser = 2102
            + init.args[5] = "1337"
            + init.args[6] = "--proxy-gid"
            + init.args[7] = "1338"
            + init.args[8] = "--inbound-ports-to-ignore"
            + init.args[9] = "4190,4191,4567-4568"
            + init.args[10] = "--outbound-ports-to-ignore"
            + init.args[11] = "4567-4568"
            + init.args[12] = "--ipv6=false"
            + proxy.env[LINKERD2_PROXY_LOG].value = "debug"
            + proxy.env[LINKERD2_PROXY_LOG_FORMAT].value = "json"
            + proxy.env[LINKERD2_PROXY_ACCESS_LOG].name = "LINKERD2_PROXY_ACCESS_LOG"
            + proxy.env[LINKERD2_PROXY_ACCESS_LOG].value = "apache"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS].name = "LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_METRICS_HOSTNAME_LABELS].value = "true"
            + proxy.securityContext.runAsGroup = 1338
            + proxy.securityContext.runAsUser = 1337
        "#]],
    );
}

#[test]
fn timeouts() {
    check(
        &[
            ("config.linkerd.io/proxy-outbound-connect-timeout", "2s"),
            ("config.linkerd.io/proxy-inbound-connect-timeout", "200ms"),
            (
                "config.linkerd.io/proxy-outbound-discovery-cache-unused-timeout",
                "10s",
            ),
            (
                "config.linkerd.io/proxy-inbound-discovery-cache-unused-timeout",
                "2m",
            ),
            (
                "config.linkerd.io/proxy-disable-outbound-protocol-detect-timeout",
                "true",
            ),
            (
                "config.linkerd.io/proxy-disable-inbound-protocol-detect-timeout",
                "true",
            ),
            ("config.linkerd.io/shutdown-grace-period", "90s"),
        ],
        expect![[r#"
            - proxy.env[LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT].value = "10s"
            - proxy.env[LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT].value = "10s"
            - proxy.env[LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT].value = "1s"
            - proxy.env[LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT].value = "100ms"
            - proxy.env[LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT].value = "5s"
            - proxy.env[LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT].value = "90s"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_DETECT_TIMEOUT].value = "365d"
            + proxy.env[LINKERD2_PROXY_INBOUND_DETECT_TIMEOUT].value = "365d"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_CONNECT_TIMEOUT].value = "2s"
            + proxy.env[LINKERD2_PROXY_INBOUND_CONNECT_TIMEOUT].value = "200ms"
            + proxy.env[LINKERD2_PROXY_OUTBOUND_DISCOVERY_IDLE_TIMEOUT].value = "10s"
            + proxy.env[LINKERD2_PROXY_INBOUND_DISCOVERY_IDLE_TIMEOUT].value = "2m"
            + proxy.env[LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD].name = "LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD"
            + proxy.env[LINKERD2_PROXY_SHUTDOWN_GRACE_PERIOD].value = "90s"
        "#]],
    );
}

#[test]
fn lifecycle_of_a_plain_sidecar() {
    check(
        &[
            ("config.linkerd.io/proxy-enable-native-sidecar", "false"),
            ("config.alpha.linkerd.io/proxy-wait-before-exit-seconds", "5"),
            ("config.linkerd.io/proxy-admin-shutdown", "enabled"),
        ],
        expect![[r#"
            - proxy.restartPolicy = "Always"
            - proxy.startupProbe.failureThreshold = 120
            - proxy.startupProbe.httpGet.path = "/ready"
            - proxy.startupProbe.httpGet.port = 4191
            - proxy.startupProbe.periodSeconds = 1
            - proxy.startupProbe.timeoutSeconds = 1
            + proxy.env[LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED].name = "LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED"
            + proxy.env[LINKERD2_PROXY_SHUTDOWN_ENDPOINT_ENABLED].value = "true"
            + proxy.lifecycle.postStart.exec.command[0] = "/heddle-init"
            + proxy.lifecycle.postStart.exec.command[1] = "await"
            + proxy.lifecycle.postStart.exec.command[2] = "--port"
            + proxy.lifecycle.postStart.exec.command[3] = "4191"
            + proxy.lifecycle.postStart.exec.command[4] = "--timeout"
            + proxy.lifecycle.postStart.exec.command[5] = "2m"
            + proxy.lifecycle.preStop.sleep.seconds = 5
            + proxy.readinessProbe.initialDelaySeconds = 2
        "#]],
    );
    check(
        &[("config.linkerd.io/proxy-await", "disabled")],
        expect![[r#"
            - proxy.startupProbe.failureThreshold = 120
            - proxy.startupProbe.httpGet.path = "/ready"
            - proxy.startupProbe.httpGet.port = 4191
            - proxy.startupProbe.periodSeconds = 1
            - proxy.startupProbe.timeoutSeconds = 1
            + proxy.readinessProbe.initialDelaySeconds = 2
        "#]],
    );
    check(
        &[("config.beta.linkerd.io/proxy-enable-native-sidecar", "true")],
        expect![[r#""#]],
    );
}

#[test]
fn policy_and_modes() {
    check(
        &[
            (
                "config.linkerd.io/default-inbound-policy",
                "cluster-authenticated",
            ),
            ("config.linkerd.io/enable-external-profiles", "true"),
            ("config.linkerd.io/enable-gateway", "true"),
            (
                "config.linkerd.io/proxy-additional-env",
                r#"[{"name":"A","value":"b"},{"name":"LINKERD2_PROXY_LOG_FORMAT","value":"json"}]"#,
            ),
        ],
        expect![[r#"
            - proxy.env[LINKERD2_PROXY_LOG_FORMAT].value = "plain"
            - proxy.env[LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES].value = "svc.cluster.local."
            - proxy.env[LINKERD2_PROXY_INBOUND_DEFAULT_POLICY].value = "all-unauthenticated"
            + proxy.env[LINKERD2_PROXY_LOG_FORMAT].value = "json"
            + proxy.env[LINKERD2_PROXY_DESTINATION_PROFILE_SUFFIXES].value = "."
            + proxy.env[LINKERD2_PROXY_INBOUND_DEFAULT_POLICY].value = "cluster-authenticated"
            + proxy.env[LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES].name = "LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES"
            + proxy.env[LINKERD2_PROXY_INBOUND_GATEWAY_SUFFIXES].value = "svc.cluster.local."
            + proxy.env[A].name = "A"
            + proxy.env[A].value = "b"
        "#]],
    );
}

#[test]
fn an_invalid_value_names_annotation_value_and_what_was_expected() {
    refuse(
        "config.linkerd.io/proxy-cpu-limit",
        "lots",
        expect![
            "annotation config.linkerd.io/proxy-cpu-limit of the pod: `lots` is invalid: expected a quantity, such as 100m, 0.5, 250Mi or 1Gi"
        ],
    );
    refuse(
        "config.linkerd.io/admin-port",
        "0",
        expect![
            "annotation config.linkerd.io/admin-port of the pod: `0` is invalid: expected a port from 1 to 65535"
        ],
    );
    refuse(
        "config.linkerd.io/admin-port",
        "4143",
        expect![
            "annotation config.linkerd.io/{inbound,outbound,control,admin}-port of the pod: `[4140, 4143, 4143, 4190]` is invalid: expected four different ports"
        ],
    );
    refuse(
        "config.linkerd.io/skip-inbound-ports",
        "10-5",
        expect![
            "annotation config.linkerd.io/skip-inbound-ports of the pod: `10-5` is invalid: expected ports and ranges of ports, such as 25,8000-8010"
        ],
    );
    refuse(
        "config.linkerd.io/skip-subnets",
        "10.0.0.0/33",
        expect![
            "annotation config.linkerd.io/skip-subnets of the pod: `10.0.0.0/33` is invalid: expected networks such as 10.0.0.0/8, not `10.0.0.0/33`"
        ],
    );
    refuse(
        "config.linkerd.io/opaque-ports",
        "80,MY SQL",
        expect![
            "annotation config.linkerd.io/opaque-ports of the pod: `80,MY SQL` is invalid: expected ports, ranges of ports and names of container ports, such as 25,8000-8010,mysql"
        ],
    );
    refuse(
        "config.linkerd.io/proxy-uid",
        "0",
        expect![
            "annotation config.linkerd.io/proxy-uid of the pod: `0` is invalid: expected a user id from 1 to 2147483647: the proxy's own, which is not redirected"
        ],
    );
    refuse(
        "config.linkerd.io/proxy-await",
        "maybe",
        expect![
            "annotation config.linkerd.io/proxy-await of the pod: `maybe` is invalid: expected `enabled` or `disabled`, or `true` or `false`"
        ],
    );
    refuse(
        "config.linkerd.io/default-inbound-policy",
        "allow",
        expect![
            "annotation config.linkerd.io/default-inbound-policy of the pod: `allow` is invalid: expected one of `all-unauthenticated` `all-authenticated` `cluster-unauthenticated` `cluster-authenticated` `deny` `audit`"
        ],
    );
    refuse(
        "config.linkerd.io/shutdown-grace-period",
        "1.5s",
        expect![
            "annotation config.linkerd.io/shutdown-grace-period of the pod: `1.5s` is invalid: expected a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h"
        ],
    );
    refuse(
        "config.linkerd.io/proxy-additional-env",
        "A=b",
        expect![[
            r#"annotation config.linkerd.io/proxy-additional-env of the pod: `A=b` is invalid: expected a JSON list of environment variables, such as [{"name":"A","value":"b"}] (expected value at line 1 column 1)"#
        ]],
    );
    refuse(
        "config.linkerd.io/proxy-image",
        "a b",
        expect![
            "annotation config.linkerd.io/proxy-image of the pod: `a b` is invalid: expected an image's name without a tag"
        ],
    );
}

#[test]
fn all_invalid_annotations_are_reported_and_requests_fit_their_limits() {
    let pod = mk_pod(&[
        ("linkerd.io/inject", "enabled"),
        ("config.linkerd.io/proxy-log-format", "xml"),
        ("config.linkerd.io/access-log", "xml"),
    ]);
    match skipped(decide_in(&[], &pod)) {
        SkipReason::Invalid(errors) => assert_eq!(errors.len(), 2),
        other => panic!("{other}"),
    }
    let pod = mk_pod(&[
        ("config.linkerd.io/proxy-memory-request", "1Gi"),
        ("config.linkerd.io/proxy-memory-limit", "250Mi"),
    ]);
    let reason = skipped(decide_in(&[("linkerd.io/inject", "enabled")], &pod)).to_string();
    assert!(
        reason.contains("the request 1Gi is above the limit 250Mi"),
        "{reason}"
    );
}

#[test]
fn unknown_annotations_are_warned_about() {
    let pod = mk_pod(&[
        ("linkerd.io/inject", "enabled"),
        ("config.linkerd.io/proxy-cpu-limits", "1"),
        ("config.linkerd.io/init-image", "x"),
        ("config.linkerd.io/admission-webhooks", "disabled"),
        ("config.linkerd.io/opaque-ports", "mysql"),
        ("example.com/other", "x"),
    ]);
    let warnings = injected(decide_in(&[], &pod)).warnings().join("\n");
    expect![[r#"
        annotation config.linkerd.io/init-image has no effect in Heddle
        annotation config.linkerd.io/proxy-cpu-limits has no effect in Heddle
        annotation config.linkerd.io/opaque-ports: no container port of the pod is called `mysql`"#]]
    .assert_eq(&warnings);
}

#[test]
fn every_annotation_appears_once_in_the_table() {
    let mut names: Vec<_> = annotations::inherited().collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
