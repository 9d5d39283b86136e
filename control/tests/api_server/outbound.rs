//! For each kind of route and parent: what clients are told about where they connect to, and what is taken back.

use serde_json::{Value, json};
use tonic::Code;

use super::space::*;

/// Service `web`, and what clients of its namespace are told of port 80.
async fn with_service(name: &str) -> anyhow::Result<(Space, String)> {
    let space = Space::new(name).await?;
    let ip = space.service("web", json!({})).await?;
    Ok((space, ip))
}

/// Refers to Service `web`, port 80, of a namespace.
fn to_web(namespace: &str) -> Value {
    json!({"group": "", "kind": "Service", "namespace": namespace, "name": "web", "port": 80})
}

fn route(parent: Value, rest: Value) -> Value {
    let mut route = json!({"spec": {"parentRefs": [parent]}});
    merge(&mut route, json!({"spec": rest}));
    route
}

fn prefix(path: &str) -> Value {
    json!([{"path": {"type": "PathPrefix", "value": path}}])
}

const SERVED: &str = "detect of core/Service/web";

#[tokio::test]
async fn outbound_service() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-service").await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let mut by_name = space.outbound(&space.authority("web", 80)).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-service:80",
        "opaq: bytes -> web.out-service:80",
    ];
    told.becomes(&plain).await?;
    by_name.becomes(&plain).await?;
    // As kube-proxy does with a port that is not declared.
    let mut undefined = space.outbound(&format!("{ip}:81")).await?;
    undefined
        .becomes(&[
            "opaque of core/Service/web",
            "opaq: bytes forbidden -> web.out-service:81",
        ])
        .await?;
    let ports = json!([{"name": "http", "port": 80}, {"name": "more", "port": 81}]);
    space.service("web", json!({"spec": {"ports": ports}})).await?;
    undefined
        .becomes(&[
            SERVED,
            "http: * -> web.out-service:81",
            "opaq: bytes -> web.out-service:81",
        ])
        .await?;

    space.pod("web-0", "10.8.1.1", json!({})).await?;
    let mut client = space.world.policy.outbound();
    for target in ["10.8.1.1:8080", "gone.out-service.svc.cluster.local:80"] {
        let status = client
            .get(space.traffic(target)?)
            .await
            .expect_err("not known as a service");
        assert_eq!(status.code(), Code::NotFound, "{target}: {status}");
    }
    space.delete(SERVICE, "web").await?;
    told.ends().await?;
    by_name.ends().await
}

#[tokio::test]
async fn outbound_http_route_of_every_version() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-http").await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let (default, opaque) = ("http: * -> web.out-http:80", "opaq: bytes -> web.out-http:80");
    told.becomes(&[SERVED, default, opaque]).await?;
    let rules = json!([{"matches": prefix("/a")}]);
    for (kind, shown) in [
        (("policy.linkerd.io/v1alpha1", "HTTPRoute"), "policy"),
        (("policy.linkerd.io/v1beta1", "HTTPRoute"), "policy"),
        (("policy.linkerd.io/v1beta2", "HTTPRoute"), "policy"),
        (POLICY_ROUTE, "policy"),
        (("gateway.networking.k8s.io/v1beta1", "HTTPRoute"), "gateway"),
        (HTTP_ROUTE, "gateway"),
    ] {
        let object = route(to_web(&space.name), json!({"rules": rules}));
        space.put(kind, "r", object).await?;
        let line = format!("{shown}/HTTPRoute/r: /a* -> web.out-http:80");
        told.becomes(&[SERVED, &line, opaque]).await?;
        space.delete(kind, "r").await?;
        told.becomes(&[SERVED, default, opaque]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn outbound_http_route_matches_and_filters() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-filters").await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let opaque = "opaq: bytes -> web.out-filters:80";
    let headers =
        json!([{"name": "x-a", "value": "b"}, {"name": "x-c", "type": "RegularExpression", "value": "d.*"}]);
    let matches = json!([{
        "method": "POST", "path": {"type": "Exact", "value": "/a"}, "headers": headers,
        "queryParams": [{"name": "q", "value": "1"}],
    }]);
    for (filter, shown) in [
        (
            json!({"type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x", "value": "y"}]}}),
            "changes headers",
        ),
        (
            json!({"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": ["x"]}}),
            "changes response headers",
        ),
        (
            json!({"type": "RequestRedirect", "requestRedirect": {"hostname": "new.example.com"}}),
            "redirects to new.example.com",
        ),
    ] {
        let rules = json!([{"matches": matches, "filters": [filter], "timeouts": {"request": "10s"}}]);
        let rest = json!({"hostnames": ["web.example.com"], "rules": rules});
        space
            .put(HTTP_ROUTE, "r", route(to_web(&space.name), rest))
            .await?;
        let line = format!(
            "gateway/HTTPRoute/r: //web.example.com POST =/a x-a=b x-c~d.* ?q=1 {shown} request 10s -> web.out-filters:80"
        );
        told.becomes(&[SERVED, &line, opaque]).await?;
    }
    space.delete(HTTP_ROUTE, "r").await?;
    told.becomes(&[SERVED, "http: * -> web.out-filters:80", opaque])
        .await
}

