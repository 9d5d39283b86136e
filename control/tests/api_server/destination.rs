//! What clients are told of a service's endpoints, and of the profiles of names and addresses.

use serde_json::json;

use super::space::*;

#[tokio::test]
async fn destination_service() -> anyhow::Result<()> {
    let space = Space::new("dst-service").await?;
    space.service("web", json!({})).await?;
    let mut told = space.endpoints(&space.authority("web", 80)).await?;
    told.becomes(&["none"]).await?;
    let pod = |annotations| {
        space.pod(
            "web-0",
            "10.7.1.1",
            json!({"metadata": {"annotations": annotations}}),
        )
    };
    pod(json!({})).await?;
    space.slice("web", "IPv4", &[("web-0", "10.7.1.1")]).await?;
    let meshed = ["10.7.1.1:8080 as default.dst-service h2 via 4143"];
    told.becomes(&meshed).await?;
    pod(json!({"config.linkerd.io/opaque-ports": "8080"})).await?;
    told.becomes(&["10.7.1.1:8080 as default.dst-service opaque via 4143"])
        .await?;
    // What bypasses the proxy is not met with its identity.
    pod(json!({"config.linkerd.io/skip-inbound-ports": "8080"})).await?;
    told.becomes(&["10.7.1.1:8080"]).await?;
    pod(json!({})).await?;
    told.becomes(&meshed).await?;
    let opaque = json!({"spec": {"podSelector": {}, "port": "http", "proxyProtocol": "opaque"}});
    space.put(SERVER, "web", opaque).await?;
    told.becomes(&["10.7.1.1:8080 as default.dst-service opaque via 4143"])
        .await?;
    space.delete(SERVER, "web").await?;
    told.becomes(&meshed).await?;
    space.delete(SLICE, "web-ipv4").await?;
    told.becomes(&["none"]).await?;
    space.delete(SERVICE, "web").await?;
    told.becomes(&["no service"]).await
}

#[tokio::test]
async fn destination_headless_instance() -> anyhow::Result<()> {
    let space = Space::new("dst-headless").await?;
    space
        .service("db", json!({"spec": {"clusterIP": "None"}}))
        .await?;
    space.pod("db-0", "10.7.2.1", json!({})).await?;
    space.pod("db-1", "10.7.2.2", json!({})).await?;
    let (first, second) = (("db-0", "10.7.2.1"), ("db-1", "10.7.2.2"));
    space.slice("db", "IPv4", &[first, second]).await?;
    let mut whole = space.endpoints(&space.authority("db", 80)).await?;
    let mut one = space.endpoints(&space.authority("db-0.db", 80)).await?;
    let shown = |ip: &str| format!("{ip}:8080 as default.dst-headless h2 via 4143");
    let lines = [shown(first.1), shown(second.1)];
    whole.becomes(&[&lines[0], &lines[1]]).await?;
    one.becomes(&[&lines[0]]).await?;
    let mut profile = space.profile(&space.authority("db-0.db", 80)).await?;
    profile.becomes(&["unnamed", &lines[0]]).await?;
    space.slice("db", "IPv4", &[second]).await?;
    whole.becomes(&[&lines[1]]).await?;
    one.becomes(&["none"]).await?;
    space.slice("db", "IPv4", &[first, second]).await?;
    one.becomes(&[&lines[0]]).await
}

