//! The definitions are structural, and the committed ones are those of the types.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::PathBuf,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde::Serialize;
use serde_json::{Value, json};

/// YAML with sorted keys, so that the text depends on nothing but the definition.
fn yaml(crd: &CustomResourceDefinition) -> String {
    #[derive(Serialize)]
    #[serde(untagged)]
    enum Sorted {
        Map(BTreeMap<String, Sorted>),
        List(Vec<Sorted>),
        Other(Value),
    }
    fn sorted(value: Value) -> Sorted {
        match value {
            Value::Object(map) => {
                Sorted::Map(map.into_iter().map(|(key, value)| (key, sorted(value))).collect())
            }
            Value::Array(list) => Sorted::List(list.into_iter().map(sorted).collect()),
            // Bounds are floats in the type; the API server gives whole ones back without a fraction.
            Value::Number(number) => match number.as_f64() {
                Some(float) if float.fract() == 0.0 && float.abs() < 1e15 => {
                    Sorted::Other(json!(float as i64))
                }
                _ => Sorted::Other(Value::Number(number)),
            },
            other => Sorted::Other(other),
        }
    }
    let body = serde_yaml::to_string(&sorted(
        serde_json::to_value(crd).expect("a definition serialises"),
    ))
    .expect("a definition is YAML");
    format!(
        "# Written from the types in crates/k8s. To refresh: UPDATE_EXPECT=1 cargo test -p heddle-k8s\n{body}"
    )
}

/// Core installs all kinds; the reconciler's own kind must be there before a mesh is.
#[test]
fn committed_definitions_are_those_of_the_types() {
    check_folder("core", |_| true);
    check_folder("reconciler", |crd| crd.spec.group == "heddle.dev");
}

fn check_folder(profile: &str, wanted: impl Fn(&CustomResourceDefinition) -> bool) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../profiles")
        .join(profile)
        .join("crds");
    let update = env::var_os("UPDATE_EXPECT").is_some();
    let expected: BTreeMap<String, String> = heddle_k8s::crds()
        .iter()
        .filter(|crd| wanted(crd))
        .map(|crd| {
            (
                format!(
                    "{}.yaml",
                    crd.metadata.name.as_deref().expect("a definition has a name")
                ),
                yaml(crd),
            )
        })
        .collect();
    if update {
        fs::create_dir_all(&folder).expect("the folder can be made");
        for (name, text) in &expected {
            fs::write(folder.join(name), text).expect("the file can be written");
        }
    }
    let names: BTreeSet<String> = fs::read_dir(&folder)
        .expect("the folder exists")
        .map(|entry| {
            entry
                .expect("readable")
                .file_name()
                .into_string()
                .expect("a UTF-8 name")
        })
        .collect();
    assert_eq!(
        names,
        expected.keys().cloned().collect(),
        "files in {}",
        folder.display()
    );
    for (name, text) in expected {
        let committed = fs::read_to_string(folder.join(&name)).expect("readable");
        assert!(
            committed == text,
            "{name} is stale: run UPDATE_EXPECT=1 cargo test -p heddle-k8s"
        );
    }
}

#[test]
fn served_and_stored_versions_are_linkerds_and_the_seeds() {
    let found: BTreeMap<String, String> = heddle_k8s::crds()
        .into_iter()
        .map(|crd| {
            let versions: Vec<String> = crd
                .spec
                .versions
                .iter()
                .map(|version| {
                    assert!(version.served, "{}", version.name);
                    let stored = if version.storage { "*" } else { "" };
                    let deprecated = if version.deprecated == Some(true) { "-" } else { "" };
                    format!("{}{stored}{deprecated}", version.name)
                })
                .collect();
            (crd.metadata.name.expect("a name"), versions.join(" "))
        })
        .collect();
    let expected = [
        ("authorizationpolicies.policy.linkerd.io", "v1alpha1* v1beta3"),
        ("egressnetworks.policy.linkerd.io", "v1alpha1*"),
        ("externalworkloads.workload.linkerd.io", "v1alpha1 v1beta1*"),
        ("httplocalratelimitpolicies.policy.linkerd.io", "v1alpha1*"),
        (
            "httproutes.policy.linkerd.io",
            "v1alpha1 v1beta1 v1beta2 v1beta3*",
        ),
        ("meshes.heddle.dev", "v1alpha1*"),
        ("meshtlsauthentications.policy.linkerd.io", "v1alpha1* v1beta3"),
        ("networkauthentications.policy.linkerd.io", "v1alpha1*"),
        ("serverauthorizations.policy.linkerd.io", "v1alpha1- v1beta1*"),
        ("servers.policy.linkerd.io", "v1alpha1- v1beta1- v1beta2 v1beta3*"),
        ("serviceprofiles.linkerd.io", "v1alpha1 v1alpha2*"),
    ];
    assert_eq!(
        found,
        expected
            .map(|(name, versions)| (name.to_owned(), versions.to_owned()))
            .into()
    );
}