#[tokio::test]
async fn outbound_weights_and_backends_that_are_missing() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-split").await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let opaque = "opaq: bytes -> web.out-split:80";
    let put = |web: u32, canary: u32| {
        let backends = json!([{"name": "web", "port": 80, "weight": web}, {"name": "canary", "port": 80, "weight": canary}]);
        let rules = json!([{"backendRefs": backends}]);
        space.put(
            HTTP_ROUTE,
            "r",
            route(to_web(&space.name), json!({"rules": rules})),
        )
    };
    let name = "gateway/HTTPRoute/r: * ->";
    put(9, 1).await?;
    let missing = format!("{name} 9 x web.out-split:80, 1 x canary.out-split:80 fails 500");
    told.becomes(&[SERVED, &missing, opaque]).await?;
    space.service("canary", json!({})).await?;
    let there = format!("{name} 9 x web.out-split:80, 1 x canary.out-split:80");
    told.becomes(&[SERVED, &there, opaque]).await?;
    put(0, 3).await?;
    let moved = format!("{name} 3 x canary.out-split:80");
    told.becomes(&[SERVED, &moved, opaque]).await?;
    put(0, 0).await?;
    let nowhere = format!("{name} web.out-split:80 fails 500");
    told.becomes(&[SERVED, &nowhere, opaque]).await?;
    put(9, 1).await?;
    told.becomes(&[SERVED, &there, opaque]).await?;
    space.delete(SERVICE, "canary").await?;
    told.becomes(&[SERVED, &missing, opaque]).await
}

#[tokio::test]
async fn outbound_grpc_route() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-grpc").await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-grpc:80",
        "opaq: bytes -> web.out-grpc:80",
    ];
    told.becomes(&plain).await?;
    // Of two kinds the more specific one is in force.
    let http = route(to_web(&space.name), json!({"rules": [{"matches": prefix("/a")}]}));
    space.put(HTTP_ROUTE, "http", http).await?;
    let by_http = [SERVED, "gateway/HTTPRoute/http: /a* -> web.out-grpc:80", plain[2]];
    told.becomes(&by_http).await?;
    let matches = json!([{"method": {"service": "shop.Cart", "method": "Add"}}]);
    let rules = json!([{"matches": matches, "backendRefs": [{"name": "web", "port": 80}]}]);
    let mut grpc = route(to_web(&space.name), json!({"rules": rules}));
    grpc["metadata"] = json!({"annotations": {"retry.linkerd.io/grpc": "internal,unavailable"}});
    space.put(GRPC_ROUTE, "cart", grpc).await?;
    told.becomes(&[
        "grpc of core/Service/web",
        "gateway/GRPCRoute/cart: shop.Cart/Add retries 1 on internal, unavailable -> 1 x web.out-grpc:80",
    ])
    .await?;
    space.delete(GRPC_ROUTE, "cart").await?;
    told.becomes(&by_http).await?;
    space.delete(HTTP_ROUTE, "http").await?;
    told.becomes(&plain).await
}

