//! A cluster that has none of the mesh's kinds yet: the destination service serves what there is, and takes up what
//! comes later.

use std::net::IpAddr;

use anyhow::{Context as _, bail};
use heddle_tests_harness::wait;
use linkerd2_proxy_api::destination::{DestinationProfile, GetDestination, Update, protocol_hint, update};
use serde_json::json;
use tonic::Code;

use super::world::{LIMIT, Program, cluster, next, policy, policy_crds, web_service};

fn kind(update: Update) -> anyhow::Result<update::Update> {
    update.update.context("an update without a kind")
}

/// The identities of the endpoints that an update adds.
fn added(update: Update) -> anyhow::Result<Vec<(String, Option<String>)>> {
    let update::Update::Add(set) = kind(update)? else {
        bail!("not an addition")
    };
    let mut all = Vec::new();
    for one in set.addrs {
        let addr = one.addr.context("no address")?;
        let ip = IpAddr::try_from(addr.ip.context("no IP")?)?;
        let identity = one
            .tls_identity
            .and_then(|tls| tls.server_name)
            .map(|name| name.name);
        all.push((format!("{ip}:{}", addr.port), identity));
    }
    Ok(all)
}

const IDENTITY: &str = "default.shop.serviceaccount.identity.linkerd.cluster.local";

#[tokio::test]
async fn endpoints_and_profiles_follow_the_cluster() -> anyhow::Result<()> {
    // Without any CRD: the kinds that are missing do not keep the service from starting.
    let (cluster, writer) = cluster("control-dst").await?;
    let program = Program::start("destination", &cluster).await?;
    let mut client = program.destination();
    let get = |path: &str| GetDestination {
        scheme: "k8s".into(),
        path: path.into(),
        context_token: r#"{"ns":"shop","nodeName":"n"}"#.into(),
    };

    let missing = client
        .get(get("web.shop.svc.cluster.local:80"))
        .await
        .expect_err("no such service yet");
    assert_eq!(missing.code(), Code::NotFound);
    for bad in ["10.0.0.1:80", "example.com:80", "web.shop"] {
        assert_eq!(
            client.get(get(bad)).await.expect_err(bad).code(),
            Code::InvalidArgument,
            "{bad}"
        );
    }

    let cluster_ip = web_service(&writer).await?;
    let mut endpoints = wait::until_ok("the service", LIMIT, || {
        let mut client = client.clone();
        async move { client.get(get("web.shop.svc.cluster.local:80")).await }
    })
    .await?
    .into_inner();
    let first = kind(next(&mut endpoints).await?)?;
    assert!(
        matches!(&first, update::Update::NoEndpoints(none) if none.exists),
        "told at once: {first:?}"
    );

    writer.pod("web-0", "10.1.0.1").await?;
    writer.slice(&[("web-0", "10.1.0.1")]).await?;
    assert_eq!(
        added(next(&mut endpoints).await?)?,
        [("10.1.0.1:8080".to_owned(), Some(IDENTITY.to_owned()))]
    );
    writer.pod("web-1", "10.1.0.2").await?;
    writer
        .slice(&[("web-0", "10.1.0.1"), ("web-1", "10.1.0.2")])
        .await?;
    assert_eq!(
        added(next(&mut endpoints).await?)?,
        [("10.1.0.2:8080".to_owned(), Some(IDENTITY.to_owned()))],
        "only what is new"
    );
    writer.slice(&[("web-1", "10.1.0.2")]).await?;
    let gone = kind(next(&mut endpoints).await?)?;
    assert!(
        matches!(&gone, update::Update::Remove(set) if set.addrs.len() == 1),
        "{gone:?}"
    );

    // A kind that comes later is found, and reaches streams that are open.
    policy_crds(&writer).await?;
    let opaque = json!({"podSelector": {}, "port": "http", "proxyProtocol": "opaque"});
    writer.apply(policy("Server", "v1beta3", "web", opaque)).await?;
    let update::Update::Add(set) = kind(next(&mut endpoints).await?)? else {
        bail!("not an addition")
    };
    let hint = set.addrs[0].protocol_hint.and_then(|hint| hint.protocol);
    assert!(
        matches!(hint, Some(protocol_hint::Protocol::Opaque(_))),
        "{hint:?}"
    );

    let mut profile = client
        .get_profile(get(&format!("{cluster_ip}:80")))
        .await?
        .into_inner();
    let DestinationProfile {
        fully_qualified_name,
        opaque_protocol,
        ..
    } = next(&mut profile).await?;
    assert_eq!(
        (fully_qualified_name.as_str(), opaque_protocol),
        ("web.shop.svc.cluster.local", false)
    );
    writer
        .apply(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"namespace": "shop", "name": "web", "annotations": {"config.linkerd.io/opaque-ports": "80"}},
            "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        }))
        .await?;
    assert!(
        next(&mut profile).await?.opaque_protocol,
        "the annotation reaches an open stream"
    );
    let mut pod = client.get_profile(get("10.1.0.2:8080")).await?.into_inner();
    let endpoint = next(&mut pod)
        .await?
        .endpoint
        .context("a pod's address is an endpoint")?;
    assert_eq!(
        endpoint
            .tls_identity
            .and_then(|tls| tls.server_name)
            .map(|name| name.name)
            .as_deref(),
        Some(IDENTITY)
    );

    writer.delete("v1", "Service", "shop", "web").await?;
    let gone = kind(next(&mut endpoints).await?)?;
    assert!(
        matches!(&gone, update::Update::NoEndpoints(none) if !none.exists),
        "{gone:?}"
    );

    let metrics = program.admin("/metrics").await?;
    for line in [
        "grpc_streams_open{method=\"Get\"} 1",
        "index_pods 2",
        "watch_restarts_total{group=\"\",kind=\"Pod\"}",
    ] {
        assert!(metrics.contains(line), "{line} is missing in:\n{metrics}");
    }

    let status = program.terminate().await?;
    assert!(status.success(), "{status}");
    let ended = tokio::time::timeout(LIMIT, endpoints.message())
        .await
        .context("the stream goes on")?;
    assert!(matches!(ended, Ok(None)), "the stream ends in order: {ended:?}");
    Ok(())
}
