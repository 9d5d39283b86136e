use expect_test::{Expect, expect};

use super::*;
use crate::{
    profile::{
        self, Bundled,
        tests::{bundled, mesh_yaml, tree},
    },
    source::memory::MemoryTree,
};

fn render_with(template: &str) -> Result<Rendered, Faults> {
    let own =
        String::from("apiVersion: heddle.dev/v1alpha1\nkind: Profile\nmetadata: {name: own}\nspec: {}\n");
    let bundled = Bundled::from_files([
        ("own", "profile.yaml", own.as_str()),
        ("own", "templates/x.yaml.hbs", template),
    ]);
    let mesh = mesh_yaml("  extends: [own]\n");
    let tree = MemoryTree::new([("mesh.yaml", mesh.as_str())]);
    render(&profile::load(&tree, "", &bundled, &[]).unwrap())
}

fn check(template: &str, expected: Expect) {
    let text = match render_with(template) {
        Ok(rendered) => rendered.to_yaml(|_| true),
        Err(faults) => faults.to_string(),
    };
    expected.assert_eq(&text);
}

fn full() -> Rendered {
    let spec = "  extends: [core]\n  policies: [./policies]\n  injection:\n    - {namespace: payments, annotations: {linkerd.io/inject: enabled}}\n    - {namespace: shop, workload: {kind: Deployment, name: web}, annotations: {linkerd.io/inject: disabled}}\n";
    let mesh = profile::load(&tree(&mesh_yaml(spec)), "clusters/prod", &bundled(), &[]).unwrap();
    render(&mesh).unwrap()
}

#[test]
fn a_profile_renders_to_staged_objects() {
    expect![[r#"
        ---
        apiVersion: v1
        kind: ConfigMap
        metadata:
          name: config
          labels:
            app.kubernetes.io/managed-by: heddle
            heddle.dev/profile: production
          namespace: linkerd
        data:
          domain: cluster.local
          replicas: "1"
        ---
        apiVersion: v1
        kind: Namespace
        metadata:
          name: payments
          annotations:
            linkerd.io/inject: enabled
        ---
        apiVersion: apps/v1
        kind: Deployment
        metadata:
          name: web
          namespace: shop
        spec:
          template:
            metadata:
              annotations:
                linkerd.io/inject: disabled
        ---
        apiVersion: policy.linkerd.io/v1beta3
        kind: Server
        metadata:
          name: web
          labels:
            app.kubernetes.io/managed-by: heddle
            heddle.dev/profile: production
          namespace: payments
        spec:
          port: http
    "#]]
    .assert_eq(&full().to_yaml(|_| true));
}

#[test]
fn a_thousand_renders_are_byte_identical() {
    let first = full().to_yaml(|_| true);
    assert!((0..1000).all(|_| full().to_yaml(|_| true) == first));
}

#[test]
fn a_missing_value_is_an_error_at_its_place_in_the_template() {
    check(
        "a: 1\nb: {{values.nope.x}}\n",
        expect![[
            r#"own/templates/x.yaml.hbs:2:4: the template fails: Failed to access variable in strict mode Some("values.nope.x") (hint: the value is neither given nor in the profile's schema)"#
        ]],
    );
    check(
        "a: {{#if x}}\n",
        expect![
            "own/templates/x.yaml.hbs:2:1: the template is not understood: invalid handlebars syntax: expected escape, expression, html_expression, decorator_expression, partial_expression, invert_tag, invert_chain_tag, helper_block_start, helper_block_end, decorator_block_start, partial_block_start, raw_block_start, hbs_comment, or hbs_comment_compact"
        ],
    );
    check(
        "a: {{now}}\n",
        expect![[
            r#"own/templates/x.yaml.hbs:1:4: the template fails: Failed to access variable in strict mode Some("now") (hint: the value is neither given nor in the profile's schema)"#
        ]],
    );
}

#[test]
fn invalid_yaml_from_a_template_is_shown() {
    check(
        "apiVersion: v1\nkind: {{quote version}}: x\n",
        expect![[
            r#"own/templates/x.yaml.hbs: renders to invalid YAML at rendered line 2 (`kind: "0.1.0": x`): mapping values are not allowed in this context"#
        ]],
    );
}

#[test]
fn objects_must_be_objects() {
    check(
        "a: 1\n",
        expect!["own/templates/x.yaml.hbs: kind: document at rendered line 1: `kind` is missing or not text"],
    );
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n",
        expect![
            "own/templates/x.yaml.hbs: ConfigMap x: metadata.namespace: the object has no namespace (hint: give metadata.namespace)"
        ],
    );
    check(
        "kind: ConfigMap\nmetadata: {name: x, namespace: y}\n",
        expect!["own/templates/x.yaml.hbs: ConfigMap x: apiVersion: `apiVersion` is missing or not text"],
    );
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {namespace: y}\n",
        expect!["own/templates/x.yaml.hbs: ConfigMap: metadata.name: the object has no name"],
    );
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: x, labels: {port: 80}}\n",
        expect![
            "own/templates/x.yaml.hbs: Namespace x: metadata.labels[port]: expected text (hint: put quotes around the value)"
        ],
    );
    check(
        "apiVersion: v1\nkind: List\nitems: []\n",
        expect![
            "own/templates/x.yaml.hbs: List: lists are not taken apart (hint: write the items as documents of their own)"
        ],
    );
    check(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n",
        expect![
            "own/templates/x.yaml.hbs: Namespace x: the same object is also written in own/templates/x.yaml.hbs (rendered line 1)"
        ],
    );
}

#[test]
fn private_keys_are_refused() {
    check(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x, namespace: y}\nstringData: {k: \"-----BEGIN PRIVATE KEY-----\"}\n",
        expect![
            "own/templates/x.yaml.hbs: Secret y/x: stringData[k]: a private key has no place in Git (hint: let cert-manager or the cluster make the key; remove it from the repository's history)"
        ],
    );
    check(
        "apiVersion: v1\nkind: Secret\nmetadata: {name: x, namespace: y}\ndata: {k: {{b64 \"-----BEGIN EC PRIVATE KEY-----\"}}}\n",
        expect![
            "own/templates/x.yaml.hbs: Secret y/x: data[k]: a private key has no place in Git (hint: let cert-manager or the cluster make the key; remove it from the repository's history)"
        ],
    );
}

#[test]
fn helpers_print_yaml() {
    check(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, namespace: y}\ndata:\n{{toYaml profile indent=2}}\n  d: {{default null 'z'}}\n  s: {{sha256 'a'}}\n",
        expect![[r#"
            ---
            apiVersion: v1
            kind: ConfigMap
            metadata:
              name: x
              labels:
                app.kubernetes.io/managed-by: heddle
                heddle.dev/profile: production
              namespace: "y"
            data:
              name: production
              d: z
              namespace: linkerd
              s: ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb
        "#]],
    );
}

#[test]
fn private_annotations_stay_here() {
    let rendered = render_with(
        "apiVersion: monitoring.coreos.com/v1\nkind: PodMonitor\nmetadata: {name: x, namespace: y, annotations: {heddle.dev/requires-crd: podmonitors.monitoring.coreos.com}}\n",
    )
    .unwrap();
    assert_eq!(
        rendered.objects[0].requires_crd.as_deref(),
        Some("podmonitors.monitoring.coreos.com")
    );
    assert!(!rendered.to_yaml(|_| true).contains("requires-crd"));
}