#[tokio::test]
async fn outbound_tls_route_of_every_version() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-tls").await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-tls:80",
        "opaq: bytes -> web.out-tls:80",
    ];
    told.becomes(&plain).await?;
    for version in [
        "gateway.networking.k8s.io/v1alpha2",
        "gateway.networking.k8s.io/v1alpha3",
        "gateway.networking.k8s.io/v1",
    ] {
        let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
        let rest = json!({"hostnames": ["a.example.com", "*.b.example.com"], "rules": rules});
        let object = route(to_web(&space.name), rest);
        space.put((version, "TLSRoute"), "t", object).await?;
        told.becomes(&[
            "tls of core/Service/web",
            "gateway/TLSRoute/t: a.example.com, *.b.example.com -> 1 x web.out-tls:80",
        ])
        .await?;
        space.delete((version, "TLSRoute"), "t").await?;
        told.becomes(&plain).await?;
    }
    Ok(())
}

#[tokio::test]
async fn outbound_tcp_route_of_every_version() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-tcp").await?;
    space.service("canary", json!({})).await?;
    let mut told = space.outbound(&format!("{ip}:80")).await?;
    let plain = [
        SERVED,
        "http: * -> web.out-tcp:80",
        "opaq: bytes -> web.out-tcp:80",
    ];
    told.becomes(&plain).await?;
    for version in [
        "gateway.networking.k8s.io/v1alpha2",
        "gateway.networking.k8s.io/v1",
    ] {
        let backends = json!([{"name": "web", "port": 80, "weight": 3}, {"name": "canary", "port": 80}]);
        let rest = json!({"rules": [{"backendRefs": backends}]});
        let object = route(to_web(&space.name), rest);
        space.put((version, "TCPRoute"), "t", object).await?;
        told.becomes(&[
            "opaque of core/Service/web",
            "gateway/TCPRoute/t: bytes -> 3 x web.out-tcp:80, 1 x canary.out-tcp:80",
        ])
        .await?;
        space.delete((version, "TCPRoute"), "t").await?;
        told.becomes(&plain).await?;
    }
    Ok(())
}

#[tokio::test]
async fn outbound_consumer_routes() -> anyhow::Result<()> {
    let (space, ip) = with_service("out-producer").await?;
    let consumer = space.beside("out-consumer").await?;
    let mut by_producer = space.outbound(&format!("{ip}:80")).await?;
    let mut by_consumer = consumer.outbound(&format!("{ip}:80")).await?;
    let opaque = "opaq: bytes -> web.out-producer:80";
    let put = |space: &Space, name: &'static str| {
        let rules = json!([{"matches": prefix(&format!("/{name}"))}]);
        let object = route(to_web("out-producer"), json!({"rules": rules}));
        space.object(HTTP_ROUTE, name, object)
    };
    space.writer.apply(put(&space, "theirs")).await?;
    let theirs = "gateway/HTTPRoute/theirs: /theirs* -> web.out-producer:80";
    by_consumer.becomes(&[SERVED, theirs, opaque]).await?;
    by_producer.becomes(&[SERVED, theirs, opaque]).await?;
    consumer.writer.apply(put(&consumer, "mine")).await?;
    let mine = "gateway/HTTPRoute/mine: /mine* -> web.out-producer:80";
    by_consumer.becomes(&[SERVED, mine, theirs, opaque]).await?;
    // It is known now, and nobody else hears of it.
    let again = space.outbound(&format!("{ip}:80")).await;
    again?.becomes(&[SERVED, theirs, opaque]).await?;
    consumer.delete(HTTP_ROUTE, "mine").await?;
    by_consumer.becomes(&[SERVED, theirs, opaque]).await?;
    space.delete(HTTP_ROUTE, "theirs").await?;
    let default = "http: * -> web.out-producer:80";
    by_consumer.becomes(&[SERVED, default, opaque]).await?;
    by_producer.becomes(&[SERVED, default, opaque]).await
}

