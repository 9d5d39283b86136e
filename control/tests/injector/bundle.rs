//! How the serving certificate and the caBundle are kept.

use heddle_tests_harness::wait;
use k8s_openapi::{
    ByteString,
    api::core::v1::{Pod, Secret},
};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::json;

use super::{
    cluster::{CONFIGURATION, HOST, LIMIT, SECRET, World, container_names, free_port, mk_pod},
    https,
};

async fn injects(world: &World) -> anyhow::Result<()> {
    wait::until_ok("a pod to be injected", LIMIT, || async {
        let pod: Pod = world.admit("payments", mk_pod("web", json!({}))).await?;
        anyhow::ensure!(container_names(&pod).contains(&"linkerd-proxy"), "not injected");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn replicas_share_one_certificate_and_what_is_broken_is_mended() -> anyhow::Result<()> {
    let world = World::new("injector-bundle").await?;
    // Two that start at once: one of them makes the Secret, both serve it.
    let (first, second) = (world.spawn(world.port)?, world.spawn(free_port()?)?);
    first.ready().await?;
    second.ready().await?;
    let bundle = world.secret_bundle().await?;
    for injector in [&first, &second] {
        https::connect(injector.addr, HOST, &bundle).await?;
    }

    world.apply_configuration().await?;
    world.bundle_in_place().await?;
    injects(&world).await?;
    let managers = world
        .configurations()
        .get(CONFIGURATION)
        .await?
        .metadata
        .managed_fields
        .unwrap_or_default();
    let mine = managers
        .iter()
        .find(|entry| entry.manager.as_deref() == Some("heddle-injector"))
        .expect("it applied");
    let fields = serde_json::to_string(&mine.fields_v1)?;
    assert!(
        fields.contains("f:caBundle") && !fields.contains("f:service") && !fields.contains("f:rules"),
        "{fields}"
    );

    // In the steady state nothing is written, not even when the reconciler applies its part again.
    let version = |world: &World| {
        let (configurations, secrets) = (world.configurations(), world.api::<Secret>("linkerd"));
        async move {
            // Not the resource version: the API server sorts managedFields by time, so the reconciler's second apply may
            // reorder them, and store that, though nobody has changed anything.
            let metadata = configurations.get(CONFIGURATION).await?.metadata;
            let fields = metadata.managed_fields.into_iter().flatten();
            let mine = fields.filter(|entry| entry.manager.as_deref() == Some("heddle-injector"));
            let written: Vec<_> = mine.map(|entry| entry.time).collect();
            Ok::<_, kube::Error>((
                metadata.generation,
                written,
                secrets.get(SECRET).await?.resource_version(),
            ))
        }
    };
    let before = version(&world).await?;
    world.apply_configuration().await?;
    injects(&world).await?;
    assert_eq!(version(&world).await?, before);

    // An edit by hand is undone, though its author owns the field now.
    let edit = json!({"webhooks": [{"name": "linkerd-proxy-injector.linkerd.io", "clientConfig": {"caBundle": "AAAA"}}]});
    let params = PatchParams {
        field_manager: Some("kubectl-edit".to_owned()),
        ..PatchParams::default()
    };
    let edited = world
        .configurations()
        .patch(CONFIGURATION, &params, &Patch::Strategic(edit))
        .await;
    // The API server itself may refuse a bundle that is no PEM; taking it away is always possible.
    if edited.is_err() {
        let edit = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
        let edit: json_patch::Patch = serde_json::from_value(edit)?;
        world
            .configurations()
            .patch(CONFIGURATION, &PatchParams::default(), &Patch::<()>::Json(edit))
            .await?;
    }
    world.bundle_in_place().await?;
    injects(&world).await?;

    // A configuration that is deleted is not brought back; a new one gets the bundle.
    world
        .configurations()
        .delete(CONFIGURATION, &DeleteParams::default())
        .await?;
    world.apply_configuration().await?;
    world.bundle_in_place().await?;

    // A Secret that is deleted, or holds nonsense, is made anew.
    world
        .api::<Secret>("linkerd")
        .delete(SECRET, &DeleteParams::default())
        .await?;
    wait::until_ok("another certificate", LIMIT, || async {
        anyhow::ensure!(world.secret_bundle().await? != bundle, "still the old one");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    world.bundle_in_place().await?;
    injects(&world).await?;
    let mut secret = world.api::<Secret>("linkerd").get(SECRET).await?;
    secret
        .data
        .get_or_insert_default()
        .insert("tls.crt".to_owned(), ByteString(b"nonsense".to_vec()));
    world
        .api::<Secret>("linkerd")
        .replace(SECRET, &Default::default(), &secret)
        .await?;
    wait::until_ok("the nonsense to be replaced", LIMIT, || async {
        let secret = world.api::<Secret>("linkerd").get(SECRET).await?;
        let text = secret
            .data
            .and_then(|mut data| data.remove("tls.crt"))
            .map(|part| part.0)
            .unwrap_or_default();
        anyhow::ensure!(text.starts_with(b"-----BEGIN CERTIFICATE-----"), "still nonsense");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    world.bundle_in_place().await?;
    injects(&world).await?;
    Ok(())
}

#[tokio::test]
async fn a_stopped_injector_ends_well() -> anyhow::Result<()> {
    let world = World::new("injector-stop").await?;
    let mut injector = world.start().await?;
    world.apply_configuration().await?;
    world.bundle_in_place().await?;
    injects(&world).await?;
    let pid = i32::try_from(injector.child.id())?;
    std::process::Command::new("kill")
        .args(["-TERM", &pid.to_string()])
        .status()?;
    // For a moment it goes on serving those who have not heard yet.
    injects(&world).await?;
    let status = wait::until_ok("the process to end", LIMIT, || {
        let ended = injector.child.try_wait();
        async move { ended?.ok_or_else(|| anyhow::anyhow!("still running")) }
    })
    .await?;
    assert!(status.success(), "{status}");
    // The webhook's failurePolicy is Fail, and nobody answers.
    world
        .admit("payments", mk_pod("web", json!({})))
        .await
        .expect_err("refused");
    Ok(())
}
