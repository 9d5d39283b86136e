//! Must show 6: the manifests of the mesh reference apply unchanged, where their CRDs exist.

use anyhow::{Context as _, Result, ensure};
use heddle_tests_cluster::heddle::Heddle;
use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    crds,
};

use crate::stage::{kubectl, program};

const REFERENCE: [(&str, &str); 6] = [
    (
        "injection",
        include_str!("../../manifests/reference/injection.yaml"),
    ),
    ("policy", include_str!("../../manifests/reference/policy.yaml")),
    (
        "httproute",
        include_str!("../../manifests/reference/httproute.yaml"),
    ),
    (
        "rate-limit",
        include_str!("../../manifests/reference/rate-limit.yaml"),
    ),
    (
        "certificate",
        include_str!("../../manifests/reference/certificate.yaml"),
    ),
    (
        "podmonitor",
        include_str!("../../manifests/reference/podmonitor.yaml"),
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_references_manifests_apply_unchanged() -> Result<()> {
    let cluster =
        ScopedCluster::up(ClusterOptions::new("heddle-test-reference", Mode::ApiServerOnly)).await?;
    let client = cluster.client().await?;
    let kubectl = kubectl(&cluster)?;
    let heddle = Heddle::new(program("heddle")?, kubectl.kubeconfig());
    // The command of the reference, with `heddle` for `linkerd`.
    kubectl
        .apply(&heddle.stdout(&["install", "--crds"])?)
        .context("heddle install --crds | kubectl apply -f -")?;
    crds::apply(&client, &crds::gateway_api()?).await?;
    crds::apply(&client, &crds::cert_manager()?).await?;
    crds::apply(&client, &crds::prometheus_operator()?).await?;
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ])?;
    for namespace in ["linkerd", "monitoring"] {
        kubectl.run(&["create", "namespace", namespace])?;
    }
    for (name, manifest) in REFERENCE {
        kubectl
            .apply(manifest)
            .with_context(|| format!("the reference's {name}"))?;
    }
    // Both versions of the same object: what was written as v1beta3 reads as v1alpha1.
    for kind in ["authorizationpolicies", "meshtlsauthentications"] {
        for version in ["v1alpha1", "v1beta3"] {
            let list = kubectl.get(&[&format!("{kind}.{version}.policy.linkerd.io"), "-n", "payments"])?;
            ensure!(
                list["items"].as_array().is_some_and(|items| items.len() == 1),
                "{kind} as {version}: {list}"
            );
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_in_a_policy_is_refused_by_the_api_server() -> Result<()> {
    let cluster = ScopedCluster::up(ClusterOptions::new("heddle-test-refusal", Mode::ApiServerOnly)).await?;
    let kubectl = kubectl(&cluster)?;
    let heddle = Heddle::new(program("heddle")?, kubectl.kubeconfig());
    kubectl.apply(&heddle.stdout(&["install", "--crds"])?)?;
    kubectl.run(&[
        "wait",
        "--for=condition=Established",
        "crd",
        "--all",
        "--timeout=60s",
    ])?;
    let server = |spec: &str| {
        format!(
            "apiVersion: policy.linkerd.io/v1beta3\nkind: Server\nmetadata: {{name: s, namespace: default}}\nspec: {spec}\n"
        )
    };
    for (wrong, said) in [
        (server("{port: 8080}"), "podSelector"),
        (server("{podSelector: {}, externalWorkloadSelector: {}, port: 8080}"), "externalWorkloadSelector"),
        (server("{podSelector: {}, port: 99999}"), "port"),
        (server("{podSelector: {}, port: 80, proxyProtocol: SPDY}"), "proxyProtocol"),
        (server("{podSelector: {}, port: 80, accessPolicy: everyone}"), "accessPolicy"),
        (
            "apiVersion: policy.linkerd.io/v1alpha1\nkind: MeshTLSAuthentication\nmetadata: {name: m, namespace: default}\nspec: {}\n".to_owned(),
            "identities",
        ),
    ] {
        let error = kubectl.apply(&wrong).err().with_context(|| format!("this was taken:\n{wrong}"))?.to_string();
        ensure!(error.contains(said), "the refusal does not speak of {said}: {error}\nfor\n{wrong}");
    }
    Ok(())
}
