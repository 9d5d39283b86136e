//! Routes on Servers: which requests they take in, who may use them, and what is taken back.

use serde_json::{Value, json};

use super::{
    inbound::{CLOSED, account, allow, pod, to, web, with_pod, with_server},
    space::*,
};

/// A route for `GET /admin` on Server `web`.
fn route() -> Value {
    let matches = json!([{"method": "GET", "path": {"type": "PathPrefix", "value": "/admin"}}]);
    json!({"spec": {"parentRefs": [to("Server", "web")], "rules": [{"matches": matches}]}})
}

#[tokio::test]
async fn inbound_http_route_of_every_version() -> anyhow::Result<()> {
    let space = with_server("in-http").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    told.becomes(&CLOSED).await?;
    for (kind, shown) in [
        (("policy.linkerd.io/v1alpha1", "HTTPRoute"), "policy"),
        (("policy.linkerd.io/v1beta1", "HTTPRoute"), "policy"),
        (("policy.linkerd.io/v1beta2", "HTTPRoute"), "policy"),
        (POLICY_ROUTE, "policy"),
        (("gateway.networking.k8s.io/v1beta1", "HTTPRoute"), "gateway"),
        (HTTP_ROUTE, "gateway"),
    ] {
        space.put(kind, "admin", route()).await?;
        let line = format!("{shown}/HTTPRoute/admin: GET /admin*");
        told.becomes(&[CLOSED[0], &line]).await?;
        space.delete(kind, "admin").await?;
        told.becomes(&CLOSED).await?;
    }
    Ok(())
}

#[tokio::test]
async fn inbound_authorization_policy_of_http_routes() -> anyhow::Result<()> {
    let space = with_server("in-routes").await?;
    let mut told = space.inbound(pod(), 8080).await?;
    space.put(POLICY_ROUTE, "admin", route()).await?;
    space.put(HTTP_ROUTE, "admin", route()).await?;
    let mut ours = vec![CLOSED[0]];
    ours.extend([
        "policy/HTTPRoute/admin: GET /admin*",
        "gateway/HTTPRoute/admin: GET /admin*",
    ]);
    told.becomes(&ours).await?;
    // A policy is for the route of its own group alone.
    let lets = "policy/authorizationpolicy/allow lets admin.in-routes";
    let policy_lets = format!("policy/HTTPRoute/admin: {lets}");
    let gateway_lets = format!("gateway/HTTPRoute/admin: {lets}");
    let put = |group: &str| {
        let target = json!({"group": group, "kind": "HTTPRoute", "name": "admin"});
        space.put(AUTHORIZATION_POLICY, "allow", allow(target, account("admin")))
    };
    put("policy.linkerd.io").await?;
    told.becomes(&[ours[0], ours[1], &policy_lets, ours[2]]).await?;
    put("gateway.networking.k8s.io").await?;
    told.becomes(&[ours[0], ours[1], ours[2], &gateway_lets]).await?;
    space.delete(AUTHORIZATION_POLICY, "allow").await?;
    told.becomes(&ours).await
}

#[tokio::test]
async fn inbound_grpc_route() -> anyhow::Result<()> {
    let space = with_pod("in-grpc").await?;
    let mut server = web();
    server["spec"]["proxyProtocol"] = json!("gRPC");
    space.put(SERVER, "web", server).await?;
    let mut told = space.inbound(pod(), 8080).await?;
    let closed = ["server/web grpc", "default: *"];
    told.becomes(&closed).await?;
    let matches = json!([{"method": {"service": "shop.Cart", "method": "Add"}}]);
    let route = json!({"spec": {"parentRefs": [to("Server", "web")], "rules": [{"matches": matches}]}});
    space.put(GRPC_ROUTE, "cart", route).await?;
    let line = "gateway/GRPCRoute/cart: shop.Cart/Add";
    told.becomes(&[closed[0], line]).await?;
    let policy = allow(to("GRPCRoute", "cart"), account("checkout"));
    space.put(AUTHORIZATION_POLICY, "allow", policy).await?;
    let lets = "gateway/GRPCRoute/cart: policy/authorizationpolicy/allow lets checkout.in-grpc";
    told.becomes(&[closed[0], line, lets]).await?;
    space.delete(AUTHORIZATION_POLICY, "allow").await?;
    told.becomes(&[closed[0], line]).await?;
    space.delete(GRPC_ROUTE, "cart").await?;
    told.becomes(&closed).await
}

#[tokio::test]
async fn inbound_probes_pass_where_nobody_else_does() -> anyhow::Result<()> {
    let space = Space::new("in-probes").await?;
    let probe = json!({"httpGet": {"path": "/healthz", "port": "http"}});
    let container = json!({"name": "app", "image": "local/none:1", "ports": [{"name": "http", "containerPort": 8080}], "readinessProbe": probe});
    let spec = json!({"spec": {"containers": [container]}});
    space.pod("web-0", "10.1.0.1", spec).await?;
    space.put(SERVER, "web", web()).await?;
    let mut told = space.inbound(pod(), 8080).await?;
    let probed = [
        CLOSED[0],
        "probe: GET =/healthz",
        "probe: probe lets anyone",
        CLOSED[1],
    ];
    told.becomes(&probed).await?;
    // From then on the routes say who passes.
    space.put(HTTP_ROUTE, "admin", route()).await?;
    told.becomes(&[CLOSED[0], "gateway/HTTPRoute/admin: GET /admin*"])
        .await?;
    space.delete(HTTP_ROUTE, "admin").await?;
    told.becomes(&probed).await
}