/// What the API server demands of structural schemas, as far as it can be seen without one.
#[test]
fn schemas_are_structural() {
    for crd in heddle_k8s::crds() {
        let name = crd.metadata.name.clone().expect("a name");
        for version in &crd.spec.versions {
            let schema = serde_json::to_value(&version.schema).expect("a schema serialises");
            structural(&schema["openAPIV3Schema"], &format!("{name} {}", version.name));
        }
    }
}

fn structural(schema: &Value, path: &str) {
    let has = |key: &str| schema.get(key).is_some();
    let open = has("x-kubernetes-int-or-string") || has("x-kubernetes-preserve-unknown-fields");
    assert!(has("type") || open, "{path}: no type");
    for never in [
        "$ref",
        "nullable",
        "title",
        "definitions",
        "oneOf",
        "patternProperties",
        "const",
    ] {
        assert!(!has(never), "{path}: {never}");
    }
    assert!(
        !(has("properties") && has("additionalProperties")),
        "{path}: properties and additionalProperties"
    );
    assert_ne!(
        schema.get("required"),
        Some(&json!([])),
        "{path}: nothing is required"
    );
    assert_ne!(
        schema.get("default"),
        Some(&Value::Null),
        "{path}: null is no default"
    );
    if schema["type"] == "array" {
        assert!(has("items"), "{path}: no items");
        assert!(
            has("maxItems") || path.contains("conditions"),
            "{path}: an unbounded list"
        );
    }
    // Within anyOf only checks of values may stand.
    for part in schema
        .get("anyOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        for never in ["type", "description", "default", "properties"] {
            assert!(part.get(never).is_none(), "{path}: {never} in anyOf");
        }
    }
    if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
        for (name, property) in properties {
            let path = format!("{path}.{name}");
            let standard =
                path.split('.').count() <= 5 && ["apiVersion", "kind", "metadata"].contains(&name.as_str());
            if !standard {
                assert!(
                    property.get("description").is_some() || open,
                    "{path}: no description"
                );
            }
            structural(property, &path);
        }
    }
    for part in ["items", "additionalProperties"] {
        if let Some(part_schema) = schema.get(part) {
            structural(part_schema, &format!("{path}.{part}"));
        }
    }
}

/// `kubectl apply` keeps an object's last text in an annotation, which the API server bounds at 256 KiB in all.
#[test]
fn definitions_fit_into_client_side_apply() {
    for crd in heddle_k8s::crds() {
        let length = serde_json::to_string(&crd)
            .expect("a definition serialises")
            .len();
        assert!(length < 200 * 1024, "{:?}: {length} bytes", crd.metadata.name);
    }
}

#[test]
fn an_object_without_spec_is_admitted_for_rate_limits_only() {
    for crd in heddle_k8s::crds() {
        for version in &crd.spec.versions {
            let schema = serde_json::to_value(&version.schema).expect("a schema serialises");
            let required = schema["openAPIV3Schema"]["required"]
                .as_array()
                .is_some_and(|required| required.contains(&"spec".into()));
            assert_eq!(
                required,
                crd.spec.names.kind != "HTTPLocalRateLimitPolicy",
                "{:?}",
                crd.metadata.name
            );
        }
    }
}