#[tokio::test]
async fn destination_external_workload() -> anyhow::Result<()> {
    let space = Space::new("dst-vm").await?;
    let ports = json!([{"name": "sql", "port": 5432, "targetPort": "sql"}]);
    let service = json!({"spec": {"selector": {"app": "db"}, "ports": ports}});
    space.put(SERVICE, "db", service).await?;
    let mut told = space.endpoints(&space.authority("db", 5432)).await?;
    told.becomes(&["none"]).await?;
    let vm = json!({
        "metadata": {"labels": {"app": "db"}},
        "spec": {
            "meshTLS": {"identity": "spiffe://root.linkerd.cluster.local/db", "serverName": "db.dst-vm"},
            "ports": [{"name": "sql", "port": 15432}],
            "workloadIPs": [{"ip": "192.0.2.77"}],
        },
    });
    space.put(EXTERNAL, "vm", vm.clone()).await?;
    let api = space.writer.api(&space.object(EXTERNAL, "vm", vm))?;
    let ready = json!({"type": "Ready", "status": "True", "reason": "Up", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
    let status = kube::api::Patch::Merge(json!({"status": {"conditions": [ready]}}));
    api.patch_status("vm", &kube::api::PatchParams::default(), &status)
        .await?;
    let line = "192.0.2.77:15432 as spiffe://root.linkerd.cluster.local/db at db.dst-vm h2 via 4143";
    told.becomes(&[line]).await?;
    let mut profile = space.profile("192.0.2.77:15432").await?;
    profile.becomes(&["unnamed", line]).await?;
    space.delete(EXTERNAL, "vm").await?;
    told.becomes(&["none"]).await?;
    profile.becomes(&["unnamed"]).await
}

#[tokio::test]
async fn destination_dual_stack() -> anyhow::Result<()> {
    let space = Space::new("dst-dual").await?;
    space.service("web", json!({})).await?;
    let ips = json!({"status": {"podIPs": [{"ip": "10.7.4.1"}, {"ip": "fd00:7::1"}]}});
    space.pod("web-0", "10.7.4.1", ips).await?;
    space.slice("web", "IPv4", &[("web-0", "10.7.4.1")]).await?;
    let mut told = space.endpoints(&space.authority("web", 80)).await?;
    let four = ["10.7.4.1:8080 as default.dst-dual h2 via 4143"];
    told.becomes(&four).await?;
    // One pod is one endpoint.
    space.slice("web", "IPv6", &[("web-0", "fd00:7::1")]).await?;
    told.becomes(&["fd00:7::1:8080 as default.dst-dual h2 via 4143"])
        .await?;
    space.delete(SLICE, "web-ipv6").await?;
    told.becomes(&four).await
}

#[tokio::test]
async fn destination_host_port() -> anyhow::Result<()> {
    let space = Space::new("dst-host").await?;
    let mut told = space.profile("198.51.100.7:30080").await?;
    told.becomes(&["unnamed"]).await?;
    let ports = json!([{"name": "http", "containerPort": 8080, "hostPort": 30080}]);
    let rest = json!({
        "spec": {"containers": [
            {"name": "app", "image": "local/none:1", "ports": ports},
            {"name": "linkerd-proxy", "image": "local/none:1"},
        ]},
        "status": {"hostIP": "198.51.100.7", "hostIPs": [{"ip": "198.51.100.7"}]},
    });
    space.pod("web-0", "10.7.5.1", rest).await?;
    told.becomes(&["unnamed", "10.7.5.1:8080 as default.dst-host h2"])
        .await?;
    space.delete(POD, "web-0").await?;
    told.becomes(&["unnamed"]).await
}

#[tokio::test]
async fn destination_service_profile() -> anyhow::Result<()> {
    let space = Space::new("dst-profile").await?;
    let client = space.beside("dst-profile-client").await?;
    let name = "web.dst-profile.svc.cluster.local";
    let ip = space.service("web", json!({})).await?;
    space.endpoints(&space.authority("web", 80)).await?;
    let mut told = client.profile(&format!("{ip}:80")).await?;
    let plain = ["web.dst-profile", "of core/Service/web"];
    told.becomes(&plain).await?;
    let get =
        json!({"name": "GET /a", "condition": {"method": "GET", "pathRegex": "/a"}, "isRetryable": true});
    space
        .put(PROFILE, name, json!({"spec": {"routes": [get]}}))
        .await?;
    let by = "by linkerd/ServiceProfile/web.dst-profile, 0.2 retries a request";
    let theirs = [plain[0], plain[1], by, "route GET /a retried"];
    told.becomes(&theirs).await?;
    // The client's own comes first.
    let dst = |version: &str, weight: &str| json!({"authority": format!("{version}.dst-profile.svc.cluster.local:80"), "weight": weight});
    let split = json!({"spec": {"dstOverrides": [dst("v1", "900m"), dst("v2", "100m")]}});
    client.put(PROFILE, name, split).await?;
    told.becomes(&[
        plain[0],
        plain[1],
        by,
        "900 x v1.dst-profile:80",
        "100 x v2.dst-profile:80",
    ])
    .await?;
    client.delete(PROFILE, name).await?;
    told.becomes(&theirs).await?;
    space.delete(PROFILE, name).await?;
    told.becomes(&plain).await
}

#[tokio::test]
async fn destination_profile_of_a_pod() -> anyhow::Result<()> {
    let space = Space::new("dst-pod").await?;
    let mut told = space.profile("10.7.7.1:8080").await?;
    told.becomes(&["unnamed"]).await?;
    space.pod("web-0", "10.7.7.1", json!({})).await?;
    let meshed = ["unnamed", "10.7.7.1:8080 as default.dst-pod h2 via 4143"];
    told.becomes(&meshed).await?;
    let opaque = json!({"spec": {"podSelector": {}, "port": "http", "proxyProtocol": "opaque"}});
    space.put(SERVER, "web", opaque).await?;
    told.becomes(&[
        "unnamed",
        "opaque",
        "10.7.7.1:8080 as default.dst-pod opaque via 4143",
    ])
    .await?;
    space.delete(SERVER, "web").await?;
    told.becomes(&meshed).await?;
    space.delete(POD, "web-0").await?;
    told.becomes(&["unnamed"]).await
}
