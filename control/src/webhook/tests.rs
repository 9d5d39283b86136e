//! Stories about the certificate that need a clock of their own, with a real API server.

use std::time::{Duration, SystemTime};

use heddle_tests_harness::{
    cluster::{ClusterOptions, Mode, ScopedCluster},
    wait,
};
use k8s_openapi::api::{
    admissionregistration::v1::MutatingWebhookConfiguration,
    core::v1::{Namespace, Secret},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::sync::watch;

use super::{ca_bundle, certificate, secret};

const LIMIT: Duration = Duration::from_secs(60);
const SECRET: &str = "certificate";
const HOST: &str = "injector.linkerd.svc";

/// Past two thirds of a certificate's life.
fn later() -> SystemTime {
    SystemTime::now() + certificate::LIFETIME / 4 * 3
}

fn options(name: &str) -> ClusterOptions {
    ClusterOptions::new(format!("{name}-{}", std::process::id()), Mode::ApiServerOnly)
}

fn keeper(client: &Client) -> (secret::Keeper, watch::Receiver<Option<certificate::Serving>>) {
    let api = Api::namespaced(client.clone(), "linkerd");
    let owner = secret::Owner {
        manager: "heddle-injector",
        component: "proxy-injector",
    };
    secret::Keeper::new(api, owner, SECRET, vec![HOST.to_owned()], "cluster.local")
}

#[tokio::test]
async fn a_certificate_is_renewed_and_presented_once_it_is_trusted() -> anyhow::Result<()> {
    let cluster = ScopedCluster::up(options("webhook-renew")).await?;
    let client = cluster.client().await?;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "linkerd"}}))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "linkerd");

    let (first, mut newest) = keeper(&client);
    let first = tokio::spawn(first.run());
    let old = newest
        .wait_for(Option::is_some)
        .await?
        .clone()
        .expect("waited for");
    let made = secrets.get(SECRET).await?;
    first.abort();

    // Nine months later: what there was is served at once, and replaced.
    let (second, mut newest) = keeper(&client);
    tokio::spawn(second.clock(later).run());
    let served = newest
        .wait_for(Option::is_some)
        .await?
        .clone()
        .expect("waited for");
    assert_eq!(served.not_after, old.not_after);
    let renewed = newest
        .wait_for(|serving| serving.as_ref().is_some_and(|s| s.not_after > old.not_after))
        .await?;
    let renewed = renewed.clone().expect("waited for");
    assert_ne!(
        secrets.get(SECRET).await?.resource_version(),
        made.resource_version()
    );
    let authority = certificate::newest_authority(&old.ca_bundle).expect("one");
    assert!(
        certificate::trusts(renewed.ca_bundle.as_bytes(), &authority),
        "the authority before it is still trusted"
    );

    // The bundle goes to the API server before the certificate goes to the listener.
    let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let configuration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "webhook"},
        "webhooks": [
            {"name": "a.heddle.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
             "clientConfig": {"service": {"name": "injector", "namespace": "linkerd"}}},
            {"name": "b.heddle.dev", "admissionReviewVersions": ["v1"], "sideEffects": "None",
             "clientConfig": {"service": {"name": "other", "namespace": "linkerd"}}},
        ],
    });
    configurations
        .patch(
            "webhook",
            &PatchParams::apply("heddle"),
            &Patch::Apply(configuration),
        )
        .await?;
    let (publish, newest) = watch::channel(Some(old.clone()));
    let (presented, mut presenting) = watch::channel(None);
    let (state, mut states) = watch::channel(ca_bundle::State::Unknown);
    let keeper = ca_bundle::Keeper {
        api: configurations.clone(),
        manager: "heddle-injector",
        names: vec!["webhook".to_owned()],
        services: vec!["injector".to_owned()],
        namespace: "linkerd".to_owned(),
        newest,
        presented,
        state,
        catch_up: Duration::from_secs(2),
    };
    tokio::spawn(keeper.run());
    states
        .wait_for(|state| *state == ca_bundle::State::InPlace)
        .await?;
    let first = presenting
        .wait_for(Option::is_some)
        .await?
        .clone()
        .expect("waited for");
    assert_eq!(first.not_after, old.not_after);

    publish.send_replace(Some(renewed.clone()));
    let bundle_of = |index: usize| {
        let configurations = configurations.clone();
        async move {
            let webhooks = configurations.get("webhook").await?.webhooks.unwrap_or_default();
            Ok::<_, kube::Error>(
                webhooks[index]
                    .client_config
                    .ca_bundle
                    .clone()
                    .map(|bundle| bundle.0),
            )
        }
    };
    wait::until_ok("the new bundle", LIMIT, || async {
        anyhow::ensure!(
            bundle_of(0).await?.as_deref() == Some(renewed.ca_bundle.as_bytes()),
            "not yet"
        );
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let still = presenting.borrow().as_ref().map(|serving| serving.not_after);
    assert_eq!(
        still,
        Some(old.not_after),
        "API servers first learn whom to trust"
    );
    let now =
        presenting.wait_for(|serving| serving.as_ref().is_some_and(|s| s.not_after == renewed.not_after));
    tokio::time::timeout(LIMIT, now).await??;
    assert_eq!(
        bundle_of(1).await?,
        None,
        "a webhook that asks somebody else is left alone"
    );
    Ok(())
}

#[tokio::test]
async fn what_others_made_is_served_and_never_overwritten() -> anyhow::Result<()> {
    let cluster = ScopedCluster::up(options("webhook-foreign")).await?;
    let client = cluster.client().await?;
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "linkerd"}}))?;
    Api::all(client.clone())
        .create(&PostParams::default(), &namespace)
        .await?;
    let secrets: Api<Secret> = Api::namespaced(client.clone(), "linkerd");
    let material = certificate::issue("webhook CA", &[HOST.to_owned()], None, SystemTime::now())?;
    let data =
        json!({"ca.crt": material.ca_bundle, "tls.crt": material.certificate, "tls.key": material.key});
    let theirs = json!({"metadata": {"name": SECRET}, "type": "kubernetes.io/tls", "stringData": data});
    let theirs: Secret = secrets
        .create(&PostParams::default(), &serde_json::from_value(theirs)?)
        .await?;

    let (keeper, mut newest) = keeper(&client);
    tokio::spawn(keeper.clock(later).run());
    let served = newest
        .wait_for(Option::is_some)
        .await?
        .clone()
        .expect("waited for");
    assert_eq!(served.ca_bundle, material.ca_bundle);

    // Their rotation is taken over; their mistakes are not ours to mend.
    let next = certificate::issue("webhook CA", &[HOST.to_owned()], None, SystemTime::now())?;
    let data =
        json!({"stringData": {"ca.crt": next.ca_bundle, "tls.crt": next.certificate, "tls.key": next.key}});
    secrets
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(data))
        .await?;
    newest
        .wait_for(|serving| serving.as_ref().is_some_and(|s| s.ca_bundle == next.ca_bundle))
        .await?;
    let nonsense = json!({"stringData": {"tls.crt": "nonsense"}});
    let broken = secrets
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(nonsense))
        .await?;
    let sentinel = json!({"metadata": {"labels": {"touched": "later"}}});
    let touched = secrets
        .patch(SECRET, &PatchParams::default(), &Patch::Merge(sentinel))
        .await?;
    assert_ne!(broken.resource_version(), touched.resource_version());
    assert_eq!(
        secrets.get(SECRET).await?.resource_version(),
        touched.resource_version()
    );
    assert_eq!(
        newest.borrow().as_ref().map(|s| s.ca_bundle.clone()),
        Some(next.ca_bundle),
        "the last good one is served"
    );
    assert_ne!(theirs.resource_version(), touched.resource_version());
    Ok(())
}
