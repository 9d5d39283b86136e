//! `heddle install [--crds]`: the default profile's manifests on stdout, so that
//! `heddle install --crds | kubectl apply -f -` and then `heddle install | kubectl apply -f -` work as Linkerd's.
//!
//! Unlike a rendered commit, the second of them holds a new issuer when the mesh makes its own: Linkerd's `install` does
//! the same. With `--identity-external-issuer` the issuer is the Secret that cert-manager keeps.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{
    cli::{Failure, Global, Outcome},
    commands::values::parse_set,
    object::Object,
    profile, render,
    source::memory::MemoryTree,
    yaml,
};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only the custom resource definitions, which come first.
    #[arg(long)]
    crds: bool,
    /// The reconciler and nothing else: what a cluster needs to take its mesh from Git by a Mesh object.
    #[arg(long, conflicts_with_all = ["ha", "identity_external_issuer", "identity_trust_anchors_file"])]
    reconciler: bool,
    /// Highly available: several replicas, spread over nodes.
    #[arg(long)]
    ha: bool,
    /// A CNI plugin redirects pods' traffic, rather than an init container; `heddle install-cni` prints it.
    #[arg(long, conflicts_with = "reconciler")]
    linkerd_cni_enabled: bool,
    /// The issuer is kept by somebody else, such as cert-manager, in the Secret linkerd-identity-issuer.
    #[arg(long)]
    identity_external_issuer: bool,
    /// PEM of the trust anchors, for an external issuer.
    #[arg(long, value_name = "FILE")]
    identity_trust_anchors_file: Option<PathBuf>,
    /// The trust domain of identities.
    #[arg(long, value_name = "DOMAIN")]
    identity_trust_domain: Option<String>,
    /// The cluster's DNS domain.
    #[arg(long, value_name = "DOMAIN")]
    cluster_domain: Option<String>,
    /// A value of the profile, such as proxy.logLevel=debug; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

pub fn run(global: &Global, args: Args) -> Outcome {
    let mesh = profile(global, &args)?;
    let rendered = render::render(&mesh)?;
    let is_crd = |object: &Object| object.id.is("apiextensions.k8s.io", "CustomResourceDefinition");
    // An object whose CRD may be absent would fail kubectl apply as a whole.
    let mut text = rendered.to_yaml(|object| is_crd(object) == args.crds && object.requires_crd.is_none());
    if !args.crds && !args.reconciler {
        for object in crate::identity::install_objects(
            &rendered.values,
            rendered.control_namespace(),
            &rendered.profile,
        )
        .map_err(|error| Failure {
            error: error.into(),
            hint: None,
            code: 2,
        })? {
            text.push_str("---\n");
            text.push_str(&yaml::print(&object));
        }
    }
    crate::cli::print(&text)?;
    Ok(0)
}

fn profile(global: &Global, args: &Args) -> Result<profile::Mesh, Failure> {
    let extends = match (args.reconciler, args.ha) {
        (true, _) => "[reconciler]",
        (false, true) => "[core, ha]",
        (false, false) => "[core]",
    };
    let text = format!(
        "apiVersion: heddle.dev/v1alpha1\nkind: MeshProfile\nmetadata: {{name: default}}\nspec: {{extends: {extends}}}\n"
    );
    let mut overrides = Vec::new();
    if global.linkerd_namespace != heddle_mesh::CONTROL_NAMESPACE {
        overrides.push(json!({"linkerdNamespace": global.linkerd_namespace}));
    }
    let mut identity = serde_json::Map::new();
    if args.identity_external_issuer {
        identity.insert(
            "issuer".into(),
            json!({"existingSecret": {"name": "linkerd-identity-issuer"}}),
        );
    }
    if let Some(file) = &args.identity_trust_anchors_file {
        let pem = std::fs::read_to_string(file)
            .map_err(|error| Failure::message(format!("{} cannot be read: {error}", file.display())))?;
        identity.insert("trustAnchorsPEM".into(), Value::String(pem));
    }
    if let Some(domain) = &args.identity_trust_domain {
        identity.insert("trustDomain".into(), domain.as_str().into());
    }
    if !identity.is_empty() {
        overrides.push(json!({ "identity": identity }));
    }
    if let Some(domain) = &args.cluster_domain {
        overrides.push(json!({"clusterDomain": domain}));
    }
    if args.linkerd_cni_enabled {
        overrides.push(json!({"cni": {"enabled": true}}));
    }
    for text in &args.set {
        overrides.push(parse_set(text)?);
    }
    let tree = MemoryTree::new([("mesh.yaml", text.as_str())]);
    Ok(profile::load(&tree, "", &global.bundled()?, &overrides)?)
}
