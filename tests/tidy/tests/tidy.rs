//! The shape of the workspace, checked: the arrows of ARCHITECTURE.md and rules that the compiler cannot see.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

/// Which of our packages each package may name (beside itself), outside its tests.
const ARROWS: [(&str, &[&str]); 18] = [
    ("heddle-mesh", &[]),
    ("heddle-k8s", &["heddle-mesh"]),
    ("heddle-inject", &["heddle-k8s", "heddle-mesh"]),
    ("heddle-tls", &["heddle-mesh", "heddle-daemon"]),
    ("heddle-daemon", &["heddle-mesh"]),
    (
        "heddle-reconciler",
        &[
            "heddle-daemon",
            "heddle-inject",
            "heddle-k8s",
            "heddle-mesh",
            "heddle-tls",
        ],
    ),
    ("heddle-identity", &["heddle-daemon", "heddle-mesh", "heddle-tls"]),
    ("heddle-wire", &[]),
    ("heddle-proxy-policy", &["heddle-mesh", "heddle-wire"]),
    ("heddle-proxy-init", &["heddle-mesh"]),
    (
        "heddle-proxy-cni",
        &["heddle-daemon", "heddle-mesh", "heddle-proxy-init"],
    ),
    ("heddle-proxy-cni-repair", &["heddle-daemon", "heddle-mesh"]),
    (
        "heddle-proxy",
        &[
            "heddle-daemon",
            "heddle-mesh",
            "heddle-proxy-policy",
            "heddle-tls",
            "heddle-wire",
        ],
    ),
    ("heddle-control-core", &["heddle-mesh"]),
    (
        "heddle-control-index",
        &["heddle-control-core", "heddle-k8s", "heddle-mesh"],
    ),
    (
        "heddle-control",
        &[
            "heddle-control-core",
            "heddle-control-index",
            "heddle-daemon",
            "heddle-inject",
            "heddle-k8s",
            "heddle-mesh",
            "heddle-tls",
            "heddle-wire",
        ],
    ),
    ("heddle-tests-harness", &["heddle-mesh"]),
    (
        "heddle-xtask",
        &["heddle-mesh", "heddle-tests-cluster", "heddle-tests-harness"],
    ),
];

/// What a package must never reach through its dependencies, and why.
const NEVER: [(&str, &str, &str); 11] = [
    ("heddle-mesh", "tokio", "the vocabulary does no I/O"),
    ("heddle-wire", "kube-core", "the wire knows no Kubernetes"),
    ("heddle-inject", "tonic", "injection is a pure decision"),
    (
        "heddle-proxy",
        "kube-client",
        "the proxy knows the proxy API and no Kubernetes",
    ),
    (
        "heddle-proxy-cni",
        "kube-client",
        "the CNI plugin starts with every pod and asks one question",
    ),
    (
        "heddle-proxy-policy",
        "tokio-rustls",
        "the proxy's policy is a pure decision",
    ),
    (
        "heddle-control-core",
        "kube-core",
        "core nouns know no Kubernetes",
    ),
    ("heddle-control-core", "tonic", "core nouns know no gRPC"),
    ("heddle-control-index", "tonic", "indexes know no gRPC"),
    (
        "heddle-reconciler",
        "heddle-wire",
        "the reconciler meets the mesh's programs as images, and asks them only what any proxy may ask",
    ),
    (
        "heddle-daemon",
        "kube-client",
        "what every process does knows no Kubernetes",
    ),
];

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        .exec()
        .expect("cargo metadata works")
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the workspace's root exists")
}

fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let output = std::process::Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git lists the project's files");
    assert!(
        output.status.success(),
        "git ls-files failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout)
        .expect("paths are UTF-8")
        .split_terminator('\0')
        .map(|path| root().join(path))
        .filter(|path| {
            path.extension()
                .is_some_and(|ext| extensions.iter().any(|e| ext == *e))
                && path.exists()
        })
        .collect()
}

