use expect_test::{Expect, expect};
use serde_json::json;

use super::*;
use crate::source::memory::MemoryTree;

pub(crate) fn bundled() -> Bundled {
    Bundled::from_files([
        (
            "core",
            "profile.yaml",
            r#"
apiVersion: heddle.dev/v1alpha1
kind: Profile
metadata: {name: core}
spec:
  values:
    identity: {trustDomain: cluster.local, issuer: {selfSigned: {}}}
    controller: {replicas: 1}
  schema:
    type: object
    properties:
      identity:
        type: object
        properties:
          trustDomain: {type: string}
          issuer:
            type: object
            maxProperties: 1
            properties:
              selfSigned: {type: [object, "null"], properties: {}}
              certManager: {type: [object, "null"], properties: {duration: {type: string}}}
      controller: {type: object, properties: {replicas: {type: integer, minimum: 1}}}
      proxy: {type: object, properties: {logLevel: {type: string, default: warn}, cpu: {type: [string, "null"]}}}
"#,
        ),
        (
            "core",
            "templates/config.yaml.hbs",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: config, namespace: linkerd}\ndata:\n  domain: {{quote values.identity.trustDomain}}\n  replicas: {{quote values.controller.replicas}}\n",
        ),
        (
            "ha",
            "profile.yaml",
            "apiVersion: heddle.dev/v1alpha1\nkind: Profile\nmetadata: {name: ha}\nspec:\n  extends: [core]\n  values: {controller: {replicas: 3}}\n",
        ),
        (
            "loop",
            "profile.yaml",
            "apiVersion: heddle.dev/v1alpha1\nkind: Profile\nmetadata: {name: loop}\nspec: {extends: [loop]}\n",
        ),
        (
            "wrong",
            "profile.yaml",
            "apiVersion: heddle.dev/v1alpha1\nkind: Profile\nmetadata: {name: wrong}\nspec:\n  extends: [core]\n  values:\n    controller: {replica: 3}\n",
        ),
    ])
}

pub(crate) fn tree(mesh: &str) -> MemoryTree {
    MemoryTree::new([
        ("clusters/prod/mesh.yaml", mesh),
        (
            "clusters/prod/policies/web.yaml",
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {name: web, namespace: payments}\nspec: {port: http}\n",
        ),
        (
            "profiles/own/profile.yaml",
            "apiVersion: heddle.dev/v1alpha1\nkind: Profile\nmetadata: {name: own}\nspec:\n  values: {color: red}\n  schema: {properties: {color: {type: string}}}\n",
        ),
    ])
}

pub(crate) fn mesh_yaml(spec: &str) -> String {
    format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshProfile\nmetadata: {{name: production}}\nspec:\n{spec}"
    )
}

fn check(mesh: &str, expected: Expect) {
    let text = match load(&tree(mesh), "clusters/prod", &bundled(), &[]) {
        Ok(mesh) => mesh.values.to_string(),
        Err(error) => crate::cli::chain(&error),
    };
    expected.assert_eq(&text);
}

