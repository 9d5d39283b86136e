//! What a real API server says to good and bad objects of our kinds.
//!
//! Schemas and rules are only as good as the server that evaluates them, so every rule has an object here that breaks it.

mod cases;

use anyhow::{Context as _, Result, ensure};
use cases::{admitted, refused};
use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    crds,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{DynamicObject, ListParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};

fn object(kind: &str, api_version: &str, name: &str, spec: &Value) -> Result<(Value, ApiResource)> {
    let (group, version) = api_version.split_once('/').context("group/version")?;
    let plural = heddle_k8s::crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == kind && crd.spec.group == group)
        .with_context(|| format!("no kind {group}/{kind}"))?
        .spec
        .names
        .plural;
    let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}});
    if !spec.is_null() {
        object["spec"] = spec.clone();
    }
    Ok((
        object,
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural),
    ))
}

async fn create(
    client: &kube::Client,
    kind: &str,
    api_version: &str,
    name: &str,
    spec: &Value,
) -> Result<kube::Result<DynamicObject>> {
    let (object, resource) = object(kind, api_version, name, spec)?;
    let api: Api<DynamicObject> = match kind {
        "Mesh" => Api::all_with(client.clone(), &resource),
        _ => Api::namespaced_with(client.clone(), "default", &resource),
    };
    let object = serde_json::from_value(object)?;
    Ok(api.create(&PostParams::default(), &object).await)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_takes_the_definitions_and_good_objects_and_refuses_bad_ones() -> Result<()> {
    let cluster =
        ScopedCluster::up(ClusterOptions::new("heddle-test-admission", Mode::ApiServerOnly)).await?;
    let client = cluster.client().await?;
    let definitions = heddle_k8s::crds()
        .iter()
        .map(serde_json::to_value)
        .collect::<Result<Vec<_>, _>>()?;
    crds::apply(&client, &definitions)
        .await
        .context("the definitions are not taken")?;

    let crds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds.list(&ListParams::default()).await? {
        let name = crd.metadata.name.unwrap_or_default();
        let conditions = crd
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        ensure!(
            conditions
                .iter()
                .any(|condition| condition.type_ == "Established" && condition.status == "True"),
            "{name} is not established"
        );
        for wrong in ["NonStructuralSchema", "KubernetesAPIApprovalPolicyConformant"] {
            ensure!(
                !conditions.iter().any(|condition| condition.type_ == wrong),
                "{name}: {conditions:?}"
            );
        }
    }

    for (index, (kind, api_version, spec)) in admitted().iter().enumerate() {
        let name = format!("good-{index}");
        let created = create(&client, kind, api_version, &name, spec).await?;
        let created = created.with_context(|| format!("{api_version} {kind} was refused: {spec}"))?;
        match *kind {
            "HTTPLocalRateLimitPolicy" => {
                ensure!(created.data["spec"].is_object(), "no spec: {:?}", created.data)
            }
            "Mesh" => ensure!(
                created.data["status"] == json!({"observedGeneration": -1}),
                "status: {:?}",
                created.data
            ),
            _ => {}
        }
    }
    read_as_types(&client).await?;

    let mut taken = Vec::new();
    for (index, (kind, api_version, spec, said)) in refused().iter().enumerate() {
        match create(&client, kind, api_version, &format!("bad-{index}"), spec).await? {
            Ok(_) => taken.push(format!("{api_version} {kind} was taken: {spec}")),
            Err(error) if error.to_string().contains(said) => {}
            Err(error) => taken.push(format!(
                "{api_version} {kind} {spec}: the refusal does not say `{said}`: {error}"
            )),
        }
    }
    ensure!(taken.is_empty(), "{}", taken.join("\n"));
    Ok(())
}

/// A type reads every object that its schema admits, whichever version it was written in.
async fn read_as_types(client: &kube::Client) -> Result<()> {
    use heddle_k8s::{
        external_workload::ExternalWorkload, mesh::Mesh, policy, service_profile::ServiceProfile,
    };

    async fn count<K>(client: &kube::Client) -> Result<usize>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let objects = Api::<K>::all(client.clone()).list(&ListParams::default()).await;
        Ok(objects
            .with_context(|| format!("failed to read objects of kind {}", K::kind(&())))?
            .items
            .len())
    }
    let expected = admitted();
    let written = |kind: &str| expected.iter().filter(|(theirs, _, _)| *theirs == kind).count();
    for (kind, read) in [
        ("Server", count::<policy::Server>(client).await?),
        (
            "ServerAuthorization",
            count::<policy::ServerAuthorization>(client).await?,
        ),
        (
            "AuthorizationPolicy",
            count::<policy::AuthorizationPolicy>(client).await?,
        ),
        (
            "MeshTLSAuthentication",
            count::<policy::MeshTLSAuthentication>(client).await?,
        ),
        (
            "NetworkAuthentication",
            count::<policy::NetworkAuthentication>(client).await?,
        ),
        (
            "HTTPLocalRateLimitPolicy",
            count::<policy::HttpLocalRateLimitPolicy>(client).await?,
        ),
        ("EgressNetwork", count::<policy::EgressNetwork>(client).await?),
        ("HTTPRoute", count::<policy::HttpRoute>(client).await?),
        ("ExternalWorkload", count::<ExternalWorkload>(client).await?),
        ("ServiceProfile", count::<ServiceProfile>(client).await?),
        ("Mesh", count::<Mesh>(client).await?),
    ] {
        ensure!(
            read == written(kind),
            "{read} of {} {kind}s were read",
            written(kind)
        );
    }
    Ok(())
}
