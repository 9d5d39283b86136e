//! Inheritance, and what comes beside the proxy: validator, debug container, spans.

use expect_test::expect;

use super::{
    annotation::{check, refuse},
    *,
};
use crate::quantity::Quantity;

const ENABLED: (&str, &str) = ("linkerd.io/inject", "enabled");

fn with_yaml(text: &str) -> ProxyDefaults {
    ProxyDefaults::from_yaml(text).expect("settings")
}

fn names(list: &Value) -> Vec<&str> {
    let items = list.as_array().into_iter().flatten();
    items.filter_map(|item| item["name"].as_str()).collect()
}

#[test]
fn a_namespace_hands_down_all_but_gateways() {
    let on_namespace = [
        ("linkerd.io/inject", "enabled"),
        ("config.linkerd.io/proxy-memory-limit", "250Mi"),
        ("config.linkerd.io/proxy-cpu-limit", "2"),
        ("config.linkerd.io/proxy-cpu-ratio-limit", "0.5"),
        ("config.linkerd.io/enable-gateway", "true"),
        ("config.beta.linkerd.io/proxy-enable-native-sidecar", "false"),
        (
            "config.linkerd.io/proxy-additional-env",
            r#"[{"name":"A","value":"ns"},{"name":"B","value":"ns"}]"#,
        ),
    ];
    let pod = mk_pod(&[
        ("config.linkerd.io/proxy-cpu-limit", "1"),
        (
            "config.linkerd.io/proxy-additional-env",
            r#"[{"name":"A","value":"pod"}]"#,
        ),
    ]);
    let injection = injected(decide_in(&on_namespace, &pod));
    let resources = &injection.settings.proxy.resources;
    let text = |quantity: &Option<Quantity>| quantity.as_ref().map(Quantity::to_string);
    assert_eq!(
        text(&resources.memory.limit).as_deref(),
        Some("250Mi"),
        "inherited"
    );
    assert_eq!(text(&resources.cpu.limit).as_deref(), Some("1"), "the pod wins");
    assert_eq!(resources.cpu.ratio_limit, Some(0.5), "Linkerd forgets this one");
    assert!(!injection.settings.proxy.native_sidecar, "and this");
    assert!(
        !injection.settings.gateway,
        "only a pod says that it is a gateway"
    );
    let (_, proxy) = injection.containers("");
    let value = |name: &str| {
        proxy
            .env
            .iter()
            .flatten()
            .find(|var| var.name == name)
            .and_then(|var| var.value.clone())
    };
    assert_eq!(
        (value("A").as_deref(), value("B").as_deref()),
        (Some("pod"), Some("ns")),
        "merged"
    );

    let after = patched(&pod, &injection);
    let annotations = &after["metadata"]["annotations"];
    assert_eq!(annotations["linkerd.io/inject"], "enabled");
    assert_eq!(annotations["config.linkerd.io/proxy-memory-limit"], "250Mi");
    assert_eq!(annotations["config.linkerd.io/proxy-cpu-limit"], "1");
    assert_eq!(annotations["config.linkerd.io/proxy-cpu-ratio-limit"], "0.5");
    assert_eq!(annotations["config.linkerd.io/enable-gateway"], Value::Null);
}

#[test]
fn the_pods_older_name_wins_over_the_namespaces_newer_one() {
    let on_namespace = [ENABLED, ("config.linkerd.io/proxy-enable-native-sidecar", "true")];
    let pod = mk_pod(&[("config.beta.linkerd.io/proxy-enable-native-sidecar", "false")]);
    assert!(
        !injected(decide_in(&on_namespace, &pod))
            .settings
            .proxy
            .native_sidecar
    );
}

#[test]
fn a_cni_plugin_leaves_a_validator_in_the_place_of_init() {
    let defaults = with_yaml("{cni: {enabled: true}, networkValidator: {timeout: 5s}}");
    for native in ["true", "false"] {
        let pod = mk_pod(&[
            ENABLED,
            ("config.linkerd.io/outbound-port", "14140"),
            ("config.linkerd.io/proxy-enable-native-sidecar", native),
        ]);
        let after = patched(&pod, &injected(decide_with(&defaults, &[], &pod)));
        let init = &after["spec"]["initContainers"];
        assert_eq!(names(init)[0], "linkerd-network-validator");
        assert!(!after.to_string().contains("linkerd-init") && !after.to_string().contains("NET_ADMIN"));
        let args: Vec<_> = init[0]["args"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|a| a.as_str().unwrap_or(""))
            .collect();
        assert_eq!(init[0]["command"], json!(["/heddle-init", "validate"]));
        expect!["--log-format plain --log-level info --connect-addr 1.1.1.1:20001 --listen-addr 0.0.0.0:14140 --timeout 5s"]
            .assert_eq(&args.join(" "));
        assert_eq!(init[0]["securityContext"]["runAsUser"], 65534);
        let again = read(after);
        assert!(matches!(
            skipped(decide_with(&defaults, &[], &again)),
            SkipReason::SidecarExists(_)
        ));
    }
    let pod = mk_pod(&[ENABLED]);
    let stamp = |text: &str| injected(decide_with(&with_yaml(text), &[], &pod)).stamp();
    assert_ne!(stamp("{}"), stamp("{cni: {enabled: true}}"));
    let addrs = "{cni: {enabled: true}, networkValidator: {connectAddr: '10.0.0.1:1', listenAddr: '[::1]:9'}, proxy: {disableIPv6: false}}";
    let (validator, _) = injected(decide_with(&with_yaml(addrs), &[], &pod)).containers("");
    let args = validator.args.unwrap_or_default().join(" ");
    assert!(args.contains("10.0.0.1:1") && args.contains("[::1]:9"), "{args}");
    let dual = "{cni: {enabled: true}, proxy: {disableIPv6: false}}";
    let (validator, _) = injected(decide_with(&with_yaml(dual), &[], &pod)).containers("");
    let args = validator.args.unwrap_or_default().join(" ");
    assert!(
        args.contains("[fd00::1]:20001") && args.contains("[::]:4140"),
        "{args}"
    );
}