fn to_egress(port: u16) -> Value {
    json!({"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "all", "port": port})
}

#[tokio::test]
async fn outbound_egress_network() -> anyhow::Result<()> {
    let space = Space::new("out-egress").await?;
    let mut told = space.outbound("192.0.2.1:80").await?;
    let unknown = [
        "detect of egress-fallback",
        "egress-fallback: * -> 192.0.2.1:80",
        "egress-fallback: bytes -> 192.0.2.1:80",
    ];
    told.becomes(&unknown).await?;
    let put = |policy: &str| {
        let networks = json!([{"cidr": "192.0.2.0/24"}]);
        let spec = json!({"trafficPolicy": policy, "networks": networks});
        space.put(EGRESS, "all", json!({"spec": spec}))
    };
    put("Allow").await?;
    let of = "detect of policy/EgressNetwork/all";
    told.becomes(&[
        of,
        "http-egress-allow: * -> 192.0.2.1:80",
        "tcp-egress-allow: bytes -> 192.0.2.1:80",
    ])
    .await?;
    put("Deny").await?;
    let denied = [
        of,
        "http-egress-deny: * fails 403 -> 192.0.2.1:80",
        "tcp-egress-deny: bytes forbidden -> 192.0.2.1:80",
    ];
    told.becomes(&denied).await?;
    let mut elsewhere = space.outbound("198.51.100.1:80").await?;
    let beside = unknown.map(|line| line.replace("192.0.2.1", "198.51.100.1"));
    elsewhere.becomes(&[&beside[0], &beside[1], &beside[2]]).await?;
    space.delete(EGRESS, "all").await?;
    told.becomes(&unknown).await
}

#[tokio::test]
async fn outbound_routes_of_egress_networks() -> anyhow::Result<()> {
    let space = Space::new("out-egress-routes").await?;
    let deny = json!({"spec": {"trafficPolicy": "Deny"}});
    space.put(EGRESS, "all", deny).await?;
    let (mut http, mut tls) = (
        space.outbound("192.0.2.1:80").await?,
        space.outbound("192.0.2.1:443").await?,
    );
    let of = "detect of policy/EgressNetwork/all";
    let denied = [
        of,
        "http-egress-deny: * fails 403 -> 192.0.2.1:80",
        "tcp-egress-deny: bytes forbidden -> 192.0.2.1:80",
    ];
    http.becomes(&denied).await?;
    let docs = json!({"hostnames": ["docs.example.com"], "rules": [{"matches": prefix("/")}]});
    space.put(HTTP_ROUTE, "docs", route(to_egress(80), docs)).await?;
    http.becomes(&[
        of,
        "gateway/HTTPRoute/docs: //docs.example.com * -> 192.0.2.1:80",
        denied[1],
        denied[2],
    ])
    .await?;
    space.delete(HTTP_ROUTE, "docs").await?;
    http.becomes(&denied).await?;

    let itself = json!([{"group": "policy.linkerd.io", "kind": "EgressNetwork", "name": "all"}]);
    let names = json!({"hostnames": ["docs.example.com"], "rules": [{"backendRefs": itself}]});
    let kind = ("gateway.networking.k8s.io/v1", "TLSRoute");
    space.put(kind, "docs", route(to_egress(443), names)).await?;
    tls.becomes(&[
        "tls of policy/EgressNetwork/all",
        "gateway/TLSRoute/docs: docs.example.com -> 1 x 192.0.2.1:443",
        "tls-egress-deny: all names forbidden -> 192.0.2.1:443",
    ])
    .await?;
    space.delete(kind, "docs").await?;
    let tcp = json!({"rules": [{"backendRefs": itself}]});
    let kind = ("gateway.networking.k8s.io/v1alpha2", "TCPRoute");
    space.put(kind, "any", route(to_egress(443), tcp)).await?;
    tls.becomes(&[
        "opaque of policy/EgressNetwork/all",
        "gateway/TCPRoute/any: bytes -> 1 x 192.0.2.1:443",
        "tcp-egress-deny: bytes forbidden -> 192.0.2.1:443",
    ])
    .await?;
    space.delete(kind, "any").await?;
    let denied = denied.map(|line| line.replace(":80", ":443"));
    tls.becomes(&[&denied[0], &denied[1], &denied[2]]).await
}
