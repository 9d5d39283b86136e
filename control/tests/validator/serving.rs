//! How the webhook is reached: by both its names, from any replica, with a certificate that is mended and trusted, and
//! what it says to those who ask wrongly.

use heddle_tests_harness::wait;
use http::StatusCode;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, ResourceExt as _, api::DeleteParams};
use serde_json::json;

use super::world::{CONFIGURATIONS, LIMIT, SECRET, World, free_port};
use crate::https;

const HOSTS: [&str; 2] = [
    "linkerd-policy-validator.linkerd.svc",
    "linkerd-sp-validator.linkerd.svc",
];

async fn is_asked(world: &World) -> anyhow::Result<()> {
    wait::until_ok("the API server to ask the webhook", LIMIT, || async {
        let profile = json!({
            "apiVersion": "linkerd.io/v1alpha2", "kind": "ServiceProfile", "metadata": {"name": "a.shop.svc.cluster.local"},
            "spec": {"routes": [{"name": "a", "condition": {"method": "GET"}, "timeout": "soon"}]},
        });
        let path = "/apis/linkerd.io/v1alpha2/namespaces/shop/serviceprofiles";
        let said = world.create(path, &profile, true).await?;
        anyhow::ensure!(said.code == 422 && said.message.contains("denied the request"), "{said:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn replicas_share_one_certificate_for_both_names_and_mend_it() -> anyhow::Result<()> {
    let world = World::new("validator-serving").await?;
    let (first, second) = tokio::try_join!(world.start(world.port), world.start(free_port()?))?;
    let bundle = world.secret_bundle().await?;
    for addr in [first.admission, second.admission] {
        for host in HOSTS {
            https::connect(addr, host, &bundle).await?;
        }
    }
    world.apply_configurations().await?;
    world.bundle_in_place().await?;
    is_asked(&world).await?;

    // The field is the controllers' own, and nothing else is.
    for name in CONFIGURATIONS {
        let managed = world.configurations().get(name).await?.managed_fields().to_vec();
        let mine = managed
            .iter()
            .filter(|entry| entry.manager.as_deref() == Some("heddle-policy-validator"));
        let fields: Vec<String> = mine
            .filter_map(|entry| serde_json::to_string(&entry.fields_v1).ok())
            .collect();
        anyhow::ensure!(
            matches!(&fields[..], [one] if one.contains("f:caBundle") && !one.contains("f:service")),
            "{name}: {fields:?}"
        );
    }
    // Nobody fights: what is right stays as it is, though two look after it and the reconciler applies again.
    let generation = world
        .configurations()
        .get(CONFIGURATIONS[0])
        .await?
        .metadata
        .generation;
    world.apply_configurations().await?;
    is_asked(&world).await?;
    let after = world
        .configurations()
        .get(CONFIGURATIONS[0])
        .await?
        .metadata
        .generation;
    anyhow::ensure!(after == generation, "written again");

    // A new certificate, as after a rotation: both configurations follow, and requests go on being answered.
    let secrets: Api<Secret> = Api::namespaced(world.client.clone(), "linkerd");
    secrets.delete(SECRET, &DeleteParams::default()).await?;
    wait::until_ok("another certificate", LIMIT, || async {
        anyhow::ensure!(world.secret_bundle().await? != bundle, "still the old one");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    world.bundle_in_place().await?;
    is_asked(&world).await?;
    Ok(())
}

#[tokio::test]
async fn wrong_questions_get_clear_answers() -> anyhow::Result<()> {
    let world = World::new("validator-questions").await?;
    let controller = world.start(world.port).await?;
    let bundle = world.secret_bundle().await?;
    let ask = |kind: &'static str, body: Vec<u8>| {
        let (addr, bundle) = (controller.admission, bundle.clone());
        async move { https::post(addr, HOSTS[0], &bundle, kind, body).await }
    };
    let review = |version: &str, kind: &str, object: serde_json::Value| {
        let kind = json!({"group": "policy.linkerd.io", "version": "v1beta3", "kind": kind});
        let request = json!({"uid": "u", "operation": "CREATE", "kind": kind, "object": object});
        json!({"apiVersion": version, "kind": "AdmissionReview", "request": request})
            .to_string()
            .into_bytes()
    };
    let json_type = "application/json";
    for (kind, body, status, words) in [
        (
            "text/plain",
            Vec::new(),
            StatusCode::BAD_REQUEST,
            "expected application/json",
        ),
        (
            json_type,
            b"{".to_vec(),
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            json_type,
            vec![b'['; 100_000],
            StatusCode::BAD_REQUEST,
            "not an AdmissionReview",
        ),
        (
            json_type,
            vec![b' '; 6 << 20],
            StatusCode::PAYLOAD_TOO_LARGE,
            "larger than",
        ),
        (
            json_type,
            review("admission.k8s.io/v1beta1", "Server", json!({})),
            StatusCode::BAD_REQUEST,
            "admission.k8s.io/v1beta1",
        ),
    ] {
        let reply = ask(kind, body).await?;
        let text = String::from_utf8_lossy(&reply.body);
        anyhow::ensure!(
            reply.status == status && text.contains(words),
            "{} {text}",
            reply.status
        );
    }
    // Objects that a schema would have refused are refused in words, not with an error.
    for (kind, object, words) in [
        ("Server", json!({"spec": []}), "is not a Server"),
        ("Server", json!(null), "is not a Server"),
        ("HTTPRoute", json!({}), "spec must be given"),
        ("HTTPRoute", json!({"spec": {"rules": 7}}), "spec: invalid type"),
        ("Link", json!({}), "policy.linkerd.io/Link is not supported"),
    ] {
        let reply = ask(json_type, review("admission.k8s.io/v1", kind, object)).await?;
        let answer: serde_json::Value = serde_json::from_slice(&reply.body)?;
        let response = &answer["response"];
        let message = response["status"]["message"].as_str().unwrap_or_default();
        anyhow::ensure!(
            response["allowed"] == json!(false) && message.contains(words),
            "{answer}"
        );
    }
    Ok(())
}