#[test]
fn packages_name_only_what_the_architecture_allows() {
    let metadata = metadata();
    let ours: BTreeMap<_, _> = metadata
        .workspace_packages()
        .into_iter()
        .map(|p| (p.name.to_string(), p))
        .collect();
    let mut wrong = Vec::new();
    for (from, allowed) in ARROWS {
        let package = ours
            .get(from)
            .unwrap_or_else(|| panic!("ARROWS names {from}, which is no package of ours"));
        for dependency in &package.dependencies {
            let to = dependency.name.as_str();
            if dependency.kind == DependencyKind::Normal && ours.contains_key(to) && !allowed.contains(&to) {
                wrong.push(format!("{from} -> {to}"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "arrows that ARCHITECTURE.md does not draw: {wrong:#?}"
    );

    let checked: BTreeSet<_> = ARROWS.iter().map(|(from, _)| *from).collect();
    let test_packages = ["heddle-tests-cluster", "heddle-tests-tidy", "heddle-tests-bench"];
    let missing: Vec<_> = ours
        .keys()
        .filter(|name| !checked.contains(name.as_str()) && !test_packages.contains(&name.as_str()))
        .collect();
    assert!(
        missing.is_empty(),
        "packages without a line in ARROWS: {missing:?}"
    );
}

#[test]
fn packages_never_reach_what_they_must_not_know() {
    let metadata = metadata();
    let resolve = metadata.resolve.as_ref().expect("metadata has a resolution");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let names: BTreeMap<_, _> = metadata
        .packages
        .iter()
        .map(|p| (&p.id, p.name.to_string()))
        .collect();
    for (from, never, why) in NEVER {
        let start = metadata
            .packages
            .iter()
            .find(|p| p.name.as_str() == from)
            .expect("NEVER names packages of ours");
        let (mut seen, mut queue) = (BTreeSet::new(), vec![&start.id]);
        while let Some(id) = queue.pop() {
            if !seen.insert(id) {
                continue;
            }
            let node = nodes.get(id).expect("every dependency is resolved");
            queue.extend(
                node.deps
                    .iter()
                    .filter(|dep| {
                        dep.dep_kinds
                            .iter()
                            .any(|kind| kind.kind == DependencyKind::Normal)
                    })
                    .map(|dep| &dep.pkg),
            );
        }
        let reached = seen
            .iter()
            .any(|id| names.get(id).is_some_and(|name| name == never));
        assert!(!reached, "{from} reaches {never}, but {why}");
    }
}

#[test]
fn every_package_takes_part_in_the_workspace_lints() {
    for package in metadata().workspace_packages() {
        let manifest = std::fs::read_to_string(&package.manifest_path).expect("manifests can be read");
        assert!(
            manifest.contains("[lints]\nworkspace = true") || manifest.contains("[lints.rust]"),
            "{} has no [lints] section",
            package.manifest_path
        );
    }
}

#[test]
fn every_crate_begins_with_what_it_is() {
    for package in metadata().workspace_packages() {
        for target in &package.targets {
            if target.is_custom_build() {
                continue;
            }
            let text = std::fs::read_to_string(&target.src_path).expect("sources can be read");
            assert!(
                text.starts_with("//!"),
                "{} does not begin with a `//!` paragraph",
                target.src_path
            );
        }
    }
}

#[test]
fn only_the_yaml_modules_name_the_yaml_crate() {
    let allowed = ["reconciler/src/yaml.rs", "crates/inject/src", "tests/", "xtask/"];
    let mut wrong = Vec::new();
    for path in files(&["rs"]) {
        let relative = path
            .strip_prefix(root())
            .expect("files are under the root")
            .to_string_lossy()
            .into_owned();
        let test_code = relative.contains("/tests/") || relative.ends_with("/tests.rs");
        if test_code || allowed.iter().any(|prefix| relative.starts_with(prefix)) {
            continue;
        }
        let text = std::fs::read_to_string(&path).expect("sources can be read");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        if code
            .lines()
            .any(|line| line.contains("serde_yaml::") && !line.trim_start().starts_with("//"))
        {
            wrong.push(relative);
        }
    }
    assert!(
        wrong.is_empty(),
        "YAML stays behind one module, so that its crate can be exchanged: {wrong:#?}"
    );
}

#[test]
fn no_test_is_ignored() {
    for path in files(&["rs"]) {
        let text = std::fs::read_to_string(&path).expect("sources can be read");
        let needle = concat!("#[ign", "ore");
        assert!(
            !text.contains(needle),
            "{}: a test that cannot run says so and fails",
            path.display()
        );
    }
}