#[test]
fn profiles_merge_left_to_right_and_values_win() {
    let spec = "  extends: [ha, /profiles/own]\n  values: {identity: {issuer: {certManager: {duration: 48h}}}, color: blue}\n  policies: [./policies]\n";
    let mesh = load(
        &tree(&mesh_yaml(spec)),
        "clusters/prod",
        &bundled(),
        &[json!({"proxy": {"logLevel": "info"}})],
    )
    .unwrap();
    assert_eq!(
        mesh.values,
        json!({
            "color": "blue", "controller": {"replicas": 3}, "proxy": {"logLevel": "info", "cpu": null},
            "identity": {"trustDomain": "cluster.local", "issuer": {"certManager": {"duration": "48h"}, "selfSigned": null}},
        })
    );
    assert_eq!(
        mesh.layers
            .iter()
            .map(|layer| layer.name.as_str())
            .collect::<Vec<_>>(),
        ["core", "ha", "own"]
    );
    assert_eq!(
        mesh.policies.keys().collect::<Vec<_>>(),
        ["clusters/prod/policies/web.yaml"]
    );
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_near_name() {
    check(
        &mesh_yaml(
            "  extends: [core]\n  values:\n    identity:\n      trustDomian: x\n    controller: {replicas: many}\n",
        ),
        expect![[r#"
            clusters/prod/mesh.yaml:9:28: spec.values.controller.replicas: expected integer, found the text `many`
            clusters/prod/mesh.yaml:8:7: spec.values.identity.trustDomian: unknown key `trustDomian` (hint: did you mean `trustDomain`?)"#]],
    );
    check(
        &mesh_yaml("  extend: [core]\n"),
        expect![[r#"
            clusters/prod/mesh.yaml:5:3: spec: the field `extends` is missing
            clusters/prod/mesh.yaml:5:3: spec.extend: unknown key `extend` (hint: did you mean `extends`?)"#]],
    );
}

#[test]
fn a_missing_base_profile_is_named() {
    check(
        &mesh_yaml("  extends: [cor]\n"),
        expect![
            "clusters/prod/mesh.yaml:5:13: spec.extends[0]: there is no bundled profile `cor` (hint: did you mean `core`?)"
        ],
    );
    check(
        &mesh_yaml("  extends: [core, ../base]\n"),
        expect![
            "clusters/prod/mesh.yaml:5:19: spec.extends[1]: clusters/prod/../base: paths must not contain `..`; a leading `/` names the repository's root"
        ],
    );
    check(
        &mesh_yaml("  extends: [./base]\n"),
        expect![
            "clusters/prod/mesh.yaml:5:13: spec.extends[0]: there is no profile folder `clusters/prod/base`"
        ],
    );
}

#[test]
fn profiles_that_extend_each_other_in_a_circle_are_refused() {
    check(
        &mesh_yaml("  extends: [loop]\n"),
        expect![
            "loop/profile.yaml:4:18: spec.extends[0]: the profiles extend each other in a circle: loop -> loop"
        ],
    );
}

#[test]
fn a_base_profiles_own_mistake_is_found_in_its_file() {
    check(
        &mesh_yaml("  extends: [wrong]\n"),
        expect![
            "wrong/profile.yaml:7:18: spec.values.controller.replica: unknown key `replica` (hint: did you mean `replicas`?)"
        ],
    );
}

#[test]
fn invalid_yaml_is_named_with_its_line() {
    check(
        &mesh_yaml("  extends: [core\n  values: {}\n"),
        expect!["clusters/prod/mesh.yaml:6:9: invalid YAML: did not find expected ',' or ']'"],
    );
    check(
        "",
        expect!["clusters/prod/mesh.yaml: invalid YAML: the file is empty"],
    );
    check(
        "- a\n",
        expect!["clusters/prod/mesh.yaml:1:1: expected object, found a list"],
    );
}

#[test]
fn injection_takes_only_injection_annotations() {
    check(
        &mesh_yaml(
            "  extends: [core]\n  injection:\n    - namespace: kube-system\n      annotations: {linkerd.io/inject: yes-please, other: x}\n  rollout: {waves: [0, 200%], timeout: 1m30s}\n",
        ),
        expect![[r#"
            clusters/prod/mesh.yaml:9:21: spec.rollout.waves[0]: `0` is no wave: expected a number of workloads from 1, or per cent such as 10%
            clusters/prod/mesh.yaml:9:24: spec.rollout.waves[1]: `"200%"` is no wave: expected a number of workloads from 1, or per cent such as 10%
            clusters/prod/mesh.yaml:9:40: spec.rollout.timeout: `1m30s` is not a duration: expected a whole number and one unit (ms, s, m, h or d), such as 300ms or 24h
            clusters/prod/mesh.yaml:7:18: spec.injection[0].namespace: pods of `kube-system` are never injected
            clusters/prod/mesh.yaml:8:52: spec.injection[0].annotations.other: `other` is not an injection annotation: expected linkerd.io/… or config.linkerd.io/…
            clusters/prod/mesh.yaml:8:40: spec.injection[0].annotations[linkerd.io/inject]: expected enabled, disabled or ingress, found `yes-please`"#]],
    );
}

#[test]
fn a_folder_without_a_profile_says_what_it_lacks() {
    let tree = MemoryTree::new([("a/x.yaml", "kind: Other\n")]);
    let error = load(&tree, "a", &bundled(), &[]).unwrap_err();
    expect!["a: there is no MeshProfile here (hint: expected a file mesh.yaml with `kind: MeshProfile`; see --path or spec.path)"]
        .assert_eq(&error.to_string());
}