#[test]
fn a_debug_container_comes_last() {
    let pod = mk_pod(&[
        ENABLED,
        ("config.linkerd.io/enable-debug-sidecar", "true"),
        ("config.linkerd.io/debug-image-version", "2"),
    ]);
    let defaults = with_yaml("{debugContainer: {image: {name: example.com/tools}}}");
    let after = patched(&pod, &injected(decide_with(&defaults, &[], &pod)));
    assert_eq!(names(&after["spec"]["containers"]), ["app", "linkerd-debug"]);
    let debug = &after["spec"]["containers"][1];
    assert_eq!(debug["image"], "example.com/tools:2");
    assert_eq!(debug["imagePullPolicy"], "IfNotPresent");

    // A namespace that asks for it changes its pods' stamps.
    let pod = mk_pod(&[ENABLED]);
    let asked = [("config.linkerd.io/enable-debug-sidecar", "true")];
    assert_ne!(
        injected(decide_in(&asked, &pod)).stamp(),
        injected(decide_in(&[], &pod)).stamp()
    );
    let all = [
        ENABLED,
        ("config.linkerd.io/enable-debug-sidecar", "true"),
        ("config.linkerd.io/debug-image", "a/b"),
        ("config.linkerd.io/debug-image-pull-policy", "Never"),
        ("config.linkerd.io/proxy-enable-native-sidecar", "false"),
    ];
    let pod = mk_pod(&all);
    let after = patched(&pod, &injected(decide_in(&[], &pod)));
    assert_eq!(
        names(&after["spec"]["containers"]),
        ["linkerd-proxy", "app", "linkerd-debug"]
    );
    assert_eq!(after["spec"]["containers"][2]["image"], "a/b:stable-2.14.10");
    assert_eq!(after["spec"]["containers"][2]["imagePullPolicy"], "Never");
}

#[test]
fn a_plain_sidecar_that_comes_first_is_not_the_default_container() {
    const DEFAULT: &str = "kubectl.kubernetes.io/default-container";
    let classic = ("config.linkerd.io/proxy-enable-native-sidecar", "false");
    let result = |annotations: &[(&str, &str)]| {
        let pod = mk_pod(annotations);
        let after = patched(&pod, &injected(decide_in(&[ENABLED], &pod)));
        (
            after["metadata"]["annotations"][DEFAULT].clone(),
            after["spec"]["containers"][0]["name"].clone(),
        )
    };
    assert_eq!(result(&[classic]), (json!("app"), json!("linkerd-proxy")));
    assert_eq!(result(&[classic, (DEFAULT, "other")]).0, "other");
    let unawaited = [classic, ("config.linkerd.io/proxy-await", "disabled")];
    assert_eq!(
        result(&unawaited),
        (Value::Null, json!("app")),
        "nothing waits for it"
    );
    assert_eq!(result(&[]).0, Value::Null);
}

