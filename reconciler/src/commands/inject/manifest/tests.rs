use heddle_inject::ProxyDefaults;
use serde_json::json;

use super::*;

fn mk_deployment() -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "payments"},
        "spec": {"template": {"spec": {"containers": [{"name": "app", "image": "app"}]}}},
    })
}

fn mk_asked(opaque: Option<&str>) -> Asked {
    let mut annotations = vec![("linkerd.io/inject".to_owned(), "enabled".to_owned())];
    annotations.extend(opaque.map(|ports| (annotation::OPAQUE_PORTS.to_owned(), ports.to_owned())));
    Asked {
        annotations,
        opaque_ports: opaque.map(str::to_owned),
    }
}

fn mk_manual() -> Manual {
    Manual {
        defaults: ProxyDefaults::default(),
        trust_anchors_pem: "PEM".into(),
    }
}

/// Injects and returns what is said.
fn say(value: &mut Value, asked: &Asked, mode: &Mode<'_>) -> String {
    let mut reports = Vec::new();
    inject(value, asked, mode, &mut reports);
    let lines: Vec<_> = reports.iter().map(Report::to_string).collect();
    lines.join("\n")
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["name"].as_str())
        .collect()
}

#[test]
fn the_pod_template_is_annotated() {
    let mut value = mk_deployment();
    let said = say(&mut value, &mk_asked(None), &Mode::Annotate);
    assert_eq!(said, "deployment \"web\" annotated");
    assert_eq!(
        value["spec"]["template"]["metadata"]["annotations"],
        json!({"linkerd.io/inject": "enabled"})
    );
    assert!(value["metadata"].get("annotations").is_none());

    let mut list = json!({"kind": "List", "items": [
        {"kind": "CronJob", "metadata": {"name": "c"}, "spec": {"jobTemplate": {"spec": {"template": {"spec": {"containers": []}}}}}},
        {"kind": "Service", "metadata": {"name": "s"}},
        {"kind": "Namespace", "metadata": {"name": "n"}},
        {"metadata": {}},
    ]});
    let said = say(&mut list, &mk_asked(None), &Mode::Annotate);
    assert_eq!(
        said,
        "cronjob \"c\" annotated\nservice \"s\" skipped: it runs no pods\nnamespace \"n\" annotated\n\
         document missing \"kind\" field skipped: it runs no pods"
    );
    assert_eq!(
        list["items"][1],
        json!({"kind": "Service", "metadata": {"name": "s"}})
    );
    let template = &list["items"][0]["spec"]["jobTemplate"]["spec"]["template"];
    assert_eq!(
        template["metadata"]["annotations"]["linkerd.io/inject"],
        "enabled"
    );
    let said = say(&mut list, &mk_asked(Some("3306")), &Mode::Annotate);
    assert!(said.contains("service \"s\" annotated"), "{said}");
    assert_eq!(
        list["items"][1]["metadata"]["annotations"],
        json!({"config.linkerd.io/opaque-ports": "3306"})
    );
}

#[test]
fn what_cannot_be_injected_is_left_as_it_is() {
    for (change, reason) in [
        (json!({"spec": {"hostNetwork": true}}), "hostNetwork"),
        (
            json!({"spec": {"initContainers": [{"name": "istio-init"}]}}),
            "istio-init",
        ),
        (
            json!({"metadata": {"annotations": {"linkerd.io/inject": "disabled"}}}),
            "disabled",
        ),
    ] {
        let mut value = mk_deployment();
        json_patch::merge(&mut value["spec"]["template"], &change);
        let before = value.clone();
        let said = say(&mut value, &mk_asked(None), &Mode::Annotate);
        assert!(said.contains("skipped") && said.contains(reason), "{said}");
        assert_eq!(value, before);
    }
    let mut value = mk_deployment();
    value["spec"]["template"]["spec"]["containers"][0]["ports"] =
        json!([{"containerPort": 53, "protocol": "UDP"}]);
    let said = say(&mut value, &mk_asked(None), &Mode::Annotate);
    assert!(
        said.starts_with("warning: deployment \"web\": it uses \"protocol: UDP\""),
        "{said}"
    );
}

#[test]
fn manual_injection_writes_the_sidecar_and_may_be_repeated() {
    let manual = mk_manual();
    let mut value = mk_deployment();
    let said = say(&mut value, &mk_asked(None), &Mode::Write(&manual));
    assert_eq!(said, "deployment \"web\" injected");
    let spec = &value["spec"]["template"]["spec"];
    assert_eq!(names(&spec["initContainers"]), ["linkerd-init", "linkerd-proxy"]);
    let once = value.clone();
    say(&mut value, &mk_asked(None), &Mode::Write(&manual));
    assert_eq!(value, once);
}

#[test]
fn taking_the_sidecar_out_gives_the_manifest_back() {
    let manual = mk_manual();
    let original = mk_deployment();
    for mode in [Mode::Annotate, Mode::Write(&manual)] {
        let mut asked = mk_asked(Some("3306"));
        asked.annotations.extend([
            (
                "config.linkerd.io/proxy-enable-native-sidecar".into(),
                "false".into(),
            ),
            ("config.linkerd.io/enable-debug-sidecar".into(), "true".into()),
        ]);
        let mut value = original.clone();
        say(&mut value, &asked, &mode);
        assert_ne!(value, original);
        assert!(sidecar::remove(&mut value["spec"]["template"], Depth::Everything));
        let template = value["spec"]["template"].as_object_mut().expect("a template");
        template.remove("metadata");
        assert_eq!(value, original);
    }
    // Who opts out keeps opting out.
    let mut pod = json!({"metadata": {"annotations": {"linkerd.io/inject": "disabled", "a": "b"}, "labels": {"app": "x"}}, "spec": {}});
    assert!(!sidecar::remove(&mut pod, Depth::Everything));
}
