use k8s_openapi::api::core::v1::PodTemplateSpec;

use super::*;
use crate::{ProxyStamp, pod_of_template};

/// What the API server and the admission plugins before the webhooks make of a template.
fn created_from(template: &PodTemplateSpec) -> Pod {
    let mut pod = serde_json::to_value(pod_of_template(template)).expect("JSON");
    let metadata = &mut pod["metadata"];
    metadata["generateName"] = json!("web-5d4f8c7b9-");
    metadata["namespace"] = json!("payments");
    metadata["labels"] = json!({"app": "web", "pod-template-hash": "5d4f8c7b9"});
    metadata["ownerReferences"] = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d4f8c7b9", "uid": "u", "controller": true}]);
    let spec = &mut pod["spec"];
    for (key, value) in [
        ("serviceAccountName", json!("default")),
        ("serviceAccount", json!("default")),
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("enableServiceLinks", json!(true)),
        ("priority", json!(0)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
        ("securityContext", json!({})),
        (
            "tolerations",
            json!([{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}]),
        ),
    ] {
        spec[key] = value;
    }
    if spec["volumes"].is_null() {
        spec["volumes"] = json!([]);
    }
    spec["volumes"]
        .as_array_mut()
        .expect("a list")
        .push(json!({"name": "kube-api-access-x", "projected": {"sources": []}}));
    for container in spec["containers"].as_array_mut().expect("a list") {
        container["imagePullPolicy"] = json!("IfNotPresent");
        container["terminationMessagePath"] = json!("/dev/termination-log");
        container["terminationMessagePolicy"] = json!("File");
        container["resources"] = json!({});
        container["volumeMounts"] = json!([{"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}]);
        for port in container["ports"].as_array_mut().into_iter().flatten() {
            port["protocol"] = json!("TCP");
        }
    }
    // Another mesh's or vendor's webhook may have been there first.
    let agent =
        json!({"name": "agent", "image": "agent:1", "ports": [{"containerPort": 6379, "protocol": "TCP"}]});
    spec["containers"].as_array_mut().expect("a list").push(agent);
    read(pod)
}

fn stamp_of(decision: Decision) -> ProxyStamp {
    injected(decision).stamp()
}

/// A small generator of numbers, so that the cases are the same on every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // Knuth's MMIX constants; the high bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

const VALUES: [(&str, &[&str]); 9] = [
    ("config.linkerd.io/proxy-memory-limit", &["250Mi", "1Gi"]),
    ("config.linkerd.io/proxy-cpu-limit", &["1", "1500m"]),
    (
        "config.linkerd.io/opaque-ports",
        &["3306", "http,9000", "9000-9010", "redis"],
    ),
    ("config.linkerd.io/skip-outbound-ports", &["25", "8000-8010"]),
    ("config.linkerd.io/proxy-log-level", &["debug", "warn"]),
    (
        "config.linkerd.io/proxy-enable-native-sidecar",
        &["true", "false"],
    ),
    ("config.linkerd.io/default-inbound-policy", &["deny", "audit"]),
    (
        "config.linkerd.io/proxy-additional-env",
        &[r#"[{"name":"A","value":"b"}]"#],
    ),
    (
        "config.linkerd.io/proxy-require-identity-inbound-ports",
        &["8080"],
    ),
];

fn some_annotations(dice: &mut Dice) -> Vec<(&'static str, &'static str)> {
    let mut found = Vec::new();
    for (name, values) in VALUES {
        if dice.roll(3) == 0 {
            found.push((name, values[dice.roll(values.len() as u64) as usize]));
        }
    }
    found
}

fn template(annotations: &[(&str, &str)]) -> PodTemplateSpec {
    let pod = mk_pod(annotations);
    let mut metadata = pod.metadata;
    metadata.name = None;
    metadata.labels = Some(map(&[("app", "web")]));
    PodTemplateSpec {
        metadata: Some(metadata),
        spec: pod.spec,
    }
}

#[test]
fn a_template_and_the_pod_made_from_it_have_one_stamp() {
    let mut dice = Dice(1);
    for _ in 0..500 {
        let mut on_namespace = some_annotations(&mut dice);
        on_namespace.push((
            "linkerd.io/inject",
            if dice.roll(4) == 0 { "ingress" } else { "enabled" },
        ));
        let template = template(&some_annotations(&mut dice));
        let pod = created_from(&template);
        let planned = decide_in(&on_namespace, &pod_of_template(&template));
        let admitted = decide_in(&on_namespace, &pod);
        assert_eq!(
            stamp_of(planned),
            stamp_of(admitted.clone()),
            "{on_namespace:?} {template:?}"
        );

        let injection = injected(admitted);
        let after = patched(&pod, &injection);
        assert_eq!(
            after["metadata"]["annotations"]["heddle.dev/proxy-stamp"],
            injection.stamp().as_str()
        );
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let mut dice = Dice(2);
    for _ in 0..200 {
        let mut annotations = some_annotations(&mut dice);
        annotations.push(("linkerd.io/inject", "enabled"));
        let text = |pod: &Pod| {
            let injection = injected(decide_in(&[], pod));
            serde_json::to_string(&injection.patch(ANCHORS)).expect("JSON")
        };
        let pod = mk_pod(&annotations);
        annotations.reverse();
        assert_eq!(text(&pod), text(&mk_pod(&annotations)));
    }
}

#[test]
fn what_changes_the_sidecar_changes_the_stamp_and_nothing_else_does() {
    let plain = [("linkerd.io/inject", "enabled")];
    let with = |extra: (&'static str, &'static str)| [plain[0], extra];
    let base = stamp_of(decide_in(&plain, &mk_pod(&[])));
    for (name, values) in VALUES {
        let changed = stamp_of(decide_in(&with((name, values[values.len() - 1])), &mk_pod(&[])));
        // Turning native sidecars off differs from the default, and so do all the others.
        assert_ne!(base, changed, "{name}");
    }
    for (key, value) in [("example.com/team", "blue"), ("config.linkerd.io/unknown", "x")] {
        assert_eq!(
            base,
            stamp_of(decide_in(&with((key, value)), &mk_pod(&[]))),
            "{key}"
        );
    }
    let restarted = mk_pod(&[("kubectl.kubernetes.io/restartedAt", "2026-01-01T00:00:00Z")]);
    assert_eq!(base, stamp_of(decide_in(&plain, &restarted)));
    assert_eq!(
        base,
        stamp_of(decide_in(&[], &mk_pod(&plain))),
        "who asks makes no difference"
    );

    let mut defaults = ProxyDefaults::default();
    defaults.proxy.image.version = "0.2.0".into();
    assert_ne!(base, stamp_of(decide_with(&defaults, &plain, &mk_pod(&[]))));
    let mut defaults = ProxyDefaults::default();
    defaults.cluster_networks.push("11.0.0.0/8".into());
    assert_ne!(base, stamp_of(decide_with(&defaults, &plain, &mk_pod(&[]))));
}

#[test]
fn trust_anchors_do_not_matter_to_the_stamp() {
    let pod = mk_pod(&[("linkerd.io/inject", "enabled")]);
    let injection = injected(decide_in(&[], &pod));
    let annotation = |anchors| {
        let patch = serde_json::to_value(injection.patch(anchors))
            .expect("JSON")
            .to_string();
        (patch.contains(injection.stamp().as_str()), patch)
    };
    let ((one_has, one), (two_has, two)) = (annotation("one"), annotation("two"));
    assert!(one_has && two_has && one != two);
}
