use super::*;

const INJECT: &str = "linkerd.io/inject";

#[test]
fn the_pod_wins_over_its_namespace() {
    for (on_namespace, on_pod, expected) in [
        ("", "", "injection_enable_annotation_absent"),
        ("", "enabled", "inject"),
        ("", "disabled", "injection_disable_annotation_present_workload"),
        ("", "ingress", "ingress"),
        ("enabled", "", "inject"),
        ("enabled", "enabled", "inject"),
        (
            "enabled",
            "disabled",
            "injection_disable_annotation_present_workload",
        ),
        ("enabled", "ingress", "ingress"),
        ("ingress", "", "ingress"),
        ("ingress", "enabled", "inject"),
        (
            "ingress",
            "disabled",
            "injection_disable_annotation_present_workload",
        ),
        ("disabled", "", "injection_disable_annotation_present_namespace"),
        ("disabled", "enabled", "inject"),
        ("disabled", "ingress", "ingress"),
        ("yes", "", "invalid_annotation"),
        ("yes", "enabled", "invalid_annotation"),
        ("enabled", "true", "invalid_annotation"),
    ] {
        let set = |value| {
            if str::is_empty(value) {
                vec![]
            } else {
                vec![(INJECT, value)]
            }
        };
        let found = match decide_in(&set(on_namespace), &mk_pod(&set(on_pod))) {
            Decision::Inject(injection) if injection.settings.ingress => "ingress",
            Decision::Inject(_) => "inject",
            Decision::Skip(reason) => reason.key(),
        };
        assert_eq!(found, expected, "namespace {on_namespace:?}, pod {on_pod:?}");
    }
}

#[test]
fn protected_namespaces_are_never_injected() {
    let (annotations, none) = (map(&[(INJECT, "enabled")]), Map::new());
    let pod = mk_pod(&[(INJECT, "enabled")]);
    for name in ["kube-system", "kube-public", "linkerd", "heddle-system"] {
        let namespace = Namespace {
            name,
            annotations: &annotations,
            labels: &none,
        };
        let reason = skipped(decide(&ProxyDefaults::default(), &namespace, &pod, None));
        assert_eq!(reason, SkipReason::ProtectedNamespace(name.into()));
    }
    let labels = map(&[("config.linkerd.io/admission-webhooks", "disabled")]);
    let namespace = Namespace {
        name: "payments",
        annotations: &annotations,
        labels: &labels,
    };
    assert_eq!(
        skipped(decide(&ProxyDefaults::default(), &namespace, &pod, None)),
        SkipReason::WebhooksDisabled
    );
}

#[test]
fn pods_that_cannot_be_redirected_are_skipped() {
    let skip_of = |spec: Value| {
        let pod = read(json!({"metadata": {"name": "p"}, "spec": spec}));
        skipped(decide_in(&[(INJECT, "enabled")], &pod))
    };
    let app = json!([{"name": "app"}]);
    assert_eq!(
        skip_of(json!({"containers": app, "hostNetwork": true})),
        SkipReason::HostNetwork
    );
    assert_eq!(
        skip_of(json!({"containers": app, "os": {"name": "windows"}})),
        SkipReason::Windows
    );
    let existing = |name: &str| SkipReason::SidecarExists(name.into());
    assert_eq!(
        skip_of(json!({"containers": [{"name": "linkerd-proxy"}]})),
        existing("linkerd-proxy")
    );
    assert_eq!(
        skip_of(json!({"containers": app, "initContainers": [{"name": "linkerd-init"}]})),
        existing("linkerd-init")
    );
    assert_eq!(
        skip_of(json!({"containers": [{"name": "istio-proxy"}]})),
        existing("istio-proxy")
    );
    assert_eq!(
        skipped(decide_in(&[(INJECT, "enabled")], &Pod::default())),
        SkipReason::NoSpec
    );
}

#[test]
fn an_injected_pod_is_not_injected_again() {
    for classic in ["true", "false"] {
        let pod = mk_pod(&[
            (INJECT, "enabled"),
            ("config.linkerd.io/proxy-enable-native-sidecar", classic),
        ]);
        let again = read(patched(&pod, &injected(decide_in(&[], &pod))));
        assert!(matches!(
            skipped(decide_in(&[], &again)),
            SkipReason::SidecarExists(_)
        ));
    }
}

#[test]
fn only_what_someone_asked_for_is_a_surprise() {
    assert!(SkipReason::HostNetwork.is_surprising() && !SkipReason::NotEnabled.is_surprising());
    assert!(
        SkipReason::DisabledByPod.is_worth_an_event() && !SkipReason::DisabledByNamespace.is_worth_an_event()
    );
    let mirror = mk_pod(&[(INJECT, "enabled"), ("kubernetes.io/config.mirror", "hash")]);
    assert_eq!(skipped(decide_in(&[], &mirror)), SkipReason::MirrorPod);
}

#[test]
fn a_service_says_which_of_its_ports_are_opaque() {
    let service = |value: Value| serde_json::from_value(value).expect("a service");
    let decide = |namespace: &[(&str, &str)], value: Value| {
        let (annotations, labels) = (map(namespace), Map::new());
        let namespace = Namespace {
            name: "payments",
            annotations: &annotations,
            labels: &labels,
        };
        let patch = crate::decide_service(&ProxyDefaults::default(), &namespace, &service(value));
        patch.map(|patch| serde_json::to_value(patch).expect("a patch is JSON"))
    };
    let mysql = json!({"metadata": {"name": "db"}, "spec": {"ports": [{"port": 3306}, {"port": 80}]}});
    assert_eq!(
        decide(&[], mysql.clone()),
        Some(
            json!([{"op": "add", "path": "/metadata/annotations", "value": {"config.linkerd.io/opaque-ports": "3306"}}])
        )
    );
    assert_eq!(
        decide(
            &[("config.linkerd.io/opaque-ports", "9000")],
            json!({"metadata": {"annotations": {"a": "b"}}})
        ),
        Some(
            json!([{"op": "add", "path": "/metadata/annotations/config.linkerd.io~1opaque-ports", "value": "9000"}])
        )
    );
    assert_eq!(decide(&[], json!({"spec": {"ports": [{"port": 80}]}})), None);
    assert_eq!(
        decide(
            &[],
            json!({"metadata": {"annotations": {"config.linkerd.io/opaque-ports": ""}}, "spec": {"ports": [{"port": 3306}]}})
        ),
        None
    );
    let redis_behind_80 = json!({"spec": {"ports": [{"port": 8000, "targetPort": 6379}]}});
    assert!(decide(&[], redis_behind_80).is_some());
}