#[test]
fn ports_that_a_pod_names_join_those_that_it_declares() {
    check(
        &[("config.linkerd.io/pod-inbound-ports", "3306,9000-9001")],
        expect![[r#"
            - proxy.env[LINKERD2_PROXY_INBOUND_PORTS].value = "8080"
            + proxy.env[LINKERD2_PROXY_INBOUND_PORTS].value = "3306,8080,9000,9001"
        "#]],
    );
    let pod = mk_pod(&[ENABLED, ("config.linkerd.io/pod-inbound-ports", "3306")]);
    let after = patched(&pod, &injected(decide_in(&[], &pod)));
    assert_eq!(
        after["metadata"]["annotations"]["config.linkerd.io/opaque-ports"],
        "3306"
    );
    refuse(
        "config.linkerd.io/pod-inbound-ports",
        "1-65535",
        expect![
            "annotation config.linkerd.io/pod-inbound-ports of the pod: `1-65535` is invalid: expected at most 256 ports"
        ],
    );
}

#[test]
fn the_time_of_half_closed_connections_needs_a_privileged_init() {
    check(
        &[("config.linkerd.io/close-wait-timeout", "1m30s")],
        expect![[r#"
        - init.securityContext.allowPrivilegeEscalation = false
        - init.securityContext.privileged = false
        + init.args[11] = "--timeout-close-wait-secs"
        + init.args[12] = "90"
        + init.securityContext.allowPrivilegeEscalation = true
        + init.securityContext.privileged = true
    "#]],
    );
    refuse(
        "config.linkerd.io/close-wait-timeout",
        "5",
        expect![
            "annotation config.linkerd.io/close-wait-timeout of the pod: `5` is invalid: expected a duration of at least 1s, such as 90s or 1m30s"
        ],
    );
}

#[test]
fn spans_go_to_a_meshed_collector_with_the_pods_attributes() {
    let defaults = with_yaml(
        "proxy: {tracing: {enabled: true, collector: {endpoint: 'otel.obs:4317', meshIdentity: {serviceAccountName: otel, namespace: obs}}, labels: {team: blue, k8s.pod.uid: x}}}",
    );
    let pod = mk_pod(&[
        ENABLED,
        ("resource.opentelemetry.io/service.name", "web, $(HOME)"),
        ("resource.opentelemetry.io/a=b", "ignored"),
    ]);
    let injection = injected(decide_with(&defaults, &[], &pod));
    let (_, proxy) = injection.containers("");
    let lines: Vec<String> = proxy
        .env
        .iter()
        .flatten()
        .filter(|var| var.name.contains("TRACE") || var.name.starts_with("OTEL"))
        .map(|var| format!("{}={}", var.name, var.value.clone().unwrap_or_default()))
        .collect();
    expect![[r#"
        LINKERD2_PROXY_TRACE_COLLECTOR_SVC_ADDR=otel.obs:4317
        LINKERD2_PROXY_TRACE_COLLECTOR_SVC_NAME=otel.obs.serviceaccount.identity.linkerd.cluster.local
        LINKERD2_PROXY_TRACE_SERVICE_NAME=linkerd-proxy
        LINKERD2_PROXY_TRACE_ATTRIBUTES_PATH=/var/run/linkerd/podinfo/labels
        LINKERD2_PROXY_TRACE_EXTRA_ATTRIBUTES=k8s.container.name=linkerd-proxy
        k8s.namespace.name=$(_pod_ns)
        k8s.node.name=$(_pod_nodeName)
        k8s.pod.name=$(_pod_name)
        k8s.pod.uid=x
        team=blue
        OTEL_RESOURCE_ATTRIBUTES=k8s.container.name=linkerd-proxy,k8s.namespace.name=$(_pod_ns),k8s.node.name=$(_pod_nodeName),k8s.pod.name=$(_pod_name),k8s.pod.uid=$(_pod_uid),service.name=web%2C%20%24%28HOME%29"#]].assert_eq(&lines.join("\n"));
    let after = patched(&pod, &injection);
    assert_eq!(names(&after["spec"]["volumes"])[2], "linkerd-podinfo");
    assert_eq!(
        after["spec"]["initContainers"][1]["volumeMounts"][2]["mountPath"],
        "/var/run/linkerd/podinfo"
    );
    // Without a collector there is nothing to say.
    let plain = injected(decide_in(&[], &pod)).containers("").1;
    assert!(!plain.env.iter().flatten().any(|var| var.name.starts_with("OTEL")));
}

#[test]
fn settings_of_no_use_are_refused() {
    let refused = |text: &str| match ProxyDefaults::from_yaml(text) {
        Ok(_) => panic!("taken: {text}"),
        Err(error) => error.to_string(),
    };
    expect!["injection settings (ConfigMap linkerd-config, key `values`): proxy.tracing: collector.endpoint: `` is invalid: expected host:port"].assert_eq(&refused("proxy: {tracing: {enabled: true}}"));
    expect!["injection settings (ConfigMap linkerd-config, key `values`): proxy.tracing: collector.meshIdentity: serviceAccountName and namespace must be given: proxies send spans over mTLS"].assert_eq(&refused("proxy: {tracing: {enabled: true, collector: {endpoint: 'a:1'}}}"));
    expect!["injection settings (ConfigMap linkerd-config, key `values`): networkValidator: connectAddr and listenAddr need a port from 1 to 65535"].assert_eq(&refused("networkValidator: {connectAddr: '1.1.1.1:0'}"));
    assert!(
        with_yaml(
            "proxy: {tracing: null}\ncni: null\nnetworkValidator: null\ndebugContainer: {image: {name: null}}"
        ) == ProxyDefaults::default()
    );
}
